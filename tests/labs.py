"""One notebook a part, made from its pages: `python -m tests.labs` writes them, with the outputs of a real kernel.

What the runner executes on a page is a cell here, in the same order. A definition that the pages include again and
again is there once, and again only where another page has given its name to something else. `--check` names what
differs from the pages.
"""

import argparse
import ast
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from snippets.optimization.ensemble_models import models_for
from snippets.reference.reading import navigation
from tests.page_blocks import Block, collect
from tests.page_rendering import DIRECTIVE, ROOT, Fence, Rendering
from tests.page_run import matches

LABS = ("fundamentals", "optimization", "architecture")  # a part's folder below docs/
IN_KERNEL = "fundamentals"  # the part whose notebook the tests run; the pages of the others they run as pages
FIRST_PAGES = {"fundamentals": ["setup.md"]}  # that a part needs, and that lie elsewhere
INSTALLING = ROOT / "docs" / "setup.md"  # the page that says what to install
EXTRAS = {"optimization": "engines"}  # what a part needs besides, as pyproject.toml calls it
FOLDER = ROOT / "docs" / "labs"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
INSTALL, RAISES = "install", "raises-exception"  # tags; the second one is Jupyter's
CELL_TIMEOUT_S = 300

ADMONITION = re.compile(r'(?:!!!|\?\?\?\+?) \w+ "(.*)"$')
# Above what the notebook mostly holds already.
EARLIER = re.compile(r'\s*\?\?\? abstract "(?:Code (?:from|of) |Imports"|Start Ray").*')
CONNECTING = re.compile(r"ray\.(?:init\(.*\)|shutdown\(\))")
TERMINAL_COLOUR = r"\x1b\[[\d;]*m"
FROM_RAY = re.compile(r"^\(raylet\).*\n", re.M)  # what it tells every driver, such as a worker that died
CAUSE = re.compile(r"(?!ray\.)[\w.()]*[A-Z]\w*\)?: ")
# Attributes, a frame around blocks, the time to read a page.
OF_THE_SITE = re.compile(r"[ >]*\{[#.].*\}\s*|</?div.*>|\d+ min(?: · before this: .*)?")
COMMENT = re.compile(r" *<!--.*?-->")
LINK_TO_PAGE = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")


def pages_of(part: str) -> list[Path]:
    """Return a part's introduction, and its pages with code that runs, in the order of the site's navigation."""
    names = [name for name in navigation() if name.startswith(f"{part}/")]
    pages = [ROOT / "docs" / name for name in [*FIRST_PAGES.get(part, []), *names]]
    return [page for page in pages if page.stem == "index" or any(block.is_executed for block in collect(page))]


def packages_of(part: str) -> str:
    """Return what a reader of a part installs, as pip takes it."""
    installs = [block.source for block in collect(INSTALLING) if block.language == "console"]
    command = next(source for source in installs if " -m pip install " in source)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    more = [f'"{requirement}"' for requirement in extras.get(EXTRAS.get(part, ""), [])]
    return " ".join([command.strip().partition(" -m pip install ")[2], *more])


def bindings(source: str) -> dict[str, str]:
    """Return the names that code binds, functions' own left out, each with the code that binds it last."""
    bound = {}
    for node in ast.parse(source).body:
        code = ast.unparse(node)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound[node.name] = code
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
            bound |= {
                (name.asname or name.name).split(".")[0]: f"{module}import {name.name}" for name in node.names
            }
        else:
            names = (each for each in ast.walk(node) if isinstance(each, ast.Name))
            bound |= {name.id: code for name in names if isinstance(name.ctx, ast.Store)}
    return bound


