r"""One case of a combination, or a problem read from elsewhere, by its likelihood: the same record as the closed form.

There is no split that adds up. Weights are the change of a value with an input d, from the condition that the gradient
stays 0: with :math:`\Sigma^{-1}` half the Hessian

.. math:: W = -\Sigma\,\frac{\partial}{\partial d}\,\frac{1}{2}\frac{\partial\chi^2}{\partial\theta} .
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from musclecal.fits.combination.case_problem import CaseProblem
from musclecal.fits.combination.impacts import covariance_impacts, frozen_impacts
from musclecal.fits.combination.joined_inputs import likelihood_of
from musclecal.fits.combination.likelihood_fit import fit_likelihood, minimum_of
from musclecal.fits.combination.likelihood_scans import scan_correlations
from musclecal.records import Floats, MatrixAudit
from musclecal.records.combination_case import CaseResult, CaseScan, nominal_rho
from musclecal.records.combination_likelihood import LikelihoodFit, LikelihoodProblem

__all__ = ["likelihood_result", "problem_result"]

_STEP = 1e-3
"""Of an input, in its errors with all sources fixed."""


def likelihood_result(
    name: str,
    given: CaseProblem,
    statistical: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    audit: Mapping[str, MatrixAudit],
    form: str = "neyman",
    points: int = 20,
) -> CaseResult:
    """The result of a case.

    Parameters
    ----------
    statistical : sources of the statistical part. groups : of sources. audit : of the case.
    points : of each scan.
    """
    members = given.members

    def nuisances(sources: Sequence[str]) -> tuple[str, ...]:
        return tuple(nuisance for source in sources for nuisance in members.get(source, ()))

    systematic = nuisances([source for source in members if source not in statistical])
    by_group = {group: nuisances(sources) for group, sources in groups.items()}
    return problem_result(name, given.problem, members, systematic, by_group, audit, form, points)


def problem_result(
    name: str,
    problem: LikelihoodProblem,
    members: Mapping[str, Sequence[str]],
    systematic: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    audit: Mapping[str, MatrixAudit],
    form: str,
    points: int = 20,
) -> CaseResult:
    """The result of a likelihood; ``members``, ``systematic``, ``groups`` are of its nuisances.

    Spectators are fitted, but not reported.
    """
    fit = fit_likelihood(problem, form)
    m = len(problem.observables)
    syst = frozen_impacts(fit, {"systematic": systematic})["systematic"]
    stat = np.sqrt(np.maximum(fit.errors**2 - syst**2, 0.0))
    impacts = covariance_impacts(fit)
    return CaseResult(
        name=name,
        method=f"likelihood ({form})",
        observables=tuple(of for of, _ in problem.observables),
        inputs=tuple(estimate for one in problem.inputs for estimate in one.estimates),
        values=fit.values[:m],
        up=fit.up[:m],
        down=fit.down[:m],
        stat=stat[:m],
        syst=syst[:m],
        covariance=fit.value_covariance[:m, :m],
        chi2=fit.chi2,
        ndf=fit.ndf,
        p_value=fit.p_value,
        weights=_weights(problem, fit)[:m],
        pulls=np.zeros(0),
        without=None,
        split={},
        frozen={of: part[:m] for of, part in frozen_impacts(fit, members).items()},
        groups_split={},
        groups_frozen={of: part[:m] for of, part in frozen_impacts(fit, groups).items()},
        nuisances={of: part[:m] for of, part in zip(fit.sources, impacts, strict=True)},
        scans=_scans(problem, fit, m, points),
        audit=dict(audit),
    )


def _weights(problem: LikelihoodProblem, fit: LikelihoodFit) -> Floats:
    """(n_obs, n), by symmetric differences of the gradient at the minimum; no fit is repeated."""
    likelihood = likelihood_of(problem, fit.form, fit.fitted_values)
    side = minimum_of(fit, likelihood).side
    values, mixed = likelihood.responses.values, []
    for i, step in enumerate(_STEP / np.sqrt(np.diagonal(likelihood.weight))):
        gradients = []
        for sign in (1.0, -1.0):
            moved = values.copy()
            moved[i] += sign * step
            there = replace(likelihood, responses=replace(likelihood.responses, values=moved))
            gradients.append(there.gradient(fit.parameters, side))
        mixed.append((gradients[0] - gradients[1]) / (4.0 * step))
    return np.asarray(-fit.covariance[len(fit.sources) :] @ np.array(mixed).T)


def _scans(problem: LikelihoodProblem, fit: LikelihoodFit, m: int, points: int) -> tuple[CaseScan, ...]:
    result = []
    for scan, curve in zip(problem.scans, scan_correlations(problem, fit, points), strict=True):
        first = scan.ranges[0]
        width = first.stop - first.start
        result.append(
            CaseScan(
                name=scan.name,
                low=first.start,
                high=first.stop,
                values=curve.values[:, :m],
                errors=curve.errors[:, :m],
                chi2=curve.chi2,
                value_derivative=curve.value_slope[:m] / width,
                error_derivative=curve.error_slope[:m] / width,
                nominal=nominal_rho([(one.rho, one.start, one.stop) for one in scan.ranges]),
            )
        )
    return tuple(result)
