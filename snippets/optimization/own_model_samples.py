"""Write small models of random weights, in place of yours: a state dict, a vision transformer, a text encoder."""

from __future__ import annotations

from snippets.optimization.own_model_examples import Network

# isort: split
# --8<-- [start:imports]
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# --8<-- [end:imports]


# --8<-- [start:build]
def build_state_dict(path: Path, labels: int) -> str:
    """Write a state dict of `Network`; return where it is."""
    torch.manual_seed(0)
    torch.save(Network(labels).state_dict(), path)
    return str(path)


def build_vision_transformer(folder: Path, labels: Sequence[str]) -> str:
    """Write a vision transformer of two layers, with the image processor of google/vit-base-patch16-224."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
    }
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    ViTForImageClassification(ViTConfig(**sizes, **names)).save_pretrained(folder)
    asks = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}
    scale = {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(asks | scale))
    return str(folder)


def build_text_encoder(folder: Path) -> str:
    """Write an encoder of two layers, and a tokenizer that knows letters and digits, alone or within a word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    characters = string.ascii_lowercase + string.digits
    words = ["[PAD]", "[UNK]", *characters, *(f"##{character}" for character in characters)]
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=len(words), pad_token_id=0, **sizes)).save_pretrained(folder)
    return str(folder)


# --8<-- [end:build]
