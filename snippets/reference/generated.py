"""Write a generated file of the reference, or say that it is not what would be written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from snippets.command import Parser

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "assets" / "reference"


def update(
    name: str, render: Callable[[], str], arguments: Sequence[str] | None = None, folder: Path = FOLDER
) -> int:
    """Write `NAME.md` in `folder` where it differs; with `--check` leave it, and return 1 where it does."""
    parser = Parser(prog=f"python -m snippets.reference.{name}", description=f"Generate {name}.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the file differs")
    check = parser.parse_args(arguments).check
    path, text = folder / f"{name}.md", render()
    if path.is_file() and path.read_text("utf-8") == text:
        return 0
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    sys.stdout.write(f"{path} {'differs' if check else 'was written'}\n")
    return int(check)
