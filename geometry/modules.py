r"""The global fit of module parameters: from sums of tracks and a prior to corrections with errors.

`ModuleEquations` holds the equations. What one may ask of them: the corrections (`solve_modules`), and the covariance
of chosen combinations of parameters, such as the bias of the momentum scale in bins of eta (`variance_of`).

Not for: the sums (`musclecal.geometry.block_sums`), or files (`musclecal.geometry.correction_file`).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.geometry.block_matrix import block_times
from musclecal.geometry.module_equations import ModuleEquations, Solved
from musclecal.records import Floats, ModuleCorrections

__all__ = ["Solver", "solve_modules", "variance_of"]

Solver = Literal["cg", "direct"]
"""Conjugate gradients, or Cholesky for small problems."""

_EXACT = 2000
"""Parameters in use up to which the errors are exact though conjugate gradients are asked for: 1 s of one core. The
small barrel has 1,520."""

_PROBE_TOLERANCE = 1e-6

_SEEN = 1e-11
"""Curvature of a direction, relative to that of its parameters one by one, below which it counts as not fixed."""


def solve_modules(
    equations: ModuleEquations,
    kinds: NDArray[np.int8],
    *,
    solver: Solver = "cg",
    tolerance: float = 1e-7,
    most_iterations: int = 300,
) -> ModuleCorrections:
    """The corrections that fit the tracks and the prior best.

    Parameters
    ----------
    kinds : (n_units, P) what each parameter is (`parameter_kinds`).
    tolerance : of conjugate gradients, on the residual relative to the right-hand side.

    The errors are exact for the direct solver and for small problems. Else they are lower bounds, the larger of two:
    the error if all other units were known, and that if only the modes could move. `variance_of` is exact.

    Raises
    ------
    InputError : combinations of parameters that neither tracks nor the prior fix (named), or no convergence.
    """
    sums = equations.sums
    if kinds.shape != sums.values.shape:
        raise InputError(f"kinds {kinds.shape} do not belong to sums of {sums.values.shape} parameters")
    _refuse_unfixed(equations, solver, most_iterations)
    solved = _solve(equations, equations.right_hand_side[:, None], solver, tolerance, most_iterations)
    change = solved.values.reshape(sums.values.shape)
    values = np.where(equations.used.reshape(kinds.shape), sums.values + change, sums.values)
    total = np.where(equations.used, values.ravel(), 0.0)[:, None]
    bent = block_times(sums, change[:, :, None], equations.threads)[:, :, 0]
    exact = solver == "direct" or int(equations.used.sum()) <= _EXACT
    variance, amplitude_variance = (_exact_variances if exact else _least_variances)(equations)
    return ModuleCorrections(
        values=values,
        sigma=np.sqrt(variance).reshape(kinds.shape),
        kinds=np.where(equations.used.reshape(kinds.shape), kinds, 0).astype(np.int8),
        uses=sums.uses,
        sigma_is="exact" if exact else "lower bound",
        mode_names=equations.modes.names,
        amplitudes=equations.amplitudes_of(total)[:, 0],
        amplitude_sigma=np.sqrt(amplitude_variance),
        chi2=sums.chi2 - 2.0 * float(np.sum(sums.vector * change)) + float(np.sum(change * bent)),
        ndf=sums.ndf,
        prior_chi2=float(np.sum(total * equations.prior_times(total))),
        n_pairs=sums.n_pairs,
        iterations=solved.iterations,
        residual=solved.residual,
        detector=sums.detector,
    )


def variance_of(
    equations: ModuleEquations,
    combinations: Floats,
    *,
    solver: Solver = "cg",
    tolerance: float = 1e-4,
    most_iterations: int = 300,
) -> Floats:
    """(n_c, n_c) covariance of linear combinations (n_c, n_units, P) of the parameters: c K^-1 c^T.

    Its relative error is of second order in ``tolerance``. Parameters that are not in use count as known. Raises
    InputError as `solve_modules` does.
    """
    if combinations.shape[1:] != equations.sums.values.shape:
        raise InputError(
            f"combinations {combinations.shape[1:]} of parameters, the sums have {equations.sums.values.shape}"
        )
    columns = np.ascontiguousarray(combinations.reshape(len(combinations), -1).T)
    columns[~equations.used] = 0.0
    covariance = columns.T @ _solve(equations, columns, solver, tolerance, most_iterations).values
    return np.asarray(0.5 * (covariance + covariance.T))


def _solve(
    equations: ModuleEquations, right: Floats, solver: Solver, tolerance: float, most_iterations: int
) -> Solved:
    if solver == "direct":
        return equations.solve_directly(right)
    return equations.solve(right, tolerance=tolerance, most_iterations=most_iterations)


def _refuse_unfixed(equations: ModuleEquations, solver: Solver, most_iterations: int) -> None:
    """Where the prior leaves parameters free: solve for noise, which no vector of tracks is.

    The vector of tracks has no part in a direction that tracks do not see, so its solution would hide it; that of noise
    is large in just this direction. The direct solver looks at its factor itself.
    """
    free = equations.used & (equations.precision == 0.0)
    if solver == "direct" or not free.any():
        return
    noise = np.random.default_rng(1).normal(size=len(free)) * np.sqrt(equations.diagonal)
    noise = np.where(equations.used, noise, 0.0)[:, None]
    probe = equations.attempt(noise, _PROBE_TOLERANCE, most_iterations)
    size = np.sum(probe.values * equations.times(probe.values))
    if not size > _SEEN * np.sum(equations.diagonal[:, None] * probe.values**2):
        raise InputError(
            f"a combination of parameters is not fixed: {equations.describe(probe.values[:, 0])}"
        )


def _exact_variances(equations: ModuleEquations) -> tuple[Floats, Floats]:
    """(n_par,) and (n_mode,), from the inverse of K."""
    inverse = equations.solve_directly(np.diag(equations.used.astype(np.float64))).values
    amplitudes = equations.amplitudes_of(inverse)
    variance = np.sum(equations.amplitudes_of(amplitudes.T) * np.eye(len(amplitudes)), axis=1)
    return np.diagonal(inverse).copy(), variance + equations.amplitude_spread


def _least_variances(equations: ModuleEquations) -> tuple[Floats, Floats]:
    """Lower bounds of the same: J and Y Y^T are both less than K^-1."""
    basis, _ = equations.coherent
    units = np.diagonal(equations.unit_inverses, axis1=1, axis2=2).ravel()
    variance = np.where(equations.used, np.maximum(units, np.sum(basis**2, axis=1)), 0.0)
    return variance, equations.amplitude_spread + np.sum(equations.amplitudes_of(basis) ** 2, axis=1)
