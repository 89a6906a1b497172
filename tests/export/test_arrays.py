"""The calibration as numpy and JSON arrays: nothing lost, nothing accepted that was changed by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musclecal.apply import corrected_pt
from musclecal.covariance import scale_parameter_names
from musclecal.errors import InputError
from musclecal.export import export_arrays, load_arrays
from musclecal.records import Muons, ScaleCalibration

PROVENANCE = {"period": "2016H", "config": "sha256 0123"}
FILES = ("calibration.npz", "calibration.json")
Make = Callable[..., ScaleCalibration]


@pytest.fixture
def folder(calibration: Make, tmp_path: Path) -> Path:
    export_arrays(calibration(), tmp_path / "tables", PROVENANCE)
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


def test_variations_are_per_eta_bin_and_parameter(folder: Path) -> None:
    with np.load(folder / "calibration.npz") as archive:
        variations, covariance = archive["variations"], archive["covariance"]
    assert variations.shape == (6, 3, 18)
    total = np.einsum("iav,jbv->iajb", variations, variations).reshape(18, 18)
    sigma = np.sqrt(np.diagonal(covariance))
    assert np.max(np.abs(total - covariance) / np.outer(sigma, sigma)) < 1e-12
    np.testing.assert_array_equal(load_arrays(folder / "calibration.json").variations, variations)


def test_an_export_can_be_applied(calibration: Make, folder: Path) -> None:
    muons = Muons(np.array([5.0, 40.0]), np.array([-1.1, 2.0]), np.zeros(2))
    found = corrected_pt(muons, -1, load_arrays(folder / "calibration.npz"))
    np.testing.assert_array_equal(found, corrected_pt(muons, -1, calibration()))


def test_the_json_says_what_it_means(folder: Path) -> None:
    text = (folder / "calibration.json").read_text()
    content = json.loads(text)
    assert content["units"] == {"A": "1", "e": "GeV", "M": "1/GeV", "eta_edges": "1"}
    assert "A > 0 lowers pT" in content["signs"]
    assert "UNSCALED" in content["about_variations"]
    assert content["parameter_order"] == list(scale_parameter_names(6))
    assert content["provenance"] == PROVENANCE
    assert len(text.splitlines()) < 100


def test_the_archive_needs_no_pickle_and_says_the_same(folder: Path) -> None:
    with np.load(folder / "calibration.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["units"]))["e"] == "GeV"
        assert archive["parameter_order"].tolist() == list(scale_parameter_names(6))


def test_the_same_bytes_when_written_twice(calibration: Make, tmp_path: Path) -> None:
    export_arrays(calibration(), tmp_path / "a", PROVENANCE)
    export_arrays(calibration(), tmp_path / "b", dict(reversed(PROVENANCE.items())))
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
def test_a_calibration_that_cannot_be_used(
    calibration: Make, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        export_arrays(calibration(**changes), tmp_path / "tables", PROVENANCE)
    assert not list(tmp_path.iterdir())


ORDER = [f"{letter}{i}" for letter in "AeM" for i in range(6)]
NOT_POSITIVE = np.eye(18) + np.eye(18, k=3) * 1.1 + np.eye(18, k=-3) * 1.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameter_order": ORDER}, "parameter order A0, A1, A2, A3, ..., expected A0, e0, M0, A1, ..."),
        ({"covariance": NOT_POSITIVE.tolist()}, "not positive semi-definite, eigenvalue"),
        ({"covariance": np.eye(18).tolist()}, "variations do not sum to the covariance"),
        ({"format": "musclecal arrays 2"}, "this version reads 'musclecal arrays 1'"),
        ({"M": None}, "'M' is missing"),
        ({"A": ["x"] * 6}, "not a readable file"),
        ({"provenance": [1]}, "not a readable file"),
        ({"A": 1.0}, "not a readable file"),
    ],
)
def test_a_file_changed_by_hand(folder: Path, changes: dict[str, Any], words: str) -> None:
    path = edited(folder / "calibration.json", **changes)
    with pytest.raises(InputError, match=words.replace(".", r"\.")) as caught:
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
