"""The state of the sources, as one digest: what a report was made of is compared with what is there."""

import hashlib
from pathlib import Path

from tests.page_rendering import ROOT

SOURCES = (
    "deploy",
    "docs",
    "snippets",
    "tests",
    "scripts",
    "Makefile",
    "mkdocs.yml",
    "pyproject.toml",
    "constraints.txt",
)
# What `tests.proof` writes about the sources is none of them.
WRITTEN = (Path("docs/assets/results/proof.json"), Path("docs/assets/results/proof.md"))


def digest_sources(root: Path = ROOT) -> str:
    """Return the SHA-256, in hexadecimal, of the names and bytes of all that decides how a test ends."""
    digest = hashlib.sha256()
    for path in source_files(root):
        for part in (path.relative_to(root).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def source_files(root: Path) -> list[Path]:
    """Return the files below `SOURCES` in order, without what Python and editors leave there."""
    files: list[Path] = []
    for name in SOURCES:
        place = root / name
        files += place.rglob("*") if place.is_dir() else [place]
    return sorted(
        path
        for path in files
        if path.is_file()
        and path.relative_to(root) not in WRITTEN
        and "__pycache__" not in path.parts
        and not path.name.startswith(".")
        and not path.name.endswith("~")
    )
