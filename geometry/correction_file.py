"""Corrections of modules as a Parquet table: one row a parameter, with its unit in words.

Columns: ``module`` (id of the mechanical unit), ``type`` (u, v, u_stereo, field, material, w, gamma), ``value`` and
``sigma`` (cm, rad, or relative: metadata ``units``), ``uses``. What belongs to the fit as a whole stands in the
metadata, as JSON under ``musclecal``, with the number of rows; so `read_corrections` gives back what was written, to
the bit.

Not for: files between stages that only this package reads (`musclecal.store`).
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from musclecal.errors import InputError
from musclecal.geometry.file_headers import header_of
from musclecal.records import PARAMETER_TYPES, PARAMETER_UNITS, Floats, Ints, ModuleCorrections
from musclecal.store import written_atomically

__all__ = ["read_corrections", "start_values", "write_corrections"]

_FORMAT, _KEY = 1, "musclecal"
_NUMBERS = ("chi2", "ndf", "prior_chi2", "n_pairs", "iterations", "residual")
_WORDS = ("sigma_is", "detector")
_KEYS: Final[Mapping[str, tuple[str, bool]]] = {
    "module_ids": ("integer", True), "uses": ("integer", True), "n_slots": ("integer", False),
    "n_rows": ("integer", False), "modes": ("object", False), **dict.fromkeys(_NUMBERS, ("number", False)),
    "n_pairs": ("integer", False), "iterations": ("integer", False), **dict.fromkeys(_WORDS, ("text", False)),
}  # fmt: skip
"""What each key of the header holds, and whether it is a list of these."""
_MODE_KEYS: Final[Mapping[str, tuple[str, bool]]] = {
    "name": ("text", True), "amplitude": ("number", True), "sigma": ("number", True),
}  # fmt: skip
_JSON: Final[Mapping[str, tuple[type, ...]]] = {
    "integer": (), "number": (float,), "text": (str,), "object": (dict,),
}  # fmt: skip
"""Types that a value may have beside int."""
_SLOTS = (4, 6)
_COLUMNS = ("module", "type", "value", "sigma", "uses")


def write_corrections(
    path: str | os.PathLike[str], corrections: ModuleCorrections, unit_ids: Ints | None = None
) -> None:
    """Write the parameters in use, whole or not at all.

    Parameters
    ----------
    unit_ids : (n_units,) what the modules are called; their numbers by default.

    Raises
    ------
    InputError : the folder does not exist, or ids that are not one for each unit.
    """
    import pyarrow as pa
    from pyarrow import parquet

    n_units, n_slots = corrections.values.shape
    ids = np.arange(n_units, dtype=np.int64) if unit_ids is None else np.asarray(unit_ids, dtype=np.int64)
    if ids.shape != (n_units,) or len(np.unique(ids)) != n_units:
        raise InputError(f"{path}: {len(ids)} module ids, not all different, for {n_units} units")
    unit, slot = np.nonzero(corrections.kinds)
    about = {
        "format": _FORMAT,
        "module_ids": ids.tolist(),
        "n_slots": n_slots,
        "n_rows": len(unit),
        "uses": corrections.uses.tolist(),
        "modes": {
            "name": list(corrections.mode_names),
            "amplitude": corrections.amplitudes.tolist(),
            "sigma": corrections.amplitude_sigma.tolist(),
        },
        **{name: getattr(corrections, name) for name in _NUMBERS + _WORDS},
    }
    columns = {
        "module": ids[unit],
        "type": np.array(PARAMETER_TYPES)[corrections.kinds[unit, slot]].tolist(),
        "value": corrections.values[unit, slot],
        "sigma": corrections.sigma[unit, slot],
        "uses": corrections.uses[unit],
    }
    metadata = {_KEY: json.dumps(about), "units": json.dumps(PARAMETER_UNITS)}
    table = pa.table(columns).replace_schema_metadata(metadata)
    with written_atomically(path) as temporary:
        parquet.write_table(table, temporary)


def read_corrections(path: str | os.PathLike[str]) -> tuple[ModuleCorrections, Ints]:
    """The corrections in a file of `write_corrections`, and the ids of the units (n_units,).

    Raises
    ------
    InputError : no such file, or not one of these; a header without what it must say; rows that are missing, that do
        not belong to its modules, or whose value or error is no number.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(os.fspath(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from error
    missing = sorted(set(_COLUMNS) - set(table.column_names))
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}, not a file of module corrections")
    about = header_of(path, _KEY)
    _check_keys(path, about)
    _refuse_missing_rows(path, table.num_rows, about["n_rows"])
    ids = np.array(about["module_ids"], dtype=np.int64)
    unit, slot, kind = _places(path, table, ids, about["n_slots"])
    values, sigma = (np.zeros((len(ids), about["n_slots"])) for _ in range(2))
    kinds = np.zeros(values.shape, dtype=np.int8)
    values[unit, slot] = _numbers(path, table, "value")
    sigma[unit, slot] = _numbers(path, table, "sigma")
    kinds[unit, slot] = kind
    modes = about["modes"]
    corrections = ModuleCorrections(
        values=values,
        sigma=sigma,
        kinds=kinds,
        uses=np.array(about["uses"], dtype=np.int64),
        mode_names=tuple(modes["name"]),
        amplitudes=np.array(modes["amplitude"], dtype=np.float64),
        amplitude_sigma=np.array(modes["sigma"], dtype=np.float64),
        **{name: about[name] for name in _NUMBERS + _WORDS},
    )
    return corrections, ids


def start_values(path: str | os.PathLike[str], fingerprint: str, shape: tuple[int, int]) -> Floats:
    """(n_units, P) values in a file of `write_corrections`, at which a fit may begin.

    Parameters
    ----------
    fingerprint : of the detector that they must belong to (`musclecal.geometry.module_fit.detector_fingerprint`).
    shape : n_units, P.

    Raises
    ------
    InputError : as `read_corrections`; corrections of another detector, or of another number of parameters.
    """
    found, _ = read_corrections(path)
    if found.detector != fingerprint or found.values.shape != shape:
        raise InputError(
            f"{path}: {found.values.shape} corrections of {found.detector!r}, not {shape} of {fingerprint!r}"
        )
    return found.values


def _check_keys(path: str | os.PathLike[str], header: dict[str, Any]) -> None:
    """Refuse a header without what `read_corrections` takes from it."""
    if header.get("format") != _FORMAT:
        raise InputError(f"{path}: format {header.get('format')}, this version reads {_FORMAT}")
    _check_kinds(path, header, _KEYS)
    _check_kinds(path, header["modes"], _MODE_KEYS, "modes.")
    n_units, lengths = len(header["module_ids"]), {len(header["modes"][key]) for key in _MODE_KEYS}
    if n_units == 0 or len(set(header["module_ids"])) != n_units or len(header["uses"]) != n_units:
        raise InputError(
            f"{path}: the header has {n_units} module_ids, which must differ, and {len(header['uses'])} uses"
        )
    if header["n_slots"] not in _SLOTS or len(lengths) != 1:
        raise InputError(f"{path}: n_slots {header['n_slots']}, or modes of different lengths, in the header")


def _check_kinds(
    path: str | os.PathLike[str],
    header: dict[str, Any],
    keys: Mapping[str, tuple[str, bool]],
    inside: str = "",
) -> None:
    for key, (kind, is_list) in keys.items():
        found = header.get(key)
        items = found if is_list and isinstance(found, list) else [found]
        if isinstance(found, list) != is_list or not all(_is(item, kind) for item in items):
            what = f"a list of {kind}s" if is_list else f"one {kind}"
            raise InputError(f"{path}: the header's key {inside + key!r} is missing, or is not {what}")


def _is(value: object, kind: str) -> bool:
    """Whether a value of JSON is a number, integer (of 64 bits), text or object; true and false are no numbers."""
    if isinstance(value, int):
        return kind in ("integer", "number") and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, _JSON[kind])


