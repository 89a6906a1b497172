"""The likelihood of a problem: its inputs one below the other, sources of one name in one column."""

import numpy as np
from scipy.linalg import block_diag

from musclecal.errors import InputError
from musclecal.fits.combination.likelihood import Likelihood
from musclecal.fits.combination.prior import prior_correlations, prior_precision
from musclecal.fits.combination.responses import Responses
from musclecal.records import Floats
from musclecal.records.combination_likelihood import LikelihoodInput, LikelihoodProblem

__all__ = ["FORMS", "likelihood_of"]

FORMS = ("neyman", "pearson")

_MEASURED = 1e-3
"""A direction of the sources that an input constrains by less than this, in units of the prior, it has not measured."""


def _observable_of(problem: LikelihoodProblem) -> dict[str, int]:
    """Number of the combined value that each estimate measures."""
    known = [estimate for one in problem.inputs for estimate in one.estimates]
    twice = next((e for e in known if known.count(e) > 1), None)
    if twice is not None:
        raise InputError(f"estimate {twice!r} is there twice")
    where: dict[str, int] = {}
    for n, (name, estimates) in enumerate(problem.observables):
        if not estimates:
            raise InputError(f"observable {name!r} has no estimate")
        for estimate in estimates:
            if estimate not in known:
                raise InputError(f"observable {name!r}: no estimate {estimate!r}")
            if estimate in where:
                raise InputError(f"estimate {estimate!r} measures two observables, {name!r} is the second")
            where[estimate] = n
    for estimate in problem.spectators:
        where[estimate] = len(problem.observables) + len(where) - sum(len(e) for _, e in problem.observables)
    return where


def _check(one: LikelihoodInput, kinds: dict[str, float], pearson: bool) -> None:
    for source, prior in zip(one.sources, one.prior, strict=True):
        if kinds.setdefault(source, prior) != prior:
            raise InputError(f"{one.name}: source {source!r} is free in one input and has a prior in another")
    zero = one.values == 0.0
    if np.any(zero) and (pearson or np.any(one.relative)):
        why = "the Pearson form" if pearson else "a relative source"
        raise InputError(
            f"{one.name}: the value of {one.estimates[int(np.argmax(zero))]!r} is 0: no use for {why}"
        )
    both = one.asymmetric & (one.fitted != 0.0)
    if np.any(both):
        source = one.sources[int(np.argmax(both))]
        raise InputError(f"{one.name}: source {source!r} has an asymmetric response and a fitted value")


def _pull_of_data(one: LikelihoodInput, pull: Floats) -> tuple[float, int]:
    """pull^T D^-1 pull, and the number of directions, both of those that the data of the input have measured."""
    eigenvalues, vectors = np.linalg.eigh(one.constraint)
    measured = eigenvalues > _MEASURED
    return float(np.sum((vectors.T @ pull)[measured] ** 2 / eigenvalues[measured])), int(np.sum(measured))


def likelihood_of(problem: LikelihoodProblem, form: str = "neyman", fitted_values: bool = True) -> Likelihood:
    """The chi2 of ``problem``; ``fitted_values=False`` takes all inputs to have left their sources at 0.

    Raises
    ------
    InputError : names that are unknown or there twice, kinds of priors that differ, correlations that contradict
        each other, a value of 0 where one is divided by it.
    """
    if form not in FORMS:
        raise InputError(f"form of the chi2: {form!r} is none of {', '.join(FORMS)}")
    if not problem.inputs or not problem.observables:
        raise InputError("combination: no input" if not problem.inputs else "combination: no observable")
    where, sources = _observable_of(problem), problem.sources
    column = {source: n for n, source in enumerate(sources)}
    penalty = prior_precision(prior_correlations(problem), problem.free)
    n, m = len(where), len(sources)
    up, down, origin, relative = (
        np.zeros((n, m)),
        np.zeros((n, m)),
        np.zeros((n, m)),
        np.zeros((n, m), dtype=np.bool_),
    )
    pulled, constant, measured, row = np.zeros(m), 0.0, 0, 0
    kinds: dict[str, float] = {}
    for one in problem.inputs:
        _check(one, kinds, form == "pearson")
        rows, columns = slice(row, row + len(one.estimates)), [column[source] for source in one.sources]
        row += len(one.estimates)
        up[rows, columns], down[rows, columns], relative[rows, columns] = one.up, one.down, one.relative
        penalty[np.ix_(columns, columns)] += one.constraint
        if fitted_values and np.any(one.fitted):
            origin[rows, columns] = one.fitted
            pull = one.prior * one.fitted
            pulled[columns] += one.constraint @ one.fitted + pull
            at_zero, directions = _pull_of_data(one, pull)
            constant += float(one.fitted @ one.constraint @ one.fitted + 2.0 * one.fitted @ pull) + at_zero
            measured += directions
    responses = Responses(
        values=np.concatenate([one.values for one in problem.inputs]),
        observable=np.array([where[e] for one in problem.inputs for e in one.estimates], dtype=np.int64),
        n_obs=len(problem.observables) + len(problem.spectators),
        up=up,
        down=down,
        origin=origin,
        relative=relative,
        kink=np.any(up != -down, axis=0),
    )
    weight = block_diag(*(one.weight for one in problem.inputs))
    return Likelihood(responses, weight, penalty, pulled, constant, form == "pearson", measured)
