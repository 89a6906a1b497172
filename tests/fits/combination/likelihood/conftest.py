"""Problems that several tests of combinations need."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musclecal.fits.combination.likelihood_input import from_hessian, from_table
from musclecal.records.combination_likelihood import (
    CorrelationRange,
    CorrelationScan,
    LikelihoodInput,
    LikelihoodProblem,
)

REFERENCE = Path(__file__).parents[4] / "../shared/reference/convino"

INCLUDED = "\n\nsys_d2 = (0.9) sys_c1\n"
"""The file that the example includes, one line; it is not among the shared inputs."""


@pytest.fixture
def convino_example(tmp_path: Path) -> Path:
    """Main file of Convino's own example beside the checkout, in a copy that has the included file."""
    if not REFERENCE.is_dir():
        pytest.skip(f"no inputs of Convino's example: {REFERENCE} is not there")
    folder = tmp_path / "convino"
    shutil.copytree(REFERENCE.resolve(), folder)
    (folder / "extra_correlations.txt").write_text(INCLUDED)
    return folder / "exampleconfig.txt"


def profiled(
    name: str, n_estimate: int, n_source: int, seed: int, pulls: bool = True, relative: int = 0
) -> LikelihoodInput:
    """A fit that constrains its sources with data of its own; the first ``relative`` sources are relative."""
    rng = np.random.default_rng(seed)
    sources = [f"{name}_s{n}" for n in range(n_source)]
    estimates = {f"{name}_e{n}": float(rng.normal(172.0, 1.0)) for n in range(n_estimate)}
    response = rng.normal(0.0, 0.4, (n_estimate, n_source))
    weight = np.diag(rng.uniform(1.0, 4.0, n_estimate))
    data = rng.normal(0.0, 0.3, (n_source + 3, n_source))
    kappa = -weight @ response
    inside = np.eye(n_source) + data.T @ data + response.T @ weight @ response
    return from_hessian(
        name,
        [*sources, *estimates],
        np.block([[inside, kappa.T], [kappa, weight]]),
        estimates,
        fitted={source: float(rng.normal(0.0, 0.4)) for source in sources} if pulls else {},
        relative=sources[:relative],
    )


def tabulated(
    name: str, n_estimate: int, n_source: int, seed: int, relative: int = 0, asymmetric: int = 0
) -> LikelihoodInput:
    """A table of shifts; the first sources are relative, the last ones asymmetric."""
    rng = np.random.default_rng(seed)
    sources = [f"{name}_s{n}" for n in range(n_source)]
    up = rng.normal(0.0, 0.5, (n_estimate, n_source))
    down = -up
    if asymmetric:
        down[:, -asymmetric:] *= rng.uniform(0.7, 1.3, (n_estimate, asymmetric))
    estimates = {f"{name}_e{n}": float(rng.normal(172.0, 1.0)) for n in range(n_estimate)}
    covariance = np.diag(rng.uniform(0.2, 0.6, n_estimate) ** 2)
    return from_table(name, estimates, covariance, sources, up, down, relative=sources[:relative])


def combined(inputs: tuple[LikelihoodInput, ...], n_obs: int = 2, rho: float = 0.5) -> LikelihoodProblem:
    """Estimates n, n + n_obs, ... measure observable n; the first three sources of the first two inputs correlate."""
    estimates = [estimate for one in inputs for estimate in one.estimates]
    ranges = [
        CorrelationRange(first, second, rho, rho - 0.3, rho + 0.3)
        for first, second in zip(inputs[0].sources[:3], inputs[1].sources[:3], strict=True)
    ] if len(inputs) > 1 else []  # fmt: skip
    return LikelihoodProblem(
        inputs=inputs,
        observables=tuple((f"obs{n}", tuple(estimates[n::n_obs])) for n in range(n_obs)),
        correlations=tuple(ranges),
        scans=tuple(CorrelationScan(one.first, (one,)) for one in ranges),
    )


@pytest.fixture
def make_profiled() -> Callable[..., LikelihoodInput]:
    return profiled


@pytest.fixture
def make_tabulated() -> Callable[..., LikelihoodInput]:
    return tabulated


@pytest.fixture
def make_combined() -> Callable[..., LikelihoodProblem]:
    return combined
