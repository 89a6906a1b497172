"""Draws that belong to a muon: correctionlib's numbers, whoever asks and in whatever order; their distribution."""

from dataclasses import replace
from functools import cache

import correctionlib
import correctionlib.schemav2 as schema
import numpy as np
import pytest
from scipy.stats import kstest

from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats, Ints, Muons, Smearing
from musclecal.smear import DISTRIBUTION, DRAW_INPUTS, extra_sigma, normal_draws, smear

EDGES = np.array([-2.4, 0.0, 1.0, 2.4])


def flat(a: float = 0.0, b: float = 0.0, c: float = 0.0) -> Smearing:
    """The same extra variance in all eta bins."""
    one = np.ones(3)
    return Smearing(EDGES, a * one, b * one, c * one, 370.0 * one, 0.0 * one)


@cache
def reference() -> correctionlib.highlevel.Correction:
    """correctionlib's own draws."""
    inputs = [
        schema.Variable(name=name, type="real" if name == "phi" else "int", description="")
        for name in DRAW_INPUTS
    ]
    node = schema.HashPRNG(nodetype="hashprng", inputs=list(DRAW_INPUTS), distribution=DISTRIBUTION)
    output = schema.Variable(name="draw", type="real", description="")
    correction = schema.Correction(name="draw", version=1, inputs=inputs, output=output, data=node)
    return correctionlib.CorrectionSet.from_string(
        schema.CorrectionSet(schema_version=2, corrections=[correction]).model_dump_json()
    )["draw"]


def identifiers(n: int, seed: int) -> tuple[Ints, Ints, Ints, Floats]:
    """run, lumi, event, phi as in NanoAOD."""
    rng = np.random.default_rng(seed)
    run, lumi, event = (
        rng.integers(270_000, 290_000, n),
        rng.integers(1, 3000, n),
        rng.integers(1, 2**63 - 1, n),
    )
    return run, lumi, event, rng.uniform(-np.pi, np.pi, n)


def events(n: int, seed: int = 3) -> DimuonEvents:
    run, lumi, event, phi = identifiers(n, seed)
    rng = np.random.default_rng(seed + 100)
    pt, eta = rng.uniform(5.0, 50.0, (2, n)), rng.uniform(-2.3, 2.3, (2, n))
    plus, minus = Muons(pt[0], eta[0], phi), Muons(pt[1], eta[1], rng.uniform(-np.pi, np.pi, n))
    return DimuonEvents(plus, minus, run=run, lumi=lumi, event=event)


@pytest.mark.parametrize("salt", [0, 7, -3, 2**62])
def test_the_draws_are_those_of_correctionlib(salt: int) -> None:
    run, lumi, event, phi = identifiers(10_000, 1)
    rounded = phi.astype(np.float32).astype(np.float64)
    expected = reference().evaluate(run, lumi, event, rounded, salt)
    assert np.any(phi < 0.0)
    np.testing.assert_allclose(normal_draws(run, lumi, event, phi, salt), expected, rtol=0.0, atol=1e-12)


def test_golden_values() -> None:
    """Never to change: tables in the hands of analysts draw these numbers."""
    found = normal_draws(
        [1, 1, 1, 276_811, 276_811], [1, 1, 2, 1_400, 1_400], [1, 1, 1, 2**53, 2**53 + 1],
        [0.5, -0.5, 0.5, -3.1, -3.1], 12,
    )  # fmt: skip
    np.testing.assert_allclose(found, GOLDEN, rtol=1e-13)


GOLDEN = [
    0.01574424420163145,
    1.702905287922606,
    -1.1707890743958262,
    -0.9320260434893985,
    -1.0518647760189777,
]


def test_event_numbers_beyond_2_to_53_are_told_apart() -> None:
    """A float64 cannot: as one, 2^53 and 2^53 + 1 would share their draw, so floating-point numbers are refused."""
    two = normal_draws([1, 1], [1, 1], [2**53, 2**53 + 1], [0.1, 0.1])
    assert two[0] != two[1]
    with pytest.raises(InputError, match="event must be integers, got float64"):
        normal_draws([1], [1], [2.0**53], [0.1])
    unsigned = normal_draws([1], [1], np.array([2**63 + 5], dtype=np.uint64), [0.1])
    signed = normal_draws([1], [1], np.array([2**63 + 5], dtype=np.uint64).view(np.int64), [0.1])
    assert unsigned == signed


def test_phi_is_rounded_to_float32() -> None:
    phi = 1.234567890123
    same = normal_draws([5, 5], [1, 1], [9, 9], [phi, float(np.float32(phi))])
    assert same[0] == same[1]
    next_one = float(np.nextafter(np.float32(phi), np.float32(2.0)))
    assert normal_draws([5], [1], [9], [next_one])[0] != same[0]


