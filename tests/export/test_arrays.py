"""The tables as numpy and JSON arrays: nothing lost, nothing accepted that was changed by hand."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import musclecal
from musclecal.apply import corrected_pt
from musclecal.binning import equal_eta_edges
from musclecal.covariance import scale_parameter_names
from musclecal.errors import InputError
from musclecal.export import correction_tables, export_json, export_npz, load_arrays
from musclecal.given_correction import read_correction
from musclecal.records import CorrectionTables, Muons, NuisanceGroup, ScaleCalibration, Smearing

PROVENANCE = {"period": "2016H", "config": "sha256 0123"}
FILES = ("calibration.npz", "calibration.json")
Make = Callable[..., ScaleCalibration]
MakeTables = Callable[..., CorrectionTables]


def export_arrays(tables: CorrectionTables, folder: Path) -> None:
    folder.mkdir()
    export_npz(tables, folder / "calibration.npz")
    export_json(tables, folder / "calibration.json")


@pytest.fixture
def folder(calibration: Make, tmp_path: Path) -> Path:
    export_arrays(correction_tables(calibration(), PROVENANCE, s=1.5), tmp_path / "tables")
    return tmp_path / "tables"


def edited(path: Path, **changes: Any) -> Path:
    """The exported JSON with some entries replaced, or left out where the change is None."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return path


@pytest.mark.parametrize("name", FILES)
def test_what_is_read_is_what_was_written(calibration: Make, folder: Path, name: str) -> None:
    expected, found = calibration(), load_arrays(folder / name)
    for part in ("eta_edges", "A", "e", "M"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part), err_msg=part)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-15)
    assert found.provenance == PROVENANCE
    assert found.s == 1.5


@pytest.mark.parametrize("name", FILES)
def test_everything_comes_back_to_the_last_bit(full_tables: MakeTables, tmp_path: Path, name: str) -> None:
    expected = full_tables(6, pt_range=(3.0, 150.0))
    export_arrays(expected, tmp_path / "tables")
    found = load_arrays(tmp_path / "tables" / name)
    assert found.pt_range == (3.0, 150.0)
    assert found.variation_names == expected.variation_names
    np.testing.assert_array_equal(found.variations, expected.variations)
    assert list(found.residuals) == ["Z", "Y1S"]
    for resonance, table in expected.residuals.items():
        np.testing.assert_array_equal(found.residuals[resonance], table)
    for field in fields(Smearing):
        one, other = (getattr(t.smearing, field.name) for t in (found, expected))
        np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_variations_are_per_eta_bin_and_parameter(folder: Path) -> None:
    with np.load(folder / "calibration.npz") as archive:
        variations, covariance = archive["variations"], archive["covariance"]
    assert variations.shape == (6, 3, 18)
    total = np.einsum("iav,jbv->iajb", variations, variations).reshape(18, 18)
    sigma = np.sqrt(np.diagonal(covariance))
    assert np.max(np.abs(total / 1.5**2 - covariance) / np.outer(sigma, sigma)) < 1e-12
    np.testing.assert_array_equal(load_arrays(folder / "calibration.json").variations, variations)


def test_an_export_can_be_applied(calibration: Make, folder: Path) -> None:
    muons = Muons(np.array([5.0, 40.0]), np.array([-1.1, 2.0]), np.zeros(2))
    found = corrected_pt(muons, -1, load_arrays(folder / "calibration.npz"))
    np.testing.assert_array_equal(found, corrected_pt(muons, -1, calibration()))


def test_the_json_says_what_it_means(folder: Path) -> None:
    text = (folder / "calibration.json").read_text()
    content = json.loads(text)
    assert content["units"] == {"A": "1", "e": "GeV", "M": "1/GeV", "eta_edges": "1", "pt_range": "GeV"}
    assert "A > 0 lowers pT" in content["signs"]
    assert "SCALED" in content["about_variations"]
    assert content["s"] == 1.5
    assert content["pt_range"] == [2.0, 200.0]
    assert content["variation_names"] == [f"stat{i}" for i in range(18)]
    assert content["parameter_order"] == list(scale_parameter_names(6))
    assert content["provenance"] == PROVENANCE
    assert len(text.splitlines()) < 100


