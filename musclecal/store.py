"""Files between stages: one record (`musclecal.records`) a file, exact to the bit, or an error that says why.

A file is HDF5 behind a header of 512 bytes of text (HDF5 calls it a user block and skips it; ``head -5``
shows it) with the format version, the record's class name, the length and the SHA-256 of all that follows.
The checksum is verified before HDF5 reads anything. The same record gives the same bytes.

Inside, every field is a dataset or a group of its name with an attribute ``kind``: ``none``, ``bool``,
``int``, ``float``, ``str``, ``array`` (dtype kept), ``ints`` and ``floats`` (tuples), ``tuple``, ``mapping``,
or the class name of a nested record. Types come from the annotations of the dataclass.

Not for: tables that analysts read (`musclecal.export`), and not for arbitrary objects.
"""

import hashlib
import os
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote, unquote
from uuid import uuid4

import numpy as np

from musclecal.errors import InputError

__all__ = ["FORMAT", "load", "load_attributes", "save", "written_atomically"]

FORMAT = 1
"""Version of the file format; a file of another version is refused."""

_HEADER_SIZE = 512
_MAGIC = b"musclecal record file\n"
_MEND = "delete it, or rerun the stage that writes it with --force"
_COMPRESS_ABOVE = 4096

_Record = TypeVar("_Record")
_Fits = Callable[[Any], bool]
_SCALARS: dict[str, tuple[type, _Fits]] = {
    "bool": (np.bool_, lambda value: isinstance(value, bool | np.bool_)),
    "int": (np.int64, lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    "float": (np.float64, lambda value: isinstance(value, Real) and not isinstance(value, bool | np.bool_)),
}
_OTHERS: dict[str, type] = {"none": types.NoneType, "str": str, "tuple": tuple, "mapping": Mapping}
_TUPLES = {"ints": np.int64, "floats": np.float64}


@dataclass(frozen=True)
class _Node:
    """One value as it stands in the file: data without children, or children without data."""

    kind: str
    data: Any = None
    children: Mapping[str, "_Node"] = field(default_factory=dict)


def save(path: str | os.PathLike[str], record: Any, *, attributes: Mapping[str, str] | None = None) -> None:
    """Write a record to ``path``, whole or not at all: an existing file is replaced only when all is written.

    Parameters
    ----------
    record : a dataclass instance whose fields are None, bool, int, float, str, numeric arrays, records, or
        tuples and mappings (with str keys) of these.
    attributes : remarks on the file, read back by `load_attributes`.

    Raises
    ------
    TypeError : a field holds what its annotation does not say, or what cannot be stored.
    OverflowError : an int beyond 64 bits.
    InputError : the folder of ``path`` does not exist.
    """
    import h5py

    name = type(record).__name__
    content = _encode(record, type(record), name)
    remarks = _encode(dict(attributes or {}), Mapping[str, str], "attributes")
    with written_atomically(path) as temporary:
        options = {"libver": "earliest", "userblock_size": _HEADER_SIZE, "locking": False}
        with h5py.File(temporary, "w-", **options) as file:
            _write(file, "record", content)
            _write(file, "attributes", remarks)
        with open(temporary, "r+b") as raw:
            size, digest = _size_and_digest(raw)
            raw.seek(0)
            raw.write(_header(name, size, digest))


def load(path: str | os.PathLike[str], record_type: type[_Record]) -> _Record:
    """The record in ``path``, with every number as it was saved.

    Raises
    ------
    InputError : no such file; not a file of `save`; truncated or damaged; of another format version; with
        another record, or with other fields than ``record_type`` has today. The message names the file and
        says how to mend it.
    """
    _verify(path, record_type.__name__)
    record: _Record = _decode(_read_group(path, "record"), record_type, f"{path}: {record_type.__name__}")
    return record


def load_attributes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The ``attributes`` given to `save`. Raises InputError as `load` does, whatever the record."""
    _verify(path, None)
    return {name: str(node.data) for name, node in _read_group(path, "attributes").children.items()}


@contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; on success it is renamed to ``path``, else removed.

    Raises
    ------
    InputError : the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Values to nodes and back.


def _kind(hint: Any) -> str:
    """Kind of one member of a field's type, as stored in the file."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if hint is types.NoneType:
        return "none"
    if hint in (bool, int, float, str):
        return str(hint.__name__)
    if origin is Literal:
        return "str"
    if origin is np.ndarray:
        return "array"
    if origin is tuple:
        items = set(arguments) - {Ellipsis}
        return "floats" if items == {float} else "ints" if items == {int} else "tuple"
    if origin in (Mapping, dict):
        return "mapping"
    if isinstance(hint, type) and is_dataclass(hint):
        return hint.__name__
    raise TypeError(f"records with a field of type {hint} cannot be stored")


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    kind = _kind(hint)
    if kind in _SCALARS:
        return _SCALARS[kind][1](value)
    if kind in _TUPLES:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if kind == "array":
        return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    return isinstance(value, _OTHERS[kind]) if kind in _OTHERS else type(value) is hint


def _encode(value: Any, hint: Any, where: str) -> _Node:
    member = next((member for member in _members(hint) if _fits(value, member)), None)
    if member is None:
        raise TypeError(f"{where}: cannot store {type(value).__name__} {value!r:.60} as {hint}")
    kind = _kind(member)
    if kind in _SCALARS:
        return _Node(kind, np.array(value, dtype=_SCALARS[kind][0]))
    if kind in _TUPLES:
        return _Node(kind, np.array(value, dtype=_TUPLES[kind]))
    if kind in ("none", "str", "array"):
        return _Node(kind, value)
    parts = _parts(value, member, kind)
    return _Node(kind, None, {name: _encode(part, of, f"{where}.{name}") for name, part, of in parts})


def _parts(value: Any, hint: Any, kind: str) -> list[tuple[str, Any, Any]]:
    """(name, value, type) of the parts of a record, a mapping or a tuple."""
    if kind == "mapping":
        return [(name, part, get_args(hint)[1]) for name, part in value.items()]
    if kind == "tuple":
        return [(str(i), part, _item_type(hint, i)) for i, part in enumerate(value)]
    hints = get_type_hints(hint)
    return [(item.name, getattr(value, item.name), hints[item.name]) for item in fields(hint)]


def _item_type(hint: Any, i: int) -> Any:
    """Type of item ``i`` of ``tuple[X, ...]`` or ``tuple[X, Y]``."""
    arguments = get_args(hint)
    return arguments[0] if arguments[-1] is Ellipsis else arguments[i]


def _decode(node: _Node, hint: Any, where: str) -> Any:
    member = next((member for member in _members(hint) if _kind(member) == node.kind), None)
    if member is None:
        raise InputError(f"{where} is of kind {node.kind!r}, this version of musclecal reads {hint}; {_MEND}")
    if node.kind in _SCALARS:
        return node.data.item()
    if node.kind in _TUPLES:
        return tuple(node.data.tolist())
    if node.kind in ("none", "str", "array"):
        return node.data
    if node.kind == "mapping":
        of = get_args(member)[1]
        return {name: _decode(child, of, f"{where}.{name}") for name, child in node.children.items()}
    if node.kind == "tuple":
        numbers = range(len(node.children))
        return tuple(_decode(node.children[str(i)], _item_type(member, i), f"{where}[{i}]") for i in numbers)
    return _decode_record(node, member, where)


def _decode_record(node: _Node, record_type: Any, where: str) -> Any:
    expected, found = {item.name for item in fields(record_type)}, set(node.children)
    if expected != found:
        raise InputError(
            f"{where} was written by another version of musclecal: missing fields "
            f"{sorted(expected - found)}, unknown fields {sorted(found - expected)}; {_MEND}"
        )
    hints = get_type_hints(record_type)
    values = {name: _decode(child, hints[name], f"{where}.{name}") for name, child in node.children.items()}
    try:
        return record_type(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}; {_MEND}") from error


# Nodes to HDF5 and back.


def _write(group: Any, name: str, node: _Node) -> None:
    import h5py

    if node.data is None and node.kind != "none":
        item = group.create_group(_link(name))
        for child, content in node.children.items():
            _write(item, child, content)
    elif node.kind == "none":
        item = group.create_dataset(_link(name), data=h5py.Empty("f8"))
    else:
        large = np.size(node.data) >= _COMPRESS_ABOVE
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if large else {}
        item = group.create_dataset(_link(name), data=node.data, **options)
    item.attrs["kind"] = node.kind


def _read(item: Any) -> _Node:
    kind = str(item.attrs["kind"])
    if hasattr(item, "items"):
        return _Node(kind, None, {unquote(name): _read(child) for name, child in item.items()})
    if kind == "none":
        return _Node(kind)
    return _Node(kind, item.asstr()[()] if kind == "str" else np.asarray(item[()]))


def _link(name: str) -> str:
    """A name that HDF5 takes: it reads a slash as a folder, and a dot as the same folder."""
    if name in ("", "."):
        raise TypeError(f"cannot store something under the name {name!r}")
    return quote(name, safe="")


def _read_group(path: str | os.PathLike[str], name: str) -> _Node:
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read(file[name])
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error}); {_MEND}") from error


