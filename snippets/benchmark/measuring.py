"""What the commands that measure have in common: two options, and how each of them ends."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snippets.command import Parser


class MeasuringParser(Parser):
    """The parser of a command that measures into a results file, with `--output` and `--quick`."""

    def __init__(self, module: str, description: str | None, published: Path, quick: str = "few images") -> None:
        """Take what the command is called, where its results are published, and what is less in a quick run."""
        super().__init__(prog=f"python -m {module}", description=description)
        self.published = published
        shown = f"docs/assets/results/{published.name}"
        self.add_argument("--output", type=Path, help=f"default: {shown}, which is rendered too")
        self.add_argument("--quick", action="store_true", help=f"{quick}: for tests; needs --output")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options, with the published file as the `output` where none is named."""
        options = self.parse_args(arguments)
        if options.quick and options.output is None:
            self.error("--quick needs --output, for its results are none to publish")
        options.output = options.output or self.published
        return options

    @contextmanager
    def measuring(self, output: Path) -> Iterator[None]:
        """Measure in here. Then what is published is rendered, and what ended it early is a sentence and a status.

        That is 2 for input that cannot be used, 1 where a run failed, and 130 for Ctrl-C and SIGTERM. What was
        finished before is in the file.
        """
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            yield
        except (ValueError, OSError) as error:
            self.exit(2, f"{error}\n")
        except RuntimeError as error:
            self.exit(1, f"{error}\n")
        except KeyboardInterrupt:
            self.exit(130, f"Interrupted: {output} holds what was finished, if anything was.\n")
        finally:
            signal.signal(signal.SIGTERM, before)
        if output.resolve() == self.published:
            from snippets.benchmark import render  # which reads the results of all commands

            render.write_all()
        sys.stderr.write(f"Written: {output}\n")
