"""A, e, M of several calibrations: known truth, sources that are shared, agreement."""

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination import blue, combine_calibrations
from musclecal.records import Floats, ScaleWithCovariance

EDGES = np.array([-2.4, -0.8, 0.8, 2.4])
N = 9
UNIT = np.tile([1e-4, 1e-3, 1e-5], 3)
"""Usual errors of A, e (GeV), M (1/GeV)."""


def covariance(seed: int, size: float = 1.0) -> Floats:
    """Strongly correlated, as A and e are."""
    factor = np.random.default_rng(seed).normal(size=(N, N)) + 2.0 * np.eye(N)
    return np.asarray(size**2 * UNIT[:, None] * (factor @ factor.T / 9.0) * UNIT)


def calibration(parameters: Floats, spread: Floats) -> ScaleWithCovariance:
    A, e, M = parameters.reshape(-1, 3).T
    return ScaleWithCovariance(EDGES, A, e, M, spread)


TRUTH = UNIT * np.random.default_rng(1).normal(size=N)
SPREADS = {"Jpsi": covariance(2), "Upsilon": covariance(3, 2.0), "Z": covariance(4, 0.7)}
FSR = {"Jpsi": 0.8 * UNIT, "Upsilon": -0.5 * UNIT * np.arange(N) / N}


def drawn(rng: np.random.Generator, nuisance: float = 0.0) -> dict[str, ScaleWithCovariance]:
    return {
        name: calibration(
            TRUTH + rng.multivariate_normal(np.zeros(N), spread) + nuisance * FSR.get(name, np.zeros(N)),
            spread,
        )
        for name, spread in SPREADS.items()
    }


def test_equal_calibrations_come_back_and_agree() -> None:
    found = combine_calibrations({name: calibration(TRUTH, spread) for name, spread in SPREADS.items()})
    np.testing.assert_allclose(found.scale.parameters, TRUTH, rtol=1e-9)
    assert found.combined.chi2 == pytest.approx(0.0, abs=1e-12)
    assert found.combined.ndf == 2 * N
    assert found.s == 1.0
    expected = np.linalg.inv(sum(np.linalg.inv(spread) for spread in SPREADS.values()))
    np.testing.assert_allclose(found.scale.covariance, expected, rtol=1e-8)


def test_independent_ones_are_weighted_by_their_information() -> None:
    made = drawn(np.random.default_rng(5))
    found = combine_calibrations(made)
    information = [np.linalg.inv(one.covariance) for one in made.values()]
    vector = sum(i @ one.parameters for i, one in zip(information, made.values(), strict=True))
    np.testing.assert_allclose(found.scale.parameters, np.linalg.solve(sum(information), vector), rtol=1e-8)


def test_one_against_the_others_is_the_difference_of_two_combinations() -> None:
    made = drawn(np.random.default_rng(6), 1.0)
    found = combine_calibrations(made)
    for one in found.against_others:
        rest = combine_calibrations({name: each for name, each in made.items() if name != one.name})
        np.testing.assert_allclose(
            one.difference, made[one.name].parameters - rest.scale.parameters, atol=1e-9 * UNIT.max()
        )
        np.testing.assert_allclose(
            one.covariance, made[one.name].covariance + rest.scale.covariance, rtol=1e-7
        )
        assert one.chi2 == pytest.approx(found.combined.chi2 - rest.combined.chi2, rel=1e-8)


def test_coverage_with_a_source_that_is_shared_with_both_signs() -> None:
    """Pulls of all parameters, chi2, and the agreement of each; without the source they would be too wide."""
    rng, pulls, wrong, chi2, each = np.random.default_rng(7), [], [], [], []
    for _ in range(600):
        made = drawn(rng, rng.normal())
        found = combine_calibrations(made, {"FSR": FSR})
        off = found.scale.parameters - TRUTH
        pulls.append(off @ np.linalg.solve(found.scale.covariance, off))
        bare = combine_calibrations(made).scale
        wrong.append((bare.parameters - TRUTH) @ np.linalg.solve(bare.covariance, bare.parameters - TRUTH))
        chi2.append(found.combined.chi2)
        each.append([one.chi2 for one in found.against_others])
    assert np.mean(pulls) == pytest.approx(N, abs=4.0 * np.sqrt(2.0 * N / 600))
    assert np.mean(wrong) > N + 1.0
    assert np.mean(chi2) == pytest.approx(2 * N, abs=4.0 * np.sqrt(4.0 * N / 600))
    np.testing.assert_allclose(np.mean(each, axis=0), N, atol=4.0 * np.sqrt(2.0 * N / 600))


def test_a_calibration_that_is_off_is_found() -> None:
    made = drawn(np.random.default_rng(8))
    made["Z"] = calibration(made["Z"].parameters + 10.0 * np.sqrt(np.diagonal(SPREADS["Z"])), SPREADS["Z"])
    found = combine_calibrations(made)
    assert min(found.against_others, key=lambda one: one.p_value).name == "Z"
    assert found.s > 1.5
    np.testing.assert_allclose(found.scaled_covariance, found.s**2 * found.scale.covariance)


def test_is_blue_of_all_parameters() -> None:
    made = drawn(np.random.default_rng(9))
    found = combine_calibrations(made, {"FSR": FSR})
    moved = np.concatenate([FSR.get(name, np.zeros(N)) for name in made])
    own = np.zeros((3 * N, 3 * N))
    for i, spread in enumerate(SPREADS.values()):
        own[i * N : (i + 1) * N, i * N : (i + 1) * N] = spread
    expected = blue(
        np.concatenate([one.parameters for one in made.values()]),
        {"own": own, "FSR": np.outer(moved, moved)},
        np.tile(np.eye(N), (3, 1)),
    )
    np.testing.assert_allclose(found.combined.covariance, expected.covariance, rtol=1e-12)
    np.testing.assert_allclose(found.combined.by_source["FSR"], expected.by_source["FSR"], rtol=1e-9)


def test_what_cannot_be_combined_is_named() -> None:
    made = drawn(np.random.default_rng(10))
    with pytest.raises(InputError, match="two at least"):
        combine_calibrations({"Jpsi": made["Jpsi"]})
    other = ScaleWithCovariance(EDGES + 0.1, made["Z"].A, made["Z"].e, made["Z"].M, SPREADS["Z"])
    with pytest.raises(InputError, match=r"calibration 'Z': its eta edges are not those of 'Jpsi'"):
        combine_calibrations(made | {"Z": other})
    with pytest.raises(InputError, match="no calibration 'Psi2S'"):
        combine_calibrations(made, {"FSR": {"Psi2S": UNIT}})
    with pytest.raises(InputError, match="needs 9 finite shifts"):
        combine_calibrations(made, {"FSR": {"Z": UNIT[:8]}})
    with pytest.raises(InputError, match="own"):
        combine_calibrations(made, {"own": {"Z": UNIT}})
    bad = calibration(TRUTH, SPREADS["Z"] - 2.0 * np.diag(np.diagonal(SPREADS["Z"])))
    with pytest.raises(InputError, match="Z "):
        combine_calibrations(made | {"Z": bad})
