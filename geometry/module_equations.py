r"""The equations of the module parameters with their prior, and their solution by conjugate gradients or directly.

Tracks give C and g at the parameters p0 (`ModuleSums`). The prior is on the total p = x + S^T a with x ~ N(0, D) and
a ~ N(0, L): P = D + S^T L S. The minimum of chi2(p) + p^T P^-1 p is p0 + K^-1 h,

    K = C + P^-1,    h = g - P^-1 p0,    P^-1 = D^-1 - D^-1 S^T (L^-1 + S D^-1 S^T)^-1 S D^-1,

which is what one gets with the amplitudes a as further unknowns once these are eliminated. D^-1 = 0 where nothing is
known.

Preconditioner, of two levels: with Y a basis of the modes in which K is one, Y^T K Y = 1, and J the inverses of the
blocks of units, M^-1 = Y Y^T + (1 - Y Y^T K) J (1 - K Y Y^T): what is coherent is solved exactly, the rest
unit by unit.

Not for: what the solution is called (`musclecal.geometry.modules`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import diags_array

from musclecal.errors import InputError
from musclecal.geometry.block_matrix import block_times, dense_matrix, diagonal_blocks
from musclecal.geometry.modes import Modes
from musclecal.records import Floats, ModuleSums

__all__ = ["MOST_DENSE", "ModuleEquations", "Solved"]

MOST_DENSE = 12_000
"""Parameters in use up to which the direct solver is offered: 1.2 GB for K."""

_COLUMNS = 16
"""Right-hand sides that share one pass over the blocks."""

_SINGULAR = 1e-12
"""Relative to equations scaled to unit diagonal."""


@dataclass(frozen=True)
class Solved:
    """``values`` (n_par, n_column); iterations; largest residual of a column, relative to its right-hand side."""

    values: Floats
    iterations: int
    residual: float


class ModuleEquations:
    """K and h of sums with a prior.

    Parameters
    ----------
    sums : of tracks.
    widths : (n_units, P) of the independent prior (`independent_widths`): 0 is not fitted, inf is not constrained.
    modes : structure modes; all widths positive and finite.
    name : what errors call the parameter of a unit and a slot; their numbers, by default.

    Raises
    ------
    InputError : shapes that do not fit, or widths that are none.
    """

    def __init__(
        self, sums: ModuleSums, widths: Floats, modes: Modes, *, name: Callable[[int, int], str] | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        if widths.shape != sums.values.shape:
            raise InputError(
                f"prior widths {widths.shape} do not belong to sums of {sums.values.shape} parameters"
            )
        if modes.vectors.shape[1] != widths.size:
            raise InputError(f"modes of {modes.vectors.shape[1]} parameters, sums of {widths.size}")
        if not np.all(widths >= 0.0):
            raise InputError("a prior width is negative or no number")
        if not np.any(widths > 0.0):
            raise InputError("all prior widths are 0: no parameter is fitted")
        if not np.all((modes.widths > 0.0) & np.isfinite(modes.widths)):
            raise InputError("the width of a mode must be positive and finite: leave the mode out")
        self.sums, self.modes, self.threads = sums, modes, threads
        self._name = name or (lambda unit, slot: f"parameter {slot} of unit {unit}")
        self.used: NDArray[np.bool_] = widths.ravel() > 0.0
        with np.errstate(divide="ignore"):
            self.precision: Floats = np.where(self.used, 1.0 / widths.ravel() ** 2, 0.0)
        self._modes = (modes.vectors @ diags_array(self.used.astype(np.float64))).tocsr()
        self._scaled = (self._modes @ diags_array(self.precision)).tocsr()
        inner = (self._scaled @ self._modes.T).toarray() + np.diag(modes.widths**-2.0)
        self._inner = cho_factor(inner) if len(modes.names) else None

    @cached_property
    def diagonal(self) -> Floats:
        """(n_par,) of C + D^-1; 1 where a parameter is not in use."""
        blocks = diagonal_blocks(self.sums)
        return np.where(self.used, np.diagonal(blocks, axis1=1, axis2=2).ravel() + self.precision, 1.0)

    def _refuse_empty(self) -> None:
        """Name parameters that nothing fixes: their curvature is 0, or what rounding left of it."""
        diagonal = self.diagonal.reshape(-1, self.sums.n_slots)
        empty = np.flatnonzero(self.used & (diagonal <= _SINGULAR * diagonal.max(axis=0)).ravel())
        if len(empty):
            raise InputError(
                f"{len(empty)} parameters have neither tracks nor a prior, first: {self._parameter(int(empty[0]))}"
            )

    @property
    def right_hand_side(self) -> Floats:
        """(n_par,) h."""
        prior = self.prior_times(self.sums.values.reshape(-1, 1))[:, 0]
        return np.asarray(np.where(self.used, self.sums.vector.ravel() - prior, 0.0))

    def prior_times(self, x: Floats) -> Floats:
        """P^-1 x for x (n_par, n_column)."""
        out = self.precision[:, None] * x
        if self._inner is not None:
            out -= self._scaled.T @ cho_solve(self._inner, self._scaled @ x)
        return np.asarray(out)

    def times(self, x: Floats) -> Floats:
        """K x for x (n_par, n_column) that are 0 where nothing is in use."""
        shape = (self.sums.n_units, self.sums.n_slots, x.shape[1])
        out = block_times(self.sums, x.reshape(shape), self.threads).reshape(x.shape) + self.prior_times(x)
        out[~self.used] = 0.0
        return out

    def amplitudes_of(self, x: Floats) -> Floats:
        """(n_mode, n_column) the likeliest amplitudes in parameters x (n_par, n_column)."""
        if self._inner is None:
            return np.zeros((0, x.shape[1]))
        return np.asarray(cho_solve(self._inner, self._scaled @ x))

    @property
    def amplitude_spread(self) -> Floats:
        """(n_mode,) variance of the amplitudes once all parameters are known."""
        if self._inner is None:
            return np.zeros(0)
        return np.diagonal(cho_solve(self._inner, np.eye(len(self.modes.names)))).copy()

    @cached_property
    def unit_inverses(self) -> Floats:
        """(n_units, P, P) J.

        Raises
        ------
        InputError : a unit whose own parameters are fixed neither by tracks nor by the prior.
        """
        p = self.sums.n_slots
        used = self.used.reshape(-1, p)
        blocks = diagonal_blocks(self.sums) * (used[:, :, None] & used[:, None, :])
        blocks[:, np.arange(p), np.arange(p)] = self.diagonal.reshape(-1, p)
        self._refuse_empty()
        unit = 1.0 / np.sqrt(self.diagonal.reshape(-1, p))
        scaled = blocks * unit[:, :, None] * unit[:, None, :]
        scaled = 0.5 * (scaled + scaled.transpose(0, 2, 1))
        size, vectors = np.linalg.eigh(scaled)
        if size[:, 0].min() < _SINGULAR:
            worst = int(size[:, 0].argmin())
            direction = np.zeros((self.sums.n_units, p))
            direction[worst] = vectors[worst, :, 0] * unit[worst]
            raise InputError(f"a combination of parameters is not fixed: {self.describe(direction.ravel())}")
        inverse = np.einsum("nik,nk,njk->nij", vectors, 1.0 / size, vectors)
        return np.asarray(inverse * unit[:, :, None] * unit[:, None, :])

    @cached_property
    def coherent(self) -> tuple[Floats, Floats]:
        """(n_par, rank) each: Y and K Y.

        Raises
        ------
        InputError : coherent changes that neither tracks nor the prior fix.
        """
        vectors = np.asarray(self._modes.toarray()).T
        vectors = vectors / np.sqrt(np.maximum(np.sum(self.diagonal[:, None] * vectors**2, axis=0), 1e-300))
        size, rotation = np.linalg.eigh(vectors.T @ (self.diagonal[:, None] * vectors))
        independent = size > 1e-10 * max(size[-1], 1e-300) if size.size else np.zeros(0, dtype=np.bool_)
        rotation = rotation[:, independent] / np.sqrt(size[independent])
        moved = np.empty_like(vectors)
        for start in range(0, vectors.shape[1], _COLUMNS):
            moved[:, start : start + _COLUMNS] = self.times(vectors[:, start : start + _COLUMNS])
        basis, product = vectors @ rotation, moved @ rotation
        projected = basis.T @ product
        size, rotation = np.linalg.eigh(0.5 * (projected + projected.T))
        if size.size and size[0] < _SINGULAR * size[-1]:
            n = np.count_nonzero(size < _SINGULAR * size[-1])
            raise InputError(
                f"{n} coherent changes are not fixed, first: {self.describe(basis @ rotation[:, 0])}"
            )
        return basis @ (rotation / np.sqrt(size)), product @ (rotation / np.sqrt(size))

    def precondition(self, r: Floats) -> Floats:
        """M^-1 r for r (n_par, n_column)."""
        basis, product = self.coherent
        shape = (self.sums.n_units, self.sums.n_slots, r.shape[1])
        along = basis.T @ r
        rest = (r - product @ along).reshape(shape)
        local = np.matmul(self.unit_inverses, rest).reshape(r.shape)
        local[~self.used] = 0.0
        return np.asarray(local + basis @ (along - product.T @ local))

    def solve(self, right: Floats, *, tolerance: float = 1e-9, most_iterations: int = 300) -> Solved:
        """K^-1 of right-hand sides (n_par, n_column) by conjugate gradients, each until its residual is small.

        The residual is that in the norm of the preconditioner, close to the error in standard deviations.

        Raises
        ------
        InputError : no convergence, or combinations that nothing fixes.
        """
        solved = self.attempt(right, tolerance, most_iterations)
        if not solved.residual <= max(10.0 * tolerance, 1e-9):
            left = right - self.times(solved.values)
            worst = int(np.argmax(np.sum(left * self.precondition(left), axis=0)))
            raise InputError(
                f"the equations of the modules are not solved after {solved.iterations} iterations (residual "
                f"{solved.residual:.1e}, asked for {tolerance:.1e}); slowest: "
                f"{self.describe(self.precondition(left)[:, worst])}"
            )
        return solved

    def attempt(self, right: Floats, tolerance: float, most_iterations: int) -> Solved:
        """As `solve`, but what was reached is given back whether it is a solution or not."""
        right = np.where(self.used[:, None], right, 0.0)
        parts = [
            self._conjugate_gradients(right[:, i : i + _COLUMNS], tolerance, most_iterations)
            for i in range(0, right.shape[1], _COLUMNS)
        ]
        return Solved(
            np.concatenate([part.values for part in parts], axis=1),
            max(part.iterations for part in parts),
            max(part.residual for part in parts),
        )

    def _conjugate_gradients(self, right: Floats, tolerance: float, most_iterations: int) -> Solved:
        x = np.zeros_like(right)
        r, z = right.copy(), self.precondition(right)
        size = rz = _products(r, z)
        direction, iterations = z, 0
        while np.any(rz > tolerance**2 * size) and iterations < most_iterations:
            product = self.times(direction)
            step = np.where(rz > tolerance**2 * size, _ratio(rz, _products(direction, product)), 0.0)
            x += step * direction
            r -= step * product
            z = self.precondition(r)
            before, rz = rz, _products(r, z)
            direction = z + _ratio(rz, before) * direction
            iterations += 1
        left = right - self.times(x)
        rest = _ratio(np.abs(_products(left, self.precondition(left))), size)
        return Solved(x, iterations, float(np.sqrt(rest.max())))

    @cached_property
    def dense(self) -> Floats:
        """(n_used, n_used) K of the parameters in use.

        Raises
        ------
        InputError : more than `MOST_DENSE` of them.
        """
        n = int(self.used.sum())
        if n > MOST_DENSE:
            raise InputError(f"{n} parameters are too many for the direct solver, which takes {MOST_DENSE}")
        matrix = dense_matrix(self.sums)[np.ix_(self.used, self.used)]
        matrix = 0.5 * (matrix + matrix.T)
        matrix[np.diag_indices(n)] += self.precision[self.used]
        if self._inner is not None:
            scaled = self._scaled[:, self.used].toarray()
            matrix -= scaled.T @ cho_solve(self._inner, scaled)
        return np.asarray(matrix)

    def solve_directly(self, right: Floats) -> Solved:
        """K^-1 of right-hand sides (n_par, n_column) by Cholesky.

        Raises
        ------
        InputError : too many parameters, or combinations that nothing fixes.
        """
        out = np.zeros_like(right)
        unit, factor = self._cholesky
        out[self.used] = cho_solve((factor, True), right[self.used] / unit[:, None]) / unit[:, None]
        left = right[self.used] - self.dense @ out[self.used]
        size = np.abs(right[self.used] / unit[:, None]).max(axis=0)
        residual = np.abs(left / unit[:, None]).max(axis=0) / np.where(size > 0.0, size, 1.0)
        return Solved(out, 0, float(residual.max()))

    @cached_property
    def _cholesky(self) -> tuple[Floats, Floats]:
        """Units (n_used,) in which the diagonal is one, and the lower factor of K in these."""
        diagonal = np.diagonal(self.dense)
        self._refuse_empty()
        unit = np.sqrt(diagonal)
        scaled = self.dense / np.outer(unit, unit)
        try:
            factor, _ = cho_factor(scaled, lower=True)
            smallest = np.diagonal(factor).min() ** 2
        except np.linalg.LinAlgError:
            smallest = 0.0
        if smallest < 1e-9:
            self._refuse_singular(scaled, unit)
        return unit, factor

    def _refuse_singular(self, scaled: Floats, unit: Floats) -> None:
        """Name the combinations that nothing fixes, if there are any."""
        size, vectors = np.linalg.eigh(scaled)
        n = int(np.count_nonzero(size < _SINGULAR * size[-1]))
        if n:
            named = []
            for k in range(min(n, 3)):
                direction = np.zeros(len(self.used))
                direction[self.used] = vectors[:, k] / unit
                named.append(self.describe(direction))
            raise InputError(f"{n} combinations of parameters are not fixed, first: {'; '.join(named)}")

    def describe(self, direction: Floats) -> str:
        """A direction (n_par,) in words: its largest overlaps with modes, and its largest parameters.

        Overlap is the cosine of the angle in the metric of the diagonal of C + D^-1.
        """
        root = np.sqrt(self.diagonal) * direction
        vectors = self._modes.toarray() * np.sqrt(self.diagonal)
        norm = np.linalg.norm(vectors, axis=1) * np.linalg.norm(root)
        overlap = vectors @ root / np.where(norm > 0.0, norm, 1.0)
        best = [k for k in np.argsort(-np.abs(overlap))[:3] if abs(overlap[k]) > 0.2]
        words = [f"{overlap[k]:+.2f} {self.modes.names[k]}" for k in best]
        largest = np.argsort(-np.abs(root))[:3]
        share = root / max(float(np.linalg.norm(root)), 1e-300)
        words += [f"{share[k]:+.2f} {self._parameter(int(k))}" for k in largest]
        return ", ".join(words)

    def _parameter(self, k: int) -> str:
        return self._name(*divmod(int(k), self.sums.n_slots))


def _products(one: Floats, two: Floats) -> Floats:
    """(n_column,) products of columns."""
    return np.asarray(np.einsum("nc,nc->c", one, two))


def _ratio(above: Floats, below: Floats) -> Floats:
    """above/below, 0 where there is nothing below."""
    return np.asarray(np.where(below > 0.0, above / np.where(below > 0.0, below, 1.0), 0.0))
