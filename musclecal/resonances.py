"""The dimuon resonances: masses, widths, and the defaults that go with each.

Masses and widths come from the Particle Data Group's table through the `particle` package. Everything else is
a default that a campaign file may change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from musclecal.errors import InputError

__all__ = ["Line", "Resonance", "Spectrum", "TemplateAxes", "pdg_line", "resonance", "resonance_names"]


@dataclass(frozen=True)
class Spectrum:
    """Production: dN/dpT^2 ~ (1 + pT^2/p0^2)^-n of the pair and a flat rapidity.

    Attributes
    ----------
    p0 : GeV. exponent : n. y_max : pairs have |y| < y_max.
    polarisation : lambda of 1 + lambda cos^2(theta) in the helicity frame.
    """

    p0: float
    exponent: float
    y_max: float = 2.6
    polarisation: float = 0.0


@dataclass(frozen=True)
class Line:
    """One mass peak: ``mass``, its uncertainty ``mass_error`` and ``width`` in GeV; ``fraction`` of the events."""

    mass: float
    mass_error: float
    width: float
    fraction: float = 1.0


@dataclass(frozen=True)
class TemplateAxes:
    """Axes of the template fit (`musclecal.binning.TemplateBinning`).

    Attributes
    ----------
    asymmetry_edges : of (pT+ - pT-)/(pT+ + pT-). pt_edges : GeV, of the mean pT, times m_ref/m.
    mass_bins : equal bins of the mass window.
    step : relative shift of the curvature for derivatives, about half of the mass resolution.
    """

    asymmetry_edges: tuple[float, ...]
    pt_edges: tuple[float, ...]
    mass_bins: int
    step: float


@dataclass(frozen=True)
class Resonance:
    """A calibration resonance and its defaults.

    Attributes
    ----------
    line : the peak that is measured. neighbours : peaks that leak into its window.
    min_events : a 4D bin with fewer is not fitted; more where the background is large.
    mass_window : GeV. mass_bins : number of bins, uniform in ln m. pt_edges : GeV.
    pt_scaled : bin in pT m_ref/m instead of pT (invariant under a common scale; physics.md "The Z").
    template : axes of the template fit.
    """

    name: str
    label: str
    line: Line
    neighbours: tuple[Line, ...]
    mass_window: tuple[float, float]
    mass_bins: int
    pt_edges: tuple[float, ...]
    spectrum: Spectrum
    model: str = "simulation-shape"
    min_events: int = 50
    background: str = "exponential"
    pt_scaled: bool = False
    template: TemplateAxes = TemplateAxes(
        (-1.0, -0.35, -0.15, 0.0, 0.15, 0.35, 1.0), (0.0, 5.2, 6.2, 7.5, 10.0, 1000.0), 40, 0.006
    )

    @property
    def lines(self) -> tuple[Line, ...]:
        """All peaks, the measured one first."""
        return (self.line, *self.neighbours)


def pdg_line(pdgid: int, fraction: float = 1.0) -> Line:
    """Mass and width of a particle of the Particle Data Group's table."""
    from particle import Particle

    entry = Particle.from_pdgid(pdgid)
    error = 0.5 * (entry.mass_upper + entry.mass_lower)
    return Line(entry.mass * 1e-3, error * 1e-3, entry.width * 1e-3, fraction)


_ONIA_PT = (4.0, 4.9, 6.4, 9.5, 40.0)
_UPSILON_PT = (4.0, 5.2, 6.6, 9.0, 50.0)


@cache
def _table() -> Mapping[str, Resonance]:
    # Relative dimuon yields of the Upsilon states at the LHC, 1 : 0.35 : 0.2, e.g. CMS, arXiv:1303.5900.
    y1, y2, y3 = pdg_line(553, 0.645), pdg_line(100553, 0.226), pdg_line(200553, 0.129)
    # Harder than production alone: triggers prefer high pT. Quartiles of the muon pT at the J/psi: 5.0, 6.4, 9.4 GeV.
    onium, bottomonium = Spectrum(p0=5.0, exponent=2.5), Spectrum(p0=6.5, exponent=2.6)
    entries = (
        Resonance("Jpsi", r"J/$\psi$", pdg_line(443), (), (2.85, 3.25), 80, _ONIA_PT, onium),
        Resonance("psi2S", r"$\psi$(2S)", pdg_line(100443), (), (3.4, 3.95), 80, _ONIA_PT, onium),
        Resonance(
            "Y1S", r"$\Upsilon$(1S)", y1, (y2, y3), (8.9, 9.8), 60, _UPSILON_PT, bottomonium, pt_scaled=True
        ),
        Resonance(
            "Y2S",
            r"$\Upsilon$(2S)",
            y2,
            (y1, y3),
            (9.75, 10.25),
            50,
            _UPSILON_PT,
            bottomonium,
            min_events=100,
            pt_scaled=True,
        ),
        Resonance(
            "Y3S",
            r"$\Upsilon$(3S)",
            y3,
            (y2, y1),
            (10.2, 10.8),
            50,
            _UPSILON_PT,
            bottomonium,
            min_events=100,
            pt_scaled=True,
        ),
        Resonance(
            "Z",
            "Z",
            pdg_line(23),
            (),
            (75.0, 107.0),
            64,
            (25.0, 38.0, 42.0, 46.0, 52.0, 100.0),
            Spectrum(p0=9.0, exponent=1.9, y_max=2.6, polarisation=0.6),
            model="pooled-template",
            background="none",
            pt_scaled=True,
            template=TemplateAxes((-1.0, -0.2, -0.1, 0.0, 0.1, 0.2, 1.0), (0.0, 1000.0), 32, 0.01),
        ),
    )
    return MappingProxyType({entry.name: entry for entry in entries})


def resonance_names() -> tuple[str, ...]:
    """The names understood by `resonance`."""
    return tuple(_table())


def resonance(name: str) -> Resonance:
    """The resonance called ``name``. Raises `InputError` for an unknown name."""
    try:
        return _table()[name]
    except KeyError:
        known = ", ".join(resonance_names())
        raise InputError(f"unknown resonance {name!r}: known are {known}") from None
