"""Figure of two calibrations and their difference: a record in, a PNG out."""

import os
from typing import TYPE_CHECKING

import numpy as np

from musclecal.records import Floats
from musclecal.validation.calibration_diff import CalibrationDiff
from musclecal.validation.plot_style import (
    BAND,
    DATA,
    FIT,
    LABELS,
    PAST,
    TRUTH,
    UNITS,
    bin_centres,
    chi2_text,
    eta_axis,
    figure_file,
    set_range,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_calibration_diff"]


def plot_calibration_diff(diff: CalibrationDiff, path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """A, e, M of both with their errors, and below the difference, second minus first, over its error.

    Raises
    ------
    InputError : a path that does not end in .png.
    """
    with figure_file(path, 14.0, 5.8, pdf) as figure:
        axes = figure.subplots(2, 3, sharex=True, height_ratios=(2.2, 1.0))
        for j, name in enumerate("AeM"):
            _draw_values(axes[0, j], diff, j, name)
            _draw_pulls(axes[1, j], diff.eta_edges, diff.sigma[:, j])
            eta_axis(axes[1, j], diff.eta_edges)
        axes[1, 0].set_ylabel(r"difference / $\sigma$")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        c = diff.chi2
        title = chi2_text(f"all differences, {diff.correlation}", c.chi2, c.ndf, c.p_value)
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        axes[0, 2].set_title(title, fontsize=11.5, loc="right")


def _draw_values(axis: "Axes", diff: CalibrationDiff, j: int, name: str) -> None:
    unit = UNITS[name]
    centres, widths = bin_centres(diff.eta_edges), np.diff(diff.eta_edges)
    values, errors = diff.values[:, :, j] / unit, diff.errors[:, :, j] / unit
    for i, (colour, marker, side) in enumerate(((FIT, "o", -1.0), (TRUTH, "s", 1.0))):
        axis.errorbar(
            centres + 0.12 * side * widths, values[i], errors[i], fmt=marker, color=colour, ms=4.5, elinewidth=1.3,
            label=diff.names[i], zorder=3,
        )  # fmt: skip
    axis.axhline(0.0, color=PAST, lw=0.8, zorder=1)
    set_range(axis, np.stack([values - errors, values + errors]))
    axis.set_ylabel(LABELS[name])


def _draw_pulls(axis: "Axes", edges: Floats, pulls: Floats) -> None:
    known = np.where(np.isfinite(pulls), pulls, 0.0)
    axis.axhspan(-1.0, 1.0, color=BAND, lw=0.0, zorder=1)
    axis.axhline(0.0, color=PAST, lw=0.8, zorder=2)
    some = np.isfinite(pulls)
    axis.plot(bin_centres(edges)[some], pulls[some], "o", color=DATA, ms=4.5, zorder=3)
    limit = 1.15 * max(2.5, float(np.max(np.abs(known), initial=0.0)))
    axis.set_ylim(-limit, limit)
