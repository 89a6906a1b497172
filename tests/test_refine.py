"""Corrections in phi and run ranges applied to muons, against plain numpy."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import sector_of
from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats, Muons, PhiRefinement, RunRefinement
from musclecal.refine import refine

RNG = np.random.default_rng(31)
EDGES = np.array([-2.0, -0.3, 0.5, 2.0])
N_ETA = 3
N = 4000


def muons() -> Muons:
    return Muons(RNG.uniform(4.0, 60.0, N), RNG.uniform(-2.4, 2.4, N), RNG.uniform(-np.pi, np.pi, N))


EVENTS = DimuonEvents(muons(), muons(), run=RNG.integers(0, 50, N))


def phi_refinement(harmonics: tuple[int, ...], sectors: int = 12) -> PhiRefinement:
    n_term = 1 + 2 * len(harmonics) if harmonics else sectors
    a, m = 1e-3 * RNG.normal(size=(N_ETA, n_term)), 2e-5 * RNG.normal(size=(N_ETA, n_term))
    n = 2 * a.size
    return PhiRefinement("Z", EDGES, harmonics, sectors, a, m, np.eye(n), 1.0, 1, 0.3, 1, 0.0)


def corrected(muons: Muons, charge: int, a: Floats, m: Floats) -> Floats:
    k = 1.0 / muons.pt
    inside = (muons.eta >= EDGES[0]) & (muons.eta < EDGES[-1])
    return np.where(inside, 1.0 / ((1.0 + a) * k + charge * m), muons.pt)


def eta_bin(muons: Muons) -> np.typing.NDArray[np.int64]:
    return np.clip(np.searchsorted(EDGES, muons.eta, side="right") - 1, 0, N_ETA - 1)


def both(events: DimuonEvents) -> tuple[tuple[Muons, int], tuple[Muons, int]]:
    return (events.plus, 1), (events.minus, -1)


@pytest.mark.parametrize("harmonics", [(1,), (2,), (3, 1)])
def test_waves_in_phi(harmonics: tuple[int, ...]) -> None:
    r = phi_refinement(harmonics)
    out = refine(EVENTS, r)
    for (before, charge), (after, _) in zip(both(EVENTS), both(out), strict=True):
        i = eta_bin(before)
        a, m = r.A[i, 0], r.M[i, 0]
        for n, h in enumerate(harmonics):
            a = a + r.A[i, 1 + 2 * n] * np.cos(h * before.phi) + r.A[i, 2 + 2 * n] * np.sin(h * before.phi)
            m = m + r.M[i, 1 + 2 * n] * np.cos(h * before.phi) + r.M[i, 2 + 2 * n] * np.sin(h * before.phi)
        np.testing.assert_allclose(after.pt, corrected(before, charge, a, m), rtol=1e-12)
        np.testing.assert_array_equal(after.phi, before.phi)
    assert r.terms[1] == f"cos({harmonics[0]} phi)"
    assert len(r.terms) == r.A.shape[1]


def test_sectors() -> None:
    r = phi_refinement((), 7)
    out = refine(EVENTS, r)
    for (before, charge), (after, _) in zip(both(EVENTS), both(out), strict=True):
        i = eta_bin(before)
        s = np.searchsorted(np.linspace(-np.pi, np.pi, 8), before.phi, side="right") - 1
        np.testing.assert_allclose(after.pt, corrected(before, charge, r.A[i, s], r.M[i, s]), rtol=1e-12)


def test_signs_of_one_muon_of_each_charge() -> None:
    """A > 0 lowers pT; M > 0 lowers pT of mu+ and raises pT of mu-, here at phi = 0 alone."""
    one = Muons(np.array([40.0, 40.0]), np.zeros(2), np.array([0.0, np.pi]))
    zero = np.zeros((N_ETA, 3))
    wave = zero + np.array([0.5, 0.5, 0.0])
    flat = replace(phi_refinement((1,)), A=zero, M=zero)
    a = refine(DimuonEvents(one, one), replace(flat, A=1e-3 * wave))
    m = refine(DimuonEvents(one, one), replace(flat, M=1e-5 * wave))
    np.testing.assert_allclose(a.plus.pt, [40.0 / 1.001, 40.0], rtol=1e-12)
    np.testing.assert_allclose(a.minus.pt, a.plus.pt)
    np.testing.assert_allclose(m.plus.pt, [40.0 / (1.0 + 4e-4), 40.0], rtol=1e-12)
    np.testing.assert_allclose(m.minus.pt, [40.0 / (1.0 - 4e-4), 40.0], rtol=1e-12)


@pytest.mark.parametrize("harmonics", [(), (1, 2)])
def test_whole_turns_do_not_matter(harmonics: tuple[int, ...]) -> None:
    r = phi_refinement(harmonics)
    turned = replace(EVENTS, plus=replace(EVENTS.plus, phi=EVENTS.plus.phi % (2.0 * np.pi)))
    np.testing.assert_allclose(refine(turned, r).plus.pt, refine(EVENTS, r).plus.pt, rtol=1e-12)


def test_sector_numbers() -> None:
    """Edges belong to the upper sector, pi to the last, and rounding never makes one sector too many."""
    for n in (1, 4, 12):
        middles = -np.pi + 2.0 * np.pi * (np.arange(n) + 0.5) / n
        assert [sector_of(phi, n) for phi in middles] == list(range(n))
        assert [sector_of(phi + 4.0 * np.pi, n) for phi in middles] == list(range(n))
        assert sector_of(-np.pi, n) == 0
        assert sector_of(np.pi, n) == sector_of(float(np.float32(np.pi)), n) == n - 1


def run_refinement() -> RunRefinement:
    a, m = 1e-3 * RNG.normal(size=(2, N_ETA)), 2e-5 * RNG.normal(size=(2, N_ETA))
    return RunRefinement("Z", EDGES, (10, 20, 40), a, m, np.eye(12), 1.0, 1, 0.3, 1, 0.0)


def test_run_ranges() -> None:
    r = run_refinement()
    out = refine(EVENTS, r)
    assert EVENTS.run is not None
    run = EVENTS.run
    at = np.where(run < 20, 0, 1)
    known = (run >= 10) & (run < 40)
    for (before, charge), (after, _) in zip(both(EVENTS), both(out), strict=True):
        i = eta_bin(before)
        expected = np.where(known, corrected(before, charge, r.A[at, i], r.M[at, i]), before.pt)
        np.testing.assert_allclose(after.pt, expected, rtol=1e-12)
    assert r.terms == ("runs 10 to 19", "runs 20 to 39")


def test_run_ranges_need_run_numbers() -> None:
    with pytest.raises(InputError, match="no run numbers"):
        refine(replace(EVENTS, run=None), run_refinement())
