"""The built site, and a server for it."""

import contextlib
import gzip
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.page_rendering import ROOT

DOCS = ROOT / "docs"
SOURCES = sorted(
    file for file in DOCS.rglob("*") if file.suffix in (".md", ".ipynb") and "assets" not in file.parts
)


def address(source: Path) -> str:
    """Return where the site shows a page of docs/: `setup/` for setup.md."""
    path = source.relative_to(DOCS)
    folder = path.parent if path.stem == "index" else path.with_suffix("")
    return "" if folder == Path() else f"{folder.as_posix()}/"


# Page of the site, and its source; nobody wrote the page for an address that does not exist.
PAGES: dict[str, Path | None] = {address(source): source for source in SOURCES} | {"404.html": None}


def name(page: str) -> str:
    """Return a page's name for people, as tests and screenshots bear it."""
    return page.removesuffix("/").replace("/", "-") or "index"


def build(folder: Path) -> float:
    """Build the site as `make build` does; return the CPU seconds of it, whatever else this machine does."""
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@cache
def _compressed_bytes(path: Path, changed_ns: int) -> int:
    return len(gzip.compress(path.read_bytes()))


@dataclass(frozen=True)
class Site:
    """A folder of HTML, and where it is served."""

    folder: Path
    url: str

    def serves(self, url: str) -> bool:
        """Whether `url` is on this site."""
        return url.startswith(self.url)

    def transferred_bytes(self, url: str) -> int:
        """Return the size of what lies at `url`, compressed as a host of static sites does it."""
        path = self.folder / unquote(urlsplit(url).path).lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        return _compressed_bytes(path, path.stat().st_mtime_ns) if path.is_file() else 0


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that leaves a page stops listening, which is no error of the site."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Serve a folder on a free port of this machine."""
    with _Server(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
