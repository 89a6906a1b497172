r"""Binned Poisson likelihood of a signal and a background in every bin at once: Fisher scoring, analytic derivatives.

With n events in a window the extended likelihood has its maximum at a total yield of n, so what is left to fit is

.. math:: -\ln L = -\sum_i n_i \ln p_i(\theta) + \tfrac12\sum_a\bigl((\theta_a - \bar\theta_a)/\sigma_a\bigr)^2, \qquad
   p_i = (1-b)\,S_i/S + b\,B_i , \qquad \theta = (\ln s, \ln w, b, \tau)

(s scale, w relative width, b background fraction, tau background slope), with
weak priors on tau and, if asked, on w. A step solves
:math:`(F + \lambda\,\mathrm{diag}F)\,\delta = -\nabla`, with F the expected information; parameters that push against a
bound are frozen for that step. The covariance is the inverse of the observed Hessian H, by central differences of the
analytic gradient; for counts whose variance is not their value (weighted simulation, background added without noise)
it is :math:`H^{-1} J H^{-1}` with :math:`J = \sum_i v_i\,\partial\ln p_i\,\partial\ln p_i^T`, v_i the variance
of n_i.

Not for: shapes (`musclecal.fits.shapes`), the choice of bins (`musclecal.fits.mass_fits`).
"""

import math
from enum import IntEnum

import numpy as np

from musclecal.compiled import in_order, kernel
from musclecal.fits.shapes import SignalModel
from musclecal.fits.shapes.cumulative import background_cdf, signal_cdf
from musclecal.records import BinFits, Floats, Ints

__all__ = ["BACKGROUNDS", "PARAMETER_NAMES", "FitStatus", "expected_counts", "fit_bins"]

PARAMETER_NAMES = ("scale", "width", "background_fraction", "background_slope")
BACKGROUNDS = {"none": 0, "exponential": 1, "linear": 2}

_BLOCK = 64
_MAX_ITERATIONS = 1000
_EDM_GOAL = 1e-7


# The values of `FitStatus`, for kernels.
_GOOD, _NO_EVENTS, _NOT_CONVERGED, _HESSIAN_NOT_POSITIVE, _AT_LIMIT = 0, 1, 2, 3, 4


class FitStatus(IntEnum):
    """How the fit of one bin ended."""

    GOOD = _GOOD
    NO_EVENTS = _NO_EVENTS
    NOT_CONVERGED = _NOT_CONVERGED
    HESSIAN_NOT_POSITIVE = _HESSIAN_NOT_POSITIVE
    AT_LIMIT = _AT_LIMIT
    """Scale or width ran to the end of what is sensible."""


@kernel
def _probabilities(
    form: int, low: float, step: float, reference: float, origin: float, spacing: float, table: Floats,
    background: int, theta: Floats, p: Floats, dp: Floats, cdf: Floats, lines: Floats,
) -> None:  # fmt: skip
    """p_i and dp_i/dtheta (4, n_mass) of one bin."""
    signal_cdf(form, low, step, reference, math.exp(theta[0]), math.exp(theta[1]), origin, spacing, table,
               cdf[0], cdf[1], cdf[2], lines)  # fmt: skip
    n = p.size
    total = cdf[0, n] - cdf[0, 0]
    d_scale = (cdf[1, n] - cdf[1, 0]) / total
    d_width = (cdf[2, n] - cdf[2, 0]) / total
    b = theta[2] if background > 0 else 0.0
    if background > 0:
        background_cdf(background, step, theta[3], cdf[3], cdf[4])
    for i in range(n):
        s = (cdf[0, i + 1] - cdf[0, i]) / total
        q = cdf[3, i + 1] - cdf[3, i] if background > 0 else 0.0
        p[i] = (1.0 - b) * s + b * q
        dp[0, i] = (1.0 - b) * ((cdf[1, i + 1] - cdf[1, i]) / total - s * d_scale)
        dp[1, i] = (1.0 - b) * ((cdf[2, i + 1] - cdf[2, i]) / total - s * d_width)
        dp[2, i] = q - s
        dp[3, i] = b * (cdf[4, i + 1] - cdf[4, i]) if background > 0 else 0.0


@kernel
def _cost(counts: Floats, p: Floats, theta: Floats, centre: Floats, weight: Floats, floor: float) -> float:
    cost = 0.0
    for a in range(4):
        cost += 0.5 * weight[a] * (theta[a] - centre[a]) ** 2
    for i in range(counts.size):
        if counts[i] > 0.0:
            cost -= counts[i] * math.log(max(p[i], floor))
    return cost


