"""response.npz: what is written is read back, an edited one is refused, and a folder has the one that belongs to it."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musclecal
from musclecal.errors import InputError
from musclecal.export import load_response
from musclecal.export.arrays import npz_bytes
from musclecal.export.folder import export_folder
from musclecal.export.manifest import MANIFEST, content_hash
from musclecal.export.response_file import RESPONSE_FILE, checked_response
from musclecal.export.validate import validate_folder
from musclecal.records import CorrectionTables, Response

Make = Callable[..., CorrectionTables]

NODES = np.linspace(-8.0, 8.0, 321)


def gaussian() -> Response:
    """Two eta bins, three pT bins; wider in the second and at high pT."""
    pt_edges = np.array([10.0, 20.0, 40.0, 80.0])
    log_density = np.tile(-0.5 * NODES**2 - 0.5 * np.log(2.0 * np.pi), (2, 1))
    width = np.array([[0.01], [0.02]]) + 1e-4 * pt_edges
    return Response(
        np.array([-2.4, 0.0, 2.4]), pt_edges, np.full((2, 2, 4), 1e-4), width, NODES, log_density,
        np.tile(-NODES, (2, 1)), np.full((2, 2, 3), 1000), 7,
    )  # fmt: skip


@pytest.fixture
def folder(full_tables: Make, tmp_path: Path) -> Path:
    export_folder(full_tables(6), tmp_path / "export", ("npz", "json"), response=gaussian())
    return tmp_path / "export"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """And declare it, as somebody does who means it."""
    path = folder / RESPONSE_FILE
    with np.load(path) as archive:
        content = {name: archive[name] for name in archive.files}
    change(content)
    path.write_bytes(npz_bytes(content))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][RESPONSE_FILE] = content_hash(path)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_what_is_written_is_read_back(folder: Path) -> None:
    found = load_response(folder / RESPONSE_FILE)
    for field in fields(Response):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(gaussian(), field.name))
    assert found.n_beyond == 7
    assert isinstance(found.n_beyond, int)


def test_numpy_alone_reads_what_it_means(folder: Path, full_tables: Make) -> None:
    with np.load(folder / RESPONSE_FILE, allow_pickle=False) as archive:
        assert set(archive.files) == {"format", "about", "units", "provenance"} | {
            f.name for f in fields(Response)
        }
        assert str(archive["format"]) == "musclecal response 1"
        units = json.loads(str(archive["units"]))
        assert set(units) == {f.name for f in fields(Response)}
        assert units["pt_edges"] == "GeV"
        assert json.loads(str(archive["provenance"])) == dict(full_tables(6).provenance)
        for name in ("location", "log_density", "n_muons"):
            assert name in str(archive["about"])


def test_a_folder_with_a_response_is_valid(folder: Path) -> None:
    assert validate_folder(folder)[-1].startswith("response.npz: 2 eta x 3 pT bins")
    assert RESPONSE_FILE in json.loads((folder / MANIFEST).read_text())["files"]


def test_any_file_of_the_folder_brings_the_response(folder: Path) -> None:
    for path in (folder, folder / "calibration.npz", str(folder / "calibration.json")):
        response = musclecal.load(path).response
        assert response is not None
        np.testing.assert_array_equal(response.width, gaussian().width)


def test_an_export_without_response_removes_that_of_an_earlier_one(folder: Path, full_tables: Make) -> None:
    export_folder(full_tables(6), folder, ("npz",))
    assert not (folder / RESPONSE_FILE).exists()
    assert musclecal.load(folder).response is None
    validate_folder(folder)


def test_also_where_the_earlier_one_lost_its_manifest(folder: Path, full_tables: Make) -> None:
    (folder / MANIFEST).unlink()
    export_folder(full_tables(6), folder, ("npz",))
    assert not (folder / RESPONSE_FILE).exists()
    validate_folder(folder)


def test_the_same_response_is_the_same_file(folder: Path, full_tables: Make, tmp_path: Path) -> None:
    export_folder(full_tables(6), tmp_path / "again", ("npz", "json"), response=gaussian())
    for name in (RESPONSE_FILE, MANIFEST):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_response_that_is_none_leaves_nothing_of_it(full_tables: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="width must be positive"):
        export_folder(
            full_tables(6), tmp_path, ("npz",), response=replace(gaussian(), width=-gaussian().width)
        )
    assert not (tmp_path / RESPONSE_FILE).exists()
    assert not (tmp_path / MANIFEST).exists()


def at(name: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[name].__setitem__(index, value)


def times(name: str, factor: float) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, content[name] * factor)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "nan": (at("location", (1, 0, 2), np.nan), "location: some are not finite"),
    "infinite": (at("slope", (1, 300), np.inf), "slope: some are not finite"),
    "density": (lambda c: c["log_density"].__iadd__(1e-4), "integral of the density in eta bin"),
    "sign of the slope": (times("slope", -1.0), "slope: is not that of log_density in eta bin 0"),
    "slope by rho": (times("slope", 100.0), "slope: is not that of log_density"),
    "width": (at("width", (0, 0), 0.0), "width must be positive"),
    "pt_edges": (at("pt_edges", 0, 25.0), "pt_edges: must increase"),
    "pt_edges of 0": (at("pt_edges", 0, 0.0), "pt_edges and width must be positive"),
    "nodes": (at("nodes", 3, -7.86), "nodes: must be equally spaced"),
    "charges": (lambda c: c.__setitem__("location", c["location"][:1]), "location: shape (2, 2, 4) wanted"),
    "transposed": (lambda c: c.__setitem__("width", c["width"].T.copy()), "width: shape (2, 4) wanted"),
    "counts": (times("n_muons", 1.0), "n_muons: shape (2, 2, 3) wanted, got float64"),
    "missing": (lambda c: c.pop("slope"), "not a response of musclecal, 'slope' is missing"),
    "format": (
        lambda c: c.__setitem__("format", "musclecal response 2"),
        "this version reads 'musclecal response 1'",
    ),
    "units": (lambda c: c.__setitem__("units", '{"pt_edges": "MeV"}'), "units {'pt_edges': 'MeV'}"),
    "provenance": (
        lambda c: c.__setitem__("provenance", '{"period": "2017"}'),
        "another provenance than the tables",
    ),
    "words": (lambda c: c.__setitem__("about", "mine"), "is another file when it is written again"),
    "more": (lambda c: c.__setitem__("mine", np.zeros(3)), "is another file when it is written again"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_response(folder: Path, name: str) -> None:
    change, words = EDITS[name]
    edit(folder, change)
    with pytest.raises(InputError) as refused:
        validate_folder(folder)
    assert str(refused.value).startswith(f"{folder / RESPONSE_FILE}: ")
    assert words in str(refused.value)


def test_a_changed_byte_and_an_undeclared_file(folder: Path) -> None:
    path = folder / RESPONSE_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"response\.npz: does not match manifest.json"):
        validate_folder(folder)
    path.write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"][RESPONSE_FILE]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"response\.npz: is not in the manifest"):
        validate_folder(folder)


@pytest.mark.parametrize("content", [b"", b"no", b"PK\x03\x04"])
def test_a_file_that_is_none_has_its_name_in_the_error(folder: Path, content: bytes) -> None:
    (folder / RESPONSE_FILE).write_bytes(content)
    for read in (load_response, lambda path: musclecal.load(path.parent, check=False)):
        with pytest.raises(InputError, match=r"response\.npz: not a readable response"):
            read(folder / RESPONSE_FILE)
    with pytest.raises(InputError, match=r"response\.npz: does not match manifest.json"):
        musclecal.load(folder)


def test_what_is_checked_is_given_back() -> None:
    response = gaussian()
    assert checked_response(response) is response
