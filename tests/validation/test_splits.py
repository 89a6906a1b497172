"""Split tests on quadratic models with known answers: values, signs, p-values, and what cannot be split."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator
from scipy.stats import kstest

from musclecal.binning import TemplateBinning
from musclecal.errors import InputError
from musclecal.fits.template_closure import BinInformation
from musclecal.records import ClosureSplits, Floats, ScaleInformation, SplitTest
from musclecal.validation.splits import half_tests, harmonic_test, phi_tests, run_test, sector_test

EDGES = (-2.4, -0.7, 1.1, 2.4)
N_ETA = 3
UNITS = np.array([1e-4, 1e-2, 1e-5, 1e-5])
"""Typical errors of A, e, M, width."""


def quadratic(rng: Generator, x: Floats, *, noise: bool = False) -> ScaleInformation:
    """A random chi2 with its minimum at ``x`` (N_ETA, sectors, 4), or fluctuated about it."""
    flat = x.ravel()
    root = rng.normal(size=(3 * flat.size, flat.size)) / np.tile(UNITS, flat.size // 4)
    normal = root.T @ root
    vector = normal @ flat
    if noise:
        vector = vector + root.T @ rng.normal(size=len(root))
    return ScaleInformation(
        "Z", np.array(EDGES), x.shape[1], normal, vector, 500.0 + float(flat @ vector), 530,
        np.full(flat.size // 4, 0.02), 1000.0, 1000.0, np.zeros_like(normal),
    )  # fmt: skip


def wave(sectors: int, harmonic: int, cos: float, sin: float) -> Floats:
    """(sectors,) of a wave averaged over each sector of phi, by brute force."""
    n = 4000
    phi = -np.pi + 2.0 * np.pi * (np.arange(sectors * n) + 0.5) / (sectors * n)
    values = cos * np.cos(harmonic * phi) + sin * np.sin(harmonic * phi)
    return np.asarray(values.reshape(sectors, n).mean(axis=1))


def with_eta_dependence(rng: Generator, sectors: int) -> Floats:
    """(N_ETA, sectors, 4) A, M and width that differ from eta bin to eta bin, and do not depend on phi."""
    x = np.zeros((N_ETA, sectors, 4))
    x[:, :, [0, 2, 3]] = (5.0 * UNITS * rng.normal(size=(N_ETA, 4)))[:, None, [0, 2, 3]]
    return x


# Phi


@pytest.mark.parametrize("harmonic", [1, 2, 3])
def test_a_wave_has_its_amplitudes_whatever_depends_on_eta(harmonic: int) -> None:
    rng = np.random.default_rng(harmonic)
    x = with_eta_dependence(rng, 8)
    x[:, :, 0] += wave(8, harmonic, 3e-4, -1e-4)
    x[:, :, 2] += wave(8, harmonic, 0.0, 2e-5)
    test = harmonic_test(quadratic(rng, x), harmonic)
    assert (test.name, test.parts, test.parameter_names) == (
        f"phi harmonic {harmonic}",
        ("cos", "sin"),
        ("A", "M"),
    )
    np.testing.assert_allclose(test.values, [[3e-4, 0.0], [-1e-4, 2e-5]], rtol=1e-5, atol=1e-10)
    assert test.ndf == 4
    assert test.p_value < 1e-6


def test_the_other_harmonics_do_not_take_a_wave_for_theirs() -> None:
    """Only noise and the sample's own correlations are left; here there is no noise and phi is symmetric."""
    rng = np.random.default_rng(11)
    x = with_eta_dependence(rng, 8)
    x[:, :, 0] += wave(8, 2, 3e-4, 0.0)
    information = quadratic(rng, x)
    diagonal = replace(information, normal=np.diag(np.tile(1.0 / UNITS**2, 8 * N_ETA)))
    diagonal = replace(diagonal, vector=diagonal.normal @ x.ravel())
    tests = {test.name: test for test in phi_tests(diagonal, (1, 2, 3))}
    assert tests["phi harmonic 2"].values[0, 0] == pytest.approx(3e-4, rel=1e-6)
    for name in ("phi harmonic 1", "phi harmonic 3"):
        np.testing.assert_allclose(tests[name].values, 0.0, atol=1e-12)


