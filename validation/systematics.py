r"""How far the uncertainty of a calibration must be scaled for its closures to be expected: s, one by one and jointly.

For one closure, or several stacked on top of each other (physics.md section 4),

.. math:: r^T C(s)^{-1} r = n, \qquad C(s) = s^2\,P V P^T + \mathrm{blocks}(V_C) + \sum_R m_R m_R^T

The closures test one calibration: its error moves all residuals together, so the first part has blocks between the
closures. V_C are their own covariances. m_R is the shift of all A that see resonance R, by the uncertainty of its mass;
closures of the same resonance share it. Samples that share events are not foreseen: their V_C would need blocks too.

What is quoted is max(1, s) of the joint solution, unless told otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag
from scipy.special import chdtrc

from musclecal.covariance import checked_covariance, scale_parameter_names
from musclecal.errors import InputError
from musclecal.records import Closure, Floats, ScaleCalibration, ScaleFactor, ScaleSystematic
from musclecal.resonances import resonance
from musclecal.validation.closure import mass_direction, projection
from musclecal.validation.scale_factor import (
    N_TOYS,
    Modes,
    common_modes,
    covering_factor,
    likelihood_factor,
    likelihood_interval,
    toy_factors,
    toy_interval,
)

__all__ = [
    "JOINT",
    "StackedResiduals",
    "expected_factors",
    "mass_shift",
    "scale_systematic",
    "stacked_residuals",
]

JOINT = "joint"
"""Name of the factor of all closures together."""

_AGREEMENT = 1e-6


@dataclass(frozen=True)
class StackedResiduals:
    """Residuals of one or several closures of one calibration, with the two parts of their covariance.

    Attributes
    ----------
    names : (n,) of the residuals, for messages.
    residual : (n,). calibration_part, closure_part : (n, n), the second with the uncertainties of the masses.
    """

    names: tuple[str, ...]
    residual: Floats
    calibration_part: Floats
    closure_part: Floats

    @property
    def modes(self) -> Modes:
        """The residuals in the eigenvectors that both parts share."""
        return common_modes(self.residual, self.calibration_part, self.closure_part, self.names)


def mass_shift(closure: Closure) -> Floats:
    """(n_eta n_fitted,) what the closure finds if its resonance is lighter by the uncertainty: A = delta m/m."""
    line = resonance(closure.resonance).line
    direction = mass_direction(closure.parameter_names, len(closure.values))
    return line.mass_error / line.mass * direction


def stacked_residuals(calibration: ScaleCalibration, closures: Sequence[Closure]) -> StackedResiduals:
    """Residuals of ``closures`` stacked, and how they vary with the calibration's error, with the masses and alone.

    Raises
    ------
    InputError : no closure, one without calibration or of another one, a covariance that is none.
    """
    if not closures:
        raise InputError("scaled systematic: no closure to scale to")
    v = checked_covariance(calibration.covariance, scale_parameter_names(calibration.n_eta))
    for closure in closures:
        _check(closure, calibration, v)
    seen = np.concatenate([projection(c.parameter_names, c.mean_k) for c in closures])
    return StackedResiduals(
        names=tuple(
            f"{name}{i} of {c.resonance}"
            for c in closures
            for i in range(len(c.values))
            for name in c.parameter_names
        ),
        residual=np.concatenate([c.values.ravel() for c in closures]),
        calibration_part=seen @ v @ seen.T,
        closure_part=block_diag(*(c.covariance for c in closures)) + _mass_part(closures),
    )


def _mass_part(closures: Sequence[Closure]) -> Floats:
    """Sum of m_R m_R^T over resonances R, m_R zero for closures of others."""
    shifts = [mass_shift(c) for c in closures]
    total = np.zeros((sum(len(shift) for shift in shifts),) * 2)
    for name in dict.fromkeys(c.resonance for c in closures):
        parts = [shift * (c.resonance == name) for c, shift in zip(closures, shifts, strict=True)]
        total += np.outer(np.concatenate(parts), np.concatenate(parts))
    return total


def _check(closure: Closure, calibration: ScaleCalibration, v: Floats) -> None:
    where = f"closure at {closure.resonance}"
    if closure.s is None:
        raise InputError(f"{where}: no calibration was applied, so it says nothing about its uncertainty")
    if not np.array_equal(closure.eta_edges, calibration.eta_edges):
        raise InputError(f"{where}: its eta bins are not those of the calibration")
    seen, shift = projection(closure.parameter_names, closure.mean_k), mass_shift(closure)
    expected = seen @ v @ seen.T + np.outer(shift, shift)
    sigma = np.sqrt(np.diagonal(expected + closure.covariance))
    if np.any(np.abs(expected - closure.calibration_covariance) > _AGREEMENT * np.outer(sigma, sigma)):
        raise InputError(f"{where}: made with another calibration, the uncertainties that it carries differ")


def _factor(name: str, modes: Modes, n_toys: int, seed: int) -> ScaleFactor:
    s, s_ml = covering_factor(modes), likelihood_factor(modes)
    at_68, at_95 = toy_interval(s, modes.ratio, n_toys=n_toys, seed=seed)
    ml_68, ml_95 = likelihood_interval(modes, s_ml)
    chi2, ndf = modes.chi2(1.0), modes.ratio.size
    return ScaleFactor(name, s, at_68, at_95, s_ml, ml_68, ml_95, chi2, ndf, float(chdtrc(ndf, chi2)))


def scale_systematic(
    calibration: ScaleCalibration,
    closures: Sequence[Closure],
    *,
    quote: str = JOINT,
    n_toys: int = N_TOYS,
    seed: int = 1,
) -> ScaleSystematic:
    """s of every closure and of all together, and the calibration's covariance times the square of the quoted one.

    Parameters
    ----------
    quote : "joint", or the resonance whose max(1, s) is quoted.
    n_toys, seed : of the intervals.

    Raises
    ------
    InputError : as `stacked_residuals`; the same resonance twice; no s will do; ``quote`` names no closure.
    """
    resonances = [closure.resonance for closure in closures]
    if len(set(resonances)) < len(resonances):
        raise InputError(f"scaled systematic: a resonance twice in {', '.join(resonances)}")
    if quote not in (JOINT, *resonances):
        raise InputError(f"quote: {quote!r} is not one of {', '.join((JOINT, *resonances))}")
    joint = _factor(JOINT, stacked_residuals(calibration, closures).modes, n_toys, seed)
    factors = tuple(
        _factor(closure.resonance, stacked_residuals(calibration, [closure]).modes, n_toys, seed)
        for closure in closures
    )
    quoted = {factor.name: factor for factor in (joint, *factors)}[quote]
    return ScaleSystematic(
        eta_edges=np.array(calibration.eta_edges),
        factors=factors,
        joint=joint,
        quoted=quote,
        covariance=quoted.s_quoted**2 * calibration.covariance,
    )


def expected_factors(
    calibration: ScaleCalibration,
    closures: Sequence[Closure],
    s: float = 1.0,
    *,
    n_toys: int = N_TOYS,
    seed: int = 1,
) -> Floats:
    """(n_toys,) the joint s that would be found if the calibration's errors were ``s`` times those that it states."""
    return toy_factors(stacked_residuals(calibration, closures).modes.ratio, s, n_toys=n_toys, seed=seed)
