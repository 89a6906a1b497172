"""What is left in an export folder that is written again, and what may be merged."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.export import read_tables
from musclecal.export.folder import DEFAULT_FORMATS, FORMATS, export_folder
from musclecal.export.manifest import MANIFEST
from musclecal.export.merge import merge_folders
from musclecal.export.validate import validate_folder
from musclecal.records import CorrectionTables

Make = Callable[..., CorrectionTables]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_other_formats_replace_those_before(full_tables: Make, tmp_path: Path) -> None:
    """A file that was not written again would hold other numbers, and be read first."""
    tables = full_tables()
    export_folder(tables, tmp_path)
    moved = replace(tables, A=tables.A + 1e-3)
    export_folder(moved, tmp_path, ("correctionlib", "rochester"))
    assert names(tmp_path) == {"muon_scale.json.gz", "muon_scale.txt", "reference.parquet", MANIFEST}
    validate_folder(tmp_path)
    np.testing.assert_allclose(read_tables(tmp_path).A, moved.A, rtol=1e-11)
    export_folder(tables, tmp_path)
    assert {FORMATS[name][0] for name in DEFAULT_FORMATS} <= names(tmp_path)
    validate_folder(tmp_path)


def test_a_file_of_somebody_else_stays(full_tables: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    export_folder(full_tables(), tmp_path, ("npz",))
    export_folder(full_tables(), tmp_path, ("json",))
    assert {"notes.txt", "calibration.json"} <= names(tmp_path)


def periods(tables: CorrectionTables, folder: Path, *corrects: str) -> list[Path]:
    folders = []
    for n, what in enumerate(corrects):
        provenance = {**tables.provenance, "period": f"P{n}", "corrects": what}
        export_folder(replace(tables, provenance=provenance), folder / f"{n}", ("npz",))
        folders.append(folder / f"{n}")
    return folders


def test_periods_of_an_earlier_merge_go(full_tables: Make, tmp_path: Path) -> None:
    one, two, three = periods(full_tables(), tmp_path, "data", "data", "data")
    merge_folders([one, two], tmp_path / "merged")
    merge_folders([one, three], tmp_path / "merged")
    assert not [name for name in names(tmp_path / "merged") if "P1" in name]
    validate_folder(tmp_path / "merged")
    manifest = json.loads((tmp_path / "merged" / MANIFEST).read_text())
    assert len(manifest["ivar"]) == len(set(manifest["ivar"])) > full_tables().n_variations


def test_data_and_simulation_are_not_merged(full_tables: Make, tmp_path: Path) -> None:
    folders = periods(full_tables(), tmp_path, "data", "simulation, to its own truth")
    with pytest.raises(InputError, match="merge them apart"):
        merge_folders(folders, tmp_path / "merged")
