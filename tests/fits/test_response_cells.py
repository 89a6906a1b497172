"""Cells for a response that nobody chose: fine where there are muons, and none where there are few, or a cut."""

from collections.abc import Iterator

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.response_cells import narrow_eta_edges, pt_cells
from musclecal.records import DimuonEvents, Floats, Muons

EDGES = np.array([-2.4, -0.8, 0.8, 2.4])


def pairs(n: int, low: float, high: float, seed: int = 1, *, slope: float = 0.0) -> DimuonEvents:
    """Flat in ln pT, or falling with a power; measured to 1 % and cut at ``low`` and ``high``."""
    rng = np.random.default_rng(seed)

    def muons() -> tuple[Floats, Floats, Floats]:
        u = rng.random(n)
        x = np.log(high / low)
        true = low * np.exp(x * u if slope == 0.0 else -np.log1p(-u * (1.0 - np.exp(-slope * x))) / slope)
        return true / (1.0 + 0.01 * rng.normal(size=n)), rng.uniform(-2.4, 2.4, n), true

    (pt1, eta1, true1), (pt2, eta2, true2) = muons(), muons()
    kept = np.all([(pt >= low) & (pt < high) for pt in (pt1, pt2)], axis=0)
    zero = np.zeros(n)
    events = DimuonEvents(
        Muons(pt1, eta1, zero), Muons(pt2, eta2, zero), Muons(true1, eta1, zero), Muons(true2, eta2, zero)
    )
    return events.select(kept)


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([-2.4, -2.0, 0.0, 0.3], [-2.4, -2.0, -1.6, -1.2, -0.8, -0.4, 0.0, 0.3]),
        (np.linspace(-2.4, 2.4, 13), np.linspace(-2.4, 2.4, 13)),
        ([0.0, 0.41], [0.0, 0.205, 0.41]),
    ],
)
def test_wide_eta_bins_are_cut(edges: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(narrow_eta_edges(np.array(edges)), expected, rtol=0.0, atol=1e-14)


def test_many_muons_have_cells_of_ten_per_cent_away_from_the_cuts() -> None:
    edges = pt_cells([pairs(200_000, 10.0, 100.0)], EDGES, threads=1)
    assert 11.0 <= edges[0] < 11.0 * 1.06
    assert 100.0 / 1.1 / 1.11 < edges[-1] <= 100.0 / 1.1
    np.testing.assert_allclose(edges[1:] / edges[:-1], 1.05**2, rtol=0.01)


def test_few_muons_have_wider_cells_and_end_earlier() -> None:
    """In every cell, eta bin and charge 200 muons, and no edges beyond."""
    events = pairs(40_000, 10.0, 100.0, slope=3.0)
    edges = pt_cells([events], EDGES, threads=1)
    ratio = edges[1:] / edges[:-1]
    assert ratio[0] < 1.11
    assert 1.2 < ratio.max() < 1.29
    assert edges[-1] < 60.0
    for true, measured in ((events.gen_plus, events.plus), (events.gen_minus, events.minus)):
        assert true is not None
        counts = np.histogram2d(true.eta, true.pt, [EDGES, edges])[0]
        assert counts.min() >= 200
        assert len(measured.pt) > 0


def test_a_start_without_muons_is_left_out() -> None:
    """One stray pair at 4 GeV is no reason to begin there."""
    stray = pairs(1, 4.0, 4.5)
    edges = pt_cells([stray, pairs(100_000, 20.0, 60.0)], EDGES, threads=1)
    assert 20.0 / 1.05**2 < edges[0] < 20.0
    assert edges[1] < 1.11 * edges[0]


def test_cells_do_not_depend_on_chunks_or_threads() -> None:
    events = pairs(60_000, 10.0, 100.0, slope=2.0)

    def chunks(size: int) -> Iterator[DimuonEvents]:
        for first in range(0, len(events), size):
            yield events.select(np.arange(len(events)) // size == first // size)

    whole = pt_cells([events], EDGES, threads=1)
    np.testing.assert_array_equal(pt_cells(chunks(7777), EDGES, threads=2), whole)


def test_too_few_muons_are_refused() -> None:
    with pytest.raises(InputError, match="nowhere in true pT 200 muons of each charge in every eta bin"):
        pt_cells([pairs(500, 10.0, 100.0)], EDGES, threads=1)
    one = pairs(500, 10.0, 100.0)
    with pytest.raises(InputError, match="no generator-level muons"):
        pt_cells([DimuonEvents(one.plus, one.minus)], EDGES, threads=1)
