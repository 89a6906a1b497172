r"""Mass widths of 4D bins in data and in simulation, as squares that may be averaged: linear in the counts, with errors
that do not follow their fluctuations.

Every bin is fitted with a strong prior on ln w around a width that is smooth over the bins. How far the fit pulls on
the prior is the profile score U, and :math:`w^2 (1 + 2 (U - E[U])/(N I))` is the estimate
(`musclecal.fits.estimator`). It may be negative in a bin of few events: it is one step of the fit of all bins together,
not the best width of this bin.

Both samples are fitted with the pooled generator template. What that model does wrong (widths that differ inside
a bin, migration across its edges) it does to both, so differences are to be trusted further than values.
"""

from dataclasses import dataclass

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.estimator import score_moments
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.mass_fits import MassModel, common_rows, fit_reference, signal_model
from musclecal.fits.shapes import SignalModel
from musclecal.records import BinFits, Floats, Ints, MassHistogram, MassWidths
from musclecal.resonances import Resonance

__all__ = ["fit_widths", "share_of_muons"]

_START_PRIOR = 0.5
_PRIOR = 0.02
"""Relative standard deviations of the prior on the width: for the first look, and about the smooth width."""
_ROUNDS = 2


def share_of_muons(n_eta: int, i: Ints, j: Ints, f: Floats, plus: Floats, minus: Floats) -> Floats:
    """(n_bin, n_eta): f+^2 plus/4 at the eta bin of mu+ and f-^2 minus/4 at that of mu- (physics.md section 3)."""
    rows = np.arange(len(i))
    share = np.zeros((len(i), n_eta))
    np.add.at(share, (rows, i), 0.25 * f[:, 0] ** 2 * plus)
    np.add.at(share, (rows, j), 0.25 * f[:, 1] ** 2 * minus)
    return share


@dataclass(frozen=True)
class _Bins:
    """Where the muons of the fitted bins are, and the design of a smooth w^2 = a_i + c_i pT^2."""

    histogram: MassHistogram
    rows: Ints

    def smooth(self, square: Floats, relative: Floats, good: Floats) -> Floats:
        """(n_bin,) smooth w^2 from ``square`` with ``relative`` errors, of the bins where ``good`` is one."""
        h, rows = self.histogram, self.rows
        i, j, _, _ = h.binning.unravel(h.bins[rows])
        n_eta, f, pt2 = h.binning.n_eta, h.mean_f[rows], h.mean_pt[rows] ** 2
        one = np.ones(len(rows))
        hits = share_of_muons(n_eta, i, j, f, *(pt2 / pt2.mean()).T)
        design = np.concatenate([share_of_muons(n_eta, i, j, f, one, one), hits], axis=1)
        weight = good / relative
        # That the width changes little with pT holds the eta bins that cannot tell.
        held = 0.1 * np.sqrt(np.sum(weight**2) / n_eta) * np.eye(2 * n_eta)[n_eta:]
        middle = np.average(square, weights=weight**2)
        expected = np.full(len(rows), middle)
        for _ in range(3):
            now = weight / expected
            left = np.concatenate([now[:, None] * design, held / middle])
            right = np.concatenate([now * square, np.zeros(n_eta)])
            expected = design @ np.linalg.lstsq(left, right, rcond=None)[0]
            expected = np.clip(expected, 0.2 * middle, 5.0 * middle)
        return np.asarray(expected)


@dataclass(frozen=True)
class _Squares:
    """w^2 of one sample: estimate, smooth, relative error, whether the fit is good."""

    square: Floats
    smooth: Floats
    relative: Floats
    good: Floats


def _first_look(fits: BinFits, bins: _Bins) -> Floats:
    """Smooth w^2 from plain fits."""
    good = fits.converged.astype(np.float64)
    if not np.any(good):
        raise InputError("widths: no mass fit has converged")
    return bins.smooth(np.where(good > 0.0, fits.width**2, 1.0), 1.0 / np.sqrt(fits.n_events), good)


