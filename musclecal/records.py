"""The frozen records that stages hand to each other. No computation beyond reading a record another way.

Axis words: ``n_event`` events, ``n_bin`` occupied 4D bins (`Binning` numbers them), ``n_mass`` mass bins, ``n_gen``
generator-level mass bins, ``n_eta`` eta bins. Parameters of a calibration run fastest: A0, e0, M0, A1, e1, M1, ...
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import Binning, TemplateBinning
from musclecal.kinematics import pair_masses

__all__ = [
    "BinFits",
    "BosonTemplates",
    "Closure",
    "ClosureSplits",
    "CutFlow",
    "DimuonEvents",
    "Floats",
    "Ints",
    "JointFit",
    "MassFits",
    "MassHistogram",
    "MassImpacts",
    "MassWidths",
    "MuonResiduals",
    "Muons",
    "NuisanceGroup",
    "Nuisances",
    "PhiRefinement",
    "Resolution",
    "RunRefinement",
    "SampleAgainstRest",
    "ScaleCalibration",
    "ScaleFactor",
    "ScaleInformation",
    "ScaleParameters",
    "ScaleSystematic",
    "ScaleWithCovariance",
    "Smearing",
    "SplitTest",
    "TemplateFit",
    "TemplateHistogram",
    "WidthClosure",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Muons:
    """One muon of each event: ``pt`` (GeV), ``eta``, ``phi`` (rad), arrays (n_event,); ``pt_err`` (GeV) if known."""

    pt: Floats
    eta: Floats
    phi: Floats
    pt_err: Floats | None = None

    def __len__(self) -> int:
        return len(self.pt)

    def select(self, which: NDArray[np.bool_] | Ints) -> "Muons":
        """The muons of a mask or of indices."""
        error = None if self.pt_err is None else self.pt_err[which]
        return Muons(self.pt[which], self.eta[which], self.phi[which], error)


@dataclass(frozen=True)
class DimuonEvents:
    """Opposite-sign muon pairs, one row a pair: a chunk of a sample.

    Attributes
    ----------
    plus, minus : measured muons of charge +1 and -1.
    gen_plus, gen_minus : the same muons at generator level, after FSR; None in data.
    run, lumi, event : (n_event,) int64, or None where the file has none.
    extra : further columns by name, (n_event,) each; per-muon ones are called ``name_plus`` and ``name_minus``.
    """

    plus: Muons
    minus: Muons
    gen_plus: Muons | None = None
    gen_minus: Muons | None = None
    run: Ints | None = None
    lumi: Ints | None = None
    event: Ints | None = None
    extra: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.plus)

    @cached_property
    def mass(self) -> Floats:
        """(n_event,) GeV, from both momenta with the muon mass."""
        return _mass(self.plus, self.minus)

    @cached_property
    def gen_mass(self) -> Floats | None:
        """(n_event,) GeV at generator level after FSR, or None."""
        if self.gen_plus is None or self.gen_minus is None:
            return None
        return _mass(self.gen_plus, self.gen_minus)

    def select(self, which: NDArray[np.bool_] | Ints) -> "DimuonEvents":
        """The events of a mask or of indices."""
        return DimuonEvents(
            self.plus.select(which),
            self.minus.select(which),
            None if self.gen_plus is None else self.gen_plus.select(which),
            None if self.gen_minus is None else self.gen_minus.select(which),
            None if self.run is None else self.run[which],
            None if self.lumi is None else self.lumi[which],
            None if self.event is None else self.event[which],
            {name: column[which] for name, column in self.extra.items()},
        )

    def with_momenta(self, pt_plus: Floats, pt_minus: Floats) -> "DimuonEvents":
        """The same events with other measured transverse momenta (GeV)."""
        return replace(self, plus=replace(self.plus, pt=pt_plus), minus=replace(self.minus, pt=pt_minus))


def _mass(one: Muons, two: Muons) -> Floats:
    return np.asarray(pair_masses(one.pt, one.eta, one.phi, two.pt, two.eta, two.phi), dtype=np.float64)


@dataclass(frozen=True)
class CutFlow:
    """How many rows were left after each named step, in order: ``names`` and ``counts``, the first is what came in."""

    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    def __add__(self, other: "CutFlow") -> "CutFlow":
        """Two chunks of one sample together. The steps must be the same."""
        if not self.names:
            return other
        if self.names != other.names:
            raise ValueError(f"cut flows of different steps: {self.names} and {other.names}")
        return CutFlow(self.names, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def then(self, later: "CutFlow") -> "CutFlow":
        """This flow followed by ``later``, whose first step is what this one left."""
        if not self.names or not later.names:
            return self if self.names else later
        if self.counts[-1] != later.counts[0]:
            raise ValueError(f"a cut flow that leaves {self.counts[-1]} cannot go on with {later.counts[0]}")
        return CutFlow(self.names + later.names[1:], self.counts + later.counts[1:])


@dataclass(frozen=True)
class MassHistogram:
    """Counts of a sample in 4D x mass, occupied 4D bins only, in increasing order of their number.

    Attributes
    ----------
    binning : the axes.
    bins : (n_bin,) 4D bin numbers.
    counts : (n_bin, n_mass) events, or sums of weights.
    variances : (n_bin, n_mass) sums of squared weights; None where all weights are one.
    generator : (n_bin, n_gen) generator-level masses of events in the 4D bin of their measured momenta, whatever
        their measured mass; or None.
    mean_k, mean_pt, mean_f : (n_bin, 2) averages of k (1/GeV), 1/k (GeV) and the muon-mass factor f over the events
        of the bin, column 0 for mu+, 1 for mu-.
    n_outside : selected events outside the binning.
    cut_flows : how the selection went, by sample.
    mean_pt2 : (n_bin, 2) averages of 1/k^2 (GeV^2), not mean_pt^2 in a wide pT bin; None where they were not summed.
    """

    binning: Binning
    bins: Ints
    counts: NDArray[np.float64] | Ints
    mean_k: Floats
    mean_pt: Floats
    mean_f: Floats
    generator: NDArray[np.float64] | Ints | None = None
    variances: Floats | None = None
    n_outside: int = 0
    cut_flows: Mapping[str, CutFlow] = field(default_factory=dict)
    mean_pt2: Floats | None = None

    @property
    def n_events(self) -> float:
        """Events inside the binning and the mass window."""
        return float(self.counts.sum())


@dataclass(frozen=True)
class TemplateHistogram:
    """Counts of a sample for the template fit, and how they change when the momenta are corrected; occupied 4D bins.

    Attributes
    ----------
    binning : the axes. bins : (n_bin,) 4D bin numbers, increasing.
    counts : (n_bin, n_mass) events, or sums of weights.
    variances : (n_bin, n_mass) sums of squared weights; None where all weights are one.
    derivatives : (n_bin, n_mass, 8) of the counts by a correction A, e (GeV), M (1/GeV) and by an additional
        (sigma_k/k)^2 of mu+, then the same of mu-; (n_bin, n_mass, 0) where they were not filled.
    half_derivatives : the derivatives of a random half of the sample, which tell their noise; None: it is not known.
    mean_k : (n_bin, 2) average curvature of mu+ and mu-, 1/GeV.
    n_outside : selected events outside the binning. cut_flows : how the selection went, by sample.
    """

    binning: TemplateBinning
    bins: Ints
    counts: Floats
    derivatives: Floats
    mean_k: Floats
    variances: Floats | None = None
    n_outside: int = 0
    cut_flows: Mapping[str, CutFlow] = field(default_factory=dict)
    half_derivatives: Floats | None = None

    @property
    def n_events(self) -> float:
        """Events inside the binning and the mass window."""
        return float(self.counts.sum())


@dataclass(frozen=True)
class BinFits:
    """Fits of one model to the masses of every 4D bin. Failed fits keep their row, status and counts.

    Attributes
    ----------
    parameter_names : (n_par,).
    parameters : (n_bin, n_par); scale and width (relative) first.
    covariance : (n_bin, n_par, n_par) inverse of the observed Hessian; rows of parameters at a bound are zero.
    status : (n_bin,) a `FitStatus` value; 0 is good.
    edm : (n_bin,) expected distance to the minimum, in units of -ln L.
    chi2, ndf : (n_bin,) Pearson chi2 of the binned masses.
    n_events : (n_bin,) counts in the window. n_signal : (n_bin,) of these, fitted signal.
    iterations : (n_bin,).
    """

    parameter_names: tuple[str, ...]
    parameters: Floats
    covariance: Floats
    status: Ints
    edm: Floats
    chi2: Floats
    ndf: Ints
    n_events: Floats
    n_signal: Floats
    iterations: Ints

    @property
    def scale(self) -> Floats:
        """(n_bin,) fitted mass over the reference mass."""
        return self.parameters[:, 0]

    @property
    def width(self) -> Floats:
        """(n_bin,) fitted relative mass resolution."""
        return self.parameters[:, 1]

    @property
    def converged(self) -> NDArray[np.bool_]:
        """(n_bin,) fits that may be used."""
        return self.status == 0


@dataclass(frozen=True)
class MassFits:
    """Mass fits of data and of the reference simulation in the same 4D bins with the same model.

    Attributes
    ----------
    binning, resonance, model, background : what was fitted.
    bins : (n_bin,) 4D bin numbers, those with at least ``min_events`` in data and simulation.
    data, reference : the fits; the reference is the simulation with background as in the data.
    pure : the fits to the simulation as it is, without background.
    mean_k, mean_pt, mean_f : (n_bin, 2) of the data, as in `MassHistogram`.
    events_selected : events of the data inside the binning and window.
    events_fitted : of these, events in bins that were fitted at all.
    min_events : fewer than these, and a bin is not fitted.
    """

    binning: Binning
    resonance: str
    model: str
    background: str
    bins: Ints
    data: BinFits
    reference: BinFits
    pure: BinFits
    mean_k: Floats
    mean_pt: Floats
    mean_f: Floats
    events_selected: float
    events_fitted: float
    min_events: int

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n_bin,) bins where both fits are good."""
        return self.data.converged & self.reference.converged

    @property
    def events_fraction(self) -> float:
        """Events in used fits over events selected inside binning and window."""
        return float(self.data.n_events[self.usable].sum() / max(self.events_selected, 1.0))

    @property
    def converged_fraction(self) -> float:
        """Events in used fits over events in bins that were fitted at all."""
        return float(self.data.n_events[self.usable].sum() / max(self.events_fitted, 1.0))

    @property
    def scale(self) -> Floats:
        """(n_bin,) s_b, mass scale of the data over that of the reference."""
        return self.data.scale / self.reference.scale

    @property
    def scale_variance(self) -> Floats:
        """(n_bin,) variance of s_b: data and simulation statistics."""
        relative = (
            self.data.covariance[:, 0, 0] / self.data.scale**2
            + self.reference.covariance[:, 0, 0] / self.reference.scale**2
        )
        return np.asarray(self.scale**2 * relative)


