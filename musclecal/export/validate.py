"""Whether an export folder may be given to others: every file can be read, says the same, and does the same."""

import gzip
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musclecal.errors import InputError
from musclecal.export.correctionlib_json import CORRECTION_NAME, SMEAR_NAME, VAR_NAME
from musclecal.export.folder import FORMATS, READERS
from musclecal.export.manifest import (
    MANIFEST,
    check_hash,
    listed_files,
    manifest_content,
    merged_periods,
    period_file,
)
from musclecal.export.reference_vectors import REFERENCE_FILE, load_reference, reference_of
from musclecal.export.response_file import RESPONSE_FILE, check_response_file
from musclecal.export.tables import content_of
from musclecal.records import CorrectionTables

__all__ = ["validate_folder"]

_AGREEMENT = 1e-9
"""Of numbers in different files, relative to the largest of their kind: correctionlib has 12 digits."""
_FACTORS = 1e-12


def validate_folder(folder: Path) -> tuple[str, ...]:
    """Check all that is in an export folder; a line for each check that was made.

    Schema and completeness, finite numbers, covariance without negative eigenvalues, order of the parameters, and
    variations that sum to it (these when a file is read, see `musclecal.export.tables.checked_tables`); the same tables
    in all files; hashes of the manifest; the reference muons, with numpy and with correctionlib; the response, if there
    is one. In a folder of `musclecal.export.merge` the same for every period.

    Raises
    ------
    InputError : the first thing that is wrong, with the file.
    """
    return tuple(_checks(folder))


def _checks(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}")
    yield _check_manifest(folder)
    periods = merged_periods(folder)
    if periods:
        yield from _checks_of_periods(folder, periods)
        return
    read: dict[str, CorrectionTables] = {}
    for file, _ in FORMATS.values():
        reader = next((r for end, r in READERS.items() if file.endswith(end)), None)
        if reader is not None and (folder / file).is_file():
            read[file] = reader(folder / file)
    if not read:
        raise InputError(f"{folder}: holds no tables")
    first, *others = read
    yield f"{first}: schema, finite numbers, parameter order, positive covariance, variations that sum to it"
    for file in others:
        _same(folder / file, read[first], read[file])
        yield f"{file}: the same tables"
    tables = read[first]
    _check_said(folder / MANIFEST, manifest_content(folder), tables)
    yield _check_reference(folder / REFERENCE_FILE, tables)
    library = FORMATS["correctionlib"][0]
    if library in read:
        yield _check_correctionlib(folder / library, tables)
    if (folder / RESPONSE_FILE).is_file():
        yield check_response_file(folder / RESPONSE_FILE, tables.provenance)


def _checks_of_periods(folder: Path, periods: tuple[str, ...]) -> Iterator[str]:
    for period in periods:
        first, second = (period_file(folder, kind, period) for kind in ("npz", "json"))
        tables = READERS[".npz"](first)
        yield f"{first.name}: schema, finite numbers, parameter order, positive covariance, variations that sum to it"
        _same(second, tables, READERS[".json"](second))
        yield f"{second.name}: the same tables"
        _check_said(folder / MANIFEST, manifest_content(folder)["periods"][period], tables)
        yield _check_reference(period_file(folder, "reference", period), tables)
        yield f"{period}: {_check_correctionlib(folder / FORMATS['correctionlib'][0], tables, period)}"


def _check_manifest(folder: Path) -> str:
    files = listed_files(folder)
    for name in (*(file for file, _ in FORMATS.values()), REFERENCE_FILE, RESPONSE_FILE):
        if (folder / name).is_file() and name not in files:
            raise InputError(f"{folder / name}: is not in the manifest")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: listed in the manifest, but not there")
        check_hash(folder / name, expected)
    return f"{MANIFEST}: {len(files)} files, all as they were written"


def _check_said(path: Path, said: Mapping[str, Any], tables: CorrectionTables) -> None:
    """What a manifest repeats of the tables: no hash protects it."""
    meant = {"provenance": dict(tables.provenance), "s": tables.s, "variations": list(tables.variation_names)}
    for name, value in meant.items():
        if name in said and said[name] != value:
            raise InputError(f"{path}: another {name} than the tables")


def _same(path: Path, one: CorrectionTables, other: CorrectionTables) -> None:
    first, second = content_of(one), content_of(other)
    if first.keys() != second.keys():
        raise InputError(f"{path}: other entries: {', '.join(sorted(first.keys() ^ second.keys()))}")
    for name, value in first.items():
        if isinstance(value, np.ndarray):
            size = np.max(np.abs(value), initial=1e-300)
            wrong = np.shape(value) != np.shape(second[name]) or np.any(
                np.abs(value - second[name]) > _AGREEMENT * size
            )
        else:
            wrong = value != second[name]
        if wrong:
            raise InputError(f"{path}: another {name} than the other files")


def _check_reference(path: Path, tables: CorrectionTables) -> str:
    given = load_reference(path)
    expected = reference_of(tables, older="salt" not in given)
    _compare(path, given, lambda name: expected[name], set(expected))
    return f"{path.name}: {len(given['pt'])} muons, computed again"


def _check_correctionlib(path: Path, tables: CorrectionTables, *period: str) -> str:
    import correctionlib

    reference = reference_of(tables)
    muon = [reference[name] for name in ("pt", "eta", "charge")]

    def evaluated(name: str) -> Any:
        if name == "smear":
            names = ("pt", "eta", "phi", "run", "lumi", "event", "salt")
            return found[SMEAR_NAME].evaluate(*period, *(reference[n] for n in names))
        return found[CORRECTION_NAME].evaluate(*period, *muon, "nom" if name == "scale" else name)

    def by_number(name: str) -> Any:
        """Of one period: the numbers of a merged file count the variations of all."""
        ivar = tables.variation_names.index(name.rpartition("_")[0])
        return found[VAR_NAME].evaluate(*muon, ivar, 1.0 if name.endswith("_up") else -1.0)

    varied = {name for name in reference if name.endswith(("_up", "_down"))}
    try:
        found = correctionlib.CorrectionSet.from_string(gzip.decompress(path.read_bytes()).decode())
        smeared = {"smear"} if "smear" in reference and (not period or SMEAR_NAME in list(found)) else set()
        _compare(path, reference, evaluated, varied | {"scale"} | smeared)
        if not period:
            _compare(path, reference, by_number, varied)
    except (RuntimeError, LookupError) as error:
        raise InputError(f"{path}: correctionlib refuses it ({error})") from None
    return f"{path.name}: reference muons by correctionlib"


def _compare(path: Path, given: dict[str, Any], expected: Callable[[str], Any], names: set[str]) -> None:
    for name in sorted(names):
        if name not in given:
            raise InputError(f"{path}: no column {name}")
        found, wanted = given[name], expected(name)
        if np.shape(found) != np.shape(wanted) or found.dtype.kind not in "iuf":
            raise InputError(f"{path}: {name} is no column of {len(wanted)} numbers")
        with np.errstate(invalid="ignore"):
            same = (found == wanted) | (np.abs(found - wanted) <= _FACTORS)
        wrong = ~(same | ((found != found) & (wanted != wanted)))
        if np.any(wrong):
            raise InputError(f"{path}: {name} of reference muon {int(np.argmax(wrong))} is another number")
