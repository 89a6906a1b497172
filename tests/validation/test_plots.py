"""Figures: they are written, whole, without warnings or traces in matplotlib; wrong shapes are errors.

What a figure looks like is judged by eye. The numbers in it are tested here: pulls, sums and projected errors.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musclecal.binning import Binning
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.shapes import SignalModel, gaussian
from musclecal.records import BinFits, Closure, Floats, ScaleCalibration, ScaleParameters
from musclecal.validation import plots
from musclecal.validation.plot_style import probability_text
from musclecal.validation.plots import (
    MassSpectrum,
    plot_calibration,
    plot_closure,
    plot_covariance,
    plot_mass_fit,
    plot_overview,
    plot_pulls,
    plot_scale_at,
    spectrum_of_bin,
    sum_of_bins,
)

N_ETA = 4
EDGES = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
PER_BIN = np.array([[9e-8, 4.5e-7, 0.0], [4.5e-7, 2.5e-6, 0.0], [0.0, 0.0, 4e-10]])  # corr(A, e) = 0.95
FitSample = tuple[Floats, BinFits, SignalModel]


def make_truth() -> ScaleParameters:
    rng = np.random.default_rng(1)
    return ScaleParameters(
        EDGES, rng.normal(0, 3e-4, N_ETA), rng.normal(0, 2e-3, N_ETA), rng.normal(0, 2e-5, N_ETA)
    )


def make_calibration() -> ScaleCalibration:
    rng = np.random.default_rng(2)
    covariance = np.kron(np.eye(N_ETA), PER_BIN)
    shift = np.linalg.cholesky(covariance) @ rng.normal(size=3 * N_ETA)
    values = (make_truth().parameters + shift).reshape(N_ETA, 3)
    return ScaleCalibration(
        eta_edges=EDGES,
        A=values[:, 0],
        e=values[:, 1],
        M=values[:, 2],
        covariance=covariance,
        chi2=190.0,
        ndf=188,
        p_value=0.45,
        rank=3 * N_ETA,
        condition=40.0,
        pulls=rng.normal(size=200),
        bins=np.arange(200),
        mean_k=np.full(N_ETA, 0.16),
        events_fraction=0.98,
        converged_fraction=1.0,
    )


def make_closure(
    names: tuple[str, ...] = ("A", "M"), s: float | None = 1.4, resonance: str = "Y1S"
) -> Closure:
    sigma = np.tile([{"A": 1e-4, "e": 8e-4, "M": 1e-5}[name] for name in names], N_ETA)
    values = (np.random.default_rng(3).normal(size=len(sigma)) * sigma).reshape(N_ETA, len(names))
    return Closure(
        resonance=resonance,
        engine="scalar",
        eta_edges=EDGES,
        parameter_names=names,
        values=values,
        covariance=np.diag(sigma**2),
        calibration_covariance=np.diag(0.25 * sigma**2),
        chi2=7.5,
        ndf=len(sigma),
        p_value=3.2e-5,
        fit_chi2=150.0,
        fit_ndf=140,
        s=s,
        mean_k=np.array([0.15, 0.12, 0.12, 0.15]),
        events_fraction=0.97,
    )


@pytest.fixture(scope="module")
def fit_sample() -> FitSample:
    """Counts, fits and model of three 4D bins: many events, few, none."""
    binning = Binning((-1.0, 0.0, 1.0), (4.0, 10.0), (2.9, 3.3), 40, 3.0969)
    model = gaussian(binning, 3)
    centres = np.sqrt(binning.mass_edges[1:] * binning.mass_edges[:-1])
    shape = np.exp(-0.5 * ((centres / 3.0969 - 1.0002) / 0.011) ** 2)
    expected = 0.85 * shape / shape.sum() + 0.15 / len(centres)
    rng = np.random.default_rng(4)
    counts = np.stack([rng.poisson(n * expected) for n in (5000.0, 300.0, 0.0)]).astype(np.float64)
    return counts, fit_bins(counts, model, "exponential"), model


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG that can be decoded and is not of one colour."""
    from matplotlib.image import imread

    pixels = imread(path)
    assert np.ptp(pixels[..., :3]) > 0.9
    return pixels.shape[1], pixels.shape[0]


def left_nothing_behind(folder: Path, names: set[str]) -> bool:
    """No temporary file, and no figure that pyplot knows."""
    import matplotlib.pyplot as plt

    return {path.name for path in folder.iterdir()} == names and plt.get_fignums() == []


