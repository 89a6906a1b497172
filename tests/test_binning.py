"""Axes, 4D bin numbers and the two mass axes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import (
    Binning,
    TemplateBinning,
    bin_in,
    bin_of,
    equal_eta_edges,
    find_bins,
    search_axis,
)
from musclecal.errors import InputError

JPSI = Binning(
    eta_edges=equal_eta_edges(24, 2.4),
    pt_edges=(4.0, 4.9, 6.4, 9.5, 40.0),
    mass_window=(2.85, 3.25),
    mass_bins=80,
    mass_reference=3.0969,
)


def test_every_value_is_in_the_bin_that_holds_it() -> None:
    edges = np.array([-2.4, -1.0, 0.0, 0.1, 3.0])
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [rng.uniform(-3.0, 4.0, 500), edges, np.nextafter(edges, -10.0), np.nextafter(edges, 10.0)]
    )
    expected = np.searchsorted(edges, values, side="right") - 1
    expected[(values < edges[0]) | (values >= edges[-1])] = -1
    assert [bin_of(edges, x) for x in values] == expected.tolist()


def test_bins_hold_their_lower_edge_and_not_their_upper() -> None:
    edges = np.array([0.0, 1.0, 2.0])
    assert [bin_of(edges, x) for x in (0.0, 1.0, 2.0)] == [0, 1, -1]


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_outside(x: float) -> None:
    assert bin_of(np.array([0.0, 1.0]), x) == -1


def test_equal_edges_are_decimal_numbers() -> None:
    edges = equal_eta_edges(24, 2.4)
    assert edges[0] == -2.4
    assert edges[12] == 0.0
    assert edges[13] == 0.2
    assert len(edges) == 25


def test_bin_numbers_are_unravelled_in_the_documented_order() -> None:
    i, j, k, m = 3, 17, 1, 2
    number = ((i * 24 + j) * 4 + k) * 4 + m
    assert tuple(int(axis) for axis in JPSI.unravel(number)) == (i, j, k, m)
    assert JPSI.n_bins == (24 * 4) ** 2


def test_all_bin_numbers_are_different() -> None:
    axes = np.stack(JPSI.unravel(np.arange(JPSI.n_bins)))
    assert len(np.unique(axes, axis=1).T) == JPSI.n_bins


def test_a_bin_is_described_by_its_edges() -> None:
    number = ((0 * 24 + 23) * 4 + 0) * 4 + 3
    words = JPSI.describe(number)
    assert words == "-2.4 < eta+ < -2.2, 2.2 < eta- < 2.4, 4 < pT+ < 4.9, 9.5 < pT- < 40 GeV"


def test_the_mass_axis_is_uniform_in_the_logarithm() -> None:
    np.testing.assert_allclose(np.diff(np.log(JPSI.mass_edges)), JPSI.log_step, rtol=1e-12)
    np.testing.assert_allclose(JPSI.mass_edges[[0, -1]], JPSI.mass_window, rtol=1e-14)


def test_the_generator_axis_has_the_same_step_and_a_bin_centred_on_the_resonance() -> None:
    masses = JPSI.generator_masses
    first, last = JPSI.generator_range
    assert len(masses) == last - first + 1
    np.testing.assert_allclose(np.diff(np.log(masses)), JPSI.log_step, rtol=1e-10)
    assert masses[-first] == JPSI.mass_reference


def test_the_generator_axis_reaches_twelve_per_cent_beyond_the_window() -> None:
    masses = JPSI.generator_masses
    assert masses[0] <= 0.88 * 2.85 < masses[1]
    assert masses[-2] < 1.12 * 3.25 <= masses[-1]


def test_asymmetric_eta_edges_work() -> None:
    forward = replace(JPSI, eta_edges=(2.0, 2.5, 3.5, 5.0))
    assert forward.n_eta == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta_edges": (0.0,)}, "eta_edges: need at least two edges"),
        ({"eta_edges": (0.0, 1.0, 1.0)}, "eta_edges: edges must be finite and increasing"),
        ({"pt_edges": (4.0, math.inf)}, "pt_edges: edges must be finite"),
        ({"pt_edges": (0.0, 4.0)}, "pt_edges: must be positive"),
        ({"mass_bins": 3}, "mass_bins: need at least 4, got 3"),
        ({"mass_window": (3.2, 3.3)}, "does not contain 3.0969"),
        ({"mass_window": (3.3, 2.9)}, "mass_window: edges must be finite and increasing"),
    ],
)
def test_impossible_axes_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(JPSI, **change)  # type: ignore[arg-type]


def test_binnings_of_the_same_edges_are_equal() -> None:
    assert replace(JPSI, eta_edges=list(JPSI.eta_edges)) == JPSI  # type: ignore[arg-type]
    assert hash(JPSI) == hash(replace(JPSI))


def test_a_mass_window_with_three_numbers_is_refused() -> None:
    with pytest.raises((InputError, ValueError), match=r"mass_window|unpack"):
        replace(JPSI, mass_window=(2.8, 3.0, 3.3))  # type: ignore[arg-type]


TEMPLATE = TemplateBinning(
    eta_edges=equal_eta_edges(6, 2.4),
    asymmetry_edges=(-1.0, -0.1, 0.1, 1.0),
    pt_edges=(10.0, 40.0, 200.0),
    muon_pt=(25.0, 100.0),
    mass_window=(75.0, 107.0),
    mass_bins=32,
    mass_reference=91.19,
    phi_sectors=4,
)


class TestTemplateBinning:
    def test_numbers_are_unravelled_in_the_documented_order(self) -> None:
        plus, minus, a, p = 23, 7, 1, 1
        number = ((plus * 24 + minus) * 3 + a) * 2 + p
        assert tuple(int(axis) for axis in TEMPLATE.unravel(number)) == (plus, minus, a, p)
        assert TEMPLATE.shape == (24, 24, 3, 2)
        assert TEMPLATE.n_bins == 24 * 24 * 3 * 2

    def test_all_sectors_together_are_the_bins_without_phi(self) -> None:
        whole = replace(TEMPLATE, phi_sectors=1)
        numbers = TEMPLATE.without_phi(np.arange(TEMPLATE.n_bins))
        assert np.all(np.bincount(numbers, minlength=whole.n_bins) == 4**2)
        plus, minus, a, p = TEMPLATE.unravel(np.arange(TEMPLATE.n_bins))
        together = whole.unravel(numbers)
        for axis, expected in zip(together, (plus // 4, minus // 4, a, p), strict=True):
            np.testing.assert_array_equal(axis, expected)
        np.testing.assert_array_equal(whole.without_phi(np.arange(whole.n_bins)), np.arange(whole.n_bins))

    def test_centres(self) -> None:
        np.testing.assert_allclose(TEMPLATE.mass_centres, np.arange(75.5, 107.0))
        np.testing.assert_allclose(TEMPLATE.phi_centres, np.pi * np.array([-0.75, -0.25, 0.25, 0.75]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"eta_edges": (0.0,)}, "eta_edges: need at least two edges"),
            ({"asymmetry_edges": (0.0, -1.0)}, "asymmetry_edges: edges must be finite and increasing"),
            ({"pt_edges": (4.0, math.nan)}, "pt_edges: edges must be finite"),
            ({"muon_pt": (25.0, 20.0)}, "muon_pt: edges must be finite and increasing"),
            ({"mass_bins": 3}, "mass_bins: need at least 4, got 3"),
            ({"mass_window": (92.0, 107.0)}, "does not contain 91.19"),
            ({"mass_window": (75.0, 80.0, 107.0)}, "mass_window: need a low and a high value"),
            ({"muon_pt": (25.0, 50.0, 100.0)}, "muon_pt: need a low and a high value"),
            ({"phi_sectors": 0}, "phi_sectors: need at least 1, got 0"),
        ],
    )
    def test_impossible_axes_are_refused_by_name(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            replace(TEMPLATE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "edges",
    [
        np.linspace(-2.4, 2.4, 25), equal_eta_edges(48, 2.4), [4.0, 4.9, 6.4, 9.5, 40.0], [-1.0, 1.0],
        [0.0, 1e-7, 2e-7, 3.0, 1000.0], [*range(9), 9.0, 9.0 + 1e-7, 9.0 + 2e-7, 9.0 + 3e-7, 1000.0],
        np.cumsum(np.random.default_rng(2).exponential(1.0, 300)), [2.0, 2.0 + 1e-9, 5.0],
    ],
)  # fmt: skip
def test_bins_without_a_search_are_those_of_the_search(edges: object) -> None:
    """Random values, all edges and their neighbours, what is outside and what is no number."""
    values = np.asarray(edges, dtype=np.float64)
    axis, rng = search_axis(values), np.random.default_rng(1)
    span = values[-1] - values[0]
    random = rng.uniform(values[0] - 0.1 * span, values[-1] + 0.1 * span, 20_000)
    near = [values, np.nextafter(values, -np.inf), np.nextafter(values, np.inf)]
    looked_at = np.concatenate([random, *near, [np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0]])
    for x in looked_at:
        assert bin_in(axis, x) == bin_of(values, x)
    together = np.empty(len(looked_at), dtype=np.int32)
    find_bins(axis, looked_at, together)
    np.testing.assert_array_equal(together, [bin_of(values, x) for x in looked_at])
