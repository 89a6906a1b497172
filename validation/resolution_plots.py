"""Figures of the resolution: sigma_k/k against pT, a and c against eta, width ratios before and after smearing."""

import os
from collections.abc import Sequence

import numpy as np

from musclecal.covariance import propagated_variance
from musclecal.errors import InputError
from musclecal.records import Floats, Resolution, WidthClosure
from musclecal.resonances import resonance
from musclecal.validation.plot_style import (
    BAND,
    DATA,
    FIT,
    PAST,
    TRUTH,
    eta_axis,
    figure_file,
    legend_in_order,
    probability_text,
)

__all__ = ["plot_resolution", "plot_width_closure"]

_UNITS = {"a": (1e-6, r"$a$  [$10^{-6}$]"), "c": (1e-9, r"$c$  [$10^{-9}$/GeV$^2$]")}


def plot_resolution(
    simulation: Resolution, data: Resolution, path: str | os.PathLike[str], *, pdf: bool = False
) -> None:
    """Left: sigma_k/k against pT in the innermost and the outermost eta bin. Right: a and c against eta.

    Raises
    ------
    InputError : other eta bins in data and simulation.
    """
    if not np.array_equal(simulation.eta_edges, data.eta_edges):
        raise InputError("resolution: data and simulation have other eta bins")
    edges = np.asarray(data.eta_edges)
    middles = np.abs(0.5 * (edges[1:] + edges[:-1]))
    with figure_file(path, 12.0, 5.6, pdf) as figure:
        grid = figure.add_gridspec(2, 2)
        left = figure.add_subplot(grid[:, 0])
        for n, style in ((int(np.argmin(middles)), "-"), (int(np.argmax(middles)), "--")):
            _draw_against_pt(left, simulation, data, n, style)
        left.set_xscale("log")
        left.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
        left.xaxis.set_minor_formatter("")
        left.set_xlabel(r"$p_T$  [GeV]")
        left.set_ylabel(r"$\sigma_k/k$  [%]")
        left.set_ylim(0.0, None)
        left.legend(fontsize=11, loc="upper left")
        for row, name in enumerate(("a", "c")):
            axis = figure.add_subplot(grid[row, 1])
            unit, label = _UNITS[name]
            centres = 0.5 * (edges[1:] + edges[:-1])
            for resolution, colour, shift, what in (
                (simulation, FIT, -0.1, "simulation"),
                (data, DATA, 0.1, "data"),
            ):
                error = _errors(resolution, name) / unit
                axis.errorbar(
                    centres + shift * np.diff(edges), getattr(resolution, name) / unit, error, fmt="o", ms=4,
                    color=colour, elinewidth=1.2, label=what,
                )  # fmt: skip
            axis.set_ylabel(label)
            eta_axis(axis, edges)
            axis.tick_params(axis="x", labelbottom=row == 1)
            if row == 0:
                axis.set_xlabel("")
                legend_in_order(axis, ["data", "simulation"], loc="upper center", ncols=2)


def _errors(resolution: Resolution, name: str) -> Floats:
    """(n_eta,) of one coefficient."""
    n_par = len(resolution.parameter_names)
    variance = np.diagonal(resolution.covariance).reshape(-1, n_par)
    return np.asarray(np.sqrt(variance[:, resolution.parameter_names.index(name)]))


def _draw_against_pt(axis, simulation: Resolution, data: Resolution, n: int, style: str) -> None:  # type: ignore[no-untyped-def]
    low, high = data.pt_range[n]
    pt = np.geomspace(low, high, 80)
    where = rf"{data.eta_edges[n]:g} < $\eta$ < {data.eta_edges[n + 1]:g}"
    for resolution, colour, what in ((simulation, FIT, "simulation"), (data, DATA, "data")):
        columns = {"a": np.ones_like(pt), "c": pt**2, "b": pt**2 / (pt**2 + resolution.d[n])}
        names = resolution.parameter_names
        jacobian = np.stack([columns[name] for name in names], axis=1)
        rows = n * len(names) + np.arange(len(names))
        variance = sum(getattr(resolution, name)[n] * columns[name] for name in ("a", "b", "c"))
        error = np.sqrt(propagated_variance(jacobian, resolution.covariance[np.ix_(rows, rows)]))
        sigma = np.sqrt(np.maximum(variance, 0.0))
        spread = error / (2.0 * np.where(sigma > 0.0, sigma, 1.0))
        if what == "data":
            axis.fill_between(
                pt, 100.0 * (sigma - spread), 100.0 * (sigma + spread), color=BAND, lw=0, alpha=0.7
            )
        axis.plot(pt, 100.0 * sigma, style, color=colour, lw=1.8, label=f"{what}, {where}")


def plot_width_closure(
    pairs: Sequence[tuple[WidthClosure, WidthClosure]], path: str | os.PathLike[str], *, pdf: bool = False
) -> None:
    """Width ratios of data and simulation against eta, one row per resonance: (as simulated, smeared)."""
    with figure_file(path, 8.5, 1.0 + 2.4 * len(pairs), pdf) as figure:
        axes = figure.subplots(len(pairs), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (before, after) in zip(axes, pairs, strict=True):
            edges = np.asarray(after.eta_edges)
            middles = 0.5 * (edges[1:] + edges[:-1])
            for closure, colour, side, what in (
                (before, TRUTH, -1.0, "as simulated"),
                (after, DATA, 1.0, "smeared"),
            ):
                x = middles[closure.eta_bin] + 0.12 * side * np.diff(edges)[closure.eta_bin]
                spread = closure.pt_bins[:, 0] / max(int(closure.pt_bins.max()), 1)
                x = x + 0.18 * (spread - 0.5) * np.diff(edges)[closure.eta_bin]
                axis.errorbar(
                    x, closure.ratio, closure.error, fmt="o", ms=3.2, elinewidth=1.0, color=colour,
                    label=f"{what}: p = {probability_text(closure.p_value)}, "
                    f"mean {closure.mean:.4f} ± {closure.mean_error:.4f}",
                )  # fmt: skip
            axis.axhline(1.0, color=PAST, lw=0.9, zorder=0.5)
            used = "used" if after.used else "not used"
            axis.set_title(f"{resonance(after.resonance).label} ({used} for the resolution)")
            axis.set_ylabel("width, data / sim.")
            values = np.concatenate([before.ratio, after.ratio])
            errors = np.concatenate([before.error, after.error])
            reach = min(1.7 * float(np.max(np.abs(values - 1.0) + errors)), 0.6)
            axis.set_ylim(1.0 - reach, 1.0 + reach)
            axis.legend(fontsize=10, loc="upper center", ncols=2)
        eta_axis(axes[-1], np.asarray(pairs[0][1].eta_edges))
        axes[-1].set_xlabel(r"$\eta$ of the outer muon")
