r"""What the inputs should have measured, given combined values and sources, and its derivatives.

.. math:: t_\mu = x_\mu \prod_{i\ \mathrm{relative}} \Bigl(1 - \frac{k_{\mu i}}{d_\mu}\Bigr)
                - \sum_{i\ \mathrm{absolute}} k_{\mu i},\qquad
          k_{\mu i} =
          \begin{cases} u_{\mu i}\,\delta_i & \delta_i \ge 0\\ w_{\mu i}\,|\delta_i| & \delta_i < 0\end{cases}

u and w are the changes up and down, delta the source less its fitted value in the input. With s = u on the upper side
and -w on the lower one, k = s delta, and

.. math:: \frac{\partial t}{\partial\lambda_i} = x\,\Pi\,g_i\ \mathrm{or}\ -s_i,\quad
          g_i = \frac{-s_i/d}{1 - k_i/d},\quad
          \frac{\partial^2 t}{\partial\lambda_i\partial\lambda_j} = x\,\Pi\,g_i g_j\,(1 - \delta_{ij}),\quad
          \frac{\partial^2 t}{\partial x\,\partial\lambda_i} = \Pi\,g_i

A source of asymmetric response has a kink at 0; which side counts there is an argument, ``side``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.records import Floats, Ints

__all__ = ["Prediction", "Responses"]

_SMALLEST_FACTOR = 1e-9


@dataclass(frozen=True)
class Prediction:
    """Of all estimates (n): ``t`` and its derivatives.

    Attributes
    ----------
    expected : (n,) t. jacobian : (n, n_par) dt/d parameter, sources first.
    product : (n,) of the relative factors. log_slope : (n, n_source) g, 0 if absolute; None if none is relative.
    scale : (n,) x times product.
    """

    expected: Floats
    jacobian: Floats
    product: Floats
    log_slope: Floats | None
    scale: Floats

    def curvature_times(self, factor: Floats, observable: Ints, vectors: Floats) -> Floats:
        """sum_mu factor_mu d2t_mu applied to ``vectors`` (n_par, m); ``observable`` (n,) says which x is measured."""
        result = np.zeros_like(vectors)
        if self.log_slope is None:
            return result
        g, n_source = self.log_slope, self.log_slope.shape[1]
        sources, x = vectors[:n_source], vectors[n_source:][observable]
        weighted, mixed = (factor * self.scale)[:, None] * g, (factor * self.product)[:, None] * g
        of_sources = g @ sources
        result[:n_source] = weighted.T @ of_sources + mixed.T @ x
        result[:n_source] -= np.einsum("mi,mi->i", weighted, g)[:, None] * sources
        np.add.at(result, n_source + observable, (factor * self.product)[:, None] * of_sources)
        return result

    def add_curvature(self, factor: Floats, observable: Ints, hessian: Floats) -> None:
        """Add sum_mu factor_mu d2t_mu (n_par, n_par) to ``hessian``."""
        if self.log_slope is None:
            return
        g, n_source = self.log_slope, self.log_slope.shape[1]
        weighted = (factor * self.scale)[:, None] * g
        block = weighted.T @ g
        block[np.diag_indices(n_source)] = 0.0
        hessian[:n_source, :n_source] += block
        mixed = (factor * self.product)[:, None] * g
        for mu, a in enumerate(observable):
            hessian[:n_source, n_source + a] += mixed[mu]
            hessian[n_source + a, :n_source] += mixed[mu]


@dataclass(frozen=True)
class Responses:
    """Of all estimates (n) to all sources.

    Attributes
    ----------
    values : (n,) d. observable : (n,) which combined value is measured. n_obs : how many there are.
    up, down, origin : (n, n_source). relative : (n, n_source).
    kink : (n_source,) sources with an asymmetric response somewhere; their origin is 0.
    """

    values: Floats
    observable: Ints
    n_obs: int
    up: Floats
    down: Floats
    origin: Floats
    relative: NDArray[np.bool_]
    kink: NDArray[np.bool_]

    def slopes(self, side: Floats) -> Floats:
        """(n, n_source) s, for ``side`` (n_source,) +1 or -1."""
        return np.where(side > 0.0, self.up, -self.down) if np.any(self.kink) else self.up

    def predict(self, parameters: Floats, side: Floats) -> Prediction:
        """Expected estimates and derivatives at ``parameters`` (n_par,), on the given sides of the kinks."""
        n_source = self.up.shape[1]
        sources, x = parameters[:n_source], parameters[n_source:][self.observable]
        s = self.slopes(side)
        k = s * (sources - self.origin)
        jacobian = np.zeros((len(self.values), n_source + self.n_obs))
        jacobian[:, :n_source] = -s
        product, scale, g, shift = np.ones(len(self.values)), x, None, np.sum(k, axis=1)
        columns = np.flatnonzero(np.any(self.relative, axis=0))
        if len(columns):
            relative, shifts = self.relative[:, columns], k[:, columns]
            factors = np.where(relative, 1.0 - shifts / self.values[:, None], 1.0)
            factors = np.where(np.abs(factors) < _SMALLEST_FACTOR, _SMALLEST_FACTOR, factors)
            product = np.prod(factors, axis=1)
            scale, shift = x * product, shift - np.sum(np.where(relative, shifts, 0.0), axis=1)
            slopes = np.where(relative, -s[:, columns] / self.values[:, None] / factors, 0.0)
            g = np.zeros_like(s)
            g[:, columns] = slopes
            jacobian[:, columns] = np.where(relative, scale[:, None] * slopes, jacobian[:, columns])
        jacobian[np.arange(len(self.values)), n_source + self.observable] = product
        return Prediction(scale - shift, jacobian, product, g, scale)
