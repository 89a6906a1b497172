"""Figures of the systematic: written whole, without warnings; wrong input is an error. Looks are judged by eye."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musclecal.covariance import chi2_of
from musclecal.errors import InputError
from musclecal.records import Closure, ScaleCalibration, ScaleFactor, ScaleSystematic
from musclecal.validation.systematic_plots import (
    independent_pulls,
    plot_p_values,
    plot_residual_pulls,
    plot_s_toys,
    plot_scaled_closure,
)

N_ETA = 4
EDGES = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
PER_BIN = np.array([[9e-8, 4.5e-7, 0.0], [4.5e-7, 2.5e-6, 0.0], [0.0, 0.0, 4e-10]])
V = np.kron(np.eye(N_ETA), PER_BIN)
ZERO = np.zeros(N_ETA)
CALIBRATION = ScaleCalibration(
    EDGES, ZERO, ZERO, ZERO, V, 1.0, 1, 0.5, 12, 1.0, np.zeros(2), np.arange(2),
    np.full(N_ETA, 0.16), 1.0, 1.0,
)  # fmt: skip
RNG = np.random.default_rng(1)
ROOT = (np.eye(8) + 0.3 * RNG.normal(size=(8, 8))) * np.tile([1e-4, 1e-5], N_ETA)[:, None]
CLOSURE = Closure(
    "Z", "scalar", EDGES, ("A", "M"), (2.0 * ROOT @ RNG.normal(size=8)).reshape(N_ETA, 2), ROOT @ ROOT.T,
    0.5 * ROOT @ ROOT.T, 7.5, 8, 0.4, 1.0, 1, 1.7, np.full(N_ETA, 0.02), 1.0,
)  # fmt: skip
FACTOR = ScaleFactor("Z", 1.7, (1.2, 2.3), (0.9, 3.0), 1.6, (1.2, 2.2), (0.8, 2.9), 20.0, 8, 0.01)
SYSTEMATIC = ScaleSystematic(EDGES, (FACTOR,), replace(FACTOR, name="joint"), "joint", 1.7**2 * V)
TOYS = np.append(np.abs(RNG.normal(1.0, 0.2, 1000)), np.inf)


DRAWN: dict[str, Callable[[Path], None]] = {
    "closure": lambda path: plot_scaled_closure(CLOSURE, CALIBRATION, SYSTEMATIC, path),
    "pulls": lambda path: plot_residual_pulls(CLOSURE, path),
    "large pulls": lambda path: plot_residual_pulls(replace(CLOSURE, values=9.0 * CLOSURE.values), path),
    "p-values": lambda path: plot_p_values({"Z": 0.4, "Z in phi": 3e-9}, path),
    "p of zero and one": lambda path: plot_p_values({"Z": 0.0, "Y1S": 1.0}, path),
    "one p": lambda path: plot_p_values({"Z": 1.0}, path),
    "toys": lambda path: plot_s_toys(FACTOR, TOYS, path),
    "two kinds of toys": lambda path: plot_s_toys(FACTOR, TOYS, path, 1.7 * TOYS),
    "an open interval": lambda path: plot_s_toys(replace(FACTOR, interval_68=(0.0, np.inf)), TOYS, path),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_written(name: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    DRAWN[name](tmp_path / "figure.png")
    pixels = imread(tmp_path / "figure.png")
    assert np.ptp(pixels[..., :3]) > 0.9
    assert 900 <= pixels.shape[1] <= 1700
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no p-value": (lambda path: plot_p_values({}, path), "none given"),
    "p above one": (lambda path: plot_p_values({"Z": 1.1, "Y1S": np.nan}, path), "Z, Y1S"),
    "no toy": (lambda path: plot_s_toys(FACTOR, np.array([np.inf]), path), "no finite toy"),
    "other closure": (
        lambda path: plot_scaled_closure(replace(CLOSURE, resonance="Y1S"), CALIBRATION, SYSTEMATIC, path),
        "closure at Y1S: the systematic knows Z",
    ),
    "other bins": (
        lambda path: plot_scaled_closure(
            replace(CLOSURE, eta_edges=2.0 * EDGES), CALIBRATION, SYSTEMATIC, path
        ),
        "not those of the calibration",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    draw, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_squares_of_independent_pulls_add_up_to_chi2() -> None:
    total = CLOSURE.covariance + CLOSURE.calibration_covariance
    pulls = independent_pulls(CLOSURE)
    assert pulls @ pulls == pytest.approx(chi2_of(CLOSURE.values.ravel(), total).chi2, rel=1e-10)


def test_independent_pulls_are_the_pulls_where_nothing_is_correlated() -> None:
    alone = replace(
        CLOSURE,
        covariance=np.diag(np.full(8, 3e-8)),
        calibration_covariance=np.diag(np.full(8, 1e-8)),
    )
    np.testing.assert_allclose(independent_pulls(alone), CLOSURE.values.ravel() / 2e-4, rtol=1e-12)


def test_import_does_not_load_matplotlib() -> None:
    code = "import sys, musclecal.validation.systematic_plots; print('matplotlib' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == "False"
