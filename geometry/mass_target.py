r"""The mass as a measurement: target and width from a simulation of the nominal detector.

The target is not the mass of the resonance, nor the mean of the generator mass: the mass is curved as a function of
the measured curvatures, which adds some :math:`s^2`, :math:`s = \sigma_m/m`, to the mean of ln m; the window, and
robust weights, cut the tail of radiation the less sharply the worse the resolution; and each pair has its own weight.
So what is asked for is that the simulation, in which nothing is wrong, wants no change of the field: with g the
gradient that a pair adds to the global fit along the field as a whole, :math:`\ln t = a + b s + c s^2` solves

.. math:: \sum_e \begin{pmatrix} 1 \\ s_e \\ s_e^2 \end{pmatrix} g_e(t) = 0

With one target for all pairs, those of good and of bad resolution would be off by some 1e-4 in opposite directions.

Not for: the row itself (`musclecal.geometry.pair_kernels`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.geometry.pair_refit import Contributions, contributions, refit_pairs
from musclecal.geometry.refit import DEFAULT_CUTS, RefitCuts
from musclecal.geometry.trace import B, Planes
from musclecal.kinematics import pair_masses
from musclecal.records import Floats, MassConstraint, Pairs

__all__ = ["gen_masses", "log_target", "mass_constraint"]

_START = 20_000
"""Pairs that the start value is taken from."""
_LEAST = 100
_STEPS = 30
"""Of a weighted mean: each leaves a tenth of the way."""
_MOST_OFF = 3e-4
"""Of the median of ln m, measured less generated: 1e-4 is what its curvature makes."""
_LEAST_WIDTH = 0.05
_GROWTH = (0.3, 10.0)
"""Widths of a weak prior of the growth, around 0: some 0.1 and 5 are found; a small sample does not measure them."""


def gen_masses(pairs: Pairs) -> Floats:
    """(n_pair,) GeV, true masses after radiation.

    Raises
    ------
    InputError : the tracks have no truth.
    """
    truth = pairs.tracks.truth
    if truth is None:
        raise InputError("pairs: the mass after radiation needs simulated tracks with their truth")
    if not np.all(np.isfinite(truth[pairs.pairs])):
        raise InputError("pairs: the truth of a track is not finite")
    pt, eta = np.cos(truth[:, 1]) / np.abs(truth[:, 0]), np.arctanh(np.sin(truth[:, 1]))
    plus, minus = pairs.pairs.T
    phi = truth[:, 2]
    return np.asarray(pair_masses(pt[plus], eta[plus], phi[plus], pt[minus], eta[minus], phi[minus]))


def log_target(mass: MassConstraint, s: Floats) -> Floats:
    """(n,) what ln m of pairs of resolution ``s`` (n,) should be."""
    return np.asarray(np.log(mass.target) + mass.growth[0] * s + mass.growth[1] * s**2)


def mass_constraint(
    simulated: Iterable[Pairs], planes: Planes, window: tuple[float, float], robust: float = float("inf"),
    cuts: RefitCuts = DEFAULT_CUTS,
) -> MassConstraint:  # fmt: skip
    """Target and width from pairs with truth, which are fitted with their own detector.

    The width is that of the generator mass after radiation of pairs with a fitted mass in ``window``. With ``robust``,
    which cuts the tail of radiation, it is that with which the weights promise the error that the mean really has.

    Parameters
    ----------
    simulated : chunks of the sample.
    robust : standard deviations, as in `MassConstraint`. With 2 the mean mass of J/psi is measured some 25 % better.

    Raises
    ------
    InputError : fewer than a hundred pairs in the window; tracks without truth; masses that are not where the truth is.
    """
    chunks = iter(simulated)
    first: list[Pairs] = []
    while sum(map(len, first)) < _START and (more := next(chunks, None)) is not None:
        first.append(more)
    start = _start(_head(first, _START), planes, window, robust, cuts)
    return _improved(start, chain(first, chunks), planes, cuts)


def _start(
    chunks: Iterable[Pairs], planes: Planes, window: tuple[float, float], robust: float, cuts: RefitCuts
) -> MassConstraint:
    """Width, and the mean of ln m as fitted, from the first pairs."""
    mass, sigma, true = [], [], []
    for pairs in chunks:
        fits = refit_pairs(pairs.tracks, pairs.pairs, planes, None, cuts)
        inside = (fits.status == 0) & (fits.mass >= window[0]) & (fits.mass < window[1])
        mass.append(fits.mass[inside])
        sigma.append(fits.mass_sigma[inside])
        true.append(gen_masses(pairs)[inside])
    n = sum(map(len, mass))
    if n < _LEAST:
        raise InputError(f"mass window {window}: {n} simulated pairs are too few")
    fitted = np.concatenate(mass)
    _refuse_other_scale(np.log(fitted / np.concatenate(true)))
    s2, width = (np.concatenate(sigma) / fitted) ** 2, float(np.std(np.concatenate(true)) / fitted.mean())
    if np.isfinite(robust):
        width = _honest_width(np.log(fitted), s2, robust, width)
    target = float(np.exp(_mean(np.log(fitted), s2, width, robust).value))
    return MassConstraint(target, target * width, window, robust)


def _refuse_other_scale(log_ratio: Floats) -> None:
    """Of a simulation of the detector that it is fitted with, half of the masses are measured too high."""
    off = float(np.median(log_ratio))
    low, high = np.quantile(log_ratio, [0.16, 0.84])
    error = 1.25 * 0.5 * (high - low) / np.sqrt(len(log_ratio))
    if abs(off) > _MOST_OFF + 4.0 * error:
        raise InputError(
            f"the masses of the simulation are {1e5 * off:+.0f} +- {1e5 * error:.0f}e-5 off its generator masses: it "
            "was not made with detector, field and matter as they are thought to be, or the truth is not its own"
        )


class _Mean(NamedTuple):
    """A weighted mean; scores, weights and slopes of the scores (n,)."""

    value: float
    scores: Floats
    weights: Floats
    slopes: Floats


def _mean(log_mass: Floats, s2: Floats, width: float, robust: float) -> _Mean:
    """The mean of ln m as the global fit would find it."""
    mean, variance = float(np.median(log_mass)), s2 + width**2
    for _ in range(_STEPS):
        far = np.abs(log_mass - mean) / np.sqrt(variance)
        weight = np.minimum(1.0, robust / np.maximum(far, 1e-12)) / variance
        mean = float(np.average(log_mass, weights=weight))
    return _Mean(mean, weight * (log_mass - mean), weight, np.where(far < robust, 1.0 / variance, 0.0))


def _honest_width(log_mass: Floats, s2: Floats, robust: float, most: float) -> float:
    """The width, of ln m, up to ``most``, with which 1/sum of weights is the variance of the mean.

    That variance is the sum of squared scores over the square of the sum of their slopes; beyond ``robust`` the slope
    of a score is 0, its weight is not.
    """

    def excess(width: float) -> float:
        mean = _mean(log_mass, s2, width, robust)
        return float(np.sum(mean.scores**2) * np.sum(mean.weights) / np.sum(mean.slopes) ** 2 - 1.0)

    least = _LEAST_WIDTH * most
    if excess(least) <= 0.0:
        return least
    return most if excess(most) >= 0.0 else float(brentq(excess, least, most, rtol=1e-4))


def _improved(
    mass: MassConstraint, chunks: Iterable[Pairs], planes: Planes, cuts: RefitCuts
) -> MassConstraint:
    """The constraint whose target solves the equation above, from one whose target is nearly right."""
    parts, width = list[Floats](), mass.sigma / mass.target
    for pairs in chunks:
        for part in contributions(pairs.tracks, pairs.pairs, planes, None, mass, cuts):
            gradient, curvature = _along_field(part)
            m, s = part.mass[part.good], part.mass_sigma[part.good] / part.mass[part.good]
            far = np.abs(np.log(m) - log_target(mass, s)) / np.hypot(s, width)
            # A score that has ended does not move with the target
            parts.append(np.stack([gradient, np.where(far < mass.robust, curvature, 0.0), s]))
    gradient, curvature, s = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0))
    if gradient.size < _LEAST:
        raise InputError(f"mass window {mass.window}: {gradient.size} simulated pairs are too few")
    basis = np.stack([np.ones_like(s), s, s**2])
    known = np.array([0.0, _GROWTH[0] ** -2, _GROWTH[1] ** -2])
    right = basis @ gradient + known * [0.0, *mass.growth]
    # A field that is to fall means a target that is to rise
    a, b, c = -np.linalg.solve((curvature * basis) @ basis.T + np.diag(known), right)
    growth = mass.growth[0] + float(b), mass.growth[1] + float(c)
    error = float(np.sqrt(np.sum(gradient**2)) / np.sum(curvature))
    target = mass.target * float(np.exp(a))
    return replace(mass, target=target, growth=growth, error=error)


def _along_field(part: Contributions) -> tuple[Floats, Floats]:
    """g and C of the good pairs along a change of the field that is the same everywhere."""
    sums = np.zeros((2, len(part.good)))
    _sum_field(part.units, part.matrix, part.vector, part.good, sums)
    return sums[0, part.good], sums[1, part.good]


@kernel
def _sum_field(units: np.ndarray, matrix: Floats, vector: Floats, good: np.ndarray, sums: Floats) -> None:
    n_max = units.shape[1]
    n_slots = vector.shape[1] // n_max
    for e in range(units.shape[0]):
        if not good[e]:
            continue
        for a in range(n_max):
            if units[e, a] < 0:
                continue
            i = a * n_slots + B
            sums[0, e] += vector[e, i]
            sums[1, e] += matrix[e, i, i]
            for b in range(a + 1, n_max):
                if units[e, b] >= 0:
                    sums[1, e] += 2.0 * matrix[e, i, b * n_slots + B]


def _head(chunks: Iterable[Pairs], n: int) -> Iterator[Pairs]:
    """Chunks, of which the last is cut, with ``n`` pairs in all if there are so many."""
    for chunk in chunks:
        yield chunk if len(chunk) <= n else chunk.select(np.arange(n))
        n -= len(chunk)
