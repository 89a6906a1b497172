"""Fits of tracks from their hits: arrays in, records out, and how they depend on the modules.

Everything starts from the hits: no truth and no earlier fit is used.

Not for: reading hits, pattern recognition, pairs (`musclecal.geometry.pair_refit`), or the formulas
(`musclecal.geometry.refit_kernels`).
"""

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import in_order, kernel
from musclecal.errors import InputError
from musclecal.geometry.refit_kernels import (
    CONVERGED,
    DID_NOT_CONVERGE,
    TOO_FEW_HITS,
    Fit,
    Hits,
    fit_track,
    new_fit,
    outlier_chi2,
    seed,
    track_jacobian,
    wrapped,
)
from musclecal.geometry.trace import Planes
from musclecal.records import Floats, Ints, PairRefits, Refits, Tracks

__all__ = [
    "BLOCK", "DEFAULT_CUTS", "N_TRACK", "STEPS", "RefitCuts", "checked_parameters", "corrected_local", "fit_block",
    "hits_of", "joined", "module_jacobians", "refit_tracks", "without_taken_out",
]  # fmt: skip

_R = TypeVar("_R", Refits, PairRefits)

N_TRACK = 5
"""Local parameters of a track."""
BLOCK = 256
STEPS = 15


class RefitCuts(NamedTuple):
    """What is left out, and when a fit ends.

    Attributes
    ----------
    tolerance : in chi2: a fit ends with the step before which that much was left to be gained. The step leaves some
        1e-3 of the way, so that 1e-4 is 1e-5 of a standard deviation.
    hit_chi2 : a coordinate without which chi2 is lower by more is taken out, the worst first.
    most_rejected : coordinates of a track that may be.
    chi2_per_ndf : pairs above it are not used in the global fit.
    gradient : nor are those whose gradient in any module parameter is more standard deviations.
    """

    tolerance: float = 1e-4
    hit_chi2: float = 30.0
    most_rejected: int = 3
    chi2_per_ndf: float = 3.0
    gradient: float = 8.0


DEFAULT_CUTS = RefitCuts()


@kernel
def hits_of(
    track: int, module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats
) -> tuple[Hits, int]:  # fmt: skip
    """The hits of a track, and how many planes there are."""
    n = 0
    while n < module.shape[1] and module[track, n] >= 0:
        n += 1
    return Hits(module[track], u[track], v[track], sigma_u[track], sigma_v[track]), n


