"""Fit the masses of all 4D bins, in data and in simulation, with the same model: the scale is the ratio of the two.

The two fits are kept symmetric. An exponential that floats only in the data eats part of the FSR tail there and shifts
the ratio by 1e-5; so background of the size and slope fitted in the data is added to the simulation of the bin, and
the simulation is fitted with the floating background as well.
"""

from dataclasses import dataclass

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.likelihood import BACKGROUNDS, fit_bins
from musclecal.fits.shapes import (
    MODEL_NAMES,
    SignalModel,
    breit_wigner,
    crystal_ball,
    gaussian,
    generator_template,
    pooled_template,
    simulation_shape,
)
from musclecal.fits.shapes.cumulative import background_cdf
from musclecal.records import BinFits, Floats, Ints, MassFits, MassHistogram
from musclecal.resonances import Resonance

_REFERENCE_FITS = 2

__all__ = ["MassModel", "common_rows", "fit_masses", "fit_reference", "signal_model"]


@dataclass(frozen=True)
class MassModel:
    """How masses are fitted.

    Attributes
    ----------
    signal : one of `musclecal.fits.shapes.MODEL_NAMES`. background : none, exponential or linear.
    min_events : a 4D bin with fewer in data or in simulation is not fitted.
    width_prior : relative standard deviation of a Gaussian prior on the width in the data about that in the
        simulation: without it, few events on a large background may be fitted with a spike.
    class_events : simulated events pooled in one class of the simulation shape.
    """

    signal: str = "simulation-shape"
    background: str = "exponential"
    min_events: int = 50
    width_prior: float = 0.3
    class_events: float = 20_000.0

    def __post_init__(self) -> None:
        if self.signal not in MODEL_NAMES:
            raise InputError(f"model: unknown {self.signal!r}; known are {', '.join(MODEL_NAMES)}")
        if self.background not in BACKGROUNDS:
            raise InputError(f"background: unknown {self.background!r}; known are {', '.join(BACKGROUNDS)}")
        if self.min_events < 1:
            raise InputError(f"min_events: must be positive, got {self.min_events}")


def common_rows(data: MassHistogram, simulation: MassHistogram, min_events: int) -> tuple[Ints, Ints]:
    """Rows of the two histograms for the bins with enough events in both."""
    if data.binning != simulation.binning:
        raise InputError("data and simulation were filled with different binnings: fill both again")
    _, in_data, in_simulation = np.intersect1d(data.bins, simulation.bins, return_indices=True)
    enough = (data.counts[in_data].sum(axis=1) >= min_events) & (
        simulation.counts[in_simulation].sum(axis=1) >= min_events
    )
    if not np.any(enough):
        raise InputError(
            f"no 4D bin has {min_events} events in data and simulation: use fewer bins (pt_edges, eta_bins)"
        )
    return in_data[enough], in_simulation[enough]


def signal_model(
    model: MassModel, simulation: MassHistogram, rows: Ints, resonance: Resonance
) -> SignalModel:
    """The signal of bins ``rows`` of the simulation."""
    binning = simulation.binning
    if model.signal == "generator-template":
        return generator_template(simulation, rows)
    if model.signal == "pooled-template":
        return pooled_template(simulation, rows)
    if model.signal == "crystal-ball":
        return crystal_ball(binning, len(rows))
    if model.signal == "breit-wigner":
        return breit_wigner(binning, len(rows), resonance.line.width)
    start = gaussian(binning, len(rows))
    if model.signal == "gaussian":
        return start
    return _pooled_shape(start, model, simulation, rows)


def _pooled_shape(start: SignalModel, model: MassModel, simulation: MassHistogram, rows: Ints) -> SignalModel:
    """Three rounds of fitting the simulation and pooling its masses in units of the fitted width."""
    counts, bins = np.asarray(simulation.counts[rows], dtype=np.float64), simulation.bins[rows]
    shape = start
    for _ in range(3):
        fits = fit_bins(counts, shape, "none")
        good = fits.converged
        if np.count_nonzero(good) < 0.5 * len(good):
            raise InputError(
                "model simulation-shape: fits to the simulation fail; check mass_window and resonance"
            )
        scale = np.where(good, fits.scale, np.median(fits.scale[good]))
        width = np.where(good, fits.width, np.median(fits.width[good]))
        shape = simulation_shape(counts, scale, width, bins, simulation.binning, model.class_events)
    return shape


