r"""What one resonance contributes to a joint fit: a quadratic chi2 of the whole correction A, e, M.

Samples of different resonances may have been corrected with different calibrations before they were fitted. What is
common to them is the correction of the muons as measured, :math:`\beta` = what was applied + what is still to be
applied (their product is of second order in small numbers). About the point :math:`\beta_0` that was applied

.. math:: \chi^2(\beta) = \chi^2_0 - 2\,v^T(\beta - \beta_0) + (\beta - \beta_0)^T F\,(\beta - \beta_0) .

F may be singular: a resonance need not fix everything, and nothing here inverts F. Noise of the derivatives of a
template fit is taken out of F and v (`undiluted`). The widths of a resonance are its own and eliminated exactly,

.. math:: F = F_{\beta\beta} - F_{\beta w} F_{ww}^{+} F_{w\beta}, \qquad v = v_\beta - F_{\beta w} F_{ww}^{+} v_w .
"""

from dataclasses import dataclass

import numpy as np

from musclecal.covariance import checked_covariance, scale_parameter_names
from musclecal.errors import InputError
from musclecal.fits.normal_equations import seen_directions, undiluted
from musclecal.fits.scale_fit import PARAMETERS
from musclecal.fits.scale_information import eta_design
from musclecal.records import DimuonEvents, Floats, Ints, ScaleCalibration, ScaleInformation, ScaleParameters
from musclecal.resonances import resonance

__all__ = [
    "ALL_EVENTS",
    "HALVES",
    "Contribution",
    "contribution_name",
    "half_cut",
    "half_of",
    "of_calibration",
    "of_information",
    "sample_and_part",
    "shares_events",
]

ALL_EVENTS = "all"
HALVES = ("even", "odd")
"""Parts of a sample, by event number: one half for the fit, the other held out for its closure."""


@dataclass(frozen=True)
class Contribution:
    """chi2 of the correction A, e, M of the muons as measured, seen by one resonance.

    Attributes
    ----------
    resonance, part : whose, and which events of it, "all" or one of `HALVES`.
    eta_edges : (n_eta + 1,).
    applied : (3 n_eta,) the correction about which chi2 is expanded, order A0, e0, M0, A1, ...
    normal : (3 n_eta, 3 n_eta). vector : (3 n_eta,). chi2(b) = ... - 2 vector . (b - applied) + normal, as above.
    mass_error : relative uncertainty of the mass of the resonance; samples of one resonance share it.
    mean_k : (n_eta,) mean curvature of the muons, 1/GeV.
    events_fraction : events used over events selected.
    """

    resonance: str
    part: str
    eta_edges: Floats
    applied: Floats
    normal: Floats
    vector: Floats
    mass_error: float
    mean_k: Floats
    events_fraction: float

    @property
    def name(self) -> str:
        """For tables and messages: "Z", "Z even"."""
        return contribution_name(self.resonance, self.part)

    @property
    def n_eta(self) -> int:
        """Number of eta bins."""
        return len(self.eta_edges) - 1

    def vector_about(self, origin: Floats) -> Floats:
        """(3 n_eta,) the vector of the same chi2 expanded about another correction ``origin`` (3 n_eta,)."""
        return np.asarray(self.vector + self.normal @ (self.applied - origin))


def contribution_name(name: str, part: str) -> str:
    """For tables and messages: "Z", "Z even". Raises `InputError` for an unknown part."""
    if part not in (ALL_EVENTS, *HALVES):
        raise InputError(f"part {part!r} of the {name} sample: known are {', '.join((ALL_EVENTS, *HALVES))}")
    return name if part == ALL_EVENTS else f"{name} {part}"


def shares_events(one: str, other: str) -> bool:
    """Whether two samples, such as "Z" and "Z even", have events in common."""
    (resonance, part), (other_resonance, other_part) = sample_and_part(one), sample_and_part(other)
    return resonance == other_resonance and (ALL_EVENTS in (part, other_part) or part == other_part)


def sample_and_part(name: str) -> tuple[str, str]:
    """("Z", "even") of "Z even", ("Z", "all") of "Z". Raises `InputError` for an unknown part."""
    sample, _, part = name.partition(" ")
    contribution_name(sample, part or ALL_EVENTS)
    return sample, part or ALL_EVENTS


