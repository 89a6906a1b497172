"""Corrections of modules as a Parquet table: one row a parameter, with its unit in words.

Columns: ``module`` (id of the mechanical unit), ``type`` (u, v, u_stereo, field, material, w, gamma), ``value`` and
``sigma`` (cm, rad, or relative: metadata ``units``), ``uses``. What belongs to the fit as a whole stands in the
metadata, as JSON under ``musclecal``; so `read_corrections` gives back what was written, to the bit.

Not for: files between stages that only this package reads (`musclecal.store`).
"""

import json
import os
from typing import Any

import numpy as np

from musclecal.errors import InputError
from musclecal.records import PARAMETER_TYPES, PARAMETER_UNITS, Ints, ModuleCorrections
from musclecal.store import written_atomically

__all__ = ["read_corrections", "write_corrections"]

_FORMAT = 1
_NUMBERS = ("chi2", "ndf", "prior_chi2", "n_pairs", "iterations", "residual")
_WORDS = ("sigma_is", "detector")
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
    metadata = {"musclecal": json.dumps(about), "units": json.dumps(PARAMETER_UNITS)}
    table = pa.table(columns).replace_schema_metadata(metadata)
    with written_atomically(path) as temporary:
        parquet.write_table(table, temporary)


def read_corrections(path: str | os.PathLike[str]) -> tuple[ModuleCorrections, Ints]:
    """The corrections in a file of `write_corrections`, and the ids of the units (n_units,).

    Raises
    ------
    InputError : no such file, or not one of these, or rows that do not belong to its modules.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(os.fspath(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from error
    missing = sorted(set(_COLUMNS) - set(table.column_names))
    text = (table.schema.metadata or {}).get(b"musclecal")
    if missing or text is None:
        what = f"no column {missing[0]!r}" if missing else "no metadata of musclecal"
        raise InputError(f"{path}: {what}, not a file of module corrections")
    about: dict[str, Any] = json.loads(text)
    if about.get("format") != _FORMAT:
        raise InputError(f"{path}: format {about.get('format')}, this version reads {_FORMAT}")
    ids = np.array(about["module_ids"], dtype=np.int64)
    unit, slot, kind = _places(path, table, ids, about["n_slots"])
    values, sigma = (np.zeros((len(ids), about["n_slots"])) for _ in range(2))
    kinds = np.zeros(values.shape, dtype=np.int8)
    values[unit, slot] = table["value"].to_numpy()
    sigma[unit, slot] = table["sigma"].to_numpy()
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


def _places(path: str | os.PathLike[str], table: Any, ids: Ints, n_slots: int) -> tuple[Ints, Ints, Ints]:
    """Unit, slot and number of the type of each row."""
    order = np.argsort(ids)
    modules = table["module"].to_numpy()
    found = np.minimum(np.searchsorted(ids[order], modules), len(ids) - 1)
    unit = order[found]
    if np.any(ids[unit] != modules):
        raise InputError(f"{path}: module {modules[ids[unit] != modules][0]} is not one of its detector")
    types = table["type"].to_pylist()
    unknown = sorted(set(types) - set(PARAMETER_TYPES[1:]))
    if unknown:
        raise InputError(
            f"{path}: parameters of type {unknown[0]!r}, known are {', '.join(PARAMETER_TYPES[1:])}"
        )
    kind = np.array([PARAMETER_TYPES.index(name) for name in types], dtype=np.int64)
    slot = np.array([0, 0, 1, 1, 2, 3, 4, 5])[kind]
    if np.any(slot >= n_slots) or len(np.unique(unit * n_slots + slot)) != len(unit):
        raise InputError(f"{path}: a parameter stands there twice, or in a slot that its units do not have")
    return unit, slot, kind
