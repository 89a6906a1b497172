"""What the statistical errors of the shifts do to a combination.

A shift is often a difference of two simulated samples of finite size. Small ones have a sign by chance, and with it
the sign of their correlation with others. In each toy all shifts move by their errors, all covariances are made anew,
and the inputs, at their measured values, are combined.

Not for: coverage, in which the inputs fluctuate and the uncertainties stay.
"""

import numpy as np
from numpy.random import Generator, Philox

from musclecal.errors import InputError
from musclecal.fits.combination.best_linear import combine
from musclecal.records import Combined, Floats, Measurements, ShiftToys, Source

__all__ = ["shift_toys"]

_BLOCK = 500
"""Toys that share a stream of random numbers: the same toys for any number of them."""


def shift_toys(measurements: Measurements, n_toys: int = 10_000, seed: int = 1) -> ShiftToys:
    """Combinations with the shifts of all sources fluctuated, independently of each other.

    Parameters
    ----------
    measurements : sources with ``shift_errors`` fluctuate, others do not.

    Raises
    ------
    InputError : as `blue`; no source with errors, an error that is negative or not finite, no toy.
    """
    at = combine(measurements)
    moving = {name: s for name, s in measurements.sources.items() if s.shift_errors is not None}
    errors = _checked_errors(moving, at)
    if n_toys < 1:
        raise InputError(f"toys: {n_toys} of them")
    shifts = np.array([source.shifts for source in moving.values()])
    correlations = [source.correlation for source in moving.values()]
    still = at.input_covariance - sum(source.covariance for source in moving.values())
    values, sigmas, flips = [], [], np.zeros(shifts.shape, dtype=np.int64)
    for block, first in enumerate(range(0, n_toys, _BLOCK)):
        normal = Generator(Philox(key=[seed, block])).standard_normal((_BLOCK, *shifts.shape))
        toys = shifts + errors * normal[: n_toys - first]
        flips += np.count_nonzero(toys * shifts < 0.0, axis=0)
        total = np.tile(still, (len(toys), 1, 1))
        for s, correlation in enumerate(correlations):
            total += correlation * toys[:, s, :, None] * toys[:, s, None, :]
        value, sigma = _combined(total, at)
        values.append(value)
        sigmas.append(sigma)
    found = np.concatenate(values)
    return ShiftToys(
        values=found,
        errors=np.concatenate(sigmas),
        flips=flips,
        sources=tuple(moving),
        names=at.names,
        nominal_values=at.values,
        nominal_errors=at.errors,
        n_failed=int(np.count_nonzero(np.isnan(found[:, 0]))),
    )


def _checked_errors(moving: dict[str, Source], at: Combined) -> Floats:
    """(n_source, n)."""
    if not moving:
        raise InputError("toys: no source has errors of its shifts")
    for name, source in moving.items():
        given = np.asarray(source.shift_errors)
        if given.shape != at.inputs.shape or not np.all(np.isfinite(given)) or np.any(given < 0.0):
            raise InputError(
                f"source {name}: errors of shifts must be {len(at.inputs)} numbers, none negative"
            )
    return np.array([source.shift_errors for source in moving.values()])


def _combined(total: Floats, at: Combined) -> tuple[Floats, Floats]:
    """Values and errors (n_toy, m) for each covariance (n_toy, n, n); NaN where it is not positive definite."""
    good = np.flatnonzero(_positive_definite(total))
    values = np.full((len(total), len(at.values)), np.nan)
    errors = values.copy()
    # About the nominal combination; V^-1 of the design and of what is left of the inputs in one solution.
    known = np.column_stack([at.design, at.residuals])
    solved = np.linalg.solve(total[good], np.broadcast_to(known, (len(good), *known.shape)))
    normal = at.design.T @ solved
    covariance = np.linalg.inv(normal[:, :, :-1])
    values[good] = at.values + (covariance @ normal[:, :, -1:])[:, :, 0]
    errors[good] = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return values, errors


def _positive_definite(total: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(n_toy,); matrix by matrix only if one of them is not."""
    unit = np.sqrt(np.diagonal(total, axis1=1, axis2=2))
    scaled = total / unit[:, :, None] / unit[:, None, :]
    try:
        np.linalg.cholesky(scaled)
    except np.linalg.LinAlgError:
        return np.linalg.eigvalsh(scaled)[:, 0] > 4.0 * total.shape[1] * np.finfo(np.float64).eps
    return np.ones(len(total), dtype=np.bool_)
