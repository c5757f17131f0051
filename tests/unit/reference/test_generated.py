"""What a command of the reference writes, it finds again; whatever else lies there, it names."""

from pathlib import Path

import pytest

from snippets.reference.generated import update


def test_a_file_is_written_once_and_then_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert update("list", lambda: "text\n", [], folder) == 0
    assert (folder / "list.md").read_text() == "text\n"
    assert "list.md was written" in capsys.readouterr().out
    assert update("list", lambda: "text\n", [], folder) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [None, "text\nand an edit\n"], ids=["missing", "edited"])
def test_check_names_what_differs_and_leaves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "list.md"
    if content is not None:
        path.write_text(content)
    assert update("list", lambda: "text\n", ["--check"], tmp_path) == 1
    assert "list.md differs" in capsys.readouterr().out
    assert (path.read_text() if path.exists() else None) == content


def test_check_is_silent_where_nothing_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.md").write_text("text\n")
    assert update("list", lambda: "text\n", ["--check"], tmp_path) == 0
    assert capsys.readouterr().out == ""
