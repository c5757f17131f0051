"""The calculator's answers hold together, its files are what its table says, and its code runs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snippets.architecture.calculator import CONSTANTS, DEFAULTS, INPUTS, QUANTITIES, Plan, accept, plan
from snippets.architecture.calculator_files import ROOT, SCRIPT, SECTIONS, constants_table, main, render, show

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

BY_NAME = {given["name"]: given for given in INPUTS}
PRESETS = {preset["name"]: preset["values"] for preset in QUANTITIES["preset"]}


def within(name: str) -> st.SearchStrategy[float]:
    """Return values about an input's default, within its limits."""
    of = BY_NAME[name]
    low, high = max(of.get("least", 0), of["default"] / 30), min(of["most"], max(of["default"], 1) * 30)
    return st.integers(math.ceil(low), math.floor(high)) if of.get("whole") else st.floats(low or 0, high)


inputs = st.fixed_dictionaries({name: within(name) for name in BY_NAME})


def planned(values: dict[str, Any]) -> Plan | None:
    """Return the plan, or None where the inputs contradict each other."""
    try:
        return plan(values)
    except ValueError:
        return None


@given(inputs)
def test_a_plan_fits_and_ends_in_time(values: dict[str, Any]) -> None:
    found = planned(values)
    if found is None:
        return
    of = found.answers
    assert all(math.isfinite(value) and value >= 0 for value in of.values())
    assert of["run_h"] <= values["deadline_h"] * (1 + 1e-9)
    assert of["node_rate"] <= min(of["decode_rate"], of["network_rate"], of["forward_rate"]) * (1 + 1e-9)
    assert of["blocks"] >= min(values["items"] / of["batch_size"], 4 * of["actors"]) * (1 - 1e-9) or (
        of["batches_a_block"] == 1
    )
    assert of["store_gb"] / of["nodes"] <= values["memory_gib"] * 2**30 / 1e9 * 0.3 * 0.5 * (1 + 1e-9)
    if values["gpus"]:
        assert of["device_gb_used"] <= values["device_gb"] * (1 + 1e-9)
        assert of["actors_a_node"] * values["gpus_a_model"] <= values["gpus"]
    else:
        assert of["memory_gb_used"] <= values["memory_gib"] * 2**30 / 1e9 * (1 + 1e-9)


@given(inputs, st.sampled_from(["deadline_h", "network_gbit"]))
def test_more_time_or_network_never_takes_more_nodes_on_a_gpu(values: dict[str, Any], more: str) -> None:
    values = {**values, "gpus": 1, "gpus_a_model": 1, "memory_gib": 1000.0}
    found, after = planned(values), planned({**values, more: min(values[more] * 2, BY_NAME[more]["most"])})
    if found:
        assert after is not None
        assert after.answers["nodes"] <= found.answers["nodes"]


@pytest.mark.parametrize("name", BY_NAME)
def test_each_limit_of_the_table_refuses_what_is_beyond_it(name: str) -> None:
    of = BY_NAME[name]
    low = of["above"] if "above" in of else of["least"] - 1
    beyond = [low, of["most"] * 2, math.nan, math.inf, "text", None, True, *([1.5] if of.get("whole") else [])]
    for value in beyond:
        with pytest.raises(ValueError, match=f"^{of['label']} ") as refused:
            accept({**DEFAULTS, name: value})
        assert str(refused.value).endswith(".")
    with pytest.raises(ValueError, match=r"must be a number\.$"):
        accept({key: value for key, value in DEFAULTS.items() if key != name})
    assert accept({**DEFAULTS, name: of["most"]})[name] == of["most"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"parameters_m": 70_600},
            "^The model does not fit: with one item it takes 7 such devices, and there are 1",
        ),
        ({"gpus_a_model": 2}, "^A node has fewer GPUs than a model is split over"),
        ({"memory_gib": 1}, "^The memory of a node holds no actor"),
        ({"decoded_kb": 1e7}, "^The object store of a node holds no block"),
        ({"workspace_gb": 24}, "^The workspace alone fills the device"),
        ({"deadline_h": 0.01}, "^The deadline passes during start-up"),
        ({"preemptions": 900, "rate": 1}, "^A block takes longer than a node lives"),
    ],
)
def test_inputs_that_contradict_each_other_are_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan({**DEFAULTS, **changes})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_within_the_limits_and_has_a_source(preset: str) -> None:
    assert accept({**DEFAULTS, **PRESETS[preset]})
    [of] = [each for each in QUANTITIES["preset"] if each["name"] == preset]
    assert of["source"].startswith("https://")
    assert plan({**DEFAULTS, **PRESETS[preset]}).answers["nodes"] >= 1


