r"""The magnetic field along z as a map in r and z: from a file, or that of a solenoid.

Only :math:`B_z` is here: a track is a helix along z between two planes, which the other components would turn out of
itself. In a solenoid's middle they are small: :math:`B_r \approx -\tfrac{r}{2}\,dB_z/dz`.

Not for: how a field acts on a track (`musclecal.geometry.helix`).
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.records import FieldMap, Floats
from musclecal.store import written_atomically

__all__ = ["SOLENOID", "field_at", "read_field_map", "solenoid_field", "solenoid_map", "write_field_map"]

SOLENOID: Final = "solenoid 3.8 T"
"""Id of the map that `solenoid_map` makes."""

_FORMAT, _VERSION = "musclecal field map", 1
_STRONGEST = 30.0
"""T: beyond it a map is in gauss."""


def solenoid_field(
    r: Floats, z: Floats, *, centre: float = 3.8, radius: float = 300.0, length: float = 1250.0
) -> Floats:
    r"""B_z in T of a thin current sheet, near its axis; r, z, ``radius`` and ``length`` in cm, arrays of one shape.

    With :math:`f(x) = x/\sqrt{x^2 + R^2}` the field on the axis is :math:`b(z) \propto f(z + L/2) - f(z - L/2)`, and
    off the axis, from div B = curl B = 0, :math:`B_z = b - \tfrac{r^2}{4} b'' + O(r^4 b'''')`. ``centre`` (T) is that
    in the centre. The iron yoke of a real magnet makes its field more even than this.
    """
    scale = centre / (2.0 * _axis(0.5 * length, radius))
    z = np.asarray(z, dtype=np.float64)
    ends = (z + 0.5 * length, z - 0.5 * length)
    on_axis = _axis(ends[0], radius) - _axis(ends[1], radius)
    second = _axis_second(ends[0], radius) - _axis_second(ends[1], radius)
    return np.asarray(scale * (on_axis - 0.25 * np.asarray(r) ** 2 * second))


def _axis(x: Any, radius: float) -> Any:
    return x / np.sqrt(x * x + radius * radius)


def _axis_second(x: Floats, radius: float) -> Floats:
    """Second derivative of `_axis`."""
    return np.asarray(-3.0 * radius**2 * x * (x * x + radius * radius) ** -2.5)


def solenoid_map(r_max: float = 120.0, z_max: float = 300.0, step: float = 5.0) -> FieldMap:
    """`solenoid_field` as a map up to ``r_max`` and ``z_max``, every ``step`` (cm)."""
    r = np.linspace(0.0, r_max, round(r_max / step) + 1)
    z = np.linspace(-z_max, z_max, 2 * round(z_max / step) + 1)
    return FieldMap(SOLENOID, r, z, solenoid_field(*np.meshgrid(r, z, indexing="ij")))


def read_field_map(path: str | os.PathLike[str]) -> FieldMap:
    """A map from a JSON file: format, version, id, units ("cm", "T"), r (n_r,), z (n_z,) and b_z (n_r, n_z).

    Raises
    ------
    InputError : no such file, no such map, other units, a grid that does not rise, a field beyond 30 T.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{path}: not a field map: its key 'format' must be {_FORMAT!r}")
    if content.get("version") != _VERSION:
        raise InputError(f"{path}: version {content.get('version')!r}, this version reads {_VERSION}")
    if content.get("units") != {"length": "cm", "field": "T"}:
        raise InputError(f"{path}: units {content.get('units')!r}: lengths must be in cm and fields in T")
    missing = sorted({"id", "r", "z", "b_z"} - set(content))
    if missing:
        raise InputError(f"{path}: no key {missing[0]!r}")
    r, z, table = (_numbers(path, name, content[name]) for name in ("r", "z", "b_z"))
    for name, grid in (("r", r), ("z", z)):
        if grid.ndim != 1 or grid.size < 2 or not np.all(np.diff(grid) > 0.0):
            raise InputError(f"{path}: {name} must be a rising list of at least two numbers")
    if table.shape != (r.size, z.size):
        raise InputError(f"{path}: b_z has the shape {table.shape}, r and z say {(r.size, z.size)}")
    if np.abs(table).max() > _STRONGEST:
        raise InputError(f"{path}: b_z up to {np.abs(table).max():g}: is it in T?")
    return FieldMap(str(content["id"]), r, z, table)


def _numbers(path: str | os.PathLike[str], name: str, values: Any) -> Floats:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {name} does not hold numbers in rows of one length") from error
    if not np.all(np.isfinite(array)):
        raise InputError(f"{path}: {name} has a value that is not finite")
    return array


def write_field_map(path: str | os.PathLike[str], field_map: FieldMap) -> None:
    """Write what `read_field_map` reads, whole or not at all."""
    content = {
        "format": _FORMAT, "version": _VERSION, "id": field_map.id, "units": {"length": "cm", "field": "T"},
        "r": field_map.r.tolist(), "z": field_map.z.tolist(), "b_z": field_map.table.tolist(),
    }  # fmt: skip
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


@kernel
def field_at(r: float, z: float, r_grid: Floats, z_grid: Floats, table: Floats) -> float:
    """Bilinear in the map ``table`` (n_r, n_z); beyond its ends the value of the end."""
    i, along_r = _cell(r, r_grid)
    j, along_z = _cell(z, z_grid)
    inner = table[i, j] + along_z * (table[i, j + 1] - table[i, j])
    outer = table[i + 1, j] + along_z * (table[i + 1, j + 1] - table[i + 1, j])
    return float(inner + along_r * (outer - inner))


@kernel
def _cell(x: float, grid: Floats) -> tuple[int, float]:
    """The cell of an increasing grid and where in it, 0 to 1; looked for from where it is on an even grid."""
    last = grid.size - 2
    i = 0
    if x >= grid[last]:
        i = last
    elif x > grid[0]:
        i = min(int((x - grid[0]) / (grid[last] - grid[0]) * last), last)
        while x < grid[i]:
            i -= 1
        while x >= grid[i + 1]:
            i += 1
    return i, min(max((x - grid[i]) / (grid[i + 1] - grid[i]), 0.0), 1.0)
