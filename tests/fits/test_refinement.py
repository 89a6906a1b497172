"""Corrections in phi and run ranges: noiseless algebra, covariance, and injected waves and steps with pulls."""

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest

from musclecal.binning import TemplateBinning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.phi_waves import count_angles, wave_information
from musclecal.fits.refinement import joined, run_step, sector_step, wave_step
from musclecal.fits.scale_information import scale_information
from musclecal.fits.template_closure import BinInformation, bin_information, log_derivatives
from musclecal.fits.templates import fill_templates
from musclecal.records import (
    DimuonEvents,
    Floats,
    Muons,
    PhiRefinement,
    RunRefinement,
    ScaleInformation,
    ScaleParameters,
    TemplateHistogram,
)
from musclecal.refine import refine
from musclecal.resonances import resonance
from musclecal.simulate import MisModel, SimulationSettings, first_events
from musclecal.validation.splits import phi_tests, run_test

RNG = np.random.default_rng(41)
EDGES = (-2.4, -0.7, 1.1, 2.4)
S = 8
UNITS = np.array([1e-4, 1e-2, 1e-5, 1e-5])


def quadratic(x: Floats, sectors: int, seed: int = 2) -> ScaleInformation:
    """A quadratic form with its minimum at ``x`` (n_region, 4)."""
    flat = x.ravel()
    roots = np.random.default_rng(seed).normal(size=(6 * flat.size, flat.size)) / np.tile(UNITS, len(x))
    normal = roots.T @ roots
    vector = normal @ flat
    return ScaleInformation(
        "Z", np.array(EDGES), sectors, normal, vector, 500.0 + float(flat @ vector), 530, np.ones(len(x)), 900.0,
        1000.0, np.zeros_like(normal),
    )  # fmt: skip


def with_noise(information: ScaleInformation, noise: Floats) -> ScaleInformation:
    return replace(information, vector=information.vector + np.linalg.cholesky(information.normal) @ noise)


class TestSectors:
    def test_what_is_fitted_is_what_is_applied(self) -> None:
        """x of every region read off corrected muons of both charges, in the middle of their sectors."""
        a, m = 1e-4 * RNG.normal(size=(3, S)), 1e-5 * RNG.normal(size=(3, S))
        truth = PhiRefinement("Z", np.array(EDGES), (), S, a, m, np.eye(6 * S), 1.0, 1, 0.5, 1, 0.0)
        eta = np.repeat([-1.0, 0.0, 2.0], S)
        phi = np.tile(-np.pi + 2.0 * np.pi * (np.arange(S) + 0.5) / S, 3)
        muons = Muons(np.full(3 * S, 40.0), eta, phi)
        out = refine(DimuonEvents(muons, muons), truth)
        plus, minus = 40.0 / out.plus.pt - 1.0, 40.0 / out.minus.pt - 1.0
        x = np.zeros((3 * S, 4))
        x[:, 0], x[:, 2] = 0.5 * (plus + minus), 0.5 * (plus - minus) / 40.0
        found = sector_step(quadratic(x, S))
        np.testing.assert_allclose(found.A, a, rtol=1e-7)
        np.testing.assert_allclose(found.M, m, rtol=1e-7)
        assert found.chi2 == pytest.approx(500.0, abs=1e-5)
        assert found.ndf == 530 - 6 * S - 3

    def test_pulls_are_unit_in_the_order_of_the_covariance(self) -> None:
        information = quadratic(np.zeros((3 * S, 4)), S)
        changes = []
        for _ in range(200):
            step = sector_step(with_noise(information, RNG.normal(size=12 * S)))
            flat = np.stack([step.A, step.M], axis=2).ravel()
            changes.append(flat @ np.linalg.solve(step.covariance, flat))
            assert step.last_change == pytest.approx(changes[-1] / flat.size)
        assert np.mean(changes) == pytest.approx(6 * S, abs=4.0 * np.sqrt(12.0 * S / 200.0))


class TestRuns:
    def test_noiseless_values_and_errors_of_a_common_simulation(self) -> None:
        """Ranges with 900, 900 events against 3600: off-diagonal blocks are a fifth of the diagonal ones."""
        x = UNITS * RNG.normal(size=(2, 3, 4))
        x[:, :, 1] = 0.0
        parts = [quadratic(values, 1) for values in x]
        found = run_step(parts, (5, 9, 20), 3600.0)
        np.testing.assert_allclose(found.A, x[:, :, 0], rtol=1e-7)
        np.testing.assert_allclose(found.M, x[:, :, 2], rtol=1e-7)
        blocks = found.covariance.reshape(2, 6, 2, 6)
        np.testing.assert_allclose(blocks[0, :, 1], 0.2 * blocks[0, :, 0], rtol=1e-9)
        np.testing.assert_allclose(blocks[1, :, 1], blocks[0, :, 0], rtol=1e-9)
        assert np.linalg.eigvalsh(found.covariance)[0] > 0.0
        assert found.run_edges == (5, 9, 20)
        assert found.chi2 == pytest.approx(1000.0, abs=1e-5)

    @pytest.mark.parametrize("edges", [(5, 9), (5, 9, 9), (9, 5, 20)])
    def test_wrong_edges_are_named(self, edges: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="run_edges: 2 ranges"):
            run_step([quadratic(np.zeros((3, 4)), 1)] * 2, edges, 100.0)


