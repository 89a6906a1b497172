"""What goes into the likelihood of a combination, and what comes out.

Axis words: ``n_estimate`` measured values of an input, ``n_source`` sources of systematic uncertainty (nuisances, in
units of their prior width), ``n_obs`` combined values, ``n_par`` = n_source + n_obs, sources first.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from musclecal.records.arrays import Floats

__all__ = [
    "CONVERGED",
    "NOT_A_MINIMUM",
    "NO_STEPS_LEFT",
    "STATISTICAL",
    "CorrelationRange",
    "CorrelationScan",
    "LikelihoodFit",
    "LikelihoodInput",
    "LikelihoodProblem",
    "ScanCurve",
]

CONVERGED, NO_STEPS_LEFT, NOT_A_MINIMUM = 0, 1, 2
"""Status of a fit: good; still descending after the last step allowed; no positive definite Hessian."""


STATISTICAL = "stat"
"""Member of a group that stands for everything but the sources; a column of that name in tables of Convino."""


@dataclass(frozen=True)
class LikelihoodInput:
    r"""One measurement, of one or more estimates, apart from the prior of its sources.

    .. math:: \chi^2 = r^T M r + \delta^T D\,\delta - 2\,\delta^T P\,\hat\lambda + \mathrm{const},
              \qquad \delta = \lambda - \hat\lambda

    Attributes
    ----------
    name : for messages. estimates : (n_estimate,) names. values : (n_estimate,) d.
    weight : (n_estimate, n_estimate) M, inverse covariance with all sources fixed.
    sources : (n_source,) names; equal names in several inputs are one source.
    up, down : (n_estimate, n_source) by how much an estimate would have come out higher with the source assumed one
        prior width higher, or lower; down = -up if symmetric.
    relative : (n_source,) the response scales with the combined value.
    profiled : (n_source,) the source was a parameter of the fit of this input, not added afterwards.
    constraint : (n_source, n_source) D, what the data of this input alone say about its sources.
    fitted : (n_source,) lambda-hat, values of the sources in the fit of this input.
    prior : (n_source,) P, 1 for a source with a prior of unit width, 0 for one that is free.
    """

    name: str
    estimates: tuple[str, ...]
    values: Floats
    weight: Floats
    sources: tuple[str, ...]
    up: Floats
    down: Floats
    relative: NDArray[np.bool_]
    profiled: NDArray[np.bool_]
    constraint: Floats
    fitted: Floats
    prior: Floats

    @property
    def asymmetric(self) -> NDArray[np.bool_]:
        """(n_source,) sources whose up and down changes of some estimate are not opposite."""
        return np.any(self.up != -self.down, axis=0)


@dataclass(frozen=True)
class CorrelationRange:
    """Prior correlation ``rho`` of two sources, and the range over which it is scanned (both ``rho``: it is not)."""

    first: str
    second: str
    rho: float
    start: float
    stop: float


@dataclass(frozen=True)
class CorrelationScan:
    """Correlations that are changed together, each over its own range."""

    name: str
    ranges: tuple[CorrelationRange, ...]


@dataclass(frozen=True)
class LikelihoodProblem:
    """Inputs, and what is to be made of them.

    Attributes
    ----------
    inputs : (n_input,).
    observables : name of each combined value and the estimates that measure it. An estimate that measures none of
        them is a spectator: it gets a value of its own, and takes part through the sources.
    correlations : prior correlations of sources; of equal pairs the last one holds.
    scans : what to scan.
    groups : names of groups of sources and their members, for impacts. A group of the one member "stat" is the
        uncertainty with all sources fixed.
    normalise : combined values are to be divided by their sum afterwards; the fit does not look at it.
    """

    inputs: tuple[LikelihoodInput, ...]
    observables: tuple[tuple[str, tuple[str, ...]], ...]
    correlations: tuple[CorrelationRange, ...] = ()
    scans: tuple[CorrelationScan, ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    normalise: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """(n_source,) of all inputs, each once, in the order of their first appearance."""
        return tuple(dict.fromkeys(source for one in self.inputs for source in one.sources))

    @property
    def spectators(self) -> tuple[str, ...]:
        """Estimates that measure no observable."""
        used = {estimate for _, estimates in self.observables for estimate in estimates}
        return tuple(e for one in self.inputs for e in one.estimates if e not in used)

    @property
    def free(self) -> NDArray[np.bool_]:
        """(n_source,) sources without a prior."""
        kinds = {s: p == 0.0 for one in self.inputs for s, p in zip(one.sources, one.prior, strict=True)}
        return np.array([kinds[source] for source in self.sources], dtype=np.bool_)


@dataclass(frozen=True)
class LikelihoodFit:
    """The minimum of the likelihood of a combination.

    Attributes
    ----------
    observables : (n_obs,) names; the last ``n_spectator`` are spectators.
    sources : (n_source,).
    parameters : (n_par,) at the minimum.
    covariance : (n_par, n_par) inverse of half the Hessian. Rows of ``held`` sources are zero.
    up, down : (n_obs,) sizes of the interval where the profiled chi2 rises by 1; nan where a profile did not
        converge; those of a parabola if no intervals were asked for.
    chi2, ndf, p_value : an input whose fitted sources are used adds one degree of freedom per direction of its
        sources that it has measured. p_value is 1 for ndf = 0.
    form : "neyman" or "pearson". fitted_values : whether values of sources fitted by the inputs were used.
    quadratic : the chi2 is a parabola, and was minimised by one linear system.
    held : (n_source,) sources that stand on the kink of an asymmetric response.
    iterations, status : `CONVERGED` is good.
    """

    observables: tuple[str, ...]
    n_spectator: int
    sources: tuple[str, ...]
    parameters: Floats
    covariance: Floats
    up: Floats
    down: Floats
    chi2: float
    ndf: int
    p_value: float
    form: str
    fitted_values: bool
    quadratic: bool
    held: NDArray[np.bool_]
    iterations: int
    status: int

    @property
    def values(self) -> Floats:
        """(n_obs,) combined values."""
        return self.parameters[len(self.sources) :]

    @property
    def value_covariance(self) -> Floats:
        """(n_obs, n_obs)."""
        n = len(self.sources)
        return self.covariance[n:, n:]

    @property
    def errors(self) -> Floats:
        """(n_obs,) standard deviations of the values."""
        return np.asarray(np.sqrt(np.diagonal(self.value_covariance)))

    @property
    def pulls(self) -> Floats:
        """(n_source,) fitted values of the sources in units of their prior widths."""
        return self.parameters[: len(self.sources)]

    @property
    def constraints(self) -> Floats:
        """(n_source,) their uncertainties after the fit, in the same units."""
        return np.asarray(np.sqrt(np.diagonal(self.covariance)[: len(self.sources)]))


@dataclass(frozen=True)
class ScanCurve:
    """Combined values along a range of correlations.

    Attributes
    ----------
    name : of the scan. fraction : (n_point,) 0 at the start of every range, 1 at its end.
    rho : (n_point, n_range) the correlations.
    values, errors : (n_point, n_obs). chi2 : (n_point,). All nan where ``status`` is not good.
    value_slope, error_slope : (n_obs,) change per unit of ``fraction``, at the correlations of the fit.
    status : (n_point,) a status of fits; `NOT_A_MINIMUM` where the correlations contradict each other.
    """

    name: str
    fraction: Floats
    rho: Floats
    values: Floats
    errors: Floats
    chi2: Floats
    value_slope: Floats
    error_slope: Floats
    status: NDArray[np.int64] = field(repr=False)

    @property
    def half_range(self) -> Floats:
        """(n_obs,) (max - min)/2 of the values."""
        return np.asarray((np.nanmax(self.values, axis=0) - np.nanmin(self.values, axis=0)) / 2.0)

    @property
    def error_half_range(self) -> Floats:
        """(n_obs,) (max - min)/2 of the errors."""
        return np.asarray((np.nanmax(self.errors, axis=0) - np.nanmin(self.errors, axis=0)) / 2.0)
