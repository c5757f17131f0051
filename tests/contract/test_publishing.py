"""What is published: links to the repository and the site only where they are set, and a package of its own."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.page_rendering import ROOT

SITE, REPOSITORY = "https://course.example.org/", "https://git.example.org/someone/course"


def build_home(folder: Path, **values: str) -> str:
    """Build the site with values of `mkdocs.yml` replaced; return its first page."""
    config: Any = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), **values)
    build(config)
    return (folder / "index.html").read_text("utf-8")


def test_addresses_are_rendered_where_they_are_set(tmp_path: Path) -> None:
    home = build_home(tmp_path, site_url=SITE, repo_url=REPOSITORY)
    assert f'<link rel="canonical" href="{SITE}">' in home
    assert f'href="{REPOSITORY}"' in home


def test_no_address_is_rendered_where_none_is_set() -> None:
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert re.search(r'^site_url: ""', settings, re.M) and re.search(r'^repo_url: ""', settings, re.M)
    home = (ROOT / "site" / "index.html").read_text("utf-8")
    assert 'rel="canonical"' not in home
    assert "md-source" not in home


@pytest.mark.timeout(300)
def test_the_wheel_installs_without_the_tests_and_breaks_no_pytest(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0].partition("-")[0] for name in archive.namelist()} == {
            "snippets",
            "gpu_batch_inference",
        }
        archive.extractall(tmp_path / "installed")
    # In a folder elsewhere, with what is extracted before this clone on the path: no runner, and no error.
    code = "import snippets.pytest_plugin as found; print(found.__file__, found.__all__)"
    installed = tmp_path / "installed"
    done = subprocess.run([sys.executable, "-c", code], cwd=installed, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{installed / 'snippets' / 'pytest_plugin.py'} []"


def test_extras_hold_what_only_tests_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = " ".join(project["dependencies"])
    assert not re.search(r"pytest|mkdocs|ruff|mypy|playwright", needed)