def test_steps_add_up() -> None:
    one = sector_step(quadratic(UNITS * RNG.normal(size=(3 * S, 4)), S))
    two = sector_step(quadratic(UNITS * RNG.normal(size=(3 * S, 4)), S))
    both = joined(one, two)
    np.testing.assert_array_equal(both.A, one.A + two.A)
    np.testing.assert_array_equal(both.M, one.M + two.M)
    assert (both.passes, both.last_change) == (2, two.last_change)
    assert both.chi2 == two.chi2


# Simulated Z


R = resonance("Z")
SECTORS = 12
WHOLE = TemplateBinning(
    equal_eta_edges(4, 2.4), R.template.asymmetry_edges, R.template.pt_edges, (25.0, 100.0), R.mass_window,
    R.template.mass_bins, R.line.mass,
)  # fmt: skip
IN_PHI = replace(WHOLE, phi_sectors=SECTORS)
SETTINGS = SimulationSettings(R, (22.0, 115.0), (-2.4, 2.4), (73.0, 110.0))


@cache
def events(n: int, seed: int, harmonic: int = 0, amplitude: float = 1e-3) -> DimuonEvents:
    bias = MisModel(phi_amplitude=amplitude, phi_harmonic=harmonic) if harmonic else MisModel()
    return first_events(replace(SETTINGS, mismodel=bias), n, seed)


def filled(sample: DimuonEvents, binning: TemplateBinning = WHOLE) -> TemplateHistogram:
    return fill_templates(
        [sample], binning, step=R.template.step, derivatives=binning.phi_sectors == 1, threads=1
    )


def in_phi(data: DimuonEvents, simulation: DimuonEvents) -> BinInformation:
    derivatives = log_derivatives(filled(data), filled(simulation))
    return bin_information(filled(data, IN_PHI), filled(simulation, IN_PHI), derivatives, threads=1)


@pytest.mark.parametrize("harmonic", [2, 3])
def test_a_wave_comes_back_in_full(harmonic: int) -> None:
    """The same events with and without it: little noise. With averages over sectors, harmonic 3 comes back as 0.71.

    The first harmonic, with averages 0.77, would need 3e6 events.
    """
    n, seed = 200_000, 8
    with_wave, without = events(n, seed, harmonic), events(n, seed)
    angles = count_angles([without], IN_PHI)
    simulation = events(n, seed + 1)
    values = []
    for data in (with_wave, without):
        bins = in_phi(data, simulation)
        waves = wave_information(bins, angles, (harmonic,), "Z")
        test = phi_tests(scale_information(bins, "Z"), (harmonic,), waves)[0]
        values.append(test.values)
    found = values[0] - values[1]
    print(harmonic, 1e5 * found[:, 0], 1e6 * found[:, 1])
    assert found[0, 0] == pytest.approx(1e-3, rel=0.08)
    assert abs(found[1, 0]) < 1e-4
    assert np.all(np.abs(found[:, 1]) < 5e-6)


@pytest.mark.slow
def test_waves_have_unit_pulls_and_leave_nothing() -> None:
    """Both harmonics fitted, one of them injected. What was not fitted is a test still; what was fitted is none."""
    wave_chi2, others, again = [], [], []
    for seed in range(12):
        harmonic = 1 + seed % 2
        data, simulation = events(100_000, 100 + seed, harmonic), events(100_000, 200 + seed)
        angles = count_angles([data], IN_PHI)
        found = wave_step(in_phi(data, simulation), angles, (1, 2), "Z")
        truth = np.zeros((4, 5, 2))
        truth[:, 2 * harmonic - 1, 0] = 1e-3
        rest = (np.stack([found.A, found.M], axis=2) - truth).ravel()
        wave_chi2.append(rest @ np.linalg.solve(found.covariance, rest))
        after = in_phi(refine(data, found), simulation)
        waves = wave_information(after, angles, (1, 2, 3), "Z")
        tests = phi_tests(scale_information(after, "Z"), (1, 2, 3), waves)
        others.append(tests[2].p_value)
        again.append(min(tests[0].p_value, tests[1].p_value))
    n_par = 40
    print(
        f"chi2/{n_par} {np.mean(wave_chi2):.1f}, p {np.sort(others).round(2)}, fitted {np.sort(again).round(3)}"
    )
    assert np.mean(wave_chi2) == pytest.approx(n_par, abs=4.0 * np.sqrt(2.0 * n_par / 12))
    assert np.max(wave_chi2) < 80.0
    assert 0.25 < np.mean(others) < 0.75
    assert np.min(others) > 1e-3
    assert np.min(again) > 0.5


