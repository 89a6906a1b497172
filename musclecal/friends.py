"""Friend trees: the corrected muons of NanoAOD-like files, in files of their own, the same events in the same order.

A friend holds what the correction gives; nMuon, run, luminosityBlock and event in it show that it belongs to its file.
Files are read and written in chunks of events; what is written depends neither on them nor on threads.

Not for: the correction itself (`musclecal.correction`), pairs of muons (`musclecal.events`).
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musclecal.columnar import Columns, ColumnType, Jagged, Table, is_remote, open_table, split_tree
from musclecal.correction import NO_SMEARING, Correction, Reason
from musclecal.errors import InputError
from musclecal.events import UnitCheck, expand_paths
from musclecal.nanoaod import CHARGE, EVENT_BRANCHES, MOMENTUM, PT_ERROR
from musclecal.records import Floats, Ints
from musclecal.store import written_atomically

__all__ = ["Friend", "friends_table", "friends_text", "write_friends"]

PT = MOMENTUM[0]
MUON_BRANCHES = (*MOMENTUM, CHARGE)
OTHER_FORMATS = (".parquet", ".pq", ".csv", ".gz", ".h5", ".json")
"""Names that are meant as files, not as folders."""

Values = NDArray[np.generic]


@dataclass(frozen=True)
class Friend:
    """A friend file that was written.

    Attributes
    ----------
    path : the file. sources : the files that it belongs to, in their order.
    branches : names beside nMuon, run, luminosityBlock, event.
    n_events : entries. reasons : (7,) muons by `Reason`: the first is how many were corrected.
    """

    path: str
    sources: tuple[str, ...]
    branches: tuple[str, ...]
    n_events: int
    reasons: tuple[int, ...]

    @property
    def n_muons(self) -> int:
        """Muons, corrected or not."""
        return sum(self.reasons)


@dataclass(frozen=True)
class _Wanted:
    """Which columns: ``shifts`` is syst of `Correction.scale` by column."""

    correction: Correction
    shifts: Mapping[str, str]
    smear: bool
    salt: int


def write_friends(
    files: str | Path | Iterable[str | Path],
    correction: Correction,
    out: str | Path,
    *,
    variations: Sequence[str] = (),
    smear: bool = False,
    salt: int = 0,
    chunk_events: int = 100_000,
    progress: Callable[[int, int | None], None] | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> tuple[Friend, ...]:
    """Write the friend trees ``Events`` of NanoAOD-like files.

    Branches of each muon, pT in the precision (float32 or float64) of ``Muon_pt``, computed in float64:
    ``Muon_pt_corr``; ``Muon_ptErr_corr`` where there is a ``Muon_ptErr``, in its precision; ``Muon_scale_reason``
    (int8, `musclecal.correction.Reason`, 0: corrected); ``Muon_pt_corr_<name>_up`` and ``_down`` of each variation;
    ``Muon_pt_smeared``, the pT of the file smeared (scaled before
    by tables that correct simulation). Muons out of range keep their pT. Beside them nMuon, and run,
    luminosityBlock, event where the file has them.

    Parameters
    ----------
    files : files and patterns (`musclecal.events.expand_paths`), TTree or RNTuple.
    out : a name that ends in .root: one friend of all files one after the other, as of a chain; else a folder: one
        friend a file, of the same name.
    variations : names of `Correction.variation_names`.
    smear : for simulation: the draw belongs to run, luminosityBlock, event, phi of the muon and ``salt``.
    chunk_events : events in memory, at most.
    progress : called after each chunk with events done and events of all files.
    announce : called with the name of each friend before it is made.

    Returns
    -------
    What was written. Each file appears once it is complete, or not at all.

    Raises
    ------
    InputError : naming the file and branch: missing branch, one that does not hold one number a muon, pT not in GeV,
        no events, files that do not fit into one friend; unknown variation, tables without smearing, an ``out`` that
        is an input.
    """
    if chunk_events < 1:
        raise InputError(f"chunk_events: must be at least 1, got {chunk_events}")
    wanted = _wanted(correction, variations, smear, salt)
    out = Path(out)
    sources = expand_paths(files)
    friends = _friends(sources, out)
    total = sum(_checked_rows(source, smear) for source in sources)
    if out.suffix != ".root":
        out.mkdir(exist_ok=True)
    done = 0
    written = []
    for path, parts in friends.items():
        announce(str(path))
        writer = _FriendWriter(path, parts)
        for n in writer.write(wanted, chunk_events):
            done += n
            if progress:
                progress(done, total)
        written.append(writer.friend)
    return tuple(written)


def _wanted(correction: Correction, variations: Sequence[str], smear: bool, salt: int) -> _Wanted:
    known = correction.variation_names
    for name in variations:
        if name not in known:
            raise InputError(f"variation {name!r}: there are {', '.join(known)}")
    if smear and correction.tables.smearing is None:
        raise InputError(NO_SMEARING)
    shifts = {
        f"pt_corr_{_identifier(name)}_{side}": f"{name}_{side}"
        for name in dict.fromkeys(variations)
        for side in ("up", "down")
    }
    return _Wanted(correction, shifts, smear, salt)


def _identifier(name: str) -> str:
    """The name of a variation as ROOT wants it in a branch: nothing but letters, digits and _."""
    return re.sub(r"[^0-9A-Za-z_]", "_", name)


def _friends(sources: Sequence[str], out: Path) -> dict[Path, list[str]]:
    """The files to write, each with those that it belongs to."""
    if out.suffix in OTHER_FORMATS:
        raise InputError(f"{out}: friends are .root files: name one, or a folder")
    if out.suffix == ".root":
        friends = {out: list(sources)}
    else:
        friends = {}
        for source in sources:
            path = out / PurePosixPath(split_tree(source)[0]).name
            if path in friends:
                raise InputError(
                    f"{out}: {friends[path][0]} and {source} have one name: choose a folder for each"
                )
            friends[path] = [source]
    inputs = {os.path.realpath(split_tree(source)[0]) for source in sources if not is_remote(source)}
    for path in friends:
        if os.path.realpath(path) in inputs:
            raise InputError(f"{path}: is an input: choose another --out")
    return friends


# Reading ------------------------------------------------------------------------------------------------------------


def _checked_rows(source: str, smear: bool) -> int:
    """Number of events of a file that has all branches."""
    with open_table(source) as table:
        _types(table, smear)
        if not table.n_rows:
            raise InputError(f"{source}: has no rows")
        return table.n_rows


def _types(table: Table, smear: bool) -> dict[str, ColumnType]:
    """The branches to read. Files without event numbers exist; nothing can be drawn for their muons."""
    identifiers = tuple(EVENT_BRANCHES.values())
    needed = (*MUON_BRANCHES, *identifiers) if smear else MUON_BRANCHES
    for name in needed:
        if name not in table.names:
            purpose = "smearing needs" if name in identifiers else "friends need"
            raise InputError(f"{table.path}: no branch {name!r}: {purpose} {', '.join(needed)}")
    optional = (name for name in (*identifiers, PT_ERROR) if name in table.names)
    return dict.fromkeys((*needed, *optional), "any")


@dataclass(frozen=True)
class _Events:
    """Events of a file: ``counts`` (n_event,) of muons, ``identifiers`` (n_event,), ``muons`` (n_muon,) by branch."""

    counts: Ints
    identifiers: Mapping[str, Values]
    muons: Mapping[str, Values]

    @classmethod
    def of(cls, chunk: Columns, path: str) -> "_Events":
        pt = chunk[PT]
        counts = pt.counts if isinstance(pt, Jagged) else np.empty(0, np.int64)
        identifiers, muons = {}, {}
        for name, column in chunk.items():
            where = f"{path}: branch {name!r}"
            if name in EVENT_BRANCHES.values():
                if isinstance(column, Jagged) or column.dtype.kind not in "iu":
                    raise InputError(f"{where} does not hold one whole number an event")
                identifiers[name] = column
            elif not isinstance(column, Jagged) or not np.array_equal(column.counts, counts):
                raise InputError(f"{where} does not have one value a muon")
            elif column.values.dtype.kind not in "iuf":
                raise InputError(f"{where} does not hold numbers, but {column.values.dtype}")
            else:
                muons[name] = column.values
        return cls(counts, identifiers, muons)

    def muon(self) -> tuple[Floats, Floats, Floats, Floats]:
        """pT, eta, phi, charge, (n_muon,) each."""
        pt, eta, phi, charge = (self.real(name) for name in MUON_BRANCHES)
        return pt, eta, phi, charge

    def real(self, name: str) -> Floats:
        """(n_muon,) of a branch, in float64."""
        return np.asarray(self.muons[name], dtype=np.float64)


def _chunks(source: str, smear: bool, chunk_events: int) -> Iterator[_Events]:
    with open_table(source) as table:
        unit = UnitCheck(source, PT)
        for chunk in table.chunks(_types(table, smear), chunk_events):
            events = _Events.of(chunk, source)
            unit.add(events.real(PT))
            yield events
        unit.judge()


# Columns ------------------------------------------------------------------------------------------------------------


def _columns(events: _Events, wanted: _Wanted) -> dict[str, Values]:
    """(n_muon,) what a friend says of its muons, by the name after ``Muon_``."""
    correction = wanted.correction
    muons = pt, eta, phi, charge = events.muon()
    precision = _precision(events.muons[PT])
    scaled = pt * correction.scale(*muons)
    columns: dict[str, Values] = {"pt_corr": scaled.astype(precision)}
    if PT_ERROR in events.muons:
        error = correction.pt_error(*muons, pt_err=events.real(PT_ERROR))
        columns["ptErr_corr"] = error.astype(_precision(events.muons[PT_ERROR]))
    columns["scale_reason"] = correction.validity(*muons).reason
    if wanted.smear:
        run, lumi, event = (
            np.repeat(events.identifiers[EVENT_BRANCHES[key]], events.counts) for key in EVENT_BRANCHES
        )
        # A scale of data is not for simulation, which is what a smearing is for.
        start = scaled if correction.provenance.get("corrects", "data").startswith("simulation") else pt
        factor = correction.smear(start, eta, phi, charge, run, lumi, event, wanted.salt)
        columns["pt_smeared"] = (start * factor).astype(precision)
    for name, syst in wanted.shifts.items():
        columns[name] = (pt * correction.scale(*muons, syst=syst)).astype(precision)
    return columns


def _precision(column: Values) -> type[np.floating[Any]]:
    return np.float32 if column.dtype == np.float32 else np.float64


# Writing ------------------------------------------------------------------------------------------------------------


class _FriendWriter:
    """Writes one friend and counts what goes into it."""

    def __init__(self, path: Path, sources: Sequence[str]) -> None:
        self._path, self._sources = path, tuple(sources)
        self._n_events = 0
        self._reasons = np.zeros(len(Reason), dtype=np.int64)
        self._kinds: dict[str, np.dtype[Any]] = {}

    @property
    def friend(self) -> Friend:
        """What was written."""
        branches = tuple(name for name in self._kinds if name not in EVENT_BRANCHES.values())
        reasons = tuple(int(n) for n in self._reasons)
        return Friend(str(self._path), self._sources, branches, self._n_events, reasons)

    def write(self, wanted: _Wanted, chunk_events: int) -> Iterator[int]:
        """The whole file; yields the number of events of each chunk."""
        import uproot

        with (
            written_atomically(self._path) as temporary,
            uproot.recreate(temporary, compression=uproot.ZSTD(1)) as file,
        ):
            tree: Any = None
            for branches, n_events in self._branches(wanted, chunk_events):
                if tree is None:
                    tree = file.mktree("Events", branches)
                else:
                    tree.extend(branches)
                yield n_events
            file["musclecal"] = _origin(wanted, self._sources)

    def _branches(self, wanted: _Wanted, chunk_events: int) -> Iterator[tuple[dict[str, Any], int]]:
        for source in self._sources:
            for events in _chunks(source, wanted.smear, chunk_events):
                columns = _columns(events, wanted)
                self._count(source, events, columns)
                yield {"Muon": _jagged(columns, events.counts), **events.identifiers}, len(events.counts)

    def _count(self, source: str, events: _Events, columns: Mapping[str, Values]) -> None:
        kinds = {f"Muon_{name}": column.dtype for name, column in columns.items()}
        kinds |= {name: column.dtype for name, column in events.identifiers.items()}
        self._kinds = self._kinds or kinds
        for name in (*self._kinds, *kinds):
            first, this = self._kinds.get(name), kinds.get(name)
            if first != this:
                raise InputError(
                    f"{source}: would have {name} as {this or 'none'}, {self._sources[0]} as {first or 'none'}: "
                    "files of one friend must have the same branches: give a folder as --out"
                )
        self._n_events += len(events.counts)
        self._reasons += np.bincount(columns["scale_reason"].astype(np.intp), minlength=len(Reason))


def _jagged(columns: Mapping[str, Values], counts: Ints) -> Any:
    """(n_event,) lists of records."""
    import awkward as ak

    offsets = np.concatenate([[0], np.cumsum(counts)])
    contents = [ak.contents.NumpyArray(column) for column in columns.values()]
    records = ak.contents.RecordArray(contents, list(columns), length=int(offsets[-1]))
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), records))


def _origin(wanted: _Wanted, sources: Sequence[str]) -> str:
    """What is kept beside the tree, as JSON: where the numbers come from."""
    names = [PurePosixPath(split_tree(source)[0]).name for source in sources]
    smearing = {"salt": wanted.salt} if wanted.smear else None
    provenance = dict(wanted.correction.provenance)
    return json.dumps({"inputs": names, "smear": smearing, "correction": provenance}, sort_keys=True)


# Words --------------------------------------------------------------------------------------------------------------


def friends_text(friends: Sequence[Friend]) -> str:
    """A line for each friend, and why muons in it were not corrected."""
    lines = []
    for friend in friends:
        lines.append(
            f"{friend.path}: {friend.n_events:,} events, {friend.n_muons:,} muons, {friend.reasons[0]:,} corrected"
        )
        lines += [f"  {words:<24} {n:>12,}" for words, n in _not_corrected(friend).items()]
    return "\n".join(lines)


def friends_table(friends: Sequence[Friend]) -> dict[str, object]:
    """The same for JSON."""
    return {
        "friends": [
            {
                "file": friend.path, "inputs": list(friend.sources), "events": friend.n_events,
                "muons": friend.n_muons, "corrected": friend.reasons[0],
                "not_corrected": _not_corrected(friend), "branches": list(friend.branches),
            }
            for friend in friends
        ]
    }  # fmt: skip


def _not_corrected(friend: Friend) -> dict[str, int]:
    return {
        reason.name.lower().replace("_", " "): friend.reasons[reason]
        for reason in Reason
        if reason != Reason.VALID and friend.reasons[reason]
    }
