"""The expected purity on exponential backgrounds that are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr

from musclecal.binning import TemplateBinning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.scale_information import eta_design, scale_information, solve_information
from musclecal.fits.template_background import expected_purity
from musclecal.fits.template_closure import bin_information, log_derivatives
from musclecal.records import Floats, TemplateHistogram

RNG = np.random.default_rng(74)
AXES = TemplateBinning(
    equal_eta_edges(6, 2.4), (-1.0, 0.0, 1.0), (3.0, 7.0, 60.0), (4.0, 50.0), (2.85, 3.25), 40, 3.0969
)
Z = np.linspace(-1.0, 1.0, 40)
SIGMA = 0.03


def signal(shift: float = 0.0, width: float = 0.0) -> Floats:
    """(n_mass,) a peak with a tail; ``shift`` of ln k of both muons moves the mass by -shift."""
    x = (AXES.mass_centres - 3.0969 * (1.0 - shift)) / np.sqrt(SIGMA**2 + 0.5 * 3.0969**2 * width)
    density = np.exp(-0.5 * x**2) + 0.03 * ndtr(-x - 2.0)
    return np.asarray(density / density.sum())


def sample(binning: TemplateBinning, shape: Floats, events: Floats) -> TemplateHistogram:
    """The same shape in all 4D bins, with derivatives by A and width shared by the two muons."""
    counts = events[:, None] * shape
    step = 1e-4
    by_shift = (signal(step) - signal(-step)) / (2.0 * step)
    by_width = (signal(0.0, step) - signal(0.0, -step)) / (2.0 * step)
    derivatives = np.zeros((*counts.shape, 8))
    derivatives[:, :, [0, 4]] = 0.5 * events[:, None, None] * by_shift[:, None]
    derivatives[:, :, [3, 7]] = 0.5 * events[:, None, None] * by_width[:, None]
    return TemplateHistogram(
        binning, np.arange(binning.n_bins), counts, derivatives, np.full((len(counts), 2), 0.1)
    )


def simulation(binning: TemplateBinning = AXES) -> TemplateHistogram:
    return sample(binning, signal(), np.full(binning.n_bins, 4e4))


def with_background(
    shape: Floats, background: Floats, share: Floats, binning: TemplateBinning = AXES
) -> tuple[TemplateHistogram, Floats]:
    """Data of 1e4 events per 4D bin, ``share`` (n_bins,) of them background; and the purity."""
    data = sample(binning, shape, 1e4 * (1.0 - share))
    extra = 1e4 * share[:, None] * background / background.sum()
    pure = data.counts / (data.counts + extra)
    return replace(data, counts=data.counts + extra), pure


@pytest.mark.parametrize("slope", [-1.0, -0.4, 0.0, 0.6])
def test_a_known_background_is_found(slope: float) -> None:
    share = np.full(AXES.n_bins, 0.15)
    data, pure = with_background(signal(), np.exp(slope * Z), share)
    np.testing.assert_allclose(expected_purity(data, simulation()), pure, atol=3e-3)


@pytest.mark.parametrize("curvature", [-0.35, -0.1, 0.2])
def test_a_curved_background_is_found(curvature: float) -> None:
    """As a cut on the muons' pT makes it, in bins of pT scaled by the mass."""
    share = np.full(AXES.n_bins, 0.3)
    data, pure = with_background(signal(), np.exp(0.4 * Z + curvature * Z**2), share)
    np.testing.assert_allclose(expected_purity(data, simulation()), pure, atol=3e-3)


def test_a_curved_background_does_not_move_the_scale() -> None:
    """The peak has a tail on one side, so a purity that is wrong at both ends is not symmetric to it."""
    share = np.full(AXES.n_bins, 0.3)
    data, _ = with_background(signal(), np.exp(0.4 * Z - 0.2 * Z**2), share)
    simulated = simulation()
    purity = expected_purity(data, simulated)
    bins = bin_information(data, simulated, log_derivatives(data, simulated), purity=purity)
    information = scale_information(bins, "Jpsi")
    solution = solve_information(information, eta_design(information, ("A", "width")))
    np.testing.assert_allclose(solution.values[::2], 0.0, atol=2e-6)


def test_it_may_differ_between_groups() -> None:
    """pT bins with a background of their own."""
    share = np.where(AXES.unravel(np.arange(AXES.n_bins))[3] == 0, 0.3, 0.05)
    data, pure = with_background(signal(), np.exp(-0.4 * Z), share)
    np.testing.assert_allclose(expected_purity(data, simulation()), pure, atol=3e-3)


def test_a_shifted_and_wider_peak_is_not_background() -> None:
    """Beside the peak, where a purity that is too low would be taken for signal."""
    beside = (Z < -0.3) | (Z > 0.8)
    share = np.full(AXES.n_bins, 0.15)
    for shape in (signal(shift=5e-4), signal(width=1e-5)):
        data, pure = with_background(shape, np.exp(-0.4 * Z), share)
        purity = expected_purity(data, simulation())
        np.testing.assert_allclose(purity[:, beside], pure[:, beside], atol=2e-2)
        fraction = 1.0 - (purity * data.counts).sum() / data.counts.sum()
        assert fraction == pytest.approx(0.15, abs=0.01)


