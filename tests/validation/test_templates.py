"""Templates of W and Z against moved and counted events, and against their own finite differences."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.apply import correct
from musclecal.boson_simulation import DRAWS, BosonSettings, SingleMuons, simulate_w, simulate_z, z_draws
from musclecal.bosons import boson
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.records import BosonTemplates, DimuonEvents, Floats, ScaleParameters
from musclecal.simulate import default_resolution, no_bias
from musclecal.validation.template_sums import threshold_terms
from musclecal.validation.w_templates import WBinning, w_templates
from musclecal.validation.z_templates import ZBinning, _z_sums, z_templates

W_BINNING = WBinning((-2.4, -1.0, 0.2, 2.4), tuple(np.arange(26.0, 57.0, 2.0)))
Z_BINNING = ZBinning(
    (-2.4, -1.0, 0.2, 2.4), (-2.4, 0.0, 2.4), tuple(np.arange(76.0, 107.0, 2.0)), (26.0, 60.0)
)
N_DRAWS = 4 * DRAWS
STEPS = {"A": 2e-4, "e": 1e-2, "M": 5e-6, "a": 4e-6, "b": 4e-6, "c": 3e-9}
"""Small against the resolution, for central differences."""


@pytest.fixture(scope="module")
def w() -> BosonTemplates:
    return w_templates(W_BINNING, n_draws=N_DRAWS, seed=3, threads=1)


@pytest.fixture(scope="module")
def z() -> BosonTemplates:
    return z_templates(Z_BINNING, n_draws=N_DRAWS, seed=3, threads=1)


def correction(name: str, eta_bin: int, size: float) -> ScaleParameters:
    """One parameter of one eta bin."""
    none = no_bias(np.array(W_BINNING.eta_edges))
    return replace(none, **{name: np.where(np.arange(3) == eta_bin, size, 0.0)})


@pytest.mark.parametrize("pt", [20.0, 45.0])
def test_a_muon_at_a_threshold(pt: float) -> None:
    """Probability against counting; derivatives against differences."""
    k, square, threshold = 1.0 / pt, 2e-4, 1.005 / pt
    above, density, wider = threshold_terms(threshold, k, square)
    measured = k * (1.0 + math.sqrt(square) * np.random.default_rng(1).normal(size=400_000))
    assert above == pytest.approx(np.mean(measured < threshold), abs=4.0 * 0.5 / math.sqrt(400_000))
    step = 1e-6 * k
    numerical = (
        threshold_terms(threshold + step, k, square)[0] - threshold_terms(threshold - step, k, square)[0]
    )
    assert density == pytest.approx(numerical / (2.0 * step), rel=1e-7)
    numerical = (
        threshold_terms(threshold, k, 1.001 * square)[0] - threshold_terms(threshold, k, 0.999 * square)[0]
    )
    assert wider == pytest.approx(numerical / (0.002 * square), rel=1e-5)


def test_shapes_and_units(w: BosonTemplates, z: BosonTemplates) -> None:
    for templates, n_cell, n_group in ((w, 90, 6), (z, 30, 2)):
        assert templates.counts.shape == (n_cell,)
        assert templates.scale_derivative.shape == templates.resolution_derivative.shape == (n_cell, 9)
        assert len(templates.group_names) == n_group
        assert templates.groups.max() == n_group - 1
        assert np.all(templates.counts > 0.0)
    # 1/fb times nb: millions of W+, W-, Z, and an acceptance of a third.
    assert 0.3 < w.counts.sum() / (1e6 * (11.37 + 8.58)) < 0.5
    assert 0.2 < z.counts.sum() / 1.91e6 < 0.4
    assert w.group_names[0] == "mu+, -2.4 < eta < -1"


def counted_w(muons: list[SingleMuons], charge: int, scale: ScaleParameters | None = None) -> Floats:
    """(n_eta n_pt,) measured muons in the cells, corrected one by one."""
    edges = np.array(W_BINNING.eta_edges)
    total = np.zeros((len(edges) - 1, len(W_BINNING.pt_edges) - 1))
    for block in muons:
        eta, k = block.measured.eta, 1.0 / block.measured.pt
        inside = (eta >= edges[0]) & (eta < edges[-1])
        eta, k = eta[inside], k[inside]
        if scale is not None:
            at = np.searchsorted(edges, eta, side="right") - 1
            k = (1.0 + scale.A[at] - scale.e[at] * k) * k + charge * scale.M[at]
        total += np.histogram2d(eta, 1.0 / k, bins=(edges, np.array(W_BINNING.pt_edges)))[0]
    return total.ravel()


def test_w_counts_are_those_of_measured_events(w: BosonTemplates) -> None:
    """Independent events of both charges, chi2 with the template's own fluctuations neglected at twice the error."""
    for charge, name, part in ((1, "W+", slice(0, 45)), (-1, "W-", slice(45, 90))):
        muons = list(simulate_w(BosonSettings(boson(name)), N_DRAWS, seed=77, threads=1))
        found = counted_w(muons, charge)
        n = 2 * N_DRAWS
        expected = w.counts[part] / (1e6 * boson(name).cross_section) * n
        # Two muons of a draw are nearly one: variance of up to twice the count, and half of it in the templates.
        chi2 = np.sum((found - expected) ** 2 / (3.0 * expected))
        assert chi2 < 80.0
        assert found.sum() == pytest.approx(expected.sum(), rel=0.01)


