"""Four models in place of yours: a state dict, a vision transformer, embeddings, and a text encoder."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import Preprocessing
from snippets.fundamentals.setup import split_revision
from snippets.optimization.weights import fetch_once

# isort: split
# --8<-- [start:imports]
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

# --8<-- [end:imports]


# --8<-- [start:normalize]
def normalize(images: torch.Tensor, to: Preprocessing) -> torch.Tensor:
    """Return uint8 images (n, crop, crop, 3) as the floats (n, 3, crop, crop) that the model was trained on."""
    mean, std = (
        torch.tensor(values, device=images.device).mul(255).view(1, 3, 1, 1) for values in (to.mean, to.std)
    )
    return images.permute(0, 3, 1, 2).float().sub_(mean).div_(std)


# --8<-- [end:normalize]


# --8<-- [start:state_dict]
class Network(torch.nn.Module):
    """A small convolutional network: the place of your own module."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 8, stride=8), torch.nn.ReLU())
        self.head = torch.nn.Linear(16 * 4 * 4, labels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (n, labels) of pixels (n, 3, height, width)."""
        pooled = torch.nn.functional.adaptive_avg_pool2d(self.features(pixels), 4)
        logits: torch.Tensor = self.head(pooled.flatten(1))
        return logits


class StateDictModel:
    """Label images with a module of your own and the state dict that was saved of it."""

    def __init__(self, weights: str, labels: Sequence[str], to: Preprocessing) -> None:
        self.weights, self.labels, self.to = weights, np.array(labels), to

    def load(self, device: torch.device) -> None:
        """Fetch the weights once a node. Raises `pickle.UnpicklingError` where the file would run code."""
        state = torch.load(fetch_once(self.weights).path, device, weights_only=True)
        network = Network(len(self.labels))
        network.load_state_dict(state)  # strict: a tensor too many or too few raises
        self.network = network.eval().to(device)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return `label` and `score` (softmax, float32)."""
        best = self.network(normalize(images, self.to)).softmax(-1).max(-1)
        return {"label": self.labels[best.indices.numpy(force=True)], "score": best.values}


# --8<-- [end:state_dict]


# --8<-- [start:transformer]
def load_squeezing(checkpoint: str) -> Preprocessing:
    """Read the image processor of a vision transformer, which squeezes the whole image into a square.

    Raises `ValueError` where it asks for another size, or for a crop.
    """
    from transformers import AutoImageProcessor

    name, revision = split_revision(checkpoint)
    asks = AutoImageProcessor.from_pretrained(name, revision=revision).to_dict()
    size = dict(asks["size"])
    side = size.get("height")
    if not side or side != size.get("width") or asks.get("do_center_crop"):
        raise ValueError(f"{checkpoint} asks for other steps than squeezing an image into a square.")
    return Preprocessing(side, side, int(asks["resample"]), tuple(asks["image_mean"]), tuple(asks["image_std"]))


def squeeze(encoded: bytes, to: Preprocessing) -> np.ndarray:
    """Return an image as uint8 (crop, crop, 3), with nothing cut off: the `decode_one` of `decode`."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return np.asarray(image.resize((to.crop, to.crop), Image.Resampling(to.resample)))


class TransformerModel:
    """Label images with any image classifier of transformers."""

    def __init__(self, checkpoint: str, to: Preprocessing) -> None:
        self.checkpoint, self.to = checkpoint, to

    def load(self, device: torch.device) -> None:
        """Load the checkpoint, of safetensors alone."""
        from transformers import AutoModelForImageClassification

        name, revision = split_revision(self.checkpoint)
        network = AutoModelForImageClassification.from_pretrained(name, revision=revision, use_safetensors=True)
        self.labels = np.array([network.config.id2label[index] for index in range(network.num_labels)])
        self.network = network.eval().to(device)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return `label` and `score` (softmax, float32)."""
        best = self.network(normalize(images, self.to)).logits.softmax(-1).max(-1)
        return {"label": self.labels[best.indices.numpy(force=True)], "score": best.values}


# --8<-- [end:transformer]


# --8<-- [start:embeddings]
class EmbeddingModel:
    """Turn images into vectors: what the last layer of a classifier gets to see, at unit length."""

    def __init__(self, checkpoint: str, to: Preprocessing) -> None:
        self.checkpoint, self.to = checkpoint, to

    def load(self, device: torch.device) -> None:
        """Load the network without its head."""
        from transformers import AutoModel

        name, revision = split_revision(self.checkpoint)
        network = AutoModel.from_pretrained(name, revision=revision, use_safetensors=True)
        self.network = network.eval().to(device)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return `embedding` (float32, one vector a row)."""
        pooled = self.network(normalize(images, self.to)).pooler_output.flatten(1)
        return {"embedding": torch.nn.functional.normalize(pooled)}


# --8<-- [end:embeddings]


# --8<-- [start:text]
def tokenizing(checkpoint: str, length: int = 32) -> dict[str, Any]:
    """Return the arguments of `tokenize`. The tokenizer travels with them: workers need no file of it."""
    from transformers import AutoTokenizer

    name, revision = split_revision(checkpoint)
    return {"tokenizer": AutoTokenizer.from_pretrained(name, revision=revision), "length": length}


def tokenize(batch: dict[str, Any], tokenizer: Any, length: int) -> dict[str, Any]:
    """Turn `text` into `id`, `tokens` (int64, n x length, cut or padded) and `error`, as `decode` does images."""
    tokens = np.full((len(batch["id"]), length), tokenizer.pad_token_id, np.int64)
    errors = []
    for row, text in zip(tokens, batch["text"], strict=True):
        try:
            row[:] = tokenizer(text, padding="max_length", truncation=True, max_length=length)["input_ids"]
            errors.append("")
        except Exception as error:  # a row without a text keeps its place
            errors.append(f"{type(error).__name__}: {error}")
    return {"id": batch["id"], "tokens": tokens, "error": errors}


class TextModel:
    """Turn texts into vectors: the mean over the tokens, without the padding."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def load(self, device: torch.device) -> None:
        """Load the encoder."""
        from transformers import AutoModel

        name, revision = split_revision(self.checkpoint)
        network = AutoModel.from_pretrained(name, revision=revision, use_safetensors=True)
        self.network = network.eval().to(device)

    def forward(self, tokens: torch.Tensor) -> dict[str, Any]:
        """Return `embedding` (float32, one vector a row)."""
        is_token = tokens != self.network.config.pad_token_id
        hidden = self.network(tokens, attention_mask=is_token).last_hidden_state
        mean = (hidden * is_token[..., None]).sum(1) / is_token.sum(1, keepdim=True).clamp(min=1)
        return {"embedding": torch.nn.functional.normalize(mean)}


# --8<-- [end:text]
