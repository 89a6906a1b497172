"""Measurements that are combined, and what a combination of them says.

Axis words: ``n`` inputs, ``m`` observables, ``n_source`` sources of uncertainty, ``n_point`` points of a scan.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from musclecal.errors import InputError
from musclecal.records.arrays import Floats, Ints

__all__ = [
    "Combined",
    "CorrelationRange",
    "CorrelationScan",
    "Derived",
    "GroupedCombination",
    "LeftOut",
    "MatrixAudit",
    "Measurements",
    "RepairedCorrelation",
    "RescaledCombination",
    "ShiftToys",
    "Source",
    "WorstCase",
]


@dataclass(frozen=True)
class Source:
    """One source of uncertainty: covariance_ij = correlation_ij u_i u_j with SIGNED shifts u.

    Attributes
    ----------
    shifts : (n,) u_i, change of input i when the source moves up by one standard deviation; 0: not affected.
    correlation : (n, n) of the source's effect on inputs i and j before signs: 1 is the same nuisance.
    shift_errors : (n,) statistical error of each shift (finite simulation), or None: exactly known.
    """

    shifts: Floats
    correlation: Floats
    shift_errors: Floats | None = None

    @property
    def covariance(self) -> Floats:
        """(n, n)."""
        return np.asarray(self.correlation * self.shifts[:, None] * self.shifts)


@dataclass(frozen=True)
class Measurements:
    """Inputs of a combination: `input i` = sum_a design_ia `observable a`, with named sources of uncertainty.

    Attributes
    ----------
    values : (n,). design : (n, m), 1 where an input measures an observable.
    sources : by name; at least one must give every input an uncertainty of its own.
    names : (n,) of the inputs. observables : (m,) names.
    """

    values: Floats
    sources: Mapping[str, Source]
    design: Floats
    names: tuple[str, ...]
    observables: tuple[str, ...]

    @property
    def covariances(self) -> dict[str, Floats]:
        """Of each source, (n, n)."""
        return {name: source.covariance for name, source in self.sources.items()}


@dataclass(frozen=True)
class Combined:
    """Best linear unbiased estimates of m observables from n inputs.

    Attributes
    ----------
    values : (m,). covariance : (m, m).
    chi2, ndf, p_value : of the inputs about the combination; ndf = n - m, p_value 1 where it is 0.
    weights : (m, n), values = weights @ inputs.
    by_source : parts of the covariance (m, m), one of each source; their sum is ``covariance``.
    pulls : (n,) residual of an input over its standard deviation; NaN where it is 0 whatever is measured.
    intrinsic_weights : (m, n) information of an input alone over that of the combination.
    correlation_weights : (m,) what is left to 1: the part of the correlations, of either sign.
    marginal_weights : (m, n) share of the information that is lost without the input; 1 if all is.
    residual_precision : (n, n) V^-1 - V^-1 U cov U^T V^-1, which is V^-1 residual when applied to the inputs.
    inputs : (n,). design : (n, m). input_covariance : (n, n). names : (n,). observables : (m,).
    """

    values: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    weights: Floats
    by_source: Mapping[str, Floats]
    pulls: Floats
    intrinsic_weights: Floats
    correlation_weights: Floats
    marginal_weights: Floats
    residual_precision: Floats
    inputs: Floats
    design: Floats
    input_covariance: Floats
    names: tuple[str, ...]
    observables: tuple[str, ...]

    @property
    def errors(self) -> Floats:
        """(m,) standard deviations."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def residuals(self) -> Floats:
        """(n,) inputs less what the combination says of them."""
        return np.asarray(self.inputs - self.design @ self.values)

    def split(self, statistical: Collection[str]) -> tuple[Floats, Floats]:
        """Covariances (m, m) of the statistical sources, named here, and of all others."""
        missing = [name for name in statistical if name not in self.by_source]
        if missing:
            raise InputError(f"split: there is no source {missing[0]!r}")
        inside = np.zeros_like(self.covariance)
        outside = np.zeros_like(self.covariance)
        for name, part in self.by_source.items():
            (inside if name in statistical else outside)[...] += part
        return inside, outside

    def impact(self, shifts: Floats) -> Floats:
        """(m,) signed change of the values when the inputs move by ``shifts`` (n,): a fully correlated source."""
        return np.asarray(self.weights @ shifts)


@dataclass(frozen=True)
class LeftOut:
    """The combination without one input, for each input.

    Attributes
    ----------
    values : (n, m); NaN where an observable is not measured any more. covariance : (n, m, m) likewise.
    chi2, ndf : (n,).
    compatibility : (n,) input less the combination of all others, over its standard deviation; NaN where the others say
        nothing of it.
    """

    values: Floats
    covariance: Floats
    chi2: Floats
    ndf: Ints
    compatibility: Floats


@dataclass(frozen=True)
class GroupedCombination:
    """A combination of combinations: ``parts`` each of one group alone; ``combined`` of their values."""

    parts: Mapping[str, Combined]
    combined: Combined


@dataclass(frozen=True)
class RescaledCombination:
    """A combination whose relative uncertainties are of the combined value: the last one, and how it was reached.

    ``first`` has the uncertainties as measured. If not ``converged``, ``combined`` is what the last step gave.
    """

    combined: Combined
    first: Combined
    iterations: int
    converged: bool


