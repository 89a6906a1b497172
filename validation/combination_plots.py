"""Figures of a combination: its inputs, their correlations, scans of assumed correlations, impacts of the sources.

In the style of `musclecal.validation.plots`: a finished `CombinationRun` in, a PNG (and a PDF by option) out. All are
of the base; scenarios are in the tables.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from musclecal.covariance import correlation
from musclecal.errors import InputError
from musclecal.records import Floats, Ints
from musclecal.records.combination_case import CaseInputs, CaseResult, CaseScan, CombinationRun
from musclecal.validation.plot_style import (
    BAND,
    DATA,
    FIT,
    MINUS,
    PAST,
    TRUTH,
    chi2_text,
    decimals,
    figure_file,
    set_range,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = [
    "largest_impacts",
    "largest_scans",
    "plot_combination_correlations",
    "plot_combination_impacts",
    "plot_combination_inputs",
    "plot_combination_scans",
    "write_combination_figures",
]

_IMPACTS = 30
_SCANS = 6
_NUMBERS = 32
"""Matrices with more rows have no numbers in their cells."""


def _plain(text: str) -> str:
    """A name as it is, not as a formula."""
    return text.replace("$", r"\$")


def _unit(run: CombinationRun) -> str:
    return f"  [{_plain(run.unit)}]" if run.unit else ""


# Inputs


def plot_combination_inputs(run: CombinationRun, path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """Every input with its statistical (inner) and total error; the combination is the band and the last row.

    One panel for each observable.

    Raises
    ------
    InputError : a run without `CaseResult.measured`.
    """
    base, inputs = run.base, _measured(run)
    rows = [np.flatnonzero(inputs.design[:, a]) for a in range(len(base.observables))]
    heights = [len(row) + 2.2 for row in rows]
    title = chi2_text(_plain(run.title or "combination"), base.chi2, base.ndf, base.p_value)
    with figure_file(path, 10.0, 1.2 + 0.6 * len(rows) + 0.34 * sum(heights), pdf) as figure:
        axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for a, (axis, row) in enumerate(zip(axes, rows, strict=True)):
            _draw_inputs(axis, base, inputs, row, a)
            axis.set_xlabel(_plain(base.observables[a]) + _unit(run))
        axes[0].set_title(title, fontsize=13.0)
        figure.legend(
            *_in_order(axes[0], ["stat", "total", "combination"]), loc="outside upper left", ncols=3
        )


def _measured(run: CombinationRun) -> CaseInputs:
    if run.base.measured is None:
        raise InputError("figure of a combination: values and errors of the inputs are not known")
    return run.base.measured


def _draw_inputs(axis: "Axes", base: CaseResult, inputs: CaseInputs, chosen: Ints, a: int) -> None:
    last = len(chosen) + 0.3
    at = np.append(np.arange(len(chosen), dtype=np.float64), last)
    value = np.append(inputs.values[chosen], base.values[a])
    total, stat = inputs.errors[chosen], inputs.stat[chosen]
    low, high = np.append(total, base.down[a]), np.append(total, base.up[a])
    inner = np.append(stat, base.stat[a])
    axis.axvspan(
        base.values[a] - base.down[a],
        base.values[a] + base.up[a],
        color=BAND,
        lw=0,
        zorder=0,
        label="combination",
    )
    axis.axvline(base.values[a], color=FIT, lw=1.4, zorder=0.5)
    axis.axhline(len(chosen) - 0.35, color=PAST, lw=0.8, zorder=0.6)
    axis.errorbar(
        value, at, xerr=np.stack([low, high]), fmt="none", ecolor=DATA, elinewidth=1.4, label="total"
    )
    axis.errorbar(
        value,
        at,
        xerr=inner,
        fmt="o",
        color=DATA,
        elinewidth=3.6,
        capsize=0.0,
        markersize=5.0,
        label="stat",
        zorder=3,
    )
    axis.set_yticks(at, [*(_plain(base.inputs[i]) for i in chosen), "combination"], fontsize=11.5)
    axis.get_yticklabels()[-1].set_fontweight("bold")
    axis.tick_params(axis="y", which="both", left=False, right=False)
    axis.set_ylim(last + 0.7, -1.2)
    span = max(float(np.max(value + high) - np.min(value - low)), 1e-12)
    axis.set_xlim(float(np.min(value - low)) - 0.04 * span, float(np.max(value + high)) + 0.04 * span)
    digits = decimals(float(base.errors[a]))
    syst = np.append(np.sqrt(np.maximum(total**2 - stat**2, 0.0)), base.syst[a])
    cells = [
        [f"{x:.{digits}f}".replace("-", "−"), f"± {inner:.{digits}f}", f"± {outer:.{digits}f}"]
        for x, inner, outer in zip(value, inner, syst, strict=True)
    ]
    heads = ["value", "± stat", "± syst"]
    # Ends of the columns in points, from the widest cell of each.
    ends = np.cumsum([12.0 + 7.4 * _longest(column) for column in zip(heads, *cells, strict=True)])
    _numbers_beside(axis, -0.75, heads, ends, color=PAST)
    for y, row_of_cells in zip(at, cells, strict=True):
        _numbers_beside(axis, float(y), row_of_cells, ends, "bold" if y == last else "normal")


def _numbers_beside(
    axis: "Axes", y: float, cells: Sequence[str], ends: Floats, weight: str = "normal", color: str = DATA
) -> None:
    for end, cell in zip(ends, cells, strict=True):
        axis.annotate(
            cell, (1.0, y), (end, 0.0), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            va="center_baseline", fontsize=11.0, fontweight=weight, color=color, annotation_clip=False,
        )  # fmt: skip


def _in_order(axis: "Axes", names: Sequence[str]) -> tuple[list["Artist"], list[str]]:
    """Handles and labels of a legend."""
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    return [handles[name] for name in names], list(names)


# Correlations


def plot_combination_correlations(
    run: CombinationRun, path: str | os.PathLike[str], *, pdf: bool = False
) -> None:
    """Total correlation of the inputs, and of the observables if there are several; in per cent.

    Raises
    ------
    InputError : neither is known.
    """
    base, shown = run.base, []
    if base.measured is not None:
        shown.append(("inputs", base.inputs, correlation(base.measured.covariance)))
    if len(base.observables) > 1:
        shown.append(("observables", base.observables, base.correlation))
    if not shown:
        raise InputError(
            "figure of a combination: one observable, and correlations of inputs that are not known"
        )
    sizes = [max(0.47 * len(names) + 0.6, 2.6) + 0.085 * _longest(names) for _, names, _ in shown]
    with figure_file(path, max(sum(sizes) + 1.2, 6.0), max(sizes) + 0.4, pdf) as figure:
        axes = figure.subplots(1, len(shown), squeeze=False, width_ratios=sizes)[0]
        for axis, (what, names, matrix) in zip(axes, shown, strict=True):
            _draw_matrix(axis, names, matrix)
            axis.set_title(f"{what}: correlation  [%]")


def _longest(names: Sequence[str]) -> int:
    return max(len(name) for name in names)


def _draw_matrix(axis: "Axes", names: Sequence[str], matrix: Floats) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("correlation", [FIT, "white", TRUTH])
    axis.imshow(100.0 * matrix, cmap=colours, vmin=-100.0, vmax=100.0)
    size = 11.0 if len(names) <= _NUMBERS else 8.0
    labels = [_plain(name) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=50, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(range(len(names)), labels, fontsize=size)
    axis.tick_params(which="both", length=0)
    if len(names) <= _NUMBERS:
        for (i, j), rho in np.ndenumerate(matrix):
            text = f"{100.0 * rho:.0f}".replace("-0", "0") if abs(rho) < 0.005 else f"{100.0 * rho:.0f}"
            axis.text(
                j, i, text.replace("-", "−"), ha="center", va="center", fontsize=10.0,
                color="white" if rho < -0.7 else DATA,
            )  # fmt: skip


# Scans


def largest_scans(result: CaseResult, most: int = _SCANS) -> list[CaseScan]:
    """The scans that change a value or an error most, in units of the error, largest first; no impossible ones."""
    size = {
        scan.name: float(np.max(np.maximum(scan.half_range_values, scan.half_range_errors) / result.errors))
        for scan in result.scans
    }
    possible = [scan for scan in result.scans if np.isfinite(size[scan.name])]
    return sorted(possible, key=lambda scan: -size[scan.name])[:most]


def plot_combination_scans(run: CombinationRun, path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """Change of value and error against rho, of the scans that matter most; a dot at the nominal correlation.

    A line ends where correlations contradict each other.

    Raises
    ------
    InputError : no scan, or none with a point that is possible.
    """
    base = run.base
    m = len(base.observables)
    shown = largest_scans(base, _SCANS if m <= 2 else 3)
    if not shown:
        raise InputError("figure of a combination: no scan of a correlation")
    columns = min(3, len(shown))
    blocks = -(-len(shown) // columns)
    with figure_file(path, 2.2 + 3.2 * columns, 1.0 + 2.7 * m * blocks, pdf) as figure:
        axes = figure.subplots(m * blocks, columns, squeeze=False)
        for a in range(m):
            panels = axes[a * blocks : (a + 1) * blocks].ravel()
            drawn = [part for scan in shown for part in _changes(base, scan, a)]
            finite = np.concatenate(drawn)
            for axis, scan in zip(panels, shown, strict=False):
                _draw_scan(axis, base, scan, a)
                set_range(axis, np.append(finite[np.isfinite(finite)], 0.0), above=0.05)
            for axis in panels[len(shown) :]:
                axis.set_visible(False)
            for number, axis in enumerate(panels[: len(shown)]):
                if number % columns == 0:
                    axis.set_ylabel(f"change of\n{_plain(base.observables[a])}{_unit(run)}", fontsize=13.0)
                else:
                    axis.tick_params(labelleft=False)
        known = [number for number, scan in enumerate(shown) if np.isfinite(scan.nominal)]
        axis = axes.ravel()[known[0] if known else 0]
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _changes(base: CaseResult, scan: CaseScan, a: int) -> tuple[Floats, Floats]:
    """(n_point,) of the value, of the error."""
    return scan.values[:, a] - base.values[a], scan.errors[:, a] - base.errors[a]


def _draw_scan(axis: "Axes", base: CaseResult, scan: CaseScan, a: int) -> None:
    rho = np.linspace(scan.low, scan.high, len(scan.chi2))
    value, error = _changes(base, scan, a)
    axis.plot(rho, value, color=FIT, label="value")
    axis.plot(rho, error, color=MINUS, ls="--", label="uncertainty")
    axis.axhline(0.0, color=PAST, lw=0.8, zorder=0)
    if np.isfinite(scan.nominal):
        axis.axvline(scan.nominal, color=PAST, lw=0.8, ls=":", zorder=0)
        axis.plot([scan.nominal], [0.0], "o", color=DATA, markersize=5.5, zorder=3, label="nominal")
    axis.set_xlabel(r"$\rho$")
    axis.locator_params(axis="x", nbins=5)
    axis.set_title(_plain(scan.name))


# Impacts


def largest_impacts(result: CaseResult, most: int = _IMPACTS) -> list[str]:
    """Sources by impact (split, or frozen where there is no split) in units of the error, largest first."""
    shown = result.split or result.frozen
    return sorted(shown, key=lambda name: -float(np.max(np.nan_to_num(shown[name]) / result.errors)))[:most]


def plot_combination_impacts(run: CombinationRun, path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """Split and frozen impacts of the sources side by side, largest first, and below a line those of the groups.

    The likelihood has frozen ones only. No bar: not known (frozen: nothing is left without the source).

    Raises
    ------
    InputError : no source.
    """
    base = run.base
    names, groups = largest_impacts(base), [*(base.groups_split or base.groups_frozen)]
    if not names:
        raise InputError("figure of a combination: no source")
    m, n_row = len(base.observables), len(names) + len(groups)
    columns = min(m, 3)
    lines = -(-m // columns)
    of = len(base.frozen)
    title = f"the {len(names)} largest of {of} sources" if len(names) < of else None
    labels = [_plain(name) for name in names] + [f"group {_plain(name)}" for name in groups]
    with figure_file(
        path, 2.2 + 0.09 * _longest(labels) + 4.6 * columns, 0.9 + lines * (1.3 + 0.36 * n_row), pdf
    ) as figure:
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axis in axes[m:]:
            axis.set_visible(False)
        for a, axis in enumerate(axes[:m]):
            _draw_impacts(axis, base, names, groups, a)
            unit = f" {_plain(run.unit)}" if run.unit else ""
            observable, error = _plain(base.observables[a]), float(base.errors[a])
            axis.set_title(f"{observable}: total uncertainty {error:.{decimals(error)}f}{unit}")
            axis.set_xlabel(f"impact on {observable}{_unit(run)}")
        axes[0].set_yticks(range(n_row), labels)
        axes[0].set_ylim(n_row - 0.4, -0.6)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, title=title)


def _draw_impacts(
    axis: "Axes", base: CaseResult, names: Sequence[str], groups: Sequence[str], a: int
) -> None:
    frozen = [base.frozen[name][a] for name in names] + [base.groups_frozen[name][a] for name in groups]
    row = np.arange(len(frozen))
    if base.split:
        split = [base.split[name][a] for name in names] + [base.groups_split[name][a] for name in groups]
        axis.barh(row - 0.19, split, 0.36, color=FIT, lw=0, label="split: adds up in quadrature")
    axis.barh(
        row + (0.19 if base.split else 0.0),
        frozen,
        0.36,
        color=BAND,
        lw=0,
        label="frozen: lost if it is known",
    )
    if groups:
        axis.axhline(len(names) - 0.5, color=PAST, lw=0.8)
    axis.tick_params(axis="y", which="both", left=False, right=False, labelsize=11.5)
    axis.set_xlim(left=0.0)
    axis.locator_params(axis="x", nbins=6)


# All


def write_combination_figures(run: CombinationRun, folder: Path) -> tuple[Path, ...]:
    """All figures that ``run`` has something for, as PNG and PDF in ``folder``; each whole or not at all.

    Figures of an earlier run that this one does not have are removed.
    """
    base = run.base
    figures = {
        "inputs": (plot_combination_inputs, base.measured is not None),
        "correlations": (
            plot_combination_correlations, base.measured is not None or len(base.observables) > 1
        ),
        "scans": (plot_combination_scans, bool(largest_scans(base))),
        "impacts": (plot_combination_impacts, bool(base.frozen)),
    }  # fmt: skip
    written: list[Path] = []
    for name, (plot, there) in figures.items():
        path = folder / f"combination_{name}.png"
        if there:
            plot(run, path, pdf=True)
            written += [path, path.with_suffix(".pdf")]
        else:
            path.unlink(missing_ok=True)
            path.with_suffix(".pdf").unlink(missing_ok=True)
    return tuple(written)
