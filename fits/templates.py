r"""Fill pairs into the histograms of the template fit: counts, and how they change when momenta are corrected.

Each pair is filled five times in one pass: as it is, and with the curvature of mu+ or of mu- times :math:`1 \pm h`.
The differences are the derivatives of the counts, with all migration between cells inside them:

.. math:: \frac{\partial n}{\partial\theta_p} = \frac{1}{2h}\sum_\mathrm{pairs} w_p\,
   \bigl[\mathbf 1(+h) - \mathbf 1(-h)\bigr], \qquad
   \frac{\partial n}{\partial v} = \frac{1}{2h^2}\sum_\mathrm{pairs}
   \bigl[\mathbf 1(+h) + \mathbf 1(-h) - 2\cdot\mathbf 1(0)\bigr]

with w = 1, -k, q/k for A, e, M (`musclecal.scale`), and v an additional :math:`(\sigma_k/k)^2`, symmetric in k as
the resolution is: steps symmetric in ln k would give every v a shift A = v/2.

The derivatives of one random half of the sample are kept beside those of the whole: their difference tells the noise.

All sums are integers: the same bits for any chunks, threads and order of files.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import TemplateBinning, bin_of, sector_of
from musclecal.compiled import in_order, kernel
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.fits.sparse_sums import SparseSums
from musclecal.kinematics import mass_of_opening
from musclecal.records import CutFlow, DimuonEvents, Floats, Ints, TemplateHistogram
from musclecal.scale import correction_gradient

__all__ = ["MUON_SHIFTS", "fill_templates"]

MUON_SHIFTS = ("A", "e", "M", "width")
"""What one muon can be shifted by: the correction's parameters, and an additional (sigma_k/k)^2."""

# Units of the integer sums: a weight, and w_p of A, e, M and of the width.
_WEIGHT_UNIT = 2.0**32
_SHIFT_UNITS = 2.0 ** np.array([32, 32, 22, 32])
_LARGEST_SUM = 1e9
_OVERFLOW = (
    f"template histogram: weights or their squares sum to more than {_LARGEST_SUM:g}; fill fewer events"
)


@kernel
def _locate(
    pt_plus: Floats, eta_plus: Floats, phi_plus: Floats, pt_minus: Floats, eta_minus: Floats, phi_minus: Floats,
    eta_edges: Floats, asymmetry_edges: Floats, pt_edges: Floats, muon_pt: Floats, phi_sectors: int,
    m_low: float, m_high: float, n_mass: int, m_ref: float, factors: Floats, mu: float, cells: Ints,
) -> None:  # fmt: skip
    """4D bin number x n_mass + mass bin of each pair, for each row (on pt+, on pt-) of ``factors``.

    -1 outside the muons' pT, eta and the mass window; -2 inside them, but outside the asymmetry or mean pT axis.
    """
    n_region = (eta_edges.size - 1) * phi_sectors
    n_asymmetry, n_pt = asymmetry_edges.size - 1, pt_edges.size - 1
    per_gev = n_mass / (m_high - m_low)
    for n in range(pt_plus.size):
        cells[n, :] = -1
        i, j = bin_of(eta_edges, eta_plus[n]), bin_of(eta_edges, eta_minus[n])
        if min(i, j) < 0:
            continue
        if phi_sectors > 1:
            i = i * phi_sectors + sector_of(phi_plus[n], phi_sectors)
            j = j * phi_sectors + sector_of(phi_minus[n], phi_sectors)
        half_d_eta = math.sinh(0.5 * (eta_plus[n] - eta_minus[n]))
        half_d_phi = math.sin(0.5 * (phi_plus[n] - phi_minus[n]))
        opening = 2.0 * (half_d_eta * half_d_eta + half_d_phi * half_d_phi)
        cosh_plus, cosh_minus = math.cosh(eta_plus[n]), math.cosh(eta_minus[n])
        for shift in range(factors.shape[0]):
            p, q = pt_plus[n] * factors[shift, 0], pt_minus[n] * factors[shift, 1]
            mass = mass_of_opening(p, cosh_plus, q, cosh_minus, opening, mu)
            if not m_low <= mass < m_high:
                continue
            p, q = p * m_ref / mass, q * m_ref / mass
            if not (muon_pt[0] <= p < muon_pt[1] and muon_pt[0] <= q < muon_pt[1]):
                continue
            a = bin_of(asymmetry_edges, (p - q) / (p + q))
            b = bin_of(pt_edges, 0.5 * (p + q))
            if a < 0 or b < 0:
                cells[n, shift] = -2
                continue
            m = min(int((mass - m_low) * per_gev), n_mass - 1)
            cells[n, shift] = (((i * n_region + j) * n_asymmetry + a) * n_pt + b) * n_mass + m


