"""Fixtures of the tests of geometry: small made-up problems of module parameters, and tracks linearised by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from musclecal.geometry.block_sums import BlockSums
from musclecal.geometry.trace import TRACED, Planes, new_trace, trace
from musclecal.records import Floats, ModuleSums, Tracks


@pytest.fixture(scope="session")
def problems() -> SimpleNamespace:
    """Its ``pairs``, ``sums_of`` and ``by_hand``."""
    return SimpleNamespace(pairs=linear_pairs, sums_of=sums_of, by_hand=by_hand)


@dataclass(frozen=True)
class Chunk:
    """What a refit hands to `BlockSums.add`, and the whitened matrices behind it (n_pair, n_row, ...)."""

    units: Any
    matrix: Floats
    vector: Floats
    good: Any
    chi2: Floats
    ndf: Floats
    G: Floats


def linear_pairs(
    truth: Floats, n_pair: int, rng: np.random.Generator, *, noise: float = 1.0, point: Floats | None = None,
    n_max: int = 6, n_row: int = 14, n_local: int = 5, used: Any = None,
    unseen: Floats | None = None,
) -> Chunk:  # fmt: skip
    """Pairs whose hits depend linearly on random local parameters and on the parameters (n_units, P) of some units.

    Rows: n_row measurements r = G (truth - point) + A l + noise, of which l is eliminated. Units may stand twice, and
    some places are empty. ``unseen`` (n_units, P) is a change of parameters that no measurement sees.
    """
    n_units, p = truth.shape
    point = np.zeros_like(truth) if point is None else point
    used = np.ones(truth.shape, dtype=bool) if used is None else used
    units = rng.integers(0, n_units, (n_pair, n_max)).astype(np.int32)
    units[rng.random((n_pair, n_max)) < 0.15] = -1
    there = used[units] & (units >= 0)[:, :, None]
    G = rng.normal(size=(n_pair, n_row, n_max, p)) * there[:, None]
    if unseen is not None:
        along = unseen[units] * there
        size = np.sum(along**2, axis=(1, 2))[:, None, None, None]
        G -= (
            np.einsum("erap,eap->er", G, along)[:, :, None, None]
            * along[:, None]
            / np.where(size > 0, size, 1.0)
        )
    A = rng.normal(size=(n_pair, n_row, n_local))
    r = np.einsum("erap,eap->er", G, (truth - point)[units])
    r += np.einsum("erk,ek->er", A, rng.normal(size=(n_pair, n_local))) + noise * rng.normal(size=r.shape)
    G = G.reshape(n_pair, n_row, n_max * p)
    projector = np.eye(n_row) - A @ np.linalg.solve(A.transpose(0, 2, 1) @ A, A.transpose(0, 2, 1))
    matrix = G.transpose(0, 2, 1) @ projector @ G
    vector = np.einsum("era,ers,es->ea", G, projector, r)
    chi2 = np.einsum("er,ers,es->e", r, projector, r)
    below = np.tril(np.ones((n_max, n_max), dtype=bool), -1)
    matrix = matrix.reshape(n_pair, n_max, p, n_max, p)
    matrix[:, below.nonzero()[0], :, below.nonzero()[1], :] = np.nan
    empty = np.repeat(units < 0, p, axis=1)
    matrix = matrix.reshape(n_pair, n_max * p, n_max * p)
    matrix[empty[:, :, None] | empty[:, None, :]] = np.nan
    vector[empty] = np.nan
    ndf = np.full(n_pair, float(n_row - n_local))
    return Chunk(units, matrix, vector, np.ones(n_pair, dtype=bool), chi2, ndf, G)


def sums_of(chunk: Chunk, n_units: int, n_slots: int, **kwargs: Any) -> ModuleSums:
    sums = BlockSums(n_units, n_slots)
    sums.add(chunk.units, chunk.matrix, chunk.vector, chunk.good, chunk.chi2, chunk.ndf)
    return sums.finish(**kwargs)


def by_hand(chunk: Chunk, n_units: int, n_slots: int) -> tuple[Floats, Floats]:
    """Dense C and g, pair by pair and place by place."""
    C = np.zeros((n_units, n_slots, n_units, n_slots))
    g = np.zeros((n_units, n_slots))
    n_max = chunk.units.shape[1]
    for e in np.flatnonzero(chunk.good):
        M = chunk.matrix[e].reshape(n_max, n_slots, n_max, n_slots)
        for a in range(n_max):
            if chunk.units[e, a] < 0:
                continue
            g[chunk.units[e, a]] += chunk.vector[e].reshape(n_max, n_slots)[a]
            for b in range(n_max):
                if chunk.units[e, b] < 0:
                    continue
                block = M[a, :, b] if a <= b else M[b, :, a].T
                C[chunk.units[e, a], :, chunk.units[e, b]] += block
    return C.reshape(n_units * n_slots, -1), g


@dataclass(frozen=True)
class Rows:
    """A track linearised by finite differences: residuals r (n_row,), their covariance V, A and G (n_row, ...)."""

    r: Floats
    V: Floats
    A: Floats
    G: Floats
    units: Any

    def whitened(self) -> tuple[Floats, Floats, Floats]:
        lower = np.linalg.cholesky(self.V)
        return np.linalg.solve(lower, self.r), np.linalg.solve(lower, self.A), np.linalg.solve(lower, self.G)


@pytest.fixture(scope="session")
def rows_by_hand() -> Callable[..., Rows]:
    """``rows_by_hand(tracks, n, planes, values, start_of, local)``."""
    return _rows_by_hand


LOCAL_STEPS = np.array([1e-5, 1e-5, 1e-5, 1e-4, 1e-4, 1e-4])
SLOT_STEPS = np.array([1e-4, 1e-4, 1e-4, 1e-3, 1e-4, 1e-5])


def _rows_by_hand(
    tracks: Tracks,
    n: int,
    planes: Planes,
    values: Floats,
    start_of: Callable[[Floats], Floats],
    local: Floats,
) -> Rows:
    """Of track ``n`` at its parameters ``local``, of which ``start_of`` makes the start (6,)."""
    modules = tracks.module[n][tracks.module[n] >= 0].copy()
    size = len(modules)
    out = new_trace(size, 6, False)

    def predicted(local: Floats, values: Floats) -> Floats:
        assert trace(start_of(local), np.eye(6), modules, size, planes, values, False, out) == TRACED
        return out.predicted.copy()

    def moved_local(direction: Floats, h: float) -> Floats:
        return predicted(local + h * direction, values)

    def moved_values(direction: Floats, h: float) -> Floats:
        return predicted(local, values + h * direction)

    def slope(f: Callable[[float], Floats], step: float) -> Floats:
        return (f(step) - f(-step)) / (2.0 * step)

    hits = np.stack([tracks.u[n, :size], tracks.v[n, :size]], axis=1).ravel()
    sigma = np.stack([tracks.sigma_u[n, :size], tracks.sigma_v[n, :size]], axis=1).ravel()
    kept = np.isfinite(hits)
    r = (hits - predicted(local, values))[kept]
    kicks = out.derivative[kept][:, 6 : 6 + 2 * size]
    V = np.diag(sigma[kept] ** 2) + kicks @ np.diag(out.variance.ravel()) @ kicks.T
    one = np.eye(len(local))
    A = [slope(partial(moved_local, one[k]), LOCAL_STEPS[k]) for k in range(len(local))]
    units, G = planes.unit[modules], []
    units = units[np.insert(np.diff(units) != 0, 0, True)]
    for unit in units:
        for slot in range(values.shape[1]):
            direction = np.zeros_like(values)
            direction[unit, slot] = 1.0
            G.append(slope(partial(moved_values, direction), SLOT_STEPS[slot]))
    return Rows(r, V, np.array(A).T[kept], np.array(G).T[kept], units)