@dataclass(frozen=True)
class ScaleParameters:
    """A, e, M per eta bin (`musclecal.scale`): a correction, or the truth that a simulation injects.

    Attributes
    ----------
    eta_edges : (n_eta + 1,).
    A : (n_eta,) 1. e : (n_eta,) GeV. M : (n_eta,) 1/GeV.
    """

    eta_edges: Floats
    A: Floats
    e: Floats
    M: Floats

    @property
    def n_eta(self) -> int:
        """Number of eta bins."""
        return len(self.A)

    @property
    def parameters(self) -> Floats:
        """(3 n_eta,) in the order A0, e0, M0, A1, ..."""
        return np.stack([self.A, self.e, self.M], axis=1).ravel()


@dataclass(frozen=True)
class ScaleWithCovariance(ScaleParameters):
    """A correction and its ``covariance`` (3 n_eta, 3 n_eta), order A0, e0, M0, A1, ..."""

    covariance: Floats


@dataclass(frozen=True)
class ScaleCalibration(ScaleWithCovariance):
    """The fitted correction, to be applied to measured muons.

    Attributes
    ----------
    chi2, ndf, p_value : of the fit to the 4D mass scales (its last pass).
    rank, condition : of the normal equations scaled to unit diagonal.
    pulls : (n_bin,) of the last pass; bins : (n_bin,) their 4D bin numbers.
    mean_k : (n_eta,) mean curvature of the muons used, 1/GeV.
    events_fraction : events in used fits over events selected.
    passes : number of passes; residual_chi2 : chi2 of the last pass' change, over 3 n_eta (None after one pass).
    """

    chi2: float
    ndf: int
    p_value: float
    rank: int
    condition: float
    pulls: Floats
    bins: Ints
    mean_k: Floats
    events_fraction: float
    converged_fraction: float
    passes: int = 1
    residual_chi2: float | None = None


