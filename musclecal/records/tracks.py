"""Tracks with their hits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.records.arrays import Floats, Ints

__all__ = ["Tracks"]


@dataclass(frozen=True)
class Tracks:
    """Stub."""

    charge: NDArray[np.int8]
    module: NDArray[np.int32]
    u: Floats
    v: Floats
    sigma_u: Floats
    sigma_v: Floats
    event: Ints