@pytest.mark.parametrize("name", ["A", "e", "M"])
def test_w_derivatives_are_those_of_moved_events(w: BosonTemplates, name: str) -> None:
    """Events corrected one by one, all eta bins together: the sign and size of each parameter for both charges."""
    step = 20.0 * STEPS[name]
    everywhere = [
        replace(no_bias(np.array(W_BINNING.eta_edges)), **{name: np.full(3, sign * step)})
        for sign in (1.0, -1.0)
    ]
    for charge, boson_name, part in ((1, "W+", slice(0, 45)), (-1, "W-", slice(45, 90))):
        muons = list(simulate_w(BosonSettings(boson(boson_name)), 2 * N_DRAWS, seed=78, threads=1))
        up, down = (counted_w(muons, charge, scale) for scale in everywhere)
        unit = 1e6 * boson(boson_name).cross_section / (4.0 * N_DRAWS)
        found = (unit * (up - down) / (2.0 * step)).reshape(3, 15).sum(axis=0)
        column = "AeM".index(name)
        expected = w.scale_derivative[part].reshape(3, 15, 3, 3)[..., column].sum(axis=(0, 2))
        assert np.corrcoef(found, expected)[0, 1] > 0.99
        assert found @ expected / (expected @ expected) == pytest.approx(1.0, abs=0.03)


def test_w_derivatives_are_local_in_eta_and_exact(w: BosonTemplates) -> None:
    """Templates of corrected muons, the same draws: central differences of every parameter of one eta bin."""
    for name in "AeM":
        up, down = (
            w_templates(
                W_BINNING,
                n_draws=N_DRAWS,
                seed=3,
                correction=correction(name, 1, sign * STEPS[name]),
                threads=1,
            ).counts
            for sign in (1.0, -1.0)
        )
        numerical = (up - down) / (2.0 * STEPS[name])
        column = w.scale_derivative[:, 3 + "AeM".index(name)]
        np.testing.assert_allclose(numerical, column, atol=2e-3 * np.abs(column).max())
        outside = np.ones(90, dtype=bool).reshape(2, 3, 15)
        outside[:, 1] = False
        assert np.all(column[outside.ravel()] == 0.0)


def test_a_positive_correction_moves_muons_down(w: BosonTemplates) -> None:
    """Physics.md section 1: A > 0 lowers pT, e > 0 raises it, M > 0 lowers that of mu+ and raises that of mu-."""
    pt = np.tile(0.5 * (np.array(W_BINNING.pt_edges)[1:] + np.array(W_BINNING.pt_edges)[:-1]), 6)
    plus = np.arange(90) < 45
    for column, signs in ((0, (-1, -1)), (1, (1, 1)), (2, (-1, 1))):
        derivative = w.scale_derivative.reshape(90, 3, 3)[:, :, column].sum(axis=1)
        for which, sign in zip((plus, ~plus), signs, strict=True):
            # Mean pT of what is inside, free of the yield.
            n = w.counts[which]
            mean = (n * pt[which]).sum() / n.sum()
            assert np.sign(((pt[which] - mean) * derivative[which]).sum()) == sign


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_resolution_derivatives_are_differences(name: str) -> None:
    step = STEPS[name]
    r = replace(default_resolution(), b=np.full(24, 2e-5))
    up, down = (replace(r, **{name: getattr(r, name) + sign * step}) for sign in (1.0, -1.0))
    # At the Z the given muon of a pair is measured anew, of which the derivative of the integrated one knows nothing.
    for make, tolerance in ((_w_of, 1e-2), (_z_of, 0.1)):
        numerical = (make(up).counts - make(down).counts) / (2.0 * step)
        column = make(r).resolution_derivative.reshape(-1, 3, 3)[:, :, "abc".index(name)].sum(axis=1)
        assert numerical @ column / (column @ column) == pytest.approx(1.0, abs=tolerance)