def of_runs(sample: DimuonEvents, low: int, high: int) -> DimuonEvents:
    assert sample.run is not None
    return sample.select((sample.run >= low) & (sample.run < high))


def in_ranges(data: DimuonEvents, simulation: DimuonEvents, edges: tuple[int, ...]) -> list[ScaleInformation]:
    sim = filled(simulation)
    derivatives = log_derivatives(filled(data), sim)
    return [
        scale_information(bin_information(filled(of_runs(data, *pair)), sim, derivatives, threads=1), "Z")
        for pair in pairwise(edges)
    ]


def together(one: DimuonEvents, two: DimuonEvents) -> DimuonEvents:
    def muons(part: str) -> Muons:
        a, b = getattr(one, part), getattr(two, part)
        return Muons(*(np.concatenate([getattr(a, x), getattr(b, x)]) for x in ("pt", "eta", "phi")))

    assert one.run is not None
    assert two.run is not None
    return DimuonEvents(muons("plus"), muons("minus"), run=np.concatenate([one.run, two.run]))


@pytest.mark.slow
def test_a_step_in_time_has_unit_pulls_and_is_gone_afterwards() -> None:
    """Two ranges with other truth. The data after a step of other events is tested with all that is known of both."""
    eta_edges = np.array(WHOLE.eta_edges)
    zero = np.zeros(4)
    truths = [
        ScaleParameters(eta_edges, a, zero, m)
        for a, m in (
            (np.full(4, 2e-3), np.array([2e-5, -1e-5, 0.0, 1e-5])),
            (np.array([-1e-3, 0.0, 5e-4, 1e-3]), zero),
        )
    ]
    edges, chi2, p_before, p_after = (10, 20, 30), [], [], []
    for seed in range(12):
        samples = [
            first_events(replace(SETTINGS, truth=truth, run=run), 50_000, 300 + 2 * seed + n)
            for n, (truth, run) in enumerate(zip(truths, (19, 20), strict=True))
        ]
        data, simulation = together(*samples), events(100_000, 400 + seed)
        parts = in_ranges(data, simulation, edges)
        found = run_step(parts, edges, 100_000.0)
        p_before.append(run_test(parts, found.terms, 100_000.0).p_value)
        injected = np.array([np.stack([t.A, t.M], axis=1) for t in truths])
        rest = (np.stack([found.A, found.M], axis=2) - injected).ravel()
        chi2.append(rest @ np.linalg.solve(found.covariance, rest))
        p_after.append(run_test(in_ranges(refine(data, found), simulation, edges), found.terms, 1e5).p_value)
    print(f"chi2/16 {np.mean(chi2):.1f}, p before {np.max(p_before):.1g}, after {np.min(p_after):.2f}")
    assert np.mean(chi2) == pytest.approx(16.0, abs=4.0 * np.sqrt(32.0 / 12))
    assert np.max(p_before) < 1e-3
    assert np.min(p_after) > 0.9


def test_a_known_correction_makes_the_tests_uniform() -> None:
    """Muons corrected with the true step (the other sample's events): the ranges are alike again."""
    p_values = []
    eta_edges = np.array(WHOLE.eta_edges)
    a = np.array([[1e-3] * 4, [-1e-3] * 4])
    step = RunRefinement("Z", eta_edges, (10, 20, 30), a, np.zeros((2, 4)), np.eye(16), 1.0, 1, 0.5, 1, 0.0)
    zero = np.zeros(4)
    for seed in range(8):
        samples = [
            first_events(
                replace(SETTINGS, truth=ScaleParameters(eta_edges, a[n], zero, zero), run=(19, 20)[n]),
                30_000, 500 + 2 * seed + n,
            )
            for n in range(2)
        ]  # fmt: skip
        corrected = partial(refine, refinement=step)(together(*samples))
        parts = in_ranges(corrected, events(60_000, 600 + seed), (10, 20, 30))
        p_values.append(run_test(parts, step.terms, 60_000.0).p_value)
    print(np.sort(p_values).round(3))
    assert 0.2 < np.mean(p_values) < 0.8
    assert np.min(p_values) > 1e-3


@pytest.mark.parametrize("harmonics", [(), (1, 1), (6,), (0,)])
def test_wrong_harmonics_are_named(harmonics: tuple[int, ...]) -> None:
    bins = in_phi(events(5_000, 1), events(5_000, 2))
    with pytest.raises(InputError, match=r"harmonics: at least one|phi_sectors: harmonic"):
        wave_step(bins, count_angles([events(5_000, 1)], IN_PHI), harmonics, "Z")
