"""The figure of the corrections of modules: what each layer needs, and how structures have moved as a whole."""

import os
from typing import TYPE_CHECKING

import numpy as np

from musclecal.records import PARAMETER_TYPES, Detector, Ints, ModuleCorrections
from musclecal.validation.plot_style import BAND, DATA, FIT, figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_module_corrections", "significant_modes"]

_MODES = 12
_MICROMETRES = 1e4


def significant_modes(corrections: ModuleCorrections, most: int = 10) -> list[int]:
    """Numbers of the modes with the largest amplitude over its error, largest first."""
    c = corrections
    known = c.amplitude_sigma > 0.0
    size = np.abs(c.amplitudes) / np.where(known, c.amplitude_sigma, 1.0)
    return [int(k) for k in np.argsort(-np.where(known, size, -1.0), kind="stable")[:most] if known[k]]


def plot_module_corrections(
    corrections: ModuleCorrections, detector: Detector, path: str | os.PathLike[str], *, pdf: bool = False
) -> None:
    """Left: u, field and material of the units of each layer. Right: the most significant modes."""
    first = np.flatnonzero(detector.side == 0)
    layer = np.zeros(detector.n_units, dtype=np.int64)
    layer[detector.unit[first]] = detector.layer[first]
    with figure_file(path, 13.0, 7.5, pdf) as figure:
        grid = figure.add_gridspec(3, 2, width_ratios=(1.5, 1.0))
        panels = (
            ("u", r"$u$  [$\mu$m]", _MICROMETRES),
            ("field", r"$\delta B/B$  [$10^{-3}$]", 1e3),
            ("material", "material  [%]", 1e2),
        )
        for row, (name, label, unit) in enumerate(panels):
            axis = figure.add_subplot(grid[row, 0])
            _draw_layers(axis, corrections, layer, name, unit)
            axis.set_ylabel(label)
            axis.set_xlim(-0.7, detector.n_layers - 0.3)
            names = detector.layer_names if row == 2 else [""] * detector.n_layers
            few = detector.n_layers <= 24
            axis.set_xticks(range(detector.n_layers), names if few else [""] * detector.n_layers, rotation=60)
            axis.tick_params(axis="x", which="minor", bottom=False, top=False)
            if row == 2 and not few:
                axis.set_xlabel("layer")
            if row == 0:
                axis.legend(ncols=2, fontsize=10.5)
        is_field = [name.startswith(("field", "material")) for name in corrections.mode_names]
        chosen = significant_modes(corrections, len(corrections.mode_names))
        moved = [k for k in chosen if not is_field[k]][:_MODES]
        changed = [k for k in chosen if is_field[k]][: _MODES // 2]
        for place, modes, unit, label in (
            (grid[:2, 1], moved, _MICROMETRES, r"largest displacement  [$\mu$m]"),
            (grid[2, 1], changed, 1e3, r"largest $\delta B/B$, material  [$10^{-3}$]"),
        ):
            _draw_modes(figure.add_subplot(place), corrections, modes, unit, label)


def _draw_layers(axis: "Axes", c: ModuleCorrections, layer: Ints, name: str, unit: float) -> None:
    number = PARAMETER_TYPES.index(name)
    units, slots = np.nonzero((c.kinds == number) & (c.uses > 0)[:, None])
    values, at = unit * c.values[units, slots], layer[units]
    order = np.argsort(at, kind="stable")
    # Units side by side within the width of their layer.
    _, starts, counts = np.unique(at[order], return_index=True, return_counts=True)
    within = np.arange(len(at)) - np.repeat(starts, counts)
    spread = 0.6 * ((within + 0.5) / np.repeat(counts, counts) - 0.5)
    axis.plot(at[order] + spread, values[order], ".", ms=2.5, color=BAND, label="units", zorder=1)
    for n, (layer_number, start, count) in enumerate(
        zip(np.unique(at), np.asarray(starts), np.asarray(counts), strict=True)
    ):
        here = values[order][start : start + count]
        label = "mean and rms" if n == 0 else None
        axis.errorbar(
            layer_number, here.mean(), here.std(), fmt="o", ms=4.5, color=DATA, label=label, zorder=3
        )
    axis.axhline(0.0, color="0.6", lw=0.8, zorder=0)


def _draw_modes(axis: "Axes", c: ModuleCorrections, modes: list[int], unit: float, label: str) -> None:
    rows = np.arange(len(modes))
    axis.errorbar(
        unit * c.amplitudes[modes], rows, xerr=unit * c.amplitude_sigma[modes], fmt="o", ms=4.5, color=FIT
    )
    axis.set_yticks(rows, [c.mode_names[k] for k in modes], fontsize=10.5)
    axis.tick_params(axis="y", which="minor", left=False, right=False)
    axis.set_ylim(len(modes) - 0.4, -0.6)
    axis.axvline(0.0, color="0.6", lw=0.8, zorder=0)
    axis.set_xlabel(label)
