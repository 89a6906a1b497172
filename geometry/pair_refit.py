"""Fits of pairs of tracks with a common vertex, and what they add to the global fit of modules.

`refit_pairs`, and `contributions`, whose chunks go to `musclecal.geometry.block_sums`. Everything starts from the hits:
no truth and no earlier fit is used.

Not for: single tracks (`musclecal.geometry.refit`), or the formulas (`musclecal.geometry.pair_kernels`).
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import in_order, kernel
from musclecal.errors import InputError
from musclecal.geometry.pair_kernels import N_PAIR, eliminate, fit_pair, mass_variance
from musclecal.geometry.refit import (
    BLOCK,
    DEFAULT_CUTS,
    N_TRACK,
    STEPS,
    RefitCuts,
    checked_parameters,
    fit_block,
    hits_of,
    joined,
    without_taken_out,
)
from musclecal.geometry.refit_kernels import CONVERGED, Fit, new_fit, wrapped
from musclecal.geometry.small_matrices import inverse_of
from musclecal.geometry.trace import Planes
from musclecal.records import Floats, Ints, MassConstraint, PairRefits, Tracks

__all__ = ["Contributions", "contributions", "refit_pairs"]

_START_TOLERANCE = 1e-2
"""In chi2, of a fit that another starts from."""


class Contributions(NamedTuple):
    """What a chunk of pairs adds to the global fit (`musclecal.geometry.block_sums`).

    Attributes
    ----------
    units : (n, n_max) met by the pair, a unit may be there for each muon; -1 where there is none.
    matrix : (n, n_max P, n_max P) on and above the diagonal of blocks. vector : (n, n_max P).
    chi2, ndf : (n,) of the fit, its mass counted where it is a measurement. good : (n,) whether the pair is used.
    mass, mass_sigma : (n,) GeV, fitted without the mass as a measurement; nan where there is no fit.
    against_charge : (n,) whether a muon bends against its charge; such a pair is not used.
    """

    units: NDArray[np.int32]
    matrix: Floats
    vector: Floats
    chi2: Floats
    ndf: Ints
    good: NDArray[np.bool_]
    mass: Floats
    mass_sigma: Floats
    against_charge: NDArray[np.bool_]


class _MassRow(NamedTuple):
    """`MassConstraint` for kernels, of ln m: ``width`` inf where the mass is left free."""

    log_target: float
    growth: tuple[float, float]
    width: float
    low: float
    high: float
    robust: float


_FREE_MASS = _MassRow(0.0, (0.0, 0.0), math.inf, 0.0, math.inf, math.inf)


class _Room(NamedTuple):
    """Arrays that the fits of one block of pairs are made in; ``fit`` serves one muon after the other."""

    fit: Fit
    matrix: Floats
    vector: Floats
    work: Floats


@kernel
def _new_room(n_max: int) -> _Room:
    """For tracks with ``n_max`` planes."""
    return _Room(new_fit(n_max, 6, 0), np.empty((N_PAIR, N_PAIR)), np.empty(N_PAIR), np.empty((13, N_PAIR)))


@kernel
def _fit_pairs(
    module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats, planes: Planes,
    parameters: Floats, tolerance: float, local: Floats, covariance: Floats, mass: Floats, mass_sigma: Floats,
    chi2: Floats, status: NDArray[np.int8],
) -> None:  # fmt: skip
    """Fits of tracks 2 t and 2 t + 1 without their mass, where ``status`` allows it; ``local`` is the start value."""
    room = _new_room(module.shape[1])
    for t in range(len(local)):
        if status[t] == CONVERGED:
            plus, n_plus = hits_of(2 * t, module, u, v, sigma_u, sigma_v)
            minus, n_minus = hits_of(2 * t + 1, module, u, v, sigma_u, sigma_v)
            status[t], chi2[t] = fit_pair(
                plus, n_plus, minus, n_minus, planes, parameters, local[t], 0.0, math.inf, room.fit, room.matrix,
                room.vector, room.work, STEPS, tolerance,
            )  # fmt: skip
        if status[t] != CONVERGED:
            local[t, :] = math.nan
            covariance[t, :, :] = math.nan
            chi2[t] = mass[t] = mass_sigma[t] = math.nan
            continue
        inverse_of(room.matrix, N_PAIR, covariance[t])
        mass[t], variance = mass_variance(local[t], room.matrix, planes.muon_mass, room.work)
        mass_sigma[t] = math.sqrt(variance)
        local[t, 2], local[t, 5] = wrapped(local[t, 2]), wrapped(local[t, 5])


def _fit_block(
    tracks: Tracks, pairs: NDArray[np.int32], planes: Planes, parameters: Floats, cuts: RefitCuts
) -> tuple[Tracks, PairRefits]:
    """Fits of a few pairs, each started from those of its tracks; and these tracks, two a pair, without what is out."""
    n = len(pairs)
    tracks = tracks.select(pairs.ravel())
    single = fit_block(tracks, planes, parameters, cuts._replace(tolerance=_START_TOLERANCE))
    u, v = without_taken_out(tracks, single.taken_out)
    tracks = replace(tracks, u=u, v=v)
    plus, minus = single.status.reshape(n, 2).T
    status = np.where(plus != CONVERGED, plus, minus)
    out = PairRefits(
        _vertex_start(single.local.reshape(n, 2, N_TRACK)), np.zeros((n, N_PAIR, N_PAIR)), np.zeros(n), np.zeros(n),
        np.zeros(n), np.where(status == CONVERGED, single.ndf.reshape(n, 2).sum(axis=1) + 2 * N_TRACK - N_PAIR, 0),
        status, np.where(status == CONVERGED, single.rejected.reshape(n, 2).sum(axis=1), 0).astype(np.int8),
    )  # fmt: skip
    _fit_pairs(
        tracks.module, u, v, tracks.sigma_u, tracks.sigma_v, planes, parameters, cuts.tolerance, out.local,
        out.covariance, out.mass, out.mass_sigma, out.chi2, out.status,
    )  # fmt: skip
    return tracks, out


def _vertex_start(local: Floats) -> Floats:
    """(n, 9) start of pairs from their tracks (n, 2, 5): the vertex half way between the points at the beam line."""
    phi, d, z = local[:, :, 2], local[:, :, 3], local[:, :, 4]
    vertex = np.stack([-d * np.sin(phi), d * np.cos(phi), z], axis=2).mean(axis=1)
    return np.concatenate([local[:, 0, :3], local[:, 1, :3], vertex], axis=1)


def refit_pairs(
    tracks: Tracks, pairs: NDArray[np.int32], planes: Planes, parameters: Floats | None = None,
    cuts: RefitCuts = DEFAULT_CUTS,
) -> PairRefits:  # fmt: skip
    """Fit pairs of tracks with a common vertex, without their mass.

    Parameters
    ----------
    pairs : (n, 2) rows of ``tracks``, of the mu+ and of the mu-.
    planes, parameters, cuts : as in `refit_tracks`.

    Raises
    ------
    InputError : as in `refit_tracks`; a row that there is not.
    """
    parameters = checked_parameters(tracks, planes, parameters)
    pairs = _checked_pairs(tracks, pairs)

    def block(first: int) -> PairRefits:
        return _fit_block(tracks, pairs[first : first + BLOCK], planes, parameters, cuts)[1]

    return joined(in_order(block, range(0, max(len(pairs), 1), BLOCK)))


def _checked_pairs(tracks: Tracks, pairs: NDArray[np.int32]) -> NDArray[np.int32]:
    pairs = np.ascontiguousarray(pairs, dtype=np.int32)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InputError(f"pairs: shape (n, 2) wanted, got {pairs.shape}")
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(tracks.module):
        raise InputError(
            f"pairs: rows 0 to {len(tracks.module) - 1} wanted, got {pairs.min()} to {pairs.max()}"
        )
    return pairs


@kernel
def _contribute(
    module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats, planes: Planes,
    parameters: Floats, cuts: RefitCuts, measured: _MassRow, local: Floats,
    units: NDArray[np.int32], matrix: Floats, vector: Floats, chi2: Floats, ndf: Ints, good: NDArray[np.bool_],
    mass: Floats, mass_sigma: Floats,
) -> None:  # fmt: skip
    """Of the pairs that are ``good``; ``local`` is their fit without mass, which is changed."""
    n_max, n_slot = module.shape[1], parameters.shape[1]
    room = _new_room(n_max)
    with_parameters = new_fit(n_max, 6, n_slot * n_max)
    projected = np.empty((N_PAIR, 2 * n_max * n_slot))
    for t in range(len(local)):
        units[t, :] = -1
        if not good[t]:
            continue
        good[t] = False
        plus, n_plus = hits_of(2 * t, module, u, v, sigma_u, sigma_v)
        minus, n_minus = hits_of(2 * t + 1, module, u, v, sigma_u, sigma_v)
        wanted, sigma = measured.log_target, measured.width
        if math.isfinite(sigma):
            resolution = (mass_sigma[t] / mass[t]) ** 2
            wanted += measured.growth[0] * math.sqrt(resolution) + measured.growth[1] * resolution
            expected = resolution + sigma * sigma
            far = abs(math.log(mass[t]) - wanted) / math.sqrt(expected)
            if far > measured.robust:
                sigma = math.sqrt(expected * far / measured.robust - resolution)
            ndf[t] += 1
            status, chi2[t] = fit_pair(
                plus, n_plus, minus, n_minus, planes, parameters, local[t], wanted, sigma, room.fit, room.matrix,
                room.vector, room.work, STEPS, cuts.tolerance,
            )  # fmt: skip
            if status != CONVERGED:
                continue
        n_units = eliminate(
            plus, n_plus, minus, n_minus, planes, parameters, local[t], wanted, sigma, with_parameters, room.matrix,
            room.vector, room.work, units[t], projected, matrix[t], vector[t],
        )  # fmt: skip
        good[t] = n_units > 0 and _largest_pull(matrix[t], vector[t], n_units * n_slot) < cuts.gradient
        units[t, max(n_units, 0) :] = -1


@kernel
def _largest_pull(matrix: Floats, vector: Floats, n: int) -> float:
    """The gradient in units of its standard deviation, of the parameter where it is largest."""
    largest = 0.0
    for a in range(n):
        if matrix[a, a] > 0.0:
            largest = max(largest, abs(vector[a]) / math.sqrt(matrix[a, a]))
    return largest


def _mass_row(mass: MassConstraint) -> _MassRow:
    low, high = mass.window
    positive = mass.target > 0.0 and mass.sigma > 0.0 and mass.robust > 0.0
    if not (positive and low < high and np.all(np.isfinite(mass.growth))):
        raise InputError(
            f"mass: target, sigma and robust must be positive, the window not empty, growth finite: {mass}"
        )
    return _MassRow(
        math.log(mass.target),
        mass.growth,
        mass.sigma / mass.target,
        float(low),
        float(high),
        float(mass.robust),
    )


def contributions(
    tracks: Tracks, pairs: NDArray[np.int32], planes: Planes, parameters: Floats | None = None,
    mass: MassConstraint | None = None, cuts: RefitCuts = DEFAULT_CUTS,
) -> Iterator[Contributions]:  # fmt: skip
    """What pairs add to the global fit, in chunks in their order, linearised at ``parameters``.

    Parameters
    ----------
    mass : the mass as a measurement; None: it is left free, and all masses are used.
    pairs, planes, parameters, cuts : as in `refit_pairs`.

    Raises
    ------
    InputError : as in `refit_pairs`; a mass constraint that is none.
    """
    values = checked_parameters(tracks, planes, parameters)
    pairs = _checked_pairs(tracks, pairs)
    measured = _FREE_MASS if mass is None else _mass_row(mass)
    n_max, n_slot = 2 * tracks.module.shape[1], values.shape[1]

    def block(first: int) -> Contributions:
        fitted, free = _fit_block(tracks, pairs[first : first + BLOCK], planes, values, cuts)
        n = len(free.mass)
        kept = (free.status == CONVERGED) & (free.chi2 <= cuts.chi2_per_ndf * free.ndf)
        against_charge = kept & ((free.local[:, 0] < 0.0) | (free.local[:, 3] > 0.0))
        good = kept & ~against_charge & (measured.low <= free.mass) & (free.mass < measured.high)
        out = Contributions(
            np.empty((n, n_max), np.int32), np.empty((n, n_max * n_slot, n_max * n_slot)),
            np.empty((n, n_max * n_slot)), free.chi2, free.ndf, good, np.where(kept, free.mass, math.nan),
            np.where(kept, free.mass_sigma, math.nan), against_charge,
        )  # fmt: skip
        _contribute(
            fitted.module, fitted.u, fitted.v, fitted.sigma_u, fitted.sigma_v, planes, values, cuts, measured,
            free.local, *out[:-1],
        )  # fmt: skip
        return out

    yield from in_order(block, range(0, len(pairs), BLOCK))
