r"""Smear simulated muons with random numbers that belong to the muon, whoever draws them, and in whatever order.

A draw is a pure function of (run, luminosity block, event, phi of the muon, salt):

1. the 64-bit hash XXH64 (seed 0) of the five numbers as little-endian 64-bit words: the integers in two's
   complement, phi rounded to float32 and then written as a float64;
2. the hash seeds the generator PCG-XSH-RR 64/32 (O'Neill, HMC-CS-2014-0905) with its standard increment;
3. pairs (u, v) of its 32-bit outputs n, as n/2^31 - 1, are drawn until 0 < s = u^2 + v^2 < 1 (the polar method of
   Marsaglia and Bray, SIAM Rev. 6 (1964) 260); the draw is u sqrt(-2 ln(s)/s).

This is what correctionlib's node ``hashprng`` does with the distribution "normal" and the integer inputs run, lumi,
event and salt about the real input phi (`DRAW_INPUTS`), so that exported tables smear each muon alike. Its older
distribution "stdnormal" gives other numbers on other processors and is not used here.

Not for: making simulated events (`musclecal.simulate`, whose random streams belong to blocks of events).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musclecal.binning import bin_of
from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats, Muons, Smearing

__all__ = ["DISTRIBUTION", "DRAW_INPUTS", "extra_sigma", "normal_draws", "smear", "smeared_factors"]

DRAW_INPUTS = ("run", "lumi", "event", "phi", "salt")
"""Inputs of the hash, in this order; phi is real, the others are integers."""

DISTRIBUTION = "normal"
"""Name of the distribution in correctionlib's schema."""

_ANY_PHI = 1e6
"""rad. Beyond it a number is no angle, and its rounding to float32 may overflow."""

Words = NDArray[np.uint64]

_PRIMES = np.array(
    [11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579], dtype=np.uint64
)
"""The first four primes of XXH64; the fifth starts messages that are shorter than ours."""

_PCG = np.array([6364136223846793005, 1442695040888963407], dtype=np.uint64)
"""Multiplier and increment of the generator."""


