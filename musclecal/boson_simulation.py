r"""Muons of W and Z decays with known truth: production, decay, final-state radiation, resolution.

Every draw of a decay is used with two masses, m0 + d and m0 - d for d of the Breit-Wigner: their weights of a change
of the mass, +-w(d) with w = d ln BW/dm0, cancel in all that does not depend on the mass, and so does their noise.

One block of draws has its own random stream, keyed by (seed, block), as in `musclecal.simulate`.

Not for: hadronic recoil, missing momentum, backgrounds; nor for the templates of a fit
(`musclecal.validation.boson_templates`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from musclecal.bosons import Boson, rapidity_table
from musclecal.compiled import in_order, kernel
from musclecal.constants import ALPHA_QED, MUON_MASS
from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats, Muons
from musclecal.simulate import (
    ResolutionModel,
    default_resolution,
    measured_pt,
    no_bias,
    produced_pair,
    radiated_fraction,
    stream_of,
)

__all__ = [
    "BosonSettings",
    "SingleMuons",
    "boson_decay",
    "mass_weight",
    "production_table",
    "simulate_w",
    "simulate_z",
]

DRAWS = 1 << 16
"""Draws of a block."""

_WIDTHS = 12.0
_W_STREAM, _Z_STREAM = 6, 7
MAX_SMEAR = 6.0


@dataclass(frozen=True)
class BosonSettings:
    """What to simulate.

    Attributes
    ----------
    boson : see `musclecal.bosons`.
    resolution : of the detector.
    fsr : photon radiation on or off.
    """

    boson: Boson
    resolution: ResolutionModel = field(default_factory=default_resolution)
    fsr: bool = True

    @property
    def alpha(self) -> float:
        """The fine-structure constant, or zero without radiation."""
        return ALPHA_QED if self.fsr else 0.0


@dataclass(frozen=True)
class SingleMuons:
    """Muons of W decays.

    Attributes
    ----------
    measured, generated : (n,) each; generated is after radiation.
    boson_mass : (n,) GeV, of the W of each muon.
    """

    measured: Muons
    generated: Muons
    boson_mass: Floats


def production_table(source: Boson) -> Floats:
    """(10,) p0, exponent, 1, (1 + pT_max^2/p0^2)^(1 - exponent), 1, then A0 to A4 strengths: for the kernels here.

    The first five are those of `produced_pair`, which makes a number that is flat in -1 to 1 for the rapidity.
    """
    high = (1.0 + (source.pt_max / source.p0) ** 2) ** (1.0 - source.exponent)
    a = source.angular
    return np.array([source.p0, source.exponent, 1.0, high, 1.0, a.a0, a.a1, a.a2, a.a3, a.a4])


@kernel
def mass_weight(shift: float, width: float) -> float:
    """d ln BW(m; m0)/d m0 (1/GeV) at m = m0 + ``shift`` (GeV): the weight of an event for a change of the mass."""
    return 2.0 * shift / (shift * shift + 0.25 * width * width)


@kernel
def _mass_shift(rng: Generator, width: float, cut: float) -> float:
    """Distance from the peak of a Breit-Wigner of ``width``, positive and below ``cut``."""
    while True:
        shift = 0.5 * width * math.tan(0.5 * math.pi * rng.random())
        if shift < cut:
            return shift


@kernel
def _angular_density(c: float, phi: float, a0: float, a1: float, a2: float, a3: float, a4: float) -> float:
    """The probability of a direction in the Collins-Soper frame, times 16 pi/3: formula of `musclecal.bosons`."""
    s = math.sqrt(1.0 - c * c)
    return (
        1.0 + c * c + 0.5 * a0 * (1.0 - 3.0 * c * c) + 2.0 * a1 * s * c * math.cos(phi)
        + 0.5 * a2 * s * s * math.cos(2.0 * phi) + a3 * s * math.cos(phi) + a4 * c
    )  # fmt: skip


@kernel
def _direction(rng: Generator, production: Floats, t: float, d: float) -> tuple[float, float]:
    """cos(theta), phi in the Collins-Soper frame; t and d as in `AngularCoefficients`."""
    mixed = math.sqrt(t * (1.0 - t))
    a0, a2 = production[5] * t, production[7] * t
    a1, a3, a4 = production[6] * mixed * d, production[8] * mixed, production[9] * math.sqrt(1.0 - t) * d
    highest = 2.0 + abs(a0) + abs(a1) + 0.5 * abs(a2) + abs(a3) + abs(a4)
    while True:
        c = 2.0 * rng.random() - 1.0
        phi = 2.0 * math.pi * rng.random()
        if highest * rng.random() < _angular_density(c, phi, a0, a1, a2, a3, a4):
            return c, phi


@kernel
def _produced(
    rng: Generator, mass: float, production: Floats, rapidity: Floats
) -> tuple[float, float, float, float]:
    """pT, y, cos(theta), phi of one boson; the angles belong to the muon of the coefficients."""
    pt, flat = produced_pair(rng, production)
    position = abs(flat) * (rapidity.shape[1] - 1)
    i = min(int(position), rapidity.shape[1] - 2)
    part = position - i
    y = rapidity[0, i] + part * (rapidity[0, i + 1] - rapidity[0, i])
    d = rapidity[1, i] + part * (rapidity[1, i + 1] - rapidity[1, i])
    side = 1.0 if flat >= 0.0 else -1.0
    c, phi = _direction(rng, production, pt * pt / (pt * pt + mass * mass), side * d)
    return pt, side * y, c, phi


@kernel
def boson_decay(
    mass: float, pt: float, y: float, c: float, phi: float, mu: float, partner: float
) -> tuple[float, float, float]:
    """Momentum (along the boson's pT, beside it, along the beam) in GeV of a decay product of mass ``mu``.

    c, phi : its direction in the Collins-Soper frame, whose z axis is the beam's after a boost along the boson's pT.
    partner : mass of the other product, GeV.
    """
    energy = 0.5 * (mass * mass + mu * mu - partner * partner) / mass
    p = math.sqrt(max(energy * energy - mu * mu, 0.0))
    s = math.sqrt(1.0 - c * c)
    transverse = math.sqrt(mass * mass + pt * pt)
    along, beside, pz = p * s * math.cos(phi), p * s * math.sin(phi), p * c
    boosted = (transverse * energy + pt * along) / mass
    return (transverse * along + pt * energy) / mass, beside, math.cosh(y) * pz + math.sinh(y) * boosted


@kernel
def _w_block(
    rng: Generator,
    n_draws: int,
    mass: float,
    width: float,
    cut: float,
    production: Floats,
    rapidity: Floats,
    mu: float,
    alpha: float,
) -> Floats:
    """(2 n_draws, 4): pT, eta, mass weight, boson mass of the muon after radiation; two rows share a draw."""
    out = np.empty((2 * n_draws, 4))
    for draw in range(n_draws):
        pt, y, c, phi = _produced(rng, mass, production, rapidity)
        shift = _mass_shift(rng, width, cut)
        kept = 1.0
        if alpha > 0.0:
            # One muon of a W radiates as one muon of a pair of the same mass.
            kept -= radiated_fraction(rng, mass, mu, alpha)
        for side in range(2):
            moved = shift if side == 0 else -shift
            px, py, pz = boson_decay(mass + moved, pt, y, c, phi, mu, 0.0)
            pt_mu = math.sqrt(px * px + py * py)
            row = out[2 * draw + side]
            row[0], row[1] = kept * pt_mu, math.asinh(pz / pt_mu)
            row[2], row[3] = mass_weight(moved, width), mass + moved
    return out


@kernel
def _within_pi(phi: float) -> float:
    """The same azimuth between -pi and pi, of one between -2 pi and 2 pi."""
    if phi > math.pi:
        return phi - 2.0 * math.pi
    return phi + 2.0 * math.pi if phi <= -math.pi else phi


@kernel
def _z_block(
    rng: Generator,
    n_draws: int,
    mass: float,
    width: float,
    cut: float,
    production: Floats,
    rapidity: Floats,
    mu: float,
    alpha: float,
) -> Floats:
    """(2 n_draws, 8): pT, eta, phi of mu+, then of mu-, mass weight, boson mass; muons after radiation."""
    out = np.empty((2 * n_draws, 8))
    for draw in range(n_draws):
        pt, y, c, phi = _produced(rng, mass, production, rapidity)
        shift = _mass_shift(rng, width, cut)
        azimuth = 2.0 * math.pi * rng.random() - math.pi
        kept_plus, kept_minus = 1.0, 1.0
        if alpha > 0.0:
            kept_plus -= radiated_fraction(rng, mass, mu, alpha)
            kept_minus -= radiated_fraction(rng, mass, mu, alpha)
        for side in range(2):
            moved = shift if side == 0 else -shift
            row = out[2 * draw + side]
            for i in range(2):
                # The angles are those of mu-; mu+ is opposite.
                cos_theta, turned = (-c, phi + math.pi) if i == 0 else (c, phi)
                px, py, pz = boson_decay(mass + moved, pt, y, cos_theta, turned, mu, mu)
                pt_mu = math.sqrt(px * px + py * py)
                row[3 * i] = (kept_plus if i == 0 else kept_minus) * pt_mu
                row[3 * i + 1] = math.asinh(pz / pt_mu)
                row[3 * i + 2] = _within_pi(math.atan2(py, px) + azimuth)
            row[6], row[7] = mass_weight(moved, width), mass + moved
    return out


def mass_cut(source: Boson) -> float:
    """Largest distance in GeV from the peak that is simulated."""
    return _WIDTHS * source.line.width


def w_draws(settings: BosonSettings, seed: int, block: int) -> Floats:
    """(2 DRAWS, 4) pT, eta, mass weight, boson mass of one block of muons of a W, unmeasured."""
    source = settings.boson
    if source.charge == 0:
        raise InputError(f"{source.name} has no charge: give W+ or W-")
    # The streams of the two charges differ, or their fluctuations would cancel where the data's do not.
    rng = stream_of(2 * seed + (source.charge < 0), _W_STREAM, block)
    rows: Floats = _w_block(
        rng, DRAWS, source.line.mass, source.line.width, mass_cut(source),
        production_table(source), rapidity_table(source), MUON_MASS, settings.alpha,
    )  # fmt: skip
    return rows


def z_draws(settings: BosonSettings, seed: int, block: int) -> Floats:
    """(2 DRAWS, 8) pT, eta, phi of mu+ and of mu-, mass weight, boson mass of one block of pairs, unmeasured."""
    source = settings.boson
    if source.charge != 0:
        raise InputError(f"{source.name} does not decay to a pair of muons: give Z")
    rows: Floats = _z_block(
        stream_of(seed, _Z_STREAM, block), DRAWS, source.line.mass, source.line.width, mass_cut(source),
        production_table(source), rapidity_table(source), MUON_MASS, settings.alpha,
    )  # fmt: skip
    return rows


@kernel
def _measured(
    rng: Generator, pt: Floats, eta: Floats, edges: Floats, resolution: Floats, no_edges: Floats, zero: Floats,
    nothing: Floats, max_smear: float,
) -> Floats:  # fmt: skip
    out = np.empty(pt.size)
    for n in range(pt.size):
        out[n] = measured_pt(
            rng, pt[n], eta[n], 0.0, 1.0, edges, resolution, no_edges, zero, nothing, max_smear
        )
    return out


def _measure(rng: Generator, pt: Floats, eta: Floats, resolution: ResolutionModel) -> Floats:
    """(n,) measured pT in GeV."""
    table = np.array([resolution.a, resolution.b, resolution.c, resolution.d])
    none = no_bias(np.array([-1.0, 1.0]))
    zero = np.array([none.A, none.e, none.M])
    measured: Floats = _measured(
        rng, np.ascontiguousarray(pt), np.ascontiguousarray(eta), np.ascontiguousarray(resolution.eta_edges),
        table, none.eta_edges, zero, np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1e9]), MAX_SMEAR,
    )  # fmt: skip
    return measured


def _number_of_blocks(n_draws: int) -> int:
    if n_draws < 1:
        raise InputError(f"simulation: need at least one draw, got {n_draws}")
    return -(-n_draws // DRAWS)


def simulate_w(
    settings: BosonSettings, n_draws: int, seed: int, *, threads: int | None = None
) -> Iterator[SingleMuons]:
    """Measured muons of W decays without any cut, two from every draw; ``n_draws`` is rounded up to whole blocks.

    Raises
    ------
    InputError : a boson without charge.
    """

    def work(block: int) -> SingleMuons:
        pt, eta, _, mass = w_draws(settings, seed, block).T
        rng = stream_of(2 * seed + (settings.boson.charge < 0), _W_STREAM + 2, block)
        azimuth = rng.uniform(-math.pi, math.pi, len(pt))
        measured = _measure(rng, pt, eta, settings.resolution)
        return SingleMuons(Muons(measured, eta, azimuth), Muons(pt, eta, azimuth), mass)

    return in_order(work, range(_number_of_blocks(n_draws)), threads)


def simulate_z(
    settings: BosonSettings, n_draws: int, seed: int, *, threads: int | None = None
) -> Iterator[DimuonEvents]:
    """Measured pairs of Z decays without any cut, two from every draw; ``n_draws`` is rounded up to whole blocks.

    ``extra["boson_mass"]`` is the mass before radiation.

    Raises
    ------
    InputError : a boson that is no Z.
    """

    def work(block: int) -> DimuonEvents:
        columns = np.ascontiguousarray(z_draws(settings, seed, block).T)
        rng = stream_of(seed, _Z_STREAM + 2, block)
        generated = Muons(*columns[:3]), Muons(*columns[3:6])
        plus, minus = (
            Muons(_measure(rng, muons.pt, muons.eta, settings.resolution), muons.eta, muons.phi)
            for muons in generated
        )
        return DimuonEvents(plus, minus, *generated, extra={"boson_mass": columns[7]})

    return in_order(work, range(_number_of_blocks(n_draws)), threads)
