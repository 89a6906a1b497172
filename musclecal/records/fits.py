"""Results of fits to single samples: masses, widths, templates, resolution."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import Binning
from musclecal.records.arrays import Floats, Ints

__all__ = ["BinFits", "MassFits", "MassWidths", "Resolution", "ScaleInformation", "Smearing"]


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
