"""Measure the pipelines against each other and against the hardware, and render what the pages show."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from snippets.benchmark import render
from snippets.benchmark.contenders import CONTENDERS, contenders_for
from snippets.benchmark.harness import Plan, measure, remeasure_costs
from snippets.benchmark.provenance import read_hardware, read_provenance
from snippets.benchmark.results import FOLDER, PUBLISHED
from snippets.benchmark.tables import summary_table
from snippets.checkpoint import check_checkpoint
from snippets.command import Parser, positive
from snippets.samples import DEFAULT_ROOT, build_samples

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m snippets.benchmark`."""
    parser = Parser(prog="python -m snippets.benchmark", description=__doc__)
    add = parser.add_argument
    add("--images", default=os.environ.get("IMAGES"), help="folder, manifest or s3:// URI (default: samples)")
    add("--model", default=os.environ.get("MODEL"), help="folder, or name@revision (default: the sample model)")
    add("--rounds", type=positive, help="default: 5, and 1 with --quick")
    add("--limit", type=positive, help="images of a pool's run; others get a quarter (default: 256)")
    add(
        "--contenders", help=f"some of {', '.join(CONTENDERS)}; naive is always there (default: what is fast here)"
    )
    add("--output", type=Path, help="results file (default: docs/assets/results/, named for the hardware)")
    add("--quick", action="store_true", help="few images, no costs, no memory: for tests; needs --output")
    add("--costs-only", action="store_true", help="measure the costs again, into the results file that is there")
    add("--render-only", action="store_true", help="measure nothing; render the committed results file")
    add("--check", action="store_true", help="render nothing; exit with 1 where the rendered files differ")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options ask; return 2 for input that cannot be used, 130 where it was interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.render_only or options.check:
        return render.main(["--check"] if options.check else [])
    if options.quick and options.output is None:
        parser.error("--quick needs --output, for its results are none to publish")
    hardware = read_hardware()
    output = options.output or FOLDER / f"{hardware.slug}.json"
    names = contenders_for(hardware)
    if options.contenders:
        asked = options.contenders.split(",")
        if unknown := sorted(set(asked) - set(CONTENDERS)):
            parser.error(f"there is no contender {', '.join(unknown)}; choose from {', '.join(CONTENDERS)}")
        names = [name for name in CONTENDERS if name in asked or name == "naive"]
    try:
        if not (options.images and options.model):
            samples = build_samples(DEFAULT_ROOT)
        source, model = options.images or str(samples.images), options.model or str(samples.model)
        check_checkpoint(model)
        limit = options.limit or (32 if options.quick else 256)
        plan = Plan(source, model, names, options.rounds or (1 if options.quick else 5), limit, options.quick)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    provenance = read_provenance(hardware, source, model, arguments)
    if options.costs_only:
        remeasure_costs(plan, provenance, output)
        render.write_all()
        return 0
    results, is_complete = None, False
    with contextlib.suppress(KeyboardInterrupt):
        try:
            results, is_complete = measure(plan, provenance, output)
        except RuntimeError as error:  # a run failed; the rounds before it are in the file
            parser.exit(1, f"{error}\n")
    if results is None:
        sys.stderr.write(f"Interrupted before a round was finished: {output} is as it was.\n")
        return INTERRUPTED
    sys.stdout.write(summary_table(results) + "\n")
    if output.resolve() == PUBLISHED:
        render.write_all()
    if not is_complete:
        kept = len(results["rounds"])
        sys.stderr.write(f"Interrupted: {kept} of {plan.rounds} rounds are kept in {output}.\n")
        return INTERRUPTED
    sys.stderr.write(f"Written: {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