def test_without_background_all_is_signal() -> None:
    data = sample(AXES, signal(), np.full(AXES.n_bins, 500.0))
    noisy = replace(data, counts=RNG.poisson(data.counts).astype(float))
    purity = expected_purity(noisy, simulation())
    assert (purity * noisy.counts).sum() / noisy.counts.sum() > 0.985
    exact = expected_purity(data, simulation())
    assert (exact * data.counts).sum() / data.counts.sum() > 0.999


def test_with_poisson_counts_the_amount_is_right() -> None:
    share = np.full(AXES.n_bins, 0.15)
    data, _ = with_background(signal(), np.exp(-0.4 * Z), share)
    fractions = []
    for _ in range(10):
        noisy = replace(data, counts=RNG.poisson(0.02 * data.counts).astype(float))
        purity = expected_purity(noisy, simulation())
        fractions.append(1.0 - (purity * noisy.counts).sum() / noisy.counts.sum())
    assert np.mean(fractions) == pytest.approx(0.15, abs=0.006)


def own_widths(binning: TemplateBinning) -> Floats:
    """(n_bins, n_mass) peaks whose width and place follow eta of mu+ (not of mu-) and pT."""
    plus, _, _, p = binning.unravel(np.arange(binning.n_bins))
    widths, shifts = 4e-4 * plus / binning.n_eta + 1e-4 * p, 2e-3 * plus / binning.n_eta - 1e-3 * p
    return np.stack([signal(shift, width) for shift, width in zip(shifts, widths, strict=True)])


def test_bins_keep_their_own_peaks() -> None:
    """Not those of the group, of the neighbourhood, of the class of width, or of the bin with the charges exchanged."""
    fine = replace(AXES, eta_edges=equal_eta_edges(24, 2.4))
    shapes = own_widths(fine)
    flat = sample(fine, signal(), np.full(fine.n_bins, 1e4))
    simulated = replace(flat, counts=1e4 * shapes)
    background = np.exp(-0.4 * Z)
    extra = 0.3 / 0.7 * 1e4 * background / background.sum()
    data = replace(flat, counts=1e4 * shapes + extra)
    plus, minus, _, _ = fine.unravel(np.arange(fine.n_bins))
    inside = (plus > 1) & (plus < 22) & (minus > 1) & (minus < 22)
    wrong = np.abs(expected_purity(data, simulated) - 1e4 * shapes / data.counts)[inside]
    assert np.quantile(wrong, 0.99) < 0.01  # 0.03 with the average of the class
    assert np.mean(wrong) < 0.002


@pytest.mark.parametrize("window", [(2.85, 3.25), (2.5, 3.7)])
def test_peaks_are_tabulated_over_the_whole_window(window: tuple[float, float]) -> None:
    """Narrow peaks in wide windows: twenty widths below the peak there is still the tail, and nothing is negative."""
    axes = replace(AXES, mass_window=window, mass_bins=100)
    x = (axes.mass_centres - 3.0969) / 0.018
    shape = np.exp(-0.5 * x**2) + 0.01 * ndtr(-x - 2.0) * np.exp(0.1 * np.minimum(x, 0.0))
    counts = np.tile(4e4 * shape / shape.sum(), (axes.n_bins, 1))
    flat = TemplateHistogram(
        axes, np.arange(axes.n_bins), counts, np.zeros((*counts.shape, 8)), np.full((len(counts), 2), 0.1)
    )
    background = np.full(100, 0.002) * 4e4
    purity = expected_purity(replace(flat, counts=counts + background), flat)
    tail = (x > -25.0) & (x < 3.0)
    expected = counts / (counts + background)
    np.testing.assert_allclose(purity[:, tail], expected[:, tail], atol=0.02)
    assert np.all((purity >= 0.0) & (purity <= 1.0))


def test_cells_without_purity_do_not_count() -> None:
    """Whatever is in them."""
    data, pure = with_background(signal(), np.exp(-0.4 * Z), np.full(AXES.n_bins, 0.15))
    purity = np.where(Z > 0.5, 0.0, pure)
    simulated = simulation()
    derivatives = log_derivatives(data, simulated)
    others = [replace(h, counts=np.where(Z > 0.5, 3.0, h.counts)) for h in (data, simulated)]
    one, other = (bin_information(d, s, derivatives, purity=purity) for d, s in ((data, simulated), others))
    for name in ("normal", "vector", "chi2", "ndf"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-9)


def test_phi_sectors_share_the_background_of_the_whole() -> None:
    sectors = replace(AXES, phi_sectors=3)
    share = np.full(sectors.n_bins, 0.2)
    data, pure = with_background(signal(), np.exp(-0.4 * Z), share, sectors)
    np.testing.assert_allclose(expected_purity(data, simulation()), pure, atol=3e-3)


def test_groups_without_data_or_simulation_are_pure() -> None:
    data, _ = with_background(signal(), np.exp(-0.4 * Z), np.full(AXES.n_bins, 0.15))
    first = AXES.unravel(np.arange(AXES.n_bins))[3] == 0
    empty = replace(simulation(), counts=np.where(first[:, None], 0.0, simulation().counts))
    purity = expected_purity(data, empty)
    np.testing.assert_array_equal(purity[first], 1.0)
    assert np.all(np.isfinite(purity))


def test_what_is_asked_for_must_be_there() -> None:
    data = simulation()
    with pytest.raises(InputError, match="without derivatives"):
        expected_purity(data, replace(data, derivatives=np.zeros((*data.counts.shape, 0))))
    with pytest.raises(InputError, match="different axes"):
        expected_purity(data, simulation(replace(AXES, mass_window=(2.84, 3.25))))
