"""A correction from a file: every form gives the same muons, and what is not understood is refused by name."""

import gzip
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musclecal.apply import correct
from musclecal.binning import equal_eta_edges
from musclecal.errors import InputError
from musclecal.export import correction_tables, export_correctionlib, export_json, export_npz, export_root
from musclecal.given_correction import GivenCorrection, read_correction
from musclecal.records import DimuonEvents, Muons, ScaleCalibration
from musclecal.samples import write_scale

schemav2 = pytest.importorskip("correctionlib.schemav2")
N_ETA = 4


@pytest.fixture(scope="module")
def calibration() -> ScaleCalibration:
    rng = np.random.default_rng(1)
    values: dict[str, Any] = {field.name: 1.0 for field in fields(ScaleCalibration)}
    root = rng.normal(size=(3 * N_ETA, 40)) * np.tile([2e-5, 2e-4, 2e-6], N_ETA)[:, None]
    values |= {
        "eta_edges": np.array(equal_eta_edges(N_ETA, 2.4)),
        "A": rng.normal(0.0, 1e-3, N_ETA),
        "e": rng.normal(5e-3, 1e-3, N_ETA),
        "M": rng.normal(0.0, 1e-4, N_ETA),
        "covariance": root @ root.T,
    }
    return ScaleCalibration(**values)


@pytest.fixture(scope="module")
def events() -> DimuonEvents:
    rng = np.random.default_rng(2)

    def muons() -> Muons:
        return Muons(rng.uniform(5, 90, 500), rng.uniform(-2.4, 2.4, 500), rng.uniform(-3.1, 3.1, 500))

    return DimuonEvents(muons(), muons())


@pytest.fixture
def exported(calibration: ScaleCalibration, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    tables = correction_tables(calibration, {"campaign": "test"}, s=1.5)
    export_npz(tables, folder / "calibration.npz")
    export_json(tables, folder / "calibration.json")
    export_root(tables, folder / "muon_scale.root")
    export_correctionlib(tables, folder / "muon_scale.json.gz")
    return folder


def assert_corrects_as(
    given: GivenCorrection, calibration: ScaleCalibration, events: DimuonEvents, rtol: float = 1e-13
) -> None:
    found, expected = given.correction(events), correct(events, calibration)
    assert np.max(np.abs(expected.plus.pt / events.plus.pt - 1.0)) > 1e-3
    for charge in ("plus", "minus"):
        np.testing.assert_allclose(getattr(found, charge).pt, getattr(expected, charge).pt, rtol=rtol)
        np.testing.assert_array_equal(getattr(found, charge).eta, getattr(events, charge).eta)


# What this package writes


@pytest.mark.parametrize("name", ["", "calibration.npz", "calibration.json", "muon_scale.root"])
def test_an_export_comes_with_its_covariance(
    exported: Path, calibration: ScaleCalibration, events: DimuonEvents, name: str
) -> None:
    """As it was measured: the closures' s belongs to its variations."""
    given = read_correction(exported / name)
    assert_corrects_as(given, calibration, events)
    assert given.scale is not None
    np.testing.assert_array_equal(given.scale.covariance, calibration.covariance)
    assert given.files == (str(exported / (name or "calibration.npz")),)


def test_a_renamed_export_keeps_its_covariance(exported: Path, calibration: ScaleCalibration) -> None:
    """It holds eta_edges, A, e, M as well, and must not be taken for a file with these alone."""
    other = (exported / "calibration.json").rename(exported / "run2016.json")
    given = read_correction(other)
    assert given.scale is not None
    np.testing.assert_array_equal(given.scale.covariance, calibration.covariance)


def test_the_correctionlib_file_of_an_export_does_the_same_to_its_digits(
    exported: Path, calibration: ScaleCalibration, events: DimuonEvents
) -> None:
    given = read_correction(exported / "muon_scale.json.gz")
    assert_corrects_as(given, calibration, events, rtol=1e-10)
    assert given.scale is not None
    sigma = np.sqrt(np.diagonal(calibration.covariance))
    difference = given.scale.covariance - calibration.covariance
    assert np.max(np.abs(difference) / np.outer(sigma, sigma)) < 1e-10


def test_a_folder_with_the_correctionlib_file_alone_is_enough(
    exported: Path, calibration: ScaleCalibration, events: DimuonEvents
) -> None:
    for name in ("calibration.npz", "calibration.json", "muon_scale.root"):
        (exported / name).unlink()
    assert_corrects_as(read_correction(exported), calibration, events, rtol=1e-10)


def test_plain_json_with_edges_and_parameters(
    tmp_path: Path, calibration: ScaleCalibration, events: DimuonEvents
) -> None:
    write_scale(tmp_path / "theirs.json", calibration)
    given = read_correction(tmp_path / "theirs.json")
    assert_corrects_as(given, calibration, events)
    assert given.scale is None


# Somebody else's correctionlib file


def foreign(folder: Path, *inputs: tuple[str, str], words: tuple[str, ...] = ()) -> Path:
    """A file whose second correction, of ``inputs`` (name, type), is 1 + 0.001 eta + 0.002 charge.

    Its last input may be one of ``words``, of which the first is that. An integer charge chooses among two formulas.
    """
    real = [name for name, kind in inputs if kind == "real"]

    def formula(charge: str) -> dict[str, Any]:
        letter = dict(zip(real, "xyzt", strict=False))
        text = f"1.0 + 0.001*{letter.get('eta', '0')} + 0.002*{letter.get(charge, charge)}"
        return {"nodetype": "formula", "parser": "TFormula", "expression": text, "variables": real}

    content: Any = formula("charge" if "charge" in real else "0.0")
    if ("charge", "int") in inputs:
        signs = [{"key": 1, "value": formula("1.0")}, {"key": -1, "value": formula("-1.0")}]
        content = {"nodetype": "category", "input": "charge", "content": signs}
    if words:
        keys = [{"key": word, "value": content if n == 0 else 1.0} for n, word in enumerate(words)]
        content = {"nodetype": "category", "input": inputs[-1][0], "content": keys}
    correction = {
        "name": "scale",
        "version": 1,
        "inputs": [{"name": name, "type": kind} for name, kind in inputs],
        "output": {"name": "factor", "type": "real"},
        "data": content,
    }
    other = correction | {"name": "efficiency", "inputs": [{"name": "pt", "type": "real"}], "data": 0.9}
    path = folder / "theirs.json"
    path.write_text(
        schemav2.CorrectionSet(schema_version=2, corrections=[other, correction]).model_dump_json()
    )
    return path


PT, ETA, PHI = ("pt", "real"), ("eta", "real"), ("phi", "real")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((PT, ETA, ("charge", "real")), ()),
        ((ETA, ("charge", "int"), PT), ()),
        ((PT, ETA, ("charge", "int"), ("syst", "string")), ("nominal", "up")),
        ((PT, ETA, ("charge", "real"), ("set", "string")), ("nom", "up")),
        ((ETA, ("charge", "real"), PHI, PT), ()),
    ],
)
def test_inputs_in_any_order_with_and_without_variations(
    tmp_path: Path, events: DimuonEvents, inputs: Any, words: tuple[str, ...]
) -> None:
    given = read_correction(foreign(tmp_path, *inputs, words=words))
    found = given.correction(events)
    np.testing.assert_allclose(
        found.plus.pt, events.plus.pt * (1.0 + 1e-3 * events.plus.eta + 2e-3), rtol=1e-12
    )
    np.testing.assert_allclose(
        found.minus.pt, events.minus.pt * (1.0 + 1e-3 * events.minus.eta - 2e-3), rtol=1e-12
    )
    assert given.scale is None


