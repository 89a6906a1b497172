"""Descriptions of detectors: a Parquet table of sensors with a header in its metadata, or both in one JSON file.

Header: ``format`` "musclecal detector", ``version`` 1, ``name``, ``field_map`` (id), ``layers`` (names) and ``units``,
such as {"length": "cm", "mass_thickness": "g/cm2"}; lengths in mm or m are converted. Columns of the table, one row a
sensor: `COLUMNS`; ``module`` numbers the rows 0 to n - 1, in any order; ``sigma_v`` is empty where v is not measured.

Not for: hits (`musclecal.geometry.hit_files`).
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from musclecal.columnar import Columns, Jagged, open_table
from musclecal.errors import InputError
from musclecal.geometry.file_headers import centimetres_of, check_format, header_of
from musclecal.records import Detector, Floats
from musclecal.store import written_atomically

__all__ = ["COLUMNS", "read_detector", "write_detector"]

_FORMAT, _VERSION, _KEY = "musclecal detector", 1, "musclecal detector"

_WHOLE = ("module", "layer", "unit", "side", "measures_v")
_LENGTHS = ("x", "y", "z", "half_u", "half_v", "sigma_u", "sigma_v")
_AXES = tuple(f"{axis}{c}" for axis in "uvw" for c in "xyz")
COLUMNS: Final = (*_WHOLE, *_LENGTHS, *_AXES, "radiation_lengths", "mass_thickness")
"""Columns of a description."""

_FARTHEST, _LARGEST, _SMALLEST = 700.0, 30.0, 0.02
"""cm: centres of sensors are nearer, the typical sensor is smaller and larger than that from its centre to its edge."""
_MOST = 2**31
"""Whole numbers are less, as the record holds them."""
_SQUARE = 1e-6


def write_detector(path: str | os.PathLike[str], detector: Detector) -> None:
    """Write ``detector`` to a .parquet or .json file, whole or not at all.

    Raises
    ------
    InputError : another ending, or no such folder.
    """
    columns, header = _columns_of(detector), _header_of(detector)
    ending = Path(path).suffix
    if ending not in (".parquet", ".json"):
        raise InputError(f"{path}: a detector is written to .parquet or .json")
    with written_atomically(path) as temporary:
        if ending == ".json":
            rows = {
                name: [x if np.isfinite(x) else None for x in values.tolist()]
                for name, values in columns.items()
            }
            temporary.write_text(json.dumps({**header, "sensors": rows}), encoding="utf-8")
        else:
            import pyarrow
            from pyarrow import parquet

            table = pyarrow.table(dict(columns))
            parquet.write_table(table.replace_schema_metadata({_KEY: json.dumps(header)}), temporary)


def _header_of(detector: Detector) -> dict[str, Any]:
    return {
        "format": _FORMAT, "version": _VERSION, "name": detector.name, "field_map": detector.field_map,
        "units": {"length": "cm", "mass_thickness": "g/cm2"}, "layers": list(detector.layer_names),
    }  # fmt: skip


def _columns_of(d: Detector) -> dict[str, NDArray[np.generic]]:
    vectors = {"": d.centre, "u": d.u, "v": d.v, "w": d.w}
    columns: dict[str, NDArray[np.generic]] = {
        "module": np.arange(len(d), dtype=np.int32), "layer": d.layer, "unit": d.unit, "side": d.side,
        "measures_v": d.measures_v.astype(np.int8), "half_u": d.half_u, "half_v": d.half_v, "sigma_u": d.sigma_u,
        "sigma_v": d.sigma_v, "radiation_lengths": d.radiation_lengths, "mass_thickness": d.mass_thickness,
    }  # fmt: skip
    columns |= {f"{name}{c}": rows[:, i] for name, rows in vectors.items() for i, c in enumerate("xyz")}
    return {name: columns[name] for name in COLUMNS}


def read_detector(path: str | os.PathLike[str]) -> Detector:
    """The detector in a .parquet or .json file.

    Raises
    ------
    InputError : the file is missing or something else; unknown units; sizes that fit another unit than that stated; a
        column is missing, or has values that cannot be; axes that are not orthonormal and right-handed; module numbers
        that repeat; unit numbers that leave one out.
    """
    header, columns = _read_json(path) if str(path).endswith(".json") else _read_parquet(path)
    lengths = _check_header(path, header)
    _check_whole(path, columns)
    order = _order(path, columns["module"])
    columns = {name: values[order] for name, values in columns.items()}
    for name in _LENGTHS:
        columns[name] = columns[name] * lengths
    whole = {name: columns[name].astype(np.int64) for name in _WHOLE}
    vectors = {axis: np.stack([columns[f"{axis}{c}"] for c in "xyz"], axis=1) for axis in ("", "u", "v", "w")}
    measures_v = whole["measures_v"] != 0
    detector = Detector(
        str(header["name"]), str(header["field_map"]), tuple(str(name) for name in header["layers"]),
        whole["layer"].astype(np.int32), whole["unit"].astype(np.int32), whole["side"].astype(np.int8), measures_v,
        vectors[""], vectors["u"], vectors["v"], vectors["w"], columns["half_u"], columns["half_v"],
        columns["sigma_u"], np.where(measures_v, columns["sigma_v"], np.inf), columns["radiation_lengths"],
        columns["mass_thickness"],
    )  # fmt: skip
    _check_numbers(path, detector)
    _check_axes(path, detector)
    _check_units(path, detector)
    _check_sizes(path, detector, str(header["units"]["length"]))
    return detector


def _read_json(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Floats]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("sensors"), dict):
        raise InputError(f"{path}: not a description of a detector: no table 'sensors'")
    rows = content.pop("sensors")
    _check_names(path, tuple(rows))
    try:
        columns = {name: np.array(rows[name], dtype=np.float64) for name in COLUMNS}
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a column of 'sensors' does not hold numbers ({error})") from error
    lengths = {name: values.shape for name, values in columns.items()}
    for name, shape in lengths.items():
        if len(shape) != 1 or shape != lengths["module"]:
            raise InputError(
                f"{path}: column {name!r} has the shape {shape}, 'module' has {lengths['module']}"
            )
    return content, columns


def _read_parquet(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Floats]]:
    if not str(path).endswith(".parquet"):
        raise InputError(f"{path}: a detector is read from .parquet or .json")
    with open_table(str(path)) as table:
        _check_names(path, table.names)
        header = header_of(path, _KEY)
        chunks = list(table.chunks(dict.fromkeys(COLUMNS, "real"), 1 << 20))
    return header, {name: _column(path, name, chunks) for name in COLUMNS}


def _column(path: str | os.PathLike[str], name: str, chunks: Iterable[Columns]) -> Floats:
    parts = [np.zeros(0)]
    for chunk in chunks:
        column = chunk[name]
        if isinstance(column, Jagged):
            raise InputError(f"{path}: column {name!r} has lists, it needs one value a sensor")
        parts.append(np.asarray(column, dtype=np.float64))
    return np.concatenate(parts)


def _check_names(path: str | os.PathLike[str], names: tuple[str, ...]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; a detector has {', '.join(COLUMNS)}")


def _check_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> float:
    """cm of the unit of length."""
    check_format(path, header, _FORMAT, _VERSION)
    missing = [key for key in ("name", "field_map", "units", "layers") if key not in header]
    if missing:
        raise InputError(f"{path}: the header has no key {missing[0]!r}")
    lengths, units = centimetres_of(path, header), header["units"]
    if units.get("mass_thickness") != "g/cm2":
        raise InputError(f"{path}: units {units!r}: mass_thickness must be in g/cm2")
    if not isinstance(header["layers"], list) or not header["layers"]:
        raise InputError(f"{path}: the header's 'layers' must be a list of names")
    return lengths


def _check_whole(path: str | os.PathLike[str], columns: Mapping[str, Floats]) -> None:
    for name in _WHOLE:
        values = columns[name]
        wrong = ~((np.abs(values) < _MOST) & (values == np.rint(values)))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{path}: column {name!r} must hold whole numbers, {values[at]:g} stands in row {at} (nan: empty)"
            )


def _order(path: str | os.PathLike[str], module: Floats) -> NDArray[np.int64]:
    """The rows by module number."""
    order = np.argsort(module, kind="stable")
    if not len(order):
        raise InputError(f"{path}: no sensors")
    wrong = np.flatnonzero(module[order] != np.arange(len(module)))
    if len(wrong):
        value = module[order][wrong[0]]
        twice = np.count_nonzero(module == value) > 1
        raise InputError(
            f"{path}: column 'module' must hold each of 0 to {len(module) - 1} once, {value:g} "
            + ("is there twice" if twice else f"stands where {wrong[0]} should")
        )
    return order


def _check_numbers(path: str | os.PathLike[str], d: Detector) -> None:
    positive = {"half_u": d.half_u, "half_v": d.half_v, "sigma_u": d.sigma_u, "sigma_v": d.sigma_v}
    rest = {"centre": d.centre, "radiation_lengths": d.radiation_lengths, "mass_thickness": d.mass_thickness}
    wrong: dict[str, NDArray[np.bool_]] = {name: ~(values > 0.0) for name, values in positive.items()}
    wrong["sigma_u"] |= np.isinf(d.sigma_u)
    wrong["sigma_v"] |= d.measures_v & np.isinf(d.sigma_v)
    wrong |= {name: ~np.all(np.isfinite(values.reshape(len(d), -1)), axis=1) for name, values in rest.items()}
    wrong["radiation_lengths"] |= d.radiation_lengths < 0.0
    wrong["mass_thickness"] |= d.mass_thickness < 0.0
    wrong["layer"] = (d.layer < 0) | (d.layer >= d.n_layers)
    wrong["side"] = (d.side < 0) | (d.side > 1)
    for name, rows in wrong.items():
        if rows.any():
            raise InputError(f"{path}: {name} of module {np.argmax(rows)} cannot be")


def _check_axes(path: str | os.PathLike[str], d: Detector) -> None:
    axes = np.stack([d.u, d.v, d.w], axis=1)
    off = np.abs(axes @ axes.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    left = ~(np.einsum("ij,ij->i", np.cross(d.u, d.v), d.w) > 0.0)
    wrong = ~(off < _SQUARE) | left
    if wrong.any():
        raise InputError(
            f"{path}: the axes u, v, w of module {np.argmax(wrong)} are not orthonormal and right-handed"
        )


def _check_units(path: str | os.PathLike[str], d: Detector) -> None:
    if d.unit.min() < 0:
        raise InputError(f"{path}: module {np.argmin(d.unit)} has the unit {d.unit.min()}")
    used = np.unique(d.unit)
    if len(used) != d.n_units:
        hole = np.setdiff1d(np.arange(len(used)), used)[0]
        raise InputError(f"{path}: units must be numbered without holes, there is no unit {hole}")
    of_side = np.bincount(2 * d.unit.astype(np.int64) + d.side, minlength=2 * d.n_units).reshape(-1, 2)
    wrong = (of_side[:, 0] != 1) | (of_side[:, 1] > 1)
    if wrong.any():
        raise InputError(
            f"{path}: unit {np.argmax(wrong)} must have one sensor of side 0 and at most one of side 1"
        )
    first = np.full(d.n_units, -1)
    first[d.unit[d.side == 0]] = d.layer[d.side == 0]
    if np.any(first[d.unit] != d.layer):
        raise InputError(f"{path}: unit {d.unit[np.argmax(first[d.unit] != d.layer)]} stands in two layers")


def _check_sizes(path: str | os.PathLike[str], d: Detector, unit: str) -> None:
    farthest = np.linalg.norm(d.centre, axis=1).max()
    typical = float(np.median(np.maximum(d.half_u, d.half_v)))
    if farthest > _FARTHEST or not _SMALLEST < typical < _LARGEST:
        raise InputError(
            f"{path}: sensors of half size {typical:g} cm, up to {farthest:g} cm away: are lengths in {unit}?"
        )
