"""List the modules behind the pages: what they define, with signatures and docstrings, read and not imported."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from snippets.reference.generated import ROOT, update

# A list for each part: all of them would be a page that takes long to load.
LISTS = {"fundamentals": "api", "optimization": "api_optimization", "architecture": "api_architecture"}
HELPERS = ("samples", "command", "recording", "checkpoint")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def modules(part: str) -> list[Path]:
    """Return the modules of a part's pages, and after those of the first the helpers."""
    snippets = ROOT / "snippets"
    shown = sorted(path for path in (snippets / part).glob("*.py") if path.stem != "__init__")
    return [*shown, *(snippets / f"{name}.py" for name in HELPERS if part == "fundamentals")]


def signature(node: Definition) -> str:
    """Return how a function or class is called, as one line; a dataclass is called with its fields."""
    if isinstance(node, Function):
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{node.name}({_arguments(node)}){result}"
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)]
        return f"{node.name}({', '.join(fields)})"
    built = [_arguments(each) for each in functions(node.body) if each.name == "__init__"]
    return f"{node.name}({''.join(built)})"


def _arguments(node: Function) -> str:
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    return re.sub(r"(?<=[\w\]])=(?!=)", " = ", arguments)


def functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Yield the functions of a body."""
    return (node for node in body if isinstance(node, Function))


def describe(node: Definition, module: str) -> str:
    """Return a definition under its name: signature, docstring and, of a class, the public methods."""
    parts = [f"### `{node.name}` {{#{module}-{node.name}}}", *_says(node)]
    if isinstance(node, ast.ClassDef):
        for method in functions(node.body):
            if (not method.name.startswith("_") or method.name == "__call__") and ast.get_docstring(method):
                called, docstring = _says(method)
                parts.append(f"{called}\n:   {textwrap.indent(docstring, '    ').lstrip()}")
    return "\n\n".join(filter(None, parts))


def _says(node: Definition) -> list[str]:
    return [f"`#!python {signature(node)}`", ast.get_docstring(node) or ""]


def describe_module(path: Path) -> str:
    """Return a module under its name: what its docstring says in one line, its page, and its definitions."""
    tree = ast.parse(path.read_text("utf-8"))
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    says = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    places = (f"{path.parent.name}/{path.stem}.md", f"{path.stem}.md")
    pages = [page for page in places if (ROOT / "docs" / page).is_file()]
    says += "".join(f" [Its page](../{page})." for page in pages)
    public = [n for n in tree.body if isinstance(n, Definition) and not n.name.startswith("_")]
    return "\n\n".join([f"## `{name}` {{#{path.stem}}}", says, *(describe(node, path.stem) for node in public)])


def render(part: str) -> str:
    """Return the generated part of a part's page."""
    return "\n\n".join(map(describe_module, modules(part))) + "\n"


if __name__ == "__main__":
    sys.exit(max([update(name, partial(render, part)) for part, name in LISTS.items()]))
