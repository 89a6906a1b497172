"""A calibration to export, made for each test as it wants it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.binning import equal_eta_edges
from musclecal.export import correction_tables
from musclecal.records import Closure, CorrectionTables, NuisanceGroup, ScaleCalibration, Smearing


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


def _full_tables(n_eta: int = 6, **options: Any) -> CorrectionTables:
    """With everything that tables may hold: s, variations of a closure, smearing in other bins, two closures."""
    calibration = _calibration(n_eta)
    rng = np.random.default_rng(n_eta + 1)
    shifts = rng.normal(size=(4, 2 * n_eta)) * np.tile([1e-5, 1e-6], n_eta)
    group = NuisanceGroup(
        "closure_Z", calibration.eta_edges, ("A", "M"), tuple(f"closure_Z{i}" for i in range(4)), shifts
    )
    edges = np.linspace(-2.4, 2.4, 5)
    b = np.array([1e-5, 0.0, 0.0, 1e-5])
    smearing = Smearing(
        edges, np.full(4, 2e-5), b, np.array([1e-9, 2e-9, -1e-7, 1e-9]), np.full(4, 400.0), np.zeros(4)
    )
    closures = [
        _closure("Z", "AM", calibration.eta_edges),
        _closure("Y1S", "AeM", np.array([-2.4, 0.0, 2.4])),
    ]
    given: dict[str, Any] = {
        "s": 2.1,
        "others": [group],
        "smearing": smearing,
        "closures": closures,
    } | options
    return correction_tables(calibration, {"period": "2016H", "config": "sha256 0123"}, **given)


def _closure(resonance: str, parameters: str, eta_edges: NDArray[np.float64]) -> Closure:
    rng = np.random.default_rng(len(eta_edges))
    shape = (len(eta_edges) - 1, len(parameters))
    variances = np.diag(rng.uniform(1e-12, 1e-10, shape[0] * shape[1]))
    return Closure(
        resonance, "template", eta_edges, tuple(parameters), rng.normal(0.0, 1e-5, shape), variances, variances,
        1.0, 1, 0.3, 1.0, 1, 1.0, np.full(shape[0], 0.02), 1.0,
    )  # fmt: skip


@pytest.fixture
def full_tables() -> Callable[..., CorrectionTables]:
    """``full_tables(n_eta, option of correction_tables=value, ...)``."""
    return _full_tables
