"""The folder of an export: which formats there are, how they are written together, and how any file is read back."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from musclecal.errors import InputError
from musclecal.export.arrays import export_json, export_npz, load_arrays
from musclecal.export.correctionlib_json import export_correctionlib, load_correctionlib
from musclecal.export.cpp_header import export_header
from musclecal.export.manifest import (
    listed_files,
    merged_periods,
    period_file,
    refuse_edited,
    write_manifest,
)
from musclecal.export.reference_vectors import REFERENCE_FILE, export_reference
from musclecal.export.response_file import RESPONSE_FILE, export_response
from musclecal.export.rochester import export_rochester
from musclecal.export.root_file import export_root, load_root
from musclecal.export.tables import FORMAT, OLDER
from musclecal.records import CorrectionTables, Response

__all__ = [
    "DEFAULT_FORMATS", "FORMATS", "READERS", "earlier_files", "export_folder", "holds_tables",
    "known_formats", "read_tables", "remove_stale", "table_file",
]  # fmt: skip

FORMATS: dict[str, tuple[str, Callable[[CorrectionTables, Path], None]]] = {
    "npz": ("calibration.npz", export_npz),
    "json": ("calibration.json", export_json),
    "correctionlib": ("muon_scale.json.gz", export_correctionlib),
    "root": ("muon_scale.root", export_root),
    "header": ("muon_scale.h", export_header),
    "rochester": ("muon_scale.txt", export_rochester),
}
"""By name: the file, and what writes it."""

DEFAULT_FORMATS = tuple(name for name in FORMATS if name != "rochester")

READERS: dict[str, Callable[[Path], CorrectionTables]] = {
    ".npz": load_arrays,
    ".root": load_root,
    ".json.gz": load_correctionlib,
    ".json": load_arrays,
}
"""By end of the file name, best first."""

_OURS = tuple(name.rpartition(" ")[0] for name in (FORMAT, OLDER))


def export_folder(
    tables: CorrectionTables,
    folder: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    licence: str = "",
    response: Response | None = None,
) -> tuple[Path, ...]:
    """Write the tables in all ``formats`` into ``folder``, with reference vectors and a manifest of all files.

    Files of an earlier export in formats that are not asked for any more are removed.

    Parameters
    ----------
    licence : under which the numbers may be used, for the manifest.
    response : of simulated muons, for weights.

    Raises
    ------
    InputError : an unknown format, a response that is none.
    """
    known_formats(formats)
    folder.mkdir(parents=True, exist_ok=True)
    before = earlier_files(folder)
    written = []
    for name in formats:
        file, write = FORMATS[name]
        write(tables, folder / file)
        written.append(folder / file)
    export_reference(tables, folder / REFERENCE_FILE)
    written.append(folder / REFERENCE_FILE)
    if response is not None:
        export_response(response, folder / RESPONSE_FILE, tables.provenance)
        written.append(folder / RESPONSE_FILE)
    content = {
        "format": FORMAT,
        "provenance": dict(tables.provenance),
        "licence": licence or "not stated",
        "s": tables.s,
        "variations": list(tables.variation_names),
    }
    manifest = write_manifest(folder, content, written)
    known = {file for file, _ in FORMATS.values()}
    remove_stale(folder, before | known | {RESPONSE_FILE}, written)
    return (*written, manifest)


def known_formats(names: Iterable[str]) -> tuple[str, ...]:
    """The names themselves. Raises `InputError` for one that is no format."""
    wanted = tuple(names)
    for name in wanted:
        if name not in FORMATS:
            raise InputError(f"formats: {name!r} is none of {', '.join(FORMATS)}")
    return wanted


def earlier_files(folder: Path) -> set[str]:
    """Names of the files of an export that was written here before; none without a manifest."""
    try:
        return set(listed_files(folder))
    except InputError:
        return set()


def remove_stale(folder: Path, candidates: Iterable[str], written: Iterable[Path]) -> None:
    """Remove files of an earlier export that the present one did not write: they would hold other numbers."""
    kept = {file.name for file in written}
    for name in candidates:
        if name not in kept and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)


def table_file(path: Path, period: str | None = None, *, check: bool = True) -> Path:
    """The file that holds the tables: ``path`` itself, the best of a folder, or that of a period in a merged one.

    Parameters
    ----------
    period : in a merged folder, which one; of tables of one period it is for `read_tables` to say.
    check : refuse a file that is not as the manifest beside it says.

    Raises
    ------
    InputError : no such file, a folder without tables, no or an unknown period of several, an edited file.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    file = _file_of_period(path, period) or (_best_file(path) if path.is_dir() else path)
    if check:
        refuse_edited(file, must_be_listed=file.name in {name for name, _ in FORMATS.values()})
    return file


def _best_file(folder: Path) -> Path:
    readable = [file for file, _ in FORMATS.values() if _reader(folder / file)]
    for file in readable:
        if (folder / file).is_file():
            return folder / file
    raise InputError(f"{folder}: none of {', '.join(readable)} in it: not an export folder")


def _file_of_period(path: Path, period: str | None) -> Path | None:
    """None unless ``path`` is a merged folder or its file of all periods."""
    folder = path if path.is_dir() else path.parent
    periods = merged_periods(folder)
    if not periods or not (path.is_dir() or path.name == FORMATS["correctionlib"][0]):
        return None
    known = ", ".join(periods)
    if period is None:
        raise InputError(
            f"{path}: holds several periods ({known}): choose one with period, or give its calibration_<period>.npz"
        )
    if period not in periods:
        raise InputError(f"{path}: no period {period!r}: there are {known}")
    files = [period_file(folder, kind, period) for kind in ("npz", "json")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise InputError(
            f"{path}: neither {files[0].name} nor {files[1].name} in it: not a complete merged folder"
        )
    return found


def holds_tables(path: Path) -> bool:
    """Whether a folder or file looks like an export of this package, whatever its state."""
    if path.is_dir():
        return any((path / file).is_file() for file, _ in FORMATS.values() if _reader(path / file))
    if path.suffix in (".npz", ".root"):
        return True
    unpack = gzip.open if path.suffix == ".gz" else open
    try:
        with unpack(path, "rt", encoding="utf-8", errors="replace") as file:
            beginning = file.read(4000)
    except (OSError, EOFError, zlib.error):
        return False
    return any(name in beginning for name in _OURS)


def read_tables(
    path: str | os.PathLike[str], period: str | None = None, *, check: bool = True
) -> CorrectionTables:
    """The tables in an export folder or one of its files.

    Parameters
    ----------
    period : which one of a folder of `musclecal.export.merge`. Tables of one period must be of this one, if they say.
    check : refuse a file that is not as the manifest beside it says.

    Raises
    ------
    InputError : no such file, or not tables of this package; no, an unknown or another period; a file that does not
        match its manifest. The message names the file.
    """
    file = table_file(Path(path), period, check=check)
    reader = _reader(file)
    if reader is None:
        raise InputError(f"{file}: tables are read from {', '.join(READERS)}")
    tables = reader(file)
    own = tables.provenance.get("period", "")
    if period is not None and own and own != period:
        raise InputError(f"{file}: is of period {own!r}, not of {period!r}")
    return tables


def _reader(file: Path) -> Callable[[Path], CorrectionTables] | None:
    return next((read for end, read in READERS.items() if file.name.endswith(end)), None)