@kernel
def _gradient(
    counts: Floats,
    p: Floats,
    dp: Floats,
    theta: Floats,
    centre: Floats,
    weight: Floats,
    floor: float,
    out: Floats,
) -> None:
    for a in range(4):
        out[a] = weight[a] * (theta[a] - centre[a])
        for i in range(counts.size):
            if counts[i] > 0.0:
                out[a] -= counts[i] * dp[a, i] / max(p[i], floor)


@kernel
def _information(events: float, p: Floats, dp: Floats, weight: Floats, floor: float, out: Floats) -> None:
    for a in range(4):
        for b in range(a + 1):
            total = 0.0
            for i in range(p.size):
                total += dp[a, i] * dp[b, i] / max(p[i], floor)
            out[a, b] = out[b, a] = events * total
        out[a, a] += weight[a]


@kernel
def _solve(matrix: Floats, right: Floats, free: Ints, damping: float, out: Floats) -> bool:
    """Solve (matrix + damping diag) out = right over the free parameters by Cholesky; frozen ones give 0."""
    lower = np.zeros((4, 4))
    for a in range(4):
        out[a] = 0.0
    for a in range(4):
        if not free[a]:
            continue
        for b in range(a + 1):
            if not free[b]:
                continue
            total = matrix[a, b] * (1.0 + damping if a == b else 1.0)
            for c in range(b):
                total -= lower[a, c] * lower[b, c]
            if a == b:
                if not total > 0.0:
                    return False
                lower[a, a] = math.sqrt(total)
            else:
                lower[a, b] = total / lower[b, b]
    for a in range(4):
        if free[a]:
            total = right[a]
            for c in range(a):
                total -= lower[a, c] * out[c]
            out[a] = total / lower[a, a]
    for a in range(3, -1, -1):
        if free[a]:
            total = out[a]
            for c in range(a + 1, 4):
                if free[c]:
                    total -= lower[c, a] * out[c]
            out[a] = total / lower[a, a]
    return True


@kernel
def _sandwich(variances: Floats, p: Floats, dp: Floats, floor: float, covariance: Floats) -> None:
    """Replace the inverse Hessian H^-1 in ``covariance`` by H^-1 J H^-1."""
    spread = np.zeros((4, 4))
    for a in range(4):
        for b in range(4):
            for i in range(p.size):
                spread[a, b] += variances[i] * dp[a, i] * dp[b, i] / max(p[i], floor) ** 2
    inverse = covariance.copy()
    for a in range(4):
        for b in range(4):
            total = 0.0
            for c in range(4):
                for d in range(4):
                    total += inverse[a, c] * spread[c, d] * inverse[d, b]
            covariance[a, b] = total


@kernel
def _observed_covariance(
    counts: Floats, form: int, low: float, step: float, reference: float, origin: float, spacing: float,
    table: Floats, background: int, centre: Floats, weight: Floats, floor: float, theta: Floats, information: Floats,
    free: Ints, covariance: Floats, p: Floats, dp: Floats, cdf: Floats, lines: Floats,
) -> bool:  # fmt: skip
    """Inverse of the observed Hessian over the free parameters; False where it is not positive.

    Central differences of the gradient, steps of a hundredth of an expected error.
    """
    hessian = np.zeros((4, 4))
    trial, up, down = np.empty(4), np.empty(4), np.empty(4)
    for a in range(4):
        if not free[a]:
            continue
        h = 0.01 / math.sqrt(information[a, a])
        if a == 2:
            h = min(h, 0.5 * theta[2])
        for b in range(4):
            trial[b] = theta[b]
        trial[a] = theta[a] + h
        _probabilities(
            form, low, step, reference, origin, spacing, table, background, trial, p, dp, cdf, lines
        )
        _gradient(counts, p, dp, trial, centre, weight, floor, up)
        trial[a] = theta[a] - h
        _probabilities(
            form, low, step, reference, origin, spacing, table, background, trial, p, dp, cdf, lines
        )
        _gradient(counts, p, dp, trial, centre, weight, floor, down)
        for b in range(4):
            hessian[a, b] = (up[b] - down[b]) / (2.0 * h)
    _probabilities(form, low, step, reference, origin, spacing, table, background, theta, p, dp, cdf, lines)
    for a in range(4):
        for b in range(a):
            hessian[a, b] = hessian[b, a] = 0.5 * (hessian[a, b] + hessian[b, a])
    for a in range(4):
        for b in range(4):
            up[b] = 1.0 if a == b else 0.0
        if free[a]:
            if not _solve(hessian, up, free, 0.0, down):
                return False
            for b in range(4):
                covariance[a, b] = down[b]
    return True


