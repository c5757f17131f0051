"""Buckets pad the least, hold each row once, and bound the shapes, which are the compilations."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snippets.optimization.buckets import ShapeCounter, bucket_sizes, padded_batches

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def padded(lengths: list[int], sizes: tuple[int, ...] | list[int]) -> int:
    """Return the elements of all rows, each padded to the next size."""
    return sum(min(size for size in sizes if size >= length) for length in lengths)


@given(LENGTHS, st.integers(1, 4))
def test_no_other_sizes_pad_less(lengths: list[int], buckets: int) -> None:
    sizes = bucket_sizes(lengths, buckets)
    assert sizes == sorted(set(sizes))
    assert len(sizes) <= buckets
    distinct = sorted(set(lengths))
    all_choices = itertools.combinations(distinct, min(buckets, len(distinct)))
    assert padded(lengths, sizes) == min(padded(lengths, each) for each in all_choices if each[-1] == distinct[-1])


def test_sizes_follow_where_the_lengths_are() -> None:
    assert bucket_sizes([10] * 50 + [11] * 50 + [100], 2) == [11, 100]
    assert bucket_sizes([3, 1, 2], 9) == [1, 2, 3]
    assert bucket_sizes([3, 1, 2], 1) == [3]


@pytest.mark.parametrize(("lengths", "buckets"), [([], 1), ([1], 0), ([0, 2], 1)])
def test_no_bucket_or_no_length_is_refused(lengths: list[int], buckets: int) -> None:
    with pytest.raises(ValueError, match=r"^There must be at least one bucket and one length"):
        bucket_sizes(lengths, buckets)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 5))
def test_each_row_comes_once_whole_and_in_a_shape_of_its_bucket(
    lengths: list[int], buckets: int, batch_size: int
) -> None:
    rows = [np.full(length, 1 + position) for position, length in enumerate(lengths)]
    sizes = bucket_sizes(lengths, buckets)
    seen = []
    for positions, batch in padded_batches(rows, sizes, batch_size, fill=0):
        assert batch.shape in {(batch_size, size) for size in sizes}
        assert len(positions) <= batch_size
        for position, row in zip(positions, batch, strict=False):
            assert list(row[: lengths[position]]) == list(rows[position])
            assert not row[lengths[position] :].any()
        assert not batch[len(positions) :].any()
        seen += positions
    assert sorted(seen) == list(range(len(lengths)))


def test_a_row_that_fits_no_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Row 1 has 9 elements, and the largest size is 8"):
        list(padded_batches([np.ones(8), np.ones(9)], [4, 8], 2))


def test_shapes_are_counted_as_a_compiler_for_fixed_shapes_counts_them() -> None:
    import torch

    compiled: list[tuple[int, ...]] = []

    def backend(graph: Any, inputs: list[torch.Tensor]) -> Any:
        """Count as a compiler is called, and compile nothing."""
        compiled.append(tuple(inputs[0].shape))
        return graph.forward

    total = torch.compile(lambda batch: batch.sum(), backend=backend, dynamic=False)
    counter = ShapeCounter(lambda batch: int(total(torch.from_numpy(batch))))
    rows = [np.ones(length, np.int64) for length in (3, 4, 5, 6, 7, 3, 5, 7)]
    sums = [counter(row[None]) for row in rows]
    assert sums == [3, 4, 5, 6, 7, 3, 5, 7]
    assert sorted(compiled) == sorted(counter.shapes) == [(1, length) for length in (3, 4, 5, 6, 7)]
    assert (counter.shapes[1, 3], counter.elements()) == (2, 40)

    torch.compiler.reset()
    compiled.clear()
    bucketed = ShapeCounter(counter.call)
    sums = [bucketed(batch) for _, batch in padded_batches(rows, bucket_sizes([len(row) for row in rows], 2), 3)]
    assert sum(sums) == 40  # the padding is zero
    assert sorted(compiled) == sorted(bucketed.shapes) == [(3, 5), (3, 7)]
    assert bucketed.shapes.total() == 3
    assert bucketed.elements() == 2 * 3 * 5 + 3 * 7
