"""The folder of an export: which formats there are, and how any of its files is read back."""

import os
from collections.abc import Callable
from pathlib import Path

from musclecal.errors import InputError
from musclecal.export.arrays import export_json, export_npz, load_arrays
from musclecal.export.correctionlib_json import export_correctionlib, load_correctionlib
from musclecal.records import CorrectionTables

__all__ = ["FORMATS", "READERS", "read_tables", "table_file"]

FORMATS: dict[str, tuple[str, Callable[[CorrectionTables, Path], None]]] = {
    "npz": ("calibration.npz", export_npz),
    "json": ("calibration.json", export_json),
    "correctionlib": ("muon_scale.json.gz", export_correctionlib),
}
"""By name: the file, and what writes it."""

READERS: dict[str, Callable[[Path], CorrectionTables]] = {
    ".npz": load_arrays,
    ".json": load_arrays,
    ".json.gz": load_correctionlib,
}
"""By end of the file name, in the order of preference in a folder."""


def table_file(path: Path) -> Path:
    """The file that holds the tables: ``path`` itself, or the best of an export folder.

    Raises
    ------
    InputError : no such file, or a folder without tables.
    """
    if path.is_dir():
        written = {name: file for name, (file, _) in FORMATS.items()}
        for file in written.values():
            if (path / file).is_file() and _reader(path / file):
                return path / file
        raise InputError(f"{path}: none of {', '.join(written.values())} in it: not an export folder")
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    return path


def read_tables(path: str | os.PathLike[str]) -> CorrectionTables:
    """The tables in an export folder or one of its files.

    Raises
    ------
    InputError : no such file, or not tables of this package; the message names the file.
    """
    file = table_file(Path(path))
    reader = _reader(file)
    if reader is None:
        raise InputError(f"{file}: tables are read from {', '.join(READERS)}")
    return reader(file)


def _reader(file: Path) -> Callable[[Path], CorrectionTables] | None:
    return next((read for end, read in READERS.items() if file.name.endswith(end)), None)
