r"""W and Z production at a proton collider: simple, but rich enough for the effect of a momentum scale.

Transverse momentum: dN/dpT^2 ~ (1 + pT^2/p0^2)^-n. Rapidity and polarisation: leading order, a quark and an antiquark
of momentum fractions x = (m/sqrt(s)) exp(+-y) from a valence and a sea density, which makes W+ and W- different and
gives the probability that the quark comes from either side. Decay, with the angles of the Collins-Soper frame whose z
axis is the first beam whatever the sign of y (so that A0, A2, A3 are even in y, and A1, A4 odd):

.. math:: \frac{dN}{d\Omega} \propto 1 + c^2 + \tfrac{A_0}{2}(1 - 3c^2) + A_1\,2sc\cos\varphi
   + \tfrac{A_2}{2}s^2\cos 2\varphi + A_3\,s\cos\varphi + A_4\,c

Not for: cross sections, parton densities, or a measured mass: it tells how a fitted mass moves, to some per cent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from scipy.special import beta

from musclecal.errors import InputError
from musclecal.records import Floats
from musclecal.resonances import Line, pdg_line

__all__ = ["AngularCoefficients", "Boson", "boson", "boson_names", "rapidity_table"]

_NODES = 1025


@dataclass(frozen=True)
class AngularCoefficients:
    """Strengths of the five terms, of one at leading order in quark-antiquark annihilation.

    With t = pT^2/(m^2 + pT^2) and D(y) the probability of a quark from the first beam minus that of the second:

    A0 = a0 t, A2 = a2 t, A1 = a1 D sqrt(t (1 - t)), A3 = a3 sqrt(t (1 - t)), A4 = a4 D sqrt(1 - t),
    of the muon of charge -1, or of the W's own muon. V - A makes a4 = 2 for W- and -2 for W+.

    Raises
    ------
    InputError : a probability that is negative for some angle.
    """

    a0: float = 1.0
    a1: float = 0.0
    a2: float = 1.0
    a3: float = 0.0
    a4: float = 0.0

    def __post_init__(self) -> None:
        if self._lowest() < -1e-9:
            raise InputError(f"angular coefficients: negative probability for some angle with {self}")

    def _lowest(self) -> float:
        t = np.linspace(0.0, 1.0, 21)[:, None, None]
        c = np.linspace(-1.0, 1.0, 41)[:, None]
        phi = np.linspace(0.0, math.pi, 21)
        s, mixed = np.sqrt(1.0 - c * c), np.sqrt(t * (1.0 - t))
        density = (
            1.0 + c * c + 0.5 * self.a0 * t * (1.0 - 3.0 * c * c) + 2.0 * self.a1 * mixed * s * c * np.cos(phi)
            + 0.5 * self.a2 * t * s * s * np.cos(2.0 * phi) + self.a3 * mixed * s * np.cos(phi)
            + self.a4 * np.sqrt(1.0 - t) * c
        )  # fmt: skip
        return float(density.min())


@dataclass(frozen=True)
class Boson:
    """One boson and its default production.

    Attributes
    ----------
    name : W+, W- or Z.
    line : mass and width, GeV.
    charge : of the boson.
    cross_section : nb, times branching fraction to one kind of lepton.
    p0, exponent, pt_max : GeV, 1, GeV; of the pT spectrum.
    angular : see `AngularCoefficients`.
    valence : factor on the valence quarks; with 0, W+ and W- are alike and not polarised along the beam.
    collision_energy : GeV.
    """

    name: str
    line: Line
    charge: int
    cross_section: float
    p0: float
    exponent: float
    angular: AngularCoefficients
    pt_max: float = 150.0
    valence: float = 1.0
    collision_energy: float = 13000.0

    def __post_init__(self) -> None:
        if self.p0 <= 0.0 or self.exponent <= 1.0 or self.pt_max <= 0.0:
            raise InputError(
                f"{self.name}: p0 {self.p0}, exponent {self.exponent}, pt_max {self.pt_max}: need p0 > 0, "
                "exponent > 1 and pt_max > 0"
            )
        if self.valence < 0.0 or self.collision_energy <= 2.0 * self.line.mass or self.cross_section <= 0.0:
            raise InputError(
                f"{self.name}: valence {self.valence}, collision_energy {self.collision_energy}, cross_section "
                f"{self.cross_section}: need valence >= 0, an energy above twice the mass, a positive cross section"
            )

    @property
    def mean_pt(self) -> float:
        """Mean pT in GeV of the spectrum."""
        pt = np.linspace(0.0, self.pt_max, 20_001)
        density = pt * (1.0 + (pt / self.p0) ** 2) ** -self.exponent
        return float((pt * density).sum() / density.sum())


def _partons(x: Floats, valence: float) -> tuple[Floats, Floats, Floats]:
    """x times the densities of valence up, valence down and one light sea quark, of the size of today's sets at 80 GeV.

    The valence integrates to two up quarks and one down quark.
    """
    up = 2.0 * valence / beta(0.5, 4.8) * x**0.5 * (1.0 - x) ** 3.8
    down = valence / beta(0.5, 5.8) * x**0.5 * (1.0 - x) ** 4.8
    return up, down, 0.12 * x**-0.37 * (1.0 - x) ** 7


_HEAVY_SEA = 0.3
"""Charm times strange over the square of a light sea quark."""

_Z_COUPLINGS = (0.287, 0.370)
"""v^2 + a^2 of up and down quarks."""


def _luminosity(name: str, x_quark: Floats, x_antiquark: Floats, valence: float) -> Floats:
    """Quark from one side, antiquark from the other."""
    up, down, sea = _partons(x_quark, valence)
    anti = _partons(x_antiquark, valence)[2]
    if name == "Z":
        return _Z_COUPLINGS[0] * (up + 1.5 * sea) * anti + _Z_COUPLINGS[1] * (down + 1.8 * sea) * anti
    return ((up if name == "W+" else down) + sea + _HEAVY_SEA * sea) * anti


def rapidity_table(source: Boson) -> Floats:
    """(2, n) at equal steps of probability from 0 to 1: |y|, and D(|y|) of `AngularCoefficients`; D(-y) = -D(y)."""
    scale = source.line.mass / source.collision_energy
    y = np.linspace(0.0, -math.log(scale) - 1e-9, 20_001)
    x1, x2 = scale * np.exp(y), scale * np.exp(-y)
    first = _luminosity(source.name, x1, x2, source.valence)
    second = _luminosity(source.name, x2, x1, source.valence)
    density = first + second
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    nodes = np.interp(np.linspace(0.0, 1.0, _NODES), cumulative / cumulative[-1], y)
    return np.stack([nodes, np.interp(nodes, y, (first - second) / density)])


@cache
def _table() -> Mapping[str, Boson]:
    # Cross sections at 13 TeV: CMS-PAS-SMP-15-004.
    # pT spectra: most probable 4.6 (W) and 4.9 GeV (Z), mean 16.1 and 16.8 GeV.
    w, z = pdg_line(24), pdg_line(23)
    entries = (
        Boson("W+", w, +1, 11.37, 7.0, 1.65, AngularCoefficients(a4=-2.0)),
        Boson("W-", w, -1, 8.58, 7.0, 1.65, AngularCoefficients(a4=2.0)),
        # 2 A_mu A_q of the couplings, about 0.15 and 0.8.
        Boson("Z", z, 0, 1.91, 7.4, 1.65, AngularCoefficients(a4=0.24)),
    )
    return MappingProxyType({entry.name: entry for entry in entries})


def boson_names() -> tuple[str, ...]:
    """The names understood by `boson`."""
    return tuple(_table())


def boson(name: str) -> Boson:
    """The boson called ``name``. Raises `InputError` for an unknown name."""
    try:
        return _table()[name]
    except KeyError:
        raise InputError(f"unknown boson {name!r}: known are {', '.join(boson_names())}") from None
