r"""How much of the uncertainty is whose: two breakdowns, which are different numbers and neither of which adds up.

With :math:`\Sigma` the covariance of the fit, x a combined value, g a group of sources:

- *frozen*: fix the group where it is, fit the rest again, take the difference in quadrature. Close to a minimum

  .. math:: \sigma_x^2 - \sigma_{x,\mathrm{frozen}}^2 = \Sigma_{xg}\,\Sigma_{gg}^{-1}\,\Sigma_{gx}

  so all groups follow from one covariance. `refitted_impacts` does fit again, with intervals on both sides.
- *covariance*: correlation times error, :math:`\Sigma_{xi}/\sigma_i`, signed, of each source alone. Of one source that
  is the frozen impact with its sign; of correlated ones the same uncertainty is counted in each.
- statistical: everything but the combined values fixed; systematic: the rest, in quadrature.

Not for: a split that adds up to the total, which is that of BLUE.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.joined_inputs import likelihood_of
from musclecal.fits.combination.likelihood_fit import minimum_of
from musclecal.fits.combination.minos import intervals
from musclecal.fits.combination.newton import Mask, inverse
from musclecal.records import Floats, Ints
from musclecal.records.combination_likelihood import STATISTICAL, LikelihoodFit, LikelihoodProblem

__all__ = [
    "covariance_impacts",
    "frozen_impacts",
    "refitted_impacts",
    "statistical_errors",
    "systematic_errors",
]


def _members(fit: LikelihoodFit, group: str, names: Sequence[str]) -> Ints:
    unknown = [name for name in names if name not in fit.sources]
    if unknown:
        raise InputError(f"impact of {group!r}: no source {unknown[0]!r}")
    return np.array([fit.sources.index(name) for name in names], dtype=np.int64)


def covariance_impacts(fit: LikelihoodFit) -> Floats:
    """(n_source, n_obs) correlation of source and value times the error of the value; 0 for held sources."""
    n = len(fit.sources)
    sizes = fit.constraints
    return np.asarray(fit.covariance[:n, n:] / np.where(sizes > 0.0, sizes, 1.0)[:, None])


def statistical_errors(fit: LikelihoodFit) -> Floats:
    """(n_obs,) errors with all sources fixed."""
    full = np.diagonal(fit.value_covariance)
    return np.sqrt(np.maximum(full - _explained(fit, np.arange(len(fit.sources))), 0.0))


def systematic_errors(fit: LikelihoodFit) -> Floats:
    """(n_obs,) what the sources add to the statistical errors, in quadrature."""
    return np.sqrt(_explained(fit, np.arange(len(fit.sources))))


def _explained(fit: LikelihoodFit, members: Ints) -> Floats:
    """(n_obs,) Sigma_xg Sigma_gg^-1 Sigma_gx."""
    n = len(fit.sources)
    members = members[~fit.held[members]]
    if not len(members):
        return np.zeros(len(fit.values))
    precision = inverse(fit.covariance[np.ix_(members, members)])
    if precision is None:
        raise InputError("impacts: the covariance of the sources is singular")
    mixed = fit.covariance[members, n:]
    return np.asarray(np.einsum("ia,ij,ja->a", mixed, precision, mixed, optimize=True))


def frozen_impacts(
    fit: LikelihoodFit, groups: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Floats]:
    """(n_obs,) of each group, by default of each source.

    A group of the single member ``stat`` is the uncertainty with all sources fixed.
    """
    if groups is None:
        return dict(zip(fit.sources, np.abs(covariance_impacts(fit)), strict=True))
    return {
        name: statistical_errors(fit)
        if tuple(members) == (STATISTICAL,)
        else np.sqrt(_explained(fit, _members(fit, name, members)))
        for name, members in groups.items()
    }


def refitted_impacts(
    problem: LikelihoodProblem, fit: LikelihoodFit, groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Floats, Floats]]:
    """Frozen impacts (up, down), (n_obs,) each, by intervals with the group fixed; nan where one does not converge."""
    likelihood = likelihood_of(problem, fit.form, fit.fitted_values)
    minimum, n = minimum_of(fit, likelihood), len(fit.sources)
    result = {}
    for name, names in groups.items():
        fixed = np.zeros(len(fit.parameters), dtype=np.bool_)
        fixed[np.arange(n) if tuple(names) == (STATISTICAL,) else _members(fit, name, names)] = True
        up, down = intervals(likelihood, minimum, _conditional(fit.covariance, fixed), fixed=fixed)
        if tuple(names) == (STATISTICAL,):
            result[name] = (up, down)
        else:
            result[name] = (_difference(fit.up, up), _difference(fit.down, down))
    return result


def _difference(full: Floats, part: Floats) -> Floats:
    return np.sqrt(np.maximum(full**2 - part**2, 0.0))


def _conditional(covariance: Floats, fixed: Mask) -> Floats:
    """Covariance of the rest with ``fixed`` known, zeros for these."""
    known = fixed & (np.diagonal(covariance) > 0.0)
    precision = inverse(covariance[np.ix_(known, known)])
    if precision is None:
        raise InputError("impacts: the covariance of the sources is singular")
    mixed = covariance[:, known]
    result = covariance - mixed @ precision @ mixed.T
    result[fixed] = 0.0
    result[:, fixed] = 0.0
    return np.asarray(result)
