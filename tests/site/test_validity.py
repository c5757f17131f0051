"""Every page is valid HTML, but for what is tolerated by name and with a reason."""

from pathlib import Path

from tests.site.built import Site
from tests.site.validation import Fault, Tolerated, find_faults, load_tolerated, sort_out

PAGE = '<!doctype html>\n<html lang="en"><head><title>t</title></head>\n<body><h1>t</h1></body></html>\n'
FAULTS = [
    "<p><div></div></p>",
    "<b><i></b></i>",
    "<span></p></span>",
    "<table><td></td></table>",
    '<a href="#x"><a href="#y"></a></a>',
    '<img src="a.png">',
    '<p id="a"></p><p id="a"></p>',
    '<div role="buton"></div>',
    '<span style="color: 1px"></span>',
    "<ul><p></p></ul>",
    "&nope;",
    "<p id=a id=b>",
]
ENTRY = Tolerated(r"labs/.*", "^CSS: ", "not ours")


def test_every_page_is_valid_but_for_what_is_tolerated(site: Site) -> None:
    assert sort_out(find_faults(site.folder), load_tolerated()) == ([], [])


def test_each_kind_of_fault_is_found_with_its_page_and_line(tmp_path: Path) -> None:
    for number, fault in enumerate(["", *FAULTS]):
        folder = tmp_path / f"page-{number}"
        folder.mkdir()
        (folder / "index.html").write_text(PAGE.replace("</body>", f"{fault}</body>"))
    found = {(fault.page, fault.line) for fault in find_faults(tmp_path)}
    assert found == {(f"page-{number}/index.html", 3) for number in range(1, len(FAULTS) + 1)}


def test_what_is_tolerated_is_so_on_its_pages_alone() -> None:
    in_lab, elsewhere = Fault("labs/a.html", 1, "CSS: what"), Fault("setup.html", 1, "CSS: what")
    assert sort_out([in_lab], [ENTRY]) == ([], [])
    assert sort_out([in_lab, elsewhere], [ENTRY]) == ([elsewhere], [])


def test_what_is_tolerated_in_vain_is_reported() -> None:
    assert sort_out([], [ENTRY]) == ([], [ENTRY])
