"""Friend files: which there will be, and how rows get into them. Each appears once it is complete, or not at all.

Not for: what is in the rows (`musclecal.friend_columns`).
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from musclecal.columnar import is_remote, split_tree
from musclecal.errors import InputError
from musclecal.friend_columns import FriendRows, Values
from musclecal.records import Ints
from musclecal.store import written_atomically

__all__ = ["friend_paths", "writing_friend"]

ROOT, PARQUET = (".root",), (".parquet", ".pq")
NO_FOLDERS = (*ROOT, *PARQUET, ".csv", ".gz", ".h5", ".json")
"""Names that are meant as files."""
ORIGIN = "musclecal"
"""Name of the JSON text that says where the numbers come from."""

Write = Callable[[FriendRows], None]


def friend_paths(sources: Sequence[str], out: Path) -> dict[Path, list[str]]:
    """The files to write, each with those that it belongs to: ``out``, or one a source if it is a folder.

    Friends of ROOT files are ROOT files, of all others (Parquet, CSV) Parquet.

    Raises
    ------
    InputError : a name of another format, sources of both or of one name, a friend that is an input.
    """
    friends: dict[Path, list[str]] = {}
    if out.suffix in NO_FOLDERS:
        for source in sources:
            if out.suffix not in _formats(source):
                raise InputError(
                    f"{out}: {source} has another format: its friends are {_formats(source)[0]} files: "
                    "name one, or a folder"
                )
        friends[out] = list(sources)
    else:
        for source in sources:
            path = out / _friend_name(source)
            if path in friends:
                raise InputError(
                    f"{out}: the friends of {friends[path][0]} and {source} have one name: "
                    "choose a folder for each"
                )
            friends[path] = [source]
    inputs = {os.path.realpath(split_tree(source)[0]) for source in sources if not is_remote(source)}
    for path in friends:
        if os.path.realpath(path) in inputs:
            raise InputError(f"{path}: is an input: choose another --out")
    return friends


def _formats(source: str) -> tuple[str, ...]:
    file, _ = split_tree(source)
    return ROOT if is_remote(file) or file.endswith(ROOT) else PARQUET


def _friend_name(source: str) -> str:
    """That of the file; a friend of pairs.csv.gz is pairs.parquet."""
    name = PurePosixPath(split_tree(source)[0]).name
    return re.sub(r"\.csv(\.\w+)?$", PARQUET[0], name) if _formats(source) == PARQUET else name


@contextmanager
def writing_friend(path: Path, origin: str) -> Iterator[Write]:
    """What takes the rows of a friend, chunk by chunk; the file is there when the context ends well.

    Parameters
    ----------
    origin : JSON, kept as the string ``musclecal`` of a ROOT file, or in the metadata of a Parquet file.

    Raises
    ------
    InputError : there is no such folder.
    """
    writing = _writing_parquet if path.suffix in PARQUET else _writing_root
    with written_atomically(path) as temporary, writing(temporary, origin) as write:
        yield write


@contextmanager
def _writing_root(path: Path, origin: str) -> Iterator[Write]:
    """A TTree ``Events``; lists of muons as branches ``Muon_``, with nMuon."""
    import uproot

    with uproot.recreate(path, compression=uproot.ZSTD(1)) as file:
        tree: Any = None

        def write(rows: FriendRows) -> None:
            nonlocal tree
            branches: dict[str, Any] = {**rows.columns, **rows.identifiers}
            if rows.counts is not None:
                branches = {"Muon": _jagged(rows.muons, rows.counts), **branches}
            if tree is None:
                tree = file.mktree("Events", branches)
            else:
                tree.extend(branches)

        yield write
        file[ORIGIN] = origin


def _jagged(muons: Mapping[str, Values], counts: Ints) -> Any:
    """(n_row,) lists of records."""
    import awkward as ak

    offsets = np.concatenate([[0], np.cumsum(counts)])
    contents = [ak.contents.NumpyArray(column) for column in muons.values()]
    records = ak.contents.RecordArray(contents, list(muons), length=int(offsets[-1]))
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), records))


@contextmanager
def _writing_parquet(path: Path, origin: str) -> Iterator[Write]:
    """Flat columns."""
    import pyarrow
    from pyarrow import parquet

    file: Any = None

    def write(rows: FriendRows) -> None:
        nonlocal file
        table = pyarrow.table({**rows.columns, **rows.identifiers})
        if file is None:
            file = parquet.ParquetWriter(
                path, table.schema.with_metadata({ORIGIN: origin}), compression="zstd", use_dictionary=False
            )
        file.write_table(table.replace_schema_metadata({ORIGIN: origin}))

    try:
        yield write
    finally:
        if file is not None:
            file.close()
