"""Fixtures of all tests."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

if TYPE_CHECKING:
    from numpy.random import Generator

    from musclecal.records import CorrectionTables

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before numpy is imported: several workers share the processors


_OF_BENCHMARKS = ["test_benchmarks.py", "test_speed.py"]
collect_ignore = [] if (Path(__file__).parents[1] / "benchmarks").is_dir() else _OF_BENCHMARKS


def pytest_report_header() -> str | None:
    """Benchmarks are no part of the package: tests of an installed one do without."""
    return (
        f"no benchmarks beside these tests: without {', '.join(collect_ignore)}" if collect_ignore else None
    )


@pytest.fixture(autouse=True, scope="module")
def _numbers_of_module(request: pytest.FixtureRequest) -> "Generator | None":
    """``RNG`` of a module of tests as it was before the first of them."""
    return copy.deepcopy(getattr(request.module, "RNG", None))


@pytest.fixture(autouse=True)
def _numbers_of_test(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _numbers_of_module: "Generator | None"
) -> None:
    """The random numbers of a test are the same whichever tests ran before it, alone or beside others."""
    if _numbers_of_module is not None:
        monkeypatch.setattr(request.module, "RNG", copy.deepcopy(_numbers_of_module))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real CMS events beside the checkout; tests that need it skip where it is absent."""
    root = Path(__file__).parents[1]
    folder = root / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there")
    return folder.resolve()


@pytest.fixture(scope="session")
def command() -> Callable[..., Result]:
    """``command("closure", "--json", code=0)``: it must end with ``code``, never with an exception or a traceback."""
    from musclecal.cli import main

    def run(*arguments: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        told = f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
        assert result.exception is None or isinstance(result.exception, SystemExit), told
        assert result.exit_code == code, told
        assert "Traceback" not in result.output
        if code == 2:
            assert not result.stdout, told
            assert result.stderr.strip(), told
        return result

    return run


@pytest.fixture(scope="session")
def friend_tables() -> "Callable[..., CorrectionTables]":
    """``friend_tables(smearing=False)``: what friends are tested with, in four bins of eta."""
    return _friend_tables


def _friend_tables(smearing: bool = True) -> "CorrectionTables":
    """Corrections of a per mille, variations of 1e-4, smearing of 1 %."""
    import numpy as np

    from musclecal.export import correction_tables
    from musclecal.records import ScaleCalibration, Smearing

    n_eta, edges = 4, np.linspace(-2.4, 2.4, 5)
    rng = np.random.default_rng(5)
    zeros = np.zeros(n_eta)
    extra = Smearing(edges, np.full(n_eta, 1e-4), zeros, np.full(n_eta, 1e-8), np.full(n_eta, 400.0), zeros)
    calibration = ScaleCalibration(
        edges, rng.normal(0, 1e-3, n_eta), rng.normal(3e-3, 1e-3, n_eta), rng.normal(0, 1e-4, n_eta),
        np.diag(np.tile([1e-8, 1e-7, 1e-10], n_eta)), 1.0, 1, 0.3, 3 * n_eta, 10.0, np.zeros(1),
        np.zeros(1, dtype=np.int64), np.full(n_eta, 0.1), 1.0, 1.0,
    )  # fmt: skip
    return correction_tables(calibration, {"period": "test"}, smearing=extra if smearing else None)
