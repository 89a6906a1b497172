"""What events are counted into."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import Binning, TemplateBinning
from musclecal.records.arrays import Floats, Ints
from musclecal.records.events import CutFlow

__all__ = ["BosonTemplates", "MassHistogram", "MuonResiduals", "TemplateHistogram"]


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
    n_beyond : of ``n_outside``, those inside muon_pt, eta and the mass window, but beyond the asymmetry or pT axis.
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
    n_beyond: int = 0

    @property
    def n_events(self) -> float:
        """Events inside the binning and the mass window."""
        return float(self.counts.sum())

    @property
    def n_effective(self) -> float:
        """Events without weights that would be as precise: (sum of weights)^2 over the sum of their squares."""
        return self.n_events if self.variances is None else float(self.n_events**2 / self.variances.sum())


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
