"""Fits of a signal and a background to the mass histograms of many bins at once: extended binned Poisson likelihood.

Formulas: `musclecal.fits.likelihood_kernels`; how the minimum is found: `musclecal.fits.likelihood_minimiser`.

Not for: shapes (`musclecal.fits.shapes`), the choice of bins (`musclecal.fits.mass_fits`).
"""

import math
from enum import IntEnum

import numpy as np

from musclecal.compiled import in_order
from musclecal.fits import likelihood_minimiser as minimiser
from musclecal.fits.likelihood_kernels import Likelihood, new_room, probabilities, shares_of
from musclecal.fits.likelihood_minimiser import fit_block
from musclecal.fits.shapes import SignalModel
from musclecal.records import BinFits, Floats, Ints

__all__ = ["BACKGROUNDS", "PARAMETER_NAMES", "FitStatus", "expected_counts", "expected_shares", "fit_bins"]

PARAMETER_NAMES = ("scale", "width", "background_fraction", "background_slope")
BACKGROUNDS = {"none": 0, "exponential": 1, "linear": 2}

_BLOCK = 64


class FitStatus(IntEnum):
    """How the fit of one bin ended."""

    GOOD = minimiser.GOOD
    NO_EVENTS = minimiser.NO_EVENTS
    NOT_CONVERGED = minimiser.NOT_CONVERGED
    HESSIAN_NOT_POSITIVE = minimiser.HESSIAN_NOT_POSITIVE
    AT_LIMIT = minimiser.AT_LIMIT
    """Scale or width ran to the end of what is sensible, or the events do not fix them."""


def _starts(start: Floats, background: int) -> Floats:
    """(n_bin, n_attempt, 4) starting points: the given one, then narrower, wider, and other background fractions."""
    fractions = (None, 0.02, 0.4, 0.1) if background else (None, None, None, None)
    attempts = []
    for log_width, fraction in zip((0.0, -0.4, 0.4, 0.0), fractions, strict=True):
        attempt = start.copy()
        attempt[:, 1] += log_width
        if fraction is not None:
            attempt[:, 2] = fraction
        attempts.append(attempt)
    return np.stack(attempts, axis=1)


def fit_bins(
    counts: Floats,
    model: SignalModel,
    background: str,
    *,
    variances: Floats | None = None,
    start: Floats | None = None,
    slope_prior: float = 2.0,
    width_prior: tuple[Floats, float] | None = None,
    threads: int | None = None,
) -> BinFits:
    """Fit every row of ``counts``.

    Parameters
    ----------
    counts : (n_bin, n_mass) events per mass bin.
    model : the signal and the mass axis; its table of each row.
    background : a key of `BACKGROUNDS`.
    variances : (n_bin, n_mass) variance of ``counts`` where it is not the Poisson one.
    start : (n_bin, 4) scale, width, background fraction, slope; by default 1, the model's start width, 0.1, 0.
    slope_prior : standard deviation of the Gaussian prior on the slope across the window.
    width_prior : (n_bin,) centre and relative standard deviation of a Gaussian prior on ln w, or None.

    Returns
    -------
    BinFits : parameters as in `PARAMETER_NAMES`; the slope is per window width.
    """
    counts = np.ascontiguousarray(counts, dtype=np.float64)
    n_bin, n_mass = counts.shape
    spread = np.empty((0, n_mass)) if variances is None else np.ascontiguousarray(variances, dtype=np.float64)
    kind = BACKGROUNDS[background]
    if start is None:
        start = np.tile([1.0, model.start_width, 0.1, 0.0], (n_bin, 1))
    start = np.array(start, dtype=np.float64)
    start[:, 0:2] = np.log(start[:, 0:2])
    start[:, 2] = np.clip(start[:, 2], 1e-4, 0.9) if kind else 0.0
    if not kind:
        start[:, 3] = 0.0
    starts = _starts(start, kind)
    centres = np.zeros((n_bin, 4))
    weight = np.array([0.0, 0.0, 0.0, slope_prior**-2])
    if width_prior is not None:
        centres[:, 1] = np.log(width_prior[0])
        weight[1] = width_prior[1] ** -2
    slope_bound = 1.0 if kind == BACKGROUNDS["linear"] else 30.0
    bounds = np.array(
        [[-0.1, 0.1], [math.log(1e-4), math.log(0.3)], [0.0, 0.995], [-slope_bound, slope_bound]]
    )
    theta, covariance = np.full((n_bin, 4), np.nan), np.zeros((n_bin, 4, 4))
    status, iterations = np.ones(n_bin, dtype=np.int64), np.zeros(n_bin, dtype=np.int64)
    edm, chi2 = np.full(n_bin, np.nan), np.full(n_bin, np.nan)
    like, tables = Likelihood(model.axis, kind, weight, bounds), model.kernel_tables

    def work(rows: slice) -> None:
        fit_block(
            like, counts[rows], spread[rows], tables, model.table_of[rows], centres[rows], starts[rows], theta[rows],
            covariance[rows], status[rows], edm[rows], chi2[rows], iterations[rows], new_room(like.axis),
        )  # fmt: skip

    for _ in in_order(work, [slice(n, n + _BLOCK) for n in range(0, n_bin, _BLOCK)], threads):
        pass
    return _as_record(counts, theta, covariance, status, edm, chi2, iterations, kind)


