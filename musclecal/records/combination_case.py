"""A combination as its file describes it, with all correlations resolved, and what is said of it and its scenarios.

Axis words: ``n`` inputs, ``m`` observables, ``n_point`` points of a scan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from musclecal.records.arrays import Floats
from musclecal.records.combination import CorrelationRange, LeftOut, MatrixAudit, Measurements, Source

__all__ = [
    "CaseInputs",
    "CaseResult",
    "CaseScan",
    "CaseSource",
    "CombinationCase",
    "CombinationRun",
    "nominal_rho",
]


@dataclass(frozen=True)
class CaseSource:
    """One source of uncertainty.

    Attributes
    ----------
    up, down : (n,) signed change of each input when the source moves by one standard deviation up, or down; both 0:
        not affected.
    correlation : (n, n) of the effects on inputs i and j before signs; 1 is the same nuisance.
    shift_errors : (n,) statistical error of each shift, or None.
    relative : it scales with the combined value. statistical : it belongs to the statistical part of the uncertainty.
    group : a name under which impacts are added up, or "".
    """

    up: Floats
    down: Floats
    correlation: Floats
    shift_errors: Floats | None = None
    relative: bool = False
    statistical: bool = False
    group: str = ""

    @property
    def shifts(self) -> Floats:
        """(n,) half of the way from down to up."""
        return np.asarray(0.5 * (self.up - self.down))

    @property
    def asymmetric(self) -> bool:
        """Up and down are not opposite for some input."""
        return bool(np.any(self.up != -self.down))


@dataclass(frozen=True)
class CaseInputs:
    """What was measured, as given: relative sources with shifts of the measured values.

    Attributes
    ----------
    values : (n,). stat : (n,) error of the statistical sources. covariance : (n, n) of all sources, with halves of
        the way from down to up. design : (n, m), 1 where an input measures an observable.
    """

    values: Floats
    stat: Floats
    covariance: Floats
    design: Floats

    @property
    def errors(self) -> Floats:
        """(n,) total."""
        return np.sqrt(np.diagonal(self.covariance))


@dataclass(frozen=True)
class CombinationCase:
    """A combination, or one scenario of it.

    Attributes
    ----------
    name : "base", or that of the scenario. values : (n,). names : (n,) of the inputs.
    labels : (n,) of each input, as experiment or era; rules refer to them.
    design : (n, m), 1 where an input measures an observable. observables : (m,).
    sources : by name. scans : by name; the ranges of one move together.
    method : "auto", "closed form" or "likelihood". form : of the likelihood, "neyman" or "pearson".
    """

    name: str
    values: Floats
    names: tuple[str, ...]
    labels: tuple[Mapping[str, str], ...]
    design: Floats
    observables: tuple[str, ...]
    sources: Mapping[str, CaseSource]
    scans: Mapping[str, tuple[CorrelationRange, ...]]
    method: str = "auto"
    form: str = "neyman"

    @property
    def asymmetric(self) -> tuple[str, ...]:
        """Sources whose shifts up and down are not opposite."""
        return tuple(name for name, source in self.sources.items() if source.asymmetric)

    @property
    def relative(self) -> tuple[str, ...]:
        """Sources that scale with the combined value."""
        return tuple(name for name, source in self.sources.items() if source.relative)

    @property
    def statistical(self) -> tuple[str, ...]:
        """Sources of the statistical part."""
        return tuple(name for name, source in self.sources.items() if source.statistical)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Sources of each group."""
        found: dict[str, tuple[str, ...]] = {}
        for name, source in self.sources.items():
            if source.group:
                found[source.group] = (*found.get(source.group, ()), name)
        return found

    @property
    def measurements(self) -> Measurements:
        """For the closed form: shifts are halves of the way from down to up."""
        sources = {
            name: Source(source.shifts, source.correlation, source.shift_errors)
            for name, source in self.sources.items()
        }
        return Measurements(self.values, sources, self.design, self.names, self.observables)

    @property
    def measured(self) -> CaseInputs:
        """Values and errors of the inputs."""
        covariances = self.measurements.covariances
        variance = np.zeros(len(self.values))
        for name in self.statistical:
            variance += np.diagonal(covariances[name])
        total = np.sum([*covariances.values()], axis=0)
        return CaseInputs(self.values, np.sqrt(variance), total, self.design)

    def nominal(self, scan: str) -> float:
        """As `nominal_rho`."""
        return nominal_rho(
            [
                (float(self.sources[one.source].correlation[pair]), one.low, one.high)
                for one in self.scans[scan]
                for pair in one.pairs
            ]
        )


