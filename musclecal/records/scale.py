"""Corrections of the curvature scale: injected, fitted, joint, refined."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from musclecal.records.arrays import Floats, Ints
from musclecal.records.fits import ScaleInformation

__all__ = [
    "JointFit",
    "PhiRefinement",
    "RunRefinement",
    "SampleAgainstRest",
    "ScaleCalibration",
    "ScaleParameters",
    "ScaleWithCovariance",
    "TemplateFit",
]


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
