"""Figures of template closures: masses of data and simulation, and parts of the sample. Records in, a PNG out."""

import os
from typing import TYPE_CHECKING

import numpy as np

from musclecal.errors import InputError
from musclecal.records import ClosureSplits, Floats, SplitTest, TemplateHistogram
from musclecal.resonances import resonance
from musclecal.validation.plot_style import (
    BAND,
    DATA,
    FIT,
    MASS_LABEL,
    MINUS,
    PAST,
    draw_counts,
    figure_file,
    legend_in_order,
    probability_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_masses", "plot_splits"]

_UNITS = {"A": (1e-5, r"$A$  [$10^{-5}$]"), "M": (1e-6, r"$M$  [$10^{-6}$/GeV]")}


def plot_masses(
    data: TemplateHistogram,
    simulation: TemplateHistogram,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    pdf: bool = False,
) -> None:
    """Masses of all cells together, the simulation with the yield of the data in every 4D bin, and their ratio.

    Raises
    ------
    InputError : no 4D bin in common, or other axes.
    """
    if data.binning != simulation.binning:
        raise InputError("figure: data and simulation have different axes")
    bins = np.intersect1d(data.bins, simulation.bins)
    if not len(bins):
        raise InputError("figure: no 4D bin has both data and simulation")
    counts, simulated = (h.counts[np.searchsorted(h.bins, bins)] for h in (data, simulation))
    squares = (
        simulated
        if simulation.variances is None
        else simulation.variances[np.searchsorted(simulation.bins, bins)]
    )
    events = simulated.sum(axis=1)
    ratio = np.where(events > 0.0, counts.sum(axis=1) / np.where(events > 0.0, events, 1.0), 0.0)
    expected = (ratio[:, None] * simulated).sum(axis=0)
    error = np.sqrt((ratio[:, None] ** 2 * squares).sum(axis=0))
    total = counts.sum(axis=0)
    low, high = data.binning.mass_window
    edges = np.linspace(low, high, data.binning.mass_bins + 1)
    with figure_file(path, 7.5, 6.2, pdf) as figure:
        main, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1.0))
        main.stairs(expected, edges, color=FIT, lw=1.8, label="simulation, yields of the data")
        draw_counts(main, total, edges, "data")
        main.set_ylim(0.0, 1.2 * total.max())
        main.set_ylabel(f"Events / {(high - low) / data.binning.mass_bins:.3g} GeV")
        legend_in_order(main, ["data", "simulation, yields of the data"], loc="upper right")
        main.set_title(title)
        some = expected > 0.0
        centres = 0.5 * (edges[1:] + edges[:-1])[some]
        below.stairs(
            1.0 + (error / np.where(some, expected, 1.0)), edges, baseline=1.0 - error / np.where(some, expected, 1.0),
            fill=True, color=BAND, zorder=1,
        )  # fmt: skip
        below.errorbar(
            centres, total[some] / expected[some], np.sqrt(total[some]) / expected[some], fmt="o", color=DATA, ms=3.5,
            elinewidth=1.1, zorder=3,
        )  # fmt: skip
        below.axhline(1.0, color=PAST, lw=0.8, zorder=2)
        spread = 1.3 * np.nanmax(
            np.abs(total[some] / expected[some] - 1.0) + np.sqrt(total[some]) / expected[some]
        )
        below.set_ylim(1.0 - min(spread, 0.5), 1.0 + min(spread, 0.5))
        below.set_ylabel("data / sim.")
        below.set_xlabel(MASS_LABEL)
        below.set_xlim(low, high)
        figure.align_ylabels([main, below])


def plot_splits(splits: ClosureSplits, path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """A and M of the parts of the sample, one row a parameter, one column a test; its p-value above.

    Harmonics are drawn together; run ranges, halves and sectors each have a column.

    Raises
    ------
    InputError : no split test.
    """
    if not splits.tests:
        raise InputError("figure: no split tests to draw")
    columns = [[test] for test in splits.tests if not test.name.startswith("phi harmonic")]
    harmonics = [test for test in splits.tests if test.name.startswith("phi harmonic")]
    if harmonics:
        columns.insert(0, harmonics)
    widths = [max(2.0, 0.45 * sum(len(test.parts) for test in tests)) for tests in columns]
    with figure_file(path, min(16.0, 1.5 + 1.15 * sum(widths)), 6.4, pdf) as figure:
        axes = figure.subplots(2, len(columns), squeeze=False, width_ratios=widths)
        for column, tests in enumerate(columns):
            for row, name in enumerate(("A", "M")):
                _draw_parts(axes[row, column], tests, name)
                axes[row, column].tick_params(axis="x", labelbottom=row == 1)
            axes[0, column].set_title(_title(tests), fontsize=10.5)
        for row, name in enumerate(("A", "M")):
            axes[row, 0].set_ylabel(_UNITS[name][1])
        label = resonance(splits.resonance).label
        figure.suptitle(
            f"{label}: parts of the sample; smallest of {len(splits.tests)} p-values, corrected for their number: "
            f"{probability_text(splits.p_value)}",
            fontsize=12.5,
        )


def _title(tests: list[SplitTest]) -> str:
    if len(tests) == 1:
        return f"{tests[0].name}\n{probability_text(tests[0].p_value)}"
    return "harmonics in phi\n" + ", ".join(probability_text(test.p_value) for test in tests)


def _draw_parts(axis: "Axes", tests: list[SplitTest], name: str) -> None:
    unit, _ = _UNITS[name]
    labels: list[str] = []
    values: list[Floats] = []
    errors: list[Floats] = []
    for test in tests:
        which = test.parameter_names.index(name)
        prefix = f"{test.name.split()[-1]} " if len(tests) > 1 else ""
        labels += [prefix + _short(part) for part in test.parts]
        values.append(test.values[:, which] / unit)
        errors.append(test.errors[:, which] / unit)
    value, error = np.concatenate(values), np.concatenate(errors)
    x = np.arange(len(value))
    axis.errorbar(
        x, value, error, fmt="o", color=FIT if name == "A" else MINUS, ms=4.5, elinewidth=1.3, zorder=3
    )
    axis.axhline(0.0, color=PAST, lw=0.8, zorder=1)
    axis.set_xticks(x, labels, rotation=60 if len(labels) > 2 else 20, ha="right", fontsize=9.5)
    axis.minorticks_off()
    axis.set_xlim(-0.6, len(x) - 0.4)


def _short(part: str) -> str:
    return part.removeprefix("phi sector ").removeprefix("runs ")
