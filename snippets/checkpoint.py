"""Refuse a checkpoint that cannot be loaded, or that would run code, before any worker tries."""

from __future__ import annotations

from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import json
from pathlib import Path

# --8<-- [end:imports]


# --8<-- [start:check_checkpoint]
NEEDED = ("config.json", "preprocessor_config.json")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HUB_TIMEOUT_S = 10


def check_checkpoint(model: str) -> None:
    """Raise ValueError, with a sentence on what is wrong, unless `model` is a checkpoint of safetensors.

    A name that is no folder is looked up on the Hugging Face hub, or in its cache.
    """
    name, revision = split_revision(model)
    if Path(name).is_dir():
        _check_files(f"The checkpoint folder {name}", {path.name for path in Path(name).iterdir()})
        _check_shards(Path(name))
        _check_weights(Path(name))
        config = Path(name) / "config.json"
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ValueError(f"There is no checkpoint folder {name}.")
    else:
        config = _download_config(name, revision)
    try:
        settings = json.loads(config.read_text())
    except ValueError as error:
        raise ValueError(f"The config.json of {model} is not JSON ({error}).") from None
    if "auto_map" in settings:
        raise ValueError(f"The checkpoint {model} brings code of its own (auto_map), which is not run here.")


def _check_files(what: str, files: set[str]) -> None:
    for needed in NEEDED:
        if needed not in files:
            raise ValueError(f"{what} has no {needed}.")
    if not any(file.endswith(".safetensors") for file in files):
        pickled = sorted(file for file in files if file.endswith(PICKLED))
        reason = f"only pickled ones ({', '.join(pickled)}), and loading those runs code" if pickled else "none"
        raise ValueError(f"{what} has no weights in safetensors: {reason}.")


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise ValueError(f"The checkpoint folder {folder} lacks {', '.join(missing)} of its weights.")


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np"):  # reads the header, and compares it with the length of the file
                pass
        except SafetensorError as error:
            raise ValueError(f"The weights {path} are not whole ({error}).") from None


def _download_config(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    reason, files = "", None
    try:
        found = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S).siblings or []
        files = {file.rfilename for file in found}
    except Exception as error:  # no network, no such name, no right to it: it may still be in the cache
        reason = type(error).__name__
    if files is not None:
        _check_files(f"The checkpoint {name}", files)
    try:
        # Without a network the hub's client would try again for half a minute.
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=files is None))
    except Exception as error:
        where = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"There is no folder {name}, and the Hugging Face hub gives no such checkpoint{where} "
            f"({reason or type(error).__name__})."
        ) from None


# --8<-- [end:check_checkpoint]