def _w_of(resolution: object) -> BosonTemplates:
    return w_templates(W_BINNING, resolution=resolution, n_draws=2 * DRAWS, seed=3, threads=1)  # type: ignore[arg-type]


def _z_of(resolution: object) -> BosonTemplates:
    return z_templates(Z_BINNING, resolution=resolution, n_draws=2 * DRAWS, seed=3, threads=1)  # type: ignore[arg-type]


def counted_z(blocks: list[DimuonEvents], scale: ScaleParameters | None = None) -> Floats:
    """(n_region n_mass,) measured pairs in the cells, corrected muon by muon, with plain numpy."""
    mass_edges = np.array(Z_BINNING.mass_edges)
    total = np.zeros((2, len(mass_edges) - 1))
    for events in blocks:
        events = events if scale is None else correct(events, scale)
        kept = np.ones(len(events), dtype=bool)
        for muons in (events.plus, events.minus):
            kept &= (np.abs(muons.eta) < 2.4) & (muons.pt >= 26.0) & (muons.pt < 60.0)
        plus, minus, mass = events.plus.eta[kept], events.minus.eta[kept], events.mass[kept]
        signed = np.where(np.abs(plus) > np.abs(minus), plus, minus)
        total += np.histogram2d(signed, mass, bins=(np.array(Z_BINNING.region_edges), mass_edges))[0]
    return total.ravel()


@pytest.fixture(scope="module")
def z_events() -> list[DimuonEvents]:
    return list(simulate_z(BosonSettings(boson("Z")), N_DRAWS, seed=79, threads=1))


def test_z_counts_are_those_of_measured_events(z: BosonTemplates, z_events: list[DimuonEvents]) -> None:
    found = counted_z(z_events)
    expected = z.counts / (1e6 * boson("Z").cross_section) * 2 * N_DRAWS
    assert np.sum((found - expected) ** 2 / (4.0 * expected)) < 55.0
    assert found.sum() == pytest.approx(expected.sum(), rel=0.01)


@pytest.mark.parametrize("name", ["A", "e"])
def test_z_derivatives_are_those_of_moved_events(
    z: BosonTemplates, z_events: list[DimuonEvents], name: str
) -> None:
    """One eta bin at a time, with both muons in it, and the cuts on pT. M cancels between mu+ and mu-: see below."""
    step = 20.0 * STEPS[name]
    for eta_bin in range(3):
        up, down = (counted_z(z_events, correction(name, eta_bin, sign * step)) for sign in (1.0, -1.0))
        found = 1e6 * boson("Z").cross_section / (2.0 * N_DRAWS) * (up - down) / (2.0 * step)
        expected = z.scale_derivative[:, 3 * eta_bin + "AeM".index(name)]
        assert np.corrcoef(found, expected)[0, 1] > 0.97, eta_bin
        assert found @ expected / (expected @ expected) == pytest.approx(1.0, abs=0.05), eta_bin


@pytest.mark.parametrize("charge", [1, -1])
def test_each_muon_of_a_pair_moves_with_its_charge(charge: int, z_events: list[DimuonEvents]) -> None:
    """Pairs with the muon of this charge in the middle eta bin and the other in the last: A, e and M of the middle."""
    r, z_settings = default_resolution(), BosonSettings(boson("Z"))

    def chosen(plus: Floats, minus: Floats) -> NDArray[np.bool_]:
        one, two = (plus, minus) if charge > 0 else (minus, plus)
        return np.asarray((one > -1.0) & (one < 0.2) & (two > 0.2))

    rows = [z_draws(z_settings, seed=3, block=n) for n in range(12)]
    total = np.zeros((3, 6, 30))
    for block in rows:
        kept = block[chosen(block[:, 1], block[:, 4])]
        total += _z_sums(
            kept, np.random.default_rng(5).normal(size=(len(kept), 2)), np.array(Z_BINNING.eta_edges),
            np.array([1.0 / 60.0, 1.0 / 26.0]), np.array(Z_BINNING.region_edges), np.array(Z_BINNING.mass_edges),
            r.eta_edges, np.array([r.a, r.b, r.c, r.d]), MUON_MASS, 6.0,
        )[1]  # fmt: skip
    events = [block.select(chosen(block.plus.eta, block.minus.eta)) for block in z_events]
    for column, name in enumerate("AeM"):
        step = 20.0 * STEPS[name]
        up, down = (counted_z(events, correction(name, 1, sign * step)) for sign in (1.0, -1.0))
        found, expected = (up - down) / (2.0 * step), total[1, column] / 3.0
        assert found @ expected / (expected @ expected) == pytest.approx(1.0, abs=0.1), name
        assert np.corrcoef(found, expected)[0, 1] > 0.98, name