@dataclass(frozen=True)
class CaseScan:
    """Values and errors along one scan of correlations.

    Attributes
    ----------
    name : of the scan. low, high : ends of its first range. values, errors : (n_point, m). chi2 : (n_point,). All NaN
        where the correlations contradict each other.
    value_derivative, error_derivative : (m,) per unit of rho, at the nominal correlations.
    nominal : of the first range, as `nominal_rho`.
    """

    name: str
    low: float
    high: float
    values: Floats
    errors: Floats
    chi2: Floats
    value_derivative: Floats
    error_derivative: Floats
    nominal: float = np.nan

    @property
    def n_impossible(self) -> int:
        """Points at which the correlations contradict each other."""
        return int(np.count_nonzero(np.isnan(self.chi2)))

    @property
    def half_range_values(self) -> Floats:
        """(m,) (max - min)/2 over the points that are possible; NaN if none is."""
        return _half_range(self.values)

    @property
    def half_range_errors(self) -> Floats:
        """(m,) likewise of the errors."""
        return _half_range(self.errors)


def nominal_rho(moved: Sequence[tuple[float, float, float]]) -> float:
    """Where on a scan the nominal correlations are; NaN if they are on no point of it.

    Parameters
    ----------
    moved : rho, and start and end of its range, of all correlations that move together.
    """
    rho, start, end = np.array(moved).T
    if np.any(start == end):
        return np.nan
    way = (rho - start) / (end - start)
    return float(rho[0]) if np.ptp(way) < 1e-9 else np.nan


def _half_range(points: Floats) -> Floats:
    possible = points[np.all(np.isfinite(points), axis=1)]
    return np.asarray(0.5 * np.ptp(possible, axis=0)) if len(possible) else np.full(points.shape[1], np.nan)


@dataclass(frozen=True)
class CaseResult:
    """What one combination gives.

    Attributes
    ----------
    name : of the case. method : "closed form" or "likelihood". observables : (m,). inputs : (n,) names.
    values, up, down, stat, syst : (m,); up and down are sizes of the interval. stat and syst are of the `breakdown`.
    covariance : (m, m). chi2, ndf, p_value : of the inputs about the combination.
    weights : (m, n) change of a value per change of an input. pulls : (n,) of the inputs; empty for the likelihood.
    without : each input left out in turn; None for the likelihood.
    split : (m,) by source, root of its part of the covariance: these add up in quadrature to the total. Empty for the
        likelihood, which has no such parts.
    frozen : (m,) by source, what the error loses in quadrature if the source is known: these do not add up. NaN where
        nothing is left without it.
    groups_split, groups_frozen : (m,) the same by group.
    nuisances : (m,) signed, by nuisance: correlation times error. Empty for the closed form.
    scans : of all ranges. audit : correlation matrices by source, and the total.
    measured : values and errors of the inputs; None where they are fits of many parameters (files of Convino).
    """

    name: str
    method: str
    observables: tuple[str, ...]
    inputs: tuple[str, ...]
    values: Floats
    up: Floats
    down: Floats
    stat: Floats
    syst: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    weights: Floats
    pulls: Floats
    without: LeftOut | None
    split: Mapping[str, Floats]
    frozen: Mapping[str, Floats]
    groups_split: Mapping[str, Floats]
    groups_frozen: Mapping[str, Floats]
    nuisances: Mapping[str, Floats]
    scans: tuple[CaseScan, ...]
    audit: Mapping[str, MatrixAudit]
    measured: CaseInputs | None = None

    @property
    def errors(self) -> Floats:
        """(m,) standard deviations."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def correlation(self) -> Floats:
        """(m, m) of the values."""
        return np.asarray(self.covariance / self.errors[:, None] / self.errors)

    @property
    def breakdown(self) -> str:
        """What stat is: "split", its part of the covariance; "frozen", the error with all other sources known."""
        return "split" if self.split else "frozen"

    @property
    def broken(self) -> tuple[MatrixAudit, ...]:
        """Correlation matrices that cannot be one."""
        return tuple(found for found in self.audit.values() if not found.definite)


@dataclass(frozen=True)
class CombinationRun:
    """The base and its scenarios. ``unit`` of the values, for tables."""

    title: str
    unit: str
    base: CaseResult
    scenarios: tuple[CaseResult, ...]

    @property
    def results(self) -> tuple[CaseResult, ...]:
        """The base first."""
        return (self.base, *self.scenarios)
