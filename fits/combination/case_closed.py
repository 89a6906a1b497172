r"""One case of a combination in closed form: values, both breakdowns, scans, audit.

Relative sources are scaled to the combined values first (`blue_rescaled`); weights, breakdowns and scans are those of
the scaled shifts. By source there are two different numbers: its part :math:`W V_s W^T` of the covariance, which adds
up, and what the error loses if the source is known and the inputs are weighted anew (frozen), which does not.

Not for: asymmetric shifts (`case_likelihood`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.best_linear import combine, whitening
from musclecal.fits.combination.definiteness import audit
from musclecal.fits.combination.leave_out import leave_one_out
from musclecal.fits.combination.rescaled import blue_rescaled
from musclecal.fits.combination.scans import scan_correlations
from musclecal.records import Combined, Floats, Measurements
from musclecal.records.combination_case import CaseResult, CaseScan, CombinationCase

__all__ = ["closed_result"]


def closed_result(case: CombinationCase, points: int = 20) -> CaseResult:
    """The result of ``case``, with ``points`` along each scan.

    Raises
    ------
    InputError : asymmetric sources; as `combine`, `blue_rescaled` and `scan_correlations`.
    """
    if case.asymmetric:
        raise InputError(
            f"{case.asymmetric[0]} has asymmetric shifts, which the closed form does not know: method = "
            '"likelihood", or symmetric ones'
        )
    given = _scaled(case)
    found = combine(given)
    covariances = given.covariances
    stat, syst = found.split(case.statistical)
    members = {name: (name,) for name in given.sources}
    errors = found.errors
    return CaseResult(
        name=case.name,
        method="closed form",
        observables=case.observables,
        inputs=case.names,
        values=found.values,
        up=errors,
        down=errors,
        stat=_root(stat),
        syst=_root(syst),
        covariance=found.covariance,
        chi2=found.chi2,
        ndf=found.ndf,
        p_value=found.p_value,
        weights=found.weights,
        pulls=found.pulls,
        without=leave_one_out(found),
        split=_split(found, members),
        frozen=_frozen(found, covariances, members),
        groups_split=_split(found, case.groups),
        groups_frozen=_frozen(found, covariances, case.groups),
        nuisances={},
        scans=_scans(case, given, found, points),
        audit=audit(given),
        measured=case.measured,
    )


def _scaled(case: CombinationCase) -> Measurements:
    """Relative sources with shifts of the combined values, not of the measured ones."""
    given = case.measurements
    if not case.relative:
        return given
    found = blue_rescaled(
        given.values,
        given.covariances,
        case.relative,
        given.design,
        names=given.names,
        observables=given.observables,
    )
    if not found.converged:
        raise InputError(
            f"relative sources {', '.join(case.relative)}: no convergence in {found.iterations} steps"
        )
    scale = given.design @ found.combined.values / given.values
    sources = {
        name: replace(source, shifts=source.shifts * scale) if name in case.relative else source
        for name, source in given.sources.items()
    }
    return replace(given, sources=sources)


def _root(part: Floats) -> Floats:
    """(m,) of the diagonal; a source that is not positive semi-definite may have a negative part, which counts as 0."""
    return np.sqrt(np.maximum(np.diagonal(part), 0.0))


def _split(found: Combined, members: Mapping[str, Sequence[str]]) -> dict[str, Floats]:
    return {
        name: _root(np.sum([found.by_source[source] for source in sources], axis=0))
        for name, sources in members.items()
    }


def _frozen(
    found: Combined, covariances: Mapping[str, Floats], members: Mapping[str, Sequence[str]]
) -> dict[str, Floats]:
    """(m,) root of var(x) - var(x without these sources); NaN where nothing is left without them."""
    result = {}
    for name, sources in members.items():
        rest = found.input_covariance - np.sum([covariances[source] for source in sources], axis=0)
        result[name] = np.sqrt(
            np.maximum(np.diagonal(found.covariance) - _variances(rest, found.design), 0.0)
        )
    return result


def _variances(total: Floats, design: Floats) -> Floats:
    """(m,) of a combination; NaN if the total is not positive definite."""
    if np.min(np.diagonal(total)) <= 0.0:
        return np.full(design.shape[1], np.nan)
    try:
        white = whitening(total) @ design
        return np.asarray(np.diagonal(np.linalg.inv(white.T @ white)))
    except np.linalg.LinAlgError:
        return np.full(design.shape[1], np.nan)


def _scans(case: CombinationCase, given: Measurements, found: Combined, points: int) -> tuple[CaseScan, ...]:
    scans = scan_correlations(given, case.scans, points, found)
    return tuple(
        CaseScan(
            name=name,
            low=case.scans[name][0].low,
            high=case.scans[name][0].high,
            values=scan.values,
            errors=scan.errors,
            chi2=scan.chi2,
            value_derivative=scan.value_derivative,
            error_derivative=scan.error_derivative,
            nominal=case.nominal(name),
        )
        for name, scan in scans.items()
    )
