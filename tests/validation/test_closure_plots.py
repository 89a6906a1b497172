"""Figures of template closures: written whole, without warnings; wrong input is an error. Looks are judged by eye."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musclecal.binning import TemplateBinning
from musclecal.errors import InputError
from musclecal.records import ClosureSplits, SplitTest, TemplateHistogram
from musclecal.validation.closure_plots import plot_masses, plot_splits

RNG = np.random.default_rng(1)
BINNING = TemplateBinning(
    (-1.0, 0.0, 1.0), (-1.0, 0.0, 1.0), (10.0, 90.0), (5.0, 95.0), (80.0, 100.0), 12, 91.0
)


def histogram(events: float, bins: list[int] | None = None, *, empty: int | None = None) -> TemplateHistogram:
    """A peak of ``events`` per 4D bin; the mass bin ``empty`` has none."""
    numbers = np.arange(BINNING.n_bins) if bins is None else np.array(bins)
    mass = np.linspace(80.0, 100.0, 13)[:-1] + 0.8
    shape = np.exp(-(((mass - 91.0) / 4.0) ** 2))
    counts = RNG.poisson(events * shape / shape.sum(), (len(numbers), 12)).astype(np.float64)
    if empty is not None:
        counts[:, empty] = 0.0
    return TemplateHistogram(
        BINNING, numbers, counts, np.zeros((*counts.shape, 8)), np.full((len(numbers), 2), 0.02)
    )


def split(name: str, *parts: str) -> SplitTest:
    values = RNG.normal(size=(len(parts), 2)) * [1e-4, 1e-5]
    errors = np.tile([1e-4, 1e-5], (len(parts), 1))
    return SplitTest(name, parts, ("A", "M"), values, errors, 3.0, 4, 0.4)


DATA, SIMULATION = histogram(50.0), histogram(200.0)
HARMONICS = tuple(split(f"phi harmonic {h}", "cos", "sin") for h in (1, 2, 3))
SECTORS = split("phi sectors", *(f"phi sector {s}" for s in range(12)))
RUNS = split("run ranges", "runs 0 to 99", "runs 100 to 199", "runs 200 to 299")
ORDER = split("charge order", "pT+ > pT-", "pT+ < pT-")

DRAWN: dict[str, Callable[[Path], None]] = {
    "masses": lambda path: plot_masses(DATA, SIMULATION, path, title="Z: calibrated muons"),
    "weighted simulation": lambda path: plot_masses(
        DATA, replace(SIMULATION, variances=2.0 * SIMULATION.counts), path
    ),
    "simulation without data in a bin": lambda path: plot_masses(histogram(50.0, [0, 2]), SIMULATION, path),
    "an empty mass bin": lambda path: plot_masses(histogram(50.0, empty=0), histogram(200.0, empty=0), path),
    "all splits": lambda path: plot_splits(ClosureSplits("Z", (*HARMONICS, SECTORS, ORDER, RUNS)), path),
    "halves alone": lambda path: plot_splits(ClosureSplits("Y1S", (ORDER,)), path),
    "a p-value of zero": lambda path: plot_splits(
        ClosureSplits("Z", (replace(HARMONICS[0], p_value=0.0),)), path
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_written(name: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    DRAWN[name](tmp_path / "figure.png")
    picture = imread(tmp_path / "figure.png")
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_a_vector_graphic_by_option(tmp_path: Path) -> None:
    plot_masses(DATA, SIMULATION, tmp_path / "masses.png", pdf=True)
    plot_splits(ClosureSplits("Z", HARMONICS), tmp_path / "splits.png", pdf=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "masses.png", "masses.pdf", "splits.png", "splits.pdf",
    }  # fmt: skip


def test_other_axes_are_refused(tmp_path: Path) -> None:
    other = replace(SIMULATION, binning=replace(BINNING, muon_pt=(6.0, 95.0)))
    with pytest.raises(InputError, match="data and simulation have different axes"):
        plot_masses(DATA, other, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_no_bin_in_common_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no 4D bin"):
        plot_masses(histogram(50.0, [0]), histogram(50.0, [1]), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_no_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split"):
        plot_splits(ClosureSplits("Z", ()), tmp_path / "figure.png")
