"""The magnetic field along z as a map in r and z."""

import numpy as np

from musclecal.compiled import kernel
from musclecal.records import Floats

__all__ = ["field_at"]


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
    """The cell of an increasing grid and where in it, 0 to 1."""
    i = min(max(np.searchsorted(grid, x, side="right") - 1, 0), grid.size - 2)
    return i, min(max((x - grid[i]) / (grid[i + 1] - grid[i]), 0.0), 1.0)
