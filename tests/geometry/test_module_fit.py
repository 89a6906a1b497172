"""From simulated pairs to corrections: the momentum scale is better after it, and the fit stops when it should."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.block_matrix import block_times
from musclecal.geometry.detector import barrel_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.mass_target import mass_constraint
from musclecal.geometry.misalignment import Misalignment, misaligned
from musclecal.geometry.modes import Widths, no_modes
from musclecal.geometry.module_fit import (
    ModuleModel,
    detector_fingerprint,
    fit_modules,
    module_model,
    module_sums,
)
from musclecal.geometry.modules import solve_modules
from musclecal.geometry.momentum_bias import MomentumBias, momentum_bias
from musclecal.geometry.pair_refit import contributions
from musclecal.geometry.refit import DEFAULT_CUTS, RefitCuts
from musclecal.geometry.simulate import simulate_pairs, track_maker
from musclecal.records import Floats, MassConstraint, ModuleSums, Pairs
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

FIELD, BARREL = solenoid_map(), barrel_tracker()
PLANES = planes_of(BARREL, FIELD)
JPSI = SimulationSettings(resonance("Jpsi"), (3.5, 50.0), (-0.9, 0.9), (2.6, 3.6))
WINDOW = (2.9, 3.3)
NOMINAL = np.zeros((BARREL.n_units, 4))
TRUTH = misaligned(BARREL, 4)
ETA = np.linspace(-0.8, 0.8, 9)


def simulated(truth: Floats, n: int, seed: int) -> Pairs:
    (pairs,) = simulate_pairs(
        track_maker(BARREL, FIELD, truth), JPSI, n, seed, beam_spot=(0.0015, 0.0015, 2.0)
    )
    return pairs


@pytest.fixture(scope="module")
def data() -> Pairs:
    return simulated(TRUTH, 4000, 1)


@pytest.fixture(scope="module")
def mass() -> MassConstraint:
    """From a simulation of the nominal detector."""
    nominal = simulated(NOMINAL, 4000, 2)
    return mass_constraint([nominal], PLANES, WINDOW)


def bias(assumed: Floats) -> MomentumBias:
    return momentum_bias(BARREL, FIELD, TRUTH, assumed, 10.0, ETA, 16)


def fitted(data: Pairs, mass: MassConstraint | None) -> MomentumBias:
    def summed(values: Floats, cuts: RefitCuts) -> ModuleSums:
        return module_sums([data], BARREL, PLANES, values, mass, cuts)

    *_, last = fit_modules(summed, module_model(BARREL), most_passes=2)
    assert last.corrections.chi2 / last.corrections.ndf == pytest.approx(1.0, abs=0.05)
    assert last.sums.n_pairs > 3000
    return bias(last.corrections.values)


@pytest.mark.slow
def test_the_mass_takes_the_even_bias_off(data: Pairs, mass: MassConstraint) -> None:
    """At least three times smaller with the mass; without it, nothing fixes the momentum scale."""
    before, with_mass, without = bias(NOMINAL), fitted(data, mass), fitted(data, None)
    assert before.even_rms > 5e-4
    assert with_mass.even_rms < before.even_rms / 3.0
    assert without.even_rms > before.even_rms / 3.0
    assert without.even_rms > 2.0 * with_mass.even_rms


def test_sums_do_not_depend_on_chunks_and_threads(
    data: Pairs, mass: MassConstraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, done = data.select(np.arange(900)), list[int]()
    whole = module_sums([some], BARREL, PLANES, 0.5 * TRUTH, mass)
    monkeypatch.setenv("MUSCLECAL_THREADS", "3")
    chunks = [some.select(np.arange(300 * i, 300 * (i + 1))) for i in range(3)]
    parts = module_sums(chunks, BARREL, PLANES, 0.5 * TRUTH, mass, progress=done.append)
    assert done == [300, 600, 900]
    for name in ("first", "columns", "blocks", "vector", "uses", "values"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert (whole.n_pairs, whole.chi2, whole.ndf) == (parts.n_pairs, parts.chi2, parts.ndf)
    np.testing.assert_array_equal(whole.values, 0.5 * TRUTH)
    assert whole.detector == detector_fingerprint(BARREL, PLANES)


def test_sums_are_those_of_the_contributions(data: Pairs, mass: MassConstraint) -> None:
    few = data.select(np.arange(60))
    sums = module_sums([few], BARREL, PLANES, NOMINAL, mass)
    vector, chi2, ndf, n = np.zeros_like(NOMINAL), 0.0, 0, 0
    (part,) = contributions(few.tracks, few.pairs, PLANES, NOMINAL, mass)
    for e in np.flatnonzero(part.good):
        size = int(np.sum(part.units[e] >= 0))
        np.add.at(vector, part.units[e, :size], part.vector[e, : 4 * size].reshape(size, 4))
        chi2, ndf, n = chi2 + part.chi2[e], ndf + part.ndf[e], n + 1
    np.testing.assert_allclose(sums.vector, vector, rtol=1e-10, atol=1e-8)
    assert sums.chi2 == pytest.approx(chi2)
    assert (sums.ndf, sums.n_pairs) == (ndf, n)


def test_chi2_of_the_sums_is_that_of_fits_elsewhere(data: Pairs, mass: MassConstraint) -> None:
    """chi2 - 2 g d + d C d is the chi2, mass row included, of fits at the parameters moved by d."""
    few = data.select(np.arange(40))
    everywhere = replace(mass, window=(2.0, 4.0), sigma=0.01)
    here = module_sums([few], BARREL, PLANES, TRUTH, everywhere)
    change = np.zeros_like(TRUTH)
    change[:, :2] = 1e-3 * np.random.default_rng(3).normal(size=(len(TRUTH), 2))
    there = module_sums([few], BARREL, PLANES, TRUTH + change, everywhere)
    assert here.n_pairs == there.n_pairs
    bent = block_times(here, change[:, :, None], 1)[:, :, 0]
    expected = here.chi2 - 2.0 * np.sum(here.vector * change) + np.sum(change * bent)
    assert abs(there.chi2 - here.chi2) > 100.0
    assert there.chi2 - here.chi2 == pytest.approx(expected - here.chi2, rel=0.02)


def linear(
    problems: SimpleNamespace, truth: Floats, drift: float
) -> Callable[[Floats, RefitCuts], ModuleSums]:
    """Sums of a linear problem, whose truth is ``drift`` times as far at every call."""
    calls: list[Floats] = []

    def summed(values: Floats, _: RefitCuts) -> ModuleSums:
        at = truth * drift ** len(calls)
        calls.append(values)
        chunk = problems.pairs(at, 200, np.random.default_rng(1), noise=0.0, point=values)
        sums: ModuleSums = problems.sums_of(chunk, *truth.shape, values=values)
        return sums

    return summed


def test_passes_end_when_nothing_moves(problems: SimpleNamespace) -> None:
    truth = np.random.default_rng(5).normal(size=(12, 4))
    kinds = np.tile(np.array([1, 2, 4, 5], np.int8), (12, 1))
    model = ModuleModel(kinds, np.full((12, 4), 10.0), no_modes(12, 4), ("TIB1",) * 12)
    passes = list(fit_modules(linear(problems, truth, 1.0), model, most_passes=7, settled=0.01))
    assert len(passes) == 2
    assert passes[0].moved == pytest.approx(np.abs(truth).max() / 10.0, rel=1e-2)
    assert passes[1].moved < 1e-6
    np.testing.assert_allclose(passes[1].corrections.values, truth, rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(passes[1].sums.values, passes[0].corrections.values)
    # The prior pulls on the whole, not on the change: it does not wear off from pass to pass
    np.testing.assert_allclose(passes[1].corrections.values, passes[0].corrections.values, rtol=0, atol=1e-6)
    # The first of several is never the last, as its cuts are loose
    twice = list(fit_modules(linear(problems, truth, 1.0), model, most_passes=7, settled=1.0))
    assert len(twice) == 2
    once = list(fit_modules(linear(problems, truth, 1.0), model, most_passes=1, settled=0.01))
    assert len(once) == 1
    wandering = list(fit_modules(linear(problems, truth, 1.5), model, most_passes=4, settled=0.01))
    assert len(wandering) == 4
    for before, after in pairwise(wandering):
        np.testing.assert_array_equal(after.sums.values, before.corrections.values)


def test_the_first_of_several_passes_has_loose_cuts(problems: SimpleNamespace) -> None:
    """A detector that is off loses good hits; the cuts of a single pass, and of all later ones, are those asked for."""
    truth = np.random.default_rng(5).normal(size=(12, 4))
    model = ModuleModel(np.ones((12, 4), np.int8), np.full((12, 4), 10.0), no_modes(12, 4), ("TIB1",) * 12)
    given: list[RefitCuts] = []
    sums = linear(problems, truth, 1.0)

    def summed(values: Floats, cuts: RefitCuts) -> ModuleSums:
        given.append(cuts)
        return sums(values, cuts)

    cuts = DEFAULT_CUTS._replace(gradient=5.0)
    list(fit_modules(summed, model, cuts=cuts, most_passes=3, settled=0.0))
    list(fit_modules(summed, model, cuts=cuts, most_passes=1))
    assert given[1:] == [cuts, cuts, cuts]
    assert given[0] == cuts._replace(
        hit_chi2=16.0 * cuts.hit_chi2, chi2_per_ndf=16.0 * cuts.chi2_per_ndf, gradient=20.0
    )


def test_known_parameters_do_not_count_as_moved(problems: SimpleNamespace) -> None:
    truth = np.random.default_rng(5).normal(size=(12, 4))
    truth[:, 3] = 0.0
    kinds = np.tile(np.array([1, 2, 4, 0], np.int8), (12, 1))
    widths = np.tile([10.0, 10.0, 10.0, 0.0], (12, 1))
    model = ModuleModel(kinds, widths, no_modes(12, 4), ("TIB1",) * 12)
    passes = list(fit_modules(linear(problems, truth, 1.0), model, settled=0.01))
    assert len(passes) == 2
    assert np.isfinite(passes[0].moved)
    np.testing.assert_array_equal(passes[1].corrections.values[:, 3], 0.0)


def test_pairs_that_bend_against_their_charge_are_refused() -> None:
    """By the column of charges, or by a field of the wrong sign: neither shows in chi2."""
    settings = SimulationSettings(resonance("Jpsi"), (3.5, 50.0), (-0.8, 0.8), (2.6, 3.6))
    (pairs,) = simulate_pairs(track_maker(BARREL, solenoid_map()), settings, 100, 4)
    nominal = np.zeros((BARREL.n_units, 4))
    assert module_sums([pairs], BARREL, PLANES, nominal).n_pairs > 90
    flipped = replace(pairs, pairs=pairs.pairs[:, ::-1].copy())
    with pytest.raises(InputError, match=r"\d+ of \d+ pairs bend against"):
        module_sums([flipped], BARREL, PLANES, nominal)
    solenoid = solenoid_map()
    other = planes_of(BARREL, replace(solenoid, table=-solenoid.table))
    with pytest.raises(InputError, match="sign of the field map"):
        module_sums([pairs], BARREL, other, nominal)
    # A single one is left out
    one = pairs.pairs.copy()
    one[3] = one[3, ::-1]
    whole, without = (
        module_sums([replace(pairs, pairs=rows)], BARREL, PLANES, nominal)
        for rows in (one, np.delete(pairs.pairs, 3, axis=0))
    )
    assert whole.n_pairs == without.n_pairs
    np.testing.assert_array_equal(whole.vector, without.vector)


def test_the_model_of_a_detector() -> None:
    model, bare = module_model(BARREL), module_model(BARREL, mode_widths=None)
    assert model.kinds.shape == model.widths.shape == (BARREL.n_units, 4)
    assert len(model.modes.names) > 10
    assert bare.modes.names == ()
    np.testing.assert_array_equal(model.widths > 0.0, model.kinds > 0)
    assert module_model(BARREL, n_slots=6).kinds.shape == (BARREL.n_units, 6)
    last, second = BARREL.n_units - 1, int(BARREL.unit[BARREL.side == 1][0])
    assert model.name_of(0, 1) == f"v of module 0 ({BARREL.layer_names[0]})"
    assert model.name_of(last, 2) == f"field of module {last} ({BARREL.layer_names[-1]})"
    assert model.name_of(second, 1).startswith(f"u_stereo of module {second} (")


def test_parameters_that_nothing_fixes_are_named(problems: SimpleNamespace) -> None:
    model = module_model(BARREL, Widths(material=np.inf), mode_widths=None)
    sums = linear(problems, np.zeros((BARREL.n_units, 4)), 1.0)(np.zeros((BARREL.n_units, 4)), DEFAULT_CUTS)
    nothing = replace(sums, blocks=np.zeros_like(sums.blocks), vector=np.zeros_like(sums.vector))
    with pytest.raises(InputError, match=r"neither tracks nor a prior, first: material of module 0 \("):
        solve_modules(model.equations(nothing), model.kinds)


def test_a_fingerprint_is_that_of_the_numbers() -> None:
    assert detector_fingerprint(barrel_tracker(), PLANES) == detector_fingerprint(BARREL, PLANES)
    moved = BARREL.centre.copy()
    moved[5, 1] = np.nextafter(moved[5, 1], np.inf)
    assert detector_fingerprint(replace(BARREL, centre=moved), PLANES) != detector_fingerprint(BARREL, PLANES)
    assert detector_fingerprint(replace(BARREL, field_map="other"), PLANES) != detector_fingerprint(
        BARREL, PLANES
    )
    assert detector_fingerprint(BARREL, PLANES).startswith("barrel ")
    stronger = PLANES._replace(bending=1.01 * PLANES.bending)
    assert detector_fingerprint(BARREL, stronger) != detector_fingerprint(BARREL, PLANES)


def test_shifts_that_are_really_there_are_found() -> None:
    """Only random shifts: what is left of them is as large as the errors say, less than what was there."""
    truth = misaligned(
        BARREL, 8, Misalignment.none(pixel_u=0.002, pixel_v=0.003, strip_u=0.003, strip_v=0.003)
    )
    pairs = simulated(truth, 4000, 5)
    known = Widths(pixel_u=0.002, pixel_v=0.003, strip_u=0.003, field=0.0, material=0.0)
    model = module_model(BARREL, known, None)

    def summed(values: Floats, cuts: RefitCuts) -> ModuleSums:
        return module_sums([pairs], BARREL, PLANES, values, cuts=cuts)

    (only,) = fit_modules(summed, model, most_passes=1, solver="direct")
    found = only.corrections
    assert found.sigma_is == "exact"
    for slot in (0, 1):
        well = (found.uses > 100) & (model.kinds[:, slot] > 0)
        assert well.sum() > 50
        left, sigma, there = (
            np.sqrt(np.mean(x[well, slot] ** 2)) for x in (found.values - truth, found.sigma, truth)
        )
        print("slot", slot, "left", left, "expected", sigma, "of", there, "cm")
        assert left / sigma == pytest.approx(1.0, abs=0.25)
        assert left < 0.8 * there
