"""The frozen records that stages hand to each other. No computation beyond reading a record another way.

Axis words: ``n_event`` events, ``n_bin`` occupied 4D bins (`Binning` numbers them), ``n_mass`` mass bins, ``n_gen``
generator-level mass bins, ``n_eta`` eta bins. Parameters of a calibration run fastest: A0, e0, M0, A1, e1, M1, ...
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import Binning, TemplateBinning
from musclecal.kinematics import pair_masses

__all__ = [
    "BinFits",
    "Closure",
    "CutFlow",
    "DimuonEvents",
    "Floats",
    "Ints",
    "MassFits",
    "MassHistogram",
    "Muons",
    "ScaleCalibration",
    "ScaleInformation",
    "ScaleParameters",
    "TemplateHistogram",
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
class ScaleCalibration(ScaleParameters):
    """The fitted correction, to be applied to measured muons.

    Attributes
    ----------
    covariance : (3 n_eta, 3 n_eta), order A0, e0, M0, A1, ...
    chi2, ndf, p_value : of the fit to the 4D mass scales (its last pass).
    rank, condition : of the normal equations scaled to unit diagonal.
    pulls : (n_bin,) of the last pass; bins : (n_bin,) their 4D bin numbers.
    mean_k : (n_eta,) mean curvature of the muons used, 1/GeV.
    events_fraction : events in used fits over events selected.
    passes : number of passes; residual_chi2 : chi2 of the last pass' change, over 3 n_eta (None after one pass).
    """

    covariance: Floats
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

    @property
    def events_fraction(self) -> float:
        """Events used over events selected."""
        return self.events_used / max(self.events_selected, 1.0)


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