def test_sectors_deviate_from_their_average() -> None:
    rng = np.random.default_rng(12)
    pattern = rng.normal(size=6) * 1e-4
    x = with_eta_dependence(rng, 6)
    x[:, :, 0] += pattern
    test = sector_test(quadratic(rng, x))
    np.testing.assert_allclose(test.values[:, 0], pattern - pattern.mean(), rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(test.values[:, 1], 0.0, atol=1e-11)
    assert test.ndf == 2 * 5
    assert test.parts[1] == "phi sector 1"


def test_nothing_in_phi_is_nothing() -> None:
    rng = np.random.default_rng(13)
    information = quadratic(rng, with_eta_dependence(rng, 8))
    for test in phi_tests(information, (1, 2, 3)):
        assert test.chi2 < 1e-8
        assert test.p_value == pytest.approx(1.0)


def test_the_error_of_a_wave_is_the_spread_of_its_amplitudes() -> None:
    rng = np.random.default_rng(14)
    found, errors = [], []
    for _ in range(300):
        test = harmonic_test(quadratic(rng, np.zeros((N_ETA, 4, 4)), noise=True), 1)
        found.append(test.values / test.errors)
        errors.append(test.errors)
    np.testing.assert_allclose(np.std(found, axis=0), 1.0, atol=0.15)
    assert np.median(errors, axis=0)[0, 0] > 3.0 * np.median(errors, axis=0)[0, 1]


def test_p_values_in_phi_are_uniform_where_nothing_is() -> None:
    rng = np.random.default_rng(15)
    x = with_eta_dependence(rng, 4)
    tests = [phi_tests(quadratic(rng, x, noise=True), (1,)) for _ in range(300)]
    for n in range(2):
        assert kstest([test[n].p_value for test in tests], "uniform").pvalue > 1e-3


def test_a_wave_too_short_for_the_sectors_is_refused() -> None:
    information = quadratic(np.random.default_rng(16), np.zeros((N_ETA, 6, 4)))
    assert len(phi_tests(information, (1, 2))) == 3
    with pytest.raises(InputError, match="harmonic 3 needs more than 6 phi sectors, there are 6"):
        phi_tests(information, (1, 3))


# Halves


def bins_with(
    rng: Generator, of_plus_harder: Floats, of_minus_harder: Floats, *, noise: bool = False,
    asymmetry: tuple[float, ...] = (-1.0, -0.2, -0.1, 0.0, 0.1, 0.2, 1.0),
) -> BinInformation:  # fmt: skip
    """Information of every 4D bin about x (N_ETA, 4), one for pairs with pT+ > pT- and one for the others."""
    axes = TemplateBinning(EDGES, asymmetry, (10.0, 90.0), (5.0, 95.0), (80.0, 100.0), 12, 91.0)
    bins = np.arange(axes.n_bins)
    plus, minus, a, _ = axes.unravel(bins)
    middles = 0.5 * (np.array(asymmetry)[1:] + np.array(asymmetry)[:-1])
    harder = (middles[a] > 0.0)[:, None]
    x = np.concatenate(
        [np.where(harder, of_plus_harder[m], of_minus_harder[m]) for m in (plus, minus)], axis=1
    )
    roots = rng.normal(size=(len(bins), 24, 8)) / np.tile(UNITS, 2)
    normal = np.einsum("brp,brq->bpq", roots, roots)
    vector = np.einsum("bpq,bq->bp", normal, x)
    if noise:
        vector = vector + np.einsum("brp,br->bp", roots, rng.normal(size=roots.shape[:2]))
    one = np.ones(len(bins))
    return BinInformation(
        axes, bins, normal, vector, 9.0 * one, 9.0 * one, 10.0 * one, 10.0 * len(bins),
        np.full((len(bins), 2), 0.02), np.zeros_like(normal),
    )  # fmt: skip


def test_halves_that_need_different_corrections_show_theirs() -> None:
    """Here uniform in eta, so that the average over eta is the value itself, in whatever weights."""
    rng = np.random.default_rng(21)
    one, two = np.zeros((N_ETA, 4)), np.zeros((N_ETA, 4))
    one[:, 0], two[:, 0], two[:, 2] = 3e-4, -1e-4, 2e-5
    order, asymmetry = half_tests(bins_with(rng, one, two))
    assert (order.name, order.parts) == ("charge order", ("pT+ > pT-", "pT+ < pT-"))
    np.testing.assert_allclose(order.values, [[3e-4, 0.0], [-1e-4, 2e-5]], rtol=1e-7, atol=1e-12)
    assert order.ndf == 2 * N_ETA
    assert order.p_value < 1e-6
    assert (asymmetry.name, asymmetry.parts) == ("pT asymmetry", ("large", "small"))


def test_the_same_correction_everywhere_passes_every_half() -> None:
    rng = np.random.default_rng(22)
    x = 5.0 * UNITS * rng.normal(size=(N_ETA, 4))
    x[:, 1] = 0.0
    for test in half_tests(bins_with(rng, x, x)):
        assert test.chi2 < 1e-8


def test_halves_share_no_events() -> None:
    """With half of the events each, independent, their difference has the spread that the test assumes."""
    rng = np.random.default_rng(23)
    zero = np.zeros((N_ETA, 4))
    tests = [half_tests(bins_with(rng, zero, zero, noise=True)) for _ in range(250)]
    for n in range(2):
        assert kstest([test[n].p_value for test in tests], "uniform").pvalue > 1e-3
        pulls = [(t[n].values[0] - t[n].values[1]) / np.hypot(*t[n].errors) for t in tests]
        np.testing.assert_allclose(np.std(pulls, axis=0), 1.0, atol=0.15)


def test_the_border_of_the_asymmetry_halves_the_events() -> None:
    """Bins of 0 to 0.1, 0.1 to 0.2 and 0.2 to 1 with one, one and four parts of the events."""
    rng = np.random.default_rng(24)
    bins = bins_with(rng, np.zeros((N_ETA, 4)), np.zeros((N_ETA, 4)))
    _, _, a, _ = bins.binning.unravel(bins.bins)
    outer = np.isin(a, (0, 5))
    vector = bins.vector.copy()
    x = np.tile([1e-4, 0.0, 0.0, 0.0], 2)
    vector[outer] = bins.normal[outer] @ x
    moved = replace(bins, vector=vector, events=np.where(outer, 40.0, 10.0))
    _, asymmetry = half_tests(moved)
    np.testing.assert_allclose(asymmetry.values[:, 0], [1e-4, 0.0], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("edges", [(-1.0, -0.3, -0.1, 0.1, 0.3, 1.0), (-1.0, 0.0, 1.0)])
def test_an_axis_that_cannot_be_halved_is_refused(edges: tuple[float, ...]) -> None:
    zero = np.zeros((N_ETA, 4))
    bins = bins_with(np.random.default_rng(25), zero, zero, asymmetry=edges)
    with pytest.raises(InputError, match="asymmetry_edges: an edge at 0 and at least four bins"):
        half_tests(bins)


# Run ranges


def _with_minimum(value: Floats, normal: Floats, events: float) -> ScaleInformation:
    """chi2 of ``value`` (4 N_ETA,), without phi sectors."""
    return ScaleInformation(
        "Z", np.array(EDGES), 1, normal, normal @ value, 500.0 + float(value @ normal @ value), 530,
        np.full(N_ETA, 0.02), events, events, np.zeros_like(normal),
    )  # fmt: skip


def ranges(
    rng: Generator, needed: Floats, events: tuple[float, ...], simulated: float
) -> list[ScaleInformation]:
    """Fits of ranges that need ``needed`` (n_range, N_ETA, 4), all to one simulation of ``simulated`` events.

    A range of n events is known to (1/n + 1/simulated) times a common shape; the second part is common to all.
    """
    size = 4 * N_ETA
    root = rng.normal(size=(size, 3 * size)) * np.tile(UNITS, N_ETA)[:, None]
    shape = root @ root.T / (3 * size)
    shape = np.where(np.kron(np.eye(N_ETA), np.ones((4, 4))) > 0.0, shape, 0.0)
    cholesky = np.linalg.cholesky(shape)
    common = cholesky @ rng.normal(size=size) / np.sqrt(simulated)
    parts = []
    for x, n in zip(needed, events, strict=True):
        noise = cholesky @ rng.normal(size=size) / np.sqrt(n) - common
        value = np.asarray(x.ravel() + noise, dtype=np.float64)
        normal = np.linalg.inv(shape * (1.0 / n + 1.0 / simulated)).astype(np.float64)
        parts.append(_with_minimum(value, normal, n))
    return parts


def test_runs_are_compared_by_what_the_data_fluctuate() -> None:
    """The noise of the simulation, here as large as that of the data, is common to all ranges."""
    rng = np.random.default_rng(31)
    x = np.tile(UNITS, (3, N_ETA, 1))
    x[:, :, 1] = 0.0
    tests = [run_test(ranges(rng, x, (10.0, 30.0, 20.0), 25.0), ("a", "b", "c"), 25.0) for _ in range(300)]
    assert tests[0].ndf == 2 * 2 * N_ETA
    assert kstest([test.p_value for test in tests], "uniform").pvalue > 1e-3


def test_a_step_between_runs_is_found_in_the_range_that_has_it() -> None:
    rng = np.random.default_rng(32)
    x = np.zeros((3, N_ETA, 4))
    x[2, :, 0] = 3e-4
    test = run_test(ranges(rng, x, (1e3, 1e3, 1e3), 4e3), ("a", "b", "c"), 4e3)
    assert test.p_value < 1e-6
    assert test.parts == ("a", "b", "c")
    np.testing.assert_allclose(test.values[:, 0], [0.0, 0.0, 3e-4], atol=2e-5)


def test_one_range_is_no_test() -> None:
    part = ranges(np.random.default_rng(33), np.zeros((1, N_ETA, 4)), (10.0,), 40.0)
    with pytest.raises(InputError, match="run_edges must give at least two ranges"):
        run_test(part, ("a",), 40.0)


# All tests together


def split_with(p_value: float, name: str = "x") -> SplitTest:
    return SplitTest(name, ("a", "b"), ("A",), np.zeros((2, 1)), np.ones((2, 1)), 1.0, 1, p_value)


def test_the_smallest_of_several_p_values_counts_for_what_it_is() -> None:
    """Of n independent uniform numbers the smallest is below p with probability 1 - (1 - p)^n."""
    splits = ClosureSplits("Z", (split_with(0.3), split_with(0.01, "worst"), split_with(0.9)))
    assert splits.worst.name == "worst"
    assert splits.p_value == pytest.approx(1.0 - 0.99**3, rel=1e-12)
    assert ClosureSplits("Z", (split_with(0.2),)).p_value == pytest.approx(0.2)
    tiny = ClosureSplits("Z", tuple(split_with(1e-30) for _ in range(6)))
    assert tiny.p_value == pytest.approx(6e-30, rel=1e-9)
    assert ClosureSplits("Z", (split_with(1.0), split_with(1.0))).p_value == pytest.approx(1.0)


def test_the_corrected_p_value_is_uniform() -> None:
    rng = np.random.default_rng(41)
    found = [
        ClosureSplits("Z", tuple(split_with(p) for p in rng.uniform(size=6))).p_value for _ in range(400)
    ]
    assert kstest(found, "uniform").pvalue > 1e-3
