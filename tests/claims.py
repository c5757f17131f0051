"""Which claims of the pages are proven: `python -m tests.claims .cache/tests.xml .cache/blocks.json`.

`claims.toml` names a proof for each claim. `tests/contract/test_claims.py` checks that each proof exists;
this, after a full run, that each was run and passed.
"""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.page_blocks import Block, collect
from tests.page_rendering import ROOT

CLAIMS = ROOT / "tests" / "claims.toml"
KINDS = ("test", "block", "result", "source")

Entries = list[dict[str, Any]]


def load_claims(path: Path = CLAIMS) -> tuple[Entries, Entries]:
    """Return the claims of the pages, and what became of the seed's."""
    entries = tomllib.loads(path.read_text("utf-8"))
    return entries["claim"], entries["seed"]


def proofs(claim: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return kind and place of each proof of a claim, which may be one text or a list of texts."""
    found = []
    for kind in KINDS:
        places = claim.get(kind, [])
        found += [(kind, place) for place in ([places] if isinstance(places, str) else places)]
    return found


def find_blocks(proof: str) -> list[Block]:
    """Return the executed blocks of `docs/page.md: substring` whose source has the substring."""
    page, _, substring = proof.partition(": ")
    return [block for block in collect(ROOT / page) if block.is_executed and substring in block.source]


def outcomes_of_tests(junit: Path) -> dict[str, set[str]]:
    """Return, for each test by its node id, with and without parameters, how its cases ended."""
    outcomes: dict[str, set[str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        file, name = case.get("file", ""), case.get("name", "")
        module = file.removesuffix(".py").replace("/", ".")
        classes = case.get("classname", "").removeprefix(module).strip(".")
        node = "::".join(filter(None, [file, *classes.split("."), name]))
        failures = {kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None}
        for identity in {node, node.partition("[")[0]}:
            outcomes.setdefault(identity, set()).update(failures or {"passed"})
    return outcomes


def outcomes_of_blocks(report: Path) -> dict[tuple[str, int], set[str]]:
    """Return how the blocks ended, by page and line."""
    outcomes: dict[tuple[str, int], set[str]] = {}
    for block in json.loads(report.read_text("utf-8"))["blocks"]:
        outcomes.setdefault((block["page"], block["line"]), set()).add(block["outcome"])
    return outcomes


def unproven(
    claims: Entries, tests: Mapping[str, set[str]], blocks: Mapping[tuple[str, int], set[str]]
) -> list[str]:
    """Return each proof that was not run, or did not pass, with its claim.

    A source was not run by anybody here, and a result is compared with its rendering by a test of its own.
    """
    problems = []
    for claim in claims:
        for kind, place in proofs(claim):
            if kind == "test":
                seen = tests.get(place, set())
            elif kind == "block":
                ran = [blocks.get((block.page, block.line), {"not run"}) for block in find_blocks(place)]
                seen = set().union(*ran)
            else:
                continue
            if seen != {"passed"}:
                how = ", ".join(sorted(seen)) or "not run"
                problems.append(f"{claim['id']}: {kind} {place}: {how}")
    return problems


def main(arguments: list[str]) -> int:
    """Print how many claims are proven; return 1, and name what was not, if there is any."""
    if len(arguments) != 2:
        print("usage: python -m tests.claims TESTS.xml BLOCKS.json", file=sys.stderr)
        return 2
    claims, _ = load_claims()
    problems = unproven(claims, outcomes_of_tests(Path(arguments[0])), outcomes_of_blocks(Path(arguments[1])))
    for problem in problems:
        print(f"Not proven by this run: {problem}", file=sys.stderr)
    not_proven = {problem.partition(":")[0] for problem in problems}
    by_source = sum(all(kind == "source" for kind, _ in proofs(claim)) for claim in claims)
    print(f"{len(claims) - len(not_proven)} of {len(claims)} claims are proven, {by_source} of them by a source.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