def test_every_constant_has_a_source_and_the_value_that_is_there() -> None:
    from ray._private import ray_constants
    from ray.data._internal.execution.resource_manager import ResourceManager

    from snippets.fundamentals.actor_pool import BLOCKS_IN_FLIGHT

    assert [each["name"] for each in QUANTITIES["constant"]] == list(CONSTANTS)
    rows = constants_table().splitlines()[2:]
    for each, row in zip(QUANTITIES["constant"], rows, strict=True):
        assert row == f"| {each['label']} | {show(CONSTANTS[each['name']])} | [{each['from']}]({each['source']}) |"
    assert CONSTANTS["store_share"] == ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
    assert CONSTANTS["store_most_gb"] * 1e9 == ray_constants.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES
    assert CONSTANTS["data_share"] == ResourceManager.DEFAULT_OBJECT_STORE_MEMORY_LIMIT_FRACTION
    assert CONSTANTS["blocks_in_flight"] == BLOCKS_IN_FLIGHT


@pytest.mark.parametrize(
    ("changes", "answer", "limit"),
    [
        ({}, "node_rate", "forward"),
        (PRESETS["g6.xlarge"], "node_rate", "decode"),
        ({**PRESETS["g6.12xlarge"], "cpus": 8}, "actors_a_node", "reading"),
        (PRESETS["c7i.8xlarge"], "node_rate", "cores"),
        ({"network_gbit": 0.1}, "node_rate", "network"),
        ({"activation_mb": 1000}, "batch_size", "memory"),
        ({"items": 10}, "batch_size", "items"),
        ({"decoded_kb": 50_000}, "batch_size", "store"),
    ],
)
def test_the_limit_that_decided_is_named(changes: dict[str, float], answer: str, limit: str) -> None:
    assert plan({**DEFAULTS, **changes}).limits[answer] == limit


def test_answers_and_limits_are_those_of_the_table() -> None:
    found = plan(DEFAULTS)
    assert list(found.answers) == [each["name"] for each in QUANTITIES["output"]]
    assert set(found.limits.values()) <= set(QUANTITIES["limits"])
    grouped = [name for group in QUANTITIES["group"] for name in group["inputs"]]
    assert sorted(grouped) == sorted(BY_NAME)


@pytest.mark.cluster
@pytest.mark.parametrize("gpus", [0, 1])
def test_the_code_runs_and_predicts(connected: "RayCluster", sample_set: "Samples", gpus: int) -> None:
    """The code with values of one machine, which may have a logical GPU, after what its page defines."""
    from snippets.fundamentals import actor_pool
    from snippets.fundamentals.dataset import list_images

    values = {**DEFAULTS, "items": 24, "gpus": gpus, "cpus": 2, "memory_gib": 16, "rate": 10, "overhead_ms": 40}
    found = plan(values)
    assert found.answers["nodes"] == 1
    filesystem, paths, _ = list_images(str(sample_set.images), limit=24)
    model = str(sample_set.model)
    page = {"MODEL": model, "to": actor_pool.load_preprocessing(model), "filesystem": filesystem, "paths": paths}
    names: dict[str, Any] = {**vars(actor_pool), **page}
    exec(found.code, names)
    ids = [row["id"] for row in names["predictions"].iter_rows()]
    assert len(set(ids)) == len(ids) == 24


# The files that are made from the table


def test_the_committed_files_are_what_the_table_makes() -> None:
    assert main(["--check"]) == 0


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the script and no sections."""
    (tmp_path / SCRIPT).parent.mkdir(parents=True)
    (tmp_path / SCRIPT).write_text((ROOT / SCRIPT).read_text())
    return tmp_path


def test_a_changed_default_shows_in_all_of_them(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], copy) == 0
    assert main(["--check"], copy) == 0
    assert capsys.readouterr().out == f"{SECTIONS} was written\n"
    monkeypatch.setitem(BY_NAME["deadline_h"], "default", 7)
    monkeypatch.setitem(DEFAULTS, "deadline_h", 7)
    assert main(["--check"], copy) == 1
    assert capsys.readouterr().out == f"{SECTIONS} differs\n{SCRIPT} differs\n"
    sections, script = render(copy).values()
    assert 'name="deadline_h" value="7"' in sections and "| Deadline | 7 h |" in sections
    assert '"name": "deadline_h", "label": "Deadline", "unit": "h", "default": 7' in script


def test_an_edit_by_hand_is_found(copy: Path) -> None:
    main([], copy)
    (copy / SECTIONS).write_text((copy / SECTIONS).read_text().replace("items/s", "images/s", 1))
    assert main(["--check"], copy) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (54.0, "54"), (1234567, "1,234,567"), (0.78830, "0.7883"), (28409.09, "28,410"), (1e-5, "0.00001")],
)
def test_numbers_have_four_digits_that_count(value: float, shown: str) -> None:
    assert show(value) == shown


def test_the_constants_that_the_code_needs_are_whole() -> None:
    for name in ("blocks_in_flight", "most_batches", "most_batches_on_cpus"):
        assert CONSTANTS[name] == int(CONSTANTS[name])
