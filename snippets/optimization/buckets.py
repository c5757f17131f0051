"""Batches of rows that differ in length: few shapes, so few compilations, for the least padding."""

from __future__ import annotations

# --8<-- [start:imports]
import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

# --8<-- [end:imports]


# --8<-- [start:bucket_sizes]
def bucket_sizes(lengths: Sequence[int], buckets: int) -> list[int]:
    """Return at most `buckets` sizes for which rows padded to the next size hold the fewest elements in all.

    Exact, by dynamic programming over the distinct lengths. Raises `ValueError` where there is no length, or one
    below 1, or no bucket.
    """
    if buckets < 1 or not len(lengths) or min(lengths) < 1:
        raise ValueError("There must be at least one bucket and one length, and no length below 1.")
    distinct, counts = np.unique(lengths, return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])  # rows no longer than the first so many distinct lengths
    # least[j]: elements of all rows of the first j distinct lengths, in as many buckets as rounds so far
    least = np.concatenate([[0.0], np.full(len(distinct), np.inf)])
    cuts = []
    for _ in range(min(buckets, len(distinct))):
        # A last bucket that begins after i of them and ends with the j-th is as long as that one.
        totals = [least[:j] + distinct[j - 1] * (rows[j] - rows[:j]) for j in range(1, len(rows))]
        cuts.append([0, *(int(np.argmin(total)) for total in totals)])
        least = np.array([np.inf, *(total.min() for total in totals)])
    sizes, end = list[int](), len(distinct)
    for cut in reversed(cuts):
        sizes.append(int(distinct[end - 1]))
        end = cut[end]
    return sizes[::-1]


# --8<-- [end:bucket_sizes]


# --8<-- [start:padded_batches]
def padded_batches(
    rows: Iterable[np.ndarray], sizes: Sequence[int], batch_size: int, fill: int = 0
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield the positions of some rows, and those rows as one array (batch_size, size), padded with `fill`.

    `sizes` are in order. Rows that are left at the end share arrays of that shape too: there are fewer positions
    than rows in it then. Raises `ValueError` for a row longer than the largest size.
    """
    waiting: dict[int, list[tuple[int, np.ndarray]]] = {size: [] for size in sizes}

    def batch(size: int) -> tuple[list[int], np.ndarray]:
        taken, waiting[size] = waiting[size], []
        array = np.full((batch_size, size), fill, taken[0][1].dtype)
        for padded, (_, row) in zip(array, taken, strict=False):
            padded[: len(row)] = row
        return [position for position, _ in taken], array

    for position, row in enumerate(rows):
        fits = bisect.bisect_left(sizes, len(row))
        if fits == len(sizes):
            raise ValueError(f"Row {position} has {len(row)} elements, and the largest size is {sizes[-1]}.")
        waiting[sizes[fits]].append((position, row))
        if len(waiting[sizes[fits]]) == batch_size:
            yield batch(sizes[fits])
    for size in sizes:
        if waiting[size]:
            yield batch(size)


# --8<-- [end:padded_batches]


# --8<-- [start:count_shapes]
class ShapeCounter:
    """Calls a function, and counts the calls of each shape: what compiles for one shape compiles once for each."""

    def __init__(self, call: Callable[[np.ndarray], Any]) -> None:
        self.call = call
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __call__(self, batch: np.ndarray) -> Any:
        """Return what the function makes of a batch."""
        self.shapes[batch.shape] += 1
        return self.call(batch)

    def elements(self) -> int:
        """Return how many elements the function saw, padding among them."""
        return sum(int(np.prod(shape)) * calls for shape, calls in self.shapes.items())


# --8<-- [end:count_shapes]