@kernel
def _fit_clean(
    hits: Hits, n: int, planes: Planes, parameters: Floats, local: Floats, covariance: Floats, fit: Fit, work: Floats,
    column: Floats, cuts: RefitCuts,
) -> tuple[int, float, int, int]:  # fmt: skip
    """Fit from a seed, without the worst coordinates, which are nan then. Status, chi2, ndf, how many were taken out.

    A coordinate that is far off can keep a fit from its end: then, too, it is taken out.
    """
    rejected = 0
    while True:
        # Again after a coordinate is out: a start from one that is far off can end on the helix followed backwards
        if not seed(hits, n, planes, local) and rejected == 0:
            return TOO_FEW_HITS, math.nan, 0, 0
        status, chi2 = fit_track(
            hits, n, planes, parameters, local, covariance, fit, STEPS, cuts.tolerance, work
        )
        if status not in (CONVERGED, DID_NOT_CONVERGE) or rejected >= cuts.most_rejected:
            break
        if fit.n[0] - N_TRACK <= 1 or chi2 < cuts.hit_chi2:
            break
        worst, gain = outlier_chi2(fit, N_TRACK, work[7:12, :N_TRACK], column)
        if gain < cuts.hit_chi2:
            break
        row = fit.which[worst]
        if row % 2 == 0:
            hits.u[row // 2] = math.nan
        else:
            hits.v[row // 2] = math.nan
        rejected += 1
    return status, chi2, fit.n[0] - N_TRACK if status == CONVERGED else 0, rejected


@kernel
def _fit_tracks(
    module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats, planes: Planes,
    parameters: Floats, cuts: RefitCuts, local: Floats, covariance: Floats, chi2: Floats,
    ndf: Ints, status: NDArray[np.int8], rejected: NDArray[np.int8],
) -> None:  # fmt: skip
    """What is taken out is nan in ``u`` and ``v`` afterwards."""
    n_max = module.shape[1]
    fit = new_fit(n_max, N_TRACK, 0)
    work, column = np.empty((13, 6)), np.empty((2 * n_max + N_TRACK, 1))
    for t in range(module.shape[0]):
        hits, n = hits_of(t, module, u, v, sigma_u, sigma_v)
        status[t], chi2[t], ndf[t], rejected[t] = _fit_clean(
            hits, n, planes, parameters, local[t], covariance[t], fit, work, column, cuts
        )
        if status[t] != CONVERGED:
            local[t, :] = math.nan
            covariance[t, :, :] = math.nan
            chi2[t] = math.nan
        else:
            local[t, 2] = wrapped(local[t, 2])


def fit_block(tracks: Tracks, planes: Planes, parameters: Floats, cuts: RefitCuts) -> Refits:
    """`refit_tracks` of a few tracks in this thread."""
    n = len(tracks.module)
    u, v = tracks.u.copy(), tracks.v.copy()
    out = Refits(
        np.zeros((n, N_TRACK)), np.zeros((n, N_TRACK, N_TRACK)), np.zeros(n), np.zeros(n, np.int64),
        np.zeros(n, np.int8), np.zeros(n, np.int8), np.zeros(u.shape, np.int8),
    )  # fmt: skip
    _fit_tracks(
        tracks.module, u, v, tracks.sigma_u, tracks.sigma_v, planes, parameters, cuts, out.local, out.covariance,
        out.chi2, out.ndf, out.status, out.rejected,
    )  # fmt: skip
    out.taken_out[:] = (np.isnan(u) & ~np.isnan(tracks.u)) + 2 * (np.isnan(v) & ~np.isnan(tracks.v))
    return out


def refit_tracks(
    tracks: Tracks, planes: Planes, parameters: Floats | None = None, cuts: RefitCuts = DEFAULT_CUTS
) -> Refits:
    """Fit every track.

    Parameters
    ----------
    planes : the detector. parameters : (n_unit, 4 or 6) where it is assumed to be; None: as in its description.

    Raises
    ------
    InputError : a module that the detector does not have, hits or parameters of another shape.
    """
    parameters = checked_parameters(tracks, planes, parameters)

    def block(first: int) -> Refits:
        return fit_block(tracks.select(slice(first, first + BLOCK)), planes, parameters, cuts)

    return joined(in_order(block, range(0, max(len(tracks), 1), BLOCK)))


def joined(parts: Iterable[_R]) -> _R:
    """One record of arrays from those of blocks, of which there is one at least."""
    blocks = list(parts)
    names = [field.name for field in fields(blocks[0])]
    return type(blocks[0])(*(np.concatenate([getattr(block, name) for block in blocks]) for name in names))


def without_taken_out(tracks: Tracks, taken_out: NDArray[np.int8]) -> tuple[Floats, Floats]:
    """u and v (n, n_max) of tracks, nan where a fit left them out."""
    return np.where(taken_out & 1, math.nan, tracks.u), np.where(taken_out & 2, math.nan, tracks.v)


@kernel
def _jacobians(
    module: NDArray[np.int32], u: Floats, v: Floats, sigma_u: Floats, sigma_v: Floats, planes: Planes,
    parameters: Floats, local: Floats, status: NDArray[np.int8], units: NDArray[np.int32], jacobian: Floats,
) -> None:  # fmt: skip
    n_max = module.shape[1]
    fit = new_fit(n_max, N_TRACK, parameters.shape[1] * n_max)
    work = np.empty((13, 6))
    for t in range(module.shape[0]):
        units[t, :] = -1
        jacobian[t, :, :] = 0.0
        if status[t] != CONVERGED:
            continue
        hits, n = hits_of(t, module, u, v, sigma_u, sigma_v)
        n_unit = track_jacobian(hits, n, planes, parameters, local[t], fit, work, units[t], jacobian[t])
        units[t, max(n_unit, 0) :] = -1


def module_jacobians(
    tracks: Tracks, refits: Refits, planes: Planes, parameters: Floats | None = None
) -> tuple[NDArray[np.int32], Floats]:
    """How the fitted parameters of tracks change with the modules: units (n, n_max) and d local/d p (n, 5, n_max P).

    A fit at ``parameters`` while the detector is at p is off by J (p - parameters), to first order. -1 and 0 where
    there is no fit.

    Raises
    ------
    InputError : as `refit_tracks`; fits of other tracks.
    """
    parameters = checked_parameters(tracks, planes, parameters)
    n, n_max = tracks.module.shape
    if refits.taken_out.shape != (n, n_max):
        raise InputError(f"refits of {refits.taken_out.shape} tracks and sensors, for {n} tracks of {n_max}")
    units = np.empty((n, n_max), np.int32)
    jacobian = np.empty((n, N_TRACK, n_max * parameters.shape[1]))

    def block(first: int) -> None:
        part = slice(first, first + BLOCK)
        here = tracks.select(part)
        u, v = without_taken_out(here, refits.taken_out[part])
        _jacobians(
            here.module, u, v, here.sigma_u, here.sigma_v, planes, parameters, refits.local[part],
            refits.status[part], units[part], jacobian[part],
        )  # fmt: skip

    for _ in in_order(block, range(0, n, BLOCK)):
        pass
    return units, jacobian


def corrected_local(refits: Refits, units: NDArray[np.int32], jacobian: Floats, change: Floats) -> Floats:
    """(n, 5) fitted parameters if the detector is at p instead, ``change`` (n_unit, P) = p less where it was fitted.

    Raises
    ------
    InputError : a change of another shape.
    """
    n_slot = jacobian.shape[2] // units.shape[1]
    if change.ndim != 2 or change.shape[1] != n_slot or len(change) <= units.max(initial=-1):
        raise InputError(f"change: a row of {n_slot} for each unit wanted, got the shape {change.shape}")
    here = np.where(units[:, :, None] >= 0, change[np.maximum(units, 0)], 0.0).reshape(
        len(units), jacobian.shape[2]
    )
    return np.asarray(refits.local - np.einsum("nkp,np->nk", jacobian, here))


def checked_parameters(tracks: Tracks, planes: Planes, parameters: Floats | None) -> Floats:
    """The parameters as kernels take them, of tracks whose arrays belong together.

    Raises
    ------
    InputError : as `refit_tracks`.
    """
    for name in ("u", "v", "sigma_u", "sigma_v"):
        if (shape := getattr(tracks, name).shape) != tracks.module.shape or len(shape) != 2:
            raise InputError(f"{name}: the shape of module, {tracks.module.shape}, wanted, got {shape}")
    n_unit = int(planes.unit.max()) + 1
    if parameters is None:
        parameters = np.zeros((n_unit, 4))
    parameters = np.ascontiguousarray(parameters, dtype=np.float64)
    if parameters.shape not in ((n_unit, 4), (n_unit, 6)):
        raise InputError(f"parameters: shape ({n_unit}, 4) or ({n_unit}, 6) wanted, got {parameters.shape}")
    if not np.all(np.isfinite(parameters)):
        raise InputError("parameters: some are not finite")
    highest = int(tracks.module.max(initial=-1))
    if highest >= len(planes.unit):
        raise InputError(f"module: {highest} is not in the detector, which has {len(planes.unit)}")
    return parameters