DRAWN: dict[str, Callable[[Path], None]] = {
    "calibration": lambda path: plot_calibration(make_calibration(), path),
    "calibration with truth": lambda path: plot_calibration(make_calibration(), path, make_truth()),
    "scale": lambda path: plot_scale_at(make_calibration(), path),
    "scale with truth": lambda path: plot_scale_at(make_calibration(), path, (10.0,), make_truth()),
    "closure": lambda path: plot_closure(make_closure(), path),
    "closure on a band": lambda path: plot_closure(make_closure(), path, make_calibration()),
    "closure with e": lambda path: plot_closure(
        make_closure(("A", "e", "M"), s=0.6), path, make_calibration()
    ),
    "closure of A": lambda path: plot_closure(make_closure(("A",), s=None), path, make_calibration()),
    "pulls": lambda path: plot_pulls(make_calibration(), path),
    "covariance": lambda path: plot_covariance(make_calibration(), path),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figure_is_written(name: str, tmp_path: Path) -> None:
    DRAWN[name](tmp_path / "figure.png")
    width, height = png_size(tmp_path / "figure.png")
    assert 900 <= width <= 1300
    assert 400 <= height <= 1500
    assert left_nothing_behind(tmp_path, {"figure.png"})


def test_overview_is_1600_by_900(fit_sample: FitSample, tmp_path: Path) -> None:
    counts, fits, model = fit_sample
    spectrum = sum_of_bins(counts, fits, model, "exponential", label=r"J/$\psi$")
    after, before = (make_closure(), make_closure(resonance="Z")), (make_closure(s=None),)
    path = tmp_path / "overview.png"
    plot_overview(make_calibration(), spectrum, after, path, make_truth(), before=before)
    assert png_size(path) == (1600, 900)
    plot_overview(make_calibration(), spectrum, after[:1], path, title="J/psi")
    assert png_size(path) == (1600, 900)
    assert left_nothing_behind(tmp_path, {"overview.png"})


@pytest.mark.parametrize("row", [0, 1, 2])
def test_mass_fit_of_any_bin(row: int, fit_sample: FitSample, tmp_path: Path) -> None:
    spectrum = spectrum_of_bin(*fit_sample, "exponential", row)
    plot_mass_fit(
        spectrum, tmp_path / "bin.png", title="-1 < eta+ < 0, -1 < eta- < 0, 4 < pT+ < 10, 4 < pT- < 10 GeV"
    )
    assert png_size(tmp_path / "bin.png")[0] > 1000
    assert left_nothing_behind(tmp_path, {"bin.png"})


def test_pdf_by_option_and_always_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plot_pulls(make_calibration(), tmp_path / f"{name}.png", pdf=True)
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf == (tmp_path / "two.pdf").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert left_nothing_behind(tmp_path, {"one.png", "one.pdf", "two.png", "two.pdf"})


def test_global_settings_of_matplotlib_are_untouched(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 7.0}):
        before = dict(matplotlib.rcParams.copy())
        plot_pulls(make_calibration(), tmp_path / "one.png")
        assert dict(matplotlib.rcParams.copy()) == before


