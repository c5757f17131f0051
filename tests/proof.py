"""How many blocks and claims pass, and of which sources: `python -m tests.proof` writes what the overview shows.

It reads the reports that `make test` leaves in .cache, writes docs/assets/results/proof.json and renders it beside
it. With `--render` it renders only: nothing, where the sources are no longer those that were tested.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.page_rendering import ROOT
from tests.sources import WRITTEN, digest_sources

REPORT, RENDERED = WRITTEN


def write_proof(root: Path = ROOT) -> dict[str, Any]:
    """Write and return what the last full run proved.

    Raises `ValueError` where there was none, or where the sources are others by now.
    """
    tests_file, blocks_file = root / ".cache" / "tests.xml", root / ".cache" / "blocks.json"
    if not (tests_file.exists() and blocks_file.exists()):
        raise ValueError("There is no full run to report on: run make test first.")
    blocks = json.loads(blocks_file.read_text("utf-8"))
    sources = digest_sources(root)
    if {blocks.get("sources"), _sources_of(tests_file)} != {sources}:
        raise ValueError("The sources have changed since they were tested: run make test first.")
    proof = {
        "sources": sources,
        "commit": _commit(root),
        "date": blocks["started"][:10],
        "versions": blocks["versions"],
        "blocks": Counter(block["outcome"] for block in blocks["blocks"]),
        "tests": _count_tests(tests_file),
        "claims": _count_claims(tests_file, blocks_file),
    }
    (root / REPORT).write_text(json.dumps(proof, indent=2) + "\n", "utf-8")
    return proof


def _sources_of(tests_file: Path) -> str | None:
    found = ElementTree.parse(tests_file).find(".//property[@name='sources']")
    return None if found is None else found.get("value")


def _commit(root: Path) -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _count_tests(tests_file: Path) -> dict[str, int]:
    failing = ("failure", "error", "skipped")
    cases = ElementTree.parse(tests_file).iter("testcase")
    return Counter(next((kind for kind in failing if case.find(kind) is not None), "passed") for case in cases)


def _count_claims(tests_file: Path, blocks_file: Path) -> dict[str, int]:
    from tests.claims import load_claims, outcomes_of_blocks, outcomes_of_tests, proofs, unproven

    claims, _ = load_claims()
    problems = unproven(claims, outcomes_of_tests(tests_file), outcomes_of_blocks(blocks_file))
    return {
        "all": len(claims),
        "proven": len(claims) - len({problem.partition(":")[0] for problem in problems}),
        "by_source": sum(all(kind == "source" for kind, _ in proofs(claim)) for claim in claims),
    }


def render_proof(root: Path = ROOT) -> str:
    """Return the section that the overview includes: empty where the sources are not those that were tested."""
    text = ""
    if (root / REPORT).exists():
        proof = json.loads((root / REPORT).read_text("utf-8"))
        if proof["sources"] == digest_sources(root):
            text = describe(proof) + "\n"
    return f"<!-- --8<-- [start:proof] -->\n{text}<!-- --8<-- [end:proof] -->\n"


def describe(proof: dict[str, Any]) -> str:
    """Return the report as a paragraph."""
    blocks, tests, claims = Counter(proof["blocks"]), Counter(proof["tests"]), proof["claims"]
    need = "needs" if blocks["skipped"] == 1 else "need"
    need_gpu = f"; {blocks['skipped']} {need} a GPU and did not run" if blocks["skipped"] else ""
    versions = proof["versions"]
    failed = sum(tests.values()) - tests["passed"] - tests["skipped"]
    return (
        f"**{blocks['passed']} of {sum(blocks.values())} blocks pass{need_gpu}. "
        f"{claims['proven']} of {claims['all']} claims are proven**, {claims['by_source']} of them by a source. "
        f"{tests['passed']} tests passed, {failed} failed, {tests['skipped']} were skipped. "
        f"Run on {proof['date']} with Python {versions['python']}, Ray {versions['ray']}, "
        f"PyTorch {versions['torch']} and transformers {versions['transformers']}, on the sources of this page: "
        f"commit `{proof['commit']}`, SHA-256 `{proof['sources'][:12]}`."
    )


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write and render; return 2, with a sentence, where there is nothing to report on."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--render", action="store_true", help="write no new report; render the one that is there")
    options = parser.parse_args(arguments)
    try:
        if not options.render:
            write_proof(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        rendered = render_proof(root)
        if not (root / RENDERED).exists() or (root / RENDERED).read_text("utf-8") != rendered:
            (root / RENDERED).write_text(rendered, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