@dataclass(frozen=True)
class CorrelationRange:
    """The correlation of some pairs of inputs in one source, moved together from ``low`` to ``high``."""

    source: str
    pairs: tuple[tuple[int, int], ...]
    low: float
    high: float


@dataclass(frozen=True)
class CorrelationScan:
    """A combination as a function of correlations.

    Attributes
    ----------
    name : of the scan. rho : (n_point,) of the first range; other ranges of the scan go with it from end to end.
    values, errors : (n_point, m). chi2 : (n_point,). All NaN where the total is not positive definite.
    value_derivative : (m,) d value/d rho, at the nominal correlations. covariance_derivative : (m, m) likewise.
    error_derivative : (m,) likewise.
    allowed : lowest and highest rho with a positive definite total: beyond -1 and 1 where nothing is near, -inf and inf
        where nothing limits it; NaN if no point of the scan has a combination.
    """

    name: str
    rho: Floats
    values: Floats
    errors: Floats
    chi2: Floats
    value_derivative: Floats
    covariance_derivative: Floats
    error_derivative: Floats
    allowed: tuple[float, float]

    @property
    def half_range_values(self) -> Floats:
        """(m,) (max - min)/2 of the values over the scan; NaN if a point of it is."""
        return np.asarray(0.5 * np.ptp(self.values, axis=0))

    @property
    def half_range_errors(self) -> Floats:
        """(m,) (max - min)/2 of the errors over the scan; NaN if a point of it is."""
        return np.asarray(0.5 * np.ptp(self.errors, axis=0))


@dataclass(frozen=True)
class WorstCase:
    """The extreme of one number over a box of correlations.

    Attributes
    ----------
    quantity : "lowest value", "highest value", "smallest error" or "largest error". extreme : what it reaches.
    position : (n_scan,) where: 0 is the low end of a range and 1 the high end.
    names : (n_scan,) of the ranges. corner : what the corner by signs of the derivatives alone gives; NaN if the total
        is not positive definite there.
    passes : over all ranges until nothing improved. converged : whether this was so.
    """

    quantity: str
    extreme: float
    position: Floats
    names: tuple[str, ...]
    corner: float
    passes: int
    converged: bool


@dataclass(frozen=True)
class ShiftToys:
    """Combinations with all shifts fluctuated by their statistical errors.

    Attributes
    ----------
    values, errors : (n_toy, m); NaN in a toy whose total is not positive definite, ``n_failed`` of them.
    flips : (n_source, n) toys in which a shift has changed its sign. sources : (n_source,) those that fluctuate.
    nominal_values, nominal_errors : (m,). names : (n,) of the inputs.
    """

    values: Floats
    errors: Floats
    flips: Ints
    sources: tuple[str, ...]
    names: tuple[str, ...]
    nominal_values: Floats
    nominal_errors: Floats
    n_failed: int

    @property
    def spread(self) -> tuple[Floats, Floats]:
        """Standard deviations (m,) of the values and of the errors over toys."""
        return np.nanstd(self.values, axis=0), np.nanstd(self.errors, axis=0)

    @property
    def bias(self) -> tuple[Floats, Floats]:
        """(m,) mean of the values and of the errors over toys, less the nominal ones."""
        return (
            np.nanmean(self.values, axis=0) - self.nominal_values,
            np.nanmean(self.errors, axis=0) - self.nominal_errors,
        )


@dataclass(frozen=True)
class MatrixAudit:
    """Whether a correlation matrix can be one, and if not, what breaks it.

    Attributes
    ----------
    name : of the source, or "total". definite : no eigenvalue is negative beyond rounding.
    smallest_eigenvalue : of the correlations among inputs that the source affects. n_negative : how many are below 0.
    group : names of the inputs with most of its eigenvector. pair : the one whose correlation alone could mend it with
        the smallest change, or that pulls most where none can; None if nothing is broken.
    rho : of this pair as it is. allowed : lowest and highest with all others as they are; NaN if no rho will do.
    """

    name: str
    definite: bool
    smallest_eigenvalue: float
    n_negative: int
    group: tuple[str, ...]
    pair: tuple[str, str] | None
    rho: float
    allowed: tuple[float, float]


@dataclass(frozen=True)
class RepairedCorrelation:
    """A correlation matrix made positive semi-definite, and what that did.

    Attributes
    ----------
    method : "shift", "clip" or "nearest". correlation : (n, n) with a unit diagonal.
    smallest_before, smallest_after : eigenvalues.
    distance : root of the sum of squared changes. largest_change : signed. pair : of inputs that have it.
    """

    method: str
    correlation: Floats
    smallest_before: float
    smallest_after: float
    distance: float
    largest_change: float
    pair: tuple[int, int]


@dataclass(frozen=True)
class Derived:
    """Functions of the combined observables.

    Attributes
    ----------
    names : (n_out,). values : (n_out,). covariance : (n_out, n_out). jacobian : (n_out, m).
    by_source : parts of the covariance; their sum is ``covariance``.
    """

    names: tuple[str, ...]
    values: Floats
    covariance: Floats
    jacobian: Floats
    by_source: Mapping[str, Floats]

    @property
    def errors(self) -> Floats:
        """(n_out,) standard deviations."""
        return np.sqrt(np.diagonal(self.covariance))
