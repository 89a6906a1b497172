r"""Muon pairs with known truth: production, decay, final-state radiation, resolution and an injected bias.

One block of attempts has its own random stream, keyed by (seed, block): the events do not depend on the number of
threads or on the size of the chunks in which they are asked for. The measured curvature is

.. math:: k_\mathrm{meas} = F^{-1}\bigl(k_\mathrm{true}(1 + \sigma g)/(1 + x)\bigr), \qquad
   \sigma^2 = a + c/k^2 + b/(1 + d k^2)

with F the A, e, M correction (its exact inverse injects the truth), g a unit Gaussian, x the sum of the extra
mis-models. Angles are measured exactly.

Not for: hits and tracks (`musclecal.geometry`), or a description of any particular detector.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice

import numpy as np
from numpy.random import Generator, Philox

from musclecal.binning import bin_of
from musclecal.compiled import in_order, kernel
from musclecal.constants import ALPHA_QED, MUON_MASS
from musclecal.errors import InputError
from musclecal.kinematics import pair_mass
from musclecal.records import DimuonEvents, Floats, Muons, ScaleParameters
from musclecal.resonances import Line, Resonance, Spectrum
from musclecal.scale import biased_curvature

__all__ = [
    "MisModel",
    "ResolutionModel",
    "SimulationSettings",
    "default_resolution",
    "lineshape",
    "measure_pairs",
    "no_bias",
    "simulate",
]

_ATTEMPTS = 1 << 16
_MAX_SMEAR = 6.0


@dataclass(frozen=True)
class ResolutionModel:
    """(sigma_k/k)^2 = a + c/k^2 + b/(1 + d k^2) per eta bin (physics.md section 3).

    Attributes
    ----------
    eta_edges : (n + 1,).
    a, b : (n,) 1. c : (n,) 1/GeV^2. d : (n,) GeV^2.
    """

    eta_edges: Floats
    a: Floats
    b: Floats
    c: Floats
    d: Floats

    def scaled(self, factor: float) -> "ResolutionModel":
        """The same with sigma_k/k times ``factor``."""
        square = factor * factor
        return replace(self, a=self.a * square, b=self.b * square, c=self.c * square)


def default_resolution(eta_max: float = 2.4) -> ResolutionModel:
    """A typical silicon tracker in 4 T: 0.9 % at low pT in the barrel, 1.5 % forward; 1.0 to 2.0 % at 40 GeV.

    A choice of the size of today's trackers, made for tests; it is not the resolution of any experiment.
    """
    edges = np.linspace(-eta_max, eta_max, 25)
    x = np.abs(0.5 * (edges[1:] + edges[:-1])) / 2.4
    a = (0.0088 + 0.0062 * x**2) ** 2
    c = (1.2e-4 + 2.0e-4 * x**2) ** 2
    return ResolutionModel(edges, a, np.zeros(24), c, np.full(24, 370.0))


@dataclass(frozen=True)
class MisModel:
    """Biases that A, e, M cannot describe: the relative curvature correction x that is still needed.

    Attributes
    ----------
    pt2 : 1/GeV^2, x = pt2 pT^2.
    phi_amplitude, phi_harmonic : x = amplitude cos(harmonic phi).
    eta_amplitude, eta_period, eta_pt_min : x = amplitude sin(2 pi eta/period) where pT > pt_min (GeV).
    """

    pt2: float = 0.0
    phi_amplitude: float = 0.0
    phi_harmonic: int = 1
    eta_amplitude: float = 0.0
    eta_period: float = 1.0
    eta_pt_min: float = 20.0


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate.

    Attributes
    ----------
    resonance : peaks and production.
    muon_pt : (low, high) GeV and eta_range : acceptance in measured quantities.
    mass_window : GeV, on the measured mass.
    fsr : photon radiation on or off.
    background : fraction of background in the accepted events; background_slope : 1/GeV, of exp(-slope m).
    resolution, truth, mismodel : what the detector does; ``truth`` is the correction that would undo its bias.
    spectrum : overrides that of the resonance.
    run : number that all events get.
    """

    resonance: Resonance
    muon_pt: tuple[float, float]
    eta_range: tuple[float, float]
    mass_window: tuple[float, float]
    resolution: ResolutionModel = field(default_factory=default_resolution)
    truth: ScaleParameters | None = None
    mismodel: MisModel = MisModel()
    fsr: bool = True
    background: float = 0.0
    background_slope: float = 1.0
    spectrum: Spectrum | None = None
    run: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.background < 1.0:
            raise InputError(f"background: a fraction between 0 and 1, got {self.background}")
        if self.truth is None:
            return
        worst = 4.0 * np.max(np.abs(self.truth.e)) / self.muon_pt[0]
        if worst > 0.5:
            raise InputError(
                f"truth: e up to {np.max(np.abs(self.truth.e)):g} GeV cannot be inverted at low pT"
            )


