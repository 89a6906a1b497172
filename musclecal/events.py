"""Muon pairs from NanoAOD and flat files, in chunks; the public readers and writers of events.

Only this module, `musclecal.columns`, `musclecal.nanoaod` and `musclecal.event_writer` know branch names.
Momenta are in GeV, angles in rad, as they leave here. Not for: cuts (`musclecal.selection`).
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musclecal.columnar import Columns, Jagged, RowRange, Table, is_remote, open_table, split_tree
from musclecal.columns import FlatColumns, FlatLayout, Layout
from musclecal.errors import InputError
from musclecal.event_writer import write_dimuons
from musclecal.nanoaod import NanoLayout, is_nanoaod
from musclecal.pairs import LoadedPairs
from musclecal.records import CutFlow, DimuonEvents, Floats

__all__ = ["UnitCheck", "expand_paths", "read_dimuons", "row_ranges", "write_dimuons"]

Progress = Callable[[int, int | None], None]

PLAUSIBLE_MEDIAN_PT = (0.05, 1000.0)
"""GeV: a sample whose median pT lies outside is not in GeV."""
MUONS_FOR_THE_UNIT = 2000


def expand_paths(patterns: str | Path | Iterable[str | Path]) -> list[str]:
    """Files of paths and patterns (``*``, ``?``, ``[...]``, ``**``).

    The matches of a pattern are sorted; patterns keep their order; a file that several patterns match comes
    once, so that no event counts twice. ``file.root:tree`` chooses a tree. URLs (``root://``) stay untouched.

    Raises
    ------
    InputError : a pattern that matches nothing, or no pattern at all.
    """
    several = [patterns] if isinstance(patterns, str | Path) else patterns
    found = [path for pattern in several for path in _matches(str(pattern))]
    if not found:
        raise InputError("no files to read were named")
    return list(dict.fromkeys(found))


def _matches(pattern: str) -> list[str]:
    if is_remote(pattern):
        return [pattern]
    file, tree = split_tree(os.path.expanduser(pattern))
    files = [file] if os.path.exists(file) else sorted(glob.glob(file, recursive=True))
    if not files:
        raise InputError(f"{pattern}: no file of this name, and no file matches it")
    return [path if tree is None else f"{path}:{tree}" for path in files]


def row_ranges(file: str, rows: int) -> tuple[RowRange | None, ...]:
    """Nearly equal pieces of a file, of at most ``rows`` rows; (None,), all of it, where it does not tell its rows.

    A file that cannot be read is one piece: who reads it will say so.
    """
    try:
        with open_table(file) as table:
            n_rows = table.n_rows
    except InputError:
        n_rows = None
    if not n_rows or n_rows <= rows:
        return (None,)
    ends = np.linspace(0, n_rows, -(-n_rows // rows) + 1).astype(int).tolist()
    return tuple(pairwise(ends))


def read_dimuons(
    paths: str | Path | Iterable[str | Path],
    columns: Mapping[str, str] | None = None,
    *,
    generator: bool = True,
    extra: Sequence[str] = (),
    chunk_events: int = 200_000,
    rows: RowRange | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[DimuonEvents, CutFlow]]:
    """Opposite-sign muon pairs of files, a chunk at a time.

    The pairs and their order do not depend on ``chunk_events``. Pairs that cannot be used (momentum not
    finite, pT <= 0, charge not +1 or -1, same sign, no generator muon in simulation) are dropped and counted.
    An event with more than two muons gives all its opposite-sign pairs.

    Parameters
    ----------
    paths : files and patterns (`expand_paths`) of one sample: ROOT (TTree, RNTuple), Parquet, CSV, CSV.gz.
    columns : for flat files, key (`musclecal.columns.COLUMN_KEYS`) -> the file's column. px, py, pz win over
        pt, eta, phi. None: NanoAOD, or a flat file whose columns are called as the keys are.
    generator : read generator-level muons (after FSR) where the file has them.
    extra : further columns, for cuts. A per-muon branch ``Muon_tightId`` of NanoAOD gives
        ``Muon_tightId_plus`` and ``_minus``; columns ``iso1`` and ``iso2`` of a flat file, both named, give
        ``iso_plus`` and ``iso_minus`` too. The ``_plus`` and ``_minus`` names may be asked for directly.
    chunk_events : rows of the file in a chunk, at most.
    rows : first row, and the one after the last, of a single file whose number of rows is known without reading it.
    progress : called after each chunk with the rows done and the rows of all files (None where a file does
        not tell without being read).

    Yields
    ------
    events, flow : a chunk (perhaps empty), and what was read and dropped; the flows of all chunks add up.

    Raises
    ------
    InputError : naming the file and column or key: bad column map, missing column, empty or damaged file,
        momenta not in GeV, files that do not have the same optional columns.
    """
    if chunk_events < 1:
        raise InputError(f"chunk_events: must be at least 1, got {chunk_events}")
    flat = None if columns is None else FlatColumns.from_map(columns)
    files = expand_paths(paths)

    def layout(table: Table) -> Layout:
        if flat is None and is_nanoaod(table):
            return NanoLayout(table, extra, generator)
        return FlatLayout(table, flat or FlatColumns.from_names(table), extra, generator)

    return _read(files, layout, chunk_events, rows, progress)


def _read(
    files: Sequence[str], layout_of: Callable[[Table], Layout], chunk_events: int, part: RowRange | None,
    progress: Progress | None,
) -> Iterator[tuple[DimuonEvents, CutFlow]]:  # fmt: skip
    total = _total_rows(files) if progress else None
    done = 0
    content: tuple[str, ...] | None = None
    for file in files:
        for rows, loaded in _read_file(file, layout_of, chunk_events, part):
            here = _content(loaded.events)
            content = content or here
            if content != here:
                raise InputError(
                    f"{file}: has {', '.join(here)}, but {files[0]} has {', '.join(content)}: "
                    "the files of a sample must have the same optional columns"
                )
            done += rows
            yield loaded.events, loaded.flow
            if progress:
                progress(done, total)


def _read_file(
    file: str, layout_of: Callable[[Table], Layout], chunk_events: int, part: RowRange | None
) -> Iterator[tuple[int, LoadedPairs]]:
    """(rows, pairs) of each chunk of one file."""
    n_rows = 0
    with open_table(file) as table:
        if table.n_rows == 0:
            raise InputError(f"{file}: has no rows")
        layout = layout_of(table)
        units = [UnitCheck(file, name) for name in (layout.momentum, layout.generator) if name]
        for chunk in table.chunks(layout.types, chunk_events, part):
            loaded = layout.load(chunk)
            for unit, pt in zip(units, (loaded.pt, loaded.gen_pt), strict=False):
                if pt is not None:
                    unit.add(pt)
            n_rows += _length(chunk)
            yield _length(chunk), loaded
        for unit in units:
            unit.judge()
    if n_rows == 0:
        raise InputError(f"{file}: has no rows")


def _length(chunk: Columns) -> int:
    column = next(iter(chunk.values()))
    return len(column.counts if isinstance(column, Jagged) else column)


def _content(events: DimuonEvents) -> tuple[str, ...]:
    """The optional parts of a sample that these pairs have."""
    optional = {
        "pt_err": events.plus.pt_err,
        "generator muons": events.gen_plus,
        "run": events.run,
        "lumi": events.lumi,
        "event": events.event,
    }
    return ("momenta", *(name for name, part in optional.items() if part is not None))


def _total_rows(files: Iterable[str]) -> int | None:
    total = 0
    for file in files:
        with open_table(file) as table:
            if table.n_rows is None:
                return None
            total += table.n_rows
    return total


class UnitCheck:
    """Looks at the first muons of a file, the same ones for any chunk size, and says if pT is not in GeV."""

    def __init__(self, file: str, column: str) -> None:
        self._where = f"{file}: column {column!r}"
        self._pt: list[Floats] = []
        self._n_wanted = MUONS_FOR_THE_UNIT

    def add(self, pt: NDArray[Any]) -> None:
        """Look at further muons of the file, pT in what should be GeV; judge once there are enough."""
        if self._n_wanted == 0:
            return
        for start in range(0, len(pt), MUONS_FOR_THE_UNIT):
            some = pt[start : start + MUONS_FOR_THE_UNIT]
            usable = some[np.isfinite(some) & (some > 0.0)][: self._n_wanted]
            self._pt.append(usable)
            self._n_wanted -= usable.size
            if self._n_wanted == 0:
                self.judge()
                return

    def judge(self) -> None:
        """Raise `InputError` if the muons looked at cannot be in GeV."""
        pt = np.concatenate(self._pt) if self._pt else np.empty(0)
        self._pt = []
        if pt.size == 0:
            return
        median = float(np.median(pt))
        low, high = PLAUSIBLE_MEDIAN_PT
        if low <= median <= high:
            return
        unit, remedy = ("MeV", "divide by 1000") if median > high else ("TeV", "multiply by 1000")
        raise InputError(
            f"{self._where}: the median pT is {median:g}, which looks like {unit}: momenta must be in GeV, "
            f"{remedy} when the file is made"
        )
