"""ROOT, Parquet and CSV files as named columns, a chunk of rows at a time. No file is ever whole in memory.

Not for: what a column means (`musclecal.columns`, `musclecal.nanoaod`). Whatever a reading library raises on
a damaged file leaves here as an `InputError` that names the file.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError

__all__ = [
    "Column",
    "ColumnType",
    "Columns",
    "Jagged",
    "RowRange",
    "Table",
    "is_remote",
    "open_table",
    "split_tree",
]

ColumnType = Literal["real", "number", "integer", "whole", "any"]
"""float64, numbers as the file has them, int64, integers as it has them (int64 where it has reals), or anything."""

RowRange = tuple[int, int]
"""First row, and the one after the last."""

TREE_CLASSES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple", "ROOT::Experimental::RNTuple")
CSV_BYTES_A_ROW = 200
CSV_BLOCK_BYTES = (1 << 16, 1 << 25)


@dataclass(frozen=True)
class Jagged:
    """Several values a row: ``values`` (n_value,) of all rows, ``counts`` (n_row,) how many each row has."""

    values: NDArray[np.generic]
    counts: NDArray[np.int64]


Column = NDArray[np.generic] | Jagged
Columns = Mapping[str, Column]


class Table(Protocol):
    """An open file: ``names`` of its columns, ``n_rows`` where the file says so without being read."""

    path: str
    names: tuple[str, ...]
    n_rows: int | None

    def chunks(
        self, types: Mapping[str, ColumnType], rows: int, part: RowRange | None = None
    ) -> Iterator[Columns]:
        """The columns named in ``types``, at most ``rows`` rows at a time; of a ``part`` where ``n_rows`` is known."""


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL: root://, https://, s3:// ..."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path) is not None


def split_tree(path: str) -> tuple[str, str | None]:
    """``file.root:tree`` as (file.root, tree); the tree is None where none is named."""
    head, mark, tree = path.rpartition(".root:")
    return (f"{head}.root", tree) if mark and tree else (path, None)


@contextmanager
def open_table(path: str) -> Iterator[Table]:
    """The file ``path`` (``file.root:tree`` chooses a tree), open while the context lasts.

    Raises
    ------
    InputError : the file is missing, damaged, of an unknown format, or has no single tree.
    """
    file, tree = split_tree(path)
    with _named(path):
        table = _opened(file, tree)
    try:
        yield _Guarded(table)
    finally:
        table.close()


def _opened(file: str, tree: str | None) -> "_RootTable | _ParquetTable | _CsvTable":
    if is_remote(file) or file.endswith(".root"):
        return _RootTable(file, tree)
    if file.endswith((".parquet", ".pq")):
        return _ParquetTable(file)
    if re.search(r"\.csv(\.(gz|bz2|zst|lz4))?$", file):
        return _CsvTable(file)
    raise InputError(f"{file}: unknown format: known are .root, .parquet, .csv and .csv.gz")


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Any failure of a reading library, as an `InputError` that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read, is it complete? ({reason})") from error


class _Guarded:
    """A table that converts its columns to the types asked for and names its file in every failure."""

    def __init__(self, table: "_RootTable | _ParquetTable | _CsvTable") -> None:
        self._table = table
        self.path, self.names, self.n_rows = table.path, table.names, table.n_rows

    def chunks(
        self, types: Mapping[str, ColumnType], rows: int, part: RowRange | None = None
    ) -> Iterator[Columns]:
        raw = self._table.chunks(types, rows, part)
        while True:
            with _named(self.path):
                chunk = next(raw, None)
            if chunk is None:
                return
            where = f"{self.path}: column"
            yield {name: _typed(chunk[name], kind, f"{where} {name!r}") for name, kind in types.items()}


def _typed(column: Column, kind: ColumnType, where: str) -> Column:
    if isinstance(column, Jagged):
        return Jagged(_typed_values(column.values, kind, where), column.counts)
    return _typed_values(column, kind, where)


def _typed_values(values: NDArray[np.generic], kind: ColumnType, where: str) -> NDArray[np.generic]:
    if kind == "any" or (kind == "whole" and values.dtype.kind in "iu"):
        return values
    if values.dtype.kind not in "biuf":
        raise InputError(f"{where} does not hold numbers, but {values.dtype}")
    # Arrow's own memory is read-only: kernels would be compiled a second time for it.
    read_only = not values.flags.writeable
    if kind == "number":
        return values.copy() if read_only else values
    if kind == "real":
        return values.astype(np.float64, copy=read_only)
    if values.dtype.kind == "f" and not np.all(np.isfinite(values) & (values == np.rint(values))):
        raise InputError(f"{where} has empty or fractional values: whole numbers are needed")
    if (
        kind == "whole"
        and values.dtype.kind == "f"
        and np.any(np.abs(values) >= 2.0 ** (np.finfo(str(values.dtype)).nmant + 1))
    ):
        raise InputError(f"{where} has numbers beyond what {values.dtype} counts: their last digits are lost")
    return values.astype(np.int64, copy=read_only)


class _RootTable:
    """A TTree or RNTuple."""

    def __init__(self, path: str, tree: str | None) -> None:
        import uproot

        self.path = path
        self._file = uproot.open(path)
        try:
            self._tree = self._file[self._chosen(tree)]
            self.names = tuple(str(name) for name in self._tree.keys())  # noqa: SIM118 - a tree is no dict
            self.n_rows: int | None = int(self._tree.num_entries)
        except BaseException:
            self._file.close()
            raise

    def _chosen(self, tree: str | None) -> str:
        classes = self._file.classnames(cycle=False)
        trees = [str(name) for name, kind in classes.items() if kind in TREE_CLASSES]
        if not trees:
            raise InputError(f"{self.path}: holds no TTree or RNTuple")
        if tree is not None and tree not in trees:
            raise InputError(f"{self.path}: no tree {tree!r}: there are {', '.join(trees)}")
        if tree is None and "Events" not in trees and len(trees) > 1:
            raise InputError(f"{self.path}: several trees, choose one as path:tree: {', '.join(trees)}")
        return tree or ("Events" if "Events" in trees else trees[0])

    def chunks(self, types: Mapping[str, ColumnType], rows: int, part: RowRange | None) -> Iterator[Columns]:
        first, last = part or (None, None)
        # A function, not the names themselves: uproot would take those for expressions or wildcards.
        for array in self._tree.iterate(
            filter_name=lambda name: name in types, step_size=rows, entry_start=first, entry_stop=last
        ):
            yield {name: _root_column(array[name], f"{self.path}: column {name!r}") for name in types}

    def close(self) -> None:
        self._file.close()


def _root_column(array: Any, where: str) -> Column:
    import awkward

    if array.ndim == 1:
        return np.asarray(awkward.to_numpy(array))
    if array.ndim > 2:
        raise InputError(f"{where} is nested too deeply: one value a row or one list a row is needed")
    layout = array.layout
    if isinstance(layout, awkward.contents.ListOffsetArray) and layout.content.is_numpy:
        offsets = np.asarray(layout.offsets, dtype=np.int64)
        return Jagged(np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets))
    counts = np.asarray(awkward.to_numpy(awkward.num(array, axis=1)), dtype=np.int64)
    return Jagged(np.asarray(awkward.to_numpy(awkward.flatten(array, axis=1))), counts)


class _ParquetTable:
    """A Parquet file."""

    def __init__(self, path: str) -> None:
        from pyarrow import parquet

        self.path = path
        self._file = parquet.ParquetFile(path)
        self.names = tuple(str(name) for name in self._file.schema_arrow.names)
        self.n_rows: int | None = int(self._file.metadata.num_rows)

    def chunks(self, types: Mapping[str, ColumnType], rows: int, part: RowRange | None) -> Iterator[Columns]:
        sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        ends = np.cumsum(sizes)
        first, last = part or (0, int(sum(sizes)))
        groups = [n for n, size in enumerate(sizes) if ends[n] > first and ends[n] - size < last]
        done = int(ends[groups[0]] - sizes[groups[0]]) if groups else 0
        for batch in self._file.iter_batches(batch_size=rows, row_groups=groups, columns=list(types)):
            start, stop = max(first - done, 0), min(last - done, batch.num_rows)
            done += batch.num_rows
            if start < stop:
                yield _arrow_columns(batch.slice(start, stop - start), types)

    def close(self) -> None:
        self._file.close()


class _CsvTable:
    """Comma-separated values with a line of names, perhaps compressed. Blanks around names are ignored."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.names = _csv_header(path)
        self.n_rows: int | None = None

    def chunks(self, types: Mapping[str, ColumnType], rows: int, part: RowRange | None) -> Iterator[Columns]:
        assert part is None, "the rows of a CSV file are not known before it is read"
        arrow_types = self._arrow_types(types, rows)
        with self._naming_columns(), self._reader(arrow_types, rows) as reader:
            while (batch := self._next(reader)) is not None:
                for start in range(0, batch.num_rows, rows):
                    yield _arrow_columns(batch.slice(start, rows), types)

    def _arrow_types(self, types: Mapping[str, ColumnType], rows: int) -> dict[str, Any]:
        """Fixed types, since those guessed from the first block may not hold for the next one."""
        import pyarrow

        fixed: dict[str, Any] = {
            "real": pyarrow.float64(),
            "integer": pyarrow.int64(),
            "whole": pyarrow.int64(),
        }
        if "any" not in types.values():
            return {name: fixed[kind] for name, kind in types.items()}
        with self._reader(dict.fromkeys(types), rows) as reader:
            is_text = {name: pyarrow.types.is_string(reader.schema.field(name).type) for name in types}
        guessed = {name: pyarrow.string() if is_text[name] else pyarrow.float64() for name in types}
        return {name: fixed.get(kind, guessed[name]) for name, kind in types.items()}

    def _reader(self, arrow_types: Mapping[str, Any], rows: int) -> Any:
        from pyarrow import csv as arrow_csv

        low, high = CSV_BLOCK_BYTES
        read = arrow_csv.ReadOptions(
            column_names=list(self.names), skip_rows=1, block_size=min(max(rows * CSV_BYTES_A_ROW, low), high)
        )
        known = {name: kind for name, kind in arrow_types.items() if kind is not None}
        convert = arrow_csv.ConvertOptions(include_columns=list(arrow_types), column_types=known)
        return arrow_csv.open_csv(self.path, read_options=read, convert_options=convert)

    def _next(self, reader: Any) -> Any:
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None

    @contextmanager
    def _naming_columns(self) -> Iterator[None]:
        """Arrow counts columns; people name them."""
        try:
            yield
        except ValueError as error:
            number = re.search(r"column #(\d+)", str(error))
            if number is None:
                raise
            name = self.names[int(number.group(1))]
            raise InputError(f"{self.path}: column {name!r}: {error}") from error

    def close(self) -> None:
        """Nothing stays open between chunks."""


def _csv_header(path: str) -> tuple[str, ...]:
    import pyarrow

    with pyarrow.input_stream(path, compression="detect") as stream:
        first_line = stream.read(1 << 16).decode("utf-8-sig").partition("\n")[0].strip()
    if not first_line:
        raise InputError(f"{path}: is empty")
    names = tuple(name.strip() for name in next(csv.reader([first_line], skipinitialspace=True)))
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{path}: several columns are called {', '.join(map(repr, repeated))}")
    return names


def _arrow_columns(batch: Any, names: Sequence[str] | Mapping[str, ColumnType]) -> Columns:
    return {name: _arrow_column(batch.column(name)) for name in names}


def _arrow_column(array: Any) -> Column:
    import pyarrow

    if pyarrow.types.is_list(array.type) or pyarrow.types.is_large_list(array.type):
        counts = np.asarray(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
        return Jagged(np.asarray(array.flatten().to_numpy(zero_copy_only=False)), counts)
    if pyarrow.types.is_string(array.type) or pyarrow.types.is_large_string(array.type):
        return np.asarray(array.fill_null("").to_numpy(zero_copy_only=False), dtype=np.str_)
    return np.asarray(array.to_numpy(zero_copy_only=False))