def _as_record(
    counts: Floats, theta: Floats, covariance: Floats, status: Ints, edm: Floats, chi2: Floats, iterations: Ints,
    kind: int,
) -> BinFits:  # fmt: skip
    parameters = theta.copy()
    parameters[:, 0:2] = np.exp(theta[:, 0:2])
    jacobian = np.ones_like(theta)
    jacobian[:, 0:2] = parameters[:, 0:2]
    n_free = np.count_nonzero(np.diagonal(covariance, axis1=1, axis2=2) > 0.0, axis=1)
    events = counts.sum(axis=1)
    return BinFits(
        parameter_names=PARAMETER_NAMES,
        parameters=parameters,
        covariance=covariance * jacobian[:, :, None] * jacobian[:, None, :],
        status=status,
        edm=edm,
        chi2=chi2,
        ndf=counts.shape[1] - 1 - n_free,
        n_events=events,
        n_signal=events * (1.0 - (parameters[:, 2] if kind else 0.0)),
        iterations=iterations,
    )


def expected_shares(model: SignalModel, background: int, theta: Floats) -> tuple[Floats, Floats]:
    """p (n_bin, n_mass) and its derivatives (n_bin, 4, n_mass) at theta (n_bin, 4).

    theta is ln scale, ln width, fraction, slope; ``background`` is a value of `BACKGROUNDS`.
    """
    like = _without_priors(model, background)
    p, dp = np.empty((len(theta), model.n_mass)), np.empty((len(theta), 4, model.n_mass))
    theta = np.ascontiguousarray(theta)
    shares_of(like, model.kernel_tables, model.table_of, theta, p, dp, new_room(like.axis))
    return p, dp


def _without_priors(model: SignalModel, background: int) -> Likelihood:
    return Likelihood(model.axis, background, np.zeros(4), np.zeros((4, 2)))


def expected_counts(fits: BinFits, model: SignalModel, background: str, row: int) -> tuple[Floats, Floats]:
    """(total, background) expected counts (n_mass,) of one fitted row, for plots and toys."""
    kind = BACKGROUNDS[background]
    theta = fits.parameters[row].copy()
    theta[0:2] = np.log(theta[0:2])
    like = _without_priors(model, kind)
    room = new_room(like.axis)
    probabilities(like, model.kernel_tables[model.table_of[row]], theta, room)
    events = fits.n_events[row]
    background_counts = events * theta[2] * np.diff(room.background[0]) if kind else np.zeros(model.n_mass)
    return events * room.p, background_counts
