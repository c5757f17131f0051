"""Lets `pytest --codeblocks` find the runner of this clone, wherever the page lies. Without effect elsewhere."""

from pathlib import Path

__all__: list[str] = []

if (Path(__file__).resolve().parents[1] / "tests" / "codeblocks_plugin.py").is_file():
    from tests.codeblocks_plugin import pytest_addoption, pytest_configure

    __all__ += ["pytest_addoption", "pytest_configure"]
