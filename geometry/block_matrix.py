"""Products of the block matrix of `ModuleSums` with vectors, on several threads and with the same bits for any number.

Not for: filling it (`musclecal.geometry.block_sums`).
"""

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import in_order, kernel
from musclecal.records import Floats, Ints, ModuleSums

__all__ = ["block_times", "dense_matrix", "diagonal_blocks"]

N_RANGES = 8
"""Ranges of rows, each with an output of its own; fixed, so that sums are taken in the same order by any threads."""


def block_times(sums: ModuleSums, x: Floats, threads: int | None = None) -> Floats:
    """C x for x (n_units, P, n_column); each column as if it were alone."""
    x = np.ascontiguousarray(x)
    first = sums.first
    edges = np.searchsorted(first, np.linspace(0, first[-1], N_RANGES + 1).astype(np.int64), side="left")
    edges[0], edges[-1] = 0, sums.n_units
    partial = np.zeros((N_RANGES, *x.shape))
    occupied = np.any(x != 0.0, axis=(1, 2))
    one = x.shape[2] == 1

    def work(i: int) -> None:
        rows = edges[i], edges[i + 1], first, sums.columns, sums.blocks
        if one:
            _times_one(*rows, x[:, :, 0], occupied, partial[i, :, :, 0])
        else:
            _times(*rows, x, occupied, partial[i])

    for _ in in_order(work, range(N_RANGES), threads):
        pass
    for i in range(1, N_RANGES):
        partial[0] += partial[i]
    return partial[0]


def diagonal_blocks(sums: ModuleSums) -> Floats:
    """(n_units, P, P), 0 where no track has met the unit."""
    out = np.zeros((sums.n_units, sums.n_slots, sums.n_slots))
    here = np.flatnonzero(np.diff(sums.first))
    on = here[sums.columns[sums.first[here]] == here]
    out[on] = sums.blocks[sums.first[on]]
    return out


def dense_matrix(sums: ModuleSums) -> Floats:
    """(n_units P, n_units P), for small problems."""
    n, p = sums.n_units, sums.n_slots
    out = np.zeros((n, p, n, p))
    rows = np.repeat(np.arange(n), np.diff(sums.first))
    out[rows, :, sums.columns, :] = sums.blocks
    beyond = rows != sums.columns
    out[sums.columns[beyond], :, rows[beyond], :] = sums.blocks[beyond].transpose(0, 2, 1)
    return out.reshape(n * p, n * p)


@kernel
def _times(
    start: int, stop: int, first: Ints, columns: NDArray[np.int32], blocks: Floats, x: Floats,
    occupied: NDArray[np.bool_], out: Floats,
) -> None:  # fmt: skip
    """Add rows ``start`` to ``stop`` of the upper triangle, and what mirrors them, times x to ``out``."""
    n_slots, n_column = x.shape[1], x.shape[2]
    total = np.empty(n_column)
    for row in range(start, stop):
        for e in range(first[row], first[row + 1]):
            column = columns[e]
            if occupied[column]:
                for i in range(n_slots):
                    for c in range(n_column):
                        total[c] = 0.0
                    for j in range(n_slots):
                        factor = blocks[e, i, j]
                        for c in range(n_column):
                            total[c] += factor * x[column, j, c]
                    for c in range(n_column):
                        out[row, i, c] += total[c]
            if occupied[row] and column != row:
                for j in range(n_slots):
                    for c in range(n_column):
                        total[c] = 0.0
                    for i in range(n_slots):
                        factor = blocks[e, i, j]
                        for c in range(n_column):
                            total[c] += factor * x[row, i, c]
                    for c in range(n_column):
                        out[column, j, c] += total[c]


@kernel
def _times_one(
    start: int, stop: int, first: Ints, columns: NDArray[np.int32], blocks: Floats, x: Floats,
    occupied: NDArray[np.bool_], out: Floats,
) -> None:  # fmt: skip
    """`_times` of one column, in the same order."""
    n_slots = x.shape[1]
    for row in range(start, stop):
        for e in range(first[row], first[row + 1]):
            column = columns[e]
            if occupied[column]:
                for i in range(n_slots):
                    total = 0.0
                    for j in range(n_slots):
                        total += blocks[e, i, j] * x[column, j]
                    out[row, i] += total
            if occupied[row] and column != row:
                for j in range(n_slots):
                    total = 0.0
                    for i in range(n_slots):
                        total += blocks[e, i, j] * x[row, i]
                    out[column, j] += total
