"""Compiled loops that count muon pairs into 4D x mass, with their sums; `musclecal.fits.histogram` gives them arrays.

A block of pairs goes through three loops: arithmetic, which has no branch and is vectorised; the search of bins;
addition, short enough that the processor waits for several places in memory at once.

Not for: threads, chunks of files, what the sums mean.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import SearchAxis, find_bins
from musclecal.compiled import innermost, kernel
from musclecal.kinematics import pair_terms
from musclecal.records import Floats, Ints

__all__ = ["FillAxes", "FillTables", "add_pairs"]

Int32s = NDArray[np.int32]

_BLOCK = 256
N_VALUES = 8
"""Summed values of a pair: k+, k-, 1/k+, 1/k-, f+, f-, 1/k+^2, 1/k-^2."""


class FillAxes(NamedTuple):
    """``mass`` is an axis of m^2 (GeV^2), ``generator`` one of the generator-level m (GeV).

    ``pt_reference`` (GeV): the pT axes hold pT pt_reference/m; 0: they hold pT.
    """

    eta: SearchAxis
    pt: SearchAxis
    mass: SearchAxis
    generator: SearchAxis
    pt_reference: float


class FillTables(NamedTuple):
    """Integer sums of the 4D bins met so far, a row each: ``row_of`` (n_bins,) says which, -1 none.

    ``state`` (2,) is the number of rows in use, and of pairs in no bin. ``variances`` has no columns without weights,
    ``generator`` none without generator-level masses; ``sums`` are (n_row, N_VALUES).
    """

    row_of: Ints
    state: Ints
    counts: Ints
    variances: Ints
    generator: Ints
    sums: Ints


@kernel
def _compute(
    pt1: Floats, eta1: Floats, phi1: Floats, pt2: Floats, eta2: Floats, phi2: Floats, mu: float, units: Floats,
    mass2: Floats, values: Floats,
) -> None:  # fmt: skip
    """m^2 and the values (N_VALUES, n) of pairs, in units of the integer sums."""
    k_unit, pt_unit, f_unit, square_unit = units[0], units[2], units[4], units[6]
    for n in range(pt1.size):
        p, q = pt1[n], pt2[n]
        mass2[n], f1, f2 = pair_terms(p, eta1[n], phi1[n], q, eta2[n], phi2[n], mu)
        inverse = k_unit / (p * q)
        values[0, n], values[1, n] = inverse * q, inverse * p
        values[2, n], values[3, n] = pt_unit * p, pt_unit * q
        values[4, n], values[5, n] = f_unit * f1, f_unit * f2
        values[6, n], values[7, n] = square_unit * (p * p), square_unit * (q * q)


@kernel
def _weigh(values: Floats, weights: Floats) -> None:
    """Whole numbers of units, of pairs with a weight if there are any weights."""
    n_values, n = values.shape
    if weights.size:
        for c in range(n_values):
            for i in range(weights.size):
                values[c, i] *= weights[i]
    for c in range(n_values):
        for i in range(n):
            values[c, i] = np.rint(values[c, i])


@kernel
def _rescale(pt: Floats, reference: float, mass2: Floats, out: Floats) -> None:
    """pT reference/m."""
    for n in range(pt.size):
        out[n] = pt[n] * (reference / math.sqrt(mass2[n]))


@innermost
def _locate(
    pt1: Floats, eta1: Floats, pt2: Floats, eta2: Floats, mass2: Floats, gen_mass: Floats, axes: FillAxes, state: Ints,
    places: Int32s, which: Ints, rows: Ints, bins: Ints, gen_bins: Ints,
) -> int:  # fmt: skip
    """``which`` pairs are in a 4D bin, and have a bin (else -1) of mass or generator-level mass; their number.

    ``places`` (6, n) is room.
    """
    n_eta, n_pt = np.int32(axes.eta.edges.size - 3), np.int32(axes.pt.edges.size - 3)
    one, two, low, high, mass_bin, gen_bin = places[0], places[1], places[2], places[3], places[4], places[5]
    find_bins(axes.eta, eta1, one)
    find_bins(axes.eta, eta2, two)
    find_bins(axes.pt, pt1, low)
    find_bins(axes.pt, pt2, high)
    find_bins(axes.mass, mass2, mass_bin)
    for i in range(pt1.size):
        inside = ((one[i] | two[i] | low[i] | high[i]) >= 0) & (mass2[i] > 0.0)
        row = ((one[i] * n_eta + two[i]) * n_pt + low[i]) * n_pt + high[i]
        one[i] = row if inside else np.int32(-1)
        gen_bin[i] = -1
    if gen_mass.size:
        find_bins(axes.generator, gen_mass, gen_bin)
    found, lost = 0, 0
    for i in range(pt1.size):
        pair, here = np.uintp(i), np.uintp(found)
        row, column, generated = one[pair], mass_bin[pair], gen_bin[pair]
        which[here], rows[here], bins[here], gen_bins[here] = i, row, column, generated
        lost += (row | column) < 0
        found += (row >= 0) & ((column & generated) >= 0)
    state[1] += lost
    return found


@innermost
def _find_rows(n: int, rows: Ints, row_of: Ints, state: Ints) -> None:
    """4D bins to rows of the tables; a new row for a 4D bin that is met for the first time."""
    for i in range(n):
        if row_of[rows[i]] < 0:
            row_of[rows[i]] = state[0]
            state[0] += 1
        rows[i] = row_of[rows[i]]


@innermost
def _add_counts(n: int, rows: Ints, bins: Ints, gen_bins: Ints, counts: Ints, generator: Ints) -> None:
    for i in range(n):
        if bins[i] >= 0:
            counts[rows[i], bins[i]] += 1
        if gen_bins[i] >= 0:
            generator[rows[i], gen_bins[i]] += 1


@innermost
def _add_weights(
    n: int, which: Ints, rows: Ints, bins: Ints, gen_bins: Ints, weights: Floats, unit: float, counts: Ints,
    variances: Ints, generator: Ints,
) -> int:  # fmt: skip
    """Below 0 where a sum has passed 2^63."""
    sign = 0
    for i in range(n):
        row, column, w = rows[i], bins[i], weights[which[i]]
        if column >= 0:
            counts[row, column] += int(np.rint(w * unit))
            variances[row, column] += int(np.rint(w * w * unit))
            sign |= counts[row, column] | variances[row, column]
        if gen_bins[i] >= 0:
            generator[row, gen_bins[i]] += int(np.rint(w * unit))
            sign |= generator[row, gen_bins[i]]
    return sign


@innermost
def _add_values(n: int, which: Ints, rows: Ints, bins: Ints, values: Floats, sums: Ints) -> int:
    """``sums`` is flat. Below 0 where a sum has passed 2^63."""
    sign = 0
    for i in range(n):
        if bins[i] >= 0:
            # Unsigned numbers: numba asks no index whether it counts from the end
            first, pair = np.uintp(rows[i]) * np.uintp(N_VALUES), np.uintp(which[i])
            for c in range(N_VALUES):
                place = first + np.uintp(c)
                sums[place] += int(values[np.uintp(c), pair])
                sign |= sums[place]
    return sign


@kernel
def add_pairs(
    pt1: Floats, eta1: Floats, phi1: Floats, pt2: Floats, eta2: Floats, phi2: Floats, gen_mass: Floats, weights: Floats,
    mu: float, axes: FillAxes, units: Floats, weight_unit: float, tables: FillTables,
) -> bool:  # fmt: skip
    """Add pairs (n,) to tables that have room for n more rows; False where a sum has passed 2^63.

    ``units`` (N_VALUES,) of the sums, the same for muon 2 as for muon 1. Without weights counts are plain counts.
    """
    row_of, state, counts, variances, generator, sums = tables
    flat = sums.reshape(-1)
    values, mass2, scaled = np.empty((N_VALUES, _BLOCK)), np.empty(_BLOCK), np.empty((2, _BLOCK))
    which, rows, bins, gen_bins = np.empty((4, _BLOCK), dtype=np.int64)
    places = np.empty((6, _BLOCK), dtype=np.int32)
    sign = 0
    for start in range(0, pt1.size, _BLOCK):
        stop = min(start + _BLOCK, pt1.size)
        p, q, a, b = pt1[start:stop], pt2[start:stop], eta1[start:stop], eta2[start:stop]
        w = weights[start:stop]
        _compute(p, a, phi1[start:stop], q, b, phi2[start:stop], mu, units, mass2, values)
        _weigh(values, w)
        if axes.pt_reference > 0.0:
            _rescale(p, axes.pt_reference, mass2, scaled[0])
            _rescale(q, axes.pt_reference, mass2, scaled[1])
            p, q = scaled[0, : stop - start], scaled[1, : stop - start]
        n = _locate(p, a, q, b, mass2, gen_mass[start:stop], axes, state, places, which, rows, bins, gen_bins)
        _find_rows(n, rows, row_of, state)
        if weights.size:
            sign |= _add_weights(n, which, rows, bins, gen_bins, w, weight_unit, counts, variances, generator)
        else:
            _add_counts(n, rows, bins, gen_bins, counts, generator)
        sign |= _add_values(n, which, rows, bins, values, flat)
        if sign < 0:
            return False
    return True
