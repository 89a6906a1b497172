"""Sums of the normal equations of many pairs in blocks of units: who met whom decides which blocks exist.

Each block is summed in the order of the pairs, whatever the chunks and the number of threads: rows are dealt to a fixed
number of parts, and each part scans all pairs of a chunk. Blocks are found by open addressing.

Memory: 8 P^2 + 40 to 80 bytes a block (2 GB for 1e7 blocks at P = 4), and 8 P^2 + 28 more a block when
`BlockSums.finish` makes the record.

Not for: the equations of one pair (`musclecal.geometry.pair_refit`), or their solution (`musclecal.geometry.modules`).
"""

from dataclasses import replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import in_order, kernel
from musclecal.errors import InputError
from musclecal.records import Floats, Ints, ModuleSums

__all__ = ["BlockSums", "merge_sums", "weighted"]

N_PARTS = 16
"""Parts of the rows; not the number of threads."""


class BlockSums:
    """An accumulator for ``n_units`` units of ``n_slots`` parameters."""

    def __init__(self, n_units: int, n_slots: int, n_parts: int = N_PARTS) -> None:
        self.n_units, self.n_slots = n_units, n_slots
        self._vector = np.zeros((n_units, n_slots))
        self._uses = np.zeros(n_units, dtype=np.int64)
        self._parts = [_Part(part, n_parts, n_slots) for part in range(n_parts)]
        self._totals = np.zeros(3)
        self._n_read = 0

    @property
    def n_blocks(self) -> int:
        """Blocks so far."""
        return sum(int(part.count[0]) for part in self._parts)

    def add(
        self,
        units: NDArray[np.int32],
        matrix: Floats,
        vector: Floats,
        good: NDArray[np.bool_],
        chi2: Floats | None = None,
        ndf: Floats | Ints | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Add the good ones of a chunk of pairs.

        Parameters
        ----------
        units : (n_pair, n_max) units that a pair has met, -1 where there is none; one that both tracks met may stand
            there twice.
        matrix : (n_pair, n_max P, n_max P) C_e; of blocks beyond the diagonal only those above it are read.
        vector : (n_pair, n_max P) g_e.
        good : (n_pair,) pairs to be used.
        chi2, ndf : (n_pair,), of which only sums are kept.

        Raises
        ------
        InputError : shapes that do not fit, units that do not exist, or a good pair with numbers that are none.
        """
        n_pair, n_max = units.shape
        n_column = n_max * self.n_slots
        if matrix.shape != (n_pair, n_column, n_column) or vector.shape != (n_pair, n_column):
            raise InputError(
                f"matrices {matrix.shape} and vectors {vector.shape} do not belong to {n_pair} pairs of up to "
                f"{n_max} units with {self.n_slots} parameters"
            )
        units = np.ascontiguousarray(units, dtype=np.int32)
        good = np.ascontiguousarray(good, dtype=np.bool_)
        if np.any(units[good] >= self.n_units):
            raise InputError(f"unit {units[good].max()} in a pair, the detector has {self.n_units} units")
        columns = np.zeros(n_pair) if chi2 is None else chi2, np.zeros(n_pair) if ndf is None else ndf
        extra = np.stack([np.ones(n_pair), *(np.asarray(column, dtype=np.float64) for column in columns)])
        wrong = good & ~(_finite_pairs(units, vector, self.n_slots) & np.isfinite(extra).all(axis=0))
        if wrong.any():
            raise InputError(
                f"pair {np.flatnonzero(wrong)[0]} of the chunk has a vector or chi2 that is no number"
            )
        _sum_in_order(extra, good, self._totals)
        self._n_read += n_pair

        def work(part: _Part) -> None:
            part.add(units, matrix, vector, good, self._vector, self._uses, self.n_units)

        for _ in in_order(work, self._parts, threads):
            pass

    def finish(
        self, values: Floats | None = None, detector: str = "", cuts: str = "", mass: str = "",
        n_events: int | None = None,
    ) -> ModuleSums:  # fmt: skip
        """The sums so far, of fits at the parameters ``values`` (n_units, P), 0 by default; the rest as in the record.

        ``n_events`` is the number of pairs by default.

        Raises
        ------
        InputError : sums that are no numbers.
        """
        keys = np.concatenate([part.entries[: part.count[0]] for part in self._parts])
        order = np.argsort(keys)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        blocks = np.empty((len(keys), self.n_slots, self.n_slots))
        start = 0
        for part in self._parts:
            n = int(part.count[0])
            blocks[place[start : start + n]] = part.blocks[:n]
            start += n
        if not np.isfinite(blocks.sum()):
            raise InputError("the sums of the pairs hold something that is no number")
        rows, columns = np.divmod(keys[order], self.n_units)
        n_pairs, chi2, ndf = self._totals.tolist()
        return ModuleSums(
            np.searchsorted(rows, np.arange(self.n_units + 1)).astype(np.int64),
            columns.astype(np.int32),
            blocks,
            self._vector.copy(),
            self._uses.copy(),
            int(n_pairs),
            chi2,
            ndf,
            np.zeros_like(self._vector) if values is None else np.array(values, dtype=np.float64),
            detector,
            self._n_read,
            cuts,
            mass,
            self._n_read if n_events is None else n_events,
        )


class _Part:
    """The rows with unit % n_parts == part: a table of keys, where their blocks are, and the blocks."""

    def __init__(self, part: int, n_parts: int, n_slots: int) -> None:
        self.part, self.n_parts = part, n_parts
        self.table = np.full((64, 2), -1, dtype=np.int64)
        self.entries = np.empty(32, dtype=np.int64)
        self.blocks = np.zeros((32, n_slots, n_slots))
        self.count = np.zeros(1, dtype=np.int64)

    def add(
        self, units: NDArray[np.int32], matrix: Floats, vector: Floats, good: NDArray[np.bool_],
        total: Floats, uses: Ints, n_units: int,
    ) -> None:  # fmt: skip
        """Add this part's share of a chunk, growing where a pair may need more room than there is."""
        done = 0
        while done < len(units):
            done = _add_rows(
                self.part, self.n_parts, done, units, matrix, vector, good, n_units,
                self.table, self.entries, self.blocks, self.count, total, uses,
            )  # fmt: skip
            if done < len(units):
                self._grow(units.shape[1] ** 2)

    def _grow(self, room: int) -> None:
        n = int(self.count[0])
        capacity = max(n + n // 2, n + room)
        blocks = np.zeros((capacity, *self.blocks.shape[1:]))
        blocks[:n] = self.blocks[:n]
        self.blocks = blocks
        entries = np.empty(capacity, dtype=np.int64)
        entries[:n] = self.entries[:n]
        self.entries = entries
        size = 1 << int(2 * capacity - 1).bit_length()
        if size > len(self.table):
            self.table = np.full((size, 2), -1, dtype=np.int64)
            _fill_table(self.table, self.entries, n)


@kernel
def _slot_of(key: int, table: Ints) -> int:
    """Row of the table that holds ``key``, or the empty one where it belongs; the table is never full."""
    mask = table.shape[0] - 1
    mixed = (key & 0x7FFFFFFF) * 2654435761 + (key >> 31)
    slot = (mixed ^ (mixed >> 32)) & mask
    while table[slot, 0] != key and table[slot, 0] != -1:
        slot = (slot + 1) & mask
    return int(slot)


@kernel
def _fill_table(table: Ints, entries: Ints, n: int) -> None:
    for i in range(n):
        slot = _slot_of(entries[i], table)
        table[slot, 0] = entries[i]
        table[slot, 1] = i


@kernel
def _add_rows(
    part: int, n_parts: int, first: int, units: NDArray[np.int32], matrix: Floats, vector: Floats,
    good: NDArray[np.bool_], n_units: int, table: Ints, entries: Ints, blocks: Floats, count: Ints,
    total: Floats, uses: Ints,
) -> int:  # fmt: skip
    """Add from pair ``first`` on; the pair for which there may not be enough room, or their number."""
    n_pair, n_max = units.shape
    n_slots = blocks.shape[1]
    for pair in range(first, n_pair):
        if not good[pair]:
            continue
        owned = 0
        for a in range(n_max):
            if units[pair, a] >= 0 and units[pair, a] % n_parts == part:
                owned += 1
        if owned == 0:
            continue
        if count[0] + owned * n_max > entries.size:
            return pair
        for a in range(n_max):
            row = units[pair, a]
            if row < 0 or row % n_parts != part:
                continue
            uses[row] += 1
            for i in range(n_slots):
                total[row, i] += vector[pair, a * n_slots + i]
            for b in range(n_max):
                column = units[pair, b]
                if column < row or (column == row and b < a):
                    continue
                key = np.int64(row) * n_units + column
                slot = _slot_of(key, table)
                if table[slot, 0] == -1:
                    table[slot, 0] = key
                    table[slot, 1] = count[0]
                    entries[count[0]] = key
                    count[0] += 1
                block = blocks[table[slot, 1]]
                if a <= b:
                    for i in range(n_slots):
                        for j in range(n_slots):
                            block[i, j] += matrix[pair, a * n_slots + i, b * n_slots + j]
                if b < a or (column == row and a < b):
                    low, high = min(a, b) * n_slots, max(a, b) * n_slots
                    for i in range(n_slots):
                        for j in range(n_slots):
                            block[i, j] += matrix[pair, low + j, high + i]
    return n_pair


@kernel
def _finite_pairs(units: NDArray[np.int32], vector: Floats, n_slots: int) -> NDArray[np.bool_]:
    """(n_pair,) whether the vector is finite where there are units."""
    finite = np.ones(units.shape[0], np.bool_)
    for pair in range(units.shape[0]):
        for a in range(units.shape[1]):
            if units[pair, a] >= 0:
                for i in range(n_slots):
                    if not np.isfinite(vector[pair, a * n_slots + i]):
                        finite[pair] = False
    return finite


@kernel
def _sum_in_order(columns: Floats, good: NDArray[np.bool_], totals: Floats) -> None:
    """Add columns (n, n_pair) to totals (n,), one pair after the other: numpy's sums depend on the chunk."""
    for pair in range(good.size):
        if good[pair]:
            for k in range(totals.size):
                totals[k] += columns[k, pair]


def weighted(sums: ModuleSums, weight: float) -> ModuleSums:
    """The sums of a sample that counts ``weight`` times; its uses and pairs stay what they are.

    Raises
    ------
    InputError : a weight that is not positive.
    """
    if not (np.isfinite(weight) and weight > 0.0):
        raise InputError(f"weight {weight} of a sample: it must be positive")
    return replace(
        sums,
        blocks=weight * sums.blocks,
        vector=weight * sums.vector,
        chi2=weight * sums.chi2,
        ndf=weight * sums.ndf,
    )


def merge_sums(first: ModuleSums, *others: ModuleSums) -> ModuleSums:
    """Sums of several jobs or samples as one, to rounding what one job would have summed.

    Raises
    ------
    InputError : other detectors, parameters per unit, linearisation points, cuts, or targets of the mass.
    """
    return reduce(_merge_two, others, first)


def _merge_two(one: ModuleSums, two: ModuleSums) -> ModuleSums:
    if one.detector != two.detector:
        raise InputError(f"sums of detector {one.detector!r} cannot be merged with those of {two.detector!r}")
    if one.values.shape != two.values.shape:
        raise InputError(f"sums of {one.values.shape} and {two.values.shape} parameters cannot be merged")
    if not np.array_equal(one.values, two.values):
        unit, slot = np.argwhere(one.values != two.values)[0]
        raise InputError(
            f"sums of tracks that were fitted at different module parameters cannot be merged: parameter {slot} of "
            f"unit {unit} is {one.values[unit, slot]} and {two.values[unit, slot]}"
        )
    if one.cuts != two.cuts:
        raise InputError(f"sums of pairs with other cuts cannot be merged: {one.cuts} and {two.cuts}")
    if one.mass and two.mass and one.mass != two.mass:
        raise InputError(f"sums with other masses cannot be merged: {one.mass} and {two.mass}")
    keys = [_keys(sums) for sums in (one, two)]
    union = np.union1d(*keys)
    blocks = np.zeros((len(union), one.n_slots, one.n_slots))
    blocks[np.searchsorted(union, keys[0])] = one.blocks
    blocks[np.searchsorted(union, keys[1])] += two.blocks
    rows, columns = np.divmod(union, one.n_units)
    return ModuleSums(
        np.searchsorted(rows, np.arange(one.n_units + 1)).astype(np.int64),
        columns.astype(np.int32),
        blocks,
        one.vector + two.vector,
        one.uses + two.uses,
        one.n_pairs + two.n_pairs,
        one.chi2 + two.chi2,
        one.ndf + two.ndf,
        one.values,
        one.detector,
        one.n_read + two.n_read,
        one.cuts,
        one.mass or two.mass,
        one.n_events + two.n_events,
    )


def _keys(sums: ModuleSums) -> Ints:
    """(n_block,) row n_units + column."""
    rows = np.repeat(np.arange(sums.n_units, dtype=np.int64), np.diff(sums.first))
    return rows * sums.n_units + sums.columns
