r"""Compiled loops over muons that apply A, e and M per eta bin; `musclecal.correction` gives them arrays.

All take ``pt`` (GeV), ``eta`` and ``charge`` (n,), float32 or float64, and reckon in float64 (``float`` would leave a
float32 as it is). With p^2 over the corrected pT, c = ((1 + A) + q M p) p - e, the factor on pT is p/c. A muon outside
the ranges of pT and eta, with another charge than +1 or -1, with anything that is not finite or with c <= 0 has the
factor 1.

Not for: checks of the arrays, threads, names of variations.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import SearchAxis, bin_in
from musclecal.compiled import kernel
from musclecal.records import Floats

__all__ = ["EtaGrid", "all_variations", "error_factors", "factors", "factors_on_grid", "reasons"]

_MOST_CELLS = 2000
"""Of a grid: its table stays in the first cache."""
_NEIGHBOURS = 40


@dataclass(frozen=True)
class EtaGrid:
    """Cells of equal width of which each lies in one eta bin, found without a comparison with edges.

    The cell of eta is floor(``cells`` eta) - ``first``. It is right to the last bit for every eta if it is so at each
    edge and at the next number below: neither multiplication nor floor falls as eta rises.

    Attributes
    ----------
    cells : per unit of eta. first : of the lowest cell. bins : (n_cell,) the eta bin of each cell.
    """

    cells: float
    first: float
    bins: NDArray[np.intp]

    @classmethod
    def of(cls, edges: Floats) -> "EtaGrid | None":
        """None where no such cells are found, as for edges that are no multiples of one width."""
        narrowest = float(np.diff(edges).min())
        most = int(_MOST_CELLS * narrowest / (edges[-1] - edges[0]))
        below = np.nextafter(edges, -np.inf)
        for n in range(1, most + 1):
            number = np.rint(edges * n / narrowest)
            if np.any(np.abs(edges * n / narrowest - number) > 1e-6):
                continue
            for cells in _close_to(n / narrowest):
                if np.all(np.floor(edges * cells) == number) and np.all(np.floor(below * cells) < number):
                    bins = np.repeat(np.arange(len(edges) - 1), np.diff(number).astype(np.intp))
                    return cls(cells, float(number[0]), bins)
        return None

    def table(self, rows: Floats) -> Floats:
        """(1 + 2 n_cell, 3) what `factors_on_grid` looks up, of (n_eta, 3) 1 + A, e, M.

        The first row leaves pT as it is; then 1 + A, q M, -e of the cells, for positive and for negative muons.
        """
        scale, loss, sagitta = rows[self.bins].T
        of_charges = [np.stack([scale, q * sagitta, -loss], axis=1) for q in (1.0, -1.0)]
        return np.concatenate([[[1.0, 0.0, 0.0]], *of_charges])


def _close_to(value: float) -> list[float]:
    """The value, or the whole number that it is up to rounding, and its neighbours among floating-point numbers."""
    whole = float(round(value))
    up = down = whole if abs(value - whole) < 1e-9 * whole else value
    found = [up]
    for _ in range(_NEIGHBOURS):
        up, down = float(np.nextafter(up, np.inf)), float(np.nextafter(down, -np.inf))
        found += [down, up]
    return found


@kernel
def _corrected(pt: float, charge: float, table: Floats, i: int) -> float:
    """pT squared over the corrected pT; rows of ``table`` are 1 + A, e, M."""
    return (table[i, 0] + charge * table[i, 2] * pt) * pt - table[i, 1]


@kernel
def factors(
    pt: Floats, eta: Floats, charge: Floats, axis: SearchAxis, table: Floats,
    pt_low: float, pt_high: float, out: Floats,
) -> None:  # fmt: skip
    """p/c for any eta axis. Here and below ``table`` is (n_eta, 3) 1 + A, e, M."""
    low, high = axis.edges[1], axis.edges[-2]
    for n in range(out.size):
        p, h, q = np.float64(pt[n]), np.float64(eta[n]), np.float64(charge[n])
        factor = 1.0
        if pt_low <= p < pt_high and low <= h < high and (q == 1.0 or q == -1.0):
            corrected = _corrected(p, q, table, bin_in(axis, h))
            if corrected > 0.0:
                factor = p / corrected
        out[n] = factor


@kernel
def factors_on_grid(
    pt: Floats, eta: Floats, charge: Floats, cells: float, first_cell: float, low: float, high: float, table: Floats,
    pt_low: float, pt_high: float, out: Floats,
) -> None:  # fmt: skip
    """`factors` where there is an `EtaGrid`, with its ``table``; the eta axis is from ``low`` to ``high``.

    In three passes over a piece that stays in the cache: the first and the last, with the division, are vectorised.
    Unsigned indices, as numba looks at the sign of others.
    """
    piece = 128
    row, corrected = np.empty(piece, np.int64), np.empty(piece)
    negative = 0.5 * (table.shape[0] - 1)
    for start in range(0, out.size, piece):
        n = min(piece, out.size - start)
        p, h, q, f = (
            pt[start : start + n], eta[start : start + n], charge[start : start + n], out[start : start + n]
        )  # fmt: skip
        for j in range(n):
            y, z = np.float64(h[j]), np.float64(q[j])
            inside = (y >= low) & (y < high) & (z * z == 1.0)
            x = np.floor(y * cells) - first_cell + 1.0 + (negative if z < 0.0 else 0.0)
            row[j] = np.int64(x if inside else 0.0)
        for j in range(n):
            x, i = np.float64(p[j]), np.uint64(row[j])
            corrected[j] = (table[i, 0] + table[i, 1] * x) * x + table[i, 2]
        for j in range(n):
            x, c = np.float64(p[j]), corrected[j]
            f[j] = x / c if (x >= pt_low) & (x < pt_high) & (c > 0.0) else 1.0


@kernel
def error_factors(
    pt: Floats, eta: Floats, charge: Floats, axis: SearchAxis, table: Floats,
    pt_low: float, pt_high: float, out: Floats,
) -> None:  # fmt: skip
    """d(corrected pT)/d(pT) = (1 + A - 2 e/pT) times the square of the factor."""
    low, high = axis.edges[1], axis.edges[-2]
    for n in range(out.size):
        p, h, q = np.float64(pt[n]), np.float64(eta[n]), np.float64(charge[n])
        slope = 1.0
        if pt_low <= p < pt_high and low <= h < high and (q == 1.0 or q == -1.0):
            i = bin_in(axis, h)
            corrected = _corrected(p, q, table, i)
            if corrected > 0.0:
                factor = p / corrected
                slope = (table[i, 0] - 2.0 * table[i, 1] / p) * factor * factor
        out[n] = slope


@kernel
def all_variations(
    pt: Floats, eta: Floats, charge: Floats, axis: SearchAxis, table: Floats,
    shifts: Floats, pt_low: float, pt_high: float, out: Floats,
) -> None:  # fmt: skip
    """``shifts`` (n_eta, 3, n_var) of A, e, M; out (n, n_var)."""
    low, high = axis.edges[1], axis.edges[-2]
    for n in range(out.shape[0]):
        p, h, q = np.float64(pt[n]), np.float64(eta[n]), np.float64(charge[n])
        out[n, :] = 1.0
        if pt_low <= p < pt_high and low <= h < high and (q == 1.0 or q == -1.0):
            i = bin_in(axis, h)
            corrected = _corrected(p, q, table, i)
            if corrected > 0.0:
                square = q * p * p
                a, e, m = shifts[i, 0], shifts[i, 1], shifts[i, 2]
                row = out[n]
                for v in range(row.size):
                    row[v] = p / (corrected + (a[v] * p - e[v] + square * m[v]))


@kernel
def reasons(
    pt: Floats, eta: Floats, charge: Floats, axis: SearchAxis, table: Floats,
    pt_low: float, pt_high: float, out: NDArray[np.int8],
) -> None:  # fmt: skip
    """Numbers of `Reason`, asked in their order."""
    for n in range(out.size):
        p, h, q = np.float64(pt[n]), np.float64(eta[n]), np.float64(charge[n])
        reason = 0
        if not (np.isfinite(p) and np.isfinite(h) and np.isfinite(q)):
            reason = 1
        elif p < pt_low:
            reason = 2
        elif p >= pt_high:
            reason = 3
        elif not axis.edges[1] <= h < axis.edges[-2]:
            reason = 4
        elif q != 1.0 and q != -1.0:
            reason = 5
        elif not _corrected(p, q, table, bin_in(axis, h)) > 0.0:
            reason = 6
        out[n] = reason
