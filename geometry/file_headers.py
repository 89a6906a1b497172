"""Headers of the files of detectors, hits and corrections: JSON in the metadata of Parquet, and what all of them state.

Not for: what stands in one kind of file only (`detector_files`, `hit_files`, `correction_file`).
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from musclecal.errors import InputError

__all__ = ["CENTIMETRES", "centimetres_of", "check_format", "header_of"]

CENTIMETRES: Final[Mapping[str, float]] = {"cm": 1.0, "mm": 0.1, "m": 100.0, "um": 1e-4}
"""cm of each unit of length that a file may use."""


def header_of(path: str | os.PathLike[str], key: str) -> dict[str, Any]:
    """The header under ``key`` in the metadata of a Parquet file.

    Raises
    ------
    InputError : the file cannot be read, has no such key, or something else there than a JSON object.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        stated = (parquet.read_schema(os.fspath(path)).metadata or {}).get(key.encode())
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from error
    if stated is None:
        raise InputError(f"{path}: no header {key!r} in the metadata")
    try:
        header = json.loads(stated)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header {key!r} in the metadata is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header {key!r} in the metadata is not a JSON object")
    return header


def check_format(path: str | os.PathLike[str], header: Mapping[str, Any], name: str, version: int) -> None:
    """Raises InputError where ``format`` and ``version`` of a header are others."""
    if header.get("format") != name:
        raise InputError(f"{path}: the key 'format' must be {name!r}, not {header.get('format')!r}")
    if header.get("version") != version:
        raise InputError(f"{path}: version {header.get('version')!r}, this version reads {version}")


def centimetres_of(path: str | os.PathLike[str], header: Mapping[str, Any]) -> float:
    """cm of the unit of length that a header states. Raises InputError where it states none that is known."""
    units = header.get("units")
    unit = units.get("length") if isinstance(units, dict) else None
    if not isinstance(unit, str) or unit not in CENTIMETRES:
        raise InputError(f"{path}: units {units!r}: length must be one of {', '.join(CENTIMETRES)}")
    return CENTIMETRES[unit]