def test_settings_of_the_user_do_not_matter(tmp_path: Path) -> None:
    import matplotlib

    plot_pulls(make_calibration(), tmp_path / "one.png")
    with matplotlib.rc_context(
        {"font.size": 40.0, "font.family": "a font that nobody has", "axes.grid": True}
    ):
        plot_pulls(make_calibration(), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_import_does_not_load_matplotlib() -> None:
    code = (
        "import sys, musclecal.validation.plots;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('matplotlib', 'mplhep')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.strip() == "[]"


def test_pulls_of_a_bin_make_its_chi2(fit_sample: FitSample) -> None:
    counts, fits, model = fit_sample
    spectrum = spectrum_of_bin(counts, fits, model, "exponential", 0)
    assert np.sum(spectrum.pulls**2) == pytest.approx(fits.chi2[0], rel=1e-10)
    assert spectrum.edges[[0, -1]] == pytest.approx([2.9, 3.3], rel=1e-12)
    assert "scale" in spectrum.text_lines[1]


def test_bin_without_a_fit_says_so(fit_sample: FitSample) -> None:
    spectrum = spectrum_of_bin(*fit_sample, "exponential", 2)
    assert spectrum.text_lines == ("0 events", "fit: no events")
    assert np.all(np.isnan(spectrum.expected))


def test_sum_is_over_usable_bins(fit_sample: FitSample) -> None:
    counts, fits, model = fit_sample
    both = sum_of_bins(counts, fits, model, "exponential")
    one = sum_of_bins(counts, fits, model, "exponential", np.array([True, False, True]))
    assert np.array_equal(both.counts, counts[0] + counts[1])
    assert both.expected.sum() == pytest.approx(both.counts.sum(), rel=1e-12)  # the yield is the count
    alone = spectrum_of_bin(counts, fits, model, "exponential", 0)
    assert np.array_equal(one.counts, counts[0])
    assert np.array_equal(one.expected, alone.expected)
    assert np.array_equal(one.background, alone.background)
    assert 0.0 < both.background.sum() < 0.3 * both.counts.sum()


def test_scale_at_a_momentum_for_each_charge() -> None:
    calibration, pt = make_calibration(), 10.0
    for charge in (+1, -1):
        value, error = plots._scale_at(calibration, pt, charge)
        expected = calibration.A - calibration.e / pt + charge * calibration.M * pt
        variance = PER_BIN[0, 0] - 2.0 * PER_BIN[0, 1] / pt + PER_BIN[1, 1] / pt**2 + PER_BIN[2, 2] * pt**2
        assert value == pytest.approx(1e4 * expected, rel=1e-12)
        assert error == pytest.approx(1e4 * np.sqrt(variance), rel=1e-10)


def test_band_is_what_the_closure_sees() -> None:
    calibration = make_calibration()
    k = make_closure().mean_k
    variance = PER_BIN[0, 0] - 2.0 * k * PER_BIN[0, 1] + k**2 * PER_BIN[1, 1]
    errors = plots._projected_errors(calibration, make_closure())
    assert errors["A"] == pytest.approx(1e4 * np.sqrt(variance), rel=1e-10)
    assert errors["M"] == pytest.approx(1e5 * np.sqrt(PER_BIN[2, 2]), rel=1e-10)
    errors = plots._projected_errors(calibration, make_closure(("A", "e", "M")))
    assert errors["A"] == pytest.approx(1e4 * np.sqrt(PER_BIN[0, 0]), rel=1e-10)
    assert errors["e"] == pytest.approx(1e3 * np.sqrt(PER_BIN[1, 1]), rel=1e-10)


@pytest.mark.parametrize(
    ("p", "text"), [(0.41, "0.41"), (1.0, "1"), (0.0, "0"), (3.24e-5, r"3.2$\times 10^{-5}$")]
)
def test_probabilities_are_short(p: float, text: str) -> None:
    assert probability_text(p) == text


GOOD = make_calibration()
FLAT = MassSpectrum(np.ones(4), np.ones(4), np.zeros(4), np.arange(1.0, 6.0))
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "length of A": (lambda path: plot_calibration(replace(GOOD, A=GOOD.A[:-1]), path), "A of shape"),
    "a nan": (lambda path: plot_calibration(replace(GOOD, M=np.full(N_ETA, np.nan)), path), "M of shape"),
    "covariance": (lambda path: plot_covariance(replace(GOOD, covariance=np.eye(5)), path), "12"),
    "edges": (lambda path: plot_calibration(replace(GOOD, eta_edges=EDGES[::-1]), path), "increase"),
    "other truth": (
        lambda path: plot_calibration(GOOD, path, replace(make_truth(), eta_edges=2.0 * EDGES)),
        "truth: its 4 eta bins",
    ),
    "pt": (lambda path: plot_scale_at(GOOD, path, (10.0, 0.0)), "pts: need positive"),
    "no pt": (lambda path: plot_scale_at(GOOD, path, ()), "pts: need positive"),
    "values": (
        lambda path: plot_closure(replace(make_closure(), values=np.zeros((3, 2))), path),
        "values of shape",
    ),
    "mean_k": (
        lambda path: plot_closure(replace(make_closure(), mean_k=np.ones(3)), path),
        "mean_k of shape",
    ),
    "names": (
        lambda path: plot_closure(replace(make_closure(), parameter_names=("A", "B")), path),
        "unknown param",
    ),
    "other bins": (
        lambda path: plot_closure(replace(make_closure(), eta_edges=2.0 * EDGES), path, GOOD),
        "not those of the calibration",
    ),
    "spectrum": (lambda path: plot_mass_fit(replace(FLAT, edges=np.arange(4.0)), path), "edges of shape"),
    "pulls": (lambda path: plot_pulls(replace(GOOD, pulls=np.empty(0)), path), "pulls: need two"),
    "no closure": (lambda path: plot_overview(GOOD, FLAT, (), path), "one to three"),
    "closure without A": (lambda path: plot_overview(GOOD, FLAT, (make_closure(("M",)),), path), "A, which"),
    "suffix": (lambda path: plot_pulls(GOOD, path.with_suffix(".svg")), "ends in .png"),
    "folder": (lambda path: plot_pulls(GOOD, path.parent / "absent" / "a.png"), "absent"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    draw, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "figure.png")
    assert left_nothing_behind(tmp_path, set())


def test_wrong_rows_are_refused(fit_sample: FitSample) -> None:
    counts, fits, model = fit_sample
    with pytest.raises(ValueError, match="counts of shape"):
        sum_of_bins(counts[:2], fits, model, "exponential")
    with pytest.raises(ValueError, match="usable: shape"):
        sum_of_bins(counts, fits, model, "exponential", np.array([True]))
    with pytest.raises(ValueError, match="no usable"):
        sum_of_bins(counts, fits, model, "exponential", np.zeros(3, dtype=np.bool_))
    with pytest.raises(ValueError, match="row 3"):
        spectrum_of_bin(counts, fits, model, "exponential", 3)
