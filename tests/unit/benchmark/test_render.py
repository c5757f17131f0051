"""What the pages show is what the results file says: a change of either alone is found."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import markdown  # type: ignore[import-untyped]
import pytest

from snippets.benchmark import render
from snippets.benchmark.numbers import PAGES_NAME, format_numbers, numbers
from snippets.benchmark.provenance import ROOT
from snippets.benchmark.results import check_results, load_results, save_results
from snippets.benchmark.stepwise import STEPWISE

SVGS = ("throughput.svg", "breakdown.svg", "throughput-readme.svg", "stepwise.svg")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what rendering reads and writes."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def change(root: Path, edit: Callable[[dict[str, Any]], None], with_summary: bool) -> None:
    path = root / render.RESULTS
    results = json.loads(path.read_text())
    edit(results)
    if with_summary:
        save_results(path, {key: value for key, value in results.items() if key != "summary"})
    else:
        path.write_text(json.dumps(results, indent=1) + "\n")


def test_the_committed_files_are_what_rendering_writes() -> None:
    assert render.differing() == []


def test_rendering_again_changes_nothing(copy: Path) -> None:
    render.write_all(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert render.write_all(copy) == []
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def set_steady(results: dict[str, Any]) -> None:
    results["rounds"][0]["runs"]["pool"]["steady_rows_per_second"] = 123.4


def set_summary(results: dict[str, Any]) -> None:
    results["summary"]["contenders"]["pool"]["over_naive"]["median"] = 9.9


def set_cost(results: dict[str, Any]) -> None:
    results["costs"][0]["factor"] = 77.7


def set_date(results: dict[str, Any]) -> None:
    results["provenance"]["date"] = "2020-01-01T00:00:00+00:00"


def set_batch_order(results: dict[str, Any]) -> None:
    results["rounds"][0]["order"].reverse()  # shown nowhere


@pytest.mark.parametrize("edit", [set_steady, set_summary])
def test_a_value_changed_by_hand_contradicts_the_rest_of_the_file(
    copy: Path, edit: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    change(copy, edit, with_summary=False)
    assert render.main(["--check"], copy) == 2
    assert "a summary that does not follow from its rounds" in capsys.readouterr().err


@pytest.mark.parametrize("edit", [set_steady, set_cost, set_date, set_batch_order])
def test_a_value_changed_without_rendering_is_found(
    copy: Path, edit: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    render.write_all(copy)
    change(copy, edit, with_summary=True)
    assert render.main(["--check"], copy) == 1
    assert "docs/assets/results/tables.md differs from docs/assets/results/" in capsys.readouterr().out
    assert render.main([], copy) == 0
    assert render.main(["--check"], copy) == 0


@pytest.mark.parametrize("shown", [True, False])
def test_steps_changed_without_rendering_are_found(
    copy: Path, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    render.write_all(copy)
    path = copy / STEPWISE.relative_to(ROOT)
    results = json.loads(path.read_text())
    if shown:
        for one in results["rounds"]:
            one["runs"]["kept"]["steady_rows_per_second"] = 123.4
    else:
        results["rounds"][0]["order"].reverse()
    path.write_text(json.dumps(results))
    assert render.main(["--check"], copy) == 1
    said = capsys.readouterr().out
    assert "docs/assets/results/stepwise.md differs" in said
    assert ("docs/assets/figures/stepwise.svg differs" in said) is shown
    assert render.main([], copy) == 0
    assert render.main(["--check"], copy) == 0


@pytest.mark.parametrize("name", [f"docs/assets/results/{name}.md" for name in ("numbers", "tables", "stepwise")])
def test_a_typed_number_is_found(copy: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    render.write_all(copy)
    path = copy / name
    path.write_text(re.sub(r"\d+\.\d+", "99.99", path.read_text(), count=1))
    assert render.main(["--check"], copy) == 1
    assert capsys.readouterr().out.splitlines() == [f"{name} differs from {render.RESULTS}"]


def test_a_number_typed_into_the_readme_is_found(copy: Path) -> None:
    readme = copy / "README.md"
    readme.write_text("Words.\n<!-- results:begin -->\n<!-- results:end -->\nMore words.\n")
    assert readme in render.write_all(copy)
    text = readme.read_text()
    assert text.startswith("Words.\n<!-- results:begin -->\n| pipeline |")
    assert text.endswith("<!-- results:end -->\nMore words.\n")
    readme.write_text(text.replace("| Naive | ", "| Naive | 1"))
    assert render.differing(copy) == [readme]


def test_each_number_is_a_section_that_a_paragraph_can_include(copy: Path) -> None:
    results = load_results(copy / render.RESULTS)
    (copy / "numbers.md").write_text(format_numbers(results))
    found = numbers(results)
    names = ["pool-steady", "load-factor-64", "breakdown-start-up", "images"]
    lines = "\n".join(f'({name}\n--8<-- "numbers.md:{name}"\n)' for name in names)
    settings = {"pymdownx.snippets": {"base_path": [str(copy)], "check_paths": True}}
    html = markdown.markdown(lines, extensions=["pymdownx.snippets"], extension_configs=settings)
    assert html == "<p>" + "\n".join(f"({name}\n{found[name]}\n)" for name in names) + "</p>"


def test_the_numbers_that_pages_name_are_there_even_where_none_was_measured() -> None:
    results = load_results(ROOT / render.RESULTS)
    results["costs"] = None
    for name in PAGES_NAME[1:]:
        results["summary"]["contenders"].pop(name, None)
    found = numbers(results)
    assert found["pool-bfloat16-steady"] == found["kept-memory-factor"] == "not measured"
    assert set(found) == set(numbers(load_results(ROOT / render.RESULTS)))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("costs",), "has no costs."),
        (("provenance", "versions", "ray"), "has no provenance.versions.ray."),
        (("rounds", 0, "limits", "decode_seconds"), r"has no rounds\[0\].limits.decode_seconds."),
        (("rounds", 0, "runs", "pool", "seconds"), r"has no rounds\[0\].runs.pool.seconds."),
        (("rounds", 0, "agreement", "pool"), "has no 'pool' where its summary needs one."),
    ],
)
def test_a_missing_key_is_one_sentence(path: tuple[str | int, ...], said: str) -> None:
    results = load_results(ROOT / render.RESULTS)
    *parents, last = path
    place: Any = results
    for key in parents:
        place = place[key]
    del place[last]
    with pytest.raises(ValueError, match=f"^{said}$"):
        check_results(results)


def test_a_file_that_is_no_results_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no results file"):
        load_results(tmp_path / "none.json")
    (tmp_path / "some.json").write_text("[1]")
    with pytest.raises(ValueError, match="has no schema"):
        load_results(tmp_path / "some.json")


def test_the_schema_is_the_one_that_this_code_reads() -> None:
    results = load_results(ROOT / render.RESULTS)
    results["schema"] = 2
    with pytest.raises(ValueError, match="has the schema 2, and this code reads 1"):
        check_results(results)


@pytest.mark.parametrize("name", SVGS)
def test_a_figure_says_in_words_what_it_shows_and_fits_into_a_paragraph(copy: Path, name: str) -> None:
    text = render.render(copy)[copy / "docs" / "assets" / "figures" / name]
    assert "\n\n" not in text
    svg = next(iter(element for element in ElementTree.fromstring(text).iter() if element.tag.endswith("svg")))
    inside = {element.get("id"): element.text or "" for element in svg.iter() if element.get("id")}
    title, description = svg.attrib["aria-labelledby"].split()
    assert svg.attrib["role"] == "img" and inside[title] and re.search(r"\d", inside[description])
    assert ("var(--" in text.replace("var(--md-text-font", "")) == (name != "throughput-readme.svg")
    sizes = [float(element.attrib["font-size"]) for element in svg.iter() if element.tag.endswith("text")]
    assert min(sizes) >= 13 and float(svg.attrib["viewBox"].split()[2]) <= 480
