"""The list of parameters says what the installed versions say, and refuses what they do not have."""

import inspect
from typing import Any

import pytest
import ray.data

from snippets.reference import parameters
from snippets.reference.generated import FOLDER, update
from snippets.reference.parameters import CALLS, Call, Parameter, format_call, link, render, show


def test_the_committed_list_is_what_inspection_writes() -> None:
    assert update("parameters", render, ["--check"]) == 0


def test_a_default_that_changes_makes_the_list_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_images(paths: Any, mode: str = "CMYK", **options: Any) -> None: ...

    call = next(call for call in CALLS if call.name == "ray.data.read_images")
    only_mode = Call(call.name, tuple(each for each in call.parameters if each.name == "mode"))
    committed = (FOLDER / "parameters.md").read_text()
    assert format_call(only_mode).splitlines()[-1] in committed
    monkeypatch.setattr(ray.data, "read_images", read_images)
    changed = format_call(only_mode).splitlines()[-1]
    assert "| `'CMYK'` |" in changed
    assert changed not in committed


def test_a_parameter_that_a_call_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ray\.data\.range has no parameter rows"):
        format_call(Call("ray.data.range", (Parameter("rows", "", parameters.LOOK),)))


@pytest.mark.parametrize(
    ("default", "shown"),
    [
        (None, "`None`"),
        ("default", "`'default'`"),
        (ray.data.SaveMode.APPEND, "`SaveMode.APPEND`"),
        (inspect.Parameter.empty, "required"),
    ],
)
def test_defaults_are_shown_as_code(default: Any, shown: str) -> None:
    assert show(default) == shown


def test_options_of_tasks_have_their_defaults_although_the_signature_hides_them() -> None:
    assert "| `num_cpus` | `1` |" in format_call(next(call for call in CALLS if call.name == "ray.remote"))


def test_a_link_is_named_by_the_title_of_its_page() -> None:
    assert link("setup.md#connect") == "[Setup](../setup.md#connect)"
    assert link("reference/changes.md#tokens") == "[Changes between Ray versions](changes.md#tokens)"


def test_no_default_differs_from_process_to_process() -> None:
    assert " at 0x" not in render()
    assert "<factory>" not in render()


def test_calls_and_parameters_are_listed_once() -> None:
    assert len({call.anchor for call in CALLS}) == len(CALLS)
    for call in CALLS:
        assert len({each.name for each in call.parameters}) == len(call.parameters)