@kernel
def _rotated(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@kernel
def _lane(accumulator: np.uint64, word: np.uint64, primes: Words) -> np.uint64:
    """One word into one accumulator of XXH64."""
    return _rotated(accumulator + word * primes[1], 31) * primes[0]


@kernel
def _hash_of_five(
    a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64, e: np.uint64, primes: Words
) -> np.uint64:
    """XXH64, seed 0, of five 64-bit words: one stripe of four words, then a word by itself, then the avalanche."""
    zero = np.uint64(0)
    one = _lane(primes[0] + primes[1], a, primes)
    two = _lane(primes[1], b, primes)
    three = _lane(zero, c, primes)
    four = _lane(zero - primes[0], d, primes)
    h = _rotated(one, 1) + _rotated(two, 7) + _rotated(three, 12) + _rotated(four, 18)
    for lane in (one, two, three, four):
        h = (h ^ _lane(zero, lane, primes)) * primes[0] + primes[3]
    h += np.uint64(40)
    h = _rotated(h ^ _lane(zero, e, primes), 27) * primes[0] + primes[3]
    h = (h ^ (h >> np.uint64(33))) * primes[1]
    h = (h ^ (h >> np.uint64(29))) * primes[2]
    return h ^ (h >> np.uint64(32))


@kernel
def _output(state: np.uint64) -> float:
    """A 32-bit output of the generator, as a number from -1 to 1."""
    shifted = (((state >> np.uint64(18)) ^ state) >> np.uint64(27)) & np.uint64(0xFFFFFFFF)
    turn = state >> np.uint64(59)
    low = shifted >> turn
    high = (shifted << ((np.uint64(32) - turn) & np.uint64(31))) & np.uint64(0xFFFFFFFF)
    return float(low | high) * 2.0**-31 - 1.0


@kernel
def _normal_of(seed: np.uint64, pcg: Words) -> float:
    """The unit Gaussian that a 64-bit seed stands for."""
    state = (seed + pcg[1]) * pcg[0] + pcg[1]
    while True:
        u = _output(state)
        state = state * pcg[0] + pcg[1]
        v = _output(state)
        state = state * pcg[0] + pcg[1]
        s = u * u + v * v
        if 0.0 < s < 1.0:
            return u * math.sqrt(-2.0 * math.log(s) / s)


@kernel
def _normal_draws(
    run: Words, lumi: Words, event: Words, phi: Words, salt: Words, primes: Words, pcg: Words, out: Floats
) -> None:
    for n in range(out.size):
        out[n] = _normal_of(_hash_of_five(run[n], lumi[n], event[n], phi[n], salt[0], primes), pcg)


def _words(values: ArrayLike, name: str) -> Words:
    """Integers as 64-bit words; floating-point ones are refused, as they would have lost digits beyond 2^53."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise InputError(f"smearing: {name} must be integers, got {array.dtype}")
    return (
        np.ascontiguousarray(array).astype(np.int64 if array.dtype.kind == "i" else np.uint64).view(np.uint64)
    )


def _one_word(salt: int) -> Words:
    """The salt as (1,) words."""
    if np.ndim(salt) > 0:
        raise InputError("smearing: salt must be one number for all muons")
    if isinstance(salt, int) and not -(2**63) <= salt < 2**64:
        raise InputError(f"smearing: salt must have 64 bits, got {salt}")
    return _words([salt], "salt")


def normal_draws(run: ArrayLike, lumi: ArrayLike, event: ArrayLike, phi: ArrayLike, salt: int = 0) -> Floats:
    """Unit Gaussian draws, (n,), one for each muon.

    Parameters
    ----------
    run, lumi, event : (n,) integers; any 64-bit value, event numbers beyond 2^53 keep all their digits.
    phi : (n,) rad, of the muon, rounded to float32 here: files that keep phi in either precision give one draw. 0.0
        and -0.0 are two numbers, in correctionlib too.
    salt : another salt, an independent set of draws.

    Raises
    ------
    InputError : numbers that are no integers, a phi that is not finite, arrays of different lengths.
    """
    rounded = np.asarray(phi, dtype=np.float64).astype(np.float32).astype(np.float64)
    if not np.all(np.isfinite(rounded)):
        raise InputError("smearing: phi must be finite")
    runs, lumis, numbers = _words(run, "run"), _words(lumi, "lumi"), _words(event, "event")
    if rounded.ndim != 1 or any(word.shape != rounded.shape for word in (runs, lumis, numbers)):
        raise InputError("smearing: run, lumi, event and phi must be arrays of one length")
    out = np.empty(len(rounded))
    _normal_draws(runs, lumis, numbers, rounded.view(np.uint64), _one_word(salt), _PRIMES, _PCG, out)
    return out


@kernel
def _lacking_variance(pt: float, coefficients: Floats, i: int) -> float:
    """(sigma_k/k)^2 that muons of eta bin i lack, never negative; rows of ``coefficients``: a, b, c, d."""
    a, b, c, d = coefficients[0, i], coefficients[1, i], coefficients[2, i], coefficients[3, i]
    square = pt * pt
    return max(0.0, a + c * square + b * square / (square + d))


@kernel
def _smeared_factors(
    pt: Floats, eta: Floats, phi: Floats, run: Words, lumi: Words, event: Words, salt: Words, edges: Floats,
    coefficients: Floats, pt_low: float, pt_high: float, primes: Words, pcg: Words, out: Floats,
) -> None:  # fmt: skip
    """phi : rounded, nan for a muon that has none."""
    words = phi.view(np.uint64)
    for n in range(out.size):
        p, i = np.float64(pt[n]), bin_of(edges, np.float64(eta[n]))
        out[n] = 1.0
        if i >= 0 and pt_low <= p < pt_high and math.isfinite(phi[n]):
            variance = _lacking_variance(p, coefficients, i)
            if variance > 0.0:
                draw = _normal_of(_hash_of_five(run[n], lumi[n], event[n], words[n], salt[0], primes), pcg)
                out[n] = 1.0 / (1.0 + math.sqrt(variance) * draw)


def smeared_factors(
    pt: Floats,
    eta: Floats,
    phi: Floats,
    run: ArrayLike,
    lumi: ArrayLike,
    event: ArrayLike,
    salt: int,
    extra: Smearing,
    pt_range: tuple[float, float],
) -> Floats:
    """(n,) factors 1/(1 + sigma g) on pT; 1 outside the ranges of eta and pT (GeV), and for phi not in [-1e6, 1e6).

    Raises
    ------
    InputError : run, lumi or event are no integers.
    """
    phi = np.asarray(phi, dtype=np.float64)
    rounded = (
        np.where((phi >= -_ANY_PHI) & (phi < _ANY_PHI), phi, np.nan).astype(np.float32).astype(np.float64)
    )
    out, table = np.empty(len(rounded)), np.array([extra.a, extra.b, extra.c, extra.d])
    words = (_words(run, "run"), _words(lumi, "lumi"), _words(event, "event"), _one_word(salt))
    edges = np.ascontiguousarray(extra.eta_edges)
    _smeared_factors(pt, eta, rounded, *words, edges, table, *pt_range, _PRIMES, _PCG, out)
    return out


@kernel
def _extra_sigma(pt: Floats, eta: Floats, edges: Floats, coefficients: Floats, out: Floats) -> None:
    for n in range(out.size):
        i = bin_of(edges, eta[n])
        out[n] = 0.0
        if i >= 0:
            out[n] = math.sqrt(_lacking_variance(pt[n], coefficients, i))


def extra_sigma(muons: Muons, extra: Smearing) -> Floats:
    """(n_event,) sigma_k/k to be added in quadrature: the root of what `Smearing` says, 0 outside its eta range."""
    out = np.empty(len(muons))
    table = np.array([extra.a, extra.b, extra.c, extra.d])
    _extra_sigma(muons.pt, muons.eta, np.ascontiguousarray(extra.eta_edges), table, out)
    return out


def smear(events: DimuonEvents, extra: Smearing, salt: int = 0) -> DimuonEvents:
    """The events with both curvatures multiplied by 1 + sigma g, sigma from `extra_sigma`, g from `normal_draws`.

    To be applied before the selection and to simulation alone.

    Raises
    ------
    InputError : the events have no run, lumi or event numbers: then no draw belongs to a muon.
    """
    for name in ("run", "lumi", "event"):
        if getattr(events, name) is None:
            raise InputError(f"smearing: the events have no {name} numbers")
    return events.with_momenta(
        *(_smeared_pt(events, muons, extra, salt) for muons in (events.plus, events.minus))
    )


def _smeared_pt(events: DimuonEvents, muons: Muons, extra: Smearing, salt: int) -> Floats:
    assert events.run is not None
    assert events.lumi is not None
    assert events.event is not None
    draws = normal_draws(events.run, events.lumi, events.event, muons.phi, salt)
    return np.asarray(muons.pt / (1.0 + extra_sigma(muons, extra) * draws))
