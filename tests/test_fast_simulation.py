"""The reference made from the data: reproducible, with the true line shape, the seeds' directions and the smearing."""

from collections.abc import Iterable

import numpy as np
import pytest

from musclecal.fast_simulation import fast_simulation
from musclecal.records import DimuonEvents, Floats, Muons
from musclecal.resonances import resonance
from musclecal.simulate import (
    ResolutionModel,
    SimulationSettings,
    default_resolution,
    first_events,
    lineshape,
    simulate,
)

JPSI = resonance("Jpsi")
SETTINGS = SimulationSettings(JPSI, (4.0, 40.0), (-2.4, 2.4), (2.85, 3.25))
N_SEEDS, REPLICAS = 20_000, 5


@pytest.fixture(scope="module")
def seeds() -> DimuonEvents:
    return first_events(SETTINGS, N_SEEDS, 21)


def made_from(seeds: Iterable[DimuonEvents], *, seed: int = 3, threads: int | None = None) -> DimuonEvents:
    """In one piece."""
    chunks = list(
        fast_simulation(seeds, JPSI, default_resolution(), replicas=REPLICAS, seed=seed, threads=threads)
    )
    assert all(len(chunk) for chunk in chunks)
    return together(chunks)


def together(chunks: list[DimuonEvents]) -> DimuonEvents:
    def muons(name: str) -> Muons:
        parts = [getattr(chunk, name) for chunk in chunks]
        return Muons(*(np.concatenate([getattr(p, x) for p in parts]) for x in ("pt", "eta", "phi")))

    return DimuonEvents(muons("plus"), muons("minus"), muons("gen_plus"), muons("gen_minus"))


def columns(events: DimuonEvents) -> Floats:
    assert events.gen_plus is not None
    assert events.gen_minus is not None
    muons = (events.plus, events.minus, events.gen_plus, events.gen_minus)
    return np.array([x for m in muons for x in (m.pt, m.eta, m.phi)])


@pytest.fixture(scope="module")
def made(seeds: DimuonEvents) -> DimuonEvents:
    return made_from([seeds])


def masses_of(events: DimuonEvents) -> Floats:
    assert events.gen_mass is not None
    return events.gen_mass


@pytest.mark.parametrize("chunk_events", [701, 16_384, 19_999])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits_for_any_chunks_and_threads(
    made: DimuonEvents, chunk_events: int, threads: int
) -> None:
    chunks = simulate(SETTINGS, N_SEEDS, 21, chunk_events=chunk_events)
    assert columns(made_from(chunks, threads=threads)).tobytes() == columns(made).tobytes()


def test_empty_chunks_change_nothing(made: DimuonEvents, seeds: DimuonEvents) -> None:
    empty = seeds.select(np.empty(0, dtype=np.int64))
    assert columns(made_from([empty, seeds, empty])).tobytes() == columns(made).tobytes()


def test_another_seed_gives_other_events(made: DimuonEvents, seeds: DimuonEvents) -> None:
    other = made_from([seeds], seed=4)
    assert not np.any(other.plus.pt == made.plus.pt)


def test_every_seed_lends_its_directions_to_its_replicas(made: DimuonEvents, seeds: DimuonEvents) -> None:
    assert len(made) == REPLICAS * N_SEEDS
    for new, old in ((made.plus, seeds.plus), (made.minus, seeds.minus)):
        np.testing.assert_array_equal(new.eta, np.repeat(old.eta, REPLICAS))
        np.testing.assert_array_equal(new.phi, np.repeat(old.phi, REPLICAS))


def test_the_momenta_keep_the_ratio_of_the_seed_but_for_photons(
    made: DimuonEvents, seeds: DimuonEvents
) -> None:
    assert made.gen_plus is not None
    assert made.gen_minus is not None
    ratio = made.gen_plus.pt / made.gen_minus.pt
    change = ratio / np.repeat(seeds.plus.pt / seeds.minus.pt, REPLICAS) - 1.0
    assert np.median(np.abs(change)) < 1e-6
    assert np.mean(change > 1e-3) == pytest.approx(np.mean(change < -1e-3), abs=0.01)


def test_the_generator_masses_follow_the_line_shape(made: DimuonEvents) -> None:
    """The median is at the line, where most pairs radiate next to nothing; the loss is that of `lineshape`."""
    expected = lineshape(JPSI, 1_000_000, seed=5)
    mass = JPSI.line.mass
    assert np.median(masses_of(made)) / np.median(expected) - 1.0 == pytest.approx(0.0, abs=1e-5)
    loss, expected_loss = 1.0 - masses_of(made) / mass, 1.0 - expected / mass
    n_sigma = (loss.mean() - expected_loss.mean()) / (loss.std() / np.sqrt(len(loss)))
    assert abs(n_sigma) < 4.0
    for cut in (1e-3, 0.01, 0.1):
        share, expected_share = np.mean(loss > cut), np.mean(expected_loss > cut)
        assert share == pytest.approx(expected_share, abs=4.5 * np.sqrt(expected_share / len(loss)))


def test_the_neighbours_come_in_their_fractions(seeds: DimuonEvents) -> None:
    upsilon = resonance("Y1S")
    chunks = list(fast_simulation([seeds], upsilon, default_resolution(), replicas=2, seed=1))
    masses = masses_of(together(chunks))
    for line, (low, high) in zip(upsilon.lines, ((9.3, 9.6), (9.95, 10.1), (10.3, 10.5)), strict=True):
        near = lineshape(upsilon, 500_000, seed=2)
        expected = np.mean((near > low) & (near < high))
        found = np.mean((masses > low) & (masses < high))
        assert found == pytest.approx(expected, abs=5.0 * np.sqrt(expected / len(masses)))
        assert found == pytest.approx(line.fraction, abs=0.15)


def test_the_smearing_is_that_of_the_model(made: DimuonEvents) -> None:
    model = default_resolution()
    assert made.gen_plus is not None
    assert made.gen_minus is not None
    for muons, truth in ((made.plus, made.gen_plus), (made.minus, made.gen_minus)):
        cell = np.clip(np.digitize(truth.eta, model.eta_edges) - 1, 0, len(model.a) - 1)
        sigma = np.sqrt(model.a[cell] + model.c[cell] * truth.pt**2)
        pull = (truth.pt / muons.pt - 1.0) / sigma
        assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2 * len(pull)))
        assert abs(pull.mean()) < 4.0 / np.sqrt(len(pull))


def test_the_two_muons_are_smeared_independently(made: DimuonEvents) -> None:
    assert made.gen_plus is not None
    assert made.gen_minus is not None
    one, two = made.gen_plus.pt / made.plus.pt - 1.0, made.gen_minus.pt / made.minus.pt - 1.0
    assert abs(np.corrcoef(one, two)[0, 1]) < 4.0 / np.sqrt(len(one))


def test_a_wider_resolution_smears_more(seeds: DimuonEvents) -> None:
    wide = default_resolution().scaled(2.0)
    assert isinstance(wide, ResolutionModel)
    chunks = list(fast_simulation([seeds], JPSI, wide, replicas=2, seed=1))
    narrow = list(fast_simulation([seeds], JPSI, default_resolution(), replicas=2, seed=1))
    spread = [
        np.quantile(np.abs(c.mass / masses_of(c) - 1.0), 0.68) for c in (together(chunks), together(narrow))
    ]
    assert spread[0] / spread[1] == pytest.approx(2.0, rel=0.03)