def test_the_archive_needs_no_pickle_and_says_the_same(folder: Path) -> None:
    with np.load(folder / "calibration.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["units"]))["e"] == "GeV"
        assert archive["parameter_order"].tolist() == list(scale_parameter_names(6))


def test_the_same_bytes_when_written_twice(calibration: Make, tmp_path: Path) -> None:
    export_arrays(correction_tables(calibration(), PROVENANCE), tmp_path / "a")
    export_arrays(correction_tables(calibration(), dict(reversed(PROVENANCE.items()))), tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"A": np.zeros(5)}, "A: 6 eta bins need as many values"),
        ({"e": np.array([0.0, 0.0, np.nan, 0.0, 0.0, 0.0])}, "e: nan in eta bin 2"),
        ({"eta_edges": np.zeros(7)}, "eta_edges: must be finite and increasing"),
        ({"covariance": np.eye(17)}, "6 eta bins need 18 parameters"),
        ({"covariance": -np.eye(18)}, "negative variance -1 of A0"),
    ],
)
def test_a_calibration_that_cannot_be_used(calibration: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        correction_tables(calibration(**changes), PROVENANCE)


def group(name: str, edges: NDArray[np.float64]) -> NuisanceGroup:
    return NuisanceGroup("mass", edges, ("A",), (name,), np.zeros((1, len(edges) - 1)))


BAD_SMEARING = Smearing(np.array([-2.4, 2.4]), *(np.array([x]) for x in (1e-4, np.nan, 0.0, 1.0, 0.0)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"s": 0.0}, "s: must be positive"),
        ({"s": np.nan}, "s: must be positive"),
        ({"pt_range": (0.0, 200.0)}, "pt_range: need 0 < low < high"),
        ({"pt_range": (3.0, np.inf)}, "pt_range: need 0 < low < high"),
        ({"pt_range": (2.0, 1e5)}, "eta bin .* pT would be negative"),
        ({"smearing": BAD_SMEARING}, "smearing: b must be 1 finite numbers"),
        ({"smearing": replace(BAD_SMEARING, eta_edges=np.array([2.4, -2.4]))}, "smearing: "),
        ({"others": [group("m", np.array([-2.4, 2.4]))]}, "mass: other eta bins"),
        ({"others": [group("stat0", np.array(equal_eta_edges(6, 2.4)))]}, "19 different names"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(calibration: Make, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        correction_tables(calibration(), PROVENANCE, **options)


def test_other_variations_stand_in_all_parameters(calibration: Make) -> None:
    """A group of A and M leaves e alone, and is not scaled by s."""
    shifts = np.arange(12.0)[None] * 1e-6
    group = NuisanceGroup("closure_Z", calibration().eta_edges, ("A", "M"), ("closure_Z0",), shifts)
    t = correction_tables(calibration(), PROVENANCE, s=3.0, others=[group])
    assert t.variation_names[-1] == "closure_Z0"
    expected = np.zeros((6, 3))
    expected[:, 0], expected[:, 2] = shifts[0, 0::2], shifts[0, 1::2]
    np.testing.assert_array_equal(t.variations[:, :, -1], expected)


ORDER = [f"{letter}{i}" for letter in "AeM" for i in range(6)]
NOT_POSITIVE = np.eye(18) + np.eye(18, k=3) * 1.1 + np.eye(18, k=-3) * 1.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameter_order": ORDER}, "parameter order A0, A1, A2, A3, ..., expected A0, e0, M0, A1, ..."),
        ({"covariance": NOT_POSITIVE.tolist()}, "not positive semi-definite, eigenvalue"),
        ({"covariance": np.eye(18).tolist()}, "variations named stat do not sum to s^2 times the covariance"),
        ({"s": 1.4}, "variations named stat do not sum to s^2 times the covariance"),
        ({"s": -1.5}, "s: must be positive"),
        ({"pt_range": [200.0, 2.0]}, "pt_range: need 0 < low < high"),
        ({"pt_range": [2.0]}, "not a readable file"),
        ({"variation_names": [f"stat{i}" for i in range(17)]}, "for 17 different names"),
        ({"variation_names": ["stat0"] * 18}, "for 18 different names"),
        (
            {"format": "musclecal tables 3"},
            "this version reads 'musclecal tables 2' and 'musclecal arrays 1'",
        ),
        ({"M": None}, "'M' is missing"),
        ({"A": ["x"] * 6}, "not a readable file"),
        ({"provenance": [1]}, "not a readable file"),
        ({"A": 1.0}, "not a readable file"),
    ],
)
def test_a_file_changed_by_hand(folder: Path, changes: dict[str, Any], words: str) -> None:
    path = edited(folder / "calibration.json", **changes)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        load_arrays(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"A, e, M\n", b"PK\x03\x04 half", b"[1, 2]", b"\xff\xfe\x00"])
