"""Integer sums in the occupied bins of a large histogram: adding two is exact, in any order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.records import Ints

__all__ = ["SparseSums"]


@dataclass(frozen=True)
class SparseSums:
    """Tables of int64 sums, row by row of the occupied bins.

    Attributes
    ----------
    bins : (n_bin,) increasing bin numbers.
    tables : by name, (n_bin, ...) each.
    n_outside : events in no bin.
    """

    bins: Ints
    tables: Mapping[str, Ints]
    n_outside: int = 0

    def only(self, rows: NDArray[np.bool_]) -> "SparseSums":
        """Some of the bins."""
        tables = {name: table[rows] for name, table in self.tables.items()}
        return SparseSums(self.bins[rows], tables, self.n_outside)

    def __add__(self, other: "SparseSums") -> "SparseSums":
        bins = np.union1d(self.bins, other.bins)
        here, there = np.searchsorted(bins, self.bins), np.searchsorted(bins, other.bins)
        tables = {}
        for name, table in self.tables.items():
            total = np.zeros((len(bins), *table.shape[1:]), dtype=np.int64)
            total[here] = table
            total[there] += other.tables[name]
            tables[name] = total
        return SparseSums(bins, tables, self.n_outside + other.n_outside)
