"""Which tables `musclecal.load` takes: the period that is asked for, and no file that was edited after its export."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import musclecal
from musclecal.errors import InputError
from musclecal.export.arrays import export_json, export_npz
from musclecal.export.folder import FORMATS, READERS, export_folder
from musclecal.export.manifest import MANIFEST
from musclecal.export.merge import merge_folders
from musclecal.given_correction import read_correction
from musclecal.records import CorrectionTables

Make = Callable[..., CorrectionTables]
PERIODS = ("2016H", "2017")
READABLE = tuple(file for file, _ in FORMATS.values() if any(file.endswith(end) for end in READERS))


def of_period(full_tables: Make, period: str | None) -> CorrectionTables:
    """Another A in each period; None: tables that do not say theirs."""
    tables = full_tables(4)
    provenance = {key: value for key, value in tables.provenance.items() if key != "period"}
    provenance |= {} if period is None else {"period": period}
    return replace(tables, A=tables.A + 1e-4 * len(period or ""), provenance=provenance)


@pytest.fixture
def plain(full_tables: Make, tmp_path: Path) -> Path:
    export_folder(of_period(full_tables, "2017"), tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def merged(full_tables: Make, tmp_path: Path) -> Path:
    for period in PERIODS:
        export_folder(of_period(full_tables, period), tmp_path / period, ("npz",))
    merge_folders([tmp_path / period for period in PERIODS], tmp_path / "all")
    return tmp_path / "all"


# Periods


@pytest.mark.parametrize("name", ["", "muon_scale.json.gz"])
@pytest.mark.parametrize("without", ["", "calibration_2017.npz"])
def test_a_period_of_a_merged_folder(full_tables: Make, merged: Path, name: str, without: str) -> None:
    """The arrays of the period, with the names that its variations have in the merged file."""
    if without:
        (merged / without).unlink()
    for period in PERIODS:
        found = musclecal.load(merged / name, period=period)
        np.testing.assert_array_equal(found.tables.A, of_period(full_tables, period).A)
        assert f"stat0_{period}" in found.variation_names
        assert found.provenance["period"] == period
        np.testing.assert_array_equal(musclecal.load(str(merged), period).tables.e, found.tables.e)


@pytest.mark.parametrize("name", ["", "muon_scale.json.gz"])
def test_one_of_several_periods_must_be_chosen(merged: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"holds several periods \(2016H, 2017\): choose one") as refused:
        musclecal.load(merged / name)
    assert str(refused.value).startswith(f"{merged / name}: ")
    with pytest.raises(InputError, match=r"no period '2018': there are 2016H, 2017$"):
        musclecal.load(merged / name, period="2018")
    with pytest.raises(InputError, match="no period ''"):
        musclecal.load(merged / name, period="")


def test_a_merged_folder_without_the_files_of_a_period(merged: Path) -> None:
    for end in ("npz", "json"):
        (merged / f"calibration_2017.{end}").unlink()
    with pytest.raises(InputError, match=r"neither calibration_2017\.npz nor calibration_2017\.json"):
        musclecal.load(merged, "2017")


def test_tables_of_one_period_must_be_of_it(
    full_tables: Make, plain: Path, merged: Path, tmp_path: Path
) -> None:
    for path in (plain, *(plain / name for name in READABLE), merged / "calibration_2017.json"):
        assert musclecal.load(path, "2017").provenance == musclecal.load(path).provenance
        with pytest.raises(InputError, match=r"is of period '2017', not of '2016H'"):
            musclecal.load(path, period="2016H")
    export_folder(of_period(full_tables, None), tmp_path / "unnamed")
    assert musclecal.load(tmp_path / "unnamed", "2016H").tables.n_eta == 4


# Edited files


def shift_a(file: Path) -> None:
    """As somebody does who knows better: still a file that can be read."""
    content = json.loads(file.read_text())
    content["A"][0] += 1e-5
    file.write_text(json.dumps(content))


def of_others(file: Path, full_tables: Make) -> None:
    export_npz(full_tables(5), file)


def test_an_edited_file_is_refused(plain: Path) -> None:
    file = plain / "calibration.json"
    before = musclecal.load(file).tables.A
    shift_a(file)
    message = r"calibration\.json: does not match manifest\.json: it was changed.*check=False"
    for read in (musclecal.load, read_correction):
        with pytest.raises(InputError, match=message):
            read(file)
    found = musclecal.load(file, check=False).tables.A
    np.testing.assert_allclose(found - before, [1e-5, 0, 0, 0], atol=1e-15)
    musclecal.load(plain)


@pytest.mark.parametrize("name", READABLE)
def test_any_other_byte_is_refused(plain: Path, name: str) -> None:
    """Before the file is read: a reader that fails would say less."""
    content = bytearray((plain / name).read_bytes())
    content[len(content) // 2] ^= 1
    (plain / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: does not match manifest"):
        musclecal.load(plain / name)


def test_the_file_that_a_folder_is_read_from_is_checked(full_tables: Make, plain: Path, merged: Path) -> None:
    of_others(plain / "calibration.npz", full_tables)
    of_others(merged / "calibration_2017.npz", full_tables)
    for path, period in ((plain, None), (merged, "2017")):
        with pytest.raises(InputError, match="does not match manifest"):
            musclecal.load(path, period)
        with pytest.raises(InputError, match="does not match manifest"):
            read_correction(path if period is None else path / "calibration_2017.npz")
    assert musclecal.load(plain, check=False).tables.n_eta == 5
    assert musclecal.load(merged, "2016H").tables.n_eta == 4


def test_a_file_of_an_export_that_the_manifest_does_not_list(full_tables: Make, tmp_path: Path) -> None:
    """It would be read before those that are listed. A file of another name is no part of the export."""
    export_folder(full_tables(4), tmp_path, ("json",))
    export_json(full_tables(5), tmp_path / "mine.json")
    of_others(tmp_path / "calibration.npz", full_tables)
    with pytest.raises(
        InputError, match=r"calibration\.npz: does not match manifest\.json: it is not listed"
    ):
        musclecal.load(tmp_path)
    assert musclecal.load(tmp_path, check=False).tables.n_eta == 5
    assert musclecal.load(tmp_path / "mine.json").tables.n_eta == 5


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": "musclecal tables 2"}', '{"format": "musclecal tables 2", "files": 3}']
)
def test_a_damaged_manifest_is_no_way_around(plain: Path, text: str) -> None:
    (plain / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json: not a readable manifest.*check=False"):
        musclecal.load(plain)
    musclecal.load(plain, check=False)


@pytest.mark.parametrize("content", [None, {"name": "a web page"}, {"files": {"calibration.npz": "x"}}])
def test_without_a_manifest_of_ours_nothing_is_checked(plain: Path, content: Any) -> None:
    (plain / MANIFEST).unlink()
    if content is not None:
        (plain / MANIFEST).write_text(json.dumps(content))
    shift_a(plain / "calibration.json")
    musclecal.load(plain / "calibration.json")


# Commands


def test_commands_refuse_what_load_refuses(
    plain: Path, merged: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    shift_a(plain / "calibration.json")
    edited, fine = plain / "calibration.json", plain / "calibration.npz"
    for arguments in (
        ("apply", tmp_path / "none.root", "--correction", edited, "--out", tmp_path / "friend.root"),
        ("diff", fine, edited),
        ("diff", edited, fine),
        ("merge", edited, tmp_path / "2016H", "--out", tmp_path / "other"),
    ):
        (line,) = command(*arguments, code=2).stderr.splitlines()
        assert f"{edited}: does not match manifest.json" in line
    for periods in (
        ("diff", merged, fine),
        ("apply", "none.root", "--correction", merged, "--out", "f.root"),
    ):
        (line,) = command(*periods, code=2).stderr.splitlines()
        assert "several periods (2016H, 2017)" in line
