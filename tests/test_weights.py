"""Weights of a scale variation: the formula against densities that were really moved, and what gets no weight."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from musclecal.correction import Correction
from musclecal.errors import InputError
from musclecal.records import CorrectionTables, Floats, Response
from musclecal.scale import biased_curvature
from musclecal.weights import variation_weights, weight_derivatives

ETA_EDGES = np.array([-2.4, -1.0, 0.3, 2.4])
PT_EDGES = np.array([15.0, 20.0, 30.0, 45.0, 80.0])
NODES = np.linspace(-8.0, 8.0, 321)
WIDTH = np.array([0.015, 0.01, 0.012])[:, None] + 1e-4 * PT_EDGES
LOCATION = np.stack([2e-5 * PT_EDGES + 1e-4 * np.arange(3)[:, None], -3e-5 * PT_EDGES + np.zeros((3, 1))])
SHAPE = -0.5 * NODES**2 - 0.5 * np.log(2.0 * np.pi)
GAUSSIAN = Response(
    ETA_EDGES, PT_EDGES, LOCATION, WIDTH, NODES, np.tile(SHAPE, (3, 1)), np.tile(-NODES, (3, 1)),
    np.full((2, 3, 4), 1000), 0,
)  # fmt: skip


def place_and_width(gen_pt: Floats, eta: Floats, charge: Floats) -> tuple[Floats, Floats]:
    """Of the Gaussian in rho, interpolated in ln pT by numpy."""
    i = np.searchsorted(ETA_EDGES, eta, side="right") - 1
    x, at = np.log(gen_pt), np.log(PT_EDGES)
    out = np.empty((2, len(eta)))
    for n in range(len(eta)):
        out[0, n] = 1.0 + np.interp(x[n], at, LOCATION[0 if charge[n] > 0 else 1, i[n]])
        out[1, n] = np.interp(x[n], at, WIDTH[i[n]])
    return out[0], out[1]


def muons(n: int = 400, reach: float = 4.0, seed: int = 1) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    eta, gen_pt = rng.uniform(-2.4, 2.4, n), 15.0 * (80.0 / 15.0) ** rng.random(n)
    charge = rng.choice([-1.0, 1.0], n)
    place, width = place_and_width(gen_pt, eta, charge)
    rho = place + width * rng.uniform(-reach, reach, n)
    return {"pt": gen_pt / rho, "eta": eta, "charge": charge, "gen_pt": gen_pt}


def density_after(shift: tuple[float, float, float], of: Mapping[str, Floats]) -> Floats:
    """Density at the measured k of muons whose curvature was corrected with (A, e, M) = ``shift``, exactly."""
    k, k_true = 1.0 / of["pt"], 1.0 / of["gen_pt"]
    before = np.array([biased_curvature(x, q, *shift) for x, q in zip(k, of["charge"], strict=True)])
    jacobian = 1.0 / (1.0 + shift[0] - 2.0 * shift[1] * before)
    place, width = place_and_width(of["gen_pt"], of["eta"], of["charge"])
    t = (before / k_true - place) / width
    return np.asarray(np.exp(-0.5 * t * t) / width * jacobian)


@pytest.mark.parametrize(("parameter", "step"), [(0, 1e-6), (1, 1e-5), (2, 1e-8)])
def test_derivatives_are_those_of_the_moved_density(parameter: int, step: float) -> None:
    of = muons()
    shift = [0.0, 0.0, 0.0]
    shift[parameter] = step
    up, down = tuple(shift), tuple(-x for x in shift)
    numerical = (np.log(density_after(up, of)) - np.log(density_after(down, of))) / (2.0 * step)  # type: ignore[arg-type]
    found = weight_derivatives(GAUSSIAN, **of)[:, parameter]
    np.testing.assert_allclose(found, numerical, rtol=0.0, atol=1e-6 * np.abs(numerical).max())


def test_one_muon_of_each_charge_by_hand() -> None:
    """pT 25 GeV measured as 24.5: k is 2 % too high, two widths; there are fewer such muons than a bit lower in k."""
    simple = replace(GAUSSIAN, location=np.zeros_like(LOCATION), width=np.full_like(WIDTH, 0.01))
    found = weight_derivatives(simple, [24.5, 24.5], 0.5, [1, -1], 25.0)
    rho = 25.0 / 24.5
    slope = -(rho - 1.0) / 0.01**2
    expected = [-(1.0 + rho * slope), 2.0 / 24.5 + rho * slope / 24.5, -slope * 25.0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    np.testing.assert_allclose(found[1], [*expected[:2], -expected[2]], rtol=1e-12)
    assert found[0, 0] > 0.0, "A > 0 raises k: more muons come from the core than leave"
    assert found[0, 1] < 0.0, "e > 0 lowers k"
    assert found[0, 2] > 0.0, "M > 0 raises k of mu+"


def test_the_tails_have_the_weight_of_the_last_node() -> None:
    of = muons(50, reach=0.0)
    place, width = place_and_width(of["gen_pt"], of["eta"], of["charge"])
    for side in (-1.0, 1.0):
        at_end, beyond = (
            weight_derivatives(GAUSSIAN, **{**of, "pt": of["gen_pt"] / (place + side * t * width)})
            for t in (8.0, 8.5 if side < 0 else 60.0)
        )
        np.testing.assert_allclose(beyond, at_end, rtol=1e-9)
    assert np.all(np.abs(weight_derivatives(GAUSSIAN, **{**of, "pt": np.full(50, 1e-300)})[:, 0]) < 2000.0)


WRONG: dict[str, dict[str, float]] = {
    "eta above": {"eta": 2.4},
    "eta below": {"eta": -2.400001},
    "eta nan": {"eta": np.nan},
    "no match": {"gen_pt": np.nan},
    "no match, 0": {"gen_pt": 0.0},
    "no match, -1": {"gen_pt": -1.0},
    "true pT below": {"gen_pt": 14.99},
    "true pT above": {"gen_pt": 80.0},
    "pt nan": {"pt": np.nan},
    "pt inf": {"pt": np.inf},
    "pt 0": {"pt": 0.0},
    "pt negative": {"pt": -30.0},
    "no charge": {"charge": 0.0},
    "charge nan": {"charge": np.nan},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_gets_no_weight(name: str) -> None:
    one: dict[str, Any] = {"pt": 30.0, "eta": 0.1, "charge": 1, "gen_pt": 30.4}
    assert np.all(weight_derivatives(GAUSSIAN, **one) != 0.0)
    assert np.array_equal(weight_derivatives(GAUSSIAN, **(one | WRONG[name])), np.zeros((1, 3)))


def tables(eta_edges: Floats, n_variations: int = 7) -> CorrectionTables:
    n_eta = len(eta_edges) - 1
    rng = np.random.default_rng(4)
    shifts = rng.normal(size=(n_eta, 3, n_variations)) * np.array([1e-4, 1e-3, 1e-6])[:, None]
    names = tuple(f"stat{i}" for i in range(n_variations))
    zero = np.zeros(n_eta)
    return CorrectionTables(
        eta_edges, zero, zero, zero, np.zeros((3 * n_eta, 3 * n_eta)), 1.0, names, shifts, (20.0, 60.0), None, {}, {}
    )  # fmt: skip


def test_variations_are_derivatives_times_shifts() -> None:
    """Also where the eta bins of the correction are not those of the response."""
    of = muons()
    edges = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    some = tables(edges)
    found = variation_weights(GAUSSIAN, some, **of)
    inside = (np.abs(of["eta"]) < 2.0) & (of["pt"] >= 20.0) & (of["pt"] < 60.0)
    i = np.clip(np.searchsorted(edges, of["eta"], side="right") - 1, 0, 3)
    expected = np.einsum("np,npv->nv", weight_derivatives(GAUSSIAN, **of), some.variations[i])
    assert 100 < inside.sum() < 300
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-12, atol=1e-18)
    assert np.all(found[~inside] == 0.0)
    assert found.shape == (400, 7)


def test_variations_of_nothing_finite_are_zero() -> None:
    some = tables(ETA_EDGES)
    for wrong in WRONG.values():
        one: dict[str, Any] = {"pt": 30.0, "eta": 0.1, "charge": 1, "gen_pt": 30.4} | wrong
        assert np.all(variation_weights(GAUSSIAN, some, **one) == 0.0)


def test_single_precision_and_lists_are_taken() -> None:
    of = muons(20, reach=2.0)
    lists: dict[str, Any] = {name: column.tolist() for name, column in of.items()}
    np.testing.assert_array_equal(weight_derivatives(GAUSSIAN, **lists), weight_derivatives(GAUSSIAN, **of))
    single: dict[str, Any] = {name: column.astype(np.float32) for name, column in of.items()}
    np.testing.assert_allclose(
        weight_derivatives(GAUSSIAN, **single), weight_derivatives(GAUSSIAN, **of), atol=0.02, rtol=1e-4
    )
    assert weight_derivatives(GAUSSIAN, [], [], [], []).shape == (0, 3)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"arrays of one length, got pt \(3,\), eta \(2,\)"):
        weight_derivatives(GAUSSIAN, [1.0, 2.0, 3.0], [0.0, 0.0], 1, 30.0)


# Of a loaded correction


def columns(n: int = 400) -> dict[str, Any]:
    return {**muons(n), "phi": 0.0}


def loaded() -> Correction:
    return Correction(tables(np.array([-2.0, -1.0, 0.0, 1.0, 2.0])), GAUSSIAN)


def test_a_correction_gives_the_weights_of_the_library() -> None:
    """Of all variations, of some in their order, and of one."""
    of = columns()
    expected = variation_weights(GAUSSIAN, loaded().tables, **muons())
    np.testing.assert_array_equal(loaded().weights(**of), expected)
    some = loaded().weights(**of, names=("stat5", "stat0"))
    np.testing.assert_array_equal(some, expected[:, [5, 0]])
    np.testing.assert_array_equal(loaded().weights(**of, names="stat3"), expected[:, 3:4])
    assert loaded().weights(**of, names=()).shape == (400, 0)


def test_weights_have_the_structure_of_the_muons() -> None:
    ak = pytest.importorskip("awkward")
    of = columns(12)
    flat = loaded().weights(**of)
    square_columns: dict[str, Any] = {
        name: np.reshape(x, (-1, 4)) if name != "phi" else x for name, x in of.items()
    }
    square = loaded().weights(**square_columns)
    np.testing.assert_array_equal(square, flat.reshape(3, 4, 7))
    one = loaded().weights(of["pt"][0], of["eta"][0], 0.0, of["charge"][0], of["gen_pt"][0])
    np.testing.assert_array_equal(one, flat[0])
    jagged_columns: dict[str, Any] = {
        name: ak.unflatten(x, [5, 0, 7]) if name != "phi" else x for name, x in of.items()
    }
    jagged = loaded().weights(**jagged_columns)
    assert ak.num(jagged, axis=1).tolist() == [5, 0, 7]
    np.testing.assert_array_equal(ak.to_numpy(ak.flatten(jagged, axis=1)), flat)


def test_many_muons_have_the_weights_of_few() -> None:
    """More than a thread takes at a time."""
    of = columns(1000) | {"phi": np.zeros(1000)}
    many = {name: np.tile(x, 300) for name, x in of.items()}
    found = loaded().weights(**many, names=["stat1"])
    np.testing.assert_array_equal(found, np.tile(loaded().weights(**of, names=["stat1"]), (300, 1)))


def test_without_a_response_there_are_no_weights() -> None:
    without = Correction(loaded().tables)
    with pytest.raises(InputError, match=r"no response\.npz beside these tables: .* export\.response"):
        without.weights(**columns(3))


@pytest.mark.parametrize("name", ["stat7", "stat0_up", "nom", "", None, 3])
def test_weights_of_unknown_variations_are_refused(name: Any) -> None:
    with pytest.raises(InputError, match=r"names: .* is none of stat0, stat1, ..., stat6"):
        loaded().weights(**columns(3), names=[name])
