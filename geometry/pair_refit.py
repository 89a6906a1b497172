"""Fits of pairs of tracks with a common vertex, and what they add to the global fit of modules.

`refit_pairs`, and `contributions`, whose chunks go to `musclecal.geometry.block_sums`. Everything starts from the hits:
no truth and no earlier fit is used.

Not for: single tracks (`musclecal.geometry.refit`), or the formulas (`musclecal.geometry.pair_kernels`).
"""

import math
from collections.abc import Iterator
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
    fit_clean,
    hits_of,
)
from musclecal.geometry.refit_kernels import CONVERGED, Fit, Hits, new_fit, wrapped
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
    with_parameters: Fit
    plus: Floats
    minus: Floats
    local: Floats
    covariance: Floats
    matrix: Floats
    vector: Floats
    work: Floats
    track_work: Floats
    column: Floats
    projected: Floats


@kernel
def _new_room(n_max: int, n_slot: int) -> _Room:
    """``n_slot`` 0: no parameters."""
    return _Room(
        new_fit(n_max, 6, 0), new_fit(n_max, 6, n_slot * n_max), np.empty((2, n_max)), np.empty((2, n_max)),
        np.empty(N_TRACK), np.empty((N_TRACK, N_TRACK)), np.empty((N_PAIR, N_PAIR)), np.empty(N_PAIR),
        np.empty((13, N_PAIR)), np.empty((13, 6)), np.empty((2 * n_max + N_TRACK, 1)),
        np.empty((N_PAIR, 2 * n_max * n_slot)),
    )  # fmt: skip


@kernel
def _fit_free(
    plus: Hits, n_plus: int, minus: Hits, n_minus: int, planes: Planes, parameters: Floats, cuts: RefitCuts,
    local: Floats, room: _Room,
) -> tuple[int, float, int, int]:  # fmt: skip
    """Fit of a pair without mass, started from fits of its tracks. Status, chi2, ndf, coordinates taken out."""
    ndf, taken = 2 * N_TRACK - N_PAIR, 0
    local[6:] = 0.0
    for muon in range(2):
        hits, n = (plus, n_plus) if muon == 0 else (minus, n_minus)
        status, _, n_free, rejected = fit_clean(
            hits, n, planes, parameters, room.local, room.covariance, room.fit, room.track_work, room.column, cuts,
            _START_TOLERANCE,
        )  # fmt: skip
        if status != CONVERGED:
            return status, math.nan, 0, 0
        local[3 * muon : 3 * muon + 3] = room.local[:3]
        d = room.local[3]
        local[6] -= 0.5 * d * math.sin(room.local[2])
        local[7] += 0.5 * d * math.cos(room.local[2])
        local[8] += 0.5 * room.local[4]
        ndf += n_free
        taken += rejected
    status, chi2 = fit_pair(
        plus, n_plus, minus, n_minus, planes, parameters, local, 0.0, math.inf, room.fit, room.matrix, room.vector,
        room.work, STEPS, cuts.tolerance,
    )  # fmt: skip
    return status, chi2, ndf, taken


