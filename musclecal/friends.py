"""Friend trees: the corrected muons of files, in files of their own, the same rows in the same order.

Files are NanoAOD-like, or flat with one pair a row. A friend holds what the correction gives; event numbers in it show
that it belongs to its file. Files are read and written in chunks; neither they nor threads change what is written.

Not for: the correction itself (`musclecal.correction`), which columns there are (`musclecal.friend_columns`), formats
(`musclecal.friend_files`).
"""

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from musclecal.cluster import Cluster
from musclecal.columnar import is_remote, open_table, split_tree
from musclecal.columns import FlatColumns
from musclecal.correction import NO_SMEARING, Correction, Reason
from musclecal.errors import InputError
from musclecal.events import UnitCheck, expand_paths
from musclecal.friend_columns import FriendRows, Wanted, friend_layout
from musclecal.friend_files import friend_paths, writing_friend

__all__ = ["Friend", "FriendMaking", "friends_table", "friends_text", "write_friends"]


@dataclass(frozen=True)
class Friend:
    """A friend file that was written.

    Attributes
    ----------
    path : the file. sources : the files that it belongs to, in their order.
    branches : names beside nMuon and the numbers of run, lumi and event.
    n_events : entries, in flat files pairs. reasons : (7,) muons by `Reason`: the first is how many were corrected.
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


def write_friends(
    files: str | Path | Iterable[str | Path],
    correction: Correction,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    variations: Sequence[str] = (),
    smear: bool = False,
    salt: int = 0,
    chunk_events: int = 100_000,
    progress: Callable[[int, int | None], None] | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> tuple[Friend, ...]:
    """Write the friends of NanoAOD-like files and of flat files with one pair a row.

    Of each muon of NanoAOD, pT in the precision (float32 or float64) of ``Muon_pt``, computed in float64:
    ``Muon_pt_corr``; ``Muon_ptErr_corr`` where there is a ``Muon_ptErr``, in its precision; ``Muon_scale_reason``
    (int8, `musclecal.correction.Reason`, 0: corrected); ``Muon_pt_corr_<name>_up`` and ``_down`` of each variation;
    ``Muon_pt_smeared``, the pT of the file smeared (scaled before
    by tables that correct simulation). Muons out of range keep their pT. Beside them nMuon, and run,
    luminosityBlock, event where the file has them.

    Of a flat file with pt1, eta1, ... the same as ``pt1_corr``, ``pt_err1_corr``, ``scale_reason1``,
    ``pt1_corr_<name>_up``, ``pt1_smeared``, and with 2, or ``pt_plus_corr``, ... where the file has pt_plus, pt_minus;
    for each of these pT the mass of the pair in float64, GeV: ``mass_corr``, ``mass_corr_<name>_up``, ``mass_smeared``.

    Parameters
    ----------
    files : files and patterns (`musclecal.events.expand_paths`): ROOT (TTree, RNTuple), flat ones also Parquet and CSV.
    out : a name that ends in .root, or .parquet for friends of Parquet and CSV: one friend of all files one after the
        other, as of a chain; else a folder: one friend a file, of the same name.
    columns : of flat files, key (`musclecal.columns.COLUMN_KEYS`) -> the file's column. None: NanoAOD, or a flat file
        whose columns are called as the keys are, or with _plus and _minus instead of 1 and 2.
    variations : names of `Correction.variation_names`.
    smear : for simulation: the draw belongs to run, luminosityBlock, event, phi of the muon and ``salt``.
    chunk_events : events or pairs in memory, at most.
    progress : called after each chunk with rows done and rows of all files (None where a file does not tell).
    announce : called with the name of each friend before it is made.

    Returns
    -------
    What was written. Each file appears once it is complete, or not at all.

    Raises
    ------
    InputError : naming the file and column: neither kind of file, missing column, one that does not hold one number a
        muon or a row, a charge that contradicts the name of its column, pT not in GeV, no rows, files that do not fit
        into one friend; unknown variation, tables without smearing, an ``out`` that is an input or of another format.
    """
    if chunk_events < 1:
        raise InputError(f"chunk_events: must be at least 1, got {chunk_events}")
    wanted = _wanted(correction, variations, smear, salt)
    flat = None if columns is None else FlatColumns.from_map(columns)
    out = Path(out)
    sources = expand_paths(files)
    friends = friend_paths(sources, out)
    total = _total([_checked_rows(source, flat, smear) for source in sources])
    if out not in friends:
        out.mkdir(exist_ok=True)
    done = 0
    written = []
    for path, parts in friends.items():
        announce(str(path))
        tally = _Tally(path, parts)
        with writing_friend(path, _origin(wanted, parts)) as write:
            for source, rows in _rows(parts, wanted, flat, chunk_events):
                tally.add(source, rows)
                write(rows)
                done += rows.n_rows
                if progress:
                    progress(done, total)
        written.append(tally.friend)
    return tuple(written)


@dataclass(frozen=True)
class FriendMaking:
    """What friends are made of, and where; the attributes are those of `write_friends`."""

    correction: Correction
    out: Path
    columns: Mapping[str, str] | None = None
    variations: Sequence[str] = ()
    smear: bool = False
    salt: int = 0
    chunk_events: int = 100_000

    def __call__(self, file: str) -> tuple[Friend, ...]:
        """The friend of one file."""
        return self._write([file])

    def friends(
        self,
        files: Iterable[str],
        cluster: Cluster | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        announce: Callable[[str], None] = lambda _: None,
    ) -> tuple[tuple[Friend, ...], tuple[str, ...]]:
        """Written friends, here or by the processes of ``cluster``; and a line for each file that has failed there.

        Raises
        ------
        InputError : as `write_friends`; one friend of all files, which no processes can share.
        """
        if cluster is None:
            return self._write(files, progress, announce), ()
        sources = expand_paths(files)
        if self.out in friend_paths(sources, self.out):
            raise InputError(f"--scheduler: {self.out} is one friend of all files: give a folder as --out")
        self.out.mkdir(exist_ok=True)
        announce(str(self.out))
        # Processes may stand in another folder
        making = replace(self, out=self.out.absolute())
        paths = [file if is_remote(file) else str(Path(file).absolute()) for file in sources]
        made = cluster.total(making, paths, operator.add, progress)
        return made.total, made.failed

    def _write(
        self,
        files: Iterable[str],
        progress: Callable[[int, int | None], None] | None = None,
        announce: Callable[[str], None] = lambda _: None,
    ) -> tuple[Friend, ...]:
        return write_friends(
            files, self.correction, self.out, columns=self.columns, variations=self.variations, smear=self.smear,
            salt=self.salt, chunk_events=self.chunk_events, progress=progress, announce=announce,
        )  # fmt: skip


def _wanted(correction: Correction, variations: Sequence[str], smear: bool, salt: int) -> Wanted:
    known = correction.variation_names
    for name in variations:
        if name not in known:
            raise InputError(f"variation {name!r}: there are {', '.join(known)}")
    if smear and correction.tables.smearing is None:
        raise InputError(NO_SMEARING)
    shifts = {
        f"{_identifier(name)}_{side}": f"{name}_{side}"
        for name in dict.fromkeys(variations)
        for side in ("up", "down")
    }
    return Wanted(correction, shifts, smear, salt)


def _identifier(name: str) -> str:
    """The name of a variation as ROOT wants it in a branch: nothing but letters, digits and _."""
    return re.sub(r"[^0-9A-Za-z_]", "_", name)


def _checked_rows(source: str, flat: FlatColumns | None, smear: bool) -> int | None:
    """Number of rows of a file that has all columns, if it tells."""
    with open_table(source) as table:
        friend_layout(table, flat, smear)
        if table.n_rows == 0:
            raise InputError(f"{source}: has no rows")
        return table.n_rows


def _total(rows: Sequence[int | None]) -> int | None:
    known = [n for n in rows if n is not None]
    return sum(known) if len(known) == len(rows) else None


def _rows(
    sources: Iterable[str], wanted: Wanted, flat: FlatColumns | None, chunk_events: int
) -> Iterator[tuple[str, FriendRows]]:
    """Source and rows of each chunk."""
    for source in sources:
        n_rows = 0
        with open_table(source) as table:
            layout = friend_layout(table, flat, wanted.smear)
            unit = UnitCheck(source, layout.momentum)
            for chunk in table.chunks(layout.types, chunk_events):
                rows = layout.rows(chunk, wanted)
                unit.add(rows.pt)
                n_rows += rows.n_rows
                yield source, rows
            unit.judge()
        if not n_rows:
            raise InputError(f"{source}: has no rows")


class _Tally:
    """Counts what goes into one friend, and refuses what does not fit into it."""

    def __init__(self, path: Path, sources: Sequence[str]) -> None:
        self._path, self._sources = path, tuple(sources)
        self._n_rows = 0
        self._reasons = np.zeros(len(Reason), dtype=np.int64)
        self._kinds: dict[str, np.dtype[Any]] = {}
        self._identifiers: frozenset[str] = frozenset()

    @property
    def friend(self) -> Friend:
        """What was written."""
        branches = tuple(name for name in self._kinds if name not in self._identifiers)
        reasons = tuple(int(n) for n in self._reasons)
        return Friend(str(self._path), self._sources, branches, self._n_rows, reasons)

    def add(self, source: str, rows: FriendRows) -> None:
        """Rows of a source, before they are written."""
        kinds = rows.kinds
        if not self._kinds:
            self._kinds, self._identifiers = kinds, frozenset(rows.identifiers)
        for name in (*self._kinds, *kinds):
            first, this = self._kinds.get(name), kinds.get(name)
            if first != this:
                raise InputError(
                    f"{source}: would have {name} as {this or 'none'}, {self._sources[0]} as {first or 'none'}: "
                    "files of one friend must have the same branches: give a folder as --out"
                )
        self._n_rows += rows.n_rows
        self._reasons += np.bincount(rows.reasons.astype(np.intp), minlength=len(Reason))


def _origin(wanted: Wanted, sources: Sequence[str]) -> str:
    """What is kept in the friend, as JSON: where the numbers come from."""
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
