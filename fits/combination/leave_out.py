r"""The combination without each input in turn, without solving again.

To leave input i out is to give it a free shift d. With :math:`P = V^{-1} - V^{-1} U\,\mathrm{cov}\,U^T V^{-1}`

.. math:: d = \frac{(P y)_i}{P_{ii}}, \quad x_{(i)} = x - W_i d, \quad
          \mathrm{cov}_{(i)} = \mathrm{cov} + \frac{W_i W_i^T}{P_{ii}}, \quad
          \chi^2_{(i)} = \chi^2 - \frac{(P y)_i^2}{P_{ii}} .

d is the input less what all others say of it, and 1/P_ii its variance.
"""

import numpy as np

from musclecal.records import Combined, LeftOut

__all__ = ["leave_one_out"]

_ALONE = 1e-10
_COUNTS = 1e-6


def leave_one_out(combined: Combined) -> LeftOut:
    """All n combinations of n - 1 inputs. Relative uncertainties are not scaled again."""
    precision, weights = np.diagonal(combined.residual_precision), combined.weights.T
    variance = np.diagonal(combined.input_covariance)
    # V_ii P_ii is 1 for an input without correlations that hardly counts, 0 for one that nothing else tests.
    tested = precision * variance > _ALONE
    freed = np.where(tested, 1.0 / np.where(tested, precision, 1.0), 0.0)
    excess = combined.residual_precision @ combined.residuals
    shift = excess * freed
    values = combined.values - weights * shift[:, None]
    covariance = combined.covariance + weights[:, :, None] * weights[:, None, :] * freed[:, None, None]
    lost = ~tested[:, None] & (np.abs(weights) * np.sqrt(variance)[:, None] > _COUNTS * combined.errors)
    values[lost] = np.nan
    covariance[lost[:, :, None] | lost[:, None, :]] = np.nan
    return LeftOut(
        values=values,
        covariance=covariance,
        chi2=np.maximum(combined.chi2 - excess * shift, 0.0),
        ndf=combined.ndf - tested.astype(np.int64),
        compatibility=np.where(tested, shift * np.sqrt(precision), np.nan),
    )