def test_a_damaged_or_foreign_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_arrays(tmp_path / name)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(folder: Path, name: str, kept: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=name):
        load_arrays(folder / name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.npz"):
        load_arrays(tmp_path / "none.npz")


OLDER = """{
  "format": "musclecal arrays 1",
  "signs": "k_corr = (1 + A - e k) k + q M",
  "units": {"A": "1", "e": "GeV", "M": "1/GeV", "eta_edges": "1"},
  "about_variations": "UNSCALED",
  "parameter_order": ["A0", "e0", "M0", "A1", "e1", "M1"],
  "eta_edges": [-2.4, 0.0, 2.4],
  "A": [0.001, -0.0005],
  "e": [0.004, 0.002],
  "M": [1e-05, -2e-05],
  "covariance": [
    [4e-10, 0, 0, 0, 0, 0], [0, 9e-8, 0, 0, 0, 0], [0, 0, 1e-12, 0, 0, 0],
    [0, 0, 0, 1e-10, 0, 0], [0, 0, 0, 0, 4e-8, 0], [0, 0, 0, 0, 0, 9e-12]
  ],
  "variations": [
    [[2e-05, 0, 0, 0, 0, 0], [0, 0.0003, 0, 0, 0, 0], [0, 0, 1e-06, 0, 0, 0]],
    [[0, 0, 0, 1e-05, 0, 0], [0, 0, 0, 0, 0.0002, 0], [0, 0, 0, 0, 0, 3e-06]]
  ],
  "provenance": {"period": "2016H"}
}
"""


def test_the_format_before_this_one_is_read(tmp_path: Path) -> None:
    """Statistical variations alone, not scaled, for 2 to 200 GeV."""
    (tmp_path / "old.json").write_text(OLDER)
    with open(tmp_path / "old.npz", "wb") as file:
        content: Any = json.loads(OLDER)
        content |= {name: json.dumps(value) for name, value in content.items() if isinstance(value, dict)}
        np.savez(file, **content)
    for name in ("old.json", "old.npz"):
        found = load_arrays(tmp_path / name)
        assert found.s == 1.0
        assert found.pt_range == (2.0, 200.0)
        assert found.variation_names == ("stat0", "stat1", "stat2", "stat3", "stat4", "stat5")
        assert found.smearing is None
        assert found.residuals == {}
        assert found.provenance == {"period": "2016H"}
        assert found.e.tolist() == [0.004, 0.002]
        np.testing.assert_allclose(found.scaled_covariance, found.covariance, atol=1e-25)
        given = read_correction(tmp_path / name)
        assert given.scale is not None
        assert given.scale.covariance[5, 5] == 9e-12
    factor = musclecal.load(tmp_path / "old.json").scale(20.0, 1.0, 0.0, -1, syst="stat3_up")
    assert factor == pytest.approx(1.0 / (1.0 - 5e-4 + 1e-5 - 0.002 / 20.0 + 2e-5 * 20.0), rel=1e-14)