@pytest.mark.parametrize("make", [_w_of, _z_of])
def test_mass_derivative_is_that_of_another_mass(make: Callable[[object], BosonTemplates]) -> None:
    """A boson 40 MeV heavier and one 40 MeV lighter, the same draws: pT of the muons follows, weights do not know."""
    settings = {}
    for sign in (1.0, -1.0):
        for name in ("W+", "W-", "Z"):
            line = boson(name).line
            settings[name, sign] = BosonSettings(
                replace(boson(name), line=replace(line, mass=line.mass + 0.04 * sign))
            )
    nominal = make(None)
    if nominal.boson == "W":
        up, down = (
            w_templates(
                W_BINNING, plus=settings["W+", s], minus=settings["W-", s], n_draws=N_DRAWS, seed=3, threads=1
            )
            for s in (1.0, -1.0)
        )
    else:
        up, down = (
            z_templates(Z_BINNING, settings=settings["Z", s], n_draws=N_DRAWS, seed=3, threads=1)
            for s in (1.0, -1.0)
        )
    numerical = (up.counts - down.counts) / 0.08
    expected = nominal.mass_derivative
    weight = 1.0 / nominal.counts
    slope = (weight * numerical) @ expected / ((weight * expected) @ expected)
    noise = np.sum(weight * nominal.mass_noise) / ((weight * expected) @ expected)
    assert noise < 0.05
    assert slope == pytest.approx(1.0 - noise, abs=0.04)


def test_a_weaker_field_is_linear_to_a_per_cent(w: BosonTemplates) -> None:
    """8e-4 in A of all muons, exactly, against the derivative."""
    everywhere = replace(no_bias(w.eta_edges), A=np.full(3, 0.003 / 3.8))
    moved = w_templates(W_BINNING, n_draws=N_DRAWS, seed=3, correction=everywhere, threads=1)
    linear = w.scale_derivative.reshape(90, 3, 3)[:, :, 0].sum(axis=1) * 0.003 / 3.8
    np.testing.assert_allclose(moved.counts - w.counts, linear, atol=0.03 * np.abs(linear).max())


def test_the_same_templates_for_any_number_of_threads() -> None:
    for make in (w_templates, z_templates):
        one, two = (make(n_draws=2 * DRAWS, seed=5, threads=n) for n in (1, 2))
        np.testing.assert_array_equal(one.counts, two.counts)
        np.testing.assert_array_equal(one.scale_derivative, two.scale_derivative)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WBinning(pt_edges=(26.0, 26.0)), "pt_edges: need at least two finite, increasing"),
        (lambda: WBinning(pt_edges=(0.0, 26.0)), "pt_edges: must be positive"),
        (lambda: ZBinning(muon_pt=(-1.0, 26.0)), "muon_pt: must be positive"),
        (lambda: ZBinning(region_edges=(-3.0, 0.0)), "region_edges: reach beyond eta_edges"),
        (lambda: w_templates(n_draws=10.0), "n_draws: need more than"),
        (
            lambda: z_templates(resolution=default_resolution().scaled(0.0)),
            "resolution: some eta bin has none",
        ),
        (lambda: w_templates(plus=BosonSettings(boson("W-"))), "need W\\+ and W-, got W- and W-"),
        (lambda: w_templates(correction=no_bias(np.array([-1.0, 1.0]))), "correction: its eta bins"),
        (
            lambda: w_templates(W_BINNING, correction=correction("e", 0, 20.0), n_draws=N_DRAWS),
            "correction: too large",
        ),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
