"""What the templates of W and Z share: edges, a muon at a threshold, sums over blocks of draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from musclecal.boson_simulation import DRAWS
from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.records import Floats

__all__ = [
    "EVENTS_PER_NB",
    "BlockSum",
    "check_increasing",
    "equal_edges",
    "number_of_blocks",
    "threshold_terms",
]

EVENTS_PER_NB = 1e6
"""Events of 1 nb in 1/fb."""


def check_increasing(edges: Sequence[float], axis: str) -> None:
    values = np.asarray(edges, dtype=np.float64)
    if (
        values.ndim != 1
        or len(values) < 2
        or not np.all(np.isfinite(values))
        or np.any(np.diff(values) <= 0.0)
    ):
        raise InputError(f"{axis}: need at least two finite, increasing edges, got {values.tolist()}")


def equal_edges(low: float, high: float, step: float) -> tuple[float, ...]:
    n = round((high - low) / step)
    return tuple(float(x) for x in np.round(np.linspace(low, high, n + 1), 9))


@kernel
def threshold_terms(threshold: float, k: float, square: float) -> tuple[float, float, float]:
    """Probability that a muon of curvature ``k`` is measured below ``threshold`` (1/GeV), and its derivatives with
    respect to the threshold (GeV) and to ``square`` = (sigma_k/k)^2 > 0.

    Phi(u), phi(u)/(sigma k) and -u phi(u)/(2 sigma^2) with u = (threshold/k - 1)/sigma.
    """
    sigma = math.sqrt(square)
    u = (threshold / k - 1.0) / sigma
    density = math.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)
    return 0.5 * math.erfc(-u * math.sqrt(0.5)), density / (sigma * k), -0.5 * density * u / square


@dataclass
class BlockSum:
    """Sums over blocks, and the variance of one of the sums from its scatter between blocks."""

    total: Floats | None = None
    first: Floats | None = None
    second: Floats | None = None
    n_blocks: int = 0

    def add(self, values: Floats, watched: Floats) -> None:
        self.total = values if self.total is None else self.total + values
        self.first = watched.copy() if self.first is None else self.first + watched
        self.second = watched**2 if self.second is None else self.second + watched**2
        self.n_blocks += 1

    def variance(self) -> Floats:
        """Of the sum of ``watched``."""
        assert self.first is not None
        assert self.second is not None
        scatter = self.second - self.first**2 / self.n_blocks
        return np.asarray(np.clip(scatter, 0.0, None) * self.n_blocks / (self.n_blocks - 1))


def number_of_blocks(n_draws: float) -> int:
    blocks = math.ceil(n_draws / DRAWS)
    if blocks < 2:
        raise InputError(f"n_draws: need more than {DRAWS}, got {n_draws:g}")
    return blocks
