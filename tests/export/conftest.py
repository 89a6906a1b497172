"""A calibration to export, made for each test as it wants it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from musclecal.binning import equal_eta_edges
from musclecal.records import ScaleCalibration


def _calibration(n_eta: int = 6, **changes: Any) -> ScaleCalibration:
    """A, e, M of realistic size with a covariance that couples all eta bins; ``changes`` replace fields."""
    rng = np.random.default_rng(n_eta)
    sigma = np.tile([2e-5, 2e-4, 2e-6], n_eta)
    block = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
    common = rng.normal(size=(3 * n_eta, 4)) * 0.3
    fields: dict[str, Any] = {
        "eta_edges": np.array(equal_eta_edges(n_eta, 2.4)),
        "A": rng.normal(0.0, 3e-4, n_eta),
        "e": rng.normal(2e-3, 1e-3, n_eta),
        "M": rng.normal(0.0, 3e-5, n_eta),
        "covariance": (np.kron(np.eye(n_eta), block) + common @ common.T) * np.outer(sigma, sigma),
        "chi2": 1.0,
        "ndf": 1,
        "p_value": 0.3,
        "rank": 3 * n_eta,
        "condition": 10.0,
        "pulls": np.zeros(1),
        "bins": np.zeros(1, dtype=np.int64),
        "mean_k": np.full(n_eta, 0.1),
        "events_fraction": 1.0,
        "converged_fraction": 1.0,
    }
    return ScaleCalibration(**(fields | changes))


@pytest.fixture
def calibration() -> Callable[..., ScaleCalibration]:
    """``calibration(n_eta, field=value, ...)``."""
    return _calibration
