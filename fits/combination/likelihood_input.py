r"""Inputs of a combination from what measurements publish: a Hessian, correlations after the fit, a table of shifts.

The Hessian of a fit with sources in units of their prior widths, covariance :math:`H^{-1}`, is split as
(Kieseler, EPJC 77 (2017) 792)

.. math:: H = \begin{pmatrix} M & \kappa \\ \kappa^T & \tilde D\end{pmatrix},\qquad
          K = -M^{-1}\kappa,\qquad D = \tilde D - P - K^T M K

P, the prior that the input used for its own sources, is taken out here: it enters once, with all correlations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag

from musclecal.errors import InputError
from musclecal.records import Floats
from musclecal.records.combination_likelihood import LikelihoodInput

__all__ = ["from_correlations", "from_hessian", "from_table", "renamed", "with_external"]


def _positive_definite(matrix: ArrayLike, names: Sequence[str], what: str) -> Floats:
    """``matrix`` symmetrised, or an error that names the direction in which it is not positive definite."""
    full = np.asarray(matrix, dtype=np.float64)
    if full.shape != (len(names),) * 2:
        raise InputError(f"{what}: shape {full.shape} does not go with {len(names)} names")
    if not np.all(np.isfinite(full)):
        raise InputError(f"{what}: not finite")
    full = 0.5 * (full + full.T)
    diagonal = np.diagonal(full)
    if np.any(diagonal <= 0.0):
        raise InputError(f"{what}: {diagonal.min():g} on the diagonal of {names[int(np.argmin(diagonal))]}")
    size = np.sqrt(diagonal)
    eigenvalues, vectors = np.linalg.eigh(full / size[:, None] / size)
    if eigenvalues[0] <= 1e-12:
        leading = np.argsort(-np.abs(vectors[:, 0]))[:2]
        raise InputError(
            f"{what}: not positive definite, smallest eigenvalue {eigenvalues[0]:.3g} (of unit diagonal), mostly "
            + " and ".join(names[i] for i in leading)
        )
    return full


def _checked_values(name: str, estimates: Sequence[str], values: ArrayLike) -> Floats:
    result = np.asarray(values, dtype=np.float64)
    if result.shape != (len(estimates),) or not np.all(np.isfinite(result)):
        raise InputError(f"{name}: {len(estimates)} estimates need as many finite values, got {result}")
    return result


def _flags(name: str, sources: Sequence[str], chosen: Sequence[str], what: str) -> NDArray[np.bool_]:
    unknown = [one for one in chosen if one not in sources]
    if unknown:
        raise InputError(f"{name}: {unknown[0]!r} is said to be {what}, but is none of its sources")
    return np.array([source in chosen for source in sources], dtype=np.bool_)


def from_hessian(
    name: str,
    parameters: Sequence[str],
    hessian: ArrayLike,
    estimates: Mapping[str, float],
    *,
    fitted: Mapping[str, float] | None = None,
    free: Sequence[str] = (),
    relative: Sequence[str] = (),
) -> LikelihoodInput:
    """A profiled fit: ``hessian`` (n_par, n_par), the inverse of its covariance, of ``parameters`` in any order.

    Parameters
    ----------
    estimates : names and values of those parameters that are estimates; the others are sources.
    fitted : values of sources at the minimum of the fit, in units of prior widths; 0 where nothing is given.
    free : sources that had no prior in the fit. relative : sources whose effect scales with the value.

    Raises
    ------
    InputError : not positive definite, unknown names.
    """
    full = _positive_definite(hessian, parameters, f"{name}: Hessian")
    missing = [estimate for estimate in estimates if estimate not in parameters]
    if missing:
        raise InputError(f"{name}: estimate {missing[0]!r} is not in the matrix")
    of_estimates = [parameters.index(estimate) for estimate in estimates]
    of_sources = [n for n, parameter in enumerate(parameters) if parameter not in estimates]
    sources = tuple(parameters[n] for n in of_sources)
    prior = np.where(_flags(name, sources, free, "free"), 0.0, 1.0)
    weight = full[np.ix_(of_estimates, of_estimates)]
    kappa = full[np.ix_(of_estimates, of_sources)]
    response = np.asarray(-np.linalg.solve(weight, kappa), dtype=np.float64)
    constraint = full[np.ix_(of_sources, of_sources)] - np.diag(prior) + kappa.T @ response
    unknown = [source for source in fitted or {} if source not in sources]
    if unknown:
        raise InputError(f"{name}: a fitted value of {unknown[0]!r}, which is none of the fitted sources")
    return LikelihoodInput(
        name=name,
        estimates=tuple(estimates),
        values=_checked_values(name, tuple(estimates), list(estimates.values())),
        weight=weight,
        sources=sources,
        up=response,
        down=-response,
        relative=_flags(name, sources, relative, "relative"),
        profiled=np.ones(len(sources), dtype=np.bool_),
        constraint=constraint,
        fitted=np.array([(fitted or {}).get(source, 0.0) for source in sources], dtype=np.float64),
        prior=prior,
    )


def from_correlations(
    name: str,
    parameters: Sequence[str],
    correlations: ArrayLike,
    constraints: ArrayLike,
    estimates: Mapping[str, float],
    *,
    fitted: Mapping[str, float] | None = None,
    free: Sequence[str] = (),
    relative: Sequence[str] = (),
) -> LikelihoodInput:
    """A profiled fit given by correlations and uncertainties (``constraints``) after the fit; else `from_hessian`."""
    sizes = np.asarray(constraints, dtype=np.float64)
    if sizes.shape != (len(parameters),) or not np.all(sizes > 0.0):
        raise InputError(
            f"{name}: every one of {len(parameters)} parameters needs a positive constraint, got {sizes}"
        )
    rho = _positive_definite(correlations, parameters, f"{name}: correlation matrix")
    hessian = np.linalg.inv(rho) / sizes[:, None] / sizes
    return from_hessian(name, parameters, hessian, estimates, fitted=fitted, free=free, relative=relative)


def from_table(
    name: str,
    estimates: Mapping[str, float],
    covariance: ArrayLike,
    sources: Sequence[str],
    up: ArrayLike,
    down: ArrayLike | None = None,
    *,
    relative: Sequence[str] = (),
) -> LikelihoodInput:
    """A measurement with sources that were not fitted.

    Parameters
    ----------
    covariance : (n_estimate, n_estimate) of statistics. up, down : (n_estimate, n_source) signed shifts.
    """
    names = tuple(estimates)
    weight = np.linalg.inv(_positive_definite(covariance, names, f"{name}: statistical covariance"))
    bare = LikelihoodInput(
        name=name,
        estimates=names,
        values=_checked_values(name, names, list(estimates.values())),
        weight=np.asarray(weight, dtype=np.float64),
        sources=(),
        up=np.zeros((len(names), 0)),
        down=np.zeros((len(names), 0)),
        relative=np.zeros(0, dtype=np.bool_),
        profiled=np.zeros(0, dtype=np.bool_),
        constraint=np.zeros((0, 0)),
        fitted=np.zeros(0),
        prior=np.zeros(0),
    )
    return with_external(bare, sources, up, down, relative=relative)


def with_external(
    one: LikelihoodInput,
    sources: Sequence[str],
    up: ArrayLike,
    down: ArrayLike | None = None,
    *,
    relative: Sequence[str] = (),
) -> LikelihoodInput:
    """``one`` with more sources, which its fit did not contain; ``up``, ``down`` (n_estimate, n_source)."""
    more, n = np.asarray(up, dtype=np.float64), len(sources)
    less = -more if down is None else np.asarray(down, dtype=np.float64)
    for table in (more, less):
        if table.shape != (len(one.estimates), n) or not np.all(np.isfinite(table)):
            raise InputError(f"{one.name}: shifts must be finite and of shape {(len(one.estimates), n)}")
    names = one.sources + tuple(sources)
    if len(set(names)) < len(names):
        twice = next(source for source in names if names.count(source) > 1)
        raise InputError(f"{one.name}: source {twice!r} is there twice")
    return replace(
        one,
        sources=names,
        up=np.hstack([one.up, more]),
        down=np.hstack([one.down, less]),
        relative=np.concatenate([one.relative, _flags(one.name, sources, relative, "relative")]),
        profiled=np.concatenate([one.profiled, np.zeros(n, dtype=np.bool_)]),
        constraint=block_diag(one.constraint, np.zeros((n, n))),
        fitted=np.concatenate([one.fitted, np.zeros(n)]),
        prior=np.concatenate([one.prior, np.ones(n)]),
    )


def renamed(one: LikelihoodInput, names: Mapping[str, str]) -> LikelihoodInput:
    """``one`` with sources called ``names[old]``: inputs with a common name share the source exactly."""
    unknown = [name for name in names if name not in one.sources]
    if unknown:
        raise InputError(f"{one.name}: no source {unknown[0]!r} to rename")
    sources = tuple(names.get(source, source) for source in one.sources)
    if len(set(sources)) < len(sources):
        raise InputError(f"{one.name}: two of its sources would be called alike")
    return replace(one, sources=sources)
