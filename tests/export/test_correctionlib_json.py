"""The exported file, evaluated with correctionlib itself, against `musclecal.scale`."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import correctionlib
import numpy as np
import pytest
from correctionlib import schemav2
from numpy.typing import NDArray

from musclecal.binning import equal_eta_edges
from musclecal.errors import InputError
from musclecal.export import correction_tables, export_correctionlib, load_correctionlib
from musclecal.records import CorrectionTables, ScaleCalibration
from musclecal.scale import corrected_curvature, correction_jacobian

Floats = NDArray[np.float64]
PROVENANCE = {"period": "2016H", "config": "sha256 0123"}
Make = Callable[..., ScaleCalibration]
MakeTables = Callable[..., CorrectionTables]


def evaluator(path: Path, exported: ScaleCalibration, **options: Any) -> Any:
    export_correctionlib(correction_tables(exported, PROVENANCE, **options), path)
    return correctionlib.CorrectionSet.from_file(str(path))["muon_pt_scale"]


def muons(n: int) -> tuple[Floats, Floats, Floats]:
    """pT from 2 to 200 GeV, |eta| < 2.4, both charges."""
    rng = np.random.default_rng(17)
    return (
        np.exp(rng.uniform(np.log(2.0), np.log(200.0), n)),
        rng.uniform(-2.4, 2.4, n),
        rng.choice([-1.0, 1.0], n),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "muon_scale.json.gz"


@pytest.mark.parametrize(
    "edges",
    [equal_eta_edges(24, 2.4), (2.0, 2.3, 3.1, 5.0), (-2.4, -0.9, 0.0, 1 / 3, 2.4)],
    ids=["uniform", "forward", "uneven"],
)
def test_the_factor_is_the_exact_correction(calibration: Make, path: Path, edges: tuple[float, ...]) -> None:
    scale = calibration(len(edges) - 1, eta_edges=np.array(edges))
    pt, eta, charge = muons(10_000)
    eta = edges[0] + (eta + 2.4) / 4.8 * (edges[-1] - edges[0])
    factor = evaluator(path, scale).evaluate(pt, eta, charge, "nom")
    i = np.searchsorted(edges, eta, side="right") - 1
    expected = [
        k / corrected_curvature(k, q, scale.A[n], scale.e[n], scale.M[n])
        for k, q, n in zip(1.0 / pt, charge, i, strict=True)
    ]
    np.testing.assert_allclose(factor, expected, rtol=1e-11)
    assert {-1.0, 1.0} == set(charge)


@pytest.mark.parametrize(
    ("parameter", "value", "charge", "corrected_pt"),
    [
        ("A", 1e-3, +1.0, 10.0 / 1.001),
        ("A", 1e-3, -1.0, 10.0 / 1.001),
        ("e", 5e-3, +1.0, 10.005002501250625),
        ("e", 5e-3, -1.0, 10.005002501250625),
        ("M", 1e-4, +1.0, 9.990009990009990),
        ("M", 1e-4, -1.0, 10.010010010010010),
    ],
)
def test_signs_by_hand(
    calibration: Make, path: Path, parameter: str, value: float, charge: float, corrected_pt: float
) -> None:
    """At 10 GeV: A = 1e-3 gives 10/1.001; e = 5 MeV adds 5 MeV; M = 1e-4 makes k = 0.1 + q 1e-4."""
    parameters = dict.fromkeys("AeM", np.zeros(2)) | {parameter: np.full(2, value)}
    factor = evaluator(path, calibration(2, **parameters)).evaluate(10.0, 0.5, charge, "nom")
    assert 10.0 * factor == pytest.approx(corrected_pt, rel=1e-12)


def test_energy_loss_is_the_same_at_every_pt(calibration: Make, path: Path) -> None:
    correction = evaluator(path, calibration(2, A=np.zeros(2), e=np.full(2, 5e-3), M=np.zeros(2)))
    pt = np.array([3.0, 10.0, 50.0, 150.0])
    gain = pt * correction.evaluate(pt, np.zeros(4), np.ones(4), "nom") - pt
    np.testing.assert_allclose(gain, 5e-3, rtol=2e-3)


def test_variations_shift_all_parameters_together(calibration: Make, path: Path) -> None:
    """Exactly 1/(1 + J (theta +- v_i)), with v_i from the covariance."""
    scale = calibration(4)
    correction = evaluator(path, scale)
    rows = np.linalg.eigh(scale.covariance / np.outer(*[np.sqrt(np.diagonal(scale.covariance))] * 2))
    first = rows.eigenvectors[:, -1] * np.sqrt(rows.eigenvalues[-1] * np.diagonal(scale.covariance))
    first *= np.sign(rows.eigenvectors[np.argmax(np.abs(rows.eigenvectors[:, -1])), -1])
    pt, eta, charge = muons(200)
    i = np.searchsorted(scale.eta_edges, eta, side="right") - 1
    jacobian = correction_jacobian(pt, charge)
    for sign, name in ((1.0, "stat0_up"), (-1.0, "stat0_down")):
        relative = np.sum(jacobian * (scale.parameters + sign * first).reshape(-1, 3)[i], axis=1)
        np.testing.assert_allclose(
            correction.evaluate(pt, eta, charge, name), 1.0 / (1.0 + relative), rtol=1e-11
        )


@pytest.mark.parametrize("side", ["up", "down"])
def test_variations_add_up_to_the_scaled_variance(calibration: Make, path: Path, side: str) -> None:
    """sum (up - nom)^2 = s^2 J C J^T within 1 %, J = d(factor)/d(A, e, M) = -factor^2 d(dk/k)/d(A, e, M)."""
    scale = calibration(8)
    correction = evaluator(path, scale, s=1.7)
    pt, eta, charge = muons(300)
    nominal = correction.evaluate(pt, eta, charge, "nom")
    names = [f"stat{i}_{side}" for i in range(24)]
    total = sum((correction.evaluate(pt, eta, charge, name) - nominal) ** 2 for name in names)
    jacobian = -(nominal[:, None] ** 2) * correction_jacobian(pt, charge)
    i = np.searchsorted(scale.eta_edges, eta, side="right") - 1
    blocks = scale.covariance.reshape(8, 3, 8, 3)[i, :, i, :]
    variance = np.einsum("na,nab,nb->n", jacobian, blocks, jacobian)
    np.testing.assert_allclose(total, 1.7**2 * variance, rtol=0.01)


@pytest.mark.parametrize(
    "name", ["", "nominal", "up", "stat18_up", "stat-1_up", "stat00_up", "stat0_Up", "stat0_up ", "stat0"]
)
@pytest.mark.parametrize("pt", [10.0, 1000.0], ids=["inside", "outside"])
def test_a_typo_in_syst_raises_even_out_of_range(calibration: Make, path: Path, name: str, pt: float) -> None:
    correction = evaluator(path, calibration(6))
    with pytest.raises(IndexError, match="Index not available in Category"):
        correction.evaluate(pt, 0.1, 1.0, name)


@pytest.mark.parametrize("syst", ["nom", "stat0_up", "stat17_down"])
def test_out_of_range_is_exactly_one(calibration: Make, path: Path, syst: str) -> None:
    correction = evaluator(path, calibration(6))
    beyond = [1.9999999, 0.0, -1.0, 200.0, 1e4, np.inf, -np.inf, np.nan]
    for pt in beyond:
        assert correction.evaluate(pt, 0.1, 1.0, syst) == 1.0
    for eta in [-2.4000001, 2.4, 2.5, np.inf, -np.inf, np.nan]:
        assert correction.evaluate(20.0, eta, -1.0, syst) == 1.0
    for pt, eta in [(2.0, 0.1), (199.99, 0.1), (20.0, -2.4), (20.0, 2.39999)]:
        assert correction.evaluate(pt, eta, 1.0, syst) != 1.0


def test_nan_among_good_muons_does_not_spread(calibration: Make, path: Path) -> None:
    correction = evaluator(path, calibration(6))
    pt, eta, charge = np.array([20.0, np.nan, 20.0]), np.array([0.1, 0.1, np.nan]), np.ones(3)
    factor = correction.evaluate(pt, eta, charge, "nom")
    assert factor[0] == correction.evaluate(20.0, 0.1, 1.0, "nom")
    np.testing.assert_array_equal(factor[1:], 1.0)


@pytest.mark.parametrize("n_eta", [24, 48])
def test_bins_hold_their_lower_edge_to_the_last_bit(calibration: Make, path: Path, n_eta: int) -> None:
    scale = calibration(n_eta)
    correction = evaluator(path, scale)
    edges = scale.eta_edges[1:-1]
    for shift, expected in ((np.inf, 1), (0, 1), (-np.inf, 0)):
        eta = np.nextafter(edges, shift) if shift else edges
        A, e, M = (getattr(scale, name)[expected:][: n_eta - 1] for name in ("A", "e", "M"))
        found = correction.evaluate(np.full(n_eta - 1, 20.0), eta, np.ones(n_eta - 1), "nom")
        np.testing.assert_allclose(found, 1.0 / (1.0 + A - e / 20.0 + M * 20.0), rtol=1e-13)


def test_a_range_of_ones_own(calibration: Make, path: Path) -> None:
    correction = evaluator(path, calibration(6), pt_range=(5.0, 60.0))
    assert correction.evaluate(4.0, 0.1, 1.0, "nom") == 1.0
    assert correction.evaluate(5.0, 0.1, 1.0, "nom") != 1.0
    assert correction.evaluate(60.0, 0.1, 1.0, "nom") == 1.0


def test_arrays_of_other_types_are_converted_but_a_whole_number_is_not(calibration: Make, path: Path) -> None:
    correction = evaluator(path, calibration(6))
    one = correction.evaluate(
        np.array([20.0], dtype=np.float32), np.array([0.5], dtype=np.float32), np.array([-1]), "nom"
    )
    assert one[0] == correction.evaluate(20.0, 0.5, -1.0, "nom")
    with pytest.raises(RuntimeError, match="charge has wrong type: got int expected real"):
        correction.evaluate(20.0, 0.5, -1, "nom")


def test_the_file_follows_the_schema_and_explains_itself(full_tables: MakeTables, path: Path) -> None:
    export_correctionlib(full_tables(6), path)
    text = gzip.decompress(path.read_bytes()).decode()
    content = schemav2.CorrectionSet.model_validate_json(text)
    assert content.description is not None
    assert "period: 2016H" in content.description
    for each in content.corrections:
        assert each.description
        assert all(item.description for item in [*each.inputs, each.output])
    named = {each.name: [item.name for item in each.inputs] for each in content.corrections}
    assert named == {
        "muon_pt_scale": ["pt", "eta", "charge", "syst"],
        "muon_pt_scale_var": ["pt", "eta", "charge", "ivar", "nsigma"],
        "muon_A": ["eta"],
        "muon_e": ["eta"],
        "muon_M": ["eta"],
        "muon_pt_smear": ["pt", "eta", "phi", "run", "lumi", "event", "salt"],
    }
    assert content.compound_corrections is not None
    assert [each.name for each in content.compound_corrections] == ["muon_pt_scale_smear"]
    correction = content.corrections[0]
    assert correction.description is not None
    for words in (
        "A > 0 lowers pT",
        "SCALED",
        "s = 2.1",
        "e: GeV",
        "M: 1/GeV",
        "[low, high)",
        "exactly 1",
        "2 <= pT < 200",
    ):
        assert words in correction.description
    assert isinstance(correction.data, schemav2.Transform)
    variations = correction.data.content
    assert isinstance(variations, schemav2.Category)
    assert variations.default is None
    names = [*(f"stat{i}" for i in range(18)), *(f"closure_Z{i}" for i in range(4))]
    assert [item.key for item in variations.content] == [
        "nom", *(f"{name}_{side}" for name in names for side in ("up", "down")),
    ]  # fmt: skip


def test_numbers_have_twelve_significant_digits(calibration: Make, path: Path) -> None:
    scale = calibration(2, A=np.array([1.23456789012345678e-4, 0.0]))
    export_correctionlib(correction_tables(scale, {}), path)
    content = json.loads(gzip.decompress(path.read_bytes()))
    in_pt = content["corrections"][0]["data"]["content"]["content"][0]["value"]
    assert in_pt["content"][0]["content"][0]["parameters"][0] == 1.23456789012e-4


def test_the_same_bytes_when_written_twice(calibration: Make, path: Path) -> None:
    other = path.with_name("another_name.gz")
    export_correctionlib(correction_tables(calibration(6), PROVENANCE), path)
    export_correctionlib(correction_tables(calibration(6), dict(reversed(PROVENANCE.items()))), other)
    assert path.read_bytes() == other.read_bytes()
    assert path.read_bytes()[3:8] == bytes(5), "no file name, no time in the gzip header"


@pytest.mark.parametrize(("n_eta", "most"), [(24, 150_000), (48, 450_000)])
def test_the_file_is_small(calibration: Make, path: Path, n_eta: int, most: int) -> None:
    """The variations are in it twice, by name and by number."""
    export_correctionlib(correction_tables(calibration(n_eta), PROVENANCE), path)
    assert path.stat().st_size < most


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"pt_range": (0.0, 200.0)}, "pt_range: need 0 < low < high"),
        ({}, {"pt_range": (20.0, 2.0)}, "pt_range: need 0 < low < high"),
        ({"M": np.array([0.0, 1e-2])}, {}, "eta bin 1: the correction .* -2 between 2 and 200 GeV"),
        ({"e": np.array([2.5, 0.0])}, {}, "eta bin 0"),
        ({"covariance": np.eye(6)}, {}, "eta bin 0"),
        ({"A": np.array([np.nan, 0.0])}, {}, "A: nan in eta bin 0"),
        ({"covariance": np.eye(6) - 0.5}, {}, "not positive semi-definite"),
    ],
)
def test_a_calibration_that_cannot_be_used(
    calibration: Make, path: Path, changes: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        evaluator(path, calibration(2, **changes), **options)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("charge", [0.0, 0.5, -0.999, 1.001, 2.0, -2.0, np.nan, np.inf, -np.inf])
def test_a_charge_that_is_none_is_not_corrected(calibration: Make, path: Path, charge: float) -> None:
    correction = evaluator(path, calibration(6))
    assert correction.evaluate(20.0, 0.1, charge, "nom") == 1.0
    assert correction.evaluate(20.0, 0.1, charge, "stat1_up") == 1.0


def test_variations_by_number_are_those_by_name(full_tables: MakeTables, path: Path) -> None:
    t = full_tables(6)
    export_correctionlib(t, path)
    found = correctionlib.CorrectionSet.from_file(str(path))
    pt, eta, charge = muons(500)
    nominal = found["muon_pt_scale"].evaluate(pt, eta, charge, "nom")
    for number, name in enumerate(t.variation_names):
        for side, nsigma in (("up", 1.0), ("down", -1.0)):
            by_name = found["muon_pt_scale"].evaluate(pt, eta, charge, f"{name}_{side}")
            by_number = found["muon_pt_scale_var"].evaluate(pt, eta, charge, number, nsigma)
            np.testing.assert_allclose(by_number, by_name, rtol=1e-14)
        none = found["muon_pt_scale_var"].evaluate(pt, eta, charge, number, 0.0)
        np.testing.assert_allclose(none, nominal, rtol=1e-15)
    for number in (-1, t.n_variations):
        with pytest.raises(IndexError):
            found["muon_pt_scale_var"].evaluate(20.0, 0.1, 1.0, number, 0.0)


def test_tables_alone(full_tables: MakeTables, path: Path) -> None:
    t = full_tables(6)
    export_correctionlib(t, path)
    found = correctionlib.CorrectionSet.from_file(str(path))
    for letter in "AeM":
        values = found[f"muon_{letter}"].evaluate(t.eta_edges[:-1])
        np.testing.assert_allclose(values, getattr(t, letter), rtol=1e-11)
        assert found[f"muon_{letter}"].evaluate(2.4) == 0.0


def test_scale_then_smear_is_one_after_the_other(full_tables: MakeTables, path: Path) -> None:
    """The smearing of the scaled pT, with the draw of the muon."""
    export_correctionlib(full_tables(6), path)
    found = correctionlib.CorrectionSet.from_file(str(path))
    pt, eta, charge = muons(500)
    numbers = (np.full(500, 1), np.full(500, 2), np.arange(500), 0)
    phi = np.linspace(-3.0, 3.0, 500)
    scale = found["muon_pt_scale"].evaluate(pt, eta, charge, "stat0_up")
    smear = found["muon_pt_smear"].evaluate(pt * scale, eta, phi, *numbers)
    both = found.compound["muon_pt_scale_smear"].evaluate(pt, eta, phi, charge, *numbers, "stat0_up")
    np.testing.assert_allclose(both, scale * smear, rtol=1e-14)
    assert np.std(smear) > 1e-3


def test_without_smearing_there_is_none(full_tables: MakeTables, path: Path) -> None:
    export_correctionlib(full_tables(6, smearing=None), path)
    found = correctionlib.CorrectionSet.from_file(str(path))
    assert "muon_pt_smear" not in list(found)
    assert not list(found.compound)
    assert load_correctionlib(path).smearing is None


def test_what_is_read_is_what_was_written_to_twelve_digits(full_tables: MakeTables, path: Path) -> None:
    t = full_tables(6)
    export_correctionlib(t, path)
    found = load_correctionlib(path)
    for name in ("A", "e", "M", "variations"):
        np.testing.assert_allclose(getattr(found, name), getattr(t, name), rtol=1e-11, atol=0.0)
    sigma = np.sqrt(np.diagonal(t.covariance))
    assert np.max(np.abs(found.covariance - t.covariance) / np.outer(sigma, sigma)) < 1e-10
    np.testing.assert_array_equal(found.eta_edges, t.eta_edges)
    assert (found.s, found.pt_range, found.variation_names) == (t.s, t.pt_range, t.variation_names)
    assert found.provenance == t.provenance
    assert found.smearing is not None
    assert t.smearing is not None
    np.testing.assert_array_equal(found.smearing.c, t.smearing.c)
    assert list(found.residuals) == ["Z", "Y1S"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "x"])
@pytest.mark.parametrize("packed", [True, False])
def test_other_files_are_refused(path: Path, text: str, packed: bool) -> None:
    content = gzip.compress(text.encode()) if packed else text.encode()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"muon_scale\.json\.gz: not a correctionlib file of this package"):
        load_correctionlib(path)


def test_a_damaged_archive_is_refused(full_tables: MakeTables, path: Path) -> None:
    export_correctionlib(full_tables(6), path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[400:420] = bytes(20)
    for content in (whole[: len(whole) // 2], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"muon_scale\.json\.gz"):
            load_correctionlib(path)
