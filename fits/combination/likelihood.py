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

from musclecal.fits.combination.responses import Prediction, Responses
from musclecal.records import Floats, Ints

__all__ = ["Curvature", "Likelihood"]


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
