"""Closures, what they say about the uncertainty, and what that means."""

from dataclasses import dataclass

import numpy as np

from musclecal.records.arrays import Floats, Ints

__all__ = [
    "Closure",
    "ClosureSplits",
    "MassImpacts",
    "NuisanceGroup",
    "Nuisances",
    "ScaleFactor",
    "ScaleSystematic",
    "SplitTest",
    "WidthClosure",
]


@dataclass(frozen=True)
class Closure:
    """Residual correction seen by a resonance that the calibration did not use.

    Attributes
    ----------
    resonance, engine : what was closed, and how.
    eta_edges : (n_eta + 1,).
    parameter_names : the fitted ones, of A, e, M in this order.
    values : (n_eta, n_fitted) corrections still to be applied, after the calibration.
    covariance : (n_eta n_fitted, ...) of ``values`` from the closure sample alone, parameters of an eta bin together.
    calibration_covariance : the same shape: what the calibration's own uncertainty and that of the resonance
        mass add.
    chi2, ndf, p_value : of ``values`` against zero with the sum of both.
    fit_chi2, fit_ndf : of the fit to the 4D mass scales.
    s : factor on the calibration's uncertainty that makes the residuals expected, unclipped; None where no
        calibration was applied.
    mean_k : (n_eta,) mean curvature of the muons used, 1/GeV.
    events_fraction : events in used fits over events selected.
    applied : to the muons: "calibrated" (the campaign's), "uncorrected", "given_..." (a given correction), or "own
        events" where the calibration was made from these, so that the residual says nothing about its uncertainty.
    part : which events of the resonance: "all", or the half by event number that was held out, "even" or "odd".
    """

    resonance: str
    engine: str
    eta_edges: Floats
    parameter_names: tuple[str, ...]
    values: Floats
    covariance: Floats
    calibration_covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    fit_chi2: float
    fit_ndf: int
    s: float | None
    mean_k: Floats
    events_fraction: float
    applied: str = "calibrated"
    part: str = "all"

    @property
    def name(self) -> str:
        """For tables and titles: "Z", "Z odd"."""
        return self.resonance if self.part == "all" else f"{self.resonance} {self.part}"

    @property
    def s_quoted(self) -> float | None:
        """max(1, s)."""
        return None if self.s is None else max(1.0, self.s)


@dataclass(frozen=True)
class SplitTest:
    """Whether parts of a sample need the same correction.

    Attributes
    ----------
    name : of the test. parts : (n_part,) names. parameter_names : (n_par,).
    values : (n_part, n_par) correction of the part, or its difference to the whole, as the test says.
    errors : (n_part, n_par) from the closure sample alone.
    chi2, ndf, p_value : of all parts being alike.
    """

    name: str
    parts: tuple[str, ...]
    parameter_names: tuple[str, ...]
    values: Floats
    errors: Floats
    chi2: float
    ndf: int
    p_value: float


@dataclass(frozen=True)
class ClosureSplits:
    """All split tests of a resonance."""

    resonance: str
    tests: tuple[SplitTest, ...]

    @property
    def worst(self) -> SplitTest:
        """The test with the smallest p-value."""
        return min(self.tests, key=lambda test: test.p_value)

    @property
    def p_value(self) -> float:
        """Probability that the smallest of so many independent p-values is that small or smaller (Sidak)."""
        return float(-np.expm1(len(self.tests) * np.log1p(-min(self.worst.p_value, 1.0 - 1e-15))))


@dataclass(frozen=True)
class WidthClosure:
    """Mass widths of data over those of (smeared) simulation in the regions of one resonance.

    Attributes
    ----------
    resonance : name. used : whether these widths, or the same events, went into the resolution: then the errors are
        those of the ratios alone, and chi2 is smaller than its ndf.
    eta_edges : (n_eta + 1,). pt_edges : (n_pt + 1,) GeV.
    eta_bin : (n_region,) of the muon with the larger abs(eta).
    pt_bins : (n_region, 2) first, and one beyond the last, pT bin of the muon with the larger pT.
    ratio, error : (n_region,) of widths. n_events : (n_region,) of the data.
    chi2, ndf, p_value : of all ratios against one.
    mean, mean_error : weighted average of the ratios.
    """

    resonance: str
    used: bool
    eta_edges: Floats
    pt_edges: Floats
    eta_bin: Ints
    pt_bins: Ints
    ratio: Floats
    error: Floats
    n_events: Floats
    chi2: float
    ndf: int
    p_value: float
    mean: float
    mean_error: float


