"""Figures of combinations: written whole, all inputs and sources named, the band at the value. Looks: by eye."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from musclecal.combination_config import CombinationConfig
from musclecal.combination_run import run_combination
from musclecal.errors import InputError
from musclecal.records.combination_case import CombinationRun
from musclecal.validation.combination_plots import (
    largest_impacts,
    largest_scans,
    plot_combination_correlations,
    plot_combination_impacts,
    plot_combination_inputs,
    plot_combination_scans,
    write_combination_figures,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS: dict[str, Callable[[CombinationRun, Path], None]] = {
    "inputs": plot_combination_inputs,
    "correlations": plot_combination_correlations,
    "scans": plot_combination_scans,
    "impacts": plot_combination_impacts,
}


def ran(observables: str = "mmm", **changes: Any) -> CombinationRun:
    inputs = {
        "a": (10.0, 0.5, {"x": 0.4, "y": -0.3, "z": 0.2}),
        "b": (10.8, 0.6, {"x": 0.2, "y": 0.5}),
        "c": (9.6, 0.4, {"x": -0.3, "z": 0.6}),
    }
    table = {
        "title": "three of them",
        "unit": "GeV",
        "inputs": {
            name: {"observable": of, "value": value, "stat": stat, "uncertainties": shifts}
            for of, (name, (value, stat, shifts)) in zip(observables, inputs.items(), strict=True)
        },
        "sources": {"x": {"group": "xy"}, "y": {"group": "xy"}},
        "correlations": [
            {"sources": ["x"], "rho": 0.3, "scan": [0.0, 0.5]},
            {"sources": ["y"], "rho": 0.2, "scan": [0.1, 0.3]},
        ],
    }
    return run_combination(CombinationConfig.model_validate(table | changes))


ONE, TWO = ran(), ran("mmn")
RUNS = {
    "one observable": ONE,
    "two observables": TWO,
    "three observables": ran("mno"),
    "likelihood": ran(method="likelihood"),
    "no title, no unit": ran(title="", unit=""),
    "dollars": ran("mmn", title="$5 and $6", unit="$"),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """Figures that were saved as PNG."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("plot", PLOTS)
def test_figure_is_written(plot: str, run: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    PLOTS[plot](RUNS[run], tmp_path / "figure.png")
    pixels = imread(tmp_path / "figure.png")
    assert np.ptp(pixels[..., :3]) > 0.7
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("run", [ONE, TWO], ids=["one", "two"])
def test_band_and_points_are_at_the_values(
    run: CombinationRun, tmp_path: Path, drawn: "list[Figure]"
) -> None:
    plot_combination_inputs(run, tmp_path / "figure.png")
    base, axes = run.base, drawn[0].axes
    assert base.measured is not None
    assert len(axes) == len(base.observables)
    for a, axis in enumerate(axes):
        chosen = np.flatnonzero(base.measured.design[:, a])
        band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
        np.testing.assert_allclose([band.x0, band.x1], base.values[a] + np.array([-base.down[a], base.up[a]]))
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert labels == [*(base.inputs[i] for i in chosen), "combination"]
        drawn_points: Any = axis.containers[1]
        points = drawn_points.lines[0].get_xdata()
        np.testing.assert_allclose(points, [*base.measured.values[chosen], base.values[a]])
        assert axis.get_xlabel() == f"{base.observables[a]}  [GeV]"
    title = axes[0].get_title(loc="left")
    assert title.startswith("three of them: ")
    assert f"{base.chi2:.1f}/{base.ndf}, p = {base.p_value:.2g}" in title


def test_errors_of_the_inputs_are_those_of_the_file() -> None:
    inputs = ONE.base.measured
    assert inputs is not None
    np.testing.assert_allclose(inputs.stat, [0.5, 0.6, 0.4])
    np.testing.assert_allclose(inputs.errors**2, [0.54, 0.65, 0.61])
    assert inputs.covariance[0, 1] == pytest.approx(0.3 * 0.08 - 0.2 * 0.15)
    likelihood = RUNS["likelihood"].base.measured
    assert likelihood is not None
    np.testing.assert_allclose(likelihood.covariance, inputs.covariance)


@pytest.mark.parametrize("method", ["closed form", "likelihood"])
def test_scans_know_their_nominal_correlation(method: str) -> None:
    scans = {scan.name: scan for scan in ran(method=method).base.scans}
    assert {name: scan.nominal for name, scan in scans.items()} == {
        "x": pytest.approx(0.3),
        "y": pytest.approx(0.2),
    }


@pytest.mark.parametrize("method", ["closed form", "likelihood"])
@pytest.mark.parametrize(("y", "on_it"), [(0.18, True), (0.2, False)])
def test_a_joint_scan_may_miss_the_nominal_correlations(method: str, y: float, on_it: bool) -> None:
    rules = [
        {"sources": ["x"], "rho": 0.3, "scan": [0.0, 0.5], "scan_name": "both"},
        {"sources": ["y"], "rho": y, "scan": [0.0, 0.3], "scan_name": "both"},
    ]
    (scan,) = ran(method=method, correlations=rules).base.scans
    assert np.isfinite(scan.nominal) == on_it


def test_curves_go_through_no_change_at_the_nominal(tmp_path: Path, drawn: "list[Figure]") -> None:
    plot_combination_scans(ONE, tmp_path / "figure.png")
    axes = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in axes] == [scan.name for scan in largest_scans(ONE.base)]
    for axis in axes:
        lines = {line.get_label(): line for line in axis.get_lines()}
        ((nominal, zero),) = np.asarray(lines["nominal"].get_xydata())
        assert zero == 0.0
        for name in ("value", "uncertainty"):
            rho, change = np.asarray(lines[name].get_xydata()).T
            tolerance = 0.02 * np.ptp(change)  # Between two points the curve is not straight.
            assert np.interp(nominal, rho, change) == pytest.approx(0.0, abs=tolerance)


