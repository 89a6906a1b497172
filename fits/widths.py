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


def _one_step(
    fits: BinFits,
    model: SignalModel,
    kind: str,
    bins: _Bins,
    before: Floats,
    noise: Floats,
    *,
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


@dataclass(frozen=True)
class _Samples:
    """The masses of both samples in the fitted bins, and how they are fitted."""

    counts: Floats
    simulated: Floats
    variances: Floats
    signal: SignalModel
    kind: str
    bins: _Bins

    def _start(self, square: Floats) -> Floats:
        """(n_bin, 4) where fits with widths near the root of ``square`` start."""
        one = np.ones(len(square))
        return np.column_stack([one, np.sqrt(square), 0.1 * one, 0.0 * one])

    def _fit(self, counts: Floats, kind: str, square: Floats, prior: float) -> BinFits:
        start = self._start(square)
        return fit_bins(counts, self.signal, kind, start=start, width_prior=(start[:, 1], prior))

    def first_look(self) -> tuple[Floats, Floats]:
        """Smooth w^2 of data and of simulation from plain fits."""
        typical = np.full(len(self.counts), self.signal.start_width**2)
        simulation = self._smooth(self._fit(self.simulated, "none", typical, _START_PRIOR))
        return self._smooth(self._fit(self.counts, self.kind, simulation, _START_PRIOR)), simulation

    def _smooth(self, fits: BinFits) -> Floats:
        good = fits.converged.astype(np.float64)
        if not np.any(good):
            raise InputError("widths: no mass fit has converged: check mass_window and background")
        return self.bins.smooth(np.where(good > 0.0, fits.width**2, 1.0), 1.0 / np.sqrt(fits.n_events), good)

    def one_step(self, of_data: Floats, of_simulation: Floats) -> tuple[_Squares, _Squares]:
        """Estimates of both samples, from fits about smooth w^2 of each."""
        measured = self._fit(self.counts, self.kind, of_data, _PRIOR)
        if self.kind == "none":
            reference = self._fit(self.simulated, self.kind, of_simulation, _PRIOR)
        else:
            prior = (np.sqrt(of_simulation), _PRIOR)
            reference = fit_reference(self.simulated, self.variances, self.signal, self.kind, measured, prior)
        # Background was added to the simulation without noise: what fluctuates is 1 - fraction of the events.
        fraction = np.where(reference.converged, reference.parameters[:, 2], 0.0)
        noise = self.variances.sum(axis=1) / self.simulated.sum(axis=1) ** 2 * (1.0 - fraction)
        one = 1.0 / self.counts.sum(axis=1)
        return (
            _one_step(measured, self.signal, self.kind, self.bins, of_data, one, signal_noise=False),
            _one_step(
                reference,
                self.signal,
                self.kind,
                self.bins,
                of_simulation,
                noise,
                signal_noise=self.kind != "none",
            ),
        )


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
    rows, sim_rows = common_rows(data, simulation, min_events)
    simulated = np.asarray(simulation.counts[sim_rows], dtype=np.float64)
    samples = _Samples(
        counts=np.asarray(data.counts[rows], dtype=np.float64),
        simulated=simulated,
        variances=simulated if simulation.variances is None else simulation.variances[sim_rows],
        signal=signal_model(MassModel("pooled-template", kind, min_events), simulation, sim_rows, resonance),
        kind=kind,
        bins=_Bins(data, rows),
    )
    of_data, of_simulation = samples.one_step(*samples.first_look())
    for _ in range(_ROUNDS - 1):
        of_data, of_simulation = samples.one_step(of_data.smooth, of_simulation.smooth)
    good = (of_data.good > 0.0) & (of_simulation.good > 0.0)
    if not np.any(good):
        raise InputError(f"widths: no mass fit of {resonance.name} has converged")
    total = samples.counts.sum(axis=1)
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
