r"""The chi2 of a combination of fits, its gradient and its Hessian.

.. math:: \chi^2(\lambda, x) =
          \sum_k\bigl[r_k^T M_k r_k + \delta_k^T D_k\delta_k - 2\,\delta_k^T P_k\hat\lambda_k\bigr]
          + \lambda^T C^{-1}\lambda + \mathrm{const},\quad r = d - t(\lambda, x),\ \delta_k = \lambda - \hat\lambda_k

(Kieseler, EPJC 77 (2017) 792; the terms with the values :math:`\hat\lambda` that the inputs fitted make one input alone
return itself: they are what its data pulled against its prior.) t is that of `responses`.

Neyman: as it stands. Pearson: :math:`r_\mu \to r_\mu\sqrt{|d_\mu/t_\mu|}`, for counts, whose variance grows with what
is expected; of a mass it is not true. Both are :math:`q^T M q` with a function q(t):

.. math:: \mathrm{Neyman}\ q = d - t;\qquad \mathrm{Pearson}\ q = (d-t)\sqrt{|d/t|},\quad
          q' = -\sqrt{|d/t|}\,\frac{d+t}{2t},\quad q'' = \sqrt{|d/t|}\,\frac{3d+t}{4t^2}

.. math:: \nabla\chi^2 = 2 J^T (q'\circ Mq),\quad
          \nabla^2\chi^2 = 2 J^T\bigl(q' M q' + \mathrm{diag}(q''\circ Mq)\bigr)J
          + 2\sum_\mu q'_\mu (Mq)_\mu\nabla^2 t_\mu

and the constant is such that an input's own data fit perfectly at their own minimum.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import block_diag

from musclecal.errors import InputError
from musclecal.fits.combination.prior import prior_correlations, prior_precision
from musclecal.fits.combination.responses import Prediction, Responses
from musclecal.records import Floats, Ints
from musclecal.records.combination_likelihood import LikelihoodInput, LikelihoodProblem

__all__ = ["FORMS", "Curvature", "Likelihood", "likelihood_of"]

FORMS = ("neyman", "pearson")

_MEASURED = 1e-3
"""A direction of the sources that an input constrains by less than this, in units of the prior, it has not measured."""


@dataclass(frozen=True)
class Curvature:
    """Second derivatives at a point: J^T ``core`` J + sum_mu ``factor``_mu d2t_mu + ``penalty``, twice.

    Attributes
    ----------
    prediction : with the Jacobian J. core : (n, n). factor : (n,). observable : (n,). penalty : (n_source, n_source).
    """

    prediction: Prediction
    core: Floats
    factor: Floats
    observable: Ints
    penalty: Floats

    def matrix(self) -> Floats:
        """(n_par, n_par) the Hessian."""
        jacobian, n_source = self.prediction.jacobian, len(self.penalty)
        half = jacobian.T @ (self.core @ jacobian)
        self.prediction.add_curvature(self.factor, self.observable, half)
        half[:n_source, :n_source] += self.penalty
        return np.asarray(half + half.T)

    def times(self, vectors: Floats) -> Floats:
        """The Hessian times ``vectors`` (n_par, m), without writing it out."""
        jacobian, n_source = self.prediction.jacobian, len(self.penalty)
        half = jacobian.T @ (self.core @ (jacobian @ vectors))
        half += self.prediction.curvature_times(self.factor, self.observable, vectors)
        half[:n_source] += self.penalty @ vectors[:n_source]
        return 2.0 * half


@dataclass(frozen=True)
class Likelihood:
    """The function, with all inputs one below the other.

    Attributes
    ----------
    responses : of all n estimates. weight : (n, n) M.
    penalty : (n_source, n_source) sum of D and C^-1. pulled : (n_source,) sum of (D + P) lambda-hat.
    constant : what makes chi2 that of a measurement. pearson : the form.
    n_measured : directions of sources that inputs with fitted values have measured.
    """

    responses: Responses
    weight: Floats
    penalty: Floats
    pulled: Floats
    constant: float
    pearson: bool
    n_measured: int

    @property
    def n_source(self) -> int:
        """Number of sources: parameters before the combined values."""
        return len(self.pulled)

    @property
    def n_par(self) -> int:
        """Number of parameters."""
        return self.n_source + self.responses.n_obs

    @property
    def ndf(self) -> int:
        """Estimates and measured directions of sources, less combined values: a prior makes up for its source."""
        return len(self.responses.values) + self.n_measured - self.responses.n_obs

    @property
    def is_quadratic(self) -> bool:
        """Absolute, symmetric, Neyman: one linear system gives the minimum, and a parabola the intervals."""
        return not (self.pearson or np.any(self.responses.relative) or np.any(self.responses.kink))

    def sides(self, parameters: Floats) -> Floats:
        """(n_source,) on which side of the kinks the sources are; 0 counts as above."""
        return np.where(parameters[: self.n_source] < 0.0, -1.0, 1.0)

    def _transformed(self, expected: Floats) -> tuple[Floats, Floats, Floats]:
        """q, q', q'' (n,) of ``expected`` (n,)."""
        d, t = self.responses.values, expected
        if not self.pearson:
            return d - t, np.full(len(d), -1.0), np.zeros(len(d))
        root = np.sqrt(np.abs(d / t))
        return (d - t) * root, -root * (d + t) / (2.0 * t), root * (3.0 * d + t) / (4.0 * t**2)

    def _of_sources(self, sources: Floats) -> float:
        return float(sources @ self.penalty @ sources - 2.0 * sources @ self.pulled) + self.constant

    def chi2(self, parameters: Floats) -> float:
        """At ``parameters`` (n_par,): sources, then combined values."""
        q, _, _ = self._transformed(self.responses.predict(parameters, self.sides(parameters)).expected)
        return float(q @ self.weight @ q) + self._of_sources(parameters[: self.n_source])

    def gradient(self, parameters: Floats, side: Floats | None = None) -> Floats:
        """(n_par,); at a kink on the given ``side`` (n_source,) of it."""
        side = self.sides(parameters) if side is None else side
        prediction = self.responses.predict(parameters, side)
        q, dq, _ = self._transformed(prediction.expected)
        result = 2.0 * (dq * (self.weight @ q)) @ prediction.jacobian
        result[: self.n_source] += 2.0 * (self.penalty @ parameters[: self.n_source] - self.pulled)
        return np.asarray(result)

    def curvature(self, parameters: Floats, side: Floats | None = None) -> "Curvature":
        """The second derivatives, to be multiplied with vectors or written out."""
        prediction = self.responses.predict(parameters, self.sides(parameters) if side is None else side)
        q, dq, ddq = self._transformed(prediction.expected)
        pull = self.weight @ q
        core = dq[:, None] * self.weight * dq
        core[np.diag_indices(len(q))] += pull * ddq
        return Curvature(prediction, core, dq * pull, self.responses.observable, self.penalty)

    def hessian(self, parameters: Floats, side: Floats | None = None) -> Floats:
        """(n_par, n_par); twice the inverse covariance."""
        return self.curvature(parameters, side).matrix()

    def start(self) -> Floats:
        """(n_par,) all sources 0, each combined value the weighted mean of its estimates."""
        weight = np.abs(np.diagonal(self.weight))
        where, n = self.responses.observable, self.responses.n_obs
        mean = np.bincount(where, weight * self.responses.values, n) / np.bincount(where, weight, n)
        return np.concatenate([np.zeros(self.n_source), mean])

    def with_penalty(self, penalty: Floats) -> "Likelihood":
        """The same with another prior."""
        return replace(self, penalty=penalty)


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
