r"""What a width fit of `musclecal.fits.likelihood` is expected to give: its information, error and first-order bias.

For N events the profile score U of ln w (the derivative of ln L, scale and background at their best) is linear in the
counts up to terms of order one, so the one-step estimate ln w + U/(N I), averaged over bins, has no bias of second
order in the fluctuations of w, however few events a bin has. Left is what the other parameters do: a Gaussian
with a free mean has E[U] = -1, so that w^2 would come out too small by 1/N. With the expected shares p_i, their
derivatives, L_{i,a} = p_{i,a}/p_i, and counts whose variance per event is v_i (p_i if nothing else is said)

.. math:: F_{ab} = \sum_i p_i L_{i,a} L_{i,b}, \qquad J_{ab} = \sum_i v_i L_{i,a} L_{i,b}, \qquad
   G = F_{\nu\nu}^{-1}, \quad C = G J_{\nu\nu} G, \qquad R = (1, -F_{w\nu} G),

.. math:: I = R F R^T, \qquad \mathrm{var}(U)/N = R J R^T, \qquad
   E[U] = \sum_b R_b \Bigl[\sum_{icd} v_i \Bigl(\frac{p_{i,bc}}{p_i} - L_{i,b}L_{i,c}\Bigr) L_{i,d}\,G_{cd}
          + \tfrac12 \sum_{cd} T_{bcd}\,C_{cd}\Bigr],

.. math:: T_{bcd} = \sum_i p_i\,\partial_{bcd}\ln p_i
           = \sum_i\Bigl[2 p_i L_{i,b}L_{i,c}L_{i,d} - L_{i,b}p_{i,cd} - L_{i,c}p_{i,bd} - L_{i,d}p_{i,bc}\Bigr]

with b over all parameters, c and d over the others than w (nu): the second-order expansion of Cox and Snell, J. R.
Stat. Soc. B 30 (1968) 248, for a profile score.
"""

from dataclasses import dataclass

import numpy as np

from musclecal.fits.likelihood import BACKGROUNDS, expected_shares
from musclecal.fits.shapes import SignalModel
from musclecal.records import Floats

__all__ = ["ScoreMoments", "score_moments"]

_FLOOR = 1e-12
_STEPS = np.array([1e-4, 1e-3, 1e-4, 1e-3])
_ROWS = 128


@dataclass(frozen=True)
class ScoreMoments:
    """Of the profile score U of ln w, (n_bin,) each, for one event.

    information : I, the expected -dU/d ln w. spread : the variance of U. mean : E[U], whatever the number of events.
    """

    information: Floats
    spread: Floats
    mean: Floats


def score_moments(
    model: SignalModel, background: str, parameters: Floats, *, signal_noise: bool = False
) -> ScoreMoments:
    """Moments of the width score at ``parameters`` (n_bin, 4): scale, width, background fraction and slope.

    A background fraction of zero counts as not fitted. With ``signal_noise`` only the signal fluctuates: background was
    added to simulation without noise.
    """
    theta = np.array(parameters, dtype=np.float64)
    theta[:, :2] = np.log(theta[:, :2])
    kind = BACKGROUNDS[background]
    blocks = [np.arange(first, min(first + _ROWS, len(theta))) for first in range(0, len(theta), _ROWS)]
    parts = [_moments(model.rows(rows), kind, theta[rows], signal_noise) for rows in blocks]
    return ScoreMoments(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _moments(
    model: SignalModel, kind: int, theta: Floats, signal_noise: bool
) -> tuple[Floats, Floats, Floats]:
    free = np.ones((len(theta), 4))
    free[:, 2:] = ((theta[:, 2] > 0.0) & (kind > 0))[:, None]
    p, first = expected_shares(model, kind, theta)
    p = np.maximum(p, _FLOOR)
    second = np.empty((len(theta), 4, 4, model.n_mass))
    for c in range(4):
        shift = np.zeros(4)
        shift[c] = _STEPS[c]
        up, down = (expected_shares(model, kind, theta + sign * shift)[1] for sign in (1.0, -1.0))
        second[:, :, c] = (up - down) / (2.0 * _STEPS[c])
    second = (
        0.5 * (second + second.transpose(0, 2, 1, 3)) * (free[:, :, None] * free[:, None, :])[:, :, :, None]
    )
    fraction = free[:, 2:3] * theta[:, 2:3]
    # p = S + fraction dp/dfraction with S the signal by itself, of which 1 - fraction is in the sum.
    noise = (1.0 - fraction) * (p - fraction * first[:, 2]) if signal_noise else p
    return _contracted(p, first * free[:, :, None] / p[:, None], second, noise, free)


def _contracted(
    p: Floats, slope: Floats, second: Floats, noise: Floats, free: Floats
) -> tuple[Floats, Floats, Floats]:
    """The formulas of this module; ``slope`` is L, ``second`` the second derivatives of p."""
    others = free * np.array([1.0, 0.0, 1.0, 1.0])
    information = np.einsum("ni,nai,nbi->nab", p, slope, slope, optimize=True)
    spread = np.einsum("ni,nai,nbi->nab", noise, slope, slope, optimize=True)
    block = others[:, :, None] * others[:, None, :]
    g = np.linalg.inv(information * block + (1.0 - others)[:, :, None] * np.eye(4)) * block
    covariance = g @ spread @ g
    profile = -np.einsum("na,nab->nb", information[:, 1], g)
    profile[:, 1] = 1.0
    curvature = second / p[:, None, None] - slope[:, :, None] * slope[:, None, :]
    mixed = np.einsum("ni,nbci,ndi->nbcd", noise, curvature, slope, optimize=True)
    third = 2.0 * np.einsum("ni,nbi,nci,ndi->nbcd", p, slope, slope, slope, optimize=True)
    one = np.einsum("nbi,ncdi->nbcd", slope, second, optimize=True)
    third -= one + one.transpose(0, 2, 1, 3) + one.transpose(0, 2, 3, 1)
    inner = np.einsum("nbcd,ncd->nb", mixed, g) + 0.5 * np.einsum("nbcd,ncd->nb", third, covariance)
    quadratic = [np.einsum("na,nab,nb->n", profile, matrix, profile) for matrix in (information, spread)]
    return quadratic[0], quadratic[1], np.einsum("nb,nb->n", profile, inner)
