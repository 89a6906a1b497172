r"""Functions of combined observables, with their covariance, source by source.

=============  ==================================  ============================================================
difference     :math:`x_a - x_b`                   (1, -1)
ratio          :math:`x_a / x_b`                   :math:`(1/x_b, -x_a/x_b^2)`
normalised     :math:`f_i = x_i / \sum_j x_j`      :math:`\partial f_i/\partial x_j = (\delta_{ij} - f_i)/\sum_k x_k`
=============  ==================================  ============================================================

The covariance of normalised bins is singular (their sum is 1): a chi2 of them leaves out one bin, any one.

Not for: ratios of observables that are not many standard deviations from 0.
"""

import numpy as np

from musclecal.covariance import propagate
from musclecal.errors import InputError
from musclecal.records import Combined, Derived, Floats

__all__ = ["difference", "normalised", "ratio"]


def difference(combined: Combined, first: int, second: int) -> Derived:
    """Observable ``first`` less ``second``."""
    _refuse_unknown(combined, first, second)
    jacobian = np.zeros((1, len(combined.values)))
    jacobian[0, first] += 1.0
    jacobian[0, second] -= 1.0
    names = combined.observables
    return _derived(combined, (f"{names[first]} - {names[second]}",), jacobian @ combined.values, jacobian)


def ratio(combined: Combined, first: int, second: int) -> Derived:
    """Observable ``first`` over ``second``."""
    _refuse_unknown(combined, first, second)
    above, below = combined.values[first], combined.values[second]
    if below == 0.0:
        raise InputError(f"ratio: {combined.observables[second]} is 0")
    jacobian = np.zeros((1, len(combined.values)))
    jacobian[0, first] += 1.0 / below
    jacobian[0, second] -= above / below**2
    names = combined.observables
    return _derived(combined, (f"{names[first]} / {names[second]}",), np.array([above / below]), jacobian)


def normalised(combined: Combined) -> Derived:
    """Each observable over the sum of all."""
    total = float(combined.values.sum())
    if total == 0.0:
        raise InputError("normalised: the observables add up to 0")
    share = combined.values / total
    jacobian = (np.eye(len(share)) - share[:, None]) / total
    return _derived(combined, combined.observables, share, jacobian)


def _derived(combined: Combined, names: tuple[str, ...], values: Floats, jacobian: Floats) -> Derived:
    parts = {name: propagate(jacobian, part) for name, part in combined.by_source.items()}
    return Derived(names, values, propagate(jacobian, combined.covariance), jacobian, parts)


def _refuse_unknown(combined: Combined, *observables: int) -> None:
    m = len(combined.values)
    for a in observables:
        if not 0 <= a < m:
            raise InputError(f"there is no observable {a} among {m}")
