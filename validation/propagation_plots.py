"""Figure of what each calibration uncertainty does to a boson mass: records in, a PNG (and a PDF by option) out.

Style and colours are those of `musclecal.validation.plots`; nothing is refitted here.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from musclecal.errors import InputError
from musclecal.records import MassImpacts
from musclecal.validation.plot_style import BACKGROUND, BAND, FIT, PAST, figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_mass_impacts"]

_KINDS = (
    ("unprofiled", "calibration fixed in the fit", BAND),
    ("frozen", "nuisances in the fit, conditional", FIT),
    ("constrained", "nuisances in the fit, from their constraints", BACKGROUND),
)


def plot_mass_impacts(
    impacts: MassImpacts | Sequence[MassImpacts], path: str | os.PathLike[str], *, pdf: bool = False
) -> None:
    """Bars in MeV per source and for all together, one panel per mass; the statistical error as a line.

    Raises
    ------
    InputError : no impacts, or of different sources; a path that does not end in .png.
    """
    records = [impacts] if isinstance(impacts, MassImpacts) else list(impacts)
    if not records or any(record.sources != records[0].sources for record in records):
        raise InputError("mass impacts: need one or several of the same sources")
    for record in records:
        if not np.all(np.isfinite([record.unprofiled, record.frozen, record.constrained])):
            raise InputError(f"mass impacts: m_{record.boson} has an impact that is not finite")
    n_rows = len(records[0].sources) + 1
    with figure_file(path, 7.5, 1.2 + len(records) * (0.9 + 0.62 * n_rows), pdf) as figure:
        axes = figure.subplots(len(records), 1, squeeze=False)[:, 0]
        for axis, record in zip(axes, records, strict=True):
            _draw_bars(axis, record)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=10.5)


def _draw_bars(axis: "Axes", impacts: MassImpacts) -> None:
    rows = np.arange(len(impacts.sources) + 1)[::-1]
    largest = 0.0
    for offset, (field, label, colour) in zip((0.27, 0.0, -0.27), _KINDS, strict=True):
        values = np.append(getattr(impacts, field), getattr(impacts, f"{field}_total"))
        axis.barh(rows + offset, values, height=0.25, color=colour, label=label)
        largest = max(largest, float(values.max()))
        for row, value in zip(rows, values, strict=True):
            axis.annotate(
                f"{value:.1f}" if value >= 0.95 else f"{value:.2f}", (value, row + offset), (4.0, 0.0),
                textcoords="offset points", va="center", fontsize=9.5,
            )  # fmt: skip
    axis.axvline(
        impacts.statistical,
        color=PAST,
        ls="--",
        lw=1.4,
        label=f"statistics, {impacts.luminosity:g} fb$^{{-1}}$",
    )
    axis.axhline(0.5, color=PAST, lw=0.8)
    counts = [*impacts.n_nuisances, sum(impacts.n_nuisances)]
    names = [*impacts.sources, "calibration, total"]
    axis.set_yticks(rows, [f"{name} ({n})" for name, n in zip(names, counts, strict=True)])
    axis.tick_params(axis="y", which="both", length=0, labelsize=11.5)
    axis.set_xlim(0.0, 1.12 * max(largest, impacts.statistical))
    axis.set_ylim(-0.5, len(rows) - 0.5)
    axis.set_xlabel(rf"error of $m_{{{impacts.boson}}}$  [MeV]")