def _without(normal: Floats, vector: Floats, own: Ints) -> tuple[Floats, Floats]:
    """Normal matrix and vector of the other parameters when those at ``own`` are free."""
    others = np.setdiff1d(np.arange(len(vector)), own)
    directions, size = seen_directions(normal[np.ix_(own, own)])
    mixed = normal[np.ix_(others, own)] @ directions / size
    left = normal[np.ix_(others, others)] - mixed @ (directions.T @ normal[np.ix_(own, others)])
    return 0.5 * (left + left.T), np.asarray(vector[others] - mixed @ (directions.T @ vector[own]))


def _mass_error(name: str, given: float | None) -> float:
    if given is None:
        line = resonance(name).line
        return line.mass_error / line.mass
    if not (np.isfinite(given) and given >= 0.0):
        raise InputError(f"{name}: the relative mass error must not be negative, got {given}")
    return given


def of_information(
    information: ScaleInformation,
    applied: ScaleParameters | None,
    *,
    part: str = ALL_EVENTS,
    mass_error: float | None = None,
) -> Contribution:
    """What a template fit says, with a free width per eta bin; phi sectors are taken together.

    Parameters
    ----------
    applied : the correction that the data had when they were filled; None: they were as measured.
    part : which events of the resonance they are.
    mass_error : relative, of the mass of the resonance; that of the Particle Data Group by default.

    Raises
    ------
    InputError : other eta bins than those of ``applied``; numbers that are not finite.
    """
    name = contribution_name(information.resonance, part)
    n_eta = len(information.eta_edges) - 1
    if applied is not None and not np.array_equal(applied.eta_edges, information.eta_edges):
        raise InputError(f"{name}: the eta bins differ from those of the correction that was applied")
    design = eta_design(information, (*PARAMETERS, "width")).matrix
    normal, vector = design.T @ information.normal @ design, design.T @ information.vector
    noise = design.T @ information.noise @ design
    if not (np.all(np.isfinite(normal)) and np.all(np.isfinite(vector))):
        raise InputError(f"{name}: the information of the template fit is not finite")
    normal, vector = undiluted(normal, vector, noise)
    widths = np.arange(n_eta) * (len(PARAMETERS) + 1) + len(PARAMETERS)
    normal, vector = _without(normal, vector, widths)
    return Contribution(
        resonance=information.resonance,
        part=part,
        eta_edges=information.eta_edges,
        applied=np.zeros(3 * n_eta) if applied is None else applied.parameters,
        normal=normal,
        vector=vector,
        mass_error=_mass_error(information.resonance, mass_error),
        mean_k=information.mean_k.reshape(n_eta, information.phi_sectors).mean(axis=1),
        events_fraction=information.events_fraction,
    )


def of_calibration(
    name: str, calibration: ScaleCalibration, *, part: str = ALL_EVENTS, mass_error: float | None = None
) -> Contribution:
    """What a calibration on the resonance ``name`` says: its values with the inverse of their covariance.

    Raises
    ------
    InputError : a covariance that is singular (a parameter that was held), or not a covariance.
    """
    contribution_name(name, part)
    names = scale_parameter_names(calibration.n_eta)
    covariance = checked_covariance(calibration.covariance, names)
    directions, size = seen_directions(covariance)
    if len(size) < len(covariance):
        fixed = [n for n, variance in zip(names, np.diagonal(covariance), strict=True) if variance == 0.0]
        which = f": {fixed[0]} has no variance" if fixed else ""
        raise InputError(f"{name}: the covariance of the calibration is singular{which}")
    inverse = (directions / size) @ directions.T
    return Contribution(
        resonance=name,
        part=part,
        eta_edges=calibration.eta_edges,
        applied=calibration.parameters,
        normal=0.5 * (inverse + inverse.T),
        vector=np.zeros(len(covariance)),
        mass_error=_mass_error(name, mass_error),
        mean_k=calibration.mean_k,
        events_fraction=calibration.events_fraction,
    )


def half_cut(part: str) -> tuple[str, ...]:
    """The cut (`musclecal.selection`) that keeps one half of a sample, for data and simulation alike.

    Both halves must have their own simulation: with a common one its noise would be in fit and closure, and cancel.
    Event numbers have nothing to do with momenta; halves in run numbers would test the time as well.

    Raises
    ------
    InputError : an unknown part.
    """
    contribution_name("", part)
    return () if part == ALL_EVENTS else (f"event % 2 == {HALVES.index(part)}",)


def half_of(events: DimuonEvents, part: str) -> DimuonEvents:
    """The events of `half_cut`. Raises `InputError` where they have no event numbers."""
    if not half_cut(part):
        return events
    if events.event is None:
        raise InputError(f"part {part!r}: the sample has no event numbers")
    return events.select(events.event % 2 == HALVES.index(part))
