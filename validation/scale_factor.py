r"""The factor s on the calibration's uncertainty, from residuals and covariances alone: value, toys, likelihood.

A residual r of n parameters has the covariance C(s) = s^2 J + W, with J what the calibration's own uncertainty adds and
W the rest. In the common eigenvectors of J and W, with the ratios :math:`\lambda_i` of the one to the other and the
pulls :math:`u_i` of r in units of W, everything is a sum of independent terms:

.. math:: \chi^2(s) = \sum_i \frac{u_i^2}{1 + s^2\lambda_i}, \qquad
   -2\ln L(s) = \chi^2(s) + \sum_i \ln(1 + s^2\lambda_i) + \mathrm{const}

s is the solution of chi2(s) = n (physics.md section 4), the likelihood's minimum is a cross-check: it weights the terms
by what they know about s.

**The interval of s** is Neyman's central one. With unit Gaussian z, an experiment whose true factor is t finds less
than the observed s where :math:`\sum_i z_i^2 (1 + t^2\lambda_i)/(1 + s^2\lambda_i) < n`. This is linear in t^2: each
toy z has one t^2 at which it gives exactly the observed s, and the limits are quantiles of these t^2. No scan is
needed, and only the number of toys makes it inexact (docs/systematic.md compares with two other intervals).

Not for: where J and W come from, which is the business of `musclecal.validation.systematics`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from scipy.optimize import brentq, minimize_scalar

from musclecal.covariance import checked_covariance, chi2_of
from musclecal.errors import InputError
from musclecal.records import Floats

__all__ = [
    "N_TOYS",
    "Modes",
    "common_modes",
    "covering_factor",
    "likelihood_factor",
    "likelihood_interval",
    "scale_factor",
    "solved_factors",
    "toy_factors",
    "toy_interval",
]

N_TOYS = 10_000

_LARGEST_FACTOR = 1e6
_TOY_BLOCK = 2_000


@dataclass(frozen=True)
class Modes:
    """A residual in the common eigenvectors of the two parts of its covariance.

    Attributes
    ----------
    pull_squared : (n,) u_i^2, in units of the closure part.
    ratio : (n,) lambda_i >= 0, variance of the calibration part over that of the closure part.
    """

    pull_squared: Floats
    ratio: Floats

    def chi2(self, s: float) -> float:
        """r^T C(s)^-1 r."""
        return float(np.sum(self.pull_squared / (1.0 + s * s * self.ratio)))

    def log_likelihood(self, s: float) -> float:
        """-2 ln L(s) without the constant."""
        return self.chi2(s) + float(np.sum(np.log1p(s * s * self.ratio)))


def common_modes(
    residual: ArrayLike,
    calibration_part: ArrayLike,
    closure_part: ArrayLike,
    names: Sequence[str] | None = None,
) -> Modes:
    """The residual (n,) in the eigenvectors that both parts (n, n) of its covariance share.

    Raises
    ------
    InputError : shapes that do not go together, not finite, not positive semi-definite, a singular closure part;
        parameters are called by ``names``.
    """
    closure_part = checked_covariance(closure_part, names)
    calibration_part = checked_covariance(calibration_part, names)
    if calibration_part.shape != closure_part.shape:
        raise InputError(
            f"scale factor: covariances of shapes {calibration_part.shape} and {closure_part.shape}"
        )
    chi2_of(residual, closure_part, names)  # refuses what cannot be solved
    unit = np.sqrt(np.diagonal(closure_part))
    units = np.outer(unit, unit)
    ratio, vectors = eigh(calibration_part / units, closure_part / units)
    return Modes((vectors.T @ (np.asarray(residual) / unit)) ** 2, np.clip(ratio, 0.0, None))


def scale_factor(residual: ArrayLike, calibration_part: ArrayLike, closure_part: ArrayLike) -> float:
    """s with r^T (s^2 calibration_part + closure_part)^-1 r = n; 0 where the closure part alone is large enough.

    Raises `InputError` as `common_modes`, and where no s will do. Shapes: (n,), (n, n), (n, n).
    """
    return covering_factor(common_modes(residual, calibration_part, closure_part))


def covering_factor(modes: Modes) -> float:
    """`scale_factor` of a residual in its modes."""
    s = float(solved_factors(modes.pull_squared[None, :], modes.ratio)[0])
    if not s < _LARGEST_FACTOR:
        raise InputError(
            "closure: no scale factor makes the residuals expected; is the calibration covariance zero?"
        )
    return s


def solved_factors(pull_squared: Floats, ratio: Floats) -> Floats:
    """s of many residuals at once: (n_toy, n) and (n,) give (n_toy,); inf where no s is large enough.

    Newton steps for n/chi2 = 1 in t = s^2. n/chi2(t) is concave, and a straight line if all ratios are equal, so
    that steps from t = 0 never pass the solution and few are needed.
    """
    n = ratio.size
    weight = np.where(ratio > 0.0, 0.0, 1.0)
    t = np.zeros(len(pull_squared))
    t[pull_squared @ weight >= n] = np.inf  # what no factor can take away
    active = np.flatnonzero((pull_squared.sum(axis=1) > n) & (t == 0.0))
    for _ in range(200):
        terms = pull_squared[active] / (1.0 + t[active, None] * ratio)
        chi2 = terms.sum(axis=1)
        slope = np.sum(terms * ratio / (1.0 + t[active, None] * ratio), axis=1)
        step = (chi2 - n) * chi2 / (n * slope)
        t[active] += step
        active = active[step > 1e-13 * t[active]]
        if not len(active):
            break
    return np.sqrt(t)


def _toy_pulls(n: int, n_toys: int, seed: int) -> Iterator[Floats]:
    """Squares of unit Gaussians, (up to 2000, n) at a time; the first toys are the same for any number of them."""
    for block, first in enumerate(range(0, n_toys, _TOY_BLOCK)):
        rng = Generator(Philox(key=[seed, block]))
        yield rng.normal(size=(min(_TOY_BLOCK, n_toys - first), n)) ** 2


def toy_factors(ratio: Floats, s: float = 1.0, *, n_toys: int = N_TOYS, seed: int = 1) -> Floats:
    """(n_toys,) the s that would be found if the calibration's uncertainty had to be scaled by ``s`` in truth."""
    spread = 1.0 + s * s * ratio
    return np.concatenate(
        [solved_factors(pulls * spread, ratio) for pulls in _toy_pulls(ratio.size, n_toys, seed)]
    )