def _with_background(
    counts: Floats, model: SignalModel, fraction: Floats, slope: Floats, kind: str
) -> Floats:
    """Counts plus background that makes up ``fraction`` (n_bin,) of the total, of ``slope`` (n_bin,), without noise."""
    total = counts.copy()
    u, cdf = model.axis.u, np.empty((3, model.n_mass + 1))
    for row in range(len(counts)):
        background_cdf(BACKGROUNDS[kind], u, slope[row], cdf)
        total[row] += counts[row].sum() * fraction[row] / (1.0 - fraction[row]) * np.diff(cdf[0])
    return total


def fit_reference(
    simulated: Floats,
    variances: Floats,
    model: SignalModel,
    kind: str,
    data: BinFits,
    width_prior: tuple[Floats, float],
) -> BinFits:
    """Fit the simulation as the data were fitted: with their background, their number of events and the same priors.

    The background fitted in the data holds what the model mistakes for background, such as a part of the FSR tail. So
    what is added to the simulation is chosen such that the fit to it finds the background of the data, not such that it
    is the background of the data. With more events than the data the priors would weigh less.
    """
    good = data.converged
    start = np.where(good[:, None], data.parameters, data.parameters[good].mean(axis=0))
    slope_limit = 1.0 if kind == "linear" else 30.0
    fraction, slope = start[:, 2].copy(), start[:, 3].copy()
    for _ in range(_REFERENCE_FITS):
        total = _with_background(simulated, model, fraction, slope, kind)
        share = (data.n_events / total.sum(axis=1))[:, None]
        found = fit_bins(
            share * total, model, kind, variances=share**2 * variances, start=start, width_prior=width_prior
        )
        known = good & found.converged
        fraction[known] += (start - found.parameters)[known, 2]
        slope[known] += np.clip((start - found.parameters)[known, 3], -1.0, 1.0)
        fraction, slope = np.clip(fraction, 0.0, 0.99), np.clip(slope, -slope_limit, slope_limit)
    return found


def fit_masses(
    data: MassHistogram, simulation: MassHistogram, resonance: Resonance, model: MassModel | None = None
) -> MassFits:
    """Mass scale, width, background and their covariance of every 4D bin, for data and simulation.

    Raises
    ------
    InputError : different binnings, no bin with enough events, a model that needs generator-level masses.
    """
    model = model or MassModel()
    in_data, in_simulation = common_rows(data, simulation, model.min_events)
    counts = np.asarray(data.counts[in_data], dtype=np.float64)
    simulated = np.asarray(simulation.counts[in_simulation], dtype=np.float64)
    variances = simulated if simulation.variances is None else simulation.variances[in_simulation]
    signal = signal_model(model, simulation, in_simulation, resonance)
    pure = reference = fit_bins(simulated, signal, "none", variances=variances)
    start = np.where(pure.converged[:, None], pure.parameters, [1.0, signal.start_width, 0.0, 0.0])
    start[:, 2] = 0.1
    prior = (start[:, 1], model.width_prior)
    fitted = fit_bins(counts, signal, model.background, start=start, width_prior=prior)
    if model.background != "none" and np.any(fitted.converged):
        reference = fit_reference(simulated, variances, signal, model.background, fitted, prior)
    return MassFits(
        binning=data.binning,
        resonance=resonance.name,
        model=model.signal,
        background=model.background,
        bins=data.bins[in_data],
        data=fitted,
        reference=reference,
        pure=pure,
        mean_k=data.mean_k[in_data],
        mean_pt=data.mean_pt[in_data],
        mean_f=data.mean_f[in_data],
        events_selected=data.n_events,
        events_fitted=float(counts.sum()),
        min_events=model.min_events,
    )
