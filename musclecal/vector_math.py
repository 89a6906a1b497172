"""Elementary functions without a branch: a loop over them is vectorised by the compiler, as one over math.exp is not.

Not for: arguments outside of the ranges given, or code that is not compiled (numpy).
"""

import numpy as np

from musclecal.compiled import innermost

__all__ = ["expm1", "log"]

_LN_2 = 0.6931471805599453
_BITS_OF_ROOT_HALF = np.int64(0x3FE6A09E667F3BCD)
_MANTISSA = np.int64(52)


@innermost
def expm1(x: float) -> float:
    """e^x - 1 to 1e-14 of it for abs(x) < 5, 3e-13 for abs(x) < 15.

    The series at x/64, and six times e^2x - 1 = (e^x - 1) (2 + (e^x - 1)).
    """
    r = 0.015625 * x
    y = r * (1.0 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040 + r * (
        1 / 40320 + r * (1 / 362880 + r / 3628800)))))))))  # fmt: skip
    y = y * (2.0 + y)
    y = y * (2.0 + y)
    y = y * (2.0 + y)
    y = y * (2.0 + y)
    y = y * (2.0 + y)
    return y * (2.0 + y)


@innermost
def log(x: float) -> float:
    """ln x to rounding of max(abs(ln x), 1), for normal positive x; nan for nan and inf.

    x = 2^k y with y from sqrt(1/2) to sqrt(2), and ln y = 2 artanh((y - 1)/(y + 1)) as a series.
    """
    bits = np.float64(x).view(np.int64)
    k = (bits - _BITS_OF_ROOT_HALF) >> _MANTISSA
    y = np.int64(bits - (k << _MANTISSA)).view(np.float64)
    s = (y - 1.0) / (y + 1.0)
    z = s * s
    series = 1.0 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13 + z * (1 / 15 + z * (
        1 / 17 + z * (1 / 19 + z / 21)))))))))  # fmt: skip
    return k * _LN_2 + 2.0 * s * series + (x - x)