@kernel
def radiated_fraction(rng: Generator, mass: float, mu: float, alpha: float) -> float:
    """Energy fraction x lost by one muon of a pair of ``mass`` to collinear photons.

    Exponentiated leading-logarithm structure function, b x^(b-1) (1 + (1-x)^2)/2 with
    b = alpha/pi (ln(m^2/mu^2) - 1) (e.g. Kuraev and Fadin, Sov. J. Nucl. Phys. 41 (1985) 466).
    """
    b = alpha / math.pi * (2.0 * math.log(mass / mu) - 1.0)
    while True:
        x = rng.random() ** (1.0 / b)
        if 2.0 * rng.random() < 1.0 + (1.0 - x) * (1.0 - x):
            return x


@kernel
def line_mass(rng: Generator, masses: Floats, widths: Floats, cumulative: Floats, cut: float) -> float:
    """A mass of one of the lines: Breit-Wigner of the given widths, within ``cut`` of the peak (GeV).

    A running-width factor is left out: it moves no peak that is fitted against simulation.
    """
    i = 0
    u = rng.random()
    while u > cumulative[i] and i < masses.size - 1:
        i += 1
    while True:
        shift = 0.5 * widths[i] * math.tan(math.pi * (rng.random() - 0.5))
        if abs(shift) < cut and masses[i] + shift > 0.3:
            return masses[i] + shift


@kernel
def produced_pair(rng: Generator, production: Floats) -> tuple[float, float]:
    """(pT, y) of a pair: dN/dpT^2 ~ (1 + pT^2/p0^2)^-n between two pT, flat in |y| < y_max (see `production_of`)."""
    p0, power = production[0], 1.0 - production[1]
    low, high = production[2], production[3]
    pt = p0 * math.sqrt((low + rng.random() * (high - low)) ** (1.0 / power) - 1.0)
    return pt, production[4] * (2.0 * rng.random() - 1.0)


@kernel
def _cos_theta(rng: Generator, polarisation: float) -> float:
    """cos(theta) of 1 + polarisation cos^2(theta)."""
    highest = 1.0 + max(0.0, polarisation)
    while True:
        c = 2.0 * rng.random() - 1.0
        if highest * rng.random() <= 1.0 + polarisation * c * c:
            return c


@kernel
def _decay(
    rng: Generator, mass: float, pt: float, y: float, polarisation: float, mu: float, momenta: Floats
) -> None:
    """Momenta (px, py, pz of mu+, then mu-) of a pair of ``mass`` with transverse momentum pt along +x."""
    p_star = math.sqrt(max(0.25 * mass * mass - mu * mu, 0.0))
    pz = math.sqrt(mass * mass + pt * pt) * math.sinh(y)
    p = math.sqrt(pt * pt + pz * pz)
    energy = math.sqrt(mass * mass + p * p)
    c = _cos_theta(rng, polarisation)
    s = math.sqrt(1.0 - c * c)
    azimuth = 2.0 * math.pi * rng.random()
    nx, nz = pt / p, pz / p
    boosted = p_star * c * energy / mass
    half_boost = 0.5 * p
    along_plus, along_minus = half_boost + boosted, half_boost - boosted
    side_x, side_y = p_star * s * math.cos(azimuth), p_star * s * math.sin(azimuth)
    momenta[0] = along_plus * nx - side_x * nz
    momenta[1] = side_y
    momenta[2] = along_plus * nz + side_x * nx
    momenta[3] = along_minus * nx + side_x * nz
    momenta[4] = -side_y
    momenta[5] = along_minus * nz - side_x * nx