class Lab:
    """The cells of a notebook, and the block that each code cell was made from, by the cell's id."""

    def __init__(self, part: str) -> None:
        self.cells: list[NotebookNode] = []
        self.blocks: dict[str, Block] = {}
        self.sections: set[str] = set()  # included so far
        self.bound: dict[str, str] = {}  # names, and the code that bound each last
        self.lines: set[str] = set()  # written on the pages so far, in code
        self.connected = ""  # how a page before did it
        pages = pages_of(part)
        title = re.search(r"^# (.+)", (ROOT / "docs" / part / "index.md").read_text("utf-8"), re.M)
        assert title  # each part's introduction has one
        text = "The first cell installs what the others import. Run them in order."
        intro = nbformat.v4.new_markdown_cell(f"# {title[1]}, as a notebook\n\n{text}", id="introduction")
        self.cells.append(intro)
        self.cells.append(nbformat.v4.new_code_cell(f"%pip install --quiet {packages_of(part)}", id=INSTALL))
        self.cells[-1].metadata["tags"] = [INSTALL]
        for page in pages:
            self._add_page(page)

    def notebook(self) -> NotebookNode:
        """Return the notebook, without outputs."""
        notebook: NotebookNode = nbformat.v4.new_notebook(cells=self.cells, metadata={"kernelspec": KERNEL})
        nbformat.validate(notebook)
        return notebook

    def _add_page(self, page: Path) -> None:
        rendering, blocks = Rendering(page.read_text("utf-8"), []), collect(page)
        prose, position = Prose(), 0
        for fence, block in zip(rendering.shown, blocks, strict=True):
            before = rendering.lines[position : fence.start]
            is_earlier = any(EARLIER.fullmatch(line) for line in before)
            self._add_text(page, prose.flatten([line for line in before if not EARLIER.fullmatch(line)]))
            position = fence.end
            if "pytest-codeblocks:expected-output" in block.directives:
                continue  # the cell above shows what it printed itself
            if block.language == "python" and not block.gpu:
                if ".wrong" in rendering.lines[fence.start]:
                    self._add_text(page, "**\u00d7 Anti-pattern**")
                self._add_code(page, block, self._source(rendering, fence, is_earlier))
            elif block.language == "bash" and block.is_executed:
                self._add_code(page, block, f"%%bash\n{block.source.rstrip()}")
            else:
                self._add_text(page, f"```{block.language}\n{block.source.rstrip()}\n```")
        self._add_text(page, prose.flatten(rendering.lines[position:]))

    def _source(self, rendering: Rendering, fence: Fence, is_earlier: bool) -> str:
        """Return a block's source without the sections, and the lines of earlier pages, that are there already."""
        kept, included = [], set()
        numbered = enumerate(fence.source.split("\n"), fence.start + 1)
        for (_, section), group in groupby(numbered, lambda each: rendering.origins[each[0]]):
            lines = [line for _, line in group]
            if CONNECTING.fullmatch(lines[0]):
                lines = self._connect(lines[0])
            elif section is None:
                lines = [line for line in lines if not (is_earlier and line in self.lines)]
                self.lines.update(line for line in lines if line.strip())
            elif section in self.sections and bindings("\n".join(lines)).items() <= self.bound.items():
                continue
            else:
                included.add(section)
            kept += lines
        self.sections |= included
        source = re.sub(r"\n{4,}", "\n\n\n", "\n".join(kept)).strip("\n")
        self.bound |= bindings(source)
        return source

    def _connect(self, line: str) -> list[str]:
        """Return what connects a notebook as a line connects its page: nothing, where it is so already."""
        before, self.connected = self.connected, "" if line == "ray.shutdown()" else line
        if self.connected == before:
            return []
        return ["ray.shutdown()", line] if before and self.connected else [line]

    def _add_text(self, page: Path, text: str) -> None:
        if not text:
            return
        if self.cells[-1].cell_type == "markdown":
            self.cells[-1].source += f"\n\n{text}"
        else:
            self.cells.append(nbformat.v4.new_markdown_cell(text, id=f"{page.stem}-{len(self.cells)}"))

    def _add_code(self, page: Path, block: Block, source: str) -> None:
        if not source:
            return
        cell = nbformat.v4.new_code_cell(source, id=f"{page.stem}-{len(self.cells)}")
        if block.raises:
            cell.metadata["tags"] = [RAISES]
        self.cells.append(cell)
        self.blocks[cell.id] = block


