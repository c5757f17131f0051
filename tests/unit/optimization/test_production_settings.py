"""Settings come from a file, the environment and the call, in this order, and what is wrong is a sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from snippets.optimization.production_settings import Settings, load_settings

NEEDED = {"manifest": "m.parquet", "output": "out", "model": "checkpoint"}


def test_the_environment_overrides_the_file_and_the_call_overrides_both(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "file"\npart_rows = 1\nactors = 1\nbatch_size = 1\n')
    environ = {"PRODUCTION_PART_ROWS": "2", "PRODUCTION_ACTORS": "2", "ACTORS": "9"}
    settings = load_settings(str(file), environ, actors=3, manifest="m", output="o", limit=None)
    assert (settings.batch_size, settings.part_rows, settings.actors) == (1, 2, 3)
    assert (settings.model, settings.limit) == ("file", None)


def test_settings_do_not_change_while_a_run_uses_them() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Settings(**NEEDED).part_rows = 7  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("part_rows", "0", "cannot be '0': it should be greater than 0."),
        ("part_rows", "many", "cannot be 'many': it should be a valid integer"),
        ("max_dead_share", "1.5", "cannot be '1.5': it should be less than or equal to 1."),
        ("stop_within_s", "30", "cannot be '30': it should be less than or equal to 25."),
        ("num_gpus", "-1", "cannot be '-1': it should be greater than or equal to 0."),
        ("output", "", "cannot be '': String should have at least 1 character."),
        ("dtype", "int8", "cannot be 'int8': String should match pattern"),
        ("engine", "tensorrt", "cannot be 'tensorrt': String should match pattern"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_origin_and_the_reason(
    name: str, value: str, sentence: str
) -> None:
    variable = f"PRODUCTION_{name.upper()}"
    needed = {f"PRODUCTION_{key.upper()}": text for key, text in NEEDED.items()}
    with pytest.raises(ValueError) as raised:
        load_settings(environ={**needed, variable: value})
    lines = str(raised.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{name} (from {variable}) {sentence}")


def test_each_error_is_a_sentence_and_a_misspelt_name_is_one(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('part_row = 8\nzebra = 1\nlimit = "x"\n')
    with pytest.raises(ValueError) as raised:
        load_settings(str(file), {}, output="out", model="checkpoint")
    assert sorted(str(raised.value).splitlines()) == sorted(
        [
            "There is no value for manifest: set it in the file, as PRODUCTION_MANIFEST, or as --manifest.",
            f"limit (from {file}) cannot be 'x': it should be a valid integer, "
            "unable to parse string as an integer.",
            f"There is no setting part_row (from {file}): is part_rows meant?",
            f"There is no setting zebra (from {file}).",
        ]
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dtype": "float32"}, "engine openvino-float32 runs in batches of 16, on CPUs"),
        ({"num_gpus": 1.0}, "engine openvino-float32 runs in batches of 16, on CPUs"),
        ({"batch_size": 8}, "engine openvino-float32 runs in batches of 16, on CPUs"),
        ({"calibration": "images"}, "calibration is needed for int8, and for nothing else: engine is openvino-f"),
        (
            {"engine": "openvino-int8"},
            "calibration is needed for int8, and for nothing else: engine is openvino-int8.",
        ),
        ({"engine": "eager", "calibration": "images"}, "calibration is needed for int8"),
    ],
)
def test_what_an_engine_would_not_heed_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        load_settings(None, {}, **{**NEEDED, "engine": "openvino-float32", **given})
    assert str(raised.value).startswith(sentence)
    assert str(raised.value).endswith(".") and len(str(raised.value).splitlines()) == 1
    agreeing = load_settings(None, {}, **NEEDED, engine="openvino-float32", batch_size=16, num_gpus=0)
    assert agreeing.gpus == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read: No such file"), (b"= 1", "is not TOML"), (b"\xff", "is not TOML")],
)
def test_a_file_that_is_no_settings_file_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"The settings file {file} {sentence}"):
        load_settings(str(file), {}, **NEEDED)