@kernel
def measured_pt(
    rng: Generator,
    pt: float,
    eta: float,
    phi: float,
    charge: float,
    resolution_edges: Floats,
    resolution: Floats,
    truth_edges: Floats,
    truth: Floats,
    mismodel: Floats,
    max_smear: float,
) -> float:
    """One measurement of ``pt``. Rows of ``resolution``: a, b, c, d; of ``truth``: A, e, M."""
    g = rng.standard_normal()
    while abs(g) > max_smear:
        g = rng.standard_normal()
    k = 1.0 / pt
    i = bin_of(resolution_edges, eta)
    if i < 0:
        i = 0 if eta < resolution_edges[0] else resolution_edges.size - 2
    a, b, c, d = resolution[0, i], resolution[1, i], resolution[2, i], resolution[3, i]
    k_smeared = k * (1.0 + g * math.sqrt(a + c / (k * k) + b / (1.0 + d * k * k)))
    extra = mismodel[0] * pt * pt + mismodel[1] * math.cos(mismodel[2] * phi)
    if pt > mismodel[5]:
        extra += mismodel[3] * math.sin(2.0 * math.pi * eta / mismodel[4])
    j = bin_of(truth_edges, eta)
    if j < 0:
        return (1.0 + extra) / k_smeared
    return 1.0 / biased_curvature(k_smeared / (1.0 + extra), charge, truth[0, j], truth[1, j], truth[2, j])


@kernel
def _measured_muon(
    rng: Generator,
    px: float,
    py: float,
    pz: float,
    azimuth: float,
    i: int,
    acceptance: Floats,
    resolution_edges: Floats,
    resolution: Floats,
    truth_edges: Floats,
    truth: Floats,
    mismodel: Floats,
    max_smear: float,
    row: Floats,
) -> bool:
    """Measure muon ``i`` (0: mu+, 1: mu-), turned by ``azimuth``, into its part of ``row``; whether it is accepted."""
    gen_pt = math.sqrt(px * px + py * py)
    eta = math.asinh(pz / gen_pt)
    phi = math.atan2(py, px) + azimuth
    if phi > math.pi:
        phi -= 2.0 * math.pi
    elif phi <= -math.pi:
        phi += 2.0 * math.pi
    measured = measured_pt(
        rng, gen_pt, eta, phi, 1.0 - 2.0 * i,
        resolution_edges, resolution, truth_edges, truth, mismodel, max_smear,
    )  # fmt: skip
    row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3] = measured, eta, phi, gen_pt
    return acceptance[2] <= eta < acceptance[3] and acceptance[0] <= measured < acceptance[1]


@kernel
def _mass_accepted(row: Floats, acceptance: Floats, mu: float) -> bool:
    """Whether the measured mass of a pair is in the window."""
    mass = pair_mass(row[0], row[1], row[2], row[4], row[5], row[6], mu)
    return acceptance[4] <= mass < acceptance[5]


@kernel
def _measured_pairs(
    rng: Generator,
    plus: Floats,
    minus: Floats,
    acceptance: Floats,
    resolution_edges: Floats,
    resolution: Floats,
    truth_edges: Floats,
    truth: Floats,
    mismodel: Floats,
    mu: float,
    max_smear: float,
) -> Floats:
    out = np.zeros((len(plus), 9))
    n = 0
    for pair in range(len(plus)):
        row = out[n]
        accepted = True
        for i in range(2):
            if accepted:
                muon = plus[pair] if i == 0 else minus[pair]
                accepted = _measured_muon(
                    rng, muon[0], muon[1], muon[2], 0.0, i, acceptance,
                    resolution_edges, resolution, truth_edges, truth, mismodel, max_smear, row,
                )  # fmt: skip
        if accepted and _mass_accepted(row, acceptance, mu):
            n += 1
    return out[:n].copy()


