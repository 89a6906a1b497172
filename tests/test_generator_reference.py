"""Replicas of simulated pairs: the right resolution, independent draws, the same for any chunks."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.generator_reference import generator_replicas
from musclecal.records import DimuonEvents, Floats, Resolution
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, default_resolution, first_events

EVENTS = first_events(
    SimulationSettings(resonance("Jpsi"), (3.8, 42.0), (-2.4, 2.4), (2.5, 3.6)), 20_000, seed=5
)
R = default_resolution()
RESOLUTION = Resolution(
    "simulation", R.eta_edges, ("a", "c"), R.a, R.b, R.c, R.d, np.eye(48), 1.0, 1, 0.5, np.ones((24, 2)), ("generator",)
)  # fmt: skip


def pulls(events: DimuonEvents, replicas: int) -> tuple[Floats, Floats]:
    """(replicas, n) of mu+ and mu-: (k/k_true - 1)/sigma."""
    made = generator_replicas(events, RESOLUTION, replicas)
    out = []
    for new, true in ((made.plus, made.gen_plus), (made.minus, made.gen_minus)):
        assert true is not None
        i = np.searchsorted(R.eta_edges, new.eta, side="right") - 1
        sigma = np.sqrt(R.a[i] + R.c[i] * true.pt**2)
        out.append(((true.pt / new.pt - 1.0) / sigma).reshape(replicas, -1))
    return out[0], out[1]


def test_draws_are_unit_gaussian_and_independent() -> None:
    plus, minus = pulls(EVENTS, 3)
    draws = np.concatenate([plus, minus])
    n = len(EVENTS)
    np.testing.assert_allclose(draws.mean(axis=1), 0.0, atol=4.0 / np.sqrt(n))
    np.testing.assert_allclose(draws.var(axis=1), 1.0, atol=4.0 * np.sqrt(2.0 / n))
    correlations = np.corrcoef(draws)[np.triu_indices(6, 1)]
    np.testing.assert_allclose(correlations, 0.0, atol=4.5 / np.sqrt(n))
    assert EVENTS.gen_plus is not None
    measured = EVENTS.gen_plus.pt / EVENTS.plus.pt - 1.0
    assert abs(np.corrcoef(measured, plus[0])[0, 1]) < 4.5 / np.sqrt(n)


def test_the_same_for_any_chunks_and_order() -> None:
    whole = generator_replicas(EVENTS, RESOLUTION, 2)
    part = generator_replicas(EVENTS.select(np.arange(500, 100, -1)), RESOLUTION, 2)
    np.testing.assert_array_equal(part.plus.pt[:400], whole.plus.pt[500:100:-1])
    np.testing.assert_array_equal(part.minus.pt[400:], whole.minus.pt[len(EVENTS) :][500:100:-1])
    np.testing.assert_array_equal(part.plus.phi[:400], EVENTS.plus.phi[500:100:-1])


def test_measured_momenta_do_not_matter() -> None:
    biased = EVENTS.with_momenta(1.1 * EVENTS.plus.pt, 0.9 * EVENTS.minus.pt)
    one, two = (generator_replicas(events, RESOLUTION, 1) for events in (EVENTS, biased))
    np.testing.assert_array_equal(one.plus.pt, two.plus.pt)


def test_generator_level_muons_are_needed() -> None:
    with pytest.raises(InputError, match="no generator-level muons"):
        generator_replicas(replace(EVENTS, gen_plus=None), RESOLUTION, 2)