def _refuse_missing_rows(path: str | os.PathLike[str], n_rows: int, written: int) -> None:
    if n_rows != written:
        missing = f", {written - n_rows:,} are missing" if n_rows < written else ""
        raise InputError(f"{path}: {n_rows:,} rows, but {written:,} parameters were written{missing}")


def _numbers(path: str | os.PathLike[str], table: Any, name: str) -> Floats:
    """(n_row,) a column of finite numbers."""
    stated = table[name].to_pylist()
    values = np.array([value if _is(value, "number") else np.nan for value in stated], dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        at = int(wrong[0])
        raise InputError(
            f"{path}: {name} {stated[at]!r} of module {table['module'][at]}: must be a finite number"
        )
    return values


def _places(path: str | os.PathLike[str], table: Any, ids: Ints, n_slots: int) -> tuple[Ints, Ints, Ints]:
    """Unit, slot and number of the type of each row."""
    order = np.argsort(ids)
    modules = table["module"].to_numpy()
    if modules.dtype.kind not in "iu":
        raise InputError(f"{path}: column 'module' has something else than whole numbers")
    found = np.minimum(np.searchsorted(ids[order], modules), len(ids) - 1)
    unit = order[found]
    if np.any(ids[unit] != modules):
        raise InputError(f"{path}: module {modules[ids[unit] != modules][0]} is not one of its detector")
    types = table["type"].to_pylist()
    unknown = sorted(set(types) - set(PARAMETER_TYPES[1:]), key=str)
    if unknown:
        raise InputError(
            f"{path}: parameters of type {unknown[0]!r}, known are {', '.join(PARAMETER_TYPES[1:])}"
        )
    kind = np.array([PARAMETER_TYPES.index(name) for name in types], dtype=np.int64)
    slot = np.array([0, 0, 1, 1, 2, 3, 4, 5])[kind]
    if np.any(slot >= n_slots) or len(np.unique(unit * n_slots + slot)) != len(unit):
        raise InputError(f"{path}: a parameter stands there twice, or in a slot that its units do not have")
    return unit, slot, kind