@dataclass(frozen=True)
class ScaleInformation:
    """What a resonance says about corrections of single muons: a quadratic chi2, before any choice of parameters.

    With x the corrections still to be applied, in the order A, e (GeV), M (1/GeV), additional (sigma_k/k)^2
    of region 0, then of region 1, ...: chi2(x) = chi2 - 2 vector . x + x . normal . x.

    Attributes
    ----------
    resonance : what was fitted.
    eta_edges : (n_eta + 1,). phi_sectors : a region is eta bin x phi sector, n_region of them.
    normal : (4 n_region, 4 n_region). vector : (4 n_region,).
    noise : (4 n_region, 4 n_region) part of ``normal`` that is noise of the derivatives and only looks like
        information:
        x solves (normal - noise) x = vector, and the covariance of the vector is ``normal``.
    chi2, ndf : at x = 0.
    mean_k : (n_region,) mean curvature of the muons, 1/GeV.
    events_used, events_selected : of the data.
    """

    resonance: str
    eta_edges: Floats
    phi_sectors: int
    normal: Floats
    vector: Floats
    chi2: float
    ndf: int
    mean_k: Floats
    events_used: float
    events_selected: float
    noise: Floats

    @property
    def events_fraction(self) -> float:
        """Events used over events selected."""
        return self.events_used / max(self.events_selected, 1.0)


