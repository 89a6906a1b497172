"""Exports of several periods as one folder, with a correctionlib file that has the period as an input.

What is correlated between periods is declared here, by the names of variations: those that are shared keep their
name, so that an analysis moves them together in all periods; all others get the period as a suffix.

Not for: an average of periods. Every period keeps its own numbers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from musclecal.errors import InputError
from musclecal.export.arrays import export_json, export_npz
from musclecal.export.correctionlib_json import correctionlib_bytes, variation_names
from musclecal.export.cpp_header import namespace_of
from musclecal.export.folder import FORMATS, earlier_files, holds_tables, read_tables, remove_stale
from musclecal.export.manifest import merged_periods, period_file, write_manifest
from musclecal.export.reference_vectors import export_reference
from musclecal.export.tables import FORMAT
from musclecal.records import CorrectionTables
from musclecal.store import written_atomically

__all__ = ["SHARED", "MergedFolder", "merge_folders", "merged_tables"]

SHARED = ("mass_",)
"""By default: the mass of a resonance is the same in all periods."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_WRITERS = {"npz": export_npz, "json": export_json, "reference": export_reference}


@dataclass(frozen=True)
class MergedFolder:
    """What `merge_folders` wrote.

    Attributes
    ----------
    files : all files, the manifest last.
    periods : in their order. shared : variations with a common name; own : by period, with its suffix.
    notes : what the merged file lacks, in words.
    """

    files: tuple[Path, ...]
    periods: tuple[str, ...]
    shared: tuple[str, ...]
    own: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def merge_folders(folders: Sequence[Path], out: Path, share: Sequence[str] | None = None) -> MergedFolder:
    """Write one folder for several exports; their order does not matter, and equal exports give equal bytes.

    ``muon_scale.json.gz`` has the input ``period`` before all others. Beside it are, for each period, the arrays
    (npz and JSON) and reference muons, with the same names of variations, and a manifest of all.

    Parameters
    ----------
    folders : export folders or files; their periods are ``provenance["period"]``.
    share : names or beginnings of names of variations that are the same in all periods; `SHARED` if None.

    Raises
    ------
    InputError : a period is missing, twice or no name; fewer than two; a ``share`` that no variation has, or that of a
        statistical one: fits of different data; names that would collide, of variations or in C++; a folder
        ``out`` with another export; tables for data and for simulation.
    """
    if _is_other_export(out):
        raise InputError(f"{out}: holds an export already: merge into another folder")
    periods, shared = merged_tables(
        _by_period(folders), SHARED if share is None else share, share is not None
    )
    out.mkdir(parents=True, exist_ok=True)
    before = earlier_files(out)
    library = out / FORMATS["correctionlib"][0]
    with written_atomically(library) as temporary:
        temporary.write_bytes(correctionlib_bytes(periods))
    written = [library]
    for period, tables in periods.items():
        for kind, write in _WRITERS.items():
            file = period_file(out, kind, period)
            write(tables, file)
            written.append(file)
    own = {p: tuple(n for n in t.variation_names if n not in shared) for p, t in periods.items()}
    notes = _notes(periods)
    content = {
        "format": FORMAT,
        "periods": {
            p: {"provenance": dict(t.provenance), "s": t.s, "variations": list(t.variation_names)}
            for p, t in periods.items()
        },
        "shared": list(shared),
        "ivar": variation_names(periods),
        "notes": list(notes),
    }
    manifest = write_manifest(out, content, written)
    remove_stale(out, before, written)
    return MergedFolder((*written, manifest), tuple(periods), shared, own, notes)


def merged_tables(
    periods: Mapping[str, CorrectionTables], share: Sequence[str] = SHARED, must_exist: bool = False
) -> tuple[dict[str, CorrectionTables], tuple[str, ...]]:
    """The tables in the order of their periods, with the names that variations have in the merged file.

    Returns
    -------
    tables by period, and the names that are shared (those of a single period too, if they are declared).

    Raises
    ------
    InputError : as `merge_folders`, apart from those of files.
    """
    if len(periods) < 2:
        raise InputError(f"merge: needs two periods or more, got {', '.join(periods) or 'none'}")
    _refuse_one_namespace(periods)
    names = list(dict.fromkeys(name for t in periods.values() for name in t.variation_names))
    for declared in share:
        fitting = [name for name in names if declared and name.startswith(declared)]
        if any(name.startswith("stat") for name in fitting) or declared.startswith("stat"):
            raise InputError(
                f"--share {declared}: statistical variations are those of different fits, and cannot be shared"
            )
        if must_exist and not fitting:
            raise InputError(f"--share {declared!r}: no period has a variation of this name or beginning")
    shared = tuple(sorted(n for n in names if any(declared and n.startswith(declared) for declared in share)))
    result = {}
    for period, tables in sorted(periods.items()):
        new = (n if n in shared else f"{n}_{period}" for n in tables.variation_names)
        result[period] = replace(tables, variation_names=tuple(new))
    _refuse_collisions(result, shared)
    return result, shared


def _refuse_one_namespace(periods: Iterable[str]) -> None:
    """The headers of all periods must go into one program."""
    seen: dict[str, str] = {}
    for period in periods:
        name = namespace_of(period)
        if name in seen:
            raise InputError(
                f"merge: periods {seen[name]} and {period} have the same C++ namespace {name}: rename one of them"
            )
        seen[name] = period


def _refuse_collisions(periods: Mapping[str, CorrectionTables], shared: Sequence[str]) -> None:
    """x_A of period B would be read as x of period A_B."""
    seen = dict.fromkeys(shared, "the shared ones")
    for period, tables in periods.items():
        for name in tables.variation_names:
            if name not in shared and name in seen:
                raise InputError(f"period {period}: its variation {name} has the name of one of {seen[name]}")
            if name not in shared:
                seen[name] = f"period {period}"


def _by_period(folders: Sequence[Path]) -> dict[str, CorrectionTables]:
    periods: dict[str, CorrectionTables] = {}
    source: dict[str, Path] = {}
    for folder in folders:
        tables = read_tables(folder)
        period = tables.provenance.get("period", "")
        if not period:
            raise InputError(
                f"{folder}: does not say its period: export it with export.period in the campaign file"
            )
        if not _NAME.fullmatch(period):
            raise InputError(
                f"{folder}: period {period!r}: letters, digits, '_', '-' and '.' are possible here"
            )
        if period in periods:
            raise InputError(f"{folder}: period {period} is that of {source[period]} already")
        periods[period], source[period] = tables, folder
    corrected = {tables.provenance.get("corrects", "data") for tables in periods.values()}
    if len(corrected) > 1:
        raise InputError(f"merge: some correct {', others '.join(sorted(corrected))}: merge them apart")
    return periods


def _is_other_export(out: Path) -> bool:
    return out.is_dir() and holds_tables(out) and not merged_periods(out)


def _notes(periods: Mapping[str, CorrectionTables]) -> tuple[str, ...]:
    without = [period for period, tables in periods.items() if tables.smearing is None]
    if not without or len(without) == len(periods):
        return ()
    return (f"no smearing in the merged correctionlib file: {', '.join(without)} has none",)