def test_a_line_ends_where_nothing_is_possible(tmp_path: Path) -> None:
    scan = ONE.base.scans[0]
    values, errors, chi2 = scan.values.copy(), scan.errors.copy(), scan.chi2.copy()
    values[:5] = errors[:5] = chi2[:5] = np.nan
    broken = replace(scan, values=values, errors=errors, chi2=chi2)
    plot_combination_scans(replace(ONE, base=replace(ONE.base, scans=(broken,))), tmp_path / "figure.png")
    nothing = replace(
        scan, values=np.full_like(values, np.nan), errors=errors, chi2=np.full_like(chi2, np.nan)
    )
    with pytest.raises(InputError, match="no scan"):
        plot_combination_scans(replace(ONE, base=replace(ONE.base, scans=(nothing,))), tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("run", [ONE, TWO], ids=["one", "two"])
def test_impacts_stand_by_size(run: CombinationRun, tmp_path: Path, drawn: "list[Figure]") -> None:
    plot_combination_impacts(run, tmp_path / "figure.png")
    base, axes = run.base, drawn[0].axes
    names = largest_impacts(base)
    sizes = [np.max(base.split[name] / base.errors) for name in names]
    assert sizes == sorted(sizes, reverse=True)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [*names, "group xy"]
    for a, axis in enumerate(axes):
        for bars, parts, groups in zip(
            axis.containers, (base.split, base.frozen), (base.groups_split, base.groups_frozen), strict=True
        ):
            widths = [bar.get_width() for bar in bars]
            np.testing.assert_allclose(widths, [*(parts[name][a] for name in names), groups["xy"][a]])


@pytest.mark.parametrize(("run", "shapes"), [(ONE, [(3, 3)]), (TWO, [(3, 3), (2, 2)])], ids=["one", "two"])
def test_matrices(
    run: CombinationRun, shapes: list[tuple[int, int]], tmp_path: Path, drawn: "list[Figure]"
) -> None:
    plot_combination_correlations(run, tmp_path / "figure.png")
    axes = drawn[0].axes
    assert [np.asarray(axis.images[0].get_array()).shape for axis in axes] == shapes
    np.testing.assert_allclose(np.diagonal(np.asarray(axes[0].images[0].get_array())), 100.0)
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["a", "b", "c"]
    assert axes[0].texts[0].get_text() == "100"


def test_all_of_a_run(tmp_path: Path) -> None:
    written = write_combination_figures(ONE, tmp_path)
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert {path.name for path in written} == {
        f"combination_{name}.{kind}" for name in PLOTS for kind in ("png", "pdf")
    }


def test_what_is_not_there_is_not_drawn_and_old_figures_go(tmp_path: Path) -> None:
    write_combination_figures(ONE, tmp_path)
    less = replace(ONE, base=replace(ONE.base, scans=(), measured=None))
    write_combination_figures(less, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "combination_impacts.pdf", "combination_impacts.png"
    ]  # fmt: skip
    for plot in (plot_combination_inputs, plot_combination_correlations, plot_combination_scans):
        with pytest.raises(InputError, match="figure of a combination"):
            plot(less, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_import_does_not_load_matplotlib() -> None:
    code = "import sys, musclecal.validation.combination_plots; print('matplotlib' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == "False"
