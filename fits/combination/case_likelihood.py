r"""One case of a combination, or a problem read from elsewhere, by its likelihood: the same record as the closed form.

There is no split that adds up. Weights are the change of a value with an input: with responses K and weight M,
:math:`W = \Sigma_{x\theta} J^T M, J = (-K, U)` where chi2 is a parabola, and from fits to inputs that moved by a tenth
of their errors otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import block_diag

from musclecal.fits.combination.case_problem import CaseProblem
from musclecal.fits.combination.impacts import covariance_impacts, frozen_impacts
from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_scans import scan_correlations
from musclecal.records import Floats, MatrixAudit
from musclecal.records.combination_case import CaseResult, CaseScan
from musclecal.records.combination_likelihood import LikelihoodFit, LikelihoodProblem

__all__ = ["likelihood_result", "problem_result"]

_STEP = 0.1
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
    members = {of: given.members.get(of, ()) for of in given.members}

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
        split={},
        frozen={of: part[:m] for of, part in frozen_impacts(fit, members).items()},
        groups_split={},
        groups_frozen={of: part[:m] for of, part in frozen_impacts(fit, groups).items()},
        nuisances={of: part[:m] for of, part in zip(fit.sources, impacts, strict=True)},
        scans=_scans(problem, fit, m, points),
        audit=dict(audit),
    )


def _weights(problem: LikelihoodProblem, fit: LikelihoodFit) -> Floats:
    """(n_obs, n)."""
    if not fit.quadratic:
        return _fitted_weights(problem, fit)
    names, n = problem.sources, len(problem.sources)
    weight = block_diag(*(one.weight for one in problem.inputs))
    jacobian = np.zeros((len(weight), len(fit.parameters)))
    where = {e: a for a, (_, estimates) in enumerate(problem.observables) for e in estimates}
    where |= {e: len(problem.observables) + a for a, e in enumerate(problem.spectators)}
    row = 0
    for one in problem.inputs:
        rows = slice(row, row + len(one.estimates))
        jacobian[rows, [names.index(source) for source in one.sources]] = -one.up
        for estimate in one.estimates:
            jacobian[row, n + where[estimate]] = 1.0
            row += 1
    return np.asarray(fit.covariance[n:] @ jacobian.T @ weight)


def _fitted_weights(problem: LikelihoodProblem, fit: LikelihoodFit) -> Floats:
    columns = []
    for k, one in enumerate(problem.inputs):
        for i in range(len(one.estimates)):
            step = _STEP / np.sqrt(one.weight[i, i])
            values = []
            for sign in (1.0, -1.0):
                moved = one.values.copy()
                moved[i] += sign * step
                inputs = (*problem.inputs[:k], replace(one, values=moved), *problem.inputs[k + 1 :])
                there = replace(problem, inputs=inputs)
                values.append(
                    fit_likelihood(there, fit.form, fitted_values=fit.fitted_values, minos=False).values
                )
            columns.append((values[0] - values[1]) / (2.0 * step))
    return np.array(columns).T


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
            )
        )
    return tuple(result)
