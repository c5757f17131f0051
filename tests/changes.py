"""What another Ray changes: `python -m tests.changes TESTS.xml BLOCKS.json` writes a report in Markdown.

On the pinned version everything passes, which `make test` sees to. So what failed in a run on another version is
what that version changes. This only reports: it returns 0 whatever it finds.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.claims import load_claims, outcomes_of_blocks, outcomes_of_tests, unproven
from tests.claims import proofs as proofs_of

NOT_RUN = ": not run"


def describe_changes(tests: Path, blocks: Path) -> str:
    """Return the report: the versions, the blocks and the claims that changed, and the tests that failed."""
    ran: dict[str, Any] = json.loads(blocks.read_text("utf-8"))
    changed_blocks = [
        f"`{block['page']}:{block['line']}` {_first_line(block['cause'])}"
        for block in ran["blocks"]
        if block["outcome"] not in ("passed", "skipped")
    ]
    claims, _ = load_claims()
    outcomes = outcomes_of_tests(tests)
    problems = unproven(claims, outcomes, outcomes_of_blocks(blocks))
    changed_claims = []
    for claim in claims:
        failed = [
            problem.removeprefix(f"{claim['id']}: ")
            for problem in problems
            if problem.startswith(f"{claim['id']}: ") and not problem.endswith((NOT_RUN, ": skipped"))
        ]
        if failed:
            changed_claims.append(f"**{claim['id']}** ({claim['page']}): {claim['claim']} {'; '.join(failed)}")
    of_claims = {place for claim in claims for kind, place in proofs_of(claim) if kind == "test"}
    others = [
        f"`{test}`"
        for test, seen in outcomes.items()
        if seen & {"failure", "error"} and "[" not in test and test not in of_claims
    ]
    versions = ", ".join(f"{name} {version}" for name, version in ran["versions"].items())
    return "\n".join(
        [
            f"# What changes with Ray {ran['versions']['ray']}",
            "",
            f"{len(ran['blocks'])} blocks and {len(claims)} claims, run with {versions}.",
            *_section("Blocks", changed_blocks),
            *_section("Claims", changed_claims),
            *_section("Other tests", others),
            "",
        ]
    )


def _section(title: str, items: list[str]) -> list[str]:
    return ["", f"## {title}", "", *([f"- {item}" for item in items] or ["None changed."])]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def main(arguments: list[str]) -> int:
    """Print the report; return 2 for anything but two existing files."""
    if len(arguments) != 2 or not all(Path(argument).is_file() for argument in arguments):
        print("usage: python -m tests.changes TESTS.xml BLOCKS.json (both are files that exist)", file=sys.stderr)
        return 2
    print(describe_changes(Path(arguments[0]), Path(arguments[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