@kernel
def _accumulate(
    cells: Ints, k_plus: Floats, k_minus: Floats, first_half: NDArray[np.bool_], weights: Floats, row_of: Ints,
    n_mass: int, units: Floats, weight_unit: float, counts: Ints, variances: Ints, derivatives: Ints,
    half_derivatives: Ints, sums: Ints,
) -> None:  # fmt: skip
    """Add every located pair. Columns of ``cells`` after the first: +h, -h of mu+, then of mu-."""
    weighted = weights.size > 0
    shift_weight = np.empty(4)
    for n in range(cells.shape[0]):
        w = weights[n] if weighted else 1.0
        home = cells[n, 0]
        if home >= 0:
            row, m = row_of[home // n_mass], home % n_mass
            if weighted:
                counts[row, m] += int(round(w * weight_unit))
                variances[row, m] += int(round(w * w * weight_unit))
            else:
                counts[row, m] += 1
            sums[row, 0] += int(round(w * k_plus[n] * units[1]))
            sums[row, 1] += int(round(w * k_minus[n] * units[1]))
            sums[row, 2] += int(round(w * units[1]))
        for shift in range(1, cells.shape[1]):
            away = cells[n, shift]
            if away == home:
                continue
            muon = (shift - 1) // 2
            sign = 1 if shift % 2 == 1 else -1
            k, charge = (k_plus[n], 1.0) if muon == 0 else (k_minus[n], -1.0)
            shift_weight[0], shift_weight[1], shift_weight[2] = correction_gradient(k, charge)
            shift_weight[3] = float(sign)
            for cell, step in ((away, sign), (home, -sign)):
                if cell < 0:
                    continue
                row, m = row_of[cell // n_mass], cell % n_mass
                for c in range(4):
                    change = step * int(round(w * shift_weight[c] * units[c]))
                    derivatives[row, m, 4 * muon + c] += change
                    if first_half[n]:
                        half_derivatives[row, m, 4 * muon + c] += change


def _factors(step: float, derivatives: bool) -> Floats:
    """Factors on (pt+, pt-) of the fills: curvature of mu+, then of mu-, times 1 + step and 1 - step."""
    down, up = 1.0 / (1.0 + step), 1.0 / (1.0 - step)
    rows = [[1.0, 1.0], [down, 1.0], [up, 1.0], [1.0, down], [1.0, up]]
    return np.array(rows if derivatives else rows[:1])


def _first_half(events: DimuonEvents) -> NDArray[np.bool_]:
    """Whether a pair is in the first of two random halves of the sample: a hash of the bits of its directions.

    A function of the pair alone, whatever the file's rounding and whatever correction its momenta had (splitmix64:
    Steele, Lea and Flood, OOPSLA 2014).
    """
    mixed = np.zeros(len(events), dtype=np.uint64)
    for column in (events.plus.eta, events.plus.phi, events.minus.eta, events.minus.phi):
        mixed += np.ascontiguousarray(column, dtype=np.float64).view(np.uint64) + np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.asarray(mixed & np.uint64(1) == 0)


def _fill_chunk(
    events: DimuonEvents, weights: Floats | None, binning: TemplateBinning, step: float, derivatives: bool
) -> tuple[SparseSums, int]:
    n, n_mass = len(events), binning.mass_bins
    factors = _factors(step, derivatives)
    cells = np.empty((n, len(factors)), dtype=np.int64)
    plus, minus = events.plus, events.minus
    _locate(
        plus.pt, plus.eta, plus.phi, minus.pt, minus.eta, minus.phi,
        np.asarray(binning.eta_edges), np.asarray(binning.asymmetry_edges), np.asarray(binning.pt_edges),
        np.asarray(binning.muon_pt), binning.phi_sectors, *binning.mass_window, n_mass, binning.mass_reference,
        factors, MUON_MASS, cells,
    )  # fmt: skip
    occupied = np.zeros(binning.n_bins, dtype=np.bool_)
    occupied[cells[cells >= 0] // n_mass] = True
    bins = np.flatnonzero(occupied)
    row_of = np.full(binning.n_bins, -1, dtype=np.int64)
    row_of[bins] = np.arange(len(bins))
    shape = (len(bins), n_mass)
    tables = {
        "counts": np.zeros(shape, dtype=np.int64),
        "variances": np.zeros(shape if weights is not None else (len(bins), 0), dtype=np.int64),
        "derivatives": np.zeros((*shape, 2 * len(MUON_SHIFTS) if derivatives else 0), dtype=np.int64),
        "half_derivatives": np.zeros((*shape, 2 * len(MUON_SHIFTS) if derivatives else 0), dtype=np.int64),
        "sums": np.zeros((len(bins), 3), dtype=np.int64),
    }
    _accumulate(
        cells, 1.0 / plus.pt, 1.0 / minus.pt, _first_half(events), np.empty(0) if weights is None else weights,
        row_of, n_mass, _SHIFT_UNITS, _WEIGHT_UNIT, *tables.values(),
    )  # fmt: skip
    n_beyond = int(np.count_nonzero(cells[:, 0] == -2))
    return SparseSums(bins, tables, int(np.count_nonzero(cells[:, 0] < 0))), n_beyond


def fill_templates(
    chunks: Iterable[DimuonEvents],
    binning: TemplateBinning,
    *,
    step: float,
    derivatives: bool = True,
    weight: Callable[[DimuonEvents], Floats] | None = None,
    cut_flows: Callable[[], Mapping[str, CutFlow]] = dict,
    threads: int | None = None,
) -> TemplateHistogram:
    """Fill all chunks: data, or simulation, with the derivatives of the counts by A, e, M and width of both muons.

    Parameters
    ----------
    chunks : selected events, not cut on mass or pT where the axes cut.
    step : h, relative shift of the curvature; about half of the mass resolution is good.
    derivatives : False fills the counts alone (for phi sectors, which share the derivatives of the whole).
    weight : gives the weights (n_event,) of a chunk, 0 or 1e-3 to 1e4; None counts events.
    cut_flows : asked at the end for the cut flows to keep with the histogram.

    Raises
    ------
    InputError : no event inside the binning, a step or a weight out of range.
    OverflowError : more than 1e9 events, or sum of weights or of squared weights.
    """

    if not 0.0 < step < 0.1:
        raise InputError(f"step: a relative shift between 0 and 0.1, got {step}")

    def work(events: DimuonEvents) -> tuple[SparseSums, int, float]:
        weights = None if weight is None else np.ascontiguousarray(weight(events), dtype=np.float64)
        if weights is not None and not np.all((weights == 0.0) | ((weights >= 1e-3) & (weights < 1e4))):
            raise InputError("weights must be 0 or between 1e-3 and 1e4: divide them by their mean")
        largest = len(events) if weights is None else np.maximum(weights, weights**2).sum()
        return *_fill_chunk(events, weights, binning, step, derivatives), float(largest)

    total: SparseSums | None = None
    filled, n_beyond = 0.0, 0
    for partial, beyond, largest in in_order(work, chunks, threads):
        filled += largest
        n_beyond += beyond
        if filled > _LARGEST_SUM:
            raise OverflowError(_OVERFLOW)
        total = partial if total is None else total + partial
    if total is None or not total.tables["counts"].any():
        raise InputError("no event inside the binning and the mass window: check units, windows and edges")
    unit = 1.0 if weight is None else _WEIGHT_UNIT
    per_step = np.tile(np.array([2.0 * step] * 3 + [2.0 * step**2]) * _SHIFT_UNITS, 2)[
        : 8 if derivatives else 0
    ]
    events_of_row = np.maximum(total.tables["sums"][:, 2:] / _SHIFT_UNITS[1], 1e-300)
    return TemplateHistogram(
        binning=binning,
        bins=total.bins,
        counts=total.tables["counts"] / unit,
        variances=None if weight is None else total.tables["variances"] / unit,
        derivatives=total.tables["derivatives"] / per_step,
        half_derivatives=total.tables["half_derivatives"] / per_step,
        mean_k=total.tables["sums"][:, :2] / _SHIFT_UNITS[1] / events_of_row,
        n_outside=total.n_outside,
        cut_flows=cut_flows(),
        n_beyond=n_beyond,
    )