@kernel
def _choose_free(theta: Floats, gradient: Floats, bounds: Floats, background: int, free: Ints) -> None:
    """Parameters that may move: not those of a background that is not fitted, nor those held by a bound."""
    for a in range(4):
        floats = a < 2 or background > 0
        at_low = theta[a] <= bounds[a, 0] and gradient[a] > 0.0
        at_high = theta[a] >= bounds[a, 1] and gradient[a] < 0.0
        free[a] = 1 if floats and not at_low and not at_high else 0


@kernel
def _bounded_step(theta: Floats, delta: Floats, bounds: Floats, trial: Floats) -> None:
    """theta - delta, no further than two widths in the scale, 0.25 in the fraction, 0.7 in the others."""
    for a in range(4):
        limit = 0.7 if a != 2 else 0.25
        if a == 0:
            limit = 2.0 * math.exp(theta[1])
        move = min(max(-delta[a], -limit), limit)
        trial[a] = min(max(theta[a] + move, bounds[a, 0]), bounds[a, 1])


@kernel
def _fit_one(
    counts: Floats, form: int, low: float, step: float, reference: float, origin: float, spacing: float,
    table: Floats, background: int, centre: Floats, weight: Floats, bounds: Floats, max_iterations: int, goal: float,
    floor: float,
    theta: Floats, covariance: Floats, p: Floats, dp: Floats, cdf: Floats, lines: Floats,
) -> tuple[int, float, int]:  # fmt: skip
    """Fit one bin from ``theta``, which becomes the result. Gives status, edm, iterations."""
    events = counts.sum()
    gradient, delta, trial = np.empty(4), np.empty(4), np.empty(4)
    matrix = np.empty((4, 4))
    free = np.ones(4, dtype=np.int64)
    damping = 1e-3
    edm = math.inf
    _probabilities(form, low, step, reference, origin, spacing, table, background, theta, p, dp, cdf, lines)
    cost = _cost(counts, p, theta, centre, weight, floor)
    iteration = 0
    while iteration < max_iterations:
        iteration += 1
        _gradient(counts, p, dp, theta, centre, weight, floor, gradient)
        _information(events, p, dp, weight, floor, matrix)
        _choose_free(theta, gradient, bounds, background, free)
        solved = _solve(matrix, gradient, free, 0.0, delta) or _solve(matrix, gradient, free, 1e-2, delta)
        if not solved:
            return _NOT_CONVERGED, edm, iteration
        edm = 0.5 * (gradient * delta).sum()
        if edm < goal:
            # A fraction whose next step would leave the allowed range belongs on the bound.
            if not (free[2] and theta[2] <= 2.0 * delta[2]):
                break
            theta[2] = 0.0
            _probabilities(
                form, low, step, reference, origin, spacing, table, background, theta, p, dp, cdf, lines
            )
            cost = _cost(counts, p, theta, centre, weight, floor)
            continue
        accepted = False
        for _ in range(30):
            _solve(matrix, gradient, free, damping, delta)
            _bounded_step(theta, delta, bounds, trial)
            _probabilities(
                form, low, step, reference, origin, spacing, table, background, trial, p, dp, cdf, lines
            )
            trial_cost = _cost(counts, p, trial, centre, weight, floor)
            if trial_cost <= cost + 1e-9:
                accepted = True
                damping = max(0.1 * damping, 1e-9)
                break
            damping = max(10.0 * damping, 1e-6)
        if not accepted:
            _probabilities(
                form, low, step, reference, origin, spacing, table, background, theta, p, dp, cdf, lines
            )
            if edm < 1e3 * goal:
                break
            return _NOT_CONVERGED, edm, iteration
        cost = trial_cost
        for a in range(4):
            theta[a] = trial[a]
    if edm >= 1e3 * goal:
        return _NOT_CONVERGED, edm, iteration
    if not free[0] or not free[1]:
        return _AT_LIMIT, edm, iteration
    if theta[2] <= 0.0:
        free[3] = 0  # the slope of no background is not measured
    known = _observed_covariance(
        counts, form, low, step, reference, origin, spacing, table, background, centre, weight, floor, theta, matrix,
        free, covariance, p, dp, cdf, lines,
    )  # fmt: skip
    if not known:
        return _HESSIAN_NOT_POSITIVE, edm, iteration
    return _GOOD, edm, iteration


