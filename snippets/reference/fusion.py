"""Write the fusion table of the plans that the installed Ray makes."""

from __future__ import annotations

import sys

from snippets.architecture.plans import fusion_pairs, fusion_table
from snippets.command import connection
from snippets.reference.generated import update


def render() -> str:
    """Return the table, planned on the connected cluster, or on a Ray that ends afterwards."""
    with connection():
        return fusion_table(fusion_pairs())


if __name__ == "__main__":
    sys.exit(update("fusion", render))
