"""The mass as a measurement: a simulation in which nothing is wrong wants no change of the field."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry import mass_target
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.mass_target import gen_masses, log_target, mass_constraint
from musclecal.geometry.pair_refit import contributions, refit_pairs
from musclecal.geometry.simulate import DetectorEffects, simulate_pairs, track_maker
from musclecal.geometry.trace import B, Planes
from musclecal.records import Detector, Floats, MassConstraint, Pairs
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

FIELD, BARREL = solenoid_map(), barrel_tracker()
PLANES = planes_of(BARREL, FIELD)
WINDOW = (2.9, 3.3)


def simulated(detector: Detector, eta: float, n: int, seed: int) -> Pairs:
    settings = SimulationSettings(resonance("Jpsi"), (3.5, 50.0), (-eta, eta), (2.6, 3.6))
    maker = track_maker(detector, FIELD, None, DetectorEffects(efficiency=0.98))
    (pairs,) = simulate_pairs(maker, settings, n, seed, chunk_pairs=n)
    return pairs


@pytest.fixture(scope="module")
def nominal() -> Pairs:
    return simulated(BARREL, 0.9, 4000, 2)


@pytest.fixture(scope="module")
def mass(nominal: Pairs) -> MassConstraint:
    return mass_constraint([nominal], PLANES, WINDOW)


def field_scores(pairs: Pairs, planes: Planes, mass: MassConstraint) -> Floats:
    """(3, n) of good pairs: g and C along the field as a whole, summed by hand, and sigma_m/m."""
    rows = []
    for part in contributions(pairs.tracks, pairs.pairs, planes, None, mass):
        for e in np.flatnonzero(part.good):
            n = 4 * int(np.sum(part.units[e] >= 0))
            c = part.matrix[e, B:n:4, B:n:4]
            rows.append([
                part.vector[e, B:n:4].sum(),
                np.triu(c).sum() + np.triu(c, 1).sum(),
                part.mass_sigma[e] / part.mass[e],
            ])  # fmt: skip
    return np.array(rows).T


def test_true_masses_are_after_radiation(nominal: Pairs) -> None:
    masses = gen_masses(nominal)
    assert np.median(masses) == pytest.approx(3.0969, abs=3e-3)
    assert 0.02 < np.mean(masses < 3.05) < 0.3
    assert np.quantile(masses, 0.99) < 3.1
    with pytest.raises(InputError, match="truth"):
        gen_masses(replace(nominal, tracks=replace(nominal.tracks, truth=None)))


@pytest.mark.parametrize("robust", [np.inf, 2.0])
def test_the_simulation_itself_wants_no_change(nominal: Pairs, robust: float) -> None:
    """Neither of the field, nor of the field where the resolution is worse."""
    found = mass_constraint([nominal], PLANES, WINDOW, robust)
    assert found.robust == robust
    g, c, s = field_scores(nominal, PLANES, found)
    for power, fraction in ((0, 0.03), (1, 0.1), (2, 0.3)):  # the prior of the growth pulls a little
        assert abs(np.sum(g * s**power)) < fraction * np.sqrt(np.sum(c * s ** (2 * power)))


def test_the_width_is_that_of_true_masses_in_the_window(nominal: Pairs, mass: MassConstraint) -> None:
    fits = refit_pairs(nominal.tracks, nominal.pairs, PLANES)
    inside = (fits.status == 0) & (fits.mass >= WINDOW[0]) & (fits.mass < WINDOW[1])
    # Kept relative to a target that moves by some 1e-4
    assert mass.sigma == pytest.approx(gen_masses(nominal)[inside].std(), rel=1e-3)
    assert mass.window == WINDOW


def error_of_field(pairs: Pairs, mass: MassConstraint) -> tuple[float, float]:
    """What the weights promise, and what it is: root of the sum of squared scores over the slope of their sum."""
    h = 1e-3
    g, c, _ = field_scores(pairs, PLANES, mass)
    (above, _, _), (below, _, _) = (
        field_scores(pairs, PLANES, replace(mass, target=mass.target * np.exp(d))) for d in (h, -h)
    )
    slope = (np.sum(above) - np.sum(below)) / (2.0 * h)
    return 1.0 / np.sqrt(np.sum(c)), float(np.sqrt(np.sum(g**2)) / abs(slope))


@pytest.mark.parametrize("robust", [2.0, 3.0])
def test_the_weights_promise_the_error_that_is(nominal: Pairs, robust: float) -> None:
    found = mass_constraint([nominal], PLANES, WINDOW, robust)
    promised, real = error_of_field(nominal, found)
    assert promised == pytest.approx(real, rel=0.06)
    assert found.error == pytest.approx(real, rel=0.06)


def test_a_robust_mean_is_better_measured(nominal: Pairs, mass: MassConstraint) -> None:
    robust = mass_constraint([nominal], PLANES, WINDOW, 2.0)
    (_, plain), (_, cut) = (error_of_field(nominal, m) for m in (mass, robust))
    assert robust.sigma < mass.sigma
    assert cut < 0.85 * plain


def test_a_small_sample_does_not_measure_the_growth(nominal: Pairs) -> None:
    few = mass_constraint([nominal.select(np.arange(300))], PLANES, WINDOW)
    assert abs(few.growth[0]) < 1.0
    assert abs(few.growth[1]) < 30.0


@pytest.mark.parametrize("robust", [np.inf, 2.0])
def test_a_start_that_is_off_does_not_matter(
    nominal: Pairs, robust: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong sign would double what is wrong at the start."""
    right = mass_constraint([nominal], PLANES, WINDOW, robust)
    start = mass_target._start

    def wrong(*arguments: Any) -> MassConstraint:
        found = start(*arguments)
        return replace(found, target=1.0005 * found.target)

    monkeypatch.setattr(mass_target, "_start", wrong)
    off = mass_constraint([nominal], PLANES, WINDOW, robust)
    s = np.array([0.005, 0.006, 0.008])
    shift = log_target(off, s) - log_target(right, s)
    assert np.abs(shift).max() < 4e-5


