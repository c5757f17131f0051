"""The reference holds what the course uses: each parameter that its code passes, each change, each term."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import markdown  # type: ignore[import-untyped]
import pytest
import ray.data

from snippets.reference.parameters import CALLS
from tests.page_blocks import collect
from tests.page_rendering import ROOT

DOCS = ROOT / "docs"
MODULES = sorted((ROOT / "snippets" / "fundamentals").glob("*.py"))
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"assets", "reference"} & {*path.parts})

LISTED = {name: {each.name for each in call.parameters} for call in CALLS for name in (call.anchor, call.alias)}
OWN = {call.anchor for call in CALLS if call.name.startswith("ray.data.")}  # code writes Ray's with `ray.data.`
LISTED_SWITCHES = LISTED["DataContext"] | LISTED["ExecutionOptions"]
SWITCHES = {field.name for field in dataclasses.fields(ray.data.DataContext)} - {"execution_options"}
SWITCHES |= {*inspect.signature(ray.data.ExecutionOptions).parameters}


def unlisted(source: str) -> Iterator[str]:
    """Yield keywords of calls to Ray or transformers, and switches of Ray Data, that the list lacks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            if called in OWN or (called != "ray.remote" and name == "remote"):
                continue
            for keyword in node.keywords:
                is_rays = name in LISTED or called.startswith("ray.") or _is_of_datasets(node.func, keyword.arg)
                if keyword.arg and is_rays and keyword.arg not in LISTED.get(name, ()):
                    yield f"{name}({keyword.arg}=)"
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr in SWITCHES - LISTED_SWITCHES:
                yield target.attr


def _is_of_datasets(function: ast.expr, keyword: str | None) -> bool:
    method = getattr(ray.data.Dataset, function.attr, None) if isinstance(function, ast.Attribute) else None
    return inspect.isfunction(method) and keyword in inspect.signature(method).parameters


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_parameter_that_a_module_passes_is_listed(module: Path) -> None:
    assert list(unlisted(module.read_text("utf-8"))) == []


def test_every_parameter_that_a_page_passes_is_listed() -> None:
    blocks = [block for page in PAGES for block in collect(page) if block.language == "python"]
    assert len(blocks) > 40
    assert [(block.where, found) for block in blocks for found in unlisted(block.source)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("ray.data.read_images(paths, mode='RGB', shuffle='files')", ["read_images(shuffle=)"]),
        (
            "images.map_batches(f, batch_size=4).map_batches(g, udf_modifying_row_count=False)",
            ["map_batches(udf_modifying_row_count=)"],
        ),
        ("images.repartition(4, sort=True)", ["repartition(sort=)"]),
        ("ray.put(value, _owner=actor)", ["put(_owner=)"]),
        ("f.options(num_cpus=1, max_calls=2).remote(seconds=3)", ["options(max_calls=)"]),
        ("pipeline('image-classification', device=0)", ["pipeline(device=)"]),
        ("context.read_op_min_num_blocks = 4", ["read_op_min_num_blocks"]),
        ("options.preserve_order = True", ["preserve_order"]),
        ("read_images(paths, limit=4); loop.run.remote(seconds=3)", []),
        ("np.sum(pixels, axis=0); context.enable_progress_bars = False", []),
    ],
)
def test_a_parameter_that_is_not_listed_is_named(source: str, found: list[str]) -> None:
    assert list(unlisted(source)) == found


CHANGES = DOCS / "reference" / "changes.md"


def test_every_change_is_marked_shown_and_has_a_source() -> None:
    sections = CHANGES.read_text("utf-8").split("\n## ")[1:]
    assert 8 <= len(sections) <= 14
    for section in sections:
        assert len(re.findall(r"^\{#claim-changed-[\w-]+\}$", section, re.M)) == 1, section
        assert "```python" in section and "<!--pytest-codeblocks:expected-output-->" in section, section
        assert re.search(r"\]\(https://(?:github\.com/ray-project/ray/pull/\d+|docs\.ray\.io/\S+)\)", section), (
            section
        )


def test_terms_are_in_order_anchored_and_linked() -> None:
    text = (DOCS / "reference" / "glossary.md").read_text("utf-8")
    terms = re.findall(r"^\*\*(.+)\*\* \{#term-([\w-]+)\}\n:   ((?:.+\n)+)", text, re.M)
    names = [name for name, _, _ in terms]
    assert len(names) >= 22
    assert names == sorted(names, key=str.casefold)
    rendered = markdown.markdown(text, extensions=["attr_list", "def_list"])
    assert rendered.count("<dt") == len(terms)
    for name, anchor, definition in terms:
        assert anchor == name.casefold().replace(" ", "-")
        assert f'<dt id="term-{anchor}"><strong>{name}</strong></dt>' in rendered
        assert "](../" in definition
