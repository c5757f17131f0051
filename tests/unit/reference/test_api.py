"""The list of modules holds every public definition, as the code has it."""

import ast
import re
from functools import partial

import pytest

from snippets.reference.api import LISTS, Definition, describe, describe_module, modules, render, signature
from snippets.reference.generated import ROOT, update


def parse(source: str) -> Definition:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return node


@pytest.mark.parametrize("part", LISTS)
def test_the_committed_list_is_what_the_modules_say(part: str) -> None:
    assert update(LISTS[part], partial(render, part), ["--check"]) == 0


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def f(): ...", "f()"),
        (
            "def f(a: int, *, b: str | None = None) -> list[str]: ...",
            "f(a: int, *, b: str | None = None) -> list[str]",
        ),
        (
            "def f(a: list[int] = [], *rest: int, **more: int): ...",
            "f(a: list[int] = [], *rest: int, **more: int)",
        ),
        ("class C:\n def __init__(self, a: int = 1) -> None: ...", "C(a: int = 1)"),
        ("class C:\n def __init__(self) -> None: ...", "C()"),
        ("@dataclass(frozen=True)\nclass C:\n a: int\n b: float = 0", "C(a: int, b: float = 0)"),
        ("class E(RuntimeError): ...", "E()"),
    ],
)
def test_a_signature_is_one_line_of_the_source(source: str, shown: str) -> None:
    assert signature(parse(source)) == shown


def test_a_class_shows_its_public_methods_and_how_it_is_called() -> None:
    source = '''class C:
    """Hold."""
    def __init__(self, a: int) -> None: ...
    def __call__(self, b: int) -> int:
        """Return b.

        Twice."""
    def run(self) -> None:
        """Run."""
    async def wait(self) -> None:
        """Wait."""
    def _hide(self) -> None:
        """Hide."""
'''
    assert describe(parse(source), "module") == (
        "### `C` {#module-C}\n\n`#!python C(a: int)`\n\nHold.\n\n"
        "`#!python __call__(b: int) -> int`\n:   Return b.\n\n    Twice.\n\n"
        "`#!python run() -> None`\n:   Run.\n\n"
        "`#!python wait() -> None`\n:   Wait."
    )


@pytest.mark.parametrize(
    ("part", "some"),
    [
        ("fundamentals", {"actor_pool", "samples", "checkpoint"}),
        ("optimization", {"ladder", "production"}),
        ("architecture", {"sizing", "streaming"}),
    ],
)
def test_every_public_name_of_every_module_is_listed_once(part: str, some: set[str]) -> None:
    assert some <= {path.stem for path in modules(part)}
    anchors = re.findall(r"^###? .*\{#([\w.-]+)\}$", render(part), re.M)
    assert len(anchors) == len(set(anchors))
    for path in modules(part):
        nodes = ast.parse(path.read_text()).body
        names = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert {f"{path.stem}-{name}" for name in names if not name.startswith("_")} <= set(anchors)


def test_a_module_of_the_pages_links_to_its_page() -> None:
    described = {path.stem: describe_module(path) for part in LISTS for path in modules(part)}
    assert "[Its page](../fundamentals/costs.md)" in described["costs"]
    assert "[Its page](../setup.md)" in described["setup"]
    assert "[Its page](../optimization/ladder.md)" in described["ladder"]
    assert "[Its page](../architecture/sizing.md)" in described["sizing"]
    assert "Its page" not in described["samples"]
    assert (ROOT / "docs" / "setup.md").is_file()
