r"""Muon tracks with known truth through a detector that is not where it is thought to be.

The detector's true state is given by parameters (n_units, 4 or 6) as in `musclecal.geometry.trace`, whose steps these
are: field half-way to the centre of the module, helix to its plane, hit less shifts, loss of energy, kicks. With
smearing, scattering and fluctuations of the loss off, a fit at the true parameters finds the truth to rounding.

A track has one unit of each layer that it meets, both sides of a stereo module. Blocks of tracks have random streams
of their own, keyed by (seed, block): the same tracks for any threads and chunks.

Not for: which module is where (`musclecal.geometry.misalignment`), or momenta without hits (`musclecal.simulate`).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from musclecal.compiled import in_order, kernel
from musclecal.errors import InputError
from musclecal.geometry.detector import planes_of
from musclecal.geometry.field import field_at
from musclecal.geometry.helix import CROSSED, cross_one
from musclecal.geometry.material import (
    AVERAGE,
    ELECTRON_MASS,
    GAUSS,
    LANDAU,
    SILICON,
    highland_variance,
    loss_at,
    loss_fluctuation,
)
from musclecal.geometry.navigation import Navigation, layers_ahead, most_sensors, navigation_of, sensors_at
from musclecal.geometry.trace import GAMMA, B, M, Planes, W
from musclecal.records import Detector, DimuonEvents, FieldMap, Floats, Ints, Pairs, Tracks
from musclecal.simulate import MisModel, ResolutionModel, SimulationSettings, simulate, stream_of

__all__ = [
    "DetectorEffects",
    "TrackMaker",
    "flat_muons",
    "simulate_pairs",
    "simulate_tracks",
    "start_states",
    "track_maker",
]

BEAM_SPOT: Final = (0.0015, 0.0015, 4.0)
"""cm, widths of the vertices in x, y, z."""

_BLOCK: Final = 2048
"""Pairs of a block; twice as many single tracks."""
_TRACK_STREAM, _PAIR_STREAM, _MUON_STREAM = 8, 9, 10
_MARGIN: Final = 5.0
_FLUCTUATIONS: Final = {"mean": AVERAGE, "gauss": GAUSS, "landau": LANDAU}


@dataclass(frozen=True)
class DetectorEffects:
    """What happens to a track beyond bending and mean loss of energy.

    Attributes
    ----------
    smear : hits by their resolution. scatter : directions, as of Highland, Gaussian.
    loss : "mean", or with Gaussian ("gauss") or Landau ("landau") fluctuations.
    efficiency : probability of a hit; without one, the sensor stays with nan.
    noise : probability that a hit is replaced by one that is flat within ``noise_range`` (cm) of the true crossing.
    """

    smear: bool = True
    scatter: bool = True
    loss: Literal["mean", "gauss", "landau"] = "mean"
    efficiency: float = 1.0
    noise: float = 0.0
    noise_range: float = 0.3

    def __post_init__(self) -> None:
        if self.loss not in _FLUCTUATIONS:
            raise InputError(f"loss: one of {', '.join(_FLUCTUATIONS)}, got {self.loss!r}")
        for name in ("efficiency", "noise"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name}: a probability, got {getattr(self, name)}")
        if not self.noise_range > 0.0:
            raise InputError(f"noise_range: must be positive, got {self.noise_range}")


PERFECT: Final = DetectorEffects(smear=False, scatter=False)
"""Hits where they would be predicted."""


class _Sensors(NamedTuple):
    """What hits need beyond `Planes`: bounds and resolutions (n_sensor,) in cm."""

    half_u: Floats
    half_v: Floats
    sigma_u: Floats
    sigma_v: Floats


class _Effects(NamedTuple):
    """`DetectorEffects` and constants as the kernel takes them."""

    smear: bool
    scatter: bool
    loss: int
    efficiency: float
    noise: float
    noise_range: float
    electron_mass: float
    xi: float
    margin: float


class _Room(NamedTuple):
    """Where a kernel writes while it follows one track."""

    state: Floats
    end: Floats
    point: Floats
    s_of: Floats
    layers: Ints


@dataclass(frozen=True)
class TrackMaker:
    """A detector in its true state, ready for tracks: made by `track_maker`.

    Attributes
    ----------
    n_max : more sensors than a track can meet, the width of the arrays.
    """

    detector: Detector
    planes: Planes
    truth: Floats
    effects: DetectorEffects
    navigation: Navigation
    n_max: int

    def __call__(self, rng: Generator, states: Floats, event: Ints) -> Tracks:
        """Tracks from (n, 6) start states, one after the other with the numbers of ``rng``."""
        d, e, n = self.detector, self.effects, len(states)
        module = np.full((n, self.n_max), -1, dtype=np.int32)
        u, v = np.full((n, self.n_max), np.nan), np.full((n, self.n_max), np.nan)
        sigma_u, sigma_v = np.ones((n, self.n_max)), np.ones((n, self.n_max))
        _follow_all(
            rng, states, self.planes, _Sensors(d.half_u, d.half_v, d.sigma_u, d.sigma_v), self.navigation, self.truth,
            _Effects(e.smear, e.scatter, _FLUCTUATIONS[e.loss], e.efficiency, e.noise, e.noise_range, ELECTRON_MASS,
                     SILICON.xi, _MARGIN),
            module, u, v, sigma_u, sigma_v,
        )  # fmt: skip
        return Tracks(
            np.where(states[:, 0] > 0.0, 1, -1).astype(np.int8), module, u, v, sigma_u, sigma_v, event, states
        )


def track_maker(
    detector: Detector,
    field_map: FieldMap,
    truth: ArrayLike | None = None,
    effects: DetectorEffects = DetectorEffects(),
) -> TrackMaker:
    """A detector whose ``truth`` (n_units, 4 or 6) says where it is; None: where it is thought to be.

    Raises
    ------
    InputError : parameters of another shape or not finite; another field map than that of the detector.
    """
    values = np.zeros((detector.n_units, 4)) if truth is None else np.array(truth, dtype=np.float64)
    if values.shape not in ((detector.n_units, 4), (detector.n_units, 6)):
        raise InputError(f"truth: need shape ({detector.n_units}, 4 or 6), got {values.shape}")
    if not np.all(np.isfinite(values)):
        raise InputError(f"truth: not finite at unit {np.argmax(~np.isfinite(values).all(axis=1))}")
    navigation = navigation_of(detector)
    return TrackMaker(
        detector,
        planes_of(detector, field_map),
        values,
        effects,
        navigation,
        most_sensors(detector, navigation),
    )


def start_states(
    charge: ArrayLike, pt: ArrayLike, eta: ArrayLike, phi: ArrayLike, vertex: ArrayLike = (0.0, 0.0, 0.0)
) -> Floats:
    """(n, 6) q/p, lambda, phi, x, y, z of muons of pT (GeV) at ``vertex`` (n, 3) or (3,), cm."""
    charge, pt, eta, phi = np.broadcast_arrays(charge, pt, eta, phi)
    place = np.broadcast_to(np.asarray(vertex, dtype=np.float64), (charge.size, 3))
    momentum = [charge / (pt * np.cosh(eta)), np.arctan(np.sinh(eta)), phi]
    return np.ascontiguousarray(np.concatenate([np.stack(momentum, axis=1), place], axis=1), dtype=np.float64)


def flat_muons(
    n: int,
    seed: int,
    *,
    pt: tuple[float, float] = (3.0, 60.0),
    eta: tuple[float, float] = (-2.4, 2.4),
    beam_spot: tuple[float, float, float] = BEAM_SPOT,
) -> Floats:
    """(n, 6) start states of single muons of both charges, flat in pT (GeV), eta and phi."""
    rng = stream_of(seed, _MUON_STREAM)
    return start_states(
        rng.choice([-1.0, 1.0], n), rng.uniform(*pt, n), rng.uniform(*eta, n), rng.uniform(-math.pi, math.pi, n),
        rng.normal(0.0, beam_spot, (n, 3)),
    )  # fmt: skip


def simulate_tracks(maker: TrackMaker, states: Floats, seed: int, *, threads: int | None = None) -> Tracks:
    """A track for each of the start states (n, 6), whatever it hits; event numbers are row numbers.

    The same for any ``threads``; all in memory.
    """
    states = np.ascontiguousarray(states, dtype=np.float64)
    if states.ndim != 2 or states.shape[1] != 6 or not np.all(np.isfinite(states)):
        raise InputError(f"states: need finite numbers of shape (n, 6), got shape {states.shape}")

    def block(number: int) -> Tracks:
        part = np.arange(2 * _BLOCK * number, min(2 * _BLOCK * (number + 1), len(states)))
        return maker(stream_of(seed, _TRACK_STREAM, number), states[part], part)

    blocks = range(max(1, math.ceil(len(states) / (2 * _BLOCK))))
    return _together(list(in_order(block, blocks, threads)))


def simulate_pairs(
    maker: TrackMaker,
    settings: SimulationSettings,
    n_pairs: int,
    seed: int,
    *,
    min_hits: int = 6,
    beam_spot: tuple[float, float, float] = BEAM_SPOT,
    chunk_pairs: int = 50_000,
    threads: int | None = None,
) -> Iterator[Pairs]:
    """Exactly ``n_pairs`` pairs whose tracks both have ``min_hits`` hits, in chunks; mu+ in even rows, mu- in odd ones.

    Momenta are those of `musclecal.simulate` after radiation; its acceptance and mass window hold for them, its
    resolution and biases do not. The two muons have one vertex, in a Gaussian ``beam_spot`` (cm); so has background.
    The same pairs for any ``chunk_pairs`` and ``threads``.

    Raises
    ------
    InputError : nothing is accepted.
    """
    if not n_pairs > 0 or not chunk_pairs > 0:
        raise InputError(
            f"simulation: needs a positive number of pairs and chunk size, got {n_pairs}, {chunk_pairs}"
        )
    wanted = replace(settings, resolution=_NO_SMEARING, truth=None, mismodel=MisModel())

    def block(numbered: tuple[int, DimuonEvents]) -> Pairs:
        number, events = numbered
        rng = stream_of(seed, _PAIR_STREAM, number)
        return _pair_block(maker, rng, events, beam_spot, min_hits)

    endless = simulate(wanted, 1 << 60, seed, chunk_events=_BLOCK, threads=threads)
    yield from _chunks(in_order(block, zip(count(), endless, strict=False), threads), n_pairs, chunk_pairs)


_NO_SMEARING: Final = ResolutionModel(np.array([-10.0, 10.0]), *(np.zeros(1) for _ in range(4)))


def _pair_block(
    maker: TrackMaker, rng: Generator, events: DimuonEvents, spot: tuple[float, float, float], min_hits: int
) -> Pairs:
    """The accepted ones of ``events``."""
    vertex = rng.normal(0.0, spot, (len(events), 3))
    states = np.empty((len(events), 2, 6))
    for i, (charge, muons) in enumerate(((1.0, events.plus), (-1.0, events.minus))):
        states[:, i] = start_states(np.full(len(events), charge), muons.pt, muons.eta, muons.phi, vertex)
    tracks = maker(rng, states.reshape(-1, 6), np.repeat(np.arange(len(events)), 2))
    accepted = np.all(tracks.n_hits.reshape(-1, 2) >= min_hits, axis=1)
    is_background = np.asarray(events.extra["is_background"], dtype=np.bool_)
    return _numbered(tracks.select(np.repeat(accepted, 2)), is_background[accepted], 0)


def _numbered(tracks: Tracks, is_background: NDArray[np.bool_], first: int) -> Pairs:
    """Pairs of tracks that stand side by side, with event numbers from ``first`` on."""
    n = len(tracks) // 2
    event = np.repeat(np.arange(first, first + n), 2)
    return Pairs(replace(tracks, event=event), np.arange(2 * n, dtype=np.int32).reshape(-1, 2), is_background)


def _chunks(blocks: Iterable[Pairs], n_pairs: int, chunk_pairs: int) -> Iterator[Pairs]:
    kept: list[Pairs] = []
    waiting = made = empty = 0
    for block in blocks:
        empty = 0 if len(block) else empty + 1
        if empty == 50:
            raise InputError("simulation: no pair has enough hits; check min_hits and eta_range")
        kept.append(block)
        waiting += len(block)
        while waiting >= chunk_pairs or made + waiting >= n_pairs:
            size = min(chunk_pairs, n_pairs - made)
            tracks = _together([pairs.tracks for pairs in kept])
            background = np.concatenate([np.asarray(pairs.is_background) for pairs in kept])
            yield _numbered(tracks.select(np.arange(2 * size)), background[:size], made)
            made += size
            if made == n_pairs:
                return
            kept = [_numbered(tracks.select(np.arange(2 * size, len(tracks))), background[size:], 0)]
            waiting = len(kept[0])


def _together(parts: list[Tracks]) -> Tracks:
    def joined(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    names = ("charge", "module", "u", "v", "sigma_u", "sigma_v", "event", "truth")
    return parts[0] if len(parts) == 1 else Tracks(**{name: joined(name) for name in names})  # type: ignore[arg-type]


@kernel
def _follow_all(
    rng: Generator, states: Floats, planes: Planes, sensors: _Sensors, navigation: Navigation, truth: Floats,
    effects: _Effects, module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats,
) -> None:  # fmt: skip
    n_layer = navigation.position.size
    room = _Room(np.empty(6), np.empty(6), np.empty(6), np.empty(n_layer), np.empty(n_layer, np.int64))
    for n in range(len(states)):
        room.state[:] = states[n]
        _follow(
            rng,
            planes,
            sensors,
            navigation,
            truth,
            effects,
            room,
            module[n],
            u[n],
            v[n],
            sigma_u[n],
            sigma_v[n],
        )


@kernel
def _follow(
    rng: Generator, planes: Planes, sensors: _Sensors, navigation: Navigation, truth: Floats, effects: _Effects,
    room: _Room, module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats,
) -> int:  # fmt: skip
    """One track from ``room.state`` on: sensors and hits in the order in which it meets them; how many sensors."""
    state = room.state
    r = math.sqrt(state[3] * state[3] + state[4] * state[4])
    bending = field_at(r, state[5], planes.r, planes.z, planes.bending)
    n_layer = layers_ahead(state, bending, navigation, effects.margin, room.s_of, room.layers)
    travelled, n = 0.0, 0
    for k in range(n_layer):
        first, last, guess = sensors_at(
            state, room.s_of[k] - travelled, room.layers[k], bending, 0.0, navigation, room.point
        )
        for candidate in range(first, last):
            sensor = navigation.sensors[candidate]
            crossed, s, local_u, local_v, step_bending = _cross(sensor, guess, planes, truth, room)
            if not crossed or s <= 0.0:
                continue
            if abs(local_u) > sensors.half_u[sensor] or abs(local_v) > sensors.half_v[sensor]:
                continue
            side = 0
            while sensor >= 0 and n < module.size:
                if side == 1:
                    crossed, s, local_u, local_v, step_bending = _cross(sensor, 0.0, planes, truth, room)
                    if not crossed:
                        return n
                travelled += s
                bending = step_bending
                state[:] = room.end
                module[n] = sensor
                sigma_u[n], sigma_v[n] = sensors.sigma_u[sensor], sensors.sigma_v[sensor]
                _hit(
                    rng,
                    sensor,
                    local_u,
                    local_v,
                    planes,
                    sensors,
                    truth[planes.unit[sensor]],
                    effects,
                    n,
                    u,
                    v,
                )
                n += 1
                if not _matter(rng, sensor, planes, truth[planes.unit[sensor]], effects, state):
                    return n
                sensor = navigation.partner[sensor] if side == 0 else -1
                side = 1
            break
    return n


@kernel
def _cross(
    sensor: int, guess: float, planes: Planes, truth: Floats, room: _Room
) -> tuple[bool, float, float, float, float]:
    """Where ``room.state`` meets the plane of a sensor (``room.end``): whether, arc length, local u and v, bending."""
    state, end = room.state, room.end
    centre, axes, values = planes.centre[sensor], planes.axes[sensor], truth[planes.unit[sensor]]
    x, y, z = 0.5 * (state[3] + centre[0]), 0.5 * (state[4] + centre[1]), 0.5 * (state[5] + centre[2])
    bending = field_at(math.sqrt(x * x + y * y), z, planes.r, planes.z, planes.bending)
    if values.size > W:
        moved = centre + values[W] * axes[2]
        status, s = cross_one(state, bending, values[B], moved, axes[2], guess, end)
    else:
        status, s = cross_one(state, bending, values[B], centre, axes[2], guess, end)
    dx, dy, dz = end[3] - centre[0], end[4] - centre[1], end[5] - centre[2]
    local_u = axes[0, 0] * dx + axes[0, 1] * dy + axes[0, 2] * dz
    local_v = axes[1, 0] * dx + axes[1, 1] * dy + axes[1, 2] * dz
    return status == CROSSED, s, local_u, local_v, bending


@kernel
def _hit(
    rng: Generator, sensor: int, local_u: float, local_v: float, planes: Planes, sensors: _Sensors, values: Floats,
    effects: _Effects, n: int, u: Floats, v: Floats,
) -> None:  # fmt: skip
    """Entry ``n`` of ``u`` and ``v``: what a sensor of the true state ``values`` measures of a crossing."""
    if effects.efficiency < 1.0 and rng.random() >= effects.efficiency:
        return
    gamma = values[GAMMA] if values.size > W else 0.0
    measured_u = local_u + gamma * local_v - values[planes.slot[sensor]]
    measured_v = local_v - gamma * local_u - values[1]
    if effects.noise > 0.0 and rng.random() < effects.noise:
        measured_u += effects.noise_range * (2.0 * rng.random() - 1.0)
        measured_v += effects.noise_range * (2.0 * rng.random() - 1.0)
    elif effects.smear:
        measured_u += sensors.sigma_u[sensor] * rng.standard_normal()
        if planes.measures_v[sensor]:
            measured_v += sensors.sigma_v[sensor] * rng.standard_normal()
    u[n] = measured_u
    if planes.measures_v[sensor]:
        v[n] = measured_v


@kernel
def _matter(
    rng: Generator, sensor: int, planes: Planes, values: Floats, effects: _Effects, state: Floats
) -> bool:
    """Loss of energy, then kicks, in the matter of a sensor; False where the muon stops."""
    normal = planes.axes[sensor, 2]
    lam, phi = state[1], state[2]
    cos_lam = math.cos(lam)
    cosine = (normal[0] * math.cos(phi) + normal[1] * math.sin(phi)) * cos_lam + normal[2] * math.sin(lam)
    path = 1.0 / abs(cosine)
    p = 1.0 / abs(state[0])
    energy = math.sqrt(p * p + planes.muon_mass * planes.muon_mass)
    thickness = planes.mass_thickness[sensor] * path * (1.0 + values[M])
    eps, _ = loss_at(math.log(p), planes.loss, planes.first_log_p, planes.log_p_step)
    left = energy - eps * thickness
    left -= loss_fluctuation(
        rng, effects.loss, p, energy, planes.muon_mass, effects.electron_mass, effects.xi, thickness
    )
    if not left > planes.muon_mass:
        return False
    state[0] *= p / math.sqrt(left * left - planes.muon_mass * planes.muon_mass)
    if effects.scatter:
        theta = math.sqrt(highland_variance(p, energy, planes.radiation_lengths[sensor] * path))
        state[1] = lam + theta * rng.standard_normal()
        state[2] = phi + theta / cos_lam * rng.standard_normal()
    return True