@dataclass(frozen=True)
class SampleAgainstRest:
    """One sample of a joint fit against all others that were fitted.

    Attributes
    ----------
    name : of the sample. used : whether the joint fit uses it; if not, it is compared with the whole fit.
    chi2, ndf, p_value : of its agreement with the others in A, e and M, as far as both see them.
    mean_A, mean_A_error : common A that it wants beyond that of the others, everything else free. All errors here
        have those of the sample, of the others and of the resonance masses in them.
    values : (n_eta, 2) A and M (1/GeV) that it wants beyond those of the others in each eta bin, with e in common;
        NaN in an eta bin that one of the sides does not see.
    errors : (n_eta, 2) of ``values``.
    """

    name: str
    used: bool
    chi2: float
    ndf: int
    p_value: float
    mean_A: float
    mean_A_error: float
    values: Floats
    errors: Floats

    @property
    def pulls(self) -> Floats:
        """(n_eta, 2) values over errors."""
        return self.values / self.errors


@dataclass(frozen=True)
class JointFit:
    """A, e, M from several resonances together.

    Attributes
    ----------
    calibration : the correction. Its chi2, ndf and p_value are those of the agreement of the samples with each other;
        it has no ``pulls`` and no ``bins``.
    used : names of the samples that were fitted, "Z even" for half of them; kept : of those held back for closure.
    mass_resonances : (n_mass,) the resonances of the fit.
    mass_errors : (n_mass,) relative uncertainty of their masses; mass_shifts : what the fit makes of them, mass over
        assumed mass - 1, and mass_shift_errors.
    largest_steps : largest change of dk/k at the mean curvature of an eta bin between what a used sample was corrected
        with and the result; where it is not small, correct the samples with the result and fit again.
    table : each sample, used or kept, against the others. Empty for a single one.
    """

    calibration: ScaleCalibration
    used: tuple[str, ...]
    kept: tuple[str, ...]
    mass_resonances: tuple[str, ...]
    mass_errors: Floats
    mass_shifts: Floats
    mass_shift_errors: Floats
    largest_steps: Floats
    table: tuple[SampleAgainstRest, ...]


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

    @property
    def s_quoted(self) -> float | None:
        """max(1, s)."""
        return None if self.s is None else max(1.0, self.s)