class Prose:
    """Markdown of a page as a notebook shows it: no admonition, no attribute, no figure, no link to a page."""

    def __init__(self) -> None:
        self.is_in_admonition = self.is_in_figure = False

    def flatten(self, lines: list[str]) -> str:
        """Return the lines that follow those of the call before."""
        flat: list[str] = []
        for line in lines:
            self.is_in_figure |= line.lstrip().startswith("<figure")
            if self.is_in_figure:
                self.is_in_figure = "</figure>" not in line
            elif opening := ADMONITION.match(line):
                self.is_in_admonition = True
                flat.append(f"> **{opening[1]}**")
            elif self.is_in_admonition and (line.startswith("    ") or not line.strip()):
                flat.append(f"> {line[4:]}".rstrip())
            else:
                self.is_in_admonition = False
                flat.append(line)
        kept = [line for line in flat if not DIRECTIVE.match(line) and not OF_THE_SITE.fullmatch(line)]
        text = COMMENT.sub("", LINK_TO_PAGE.sub(r"\1", "\n".join(kept)))
        # Below the notebook's own title, and without code: its anchor would not be that of the contents.
        text = re.sub(r"^#.*", lambda heading: "#" + heading[0].replace("`", ""), text, flags=re.M)
        text = re.sub(r"(\n>)+(?=\n[^>]|$)", "\n", re.sub(r"\n{3,}", "\n\n", text))
        return text.strip("\n> ") if not text.lstrip().startswith(">") else text.strip()


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run a notebook in a kernel of its own, but for the cell that installs, and return it with its outputs.

    What is kept is what a block prints or the last line of what it raises: no logs, no times. Raises nbclient's
    `CellExecutionError` where a cell fails that should not.
    """
    ran: NotebookNode = nbformat.from_dict(notebook)
    cells = ran.cells
    ran.cells = [cell for cell in cells if INSTALL not in cell.metadata.get("tags", [])]
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(ran, timeout=CELL_TIMEOUT_S, record_timing=False, resources=resources).execute()
    for number, cell in enumerate((cell for cell in ran.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        cell.outputs = list(_kept_outputs(cell.outputs))
    ran.cells = cells
    ran.metadata = notebook.metadata
    return ran


def with_outputs_of(path: Path, notebook: NotebookNode) -> NotebookNode | None:
    """Return a notebook with the outputs of the one at `path`, or None where their code differs."""
    if not path.exists():
        return None
    before = [cell for cell in nbformat.read(path, nbformat.NO_CONVERT).cells if cell.cell_type == "code"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [(cell.source, cell.metadata) for cell in before] != [(cell.source, cell.metadata) for cell in code]:
        return None
    for ours, theirs in zip(code, before, strict=True):
        ours.outputs, ours.execution_count = theirs.outputs, theirs.execution_count
    return notebook


def _kept_outputs(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    printed = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    printed = FROM_RAY.sub("", re.sub(TERMINAL_COLOUR, "", printed))
    if printed:
        yield nbformat.v4.new_output("stream", name="stdout", text=printed)
    for output in outputs:
        if output.output_type == "error":
            # Ray puts the worker's traceback into the message, and its own errors after the cause.
            message = f"{output.ename}: {re.sub(TERMINAL_COLOUR, '', output.evalue)}"
            causes = [line for line in message.splitlines() if CAUSE.match(line)]
            name, _, said = (causes[1] if len(causes) > 1 else causes[0]).partition(": ")
            yield nbformat.v4.new_output("error", ename=name, evalue=said, traceback=[f"{name}: {said}"])


def printed_by(cell: NotebookNode) -> str:
    """Return what a cell printed, and the line of what it raised."""
    return "".join(
        output.text if output.output_type == "stream" else f"{output.traceback[0]}\n" for output in cell.outputs
    )


def problems(lab: Lab, notebook: NotebookNode) -> list[str]:
    """Return where a notebook with outputs is not what its pages say."""
    expected = lab.notebook()
    found = []
    if [cell.id for cell in expected.cells] != [cell.id for cell in notebook.cells]:
        return ["the notebook has other cells than the pages have blocks"]
    for ours, theirs in zip(expected.cells, notebook.cells, strict=True):
        block = lab.blocks.get(ours.id)
        where = block.where if block else f"the text in cell {ours.id}"
        if (ours.source, ours.metadata) != (theirs.source, theirs.metadata):
            found.append(f"{where}: the page changed")
        elif block and block.expected and not matches(block.expected, printed_by(theirs), bool(block.raises)):
            found.append(f"{where}: the output is not what the page shows: {printed_by(theirs)!r}")
    return found


def path_of(part: str) -> Path:
    """Return the notebook of a part."""
    return FOLDER / f"{part}.ipynb"


def main(arguments: list[str] | None = None) -> int:
    """Write the notebooks; with `--check` name what differs and return 1 if anything does."""
    parser = argparse.ArgumentParser(prog="python -m tests.labs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="run and write nothing")
    parser.add_argument("--part", choices=LABS, help="default: all")
    options = parser.parse_args(arguments)
    check, found = options.check, []
    for part in [options.part] if options.part else LABS:
        lab = Lab(part)
        if not check:
            ran = with_outputs_of(path_of(part), lab.notebook())
            if ran is None:
                os.environ.setdefault("MODELS", models_for(os.environ["MODEL"]))  # as the runner gives it to pages
                ran = execute(lab.notebook())
            if not problems(lab, ran):
                FOLDER.mkdir(exist_ok=True)
                nbformat.write(ran, path_of(part))
        else:
            ran = nbformat.read(path_of(part), nbformat.NO_CONVERT)
        found += [f"{path_of(part).relative_to(ROOT)}: {problem}" for problem in problems(lab, ran)]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