def test_a_robust_target_is_nearer_to_the_peak(nominal: Pairs, mass: MassConstraint) -> None:
    """The tail of radiation pulls less: a plain target would shift the scale by the difference."""
    robust = mass_constraint([nominal], PLANES, WINDOW, 1.5)
    assert np.all(log_target(robust, np.array([0.006])) - log_target(mass, np.array([0.006])) > 2e-4)
    g, c, _ = field_scores(nominal, PLANES, replace(mass, robust=1.5))
    assert abs(np.sum(g)) > 2.0 * np.sqrt(np.sum(c))


def test_chunks_do_not_matter(nominal: Pairs, mass: MassConstraint) -> None:
    def pieces() -> Iterable[Pairs]:
        return (nominal.select(np.arange(i, min(i + 700, 4000))) for i in range(0, 4000, 700))

    assert mass_constraint(pieces(), PLANES, WINDOW) == mass


def test_the_start_is_that_of_the_first_pairs(nominal: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(*arguments: object) -> object:
        seen.append(len(arguments[1]))  # type: ignore[arg-type]
        return refit_pairs(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mass_target, "_START", 1000)
    monkeypatch.setattr(mass_target, "refit_pairs", counted)
    chunks = [nominal.select(np.arange(i, i + 800)) for i in range(0, 2400, 800)]
    mass_constraint(chunks, PLANES, WINDOW)
    assert seen == [800, 200]


@pytest.mark.parametrize("make", [lambda p: [p.select(np.arange(50))], lambda _: []], ids=["few", "none"])
def test_too_few_pairs_are_refused(nominal: Pairs, make: Callable[[Pairs], list[Pairs]]) -> None:
    with pytest.raises(InputError, match="too few"):
        mass_constraint(make(nominal), PLANES, WINDOW)


def test_a_simulation_of_another_detector_is_refused(nominal: Pairs) -> None:
    """Its bias would hide in the target: half of the masses must be above their truth."""
    stronger = replace(FIELD, table=1.003 * FIELD.table)
    with pytest.raises(InputError, match=r"simulation are [+-]\d+ \+- \d+e-5 off its generator masses"):
        mass_constraint([nominal], planes_of(BARREL, stronger), WINDOW)
    truth = np.array(nominal.tracks.truth)
    truth[nominal.pairs[7, 0], 0] = np.nan
    spoiled = replace(nominal, tracks=replace(nominal.tracks, truth=truth))
    with pytest.raises(InputError, match="truth of a track is not finite"):
        mass_constraint([spoiled], PLANES, WINDOW)


@pytest.mark.long
@pytest.mark.slow
def test_pairs_of_any_resolution_agree_in_the_whole_tracker() -> None:
    """With one target for all they would be off by some 1e-4 in opposite directions."""
    detector = cms_tracker()
    planes = planes_of(detector, FIELD)
    pairs, other = (simulated(detector, 2.4, 150_000, seed) for seed in (11, 12))
    found = mass_constraint([other], planes, WINDOW)
    g, c, s = field_scores(pairs, planes, found)
    edges = np.quantile(s, [0.0, 0.25, 0.5, 0.75, 1.0])
    for low, high in pairwise(edges):
        here = (s >= low) & (s <= high)
        pull = np.sum(g[here]) / np.sqrt(np.sum(c[here]))
        print(f"sigma_m/m {low:.4f} to {high:.4f}: {pull:.2f} sigma")
        assert abs(pull) < 4.0