@dataclass(frozen=True)
class TemplateFit:
    """The template fit of a resonance, linearised where nothing changes any more.

    Attributes
    ----------
    information : about the muons corrected by ``point`` on top of what was applied before.
    point : the correction found in all passes but the last. passes : how many there were.
    last_change : chi2 per parameter of what the last pass changed.
    """

    information: ScaleInformation
    point: ScaleParameters
    passes: int
    last_change: float


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
class PhiRefinement:
    """A and M per eta bin as functions of phi, applied to muons after the correction that it was derived on.

    In terms t of phi, A = sum_t A_it f_t(phi), likewise M: f = 1, cos(h phi), sin(h phi) of each of ``harmonics``; or,
    without harmonics, one inside a sector of phi and zero outside.

    Attributes
    ----------
    resonance : what it was derived from: no independent closure any more.
    eta_edges : (n_eta + 1,).
    harmonics : h >= 1, none for sectors.
    phi_sectors : equal sectors of -pi <= phi < pi in which it was derived.
    A : (n_eta, n_term). M : (n_eta, n_term) 1/GeV.
    covariance : (2 n_eta n_term, ...) A, M of term 0 of eta bin 0, then of term 1, ...
    chi2, ndf, p_value : of the template fit with it applied.
    passes : fits until nothing changed. last_change : chi2 per parameter of what the last of them changed.
    """

    resonance: str
    eta_edges: Floats
    harmonics: tuple[int, ...]
    phi_sectors: int
    A: Floats
    M: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    passes: int
    last_change: float

    @property
    def terms(self) -> tuple[str, ...]:
        """(n_term,) in words."""
        if self.harmonics:
            return ("1", *(f"{wave}({h} phi)" for h in self.harmonics for wave in ("cos", "sin")))
        return tuple(f"phi sector {s}" for s in range(self.phi_sectors))


@dataclass(frozen=True)
class RunRefinement:
    """A and M per eta bin and run range, applied to muons after the correction that it was derived on.

    Attributes
    ----------
    resonance : what it was derived from: no independent closure any more.
    eta_edges : (n_eta + 1,).
    run_edges : (n_range + 1,) run numbers; a range begins with one and ends before the next.
    A : (n_range, n_eta). M : (n_range, n_eta) 1/GeV.
    covariance : (2 n_range n_eta, ...) A, M of eta bin 0 of range 0, then of eta bin 1, ... All ranges were compared
        with one simulation: its fluctuations are common to them.
    chi2, ndf, p_value : of the template fits of all ranges with it applied.
    passes : fits until nothing changed. last_change : chi2 per parameter of what the last of them changed.
    """

    resonance: str
    eta_edges: Floats
    run_edges: tuple[int, ...]
    A: Floats
    M: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    passes: int
    last_change: float

    @property
    def terms(self) -> tuple[str, ...]:
        """(n_range,) in words."""
        return tuple(f"runs {low} to {high - 1}" for low, high in pairwise(self.run_edges))


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
class MassWidths:
    """Squares of fitted relative mass widths per 4D bin, in data and in simulation, freed of their small-sample bias.

    Attributes
    ----------
    binning, resonance, background : what was fitted.
    bins : (n_bin,) 4D bin numbers, with both fits good.
    data, simulation : (n_bin,) w^2; data_error, simulation_error : their standard deviations.
    n_events : (n_bin,) counts of the data.
    mean_pt, mean_pt2, mean_f : (n_bin, 2) of the data, as in `MassHistogram`.
    events_fraction : events of the data in these bins over those inside binning and window.
    """

    binning: Binning
    resonance: str
    background: str
    bins: Ints
    data: Floats
    data_error: Floats
    simulation: Floats
    simulation_error: Floats
    n_events: Floats
    mean_pt: Floats
    mean_pt2: Floats
    mean_f: Floats
    events_fraction: float


@dataclass(frozen=True)
class MuonResiduals:
    """Simulated k_measured/k_true - 1 per cell of eta and true pT, both charges together.

    Attributes
    ----------
    eta_edges : (n_eta + 1,). pt_edges : (n_pt + 1,) GeV, of the true pT.
    counts : (n_eta, n_pt, n_residual) muons; the residual bins are equal, from -reach to reach.
    reach : largest residual looked at.
    mean_pt, mean_pt2 : (n_eta, n_pt) averages of the true pT (GeV) and its square.
    n_beyond : muons inside the cells whose residual is larger.
    """

    eta_edges: Floats
    pt_edges: Floats
    counts: Ints
    reach: float
    mean_pt: Floats
    mean_pt2: Floats
    n_beyond: int


