"""The site as the pages are now, served, and a browser to look at it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.page_rendering import ROOT
from tests.site.browser import chromium
from tests.site.built import Site, build, serve


@pytest.fixture(scope="session")
def build_cpu_s() -> float:
    """The CPU seconds of building the site from the pages as they are now."""
    return build(ROOT / "site")


@pytest.fixture(scope="session")
def site(build_cpu_s: float) -> Iterator[Site]:
    """The site, built and served on this machine."""
    with serve(ROOT / "site") as served:
        yield served


@pytest.fixture(scope="module")  # an open one holds the event loop of this thread, which other tests need
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium() as running:
        yield running
