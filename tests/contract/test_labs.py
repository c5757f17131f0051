"""The notebooks hold what the pages hold, and run in a real kernel: on other images and labels, without a GPU."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from tests.labs import (
    IN_KERNEL,
    INSTALL,
    LABS,
    Lab,
    Prose,
    bindings,
    execute,
    main,
    packages_of,
    pages_of,
    path_of,
    printed_by,
    problems,
    with_outputs_of,
)
from tests.page_blocks import collect
from tests.page_rendering import ROOT
from tests.ray_cluster import RayCluster

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from snippets.samples import Samples

logging.getLogger("traitlets").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(IN_KERNEL)


@pytest.fixture
def committed() -> NotebookNode:
    notebook: NotebookNode = nbformat.read(path_of(IN_KERNEL), nbformat.NO_CONVERT)
    return notebook


def test_committed_notebooks_are_what_the_pages_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err
    assert sorted(path_of("x").parent.glob("*.ipynb")) == sorted(path_of(part) for part in LABS)


def test_every_block_of_the_part_that_can_run_is_a_cell_once(lab: Lab) -> None:
    executed = [
        block for page in pages_of(IN_KERNEL) for block in collect(page) if block.is_executed and not block.gpu
    ]
    repeated = [block for block in executed if block not in lab.blocks.values()]
    # Only what earlier pages hold already is left out: definitions that are there, and nothing that prints.
    assert all(block.expected is None for block in repeated)
    source = "\n".join(cell.source for cell in lab.cells)
    for definition in (
        "def list_images(",
        "class Classifier:",
        "def plan_pool(",
        "def classify_batch(",
        "ray.init()",
    ):
        assert source.count(f"\n{definition}") == 1, definition


@pytest.mark.parametrize("part", LABS)
def test_a_cell_finds_each_name_bound_as_its_page_binds_it(part: str) -> None:
    made, bound = Lab(part), dict[str, str]()
    cells = ((made.blocks[cell.id], cell.source) for cell in made.cells if cell.id in made.blocks)
    sources = {block.name: source for block, source in cells if block.language == "python"}
    for page in pages_of(part):
        on_page: dict[str, str] = {}
        for block in collect(page):
            if block.language == "python" and not block.gpu:
                on_page |= bindings(block.source)
                bound |= bindings(sources.get(block.name, ""))
                assert {name: code for name, code in on_page.items() if bound.get(name) != code} == {}, block.where
    code = ast.parse("\n".join(sources.values())).body
    connecting = [found[1] for node in code if (found := re.match(r"ray\.(init|shutdown)\(", ast.unparse(node)))]
    assert connecting[::2] == ["init"] * len(connecting[::2])  # no page finds another's connection
    assert connecting[1::2] == ["shutdown"] * len(connecting[1::2])


def test_what_a_name_is_bound_to_is_the_code_that_bound_it_last() -> None:
    source = "import os.path\nfrom a import b as c\nx = 1\ndef f(y): z = y\nclass C: w = 1\nfor x in []: pass"
    assert bindings(source) == {
        "os": "import os.path",
        "c": "from a import b",
        "x": "for x in []:\n    pass",
        "f": "def f(y):\n    z = y",
        "C": "class C:\n    w = 1",
    }


def test_a_part_installs_what_setup_names_and_what_it_needs_besides() -> None:
    assert packages_of("architecture").startswith('"ray[data,default]==')
    assert packages_of("optimization").startswith(packages_of("architecture"))
    assert '"openvino==' in packages_of("optimization")


@pytest.mark.parametrize("part", LABS)
def test_text_has_no_trace_of_the_sites_own_syntax(part: str) -> None:
    for cell in Lab(part).cells:
        if cell.cell_type == "markdown":
            for trace in ("{#", "--8<--", "!!!", "???", "<!--", "<svg", "<script"):
                assert trace not in cell.source, (cell.id, trace)
            assert not re.search(r"\]\((?!https?:)[^)]*\.md[)#]", cell.source), cell.id


def test_prose_is_flattened() -> None:
    lines = [
        "See [the pool](actor_pool.md#size) and [Ray](https://docs.ray.io/).",
        "{#claim-one}",
        "",
        '!!! warning "Lost"',
        "",
        "    One line,",
        "    and another.",
        "",
        '<figure class="chart"><svg>',
        "</svg></figure>",
        "",
        "After. <!-- definition -->",
        "<!--pytest.mark.gpu-->",
    ]
    assert Prose().flatten(lines) == (
        "See the pool and [Ray](https://docs.ray.io/).\n\n> **Lost**\n>\n> One line,\n> and another.\n\nAfter."
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("source", "the page changed"),
        ("output", "the output is not what the page shows"),
        ("cell", "other cells than the pages have blocks"),
    ],
)
def test_drift_is_named(lab: Lab, committed: NotebookNode, change: str, said: str) -> None:
    cell = next(cell for cell in committed.cells if cell.id in lab.blocks and lab.blocks[cell.id].expected)
    if change == "source":
        cell.source += "\nprint()"
    elif change == "output":
        cell.outputs[0].text = "something else\n"
    else:
        committed.cells.remove(cell)
    found = problems(lab, committed)
    assert len(found) == 1 and said in found[0]


def test_outputs_are_kept_while_the_code_is_the_same(lab: Lab, tmp_path: Path) -> None:
    notebook = lab.notebook()
    kept = with_outputs_of(path_of(IN_KERNEL), notebook)
    assert kept is not None and problems(lab, kept) == []
    code = next(cell for cell in lab.notebook().cells if cell.id in lab.blocks)
    code.source += "  # another"
    assert with_outputs_of(path_of(IN_KERNEL), nbformat.v4.new_notebook(cells=[code])) is None
    assert with_outputs_of(tmp_path / "nothing.ipynb", notebook) is None


def test_what_ray_tells_every_driver_is_no_output_of_a_cell() -> None:
    told = "\\x1b[33m(raylet)\\x1b[0m WARNING: 8 PYTHON worker processes have been started"
    cell = nbformat.v4.new_code_cell(
        f"print('before')\nprint('{told}')\nprint('(raylet) A worker died')\nprint('after')"
    )
    ran = execute(nbformat.v4.new_notebook(cells=[cell]))
    assert printed_by(ran.cells[0]) == "before\nafter\n"


@pytest.mark.parametrize("part", LABS)
def test_no_output_holds_a_path_of_this_machine(part: str) -> None:
    committed = nbformat.read(path_of(part), nbformat.NO_CONVERT)
    printed = "".join(printed_by(cell) for cell in committed.cells if cell.cell_type == "code")
    assert printed
    assert str(ROOT) not in printed and str(Path.home()) not in printed


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_notebook_runs_in_a_kernel_on_other_images_and_labels_without_a_gpu(
    lab: Lab, other_sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On one machine, as most readers have it; the runner has several nodes for the pages, and GPUs.
    with RayCluster(gpus_per_worker=0, dashboard=True, workers=0) as machine:
        data = {"IMAGES": str(other_sample_set.images), "MODEL": str(other_sample_set.model)}
        for name, value in {**machine.client_environment, **data}.items():
            monkeypatch.setenv(name, value)
        ran = execute(lab.notebook())
    assert problems(lab, ran) == []
    install = [cell for cell in ran.cells if INSTALL in cell.metadata.get("tags", [])]
    assert [cell.source for cell in install] == [lab.cells[1].source]