@kernel
def _may_be_accepted(momenta: Floats, acceptance: Floats) -> bool:
    """Whether radiation and resolution could still bring both muons into the acceptance: a cheap first look."""
    for i in range(2):
        pt2 = momenta[3 * i] ** 2 + momenta[3 * i + 1] ** 2
        if pt2 < (0.85 * acceptance[0]) ** 2:
            return False
        sinh_eta = momenta[3 * i + 2] / math.sqrt(pt2)
        if not (math.sinh(acceptance[2]) <= sinh_eta < math.sinh(acceptance[3])):
            return False
    return True


@kernel
def _pair_block(
    rng: Generator,
    n_attempts: int,
    background_probability: float,
    lines: Floats,
    line_cut: float,
    production: Floats,
    background_shape: Floats,
    acceptance: Floats,
    resolution_edges: Floats,
    resolution: Floats,
    truth_edges: Floats,
    truth: Floats,
    mismodel: Floats,
    mu: float,
    alpha: float,
    max_smear: float,
) -> Floats:
    """Accepted pairs of one block, (n, 9): pt, eta, phi and generator pt of mu+, then of mu-, then 1 for background.

    lines: rows mass, width, cumulative fraction. production: `production_of`. background_shape: slope, low, high.
    acceptance: pt low, high, eta low, high, mass low, high.
    """
    out = np.empty((n_attempts, 9))
    momenta = np.empty(6)
    slope, m_low, m_high = background_shape[0], background_shape[1], background_shape[2]
    n = 0
    for _ in range(n_attempts):
        is_background = rng.random() < background_probability
        if is_background:
            u = rng.random()
            if abs(slope) * (m_high - m_low) < 1e-9:
                mass = m_low + u * (m_high - m_low)
            else:
                mass = m_low - math.log1p(-u * (1.0 - math.exp(-slope * (m_high - m_low)))) / slope
        else:
            mass = line_mass(rng, lines[0], lines[1], lines[2], line_cut)
        pt, y = produced_pair(rng, production)
        _decay(rng, mass, pt, y, production[5], mu, momenta)
        azimuth = 2.0 * math.pi * rng.random() - math.pi
        accepted = _may_be_accepted(momenta, acceptance)
        for i in range(2):
            if not accepted:
                break
            kept = 1.0
            if alpha > 0.0 and not is_background:
                kept -= radiated_fraction(rng, mass, mu, alpha)
            px, py, pz = kept * momenta[3 * i], kept * momenta[3 * i + 1], kept * momenta[3 * i + 2]
            accepted = _measured_muon(
                rng, px, py, pz, azimuth, i, acceptance,
                resolution_edges, resolution, truth_edges, truth, mismodel, max_smear, out[n],
            )  # fmt: skip
        if accepted and _mass_accepted(out[n], acceptance, mu):
            out[n, 8] = 1.0 if is_background else 0.0
            n += 1
    return out[:n].copy()


def no_bias(eta_edges: Floats) -> ScaleParameters:
    """A correction of zero."""
    zero = np.zeros(len(eta_edges) - 1)
    return ScaleParameters(np.asarray(eta_edges, dtype=np.float64), zero, zero, zero)


def lines_table(lines: tuple[Line, ...]) -> Floats:
    fractions = np.array([line.fraction for line in lines])
    cumulative = np.cumsum(fractions / fractions.sum())
    return np.array([[line.mass for line in lines], [line.width for line in lines], cumulative])


def breit_wigner_cut(settings: SimulationSettings) -> float:
    """Breit-Wigner tails beyond this distance (GeV) from the peak cannot reach the window."""
    low, high = settings.mass_window
    return max(0.5 * (high - low), *(12.0 * line.width for line in settings.resonance.lines))