@pytest.mark.parametrize("changed", range(5))
def test_every_input_counts(changed: int) -> None:
    values = [[3], [4], [5], [0.6], 7]
    other = list(values)
    other[changed] = 8 if changed == 4 else [[4], [5], [6], [0.7]][changed]
    assert normal_draws(*values)[0] != normal_draws(*other)[0]  # type: ignore[arg-type]


def test_run_lumi_and_event_are_not_exchangeable() -> None:
    assert normal_draws([3], [4], [5], [0.6]) != normal_draws([4], [3], [5], [0.6])


def test_the_order_of_the_muons_does_not_matter() -> None:
    sample = events(1000)
    whole = smear(sample, flat(1e-4))
    shuffled = np.random.default_rng(8).permutation(1000)
    np.testing.assert_array_equal(smear(sample.select(shuffled), flat(1e-4)).plus.pt, whole.plus.pt[shuffled])
    for first in range(0, 1000, 333):
        part = smear(sample.select(np.arange(first, min(first + 333, 1000))), flat(1e-4))
        np.testing.assert_array_equal(part.minus.pt, whole.minus.pt[first : first + 333])


def test_a_million_draws_are_independent_unit_gaussians() -> None:
    n = 1_000_000
    event, one = np.arange(n), np.ones(n, dtype=np.int64)
    phi = np.full(n, 0.25)
    plus, minus, salted = (
        normal_draws(one, one, event, x, salt) for x, salt in ((phi, 0), (-phi, 0), (phi, 1))
    )
    for draws in (plus, minus, salted):
        assert abs(draws.mean()) < 3.0 / np.sqrt(n)
        assert abs(draws.var() - 1.0) < 3.0 * np.sqrt(2.0 / n)
        assert kstest(draws, "norm").pvalue > 0.003
    for a, b in ((plus, minus), (plus, salted), (plus[1:], plus[:-1]), (plus[1:], minus[:-1])):
        assert abs(np.mean(a * b)) < 3.0 / np.sqrt(n)
        assert abs(np.mean(a**2 * b**2) - 1.0) < 3.0 * np.sqrt(8.0 / n)


def test_the_curvature_is_multiplied() -> None:
    sample = events(500)
    assert sample.run is not None
    assert sample.lumi is not None
    assert sample.event is not None
    smeared = smear(sample, flat(a=4e-4), salt=5)
    for before, after in ((sample.plus, smeared.plus), (sample.minus, smeared.minus)):
        draws = normal_draws(sample.run, sample.lumi, sample.event, before.phi, 5)
        np.testing.assert_allclose(before.pt / after.pt, 1.0 + 0.02 * draws, rtol=1e-13)
        np.testing.assert_array_equal(before.eta, after.eta)
    assert np.corrcoef(sample.plus.pt / smeared.plus.pt, sample.minus.pt / smeared.minus.pt)[0, 1] < 0.15


def test_extra_sigma_is_the_formula_and_zero_outside_or_below() -> None:
    pt = np.array([4.0, 20.0, 40.0])
    muons = Muons(pt, np.array([-1.0, 0.5, 1.5]), np.zeros(3))
    expected = np.sqrt(1e-4 + 3e-8 * pt**2 + 2e-4 / (1.0 + 370.0 / pt**2))
    np.testing.assert_allclose(extra_sigma(muons, flat(1e-4, 2e-4, 3e-8)), expected, rtol=1e-14)
    # Clipped as a sum: the negative c wins at 40 GeV only.
    sigma = extra_sigma(muons, flat(a=1e-4, c=-1e-7))
    np.testing.assert_allclose(sigma, np.sqrt([1e-4 - 16e-7, 1e-4 - 400e-7, 0.0]), rtol=1e-12)
    outside = replace(muons, eta=np.array([-2.5, 2.4, np.nan]))
    np.testing.assert_array_equal(extra_sigma(outside, flat(1e-4)), 0.0)


def test_eta_bins_have_their_own_variance() -> None:
    extra = replace(flat(), a=np.array([1e-4, 4e-4, 9e-4]))
    sigma = extra_sigma(Muons(np.full(3, 9.0), np.array([-0.1, 0.1, 1.1]), np.zeros(3)), extra)
    np.testing.assert_allclose(sigma, [0.01, 0.02, 0.03], rtol=1e-14)


@pytest.mark.parametrize("name", ["run", "lumi", "event"])
def test_events_without_numbers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"the events have no {name} numbers"):
        smear(replace(events(5), **{name: None}), flat(1e-4))  # type: ignore[arg-type]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="phi must be finite"):
        normal_draws([1], [1], [1], [np.nan])
    with pytest.raises(InputError, match="arrays of one length"):
        normal_draws([1, 2], [1, 2], [1, 2], [0.1])