@dataclass(frozen=True)
class Resolution:
    """(sigma_k/k)^2 = a + c pT^2 + b/(1 + d/pT^2) per eta bin as fitted: coefficients may come out negative.

    Attributes
    ----------
    kind : "data", "simulation", or "difference" (data minus simulation).
    eta_edges : (n_eta + 1,).
    parameter_names : the fitted ones, of a, c, b in this order.
    a, b : (n_eta,) 1. c : (n_eta,) 1/GeV^2. d : (n_eta,) GeV^2, always fixed.
    covariance : (n_par n_eta, n_par n_eta), parameters of an eta bin together: a0, c0, a1, c1, ...
    chi2, ndf, p_value : of what was fitted.
    pt_range : (n_eta, 2) lowest and highest mean pT (GeV) that went in.
    source : what was fitted: resonances whose widths were used, or "generator".
    """

    kind: str
    eta_edges: Floats
    parameter_names: tuple[str, ...]
    a: Floats
    b: Floats
    c: Floats
    d: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    pt_range: Floats
    source: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """(n_par n_eta,) names of the parameters in the order of the covariance: a0, c0, a1, ..."""
        return tuple(f"{name}{i}" for i in range(len(self.a)) for name in self.parameter_names)


@dataclass(frozen=True)
class Smearing:
    """The variance (sigma_k/k)^2 that simulated muons lack: max(0, a + c pT^2 + b/(1 + d/pT^2)) per eta bin.

    The sum is clipped at zero, muon by muon, not the coefficients one by one: a negative c may go with a larger a.

    Attributes
    ----------
    eta_edges : (n_eta + 1,).
    a, b : (n_eta,) 1. c : (n_eta,) 1/GeV^2. d : (n_eta,) GeV^2.
    clipped : (n_eta,) share of the measured range of ln pT where the sum is negative: there the simulation is worse
        than the data, and stays so.
    """

    eta_edges: Floats
    a: Floats
    b: Floats
    c: Floats
    d: Floats
    clipped: Floats


@dataclass(frozen=True)
class WidthClosure:
    """Mass widths of data over those of (smeared) simulation in the regions of one resonance.

    Attributes
    ----------
    resonance : name. used : whether these widths, or the same events, went into the resolution: then the errors are
        those of the ratios alone, and chi2 is smaller than its ndf.
    eta_edges : (n_eta + 1,). pt_edges : (n_pt + 1,) GeV.
    eta_bin : (n_region,) of the muon with the larger abs(eta). pt_bins : (n_region, 2) first, and one beyond the
        last,
        pT bin of the muon with the larger pT.
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
class BosonTemplates:
    """Expected events of a W or Z in the cells of a mass fit, and their derivatives.

    Attributes
    ----------
    boson : W or Z.
    eta_edges : (n_eta + 1,) of the muon, of the calibration's parameters.
    groups : (n_cell,) cells of a group share a yield; 0 to n_group - 1.
    group_names : (n_group,).
    counts : (n_cell,) events for 1/fb.
    mass_derivative : (n_cell,) d counts/d m, 1/GeV.
    mass_noise : (n_cell,) variance of ``mass_derivative`` from the finite number of draws.
    scale_derivative : (n_cell, 3 n_eta) d counts/d(A0, e0, M0, A1, ...), the corrections applied to the muons.
    resolution_derivative : (n_cell, 3 n_eta) d counts/d(a0, b0, c0, a1, ...) of `ResolutionModel`.
    n_draws : generated decays, per charge of a W.
    """

    boson: str
    eta_edges: Floats
    groups: Ints
    group_names: tuple[str, ...]
    counts: Floats
    mass_derivative: Floats
    mass_noise: Floats
    scale_derivative: Floats
    resolution_derivative: Floats
    n_draws: int

    @property
    def n_eta(self) -> int:
        """Number of eta bins of the calibration."""
        return len(self.eta_edges) - 1


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