@dataclass(frozen=True)
class ScaleFactor:
    """The factor on the calibration's uncertainty that makes the residuals of a closure, or of several, expected.

    Attributes
    ----------
    name : of the resonance, or "joint".
    s : solution of chi2(s) = ndf, unclipped; 0 where the closure's own uncertainty is enough.
    interval_68, interval_95 : (low, high) central confidence intervals of s, from toys.
    s_ml : maximum-likelihood value, a cross-check; interval_68_ml, interval_95_ml : where -2 ln L rises by 1 and
        3.84.
    chi2, ndf, p_value : of the residuals at s = 1.
    """

    name: str
    s: float
    interval_68: tuple[float, float]
    interval_95: tuple[float, float]
    s_ml: float
    interval_68_ml: tuple[float, float]
    interval_95_ml: tuple[float, float]
    chi2: float
    ndf: int
    p_value: float

    @property
    def s_quoted(self) -> float:
        """max(1, s)."""
        return max(1.0, self.s)


@dataclass(frozen=True)
class ScaleSystematic:
    """The uncertainty of a calibration, scaled to what the closures show.

    Attributes
    ----------
    eta_edges : (n_eta + 1,).
    factors : one per closure. joint : of all closures together.
    quoted : name of the factor that is quoted.
    covariance : (3 n_eta, 3 n_eta) of the calibration times `s` squared, order A0, e0, M0, A1, ...
    """

    eta_edges: Floats
    factors: tuple[ScaleFactor, ...]
    joint: ScaleFactor
    quoted: str
    covariance: Floats

    @property
    def s(self) -> float:
        """The quoted factor, at least 1."""
        return self.factor(self.quoted).s_quoted

    def factor(self, name: str) -> ScaleFactor:
        """That of the resonance ``name``, or "joint". Raises KeyError for another name."""
        return {factor.name: factor for factor in (*self.factors, self.joint)}[name]


@dataclass(frozen=True)
class NuisanceGroup:
    """Independent one-sigma variations of some parameters of every eta bin: the sum of v v^T is their covariance.

    Attributes
    ----------
    name : where the uncertainty comes from.
    eta_edges : (n_eta + 1,).
    parameters : (n_fitted,) letters of the parameters of an eta bin: of A, e, M or of a, b, c, in this order.
    names : (n_nuisance,).
    variations : (n_nuisance, n_eta n_fitted), parameters of an eta bin together.
    """

    name: str
    eta_edges: Floats
    parameters: tuple[str, ...]
    names: tuple[str, ...]
    variations: Floats

    @property
    def covariance(self) -> Floats:
        """(n_eta n_fitted, ...) sum of v v^T."""
        return np.asarray(self.variations.T @ self.variations)


@dataclass(frozen=True)
class Nuisances:
    """All uncertainties of a calibration as independent nuisances, in groups of one source each."""

    groups: tuple[NuisanceGroup, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """(n_nuisance,) of all groups, in order."""
        return tuple(name for group in self.groups for name in group.names)


@dataclass(frozen=True)
class MassImpacts:
    """What calibration uncertainties do to a fitted boson mass. All in MeV.

    Attributes
    ----------
    boson : W or Z. luminosity : 1/fb. eta_edges : (n_eta + 1,).
    sources : (n_source,) names. n_nuisances : (n_source,) independent variations of each.
    unprofiled : (n_source,) of a fit in which the calibration is fixed.
    frozen : (n_source,) of a fit with nuisances: sqrt(total^2 - total^2 with those of the source fixed).
    constrained : (n_source,) of the same fit: what the source's own measurements contribute to the total error.
    unprofiled_total : the sources in quadrature.
    frozen_total : as ``frozen``, all sources together.
    constrained_total : ``constrained`` in quadrature; total_error^2 = data_error^2 + constrained_total^2.
    statistical : error of a fit in which the calibration is known.
    total_error : of the fit with nuisances, statistics included.
    data_error : the part of it that fluctuations of the data cause.
    scale_sensitivity : (n_eta, 3) d m/d(A, e, M) of the fixed fit: MeV, MeV/GeV, MeV GeV.
    resolution_sensitivity : (n_eta, 3) d m/d(a, b, c): MeV, MeV, MeV GeV^2.
    nuisance_unprofiled, nuisance_constrained : (sum of n_nuisances,) shift of each variation by +1, source by source.
    """

    boson: str
    luminosity: float
    eta_edges: Floats
    sources: tuple[str, ...]
    n_nuisances: tuple[int, ...]
    unprofiled: Floats
    frozen: Floats
    constrained: Floats
    unprofiled_total: float
    frozen_total: float
    constrained_total: float
    statistical: float
    total_error: float
    data_error: float
    scale_sensitivity: Floats
    resolution_sensitivity: Floats
    nuisance_unprofiled: Floats
    nuisance_constrained: Floats
