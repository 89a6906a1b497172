r"""The global template fit: which correction takes the data of all 4D bins to the simulation, without mass fits.

In cell m of a 4D bin let n be the data, N the simulation, f the purity of the data (1 without background), rho
the ratio of the expected signals. Given the pooled count, n is binomial, and a correction x of one of the two
muons that takes the data to the simulation appears in the odds,

.. math:: n \sim \mathrm{Binomial}(n + N, p), \qquad \ln\frac{p}{1-p} = \ln\frac{\rho}{f_m} - \sum_p f_m g_{mp} x_p
   + \text{(yield, background, width of the bin)},

g the derivative of ln(signal) by the correction. One step of this logistic regression is a weighted linear fit
with weights (n + N) p (1 - p): simulation statistics are in it, and it is right for cells with few events, and
with none. The bin's own parameters are eliminated exactly, and what the bin says about shifts of its two muons
is a matrix (8, 8) and a vector (8,): A, e, M, width of mu+, then of mu-. Summed over bins, that is all that any
closure, split or joint fit needs (`ScaleInformation`).

Why it has no bias: with g made from data and simulation together, every ingredient but the labels "data" and
"simulation" is a function of the pooled sample, and under the null hypothesis the labels are exchangeable.
Derivatives of the simulation alone correlate with N. They are smoothed over neighbouring eta cells, along the
diagonal where the kinematics of a pair stays the same. What is left of their noise acts as information that is not
there and would dilute the result; the difference of two random halves of the sample says how much it is, and it is
taken out of the response (not of the variance).

The problem is linearised: correct the data with the result, fill and fit again, until nothing changes.

Not for: resonances without simulation.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import TemplateBinning
from musclecal.compiled import in_order, kernel
from musclecal.errors import InputError
from musclecal.fits.templates import MUON_SHIFTS
from musclecal.records import Floats, Ints, TemplateHistogram

__all__ = [
    "BinInformation",
    "LogDerivatives",
    "bin_information",
    "log_derivatives",
    "selected",
    "smoothing_matrix",
]

_SMOOTHING = {"A": (0.6, 0.2), "e": (0.6, 0.2), "M": (0.6, 0.2), "width": (1.2, 0.4)}
"""Smoothing lengths in eta: of the mean of both muons, and of half their difference. With half of these an M common to
all muons came back as 0.74 to 0.80 of itself from 2e5 Z and 8e5 simulated ones (0.95 with these), as 0.98 from 3e6."""
_BLOCK = 256


@dataclass(frozen=True)
class LogDerivatives:
    """Derivatives of ln(counts).

    Attributes
    ----------
    bins : (n_bin,) 4D bins without phi.
    table : (n_bin, n_mass, 8) g of the whole sample.
    noise : (n_bin, n_mass, 8) half of the difference of g in two random halves: as noisy as ``table``, no more.
    """

    binning: TemplateBinning
    bins: Ints
    table: Floats
    noise: Floats


def smoothing_matrix(eta_edges: tuple[float, ...], along: float, across: float) -> Floats:
    """(n_eta^2, n_eta^2) weights of (eta+, eta-) cells in the sum for each of them."""
    middles = 0.5 * (np.array(eta_edges[1:]) + np.array(eta_edges[:-1]))
    plus, minus = (axis.ravel() for axis in np.meshgrid(middles, middles, indexing="ij"))
    mean, half = 0.5 * (plus + minus), 0.5 * (plus - minus)
    distance = (np.subtract.outer(mean, mean) / along) ** 2 + (np.subtract.outer(half, half) / across) ** 2
    return np.asarray(np.exp(-0.5 * distance))


def _event_weight(histogram: TemplateHistogram) -> Floats:
    """(n_bin,) sum of squared weights over sum of weights of each 4D bin: what one event stands for; 1 where empty."""
    counts = histogram.counts.sum(axis=1)
    if histogram.variances is None:
        return np.ones_like(counts)
    occupied = counts > 0.0
    return np.where(occupied, histogram.variances.sum(axis=1) / np.where(occupied, counts, 1.0), 1.0)


def _in_events(histogram: TemplateHistogram, table: Floats) -> Floats:
    """A table of sums of weights as that of a sample without weights with the same statistical power, bin by bin."""
    return np.asarray(table / _event_weight(histogram).reshape(-1, *(1,) * (table.ndim - 1)))


def log_derivatives(data: TemplateHistogram, simulation: TemplateHistogram) -> LogDerivatives:
    """Derivatives of ln(counts) of both samples together, smoothed over neighbouring eta cells.

    Raises
    ------
    InputError : other axes, or a histogram without derivatives.
    """
    binning = data.binning
    if binning != simulation.binning or binning.phi_sectors != 1:
        raise InputError("template fit: data and simulation must have the same axes, without phi sectors")
    if not data.derivatives.size or not simulation.derivatives.size:
        raise InputError("template fit: a histogram without derivatives")
    bins = np.union1d(data.bins, simulation.bins)
    n_eta, n_mass = binning.n_eta, binning.mass_bins
    per_eta_cell = (n_eta**2, binning.n_bins // n_eta**2 * n_mass)

    def smoothed(of_data: Floats, of_simulation: Floats, weights: Floats) -> Floats:
        dense = np.zeros((binning.n_bins, n_mass))
        dense[data.bins] = _in_events(data, of_data)
        dense[simulation.bins] += _in_events(simulation, of_simulation)
        return np.asarray((weights @ dense.reshape(per_eta_cell)).reshape(-1, n_mass)[bins])

    halves = [
        h.derivatives / 2.0 if h.half_derivatives is None else h.half_derivatives for h in (data, simulation)
    ]
    table, noise = (np.empty((len(bins), n_mass, 2 * len(MUON_SHIFTS))) for _ in range(2))
    for name, lengths in _SMOOTHING.items():
        weights = smoothing_matrix(binning.eta_edges, *lengths)
        counts = smoothed(data.counts, simulation.counts, weights)
        occupied = counts > 1e-6
        for p in (MUON_SHIFTS.index(name), len(MUON_SHIFTS) + MUON_SHIFTS.index(name)):
            whole = smoothed(data.derivatives[:, :, p], simulation.derivatives[:, :, p], weights)
            half = smoothed(halves[0][:, :, p], halves[1][:, :, p], weights)
            table[:, :, p] = np.where(occupied, whole / np.where(occupied, counts, 1.0), 0.0)
            noise[:, :, p] = np.where(occupied, (2.0 * half - whole) / np.where(occupied, counts, 1.0), 0.0)
    return LogDerivatives(binning, bins, table, noise)


@kernel
def _yield_ratio(data: Floats, simulation: Floats, purity: Floats) -> float:
    """rho with sum(n - p (n + N)) = 0, p = rho/(rho + f): Newton in ln rho, on a function that only falls.

    Over the cells that are used, those with f > 0.
    """
    ratio = data.sum() / simulation.sum() * purity.mean()
    for _ in range(50):
        excess = slope = 0.0
        for m in range(data.size):
            if not purity[m] > 0.0:
                continue
            pooled = data[m] + simulation[m]
            p = ratio / (ratio + purity[m])
            excess += data[m] - p * pooled
            slope += pooled * p * (1.0 - p)
        if not slope > 0.0:
            break
        step = min(max(excess / slope, -1.0), 1.0)
        ratio *= np.exp(step)
        if abs(step) < 1e-12:
            break
    return ratio


@kernel
def _project_out(work: Floats, weight: Floats, first: int, last: int) -> int:
    """Make columns ``last`` and beyond orthogonal to the columns first .. last - 1; the number that were not empty.

    A column that the ones before it describe to 1e-9 is empty.
    """
    used = 0
    n_row, n_column = work.shape
    for own in range(first, last):
        size = 0.0
        for m in range(n_row):
            size += weight[m] * work[m, own] * work[m, own]
        if not size > 0.0:
            continue
        used += 1
        for c in range(own + 1, n_column):
            overlap = 0.0
            for m in range(n_row):
                overlap += weight[m] * work[m, own] * work[m, c]
            overlap /= size
            rest = 0.0
            whole = 0.0
            for m in range(n_row):
                whole += weight[m] * work[m, c] * work[m, c]
                work[m, c] -= overlap * work[m, own]
                rest += weight[m] * work[m, c] * work[m, c]
            if c < last and rest < 1e-9 * whole:
                for m in range(n_row):
                    work[m, c] = 0.0
    return used


@kernel
def _linearise(
    data: Floats, simulation: Floats, purity: Floats, derivatives: Floats, noise: Floats, with_background: bool,
    own_width: bool, slope_prior: float, first_shift: int, work: Floats, weight: Floats,
) -> int:  # fmt: skip
    """The weighted linear fit of one 4D bin; the number of its rows that count.

    Columns of the work table, derivatives of the logarithm of the odds: yield, width of the bin, background, its
    slope, then the 8 shifts, their noise, and the residual. Its last row holds the prior on the slope.

    With the yield of the bin fitted, the split of its K events is hypergeometric: variances, and with them how
    counts answer to a shift, are K/(K - 1) times those at the fitted yield.
    """
    n_mass, n_shift = derivatives.shape
    last = first_shift + 2 * n_shift
    ratio = _yield_ratio(data, simulation, purity)
    all_events = 0.0
    for m in range(n_mass):
        if purity[m] > 0.0:
            all_events += data[m] + simulation[m]
    n_row = 0
    work[:, :] = 0.0
    weight[:] = 0.0
    if not all_events > 1.0:
        return 0
    finite = 1.0 - 1.0 / all_events
    for m in range(n_mass):
        pooled, f = data[m] + simulation[m], purity[m]
        if not (pooled > 0.0 and f > 0.0):
            continue
        p = ratio / (ratio + f)
        variance = pooled * p * (1.0 - p)
        if not variance > 0.0:
            continue
        n_row += 1
        # Of the pooled sample, a part (1 - f) p is background, which does not move with the signal.
        of_signal = f / (1.0 - (1.0 - f) * p)
        g = of_signal * derivatives[m]
        weight[m] = variance / finite
        work[m, 0] = 1.0
        if own_width:
            work[m, 1] = g[n_shift // 2 - 1] + g[n_shift - 1]
        if with_background:
            work[m, 2] = 1.0 - f
            work[m, 3] = (1.0 - f) * (2.0 * m / (n_mass - 1.0) - 1.0)
        work[m, first_shift : first_shift + n_shift] = g
        work[m, first_shift + n_shift : last] = of_signal * noise[m]
        work[m, last] = finite * (p * pooled - data[m]) / variance
    if with_background:
        weight[n_mass] = 1.0 / slope_prior**2
        work[n_mass, 3] = 1.0
        n_row += 1
    return n_row


@kernel
def _known_share(column: Floats, weight: Floats) -> float:
    """Share of the information on a parameter that is not that of its prior, the last row.

    The prior's own value does not fluctuate from bin to bin: with it the chi2 is smaller by this on average.
    """
    whole = 0.0
    for m in range(column.size):
        whole += weight[m] * column[m] * column[m]
    prior = weight[-1] * column[-1] * column[-1]
    return 1.0 - prior / whole


@kernel
def _products(
    work: Floats, weight: Floats, first_shift: int, normal: Floats, noise: Floats, vector: Floats
) -> float:
    """Normal matrix (8, 8), that of the noise, and vector (8,) of the shifts; the chi2 without any."""
    n_row, last = work.shape[0], work.shape[1] - 1
    n_shift = (last - first_shift) // 2
    chi2 = 0.0
    for m in range(n_row):
        r = work[m, last]
        chi2 += weight[m] * r * r
        for p in range(n_shift):
            weighted = weight[m] * work[m, first_shift + p]
            weighted_noise = weight[m] * work[m, first_shift + n_shift + p]
            vector[p] += weighted * r
            for q in range(p + 1):
                normal[p, q] += weighted * work[m, first_shift + q]
                noise[p, q] += weighted_noise * work[m, first_shift + n_shift + q]
    for p in range(n_shift):
        for q in range(p):
            normal[q, p] = normal[p, q]
            noise[q, p] = noise[p, q]
    return chi2


@kernel
def _reduce_block(
    data: Floats, simulation: Floats, purity: Floats, derivatives: Floats, derivative_noise: Floats, row_of: Ints,
    first_bin: int, last_bin: int, with_background: bool, own_width: bool, slope_prior: float,
    normal: Floats, noise: Floats, vector: Floats, chi2: Floats, ndf: Floats,
) -> None:  # fmt: skip
    """What each 4D bin with data and simulation says about its muons."""
    n_mass, n_shift = data.shape[1], derivatives.shape[2]
    first_shift = 4
    work = np.empty((n_mass + 1, first_shift + 2 * n_shift + 1))
    weight = np.empty(n_mass + 1)
    for b in range(first_bin, last_bin):
        if not (
            data[b].sum() > 0.0 and simulation[b].sum() > 0.0 and data[b].sum() + simulation[b].sum() > 1.0
        ):
            continue
        n_row = _linearise(
            data[b], simulation[b], purity[b], derivatives[row_of[b]], derivative_noise[row_of[b]], with_background,
            own_width, slope_prior, first_shift, work, weight,
        )  # fmt: skip
        ndf[b] = n_row - _project_out(work, weight, 0, first_shift)
        if with_background:
            ndf[b] -= _known_share(work[:, 3], weight)
        chi2[b] = _products(work, weight, first_shift, normal[b], noise[b], vector[b])


@dataclass(frozen=True)
class BinInformation:
    """What every 4D bin says about corrections of its two muons, its own yield (background, width) eliminated.

    Attributes
    ----------
    binning : the axes. bins : (n_bin,) 4D bin numbers with data and simulation.
    normal : (n_bin, 8, 8), vector : (n_bin, 8): chi2(x) = chi2 - 2 vector . x + x . normal . x, with x the correction
        still to be applied (A, e in GeV, M in 1/GeV, additional variance (sigma_k/k)^2) of mu+, then of mu-.
    noise : (n_bin, 8, 8) part of ``normal`` that is noise of the derivatives.
    chi2, ndf : (n_bin,) at x = 0; the mean of chi2 is ndf, which a background with a prior makes a fraction. With
        background and only 5 events in a bin the mean is 0.94 ndf (10: 0.97, 20: 0.985).
    events : (n_bin,) data. events_selected : data inside binning and window, used or not.
    mean_k : (n_bin, 2) of the data, 1/GeV.
    """

    binning: TemplateBinning
    bins: Ints
    normal: Floats
    vector: Floats
    chi2: Floats
    ndf: Floats
    events: Floats
    events_selected: float
    mean_k: Floats
    noise: Floats


def _rows_of(wanted: Ints, histogram: TemplateHistogram, table: Floats) -> Floats:
    """Rows of ``table`` for the 4D bins ``wanted``, zero where the histogram is empty."""
    out = np.zeros((len(wanted), *table.shape[1:]))
    there = np.isin(wanted, histogram.bins)
    out[there] = table[np.searchsorted(histogram.bins, wanted[there])]
    return out


def _derivative_rows(derivatives: LogDerivatives, binning: TemplateBinning, bins: Ints) -> Ints:
    """Row of the derivatives for each 4D bin, whatever its phi sectors."""
    if replace(binning, phi_sectors=1) != derivatives.binning:
        raise InputError("template fit: derivatives of other axes than the histograms'")
    wanted = binning.without_phi(bins)
    missing = ~np.isin(wanted, derivatives.bins)
    if np.any(missing):
        raise InputError(
            f"template fit: no derivatives for {np.count_nonzero(missing)} 4D bins, first {wanted[missing][0]}"
        )
    return np.asarray(np.searchsorted(derivatives.bins, wanted), dtype=np.int64)


def bin_information(
    data: TemplateHistogram,
    simulation: TemplateHistogram,
    derivatives: LogDerivatives,
    *,
    purity: Floats | None = None,
    own_width: bool = False,
    slope_prior: float = 0.5,
    threads: int | None = None,
) -> BinInformation:
    """Reduce all 4D bins to what they say about their muons.

    Parameters
    ----------
    data, simulation : same axes; with phi sectors the derivatives are those of all sectors together.
    purity : (n_bin of the data, n_mass) expected share of signal in the data
        (`musclecal.fits.template_background`); amount and slope of the background are free in every bin. Cells with
        purity 0 are not used. None: there is no background.
    own_width : every 4D bin has a width of its own, instead of a width per eta bin.
    slope_prior : relative change of the background from the middle to the end of the window, one sigma.

    Raises
    ------
    InputError : other axes, derivatives of other samples, or no 4D bin with both data and simulation.
    """
    binning = data.binning
    if binning != simulation.binning:
        raise InputError("template fit: data and simulation have different axes")
    if purity is not None and purity.shape != data.counts.shape:
        raise InputError(f"template fit: purity {purity.shape} for counts {data.counts.shape}")
    bins = np.intersect1d(data.bins, simulation.bins)
    row_of = _derivative_rows(derivatives, binning, bins)
    n = _rows_of(bins, data, _in_events(data, data.counts))
    sim = _rows_of(bins, simulation, _in_events(simulation, simulation.counts))
    pure = np.ones_like(n) if purity is None else _rows_of(bins, data, purity)
    n_shift = derivatives.table.shape[2]
    normal, noise = (np.zeros((len(bins), n_shift, n_shift)) for _ in range(2))
    vector = np.zeros((len(bins), n_shift))
    chi2, ndf = np.zeros(len(bins)), np.zeros(len(bins))

    def reduce_block(first: int) -> None:
        _reduce_block(
            n, sim, pure, derivatives.table, derivatives.noise, row_of, first, min(first + _BLOCK, len(bins)),
            purity is not None, own_width, slope_prior, normal, noise, vector, chi2, ndf,
        )  # fmt: skip

    for _ in in_order(reduce_block, range(0, len(bins), _BLOCK), threads):
        pass
    if own_width:
        of_width = [p for p in range(n_shift) if MUON_SHIFTS[p % len(MUON_SHIFTS)] == "width"]
        vector[:, of_width] = 0.0
        for matrix in (normal, noise):
            matrix[:, of_width] = matrix[:, :, of_width] = 0.0
    used = ndf > 0.0
    if not np.any(used):
        raise InputError("template fit: no 4D bin has both data and simulation")
    return BinInformation(
        binning, bins[used], normal[used], vector[used], chi2[used], ndf[used],
        _rows_of(bins, data, data.counts).sum(axis=1)[used], float(data.counts.sum()) + data.n_beyond,
        _rows_of(bins, data, data.mean_k)[used], noise[used],
    )  # fmt: skip


def selected(information: BinInformation, which: NDArray[np.bool_]) -> BinInformation:
    """Some of the 4D bins; the events of the others no longer count as selected."""
    lost = float(information.events[~which].sum())
    i = information
    return BinInformation(
        i.binning, i.bins[which], i.normal[which], i.vector[which], i.chi2[which], i.ndf[which],
        i.events[which], i.events_selected - lost, i.mean_k[which], i.noise[which],
    )  # fmt: skip
