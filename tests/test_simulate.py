"""The event generator against closed forms: line shape, radiation, decay, resolution, injected biases."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate

from musclecal.apply import correct
from musclecal.constants import ALPHA_QED, MUON_MASS
from musclecal.errors import InputError
from musclecal.records import DimuonEvents, ScaleParameters
from musclecal.resonances import Resonance, resonance
from musclecal.simulate import (
    MisModel,
    ResolutionModel,
    SimulationSettings,
    default_resolution,
    first_events,
    lineshape,
    no_bias,
    simulate,
)

Floats = NDArray[np.float64]

JPSI = resonance("Jpsi")
PERFECT = default_resolution().scaled(0.0)
ETA_EDGES = np.linspace(-2.4, 2.4, 13)
TRUTH = ScaleParameters(
    ETA_EDGES,
    A=1e-3 * np.sin(np.arange(12.0)),
    e=8e-4 * np.cos(np.arange(12.0)),
    M=2e-5 * np.sin(2.0 * np.arange(12.0)),
)


def usual(**options: object) -> SimulationSettings:
    """J/psi as calibrations select them."""
    settings = SimulationSettings(
        JPSI, muon_pt=(4.0, 40.0), eta_range=(-2.4, 2.4), mass_window=JPSI.mass_window
    )
    return replace(settings, **options)  # type: ignore[arg-type]


def everything(**options: object) -> SimulationSettings:
    """An acceptance that no measurement can leave: the same seed gives the same pairs for any detector."""
    spectrum = replace(JPSI.spectrum, p0=12.0)
    settings = SimulationSettings(
        JPSI, muon_pt=(0.01, 1e4), eta_range=(-20.0, 20.0), mass_window=(0.2, 100.0), spectrum=spectrum
    )
    return replace(settings, **options)  # type: ignore[arg-type]


def without_width(source: Resonance) -> Resonance:
    return replace(source, line=replace(source.line, width=0.0), neighbours=())


def columns(chunks: Sequence[DimuonEvents]) -> Floats:
    """(n_event, 11) every number of a sample."""
    parts = [
        np.stack(
            [muons.__dict__[name] for muons in (e.plus, e.minus) for name in ("pt", "eta", "phi")]
            + [e.gen_plus.pt, e.gen_minus.pt, e.lumi, e.event, e.extra["is_background"]],  # type: ignore[union-attr]
            axis=1,
        )
        for e in chunks
    ]
    return np.concatenate(parts)


def curvature_ratio(events: DimuonEvents) -> tuple[Floats, Floats]:
    """k_meas/k_true of both muons."""
    assert events.gen_plus is not None
    assert events.gen_minus is not None
    return events.gen_plus.pt / events.plus.pt, events.gen_minus.pt / events.minus.pt


class TestReproducibility:
    @pytest.mark.parametrize("chunk_events", [700, 4999, 20_000])
    def test_chunks_of_any_size_hold_the_same_events(self, chunk_events: int) -> None:
        settings = usual(background=0.1)
        whole = columns([first_events(settings, 9_000, seed=3)])
        chunks = list(simulate(settings, 9_000, seed=3, chunk_events=chunk_events))
        np.testing.assert_array_equal(columns(chunks), whole)
        assert [len(c) for c in chunks[:-1]] == [chunk_events] * (len(chunks) - 1)

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_any_number_of_threads_gives_the_same_events(self, threads: int) -> None:
        settings = usual(truth=TRUTH)
        expected = columns(list(simulate(settings, 9_000, seed=3, threads=3)))
        np.testing.assert_array_equal(
            columns(list(simulate(settings, 9_000, seed=3, threads=threads))), expected
        )

    def test_more_events_begin_with_the_same_ones(self) -> None:
        few, many = (columns([first_events(usual(), n, seed=3)]) for n in (1_000, 9_000))
        np.testing.assert_array_equal(many[:1_000], few)

    def test_another_seed_gives_other_events(self) -> None:
        one, two = (first_events(usual(), 1_000, seed=seed).plus.pt for seed in (1, 2))
        assert not np.any(np.isin(one, two))

    def test_events_are_numbered(self) -> None:
        events = list(simulate(usual(), 25_000, seed=3, chunk_events=9_000))
        np.testing.assert_array_equal(np.concatenate([e.event for e in events]), np.arange(25_000))
        assert len(events) == 3


class TestAcceptance:
    def test_measured_momenta_angles_and_masses_are_inside(self) -> None:
        settings = usual(background=0.2, truth=TRUTH)
        events = first_events(settings, 20_000, seed=4)
        assert len(events) == 20_000
        for muons in (events.plus, events.minus):
            assert np.all((muons.pt >= 4.0) & (muons.pt < 40.0))
            assert np.all(np.abs(muons.eta) <= 2.4)
            assert np.all(np.abs(muons.phi) <= np.pi)
        assert np.all((events.mass >= 2.85) & (events.mass < 3.25))

    def test_generator_level_is_there_and_shares_the_angles(self) -> None:
        events = first_events(usual(), 2_000, seed=4)
        assert events.gen_plus is not None
        assert events.gen_minus is not None
        assert events.gen_mass is not None
        np.testing.assert_array_equal(events.gen_plus.eta, events.plus.eta)
        np.testing.assert_array_equal(events.gen_minus.phi, events.minus.phi)
        assert np.std(events.plus.pt / events.gen_plus.pt) == pytest.approx(0.012, rel=0.3)

    @pytest.mark.parametrize("fraction", [0.05, 0.3])
    def test_background_has_the_fraction_asked_for(self, fraction: float) -> None:
        settings = usual(background=fraction)
        found = first_events(settings, 40_000, seed=5).extra["is_background"].astype(np.float64).mean()
        calibrated_with = 4 * 900
        error = np.sqrt(fraction * (1.0 - fraction) * (1.0 / 40_000 + 2.0 / calibrated_with))
        assert found == pytest.approx(fraction, abs=4.0 * error)

    @pytest.mark.parametrize("slope", [-2.0, 0.0, 3.0])
    def test_background_falls_exponentially(self, slope: float) -> None:
        settings = usual(background=0.9, background_slope=slope, resolution=PERFECT)
        events = first_events(settings, 60_000, seed=6)
        masses = events.mass[events.extra["is_background"] == 1.0]
        low, high = JPSI.mass_window
        norm, first = (
            integrate.quad(lambda m, n=n: m**n * np.exp(-slope * m), low, high, epsabs=0.0)[0] for n in (0, 1)
        )
        # The acceptance in pT depends on the mass a little: a few per cent over the window.
        assert masses.mean() == pytest.approx(first / norm, abs=0.002)

    def test_an_impossible_acceptance_is_reported(self) -> None:
        with pytest.raises(InputError, match="no pair is accepted"):
            first_events(usual(mass_window=(20.0, 21.0)), 10, seed=1)

    @pytest.mark.parametrize("background", [-0.1, 1.0])
    def test_a_background_that_is_no_fraction_is_refused(self, background: float) -> None:
        with pytest.raises(InputError, match="background: a fraction"):
            usual(background=background)

    def test_a_truth_without_inverse_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"truth: e up to 0\.6 GeV"):
            usual(truth=replace(no_bias(ETA_EDGES), e=np.full(12, 0.6)))


class TestLineShapeAndRadiation:
    def test_without_radiation_and_resolution_the_mass_is_that_of_the_line(self) -> None:
        settings = usual(resonance=without_width(JPSI), fsr=False, resolution=PERFECT)
        events = first_events(settings, 5_000, seed=7)
        assert events.gen_mass is not None
        np.testing.assert_allclose(events.gen_mass, JPSI.line.mass, rtol=1e-12)
        np.testing.assert_allclose(events.mass, JPSI.line.mass, rtol=1e-12)

    @pytest.mark.parametrize("name", ["Z", "Jpsi"])
    def test_quartiles_of_a_breit_wigner(self, name: str) -> None:
        """Within +-cut: quantile p is (width/2) tan[(2p - 1) arctan(2 cut/width)]."""
        line, n = resonance(name).line, 400_000
        masses = lineshape(resonance(name), n, seed=8, fsr=False)
        reach = np.arctan(2.0 * (12.0 * line.width + 0.1) / line.width)
        density = 2.0 / (np.pi * line.width)
        for p in (0.25, 0.5, 0.75):
            expected = line.mass + 0.5 * line.width * np.tan((2.0 * p - 1.0) * reach)
            error = np.sqrt(p * (1.0 - p) / n) / (density * (0.5 if p != 0.5 else 1.0))
            assert np.quantile(masses, p) == pytest.approx(expected, abs=4.0 * error)

    def test_neighbouring_lines_come_in_their_fractions(self) -> None:
        y1, n = resonance("Y1S"), 200_000
        masses = lineshape(y1, n, seed=9, fsr=False)
        total = sum(line.fraction for line in y1.lines)
        for line in y1.lines:
            share = line.fraction / total
            found = np.count_nonzero(np.abs(masses - line.mass) < 0.1) / n
            assert found == pytest.approx(share, abs=4.0 * np.sqrt(share * (1.0 - share) / n) + 1e-4)

    @pytest.mark.parametrize("name", ["Jpsi", "Z"])
    def test_radiation_takes_the_expected_mass(self, name: str) -> None:
        """Moments of b x^(b-1) (1 + (1-x)^2)/2 by quadrature in v = x^b, where the density is smooth."""
        source = without_width(resonance(name))
        b = ALPHA_QED / np.pi * (2.0 * np.log(source.line.mass / MUON_MASS) - 1.0)
        n = 400_000
        ratio = lineshape(source, n, seed=10) / source.line.mass

        def moment(function: str) -> float:
            kept = {"norm": 0.0, "root": 0.5, "one": 1.0}[function]

            def integrand(v: float) -> float:
                x = v ** (1.0 / b)
                return float((1.0 - x) ** kept * 0.5 * (1.0 + (1.0 - x) ** 2))

            return float(integrate.quad(integrand, 0.0, 1.0, points=[0.9, 0.99], epsabs=1e-10, limit=200)[0])

        norm = moment("norm")
        mean, square = (moment("root") / norm) ** 2, (moment("one") / norm) ** 2
        assert ratio.mean() == pytest.approx(mean, abs=4.0 * np.std(ratio) / np.sqrt(n))
        assert np.mean(ratio**2) == pytest.approx(square, abs=4.0 * np.std(ratio**2) / np.sqrt(n))
        assert 0.005 < 1.0 - mean < 0.05

    def test_most_muons_radiate_next_to_nothing(self) -> None:
        ratio = lineshape(without_width(JPSI), 100_000, seed=11) / JPSI.line.mass
        assert np.median(ratio) > 0.9999
        assert np.all(ratio <= 1.0)

    @pytest.mark.parametrize("fsr", [True, False])
    def test_events_have_the_line_shape_where_nothing_is_cut(self, fsr: bool) -> None:
        n = 40_000
        settings = everything(resonance=without_width(JPSI), fsr=fsr)
        gen_mass = first_events(settings, n, seed=12).gen_mass
        assert gen_mass is not None
        expected = lineshape(without_width(JPSI), 400_000, seed=13, fsr=fsr)
        error = np.std(expected) * np.sqrt(1.0 / n + 1.0 / 400_000)
        assert gen_mass.mean() == pytest.approx(expected.mean(), abs=4.0 * error + 1e-12)

    @pytest.mark.parametrize("polarisation", [-0.5, 0.0, 1.0])
    def test_decays_have_the_polarisation_of_the_spectrum(self, polarisation: float) -> None:
        """<cos^2> of 1 + lambda cos^2 is (1/3 + lambda/5)/(1 + lambda/3)."""
        n = 40_000
        spectrum = replace(JPSI.spectrum, polarisation=polarisation)
        events = first_events(everything(fsr=False, spectrum=spectrum), n, seed=14)
        cosine = _helicity_cosine(events)
        assert np.all(np.abs(cosine) <= 1.0 + 1e-6)
        expected = (1.0 / 3.0 + polarisation / 5.0) / (1.0 + polarisation / 3.0)
        assert np.mean(cosine**2) == pytest.approx(expected, abs=4.0 * np.std(cosine**2) / np.sqrt(n))
        assert np.mean(cosine) == pytest.approx(0.0, abs=4.0 * np.std(cosine) / np.sqrt(n))


def _helicity_cosine(events: DimuonEvents) -> Floats:
    """Cosine of the angle between mu+ in the rest frame of the pair and the flight of the pair."""
    assert events.gen_plus is not None
    assert events.gen_minus is not None
    plus, minus = (
        np.stack([m.pt * np.cos(m.phi), m.pt * np.sin(m.phi), m.pt * np.sinh(m.eta)])
        for m in (events.gen_plus, events.gen_minus)
    )
    total = plus + minus
    momentum = np.linalg.norm(total, axis=0)
    e_plus, e_minus = (np.sqrt(MUON_MASS**2 + np.sum(p**2, axis=0)) for p in (plus, minus))
    energy = e_plus + e_minus
    mass = np.sqrt(energy**2 - momentum**2)
    along = np.sum(plus * total, axis=0) / momentum
    at_rest = (energy * along - momentum * e_plus) / mass
    return np.asarray(at_rest / np.sqrt(0.25 * mass**2 - MUON_MASS**2))


class TestResolution:
    MODEL = ResolutionModel(
        eta_edges=np.array([-2.4, 0.0, 2.4]),
        a=np.array([1e-4, 2.5e-4]),
        b=np.array([2e-4, 0.0]),
        c=np.array([1e-7, 4e-7]),
        d=np.array([370.0, 370.0]),
    )

    @pytest.mark.parametrize("eta_bin", [0, 1])
    @pytest.mark.parametrize("pt", [(2.0, 2.4), (8.0, 9.0), (25.0, 29.0)])
    def test_curvatures_are_smeared_as_the_model_says(self, eta_bin: int, pt: tuple[float, float]) -> None:
        events = self.sample()
        assert events.gen_plus is not None
        ratio, _ = curvature_ratio(events)
        true, eta = events.gen_plus.pt, events.gen_plus.eta
        inside = (true > pt[0]) & (true < pt[1]) & (np.digitize(eta, self.MODEL.eta_edges) - 1 == eta_bin)
        n = np.count_nonzero(inside)
        k2, m = 1.0 / true[inside] ** 2, self.MODEL
        square = m.a[eta_bin] + m.c[eta_bin] / k2 + m.b[eta_bin] / (1.0 + m.d[eta_bin] * k2)
        assert n > 150
        pulls = (ratio[inside] - 1.0) / np.sqrt(square)
        assert np.std(pulls) == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * n))
        assert np.mean(pulls) == pytest.approx(0.0, abs=4.0 / np.sqrt(n))

    @pytest.mark.parametrize("eta_bin", [0, 1])
    def test_the_resolution_is_right_to_two_per_cent(self, eta_bin: int) -> None:
        """All muons of an eta bin together, each in units of its own resolution."""
        events, m = self.sample(), self.MODEL
        assert events.gen_plus is not None
        true, eta = events.gen_plus.pt, events.gen_plus.eta
        inside = (np.digitize(eta, m.eta_edges) - 1 == eta_bin) & (np.abs(eta) < 2.4)
        k2, n = 1.0 / true[inside] ** 2, np.count_nonzero(inside)
        sigma = np.sqrt(m.a[eta_bin] + m.c[eta_bin] / k2 + m.b[eta_bin] / (1.0 + m.d[eta_bin] * k2))
        pulls = (curvature_ratio(events)[0][inside] - 1.0) / sigma
        assert n > 20_000
        assert np.std(pulls) == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * n))

    def sample(self) -> DimuonEvents:
        return first_events(everything(resolution=self.MODEL), 60_000, seed=15)

    def test_the_two_muons_are_smeared_independently(self) -> None:
        plus, minus = curvature_ratio(self.sample())
        assert np.corrcoef(plus, minus)[0, 1] == pytest.approx(0.0, abs=4.0 / np.sqrt(60_000))

    def test_muons_beyond_the_last_eta_edge_have_the_resolution_of_the_last_bin(self) -> None:
        narrow = replace(self.MODEL, eta_edges=np.array([-0.1, 0.0, 0.1]))
        events = first_events(everything(resolution=narrow), 40_000, seed=16)
        ratio, _ = curvature_ratio(events)
        beyond = (events.plus.eta > 0.5) & (events.plus.pt > 4.0) & (events.plus.pt < 6.0)
        expected = np.sqrt(2.5e-4 + 4e-7 * 25.0)
        assert np.std(ratio[beyond]) == pytest.approx(expected, rel=4.0 / np.sqrt(2.0 * beyond.sum()) + 0.01)

    def test_a_scaled_model_is_wider_by_the_factor(self) -> None:
        narrow, wide = (
            np.std(curvature_ratio(first_events(everything(resolution=m), 40_000, seed=17))[0])
            for m in (self.MODEL, self.MODEL.scaled(1.5))
        )
        assert wide / narrow == pytest.approx(1.5, rel=1e-12)


class TestInjectedBias:
    def test_the_truth_corrects_to_the_unbiased_events(self) -> None:
        """Physics.md section 1: the injection is the exact inverse of the correction."""
        unbiased = first_events(everything(), 30_000, seed=18)
        biased = first_events(everything(truth=TRUTH), 30_000, seed=18)
        assert np.max(np.abs(biased.plus.pt / unbiased.plus.pt - 1.0)) > 1e-3
        after = correct(biased, TRUTH)
        np.testing.assert_allclose(after.plus.pt, unbiased.plus.pt, rtol=1e-12)
        np.testing.assert_allclose(after.minus.pt, unbiased.minus.pt, rtol=1e-12)
        np.testing.assert_allclose(after.mass, unbiased.mass, rtol=1e-12)

    def test_signs_of_the_injected_bias(self) -> None:
        """What a correction lowers, the bias has raised: A and M of mu+ raise, e and M of mu- lower it."""
        zero = no_bias(np.array([-20.0, 20.0]))
        unbiased = first_events(everything(), 1_000, seed=18)
        for change, plus, minus in (
            ({"A": np.array([1e-3])}, 1, 1),
            ({"e": np.array([1e-3])}, -1, -1),
            ({"M": np.array([1e-6])}, 1, -1),
        ):
            biased = first_events(everything(truth=replace(zero, **change)), 1_000, seed=18)
            np.testing.assert_array_equal(np.sign(biased.plus.pt - unbiased.plus.pt), plus)
            np.testing.assert_array_equal(np.sign(biased.minus.pt - unbiased.minus.pt), minus)

    def test_no_truth_and_a_truth_of_zero_are_the_same(self) -> None:
        none, zero = (first_events(usual(truth=t), 5_000, seed=19) for t in (None, no_bias(ETA_EDGES)))
        np.testing.assert_allclose(columns([zero]), columns([none]), rtol=1e-15)

    def test_muons_outside_the_eta_range_of_the_truth_are_not_biased(self) -> None:
        central = replace(TRUTH, eta_edges=np.linspace(-0.5, 0.5, 13))
        unbiased, biased = (first_events(everything(truth=t), 5_000, seed=20) for t in (None, central))
        outside = np.abs(unbiased.plus.eta) > 0.5
        np.testing.assert_array_equal(biased.plus.pt[outside], unbiased.plus.pt[outside])
        assert np.all(biased.plus.pt[~outside] != unbiased.plus.pt[~outside])

    @pytest.mark.parametrize("name", ["pt2", "phi", "eta"])
    def test_mis_models_scale_the_curvature_as_documented(self, name: str) -> None:
        """k_meas = k/(1 + x): the measured pT is larger by the correction x that is still needed."""
        mismodel = {
            "pt2": MisModel(pt2=1e-6),
            "phi": MisModel(phi_amplitude=1e-3, phi_harmonic=3),
            "eta": MisModel(eta_amplitude=2e-3, eta_period=0.8, eta_pt_min=6.0),
        }[name]
        without, biased = (
            first_events(everything(mismodel=m), 20_000, seed=21) for m in (MisModel(), mismodel)
        )
        for muons, before, true in (
            (biased.plus, without.plus, biased.gen_plus),
            (biased.minus, without.minus, biased.gen_minus),
        ):
            assert true is not None
            expected = {
                "pt2": 1e-6 * true.pt**2,
                "phi": 1e-3 * np.cos(3.0 * true.phi),
                "eta": 2e-3 * np.sin(2.0 * np.pi * true.eta / 0.8) * (true.pt > 6.0),
            }[name]
            np.testing.assert_allclose(muons.pt / before.pt - 1.0, expected, atol=1e-12)
            assert np.ptp(expected) > 1e-4

    def test_a_bias_and_a_mis_model_add_up(self) -> None:
        settings = everything(truth=TRUTH, mismodel=MisModel(pt2=1e-6))
        unbiased, both = (first_events(s, 5_000, seed=22) for s in (everything(), settings))
        assert both.gen_plus is not None
        after = correct(both, TRUTH).plus.pt / (1.0 + 1e-6 * both.gen_plus.pt**2)
        np.testing.assert_allclose(after, unbiased.plus.pt, rtol=1e-12)