# The header.


def _header(record_name: str, size: int, digest: str) -> bytes:
    lines = f"format {FORMAT}\nrecord {record_name}\nlength {size}\nsha256 {digest}\n"
    return (_MAGIC + lines.encode()).ljust(_HEADER_SIZE, b"\0")


def _size_and_digest(file: IO[bytes]) -> tuple[int, str]:
    """Bytes after the header, and their SHA-256."""
    file.seek(_HEADER_SIZE)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return file.tell() - _HEADER_SIZE, digest


def _verify(path: str | os.PathLike[str], record_name: str | None) -> None:
    """Refuse a file that is not, from the first byte to the last, what `save` wrote for this record."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER_SIZE)
            size, digest = _size_and_digest(file)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run the stage that writes it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not header.startswith(_MAGIC):
        raise InputError(f"{path}: {_foreign(header)}, not a record file of musclecal; {_MEND}")
    stated = _stated(header)
    if stated.get("format") != str(FORMAT):
        raise InputError(f"{path}: format {stated.get('format')}, this version reads {FORMAT}; {_MEND}")
    if stated.get("length") != str(size):
        raise InputError(f"{path}: truncated or damaged, {size} of {stated.get('length')} bytes; {_MEND}")
    if header != _header(stated.get("record", ""), size, digest):
        raise InputError(f"{path}: damaged, its bytes do not match their checksum; {_MEND}")
    if record_name not in (None, stated["record"]):
        raise InputError(
            f"{path}: holds a {stated['record']}, not a {record_name}; give the right file, or {_MEND}"
        )


def _stated(header: bytes) -> dict[str, str]:
    """What the lines of the header say, by their first word."""
    lines = header[len(_MAGIC) :].rstrip(b"\0").decode("utf-8", "replace").splitlines()
    return {word: rest for word, _, rest in (line.partition(" ") for line in lines)}


def _foreign(header: bytes) -> str:
    if not header:
        return "an empty file"
    if header.startswith(b"\x89HDF"):
        return "an HDF5 file of another program"
    return f"a file that begins with {header[:12]!r}"