def toy_interval(
    s: float, ratio: Floats, levels: Sequence[float] = (0.68, 0.95), *, n_toys: int = N_TOYS, seed: int = 1
) -> tuple[tuple[float, float], ...]:
    """Central confidence intervals (low, high) of the true factor where ``s`` was found, one per level.

    At a true factor equal to a limit, toys give an s beyond the observed one with probability (1 - level)/2. Where the
    observed s is 0 the upper limit says how large the truth may be for 0 not to be rare (it covers more than stated).
    It is (0, inf) where the calibration part is zero.
    """
    if not np.any(ratio > 0.0):
        return tuple((0.0, np.inf) for _ in levels)
    share = 1.0 / (1.0 + s * s * ratio)
    squares = np.concatenate(
        [_square_that_gives(pulls, share, ratio) for pulls in _toy_pulls(ratio.size, n_toys, seed)]
    )
    ends = [(0.5 * (1.0 - level), 0.5 * (1.0 + level)) for level in levels]
    limits = np.sqrt(np.clip(np.quantile(squares, ends), 0.0, None))
    return tuple((float(low), float(high)) for low, high in limits)


def _square_that_gives(pulls: Floats, share: Floats, ratio: Floats) -> Floats:
    """t^2 of the toys, with sum z^2 (1 + t^2 lambda) share = n."""
    return np.asarray((ratio.size - pulls @ share) / (pulls @ (share * ratio)))


def likelihood_factor(modes: Modes) -> float:
    """s >= 0 that minimises -2 ln L(s) = ln|C(s)| + r^T C(s)^-1 r.

    There may be several minima: the lowest of a grid in ln s is refined between its neighbours.
    """
    grid = _grid(modes)
    scaled = 1.0 + np.outer(grid**2, modes.ratio)
    values = np.sum(modes.pull_squared / scaled + np.log(scaled), axis=1)
    lowest = int(np.argmin(values))
    low, high = grid[max(lowest - 1, 0)], grid[min(lowest + 1, len(grid) - 1)]
    if low == high:
        return 0.0
    found = minimize_scalar(
        modes.log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-9 * high}
    )
    return float(found.x) if found.fun < values[0] else 0.0


def likelihood_interval(
    modes: Modes, s: float, rises: Sequence[float] = (1.0, 3.841459)
) -> tuple[tuple[float, float], ...]:
    """Intervals about the minimum ``s`` where -2 ln L rises by 1 (68 %) and 3.84 (95 %); low is 0 at the edge."""
    lowest = modes.log_likelihood(s)

    def side(rise: float, end: float) -> float:
        def above(x: float) -> float:
            return modes.log_likelihood(x) - lowest - rise

        return end if above(end) <= 0.0 else float(brentq(above, s, end, xtol=1e-9 * max(s, end)))

    if not np.any(modes.ratio > 0.0):
        return tuple((0.0, np.inf) for _ in rises)
    return tuple((side(rise, 0.0), side(rise, _beyond(modes, lowest + rise, s))) for rise in rises)


def _grid(modes: Modes) -> Floats:
    """Values of s that bracket every minimum: 0, and from well below the smallest scale to where all terms rise."""
    seen = modes.ratio > 0.0
    if not np.any(seen):
        return np.zeros(1)
    ratio, pulls = modes.ratio[seen], modes.pull_squared[seen]
    last = np.sqrt(max(np.max((pulls - 1.0) / ratio), 1.0 / ratio.max()))
    return np.concatenate([[0.0], np.geomspace(1e-3 / np.sqrt(ratio.max()), 1.01 * last, 400)])


def _beyond(modes: Modes, value: float, s: float) -> float:
    """Some s above the minimum where -2 ln L is larger than ``value``."""
    end = max(2.0 * s, 1.0 / np.sqrt(modes.ratio.max()))
    while modes.log_likelihood(end) <= value:
        end *= 2.0
    return float(end)
