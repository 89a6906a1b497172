"""The grid of eta cells, and that both ways to a factor give the same bits."""

import numpy as np
import pytest

from musclecal.binning import equal_eta_edges, search_axis
from musclecal.correction import Correction
from musclecal.correction_kernels import EtaGrid, factors, factors_on_grid
from musclecal.errors import InputError
from musclecal.export.tables import correction_tables
from musclecal.records import Floats, ScaleWithCovariance

UNEVEN = np.array([-2.4, -2.1, -1.6, -1.2, -0.9, -0.3, 0.0, 0.3, 0.9, 1.2, 1.6, 2.1, 2.4])


def about(edges: Floats) -> Floats:
    """Each edge with its nearest neighbours on both sides, zeros of both signs, and what is far off or no number."""
    below, above = np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)
    return np.concatenate([edges, below, above, [0.0, -0.0, 5e-324, -5e-324, 1e300, -np.inf, np.nan]])


@pytest.mark.parametrize(
    "edges",
    [*(np.array(equal_eta_edges(n, 2.4)) for n in (1, 4, 6, 12, 24, 48)), UNEVEN, np.array([0.1, 0.4, 0.7])],
    ids=str,
)
def test_cells_are_right_to_the_last_bit(edges: Floats) -> None:
    grid = EtaGrid.of(edges)
    assert grid is not None
    eta = about(edges)
    eta = eta[(eta >= edges[0]) & (eta < edges[-1])]
    cell = np.floor(eta * grid.cells) - grid.first
    np.testing.assert_array_equal(
        grid.bins[cell.astype(np.intp)], np.searchsorted(edges, eta, side="right") - 1
    )


def test_no_grid_where_none_is_exact() -> None:
    assert EtaGrid.of(np.array(equal_eta_edges(36, 2.4))) is None
    assert EtaGrid.of(np.array([-2.4, 0.1234567, 2.4])) is None
    assert EtaGrid.of(np.array([-2.4, -2.3999, 2.4])) is None, "too many cells"


def table(n_eta: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return np.stack(
        [1.0 + rng.normal(0, 1e-3, n_eta), rng.normal(0, 0.5, n_eta), rng.normal(0, 1e-2, n_eta)], axis=1
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("edges", [np.array(equal_eta_edges(24, 2.4)), UNEVEN], ids=["even", "uneven"])
def test_both_ways_give_the_same_bits(edges: Floats, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(7)
    n = 100_000
    strange = [np.nan, np.inf, -np.inf, 0.0, -5.0, 2.0, 200.0, np.nextafter(200.0, 0.0), 1e300, 1e-300]
    pt = np.where(rng.random(n) < 0.2, rng.choice(strange, n), rng.uniform(0.5, 220, n))
    eta = np.where(rng.random(n) < 0.3, rng.choice(about(edges), n), rng.uniform(-3, 3, n))
    charge = rng.choice([1.0, -1.0, 1.0, -1.0, 0.0, 2.0, np.nan, np.inf], n)
    with np.errstate(over="ignore", under="ignore"):
        p, h, q = (np.asarray(column, dtype) for column in (pt, eta, charge))
    rows = table(len(edges) - 1, 3)
    axis, grid = search_axis(edges), EtaGrid.of(edges)
    assert grid is not None
    one, other = np.empty(n), np.empty(n)
    factors(p, h, q, axis, rows, 2.0, 200.0, one)
    factors_on_grid(p, h, q, grid.cells, grid.first, edges[0], edges[-1], grid.table(rows), 2.0, 200.0, other)
    np.testing.assert_array_equal(other, one)
    assert 0.1 < np.mean(one != 1.0) < 0.9


def test_an_axis_without_grid_is_corrected_as_well() -> None:
    edges = np.array([-2.4, 0.1234567, 2.4])
    A, e, M = np.array([1e-3, -2e-3]), np.array([2e-3, 1e-3]), np.array([1e-5, 3e-5])
    scale = ScaleWithCovariance(edges, A, e, M, np.diag(np.full(6, 1e-10)))
    correction = Correction(correction_tables(scale, {"campaign": "test"}))
    pt, eta, charge = np.array([10.0, 40.0]), np.array([0.1, 0.2]), np.array([1.0, -1.0])
    expected = 1.0 / (1.0 + A - e / pt + charge * M * pt)
    np.testing.assert_allclose(correction.scale(pt, eta, 0.0 * pt, charge), expected, rtol=1e-15)


def test_factors_in_an_array_of_the_caller() -> None:
    edges = np.array(equal_eta_edges(24, 2.4))
    A, e, M = np.full(24, 1e-3), np.full(24, 2e-3), np.full(24, 1e-5)
    scale = ScaleWithCovariance(edges, A, e, M, np.diag(np.full(72, 1e-10)))
    correction = Correction(correction_tables(scale, {"campaign": "test"}))
    pt, eta, charge = np.linspace(1.0, 210.0, 1000), np.linspace(-2.5, 2.5, 1000), np.ones(1000)
    out = np.full(1000, np.nan)
    assert correction.scale(pt, eta, pt, charge, out=out) is out
    np.testing.assert_array_equal(out, correction.scale(pt, eta, pt, charge))
    for wrong in (np.empty(999), np.empty(1000, np.float32), [1.0] * 1000):
        with pytest.raises(InputError, match=r"out: a float64 array of the shape \(1000,\) is wanted"):
            correction.scale(pt, eta, pt, charge, out=wrong)  # type: ignore[arg-type]
