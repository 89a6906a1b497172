"""Sums in occupied bins: addition is exact, in any order."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from musclecal.fits.sparse_sums import SparseSums

RNG = np.random.default_rng(71)
N_BINS = 40


def random_sums(n_bin: int) -> SparseSums:
    bins = np.sort(RNG.choice(N_BINS, n_bin, replace=False)).astype(np.int64)
    tables = {
        "counts": RNG.integers(0, 2**60, (n_bin, 3)),
        "derivatives": RNG.integers(-(2**60), 2**60, (n_bin, 3, 2)),
        "variances": np.zeros((n_bin, 0), dtype=np.int64),
    }
    return SparseSums(bins, tables, int(RNG.integers(100)))


def dense(sums: SparseSums, name: str) -> np.ndarray:
    out = np.zeros((N_BINS, *sums.tables[name].shape[1:]), dtype=np.int64)
    out[sums.bins] = sums.tables[name]
    return out


@pytest.mark.parametrize("sizes", [(5, 7), (0, 4), (6, 0), (0, 0), (N_BINS, 1)])
def test_sums_are_those_of_dense_tables(sizes: tuple[int, int]) -> None:
    one, two = (random_sums(n) for n in sizes)
    both = one + two
    assert both.bins.tolist() == sorted({*one.bins.tolist(), *two.bins.tolist()})
    assert both.n_outside == one.n_outside + two.n_outside
    for name in one.tables:
        np.testing.assert_array_equal(dense(both, name), dense(one, name) + dense(two, name))
        assert both.tables[name].dtype == np.int64


def test_any_order_gives_the_same_bits() -> None:
    parts = [random_sums(n) for n in (3, 9, 0, 12, 7)]
    forward, back = reduce(add, parts), reduce(add, parts[::-1])
    np.testing.assert_array_equal(forward.bins, back.bins)
    for name in forward.tables:
        np.testing.assert_array_equal(forward.tables[name], back.tables[name])


def test_adding_does_not_change_the_terms() -> None:
    one, two = random_sums(6), random_sums(8)
    before = {name: table.copy() for name, table in one.tables.items()}
    _ = one + two
    for name, table in before.items():
        np.testing.assert_array_equal(one.tables[name], table)


def test_some_of_the_bins() -> None:
    sums = random_sums(9)
    which = np.arange(9) % 2 == 0
    some = sums.only(which)
    assert some.bins.tolist() == sums.bins[which].tolist()
    assert some.n_outside == sums.n_outside
    for name in sums.tables:
        np.testing.assert_array_equal(some.tables[name], sums.tables[name][which])
