"""The built files: every link, anchor and image leads somewhere, nothing is left unrendered."""

from pathlib import Path

import pytest

from tests.site.built import PAGES, Site
from tests.site.files import problems

BUILD_CPU_S = 30  # what a build may take; it takes about two


def test_the_site_has_every_page_and_no_other(site: Site) -> None:
    built = {file.relative_to(site.folder).as_posix() for file in site.folder.rglob("*.html")}
    assert {page.removesuffix("index.html") for page in built} == set(PAGES)


def test_every_reference_leads_somewhere(site: Site) -> None:
    assert problems(site.folder) == []


def test_a_build_takes_seconds(build_cpu_s: float) -> None:
    assert build_cpu_s <= BUILD_CPU_S


PAGE = """<!doctype html>
<html lang="en">
<head><title>A page</title><link rel="stylesheet" href="/style.css"></head>
<body>
<h1 id="top">A page</h1>
<p>A text with <code>--8&lt;-- "a.py"</code> and <a href="https://example.com/nothing">another host</a>.</p>
<p><a href="#top">up</a> <a href="sub/#a">down</a> <a href="sub/?x=1">again</a> <a href="/">home</a></p>
<p><img src="a.png" srcset="a.png 1x, a.png 2x" alt="A picture"> <label for="field">A field</label></p>
<p><input id="field"></p>
</body>
</html>
"""
FAULTS = {
    "link": ('href="sub/#a"', 'href="sup/#a"', "index.html:7: no such file: sup/#a"),
    "anchor": ('href="sub/#a"', 'href="sub/#b"', "index.html:7: no such anchor: sub/#b"),
    "own-anchor": ('href="#top"', 'href="#tip"', "index.html:7: no such anchor: #tip"),
    "folder": ('href="sub/?x=1"', 'href="sub"', "index.html:7: no such file: sub"),
    "above": ('href="#top"', 'href="../index.html"', "index.html:7: outside of the site: ../index.html"),
    "image": ('src="a.png"', 'src="b.png"', "index.html:8: no such file: b.png"),
    "srcset": ("a.png 2x", "b.png 2x", "index.html:8: no such file: b.png"),
    "stylesheet": ('href="/style.css"', 'href="/stile.css"', "index.html:3: no such file: /stile.css"),
    "label": ('for="field"', 'for="fold"', "index.html:8: no element has the id 'fold'"),
    "twice": ('id="field"', 'id="top"', "index.html:1: 2 elements have the id 'top'"),
    "include": ("A text", '--8&lt;-- "a.py"', "index.html:6: not rendered: --8<--"),
    "attributes": ("A text", "{#claim-a}", "index.html:6: not rendered: {#claim-a}"),
    "undefined": ("A text", "[a][undefined]", "index.html:6: not rendered: [a][undefined]"),
}


@pytest.fixture
def small_site(tmp_path: Path) -> Path:
    """A site of two pages, a picture and a style."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<p id="a"><a href="../#top">back</a></p>')
    (tmp_path / "a.png").touch()
    (tmp_path / "style.css").write_text('p { background: url("a.png") }\na { background: url(data:,) }\n')
    (tmp_path / "index.html").write_text(PAGE)
    return tmp_path


def test_a_site_without_a_fault_is_let_through(small_site: Path) -> None:
    assert problems(small_site) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(small_site: Path, fault: str) -> None:
    old, new, cause = FAULTS[fault]
    assert old in PAGE
    (small_site / "index.html").write_text(PAGE.replace(old, new, 1))
    assert cause in problems(small_site)


def test_a_picture_that_a_style_lacks_is_found(small_site: Path) -> None:
    (small_site / "style.css").write_text("p {}\na { background: url(b.png) }\n")
    assert problems(small_site) == ["style.css:2: no such file: b.png"]