@pytest.mark.parametrize(
    ("inputs", "words", "message"),
    [
        ((PT, ETA), (), "no correction with the inputs pt, eta and charge"),
        ((PT, ETA, ("charge", "real"), ("nl", "real")), (), "scale needs the input 'nl'"),
        (
            (PT, ETA, ("charge", "real"), ("syst", "string")),
            ("central", "up"),
            "neither 'nom' nor 'nominal'",
        ),
    ],
)
def test_a_correction_with_other_inputs_is_refused(
    tmp_path: Path, inputs: Any, words: tuple[str, ...], message: str
) -> None:
    path = foreign(tmp_path, *inputs, words=words)
    with pytest.raises(InputError, match=message) as refused:
        read_correction(path)
    assert str(path) in str(refused.value)


def test_muons_that_the_correction_does_not_know_are_an_input_error(
    tmp_path: Path, events: DimuonEvents
) -> None:
    path = foreign(tmp_path, PT, ETA, ("charge", "real"))
    table = json.loads(path.read_text())
    table["corrections"][1]["data"] = {
        "nodetype": "binning",
        "input": "eta",
        "edges": [-1.0, 1.0],
        "content": [1.0],
        "flow": "error",
    }
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"theirs\.json: correction scale refuses some of the muons"):
        read_correction(path).correction(events)


# What cannot be read


def test_no_such_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file or folder"):
        read_correction(tmp_path / "nowhere")


def test_a_folder_must_leave_no_doubt(tmp_path: Path, calibration: ScaleCalibration) -> None:
    with pytest.raises(InputError, match="not an export folder"):
        read_correction(tmp_path)
    write_scale(tmp_path / "a.json", calibration)
    assert read_correction(tmp_path).files == (str(tmp_path / "a.json"),)
    write_scale(tmp_path / "b.json", calibration)
    with pytest.raises(InputError, match="give the correction file itself"):
        read_correction(tmp_path)


def _half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _spoiled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)


def _without_m(path: Path) -> None:
    path.write_text(json.dumps({"eta_edges": [0, 1], "A": [0], "e": [0]}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("calibration.npz", _half, "not a readable file"),
        ("calibration.json", _half, "not a readable file"),
        ("muon_scale.json.gz", _half, "not a correctionlib file"),
        ("muon_scale.json.gz", lambda p: p.write_bytes(b"no"), "not a correctionlib file"),
        ("muon_scale.json.gz", _spoiled, "not a correctionlib file"),
        ("muon_scale.json.gz", lambda p: p.write_bytes(gzip.compress(b"{}")), "not a correctionlib file"),
        ("calibration.json", lambda p: p.write_text(""), "not a JSON file"),
        ("calibration.json", _without_m, "key 'M' is missing"),
        ("calibration.json", lambda p: p.write_bytes(b"\xff\xfe\x00"), "not a JSON file"),
    ],
)
def test_a_damaged_file_is_named(
    exported: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    damage(exported / name)
    with pytest.raises(InputError, match=message) as refused:
        read_correction(exported / name)
    assert name in str(refused.value)
