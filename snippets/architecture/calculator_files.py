"""Write what the calculator has of quantities.toml: the form, the worked table, and the data of the script."""

from __future__ import annotations

import html
import json
import math
import re
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from snippets.architecture.calculator import DEFAULTS, INPUTS, QUANTITIES, plan, refusals
from snippets.command import Parser

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path("docs/assets/js/calculator.js")
SECTIONS = Path("docs/assets/architecture/calculator.md")
DATA = re.compile(r"(/\* quantities:begin \*/).*?(/\* quantities:end \*/)", re.DOTALL)


def show(value: float) -> str:
    """Return a whole number with its thousands apart, another with four digits that count."""
    if value == math.floor(value):
        return f"{int(value):,}"
    text = f"{Decimal(f'{value:.3e}'):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def script_data() -> str:
    """Return the quantities as JSON, each input with the sentences that refuse a value."""
    inputs = [{**given, "says": refusals(given)} for given in INPUTS]
    keys = ("constants", "preset", "output", "limits", "summary", "code")
    return json.dumps({"input": inputs, **{key: QUANTITIES[key] for key in keys}}, ensure_ascii=False)


def form() -> str:
    """Return the form, which the script unhides: without it there would be nobody to answer."""
    options = "".join(f'<option value="{each["name"]}">{each["title"]}</option>' for each in QUANTITIES["preset"])
    lines = ['<form class="calculator" hidden>']
    for group, inputs in _groups():
        lines.append(f"<fieldset><legend>{group['title']}</legend>")
        if group["name"] == "machine":
            lines.append(
                '<p><label for="calculator-preset">Machine</label>'
                f'<select id="calculator-preset"><option value="">as entered</option>{options}</select></p>'
            )
        lines += map(_field, inputs)
        lines.append("</fieldset>")
    lines.append('<p role="status" aria-live="polite" class="says"></p>')
    lines.append('<p><button type="button" class="link">Copy a link to these values</button></p>')
    return "\n".join([*lines, "</form>"])


def _groups() -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return the groups with their inputs: a group's are named in it."""
    named = {each["name"]: each for each in INPUTS}
    return [(group, [named[name] for name in group["inputs"]]) for group in QUANTITIES["group"]]


def _field(given: dict[str, Any]) -> str:
    name = f"calculator-{given['name']}"
    return (
        f'<p><label for="{name}">{given["label"]}, {html.escape(given["unit"])}</label>'
        f'<input id="{name}" name="{given["name"]}" value="{given["default"]}" inputmode="decimal" '
        f'autocomplete="off" aria-describedby="{name}-help">'
        f'<small id="{name}-help">{html.escape(given["help"])}</small></p>'
    )


def answers() -> str:
    """Return the table of answers for the defaults, in the form that the script fills."""
    worked = plan(DEFAULTS)
    rows = []
    for each in QUANTITIES["output"]:
        name = each["name"]
        limit = worked.limits.get(name)
        decided = QUANTITIES["limits"][limit] if limit else ""
        says = f"{each['label']}<small>{html.escape(each['formula'])}</small>"
        value = f"{show(worked.answers[name])} {html.escape(each['unit'])}"
        cells = f'<th scope="row">{says}</th><td>{value}</td><td>{decided}</td>'
        rows.append(f'<tr data-answer="{name}">{cells}</tr>')
    head = (
        '<tr><th scope="col">Answer and formula</th><th scope="col">Value</th><th scope="col">Decided by</th></tr>'
    )
    body = "\n".join(rows)
    return f'<div class="answers">\n<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>'


def inputs_table() -> str:
    """Return the inputs in Markdown, with their limits and defaults."""
    rows = [
        f"| {each['label']} | {show(each['default'])} {each['unit']} | {_limits(each)} | {each['help']} |"
        for each in INPUTS
    ]
    return "\n".join(["| input | default | limits | what it is |", "| --- | ---: | --- | --- |", *rows])


def _limits(given: dict[str, Any]) -> str:
    low = f"more than {show(given['above'])}" if "above" in given else f"{show(given['least'])} or more"
    return f"{low}, at most {show(given['most'])}" + (", whole" if given.get("whole") else "")


def presets_table() -> str:
    """Return the machines in Markdown, with their sources."""
    columns = ("cpus", "memory_gib", "network_gbit", "gpus", "device_gb")
    named = {each["name"]: each for each in INPUTS}
    heads = " | ".join(f"{named[name]['label']}, {named[name]['unit']}" for name in columns)
    rows = [
        f"| [{each['title']}]({each['source']}) | "
        + " | ".join(
            "" if name == "device_gb" and not each["values"]["gpus"] else show(each["values"][name])
            for name in columns
        )
        + " |"
        for each in QUANTITIES["preset"]
    ]
    return "\n".join([f"| machine | {heads} |", "| --- " + "| ---: " * len(columns) + "|", *rows])


def constants_table() -> str:
    """Return what the calculator takes as given in Markdown, with where each comes from."""
    rows = [
        f"| {each['label']} | {show(QUANTITIES['constants'][each['name']])} | [{each['from']}]({each['source']}) |"
        for each in QUANTITIES["constant"]
    ]
    return "\n".join(["| taken as given | value | from |", "| --- | ---: | --- |", *rows])


def render(root: Path = ROOT) -> dict[Path, str]:
    """Return the text of each generated file by its path below `root`."""
    code = html.escape(plan(DEFAULTS).code)
    sections = {
        "form": form(),
        "answers": answers(),
        "code": f'<div class="sized" tabindex="0" role="group" aria-label="Code">{code}</div>',
        "inputs": inputs_table(),
        "presets": presets_table(),
        "constants": constants_table(),
    }
    text = "\n".join(
        f"<!-- --8<-- [start:{name}] -->\n{section}\n<!-- --8<-- [end:{name}] -->\n"
        for name, section in sections.items()
    )
    script = (root / SCRIPT).read_text("utf-8")
    data = script_data()
    return {
        root / SECTIONS: text,
        root / SCRIPT: DATA.sub(lambda match: match[1] + " " + data + " " + match[2], script),
    }


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the files that differ; with `--check` name them, and return 1 where there are any."""
    parser = Parser(prog="python -m snippets.architecture.calculator_files", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    check = parser.parse_args(arguments).check
    rendered = render(root)
    changed = [path for path, text in rendered.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in changed:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rendered[path], "utf-8")
        sys.stdout.write(f"{path.relative_to(root)} {'differs' if check else 'was written'}\n")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