@kernel
def _fit_pairs(
    pairs: NDArray[np.int32], module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats,
    planes: Planes, parameters: Floats, cuts: RefitCuts, local: Floats, covariance: Floats,
    mass: Floats, mass_sigma: Floats, chi2: Floats, ndf: Ints, status: NDArray[np.int8], rejected: NDArray[np.int8],
) -> None:  # fmt: skip
    room = _new_room(module.shape[1], 0)
    for t in range(len(pairs)):
        plus, n_plus = hits_of(pairs[t, 0], module, u, v, sigma_u, sigma_v, room.plus)
        minus, n_minus = hits_of(pairs[t, 1], module, u, v, sigma_u, sigma_v, room.minus)
        status[t], chi2[t], ndf[t], rejected[t] = _fit_free(
            plus, n_plus, minus, n_minus, planes, parameters, cuts, local[t], room
        )
        if status[t] != CONVERGED:
            local[t, :] = math.nan
            covariance[t, :, :] = math.nan
            chi2[t] = mass[t] = mass_sigma[t] = math.nan
            continue
        inverse_of(room.matrix, N_PAIR, covariance[t])
        mass[t], variance = mass_variance(local[t], room.matrix, planes.muon_mass, room.work)
        mass_sigma[t] = math.sqrt(variance)
        local[t, 2], local[t, 5] = wrapped(local[t, 2]), wrapped(local[t, 5])


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
    n = len(pairs)
    out = PairRefits(
        np.zeros((n, N_PAIR)), np.zeros((n, N_PAIR, N_PAIR)), np.zeros(n), np.zeros(n), np.zeros(n),
        np.zeros(n, np.int64), np.zeros(n, np.int8), np.zeros(n, np.int8),
    )  # fmt: skip

    def block(first: int) -> None:
        part = slice(first, first + BLOCK)
        _fit_pairs(
            pairs[part], tracks.module, tracks.u, tracks.v, tracks.sigma_u, tracks.sigma_v, planes, parameters,
            cuts, out.local[part], out.covariance[part], out.mass[part],
            out.mass_sigma[part], out.chi2[part], out.ndf[part], out.status[part], out.rejected[part],
        )  # fmt: skip

    for _ in in_order(block, range(0, n, BLOCK)):
        pass
    return out


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
    pairs: NDArray[np.int32], module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats,
    planes: Planes, parameters: Floats, cuts: RefitCuts, measured: _MassRow,
    units: NDArray[np.int32], matrix: Floats, vector: Floats, chi2: Floats, ndf: Ints, good: NDArray[np.bool_],
    mass: Floats, mass_sigma: Floats, against_charge: NDArray[np.bool_],
) -> None:  # fmt: skip
    n_slot = parameters.shape[1]
    room = _new_room(module.shape[1], n_slot)
    local = np.empty(N_PAIR)
    for t in range(len(pairs)):
        units[t, :] = -1
        good[t] = against_charge[t] = False
        mass[t] = mass_sigma[t] = math.nan
        plus, n_plus = hits_of(pairs[t, 0], module, u, v, sigma_u, sigma_v, room.plus)
        minus, n_minus = hits_of(pairs[t, 1], module, u, v, sigma_u, sigma_v, room.minus)
        status, chi2[t], ndf[t], _ = _fit_free(
            plus, n_plus, minus, n_minus, planes, parameters, cuts, local, room
        )
        if status != CONVERGED or not chi2[t] <= cuts.chi2_per_ndf * ndf[t]:
            continue
        mass[t], variance = mass_variance(local, room.matrix, planes.muon_mass, room.work)
        mass_sigma[t] = math.sqrt(variance)
        against_charge[t] = local[0] < 0.0 or local[3] > 0.0
        if against_charge[t] or not measured.low <= mass[t] < measured.high:
            continue
        wanted, sigma = measured.log_target, measured.width
        if math.isfinite(sigma):
            resolution = variance / (mass[t] * mass[t])
            wanted += measured.growth[0] * math.sqrt(resolution) + measured.growth[1] * resolution
            expected = resolution + sigma * sigma
            far = abs(math.log(mass[t]) - wanted) / math.sqrt(expected)
            if far > measured.robust:
                sigma = math.sqrt(expected * far / measured.robust - resolution)
            ndf[t] += 1
            status, chi2[t] = fit_pair(
                plus, n_plus, minus, n_minus, planes, parameters, local, wanted, sigma, room.fit, room.matrix,
                room.vector, room.work, STEPS, cuts.tolerance,
            )  # fmt: skip
            if status != CONVERGED:
                continue
        n_units = eliminate(
            plus, n_plus, minus, n_minus, planes, parameters, local, wanted, sigma, room.with_parameters, room.matrix,
            room.vector, room.work, units[t], room.projected, matrix[t], vector[t],
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
        part = pairs[first : first + BLOCK]
        n = len(part)
        out = Contributions(
            np.empty((n, n_max), np.int32), np.empty((n, n_max * n_slot, n_max * n_slot)),
            np.empty((n, n_max * n_slot)), np.empty(n), np.empty(n, np.int64), np.empty(n, np.bool_), np.empty(n),
            np.empty(n), np.empty(n, np.bool_),
        )  # fmt: skip
        _contribute(
            part, tracks.module, tracks.u, tracks.v, tracks.sigma_u, tracks.sigma_v, planes, values,
            cuts, measured, *out,
        )  # fmt: skip
        return out

    yield from in_order(block, range(0, len(pairs), BLOCK))
