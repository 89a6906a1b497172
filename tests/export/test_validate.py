"""An export folder passes as it was written; whatever is changed in it is refused, with the file named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import correctionlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from musclecal.errors import InputError
from musclecal.export import export_npz
from musclecal.export.arrays import npz_bytes
from musclecal.export.folder import DEFAULT_FORMATS, FORMATS, export_folder
from musclecal.export.manifest import MANIFEST, content_hash
from musclecal.export.reference_vectors import REFERENCE_FILE, load_reference, reference_of
from musclecal.export.validate import validate_folder
from musclecal.records import CorrectionTables
from musclecal.smear import normal_draws

Make = Callable[..., CorrectionTables]
FILES = (*(FORMATS[name][0] for name in FORMATS), REFERENCE_FILE)


@pytest.fixture
def folder(full_tables: Make, tmp_path: Path) -> Path:
    """All formats, with everything that tables may hold."""
    export_folder(full_tables(6), tmp_path / "export", tuple(FORMATS), "CC-BY-4.0")
    return tmp_path / "export"


def declare(folder: Path, *names: str) -> None:
    """Put the hashes of changed files in the manifest, as somebody does who edits a file and means it."""
    content = json.loads((folder / MANIFEST).read_text())
    content["files"] |= {name: content_hash(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(content))


def edit_json(folder: Path, edit: Callable[[Any], None]) -> None:
    path = folder / "calibration.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    declare(folder, path.name)


def edit_npz(folder: Path, edit: Callable[[Any], None]) -> None:
    path = folder / "calibration.npz"
    with np.load(path) as archive:
        content = {name: archive[name] for name in archive.files}
    edit(content)
    path.write_bytes(npz_bytes(content))
    declare(folder, path.name)


def edit_library(folder: Path, edit: Callable[[Any], None]) -> None:
    path = folder / "muon_scale.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    edit({each["name"]: each for each in content["corrections"]} | {"whole": content})
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    declare(folder, path.name)


def edit_reference(folder: Path, edit: Callable[[Any], None]) -> None:
    path = folder / REFERENCE_FILE
    columns = {name: np.array(column) for name, column in load_reference(path).items()}
    edit(columns)
    pq.write_table(pa.table(columns), path)
    declare(folder, path.name)


def assert_refused(folder: Path, name: str, words: str = "") -> None:
    with pytest.raises(InputError) as refused:
        validate_folder(folder)
    assert str(refused.value).startswith(f"{folder / name}: ")
    assert words in str(refused.value)


# What passes


@pytest.mark.parametrize(
    "options", [{}, {"smearing": None, "closures": (), "others": (), "s": 1.0}], ids=["full", "bare"]
)
@pytest.mark.parametrize("formats", [tuple(FORMATS), DEFAULT_FORMATS, ("npz",), ("root", "json")])
def test_an_export_is_valid(
    full_tables: Make, tmp_path: Path, options: dict[str, Any], formats: tuple[str, ...]
) -> None:
    export_folder(full_tables(6, **options), tmp_path, formats)
    lines = validate_folder(tmp_path)
    assert lines[0].startswith("manifest.json: ")
    text = "\n".join(lines)
    for name in formats:
        file = FORMATS[name][0]
        assert (f"\n{file}: " in text) == (name not in ("header", "rochester")), file
    assert "1000 muons, computed again" in text
    assert ("by correctionlib" in text) == ("correctionlib" in formats)


def test_what_the_manifest_says(folder: Path, full_tables: Make) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    assert sorted(content["files"]) == sorted(FILES)
    assert content["licence"] == "CC-BY-4.0"
    assert content["provenance"]["period"] == "2016H"
    assert content["s"] == 2.1
    assert content["variations"] == list(full_tables(6).variation_names)


def test_the_same_tables_are_the_same_folder(folder: Path, full_tables: Make, tmp_path: Path) -> None:
    export_folder(full_tables(6), tmp_path / "again", tuple(FORMATS), "CC-BY-4.0")
    for name in (*FILES, MANIFEST):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_an_unknown_format_writes_nothing(full_tables: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="formats: 'csv' is none of npz"):
        export_folder(full_tables(2), tmp_path / "export", ("npz", "csv"))
    assert not list(tmp_path.iterdir())


def test_reference_muons_sit_on_edges_and_outside(folder: Path, full_tables: Make) -> None:
    t, columns = full_tables(6), load_reference(folder / REFERENCE_FILE)
    names = {"stat0_up", "stat0_down", "closure_Z3_up", "closure_Z3_down", "scale", "smear"}
    assert set(columns) == {"pt", "eta", "phi", "charge", "run", "lumi", "event", "salt", "draw"} | names
    pt, eta, charge = (columns[name] for name in ("pt", "eta", "charge"))
    inside = (pt >= 2.0) & (pt < 200.0) & (eta < 2.4) & (eta >= -2.4)
    valid = inside & np.isin(charge, (-1.0, 1.0))
    assert 100 < (~inside).sum() < 160
    assert (inside & ~valid).sum() == 40
    assert np.isin(eta, t.eta_edges).sum() >= 50
    for name in names:
        np.testing.assert_array_equal(columns[name][~(inside if name == "smear" else valid)], 1.0)
        assert np.all(np.isfinite(columns[name]))
        assert np.mean(columns[name][valid] != 1.0) > 0.5
    i = np.searchsorted(t.eta_edges, eta[valid], side="right") - 1
    k, q = 1.0 / pt[valid], charge[valid]
    by_hand = k / ((1.0 + t.A[i] - t.e[i] * k) * k + q * t.M[i])
    np.testing.assert_allclose(columns["scale"][valid], by_hand, rtol=1e-14)


def test_reference_muons_with_values_that_are_none(folder: Path) -> None:
    columns = load_reference(folder / REFERENCE_FILE)
    for name in ("pt", "eta"):
        column = columns[name]
        assert min(np.isnan(column).sum(), np.isposinf(column).sum(), np.isneginf(column).sum()) >= 5, name
    assert min((columns["pt"] == 0.0).sum(), (columns["pt"] < 0.0).sum()) >= 5
    for charge in (0.0, 2.0, -2.0, 0.5):
        assert (columns["charge"] == charge).sum() >= 5
    assert np.isnan(columns["charge"]).sum() >= 5


def test_reference_draws_of_other_salts(folder: Path) -> None:
    """Each by the correctionlib file, and none is that of salt 0."""
    columns = load_reference(folder / REFERENCE_FILE)
    salts, counts = np.unique(columns["salt"], return_counts=True)
    assert salts.tolist() == [-1, 0, 1, 20_260]
    assert counts.min() == 50
    names = ("pt", "eta", "phi", "run", "lumi", "event")
    library = correctionlib.CorrectionSet.from_file(str(folder / "muon_scale.json.gz"))["muon_pt_smear"]
    for n in range(800, 1000):
        muon = [columns[name][n].item() for name in names]
        assert library.evaluate(*muon, int(columns["salt"][n])) == pytest.approx(
            columns["smear"][n], abs=1e-12
        )
    first = normal_draws(*(columns[name] for name in ("run", "lumi", "event", "phi")))
    assert np.array_equal(first == columns["draw"], columns["salt"] == 0)


def as_before_the_salt(folder: Path, tables: CorrectionTables) -> None:
    """The folder with the reference muons of an older version."""
    pq.write_table(pa.table(reference_of(tables, older=True)), folder / REFERENCE_FILE)
    declare(folder, REFERENCE_FILE)


def test_reference_muons_of_an_older_folder(folder: Path, full_tables: Make) -> None:
    as_before_the_salt(folder, full_tables(6))
    columns = load_reference(folder / REFERENCE_FILE)
    assert "salt" not in columns
    assert all(np.all(np.isfinite(column)) for column in columns.values())
    assert "reference.parquet: 1000 muons, computed again" in validate_folder(folder)
    edit_reference(folder, lambda c: c["draw"].__setitem__(900, 0.5))
    assert_refused(folder, REFERENCE_FILE, "draw of reference muon 900")


def test_the_salt_cannot_be_left_out(folder: Path) -> None:
    edit_reference(folder, lambda columns: columns.pop("salt"))
    assert_refused(folder, REFERENCE_FILE, "of reference muon 1")


@pytest.mark.parametrize(
    ("column", "row"), [("pt", 100), ("pt", 101), ("eta", 130), ("charge", 164), ("scale", 100)]
)
def test_what_is_none_in_the_reference_must_be_none(folder: Path, column: str, row: int) -> None:
    """nan, infinity, and the factor of nan."""
    edit_reference(folder, lambda columns: columns[column].__setitem__(row, 7.0))
    assert_refused(folder, REFERENCE_FILE, f"{column} of reference muon {row} is another number")
    edit_reference(folder, lambda columns: columns[column].__setitem__(row, np.nan))
    if column == "scale" or row == 101:
        assert_refused(folder, REFERENCE_FILE, f"{column} of reference muon {row} is another number")
    else:
        validate_folder(folder)


# What does not


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert_refused(folder, name, "was changed after the export")


@pytest.mark.parametrize("name", FILES)
def test_a_removed_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, name, "listed in the manifest, but not there")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_manifest_does_not_know(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["files"][name]
    (folder / MANIFEST).write_text(json.dumps(content))
    assert_refused(folder, name, "is not in the manifest")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": [1, 2]}', '{"files": {', "\xff"])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    assert_refused(folder, MANIFEST, "not a readable manifest")


@pytest.mark.parametrize(
    ("name", "value"), [("provenance", {"period": "2099"}), ("s", 9.0), ("variations", ["stat0"])]
)
def test_a_manifest_that_says_something_else_of_the_tables(folder: Path, name: str, value: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content[name] = value
    (folder / MANIFEST).write_text(json.dumps(content))
    assert_refused(folder, MANIFEST, f"another {name} than the tables")


def set_to(name: str, value: Any) -> Callable[[Any], None]:
    return lambda content: content.__setitem__(name, value)


def shift_first(name: str, by: float) -> Callable[[Any], None]:
    return lambda content: content[name].__setitem__(0, content[name][0] + by)


OTHER_ORDER = [f"{letter}{i}" for letter in "AeM" for i in range(6)]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (shift_first("A", 1e-5), "another A than the other files"),
        (shift_first("A", 1e-12), "another A than the other files"),
        (shift_first("eta_edges", 1e-6), "another eta_edges"),
        (set_to("pt_range", [2.0, 190.0]), "another pt_range"),
        (set_to("provenance", {}), "another provenance"),
        (
            set_to("units", {"A": "1", "e": "MeV", "M": "1/GeV", "eta_edges": "1", "pt_range": "GeV"}),
            "units {",
        ),
        (shift_first("smearing_c", 1e-12), "another smearing_c"),
        (shift_first("smearing_b", float("nan")), "smearing: b must be 4 finite numbers"),
        (set_to("residuals_Z", [[0.0] * 4] * 6), "another residuals_Z"),
        (set_to("residuals_Z", [[float("nan")] * 4] * 6), "residuals_Z: need four finite numbers"),
        (lambda c: c.pop("residuals_Z"), "other entries: residuals_Z"),
        (lambda c: c.pop("covariance"), "'covariance' is missing"),
        (set_to("parameter_order", OTHER_ORDER), "parameter order A0, A1"),
        (shift_first("e", float("nan")), "e: nan in eta bin 0"),
        (shift_first("M", float("inf")), "M: inf in eta bin 0"),
        (lambda c: c["variations"][2][1].__setitem__(3, float("nan")), "variations: some are not finite"),
        (lambda c: c["covariance"][2].__setitem__(2, -1e-12), "negative variance -1e-12 of M0"),
        (lambda c: c["covariance"][2].__setitem__(3, 9.0), "covariance"),
        (set_to("s", 2.2), "do not sum to s^2 times the covariance"),
        (set_to("M", [0.1] * 6), "pT would be negative"),
        (set_to("format", "musclecal tables 3"), "this version reads"),
    ],
)
def test_an_edited_json(folder: Path, edit: Callable[[Any], None], words: str) -> None:
    """With its hash in the manifest."""
    edit_json(folder, edit)
    assert_refused(folder, "calibration.json", words)


def with_negative_eigenvalue(content: Any) -> None:
    sigma = np.sqrt(np.diagonal(content["covariance"]))
    content["covariance"][0, 3] = content["covariance"][3, 0] = 1.5 * sigma[0] * sigma[3]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (with_negative_eigenvalue, "not positive semi-definite"),
        (lambda c: c["A"].__setitem__(1, np.nan), "A: nan in eta bin 1"),
        (set_to("parameter_order", np.array(OTHER_ORDER)), "parameter order A0, A1"),
        (set_to("variation_names", np.array([f"stat{i}" for i in range(21)])), "21 different names"),
    ],
)
def test_an_edited_archive(folder: Path, edit: Callable[[Any], None], words: str) -> None:
    edit_npz(folder, edit)
    assert_refused(folder, "calibration.npz", words)


def _first_row(correction: Any, key: Any) -> Any:
    """The first eta bin of a variation of muon_pt_scale."""
    (item,) = [x for x in correction["data"]["content"]["content"] if x["key"] == key]
    return item["value"]["content"][0]["content"][0]["parameters"]


def _negated(row: Any, i: int) -> None:
    row[i] = -row[i]


LIBRARY_EDITS: dict[str, tuple[Callable[[Any], None], str]] = {
    "sign of e in the formula": (
        lambda c: c["muon_pt_scale"]["generic_formulas"][0].__setitem__(
            "expression", "1.0/(1.0 + [0] + [1]/x + y*[2]*x)"
        ),
        "scale of reference muon",
    ),
    "a nominal number": (lambda c: _negated(_first_row(c["muon_pt_scale"], "nom"), 2), "another M"),
    "a variation": (lambda c: _negated(_first_row(c["muon_pt_scale"], "closure_Z3_up"), 3), "another variations"),
    "down only": (
        lambda c: _negated(_first_row(c["muon_pt_scale"], "closure_Z3_down"), 3), "closure_Z3_down of reference muon",
    ),
    "by number": (
        lambda c: _negated(_first_row(c["muon_pt_scale_var"], 21), 3), "closure_Z3_down of reference muon"
    ),
    "smearing": (
        lambda c: c["muon_pt_smear"]["data"]["content"][0]["content"][0]["content"]["content"]["content"][0][
            "parameters"
        ].__setitem__(0, 3e-5),
        "smear of reference muon",
    ),
    "no smearing": (lambda c: c["whole"]["corrections"].pop(), "correctionlib refuses it"),
    "no formula": (
        lambda c: c["muon_pt_scale"].pop("generic_formulas"), "correctionlib refuses it"
    ),
    "no tables": (lambda c: c["whole"].__setitem__("description", "mine"), "no musclecal tables 2"),
    "no scale": (lambda c: c["whole"]["corrections"].pop(0), "not a correctionlib file of this package"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIBRARY_EDITS)
def test_an_edited_correctionlib_file(folder: Path, case: str) -> None:
    edit, words = LIBRARY_EDITS[case]
    edit_library(folder, edit)
    assert_refused(folder, "muon_scale.json.gz", words)


def test_a_root_file_of_other_tables(folder: Path, full_tables: Make) -> None:
    FORMATS["root"][1](full_tables(6, s=2.2), folder / "muon_scale.root")
    declare(folder, "muon_scale.root")
    assert_refused(folder, "muon_scale.root", "another ")


@pytest.mark.parametrize("column", ["scale", "stat0_up", "closure_Z3_down", "smear", "pt", "eta", "event"])
@pytest.mark.parametrize("row", [10, 999])
def test_a_wrong_reference_value(folder: Path, column: str, row: int) -> None:
    edit_reference(folder, lambda columns: columns[column].__setitem__(row, columns[column][row] * 1.25 + 1))
    assert_refused(folder, REFERENCE_FILE, f"{column} of reference muon {row} is another number")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.pop("smear"), "no column smear"),
        (lambda c: c["scale"].__setitem__(3, np.nan), "scale of reference muon 3"),
        (lambda c: c["scale"].__setitem__(3, c["scale"][3] * (1.0 + 1e-10)), "scale of reference muon 3"),
        (lambda c: [c.__setitem__(name, column[:-1]) for name, column in list(c.items())], "of 1000 numbers"),
        (set_to("scale", np.full(1000, "x")), "scale is no column of 1000 numbers"),
    ],
)
def test_a_wrong_reference_table(folder: Path, edit: Callable[[Any], None], words: str) -> None:
    edit_reference(folder, edit)
    assert_refused(folder, REFERENCE_FILE, words)


def test_a_reference_table_that_is_none(folder: Path) -> None:
    (folder / REFERENCE_FILE).write_bytes(b"PAR1 no")
    declare(folder, REFERENCE_FILE)
    assert_refused(folder, REFERENCE_FILE, "not a readable table of reference muons")
    (folder / REFERENCE_FILE).unlink()
    content = json.loads((folder / MANIFEST).read_text())
    del content["files"][REFERENCE_FILE]
    (folder / MANIFEST).write_text(json.dumps(content))
    assert_refused(folder, REFERENCE_FILE)


def test_folders_that_are_none(tmp_path: Path, full_tables: Make) -> None:
    with pytest.raises(InputError, match="no such folder"):
        validate_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a readable manifest"):
        validate_folder(tmp_path)
    (tmp_path / MANIFEST).write_text('{"files": {}}')
    with pytest.raises(InputError, match="holds no tables"):
        validate_folder(tmp_path)
    export_npz(full_tables(2), tmp_path / "calibration.npz")
    assert_refused(tmp_path, "calibration.npz", "is not in the manifest")


# The command


def test_the_command(folder: Path, command: Callable[..., Result]) -> None:
    lines = command("validate", folder).stdout.splitlines()
    assert tuple(lines) == validate_folder(folder)
    assert json.loads(command("validate", folder, "--json").stdout) == {"checks": lines}
    edit_json(folder, shift_first("A", 1e-5))
    for options in ((), ("--json",)):
        refused = command("validate", folder, *options, code=2)
        assert "calibration.json: another A than the other files" in refused.stderr
    assert "nowhere" in command("validate", folder / "nowhere", code=2).stderr