def _one_step(
    fits: BinFits,
    model: SignalModel,
    kind: str,
    bins: _Bins,
    before: Floats,
    noise: Floats,
    signal_noise: bool,
) -> _Squares:
    """Estimates from fits with a prior about the smooth w^2 ``before``; ``noise``: relative variance of the counts."""
    good = fits.converged
    parameters = np.where(good[:, None], fits.parameters, [1.0, 0.01, 0.0, 0.0])
    square = parameters[:, 1] ** 2
    score = 0.5 * np.log(square / before) / _PRIOR**2
    parameters[:, 1] = np.sqrt(before)
    moments = score_moments(model, kind, parameters, signal_noise=signal_noise)
    estimate = square * (1.0 + 2.0 * (score / fits.n_events - noise * moments.mean) / moments.information)
    relative = 2.0 * np.sqrt(noise * moments.spread) / moments.information
    estimate, weight = np.where(good, estimate, before), good.astype(np.float64)
    return _Squares(estimate, bins.smooth(estimate, relative, weight), relative, weight)


def fit_widths(
    data: MassHistogram,
    simulation: MassHistogram,
    resonance: Resonance,
    *,
    background: str | None = None,
    min_events: int = 50,
) -> MassWidths:
    """Widths of all 4D bins with at least ``min_events`` in both samples.

    ``background``: none, exponential or linear; that of the resonance by default.

    Raises
    ------
    InputError : no such bin, no generator-level masses, no averages of pT^2 in the histogram, no good fit.
    """
    kind = resonance.background if background is None else background
    if data.mean_pt2 is None:
        raise InputError("widths: the histogram of the data has no averages of pT^2: fill it again")
    model = MassModel("pooled-template", kind, min_events)
    rows, sim_rows = common_rows(data, simulation, min_events)
    bins = _Bins(data, rows)
    signal = signal_model(model, simulation, sim_rows, resonance)
    counts = np.asarray(data.counts[rows], dtype=np.float64)
    simulated = np.asarray(simulation.counts[sim_rows], dtype=np.float64)
    variances = simulated if simulation.variances is None else simulation.variances[sim_rows]
    total, total_simulated = counts.sum(axis=1), simulated.sum(axis=1)

    typical = np.full(len(rows), signal.start_width)
    pure = fit_bins(simulated, signal, "none", variances=variances, width_prior=(typical, _START_PRIOR))
    smooth = {"simulation": _first_look(pure, bins)}
    start = np.column_stack(
        [np.ones(len(rows)), np.sqrt(smooth["simulation"]), np.full((len(rows), 2), [0.1, 0.0])]
    )
    prior = (start[:, 1], _START_PRIOR)
    smooth["data"] = _first_look(fit_bins(counts, signal, kind, start=start, width_prior=prior), bins)
    for _ in range(_ROUNDS):
        prior = (np.sqrt(smooth["data"]), _PRIOR)
        measured = fit_bins(counts, signal, kind, start=start, width_prior=prior)
        prior = (np.sqrt(smooth["simulation"]), _PRIOR)
        if kind == "none":
            reference = fit_bins(simulated, signal, kind, variances=variances, start=start, width_prior=prior)
        else:
            reference = fit_reference(simulated, variances, signal, kind, measured, prior)
        of_data = _one_step(measured, signal, kind, bins, smooth["data"], 1.0 / total, False)
        fraction = np.where(reference.converged, reference.parameters[:, 2], 0.0)
        noise = variances.sum(axis=1) / total_simulated**2 * (1.0 - fraction)
        of_simulation = _one_step(reference, signal, kind, bins, smooth["simulation"], noise, kind != "none")
        smooth = {"data": of_data.smooth, "simulation": of_simulation.smooth}
    good = (of_data.good > 0.0) & (of_simulation.good > 0.0)
    if not np.any(good):
        raise InputError(f"widths: no mass fit of {resonance.name} has converged")
    used = rows[good]
    return MassWidths(
        binning=data.binning,
        resonance=resonance.name,
        background=kind,
        bins=data.bins[used],
        data=of_data.square[good],
        data_error=(of_data.relative * of_data.smooth)[good],
        simulation=of_simulation.square[good],
        simulation_error=(of_simulation.relative * of_simulation.smooth)[good],
        n_events=total[good],
        mean_pt=data.mean_pt[used],
        mean_pt2=data.mean_pt2[used],
        mean_f=data.mean_f[used],
        events_fraction=float(total[good].sum() / max(data.n_events, 1.0)),
    )