def _lowest_pair_pt(settings: SimulationSettings) -> float:
    """The pT of a pair of muons both above the acceptance: pT^2 >= (2 pT_mu)^2 - m^2, with room for smearing."""
    lowest = 0.93 * settings.muon_pt[0]
    return math.sqrt(max(4.0 * lowest**2 - (1.05 * settings.mass_window[1]) ** 2, 0.0))


def production_of(settings: SimulationSettings) -> Floats:
    """(6,) p0, exponent, (1 + pT^2/p0^2)^(1 - exponent) at the lowest and the highest pair pT, y_max, polarisation."""
    spectrum = settings.spectrum or settings.resonance.spectrum
    ends = np.array([_lowest_pair_pt(settings), 2.5 * settings.muon_pt[1]])
    low, high = (1.0 + (ends / spectrum.p0) ** 2) ** (1.0 - spectrum.exponent)
    return np.array([spectrum.p0, spectrum.exponent, low, high, spectrum.y_max, spectrum.polarisation])


def _detector_of(settings: SimulationSettings) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """Acceptance, resolution, truth and mis-model as the arguments of the kernels."""
    r, x = settings.resolution, settings.mismodel
    truth = settings.truth or no_bias(np.array(settings.eta_range))
    return (
        np.array([*settings.muon_pt, *settings.eta_range, *settings.mass_window]),
        np.ascontiguousarray(r.eta_edges),
        np.array([r.a, r.b, r.c, r.d]),
        np.ascontiguousarray(truth.eta_edges),
        np.array([truth.A, truth.e, truth.M]),
        np.array([x.pt2, x.phi_amplitude, float(x.phi_harmonic), x.eta_amplitude, x.eta_period, x.eta_pt_min]),
    )  # fmt: skip


def measure_pairs(rng: Generator, plus: Floats, minus: Floats, settings: SimulationSettings) -> Floats:
    """What the detector makes of pairs from any generator, accepted ones only.

    Parameters
    ----------
    plus, minus : (n, 3) px, py, pz in GeV of mu+ and mu-, after radiation.

    Returns
    -------
    (n_accepted, 9) : pt, eta, phi and generator pt of mu+, then of mu-, then 0 for "no background".
    """
    pairs: Floats = _measured_pairs(rng, plus, minus, *_detector_of(settings), MUON_MASS, _MAX_SMEAR)
    return pairs


def stream_of(seed: int, stream: int, block: int = 0) -> Generator:
    """Random numbers of one block. Streams: 0 pairs, 1 share of background, 2 line shape, 3 to 5 `musclecal.pythia`."""
    return Generator(Philox(key=[seed, (stream << 40) + block]))


@dataclass(frozen=True)
class _BlockMaker:
    """The settings as the kernel's arguments."""

    settings: SimulationSettings
    seed: int
    background_probability: float = 0.0
    stream: int = 0

    def __call__(self, block: int) -> Floats:
        s = self.settings
        window = s.mass_window
        pairs: Floats = _pair_block(
            stream_of(self.seed, self.stream, block),
            _ATTEMPTS,
            self.background_probability,
            lines_table(s.resonance.lines),
            breit_wigner_cut(s),
            production_of(s),
            np.array([s.background_slope, 0.9 * window[0], 1.1 * window[1]]),
            *_detector_of(s),
            MUON_MASS,
            ALPHA_QED if s.fsr else 0.0,
            _MAX_SMEAR,
        )
        return pairs


def background_blocks(settings: SimulationSettings, seed: int, stream: int) -> Iterator[Floats]:
    """Accepted pairs of background alone, block by block without end; rows as of `measure_pairs`, but 1 at the end."""
    return map(_BlockMaker(settings, seed, 1.0, stream), count())