@kernel
def _fit_block(
    counts: Floats, variances: Floats, form: int, low: float, step: float, reference: float, origin: float,
    spacing: float, tables: Floats, table_of: Ints, background: int, centres: Floats, weight: Floats,
    bounds: Floats, starts: Floats,
    max_iterations: int, goal: float, floor: float, theta: Floats, covariance: Floats, status: Ints, edm: Floats,
    chi2: Floats, iterations: Ints,
) -> None:  # fmt: skip
    n_mass = counts.shape[1]
    p, dp = np.empty(n_mass), np.empty((4, n_mass))
    cdf = np.zeros((5, n_mass + 1))
    lines = np.empty((3, n_mass + tables.shape[1] + 1))
    for n in range(counts.shape[0]):
        events = counts[n].sum()
        status[n] = _NO_EVENTS
        if not events > 0.0:
            continue
        table = tables[table_of[n]]
        for attempt in range(starts.shape[1]):
            theta[n] = starts[n, attempt]
            covariance[n] = 0.0
            status[n], edm[n], iterations[n] = _fit_one(
                counts[n], form, low, step, reference, origin, spacing, table, background, centres[n], weight, bounds,
                max_iterations, goal, floor, theta[n], covariance[n], p, dp, cdf, lines,
            )  # fmt: skip
            if status[n] == _GOOD:
                break
        # Near a fraction of zero only its prior holds the slope: there can be a minimum for either sign of it.
        if background > 0 and (
            status[n] == _HESSIAN_NOT_POSITIVE or (status[n] == _GOOD and theta[n, 2] < 0.02)
        ):
            best = (
                _cost(counts[n], p, theta[n], centres[n], weight, floor) if status[n] == _GOOD else math.inf
            )
            for sign in (-1.0, 1.0):
                other, other_covariance = theta[n].copy(), np.zeros((4, 4))
                other[2], other[3] = 0.02, 0.5 * sign * min(bounds[3, 1], 4.0)
                end, other_edm, more = _fit_one(
                    counts[n], form, low, step, reference, origin, spacing, table, background, centres[n], weight,
                    bounds, max_iterations, goal, floor, other, other_covariance, p, dp, cdf, lines,
                )  # fmt: skip
                iterations[n] += more
                cost = _cost(counts[n], p, other, centres[n], weight, floor)
                if end == _GOOD and cost < best - 1e-6:
                    best, status[n], edm[n] = cost, end, other_edm
                    theta[n], covariance[n] = other, other_covariance
            _probabilities(
                form, low, step, reference, origin, spacing, table, background, theta[n], p, dp, cdf, lines
            )
        if status[n] == _GOOD and variances.shape[0] > 0:
            _sandwich(variances[n], p, dp, floor, covariance[n])
        chi2[n] = 0.0
        for i in range(n_mass):
            expected = events * max(p[i], floor)
            chi2[n] += (counts[n, i] - expected) ** 2 / expected


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

    def work(rows: slice) -> None:
        _fit_block(
            counts[rows], spread[rows], model.form, model.low, model.step, model.reference, model.origin, model.spacing,
            model.tables, model.table_of[rows], kind, centres[rows], weight, bounds, starts[rows],
            _MAX_ITERATIONS, _EDM_GOAL,
            1e-12, theta[rows], covariance[rows], status[rows], edm[rows], chi2[rows], iterations[rows],
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


def expected_counts(fits: BinFits, model: SignalModel, background: str, row: int) -> tuple[Floats, Floats]:
    """(total, background) expected counts (n_mass,) of one fitted row, for plots and toys."""
    kind = BACKGROUNDS[background]
    theta = fits.parameters[row].copy()
    theta[0:2] = np.log(theta[0:2])
    n_mass = model.n_mass
    p, dp, cdf = np.empty(n_mass), np.empty((4, n_mass)), np.zeros((5, n_mass + 1))
    lines = np.empty((3, n_mass + model.tables.shape[1] + 1))
    _probabilities(
        model.form, model.low, model.step, model.reference, model.origin, model.spacing,
        model.tables[model.table_of[row]], kind, theta, p, dp, cdf, lines,
    )  # fmt: skip
    events = fits.n_events[row]
    background_counts = events * theta[2] * np.diff(cdf[3]) if kind else np.zeros(n_mass)
    return events * p, background_counts