def _background_probability(settings: SimulationSettings, seed: int) -> float:
    """Probability of an attempt to be background that gives the wanted fraction after acceptance."""
    if settings.background == 0.0:
        return 0.0
    accepted = [
        sum(len(_BlockMaker(settings, seed, probability, stream=1)(block)) for block in range(4))
        for probability in (0.0, 1.0)
    ]
    if 0 in accepted:
        raise InputError("simulation: no pair is accepted; check muon_pt, eta_range and mass_window")
    odds = settings.background / (1.0 - settings.background) * accepted[0] / accepted[1]
    return odds / (1.0 + odds)


def _as_events(rows: Floats, first: int, run: int) -> DimuonEvents:
    columns = np.ascontiguousarray(rows.T)
    number = np.arange(first, first + len(rows), dtype=np.int64)
    return DimuonEvents(
        plus=Muons(columns[0], columns[1], columns[2]),
        minus=Muons(columns[4], columns[5], columns[6]),
        gen_plus=Muons(columns[3], columns[1], columns[2]),
        gen_minus=Muons(columns[7], columns[5], columns[6]),
        run=np.full(len(rows), run, dtype=np.int64),
        lumi=1 + number // 10_000,
        event=number,
        extra={"is_background": columns[8]},
    )


def simulate(
    settings: SimulationSettings,
    n_events: int,
    seed: int,
    *,
    chunk_events: int = 500_000,
    threads: int | None = None,
) -> Iterator[DimuonEvents]:
    """Exactly ``n_events`` accepted pairs, signal and background together, in chunks.

    The same (settings, n_events, seed) give the same events for any ``chunk_events`` and ``threads``.

    Raises
    ------
    InputError : nothing is accepted.
    """
    probability = _background_probability(settings, seed)
    blocks = in_order(_BlockMaker(settings, seed, probability), count(), threads)
    return in_chunks(blocks, n_events, chunk_events, settings.run)


def in_chunks(
    blocks: Iterable[Floats], n_events: int, chunk_events: int, run: int = 1
) -> Iterator[DimuonEvents]:
    """The first ``n_events`` rows of endless ``blocks`` of accepted pairs, as events.

    Raises
    ------
    InputError : many blocks in a row are empty.
    """
    kept: list[Floats] = []
    waiting = made = empty = 0
    for rows in blocks:
        empty = 0 if len(rows) else empty + 1
        if empty == 50:
            raise InputError("simulation: no pair is accepted; check muon_pt, eta_range and mass_window")
        rows = rows[: n_events - made - waiting]
        kept.append(rows)
        waiting += len(rows)
        while waiting >= chunk_events or (made + waiting == n_events and waiting):
            together = np.concatenate(kept)
            yield _as_events(together[:chunk_events], made, run)
            kept = [together[chunk_events:]]
            made += min(chunk_events, waiting)
            waiting = len(kept[0])
        if made == n_events:
            return


def lineshape(resonance: Resonance, n: int, seed: int, *, fsr: bool = True) -> Floats:
    """(n,) masses in GeV of the resonance after FSR, without any detector: the true line shape."""
    rng = stream_of(seed, 2)
    masses = np.empty(n)
    _fill_lineshape(rng, lines_table(resonance.lines), 12.0 * resonance.line.width + 0.1,
                    MUON_MASS, ALPHA_QED if fsr else 0.0, masses)  # fmt: skip
    return masses


@kernel
def _fill_lineshape(
    rng: Generator, lines: Floats, line_cut: float, mu: float, alpha: float, out: Floats
) -> None:
    for n in range(out.size):
        mass = line_mass(rng, lines[0], lines[1], lines[2], line_cut)
        kept = 1.0
        if alpha > 0.0:
            kept = 1.0 - radiated_fraction(rng, mass, mu, alpha)
            kept *= 1.0 - radiated_fraction(rng, mass, mu, alpha)
        out[n] = mass * math.sqrt(kept)


def first_events(settings: SimulationSettings, n_events: int, seed: int) -> DimuonEvents:
    """A sample small enough for memory, in one piece."""
    (events,) = islice(simulate(settings, n_events, seed, chunk_events=n_events), 1)
    return events
