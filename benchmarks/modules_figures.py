"""Figures of benchmarks/modules.py: bias of the momentum scale against eta, parameters against their truth, growth.

    python -m benchmarks.modules_figures ROWS.jsonl docs/figures

draws modules_growth.png, time and memory against pairs and units, from the JSON lines of many runs.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musclecal.geometry.momentum_bias import MomentumBias
from musclecal.records import PARAMETER_TYPES, Floats, ModuleCorrections
from musclecal.validation.plot_style import BAND, DATA, ETA_LABEL, FIT, PAST, TRUTH, figure_file

_SHRUNK = 10.0
"""What the bias before is divided by, so that what is left can be seen beside it."""
_GOAL = 1e-4


def draw_bias(
    before: Sequence[MomentumBias], after: Sequence[MomentumBias], errors: Sequence[tuple[Floats, Floats]], title: str,
    path: Path,
) -> None:  # fmt: skip
    """Even and odd bias at each pT; ``errors`` are even and odd (n_eta,) standard deviations after the fit, by pT."""
    with figure_file(path, 11.0, 7.5, pdf=False) as figure:
        figure.suptitle(title)
        axes = figure.subplots(2, len(before), sharex=True, squeeze=False)
        for column, (one, two) in enumerate(zip(before, after, strict=True)):
            for row, name in enumerate(("even", "odd")):
                axis = axes[row, column]
                y, z = (1e4 * getattr(bias, name) for bias in (one, two))
                axis.axhline(0.0, color=PAST, linewidth=0.8)
                if errors:
                    sigma = 1e4 * errors[column][row]
                    axis.fill_between(
                        two.eta, -sigma, sigma, step="mid", color=BAND, label="expected error of it"
                    )
                axis.plot(
                    one.eta, y / _SHRUNK, "s", color=PAST, markersize=4, label=f"as assumed, / {_SHRUNK:.0f}"
                )
                axis.plot(two.eta, z, "o", color=DATA, markersize=5, label="with module corrections")
                if name == "even":
                    for side in (-1e4 * _GOAL, 1e4 * _GOAL):
                        axis.axhline(side, color=TRUTH, linewidth=1.0, linestyle=":")
                rms = [np.sqrt(np.mean(x**2)) for x in (y, z)]
                axis.set_title(f"$p_T$ {one.pt:.0f} GeV: rms {rms[0]:.1f} to {rms[1]:.2f}")
                axis.set_ylabel(rf"{name} $\delta k/k$ [$10^{{-4}}$]")
                if row == 1:
                    axis.set_xlabel(ETA_LABEL)
        axes[0, 0].legend(loc="best")


def draw_parameters(
    truth: Floats, corrections: ModuleCorrections, modes: tuple[Floats, Floats], widths: Floats, path: Path
) -> None:
    """Truth against fit of shifts of modules, and amplitudes of modes of the detector as a whole.

    ``modes`` are the true and the fitted amplitudes (n_mode,), ``widths`` those of their prior.
    """
    with figure_file(path, 13.0, 8.5, pdf=False) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.0, 1.0])
        axes = upper.subplots(1, len(_SHIFTS))
        for axis, name in zip(axes, _SHIFTS, strict=True):
            which = (corrections.kinds == PARAMETER_TYPES.index(name)) & (corrections.uses[:, None] >= 30)
            x, y = 1e4 * truth[which], 1e4 * corrections.values[which]
            limit = 1.05 * max(np.abs(x).max(), np.abs(y).max(), 1e-9)
            axis.plot(x, y, ".", color=FIT, markersize=2, alpha=0.5, rasterized=True)
            axis.plot([-limit, limit], [-limit, limit], color=TRUTH, linewidth=1.0)
            axis.set_title(f"{name}: spread {np.std(x):.0f}, left {np.std(y - x):.1f} um")
            axis.set_xlabel(r"true [$\mu$m]")
            axis.set_ylabel(r"fitted [$\mu$m]")
        _draw_modes(lower.subplots(1, 1), corrections, modes, widths)


_SHIFTS = ("u", "v", "u_stereo")


def _draw_modes(
    axis: Any, corrections: ModuleCorrections, modes: tuple[Floats, Floats], widths: Floats
) -> None:
    """Of the detector as a whole, in prior widths: layers and sub-detectors have modes too, which share the truth."""
    names = corrections.mode_names
    whole = [n for n, name in enumerate(names) if name == name.lower()]  # names of layers have capitals
    true, found = (amplitude[whole] / widths[whole] for amplitude in modes)
    x = np.arange(len(whole))
    axis.axhline(0.0, color=PAST, linewidth=0.8)
    axis.bar(x, true, color=BAND, width=0.8, label="true, shared among modes as the prior would")
    axis.errorbar(
        x,
        found,
        corrections.amplitude_sigma[whole] / widths[whole],
        fmt="o",
        color=DATA,
        markersize=5,
        label="fitted",
    )
    axis.set_xticks(x, [names[n] for n in whole], rotation=60, ha="right")
    axis.set_ylabel("amplitude in prior widths")
    axis.legend(loc="best")


_PARTS = (("sums", "sums of pairs"), ("solution", "solution"))


def draw_growth(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Seconds of a pass, in parts, and memory: against the pairs in the largest detector, against units of barrels."""
    rows = list(rows)
    largest = max(row["units"] for row in rows)
    most = max(row["pairs"] for row in rows if row["units"] < largest)
    panels = (
        ("pairs", "pairs", [row for row in rows if row["units"] == largest]),
        (
            "units",
            f"units, {most:,} pairs",
            [row for row in rows if row["units"] < largest and row["pairs"] == most],
        ),
    )
    with figure_file(path, 12.0, 8.0, pdf=False) as figure:
        axes = figure.subplots(2, 2, sharex="col", squeeze=False)
        for column, (key, label, chosen) in enumerate(panels):
            chosen = sorted(chosen, key=lambda row: float(row[key]))
            x = [row[key] for row in chosen]
            for (name, words), color in zip(_PARTS, (DATA, FIT), strict=True):
                y = [row[f"seconds_{name}"] / row["passes"] for row in chosen]
                axes[0, column].plot(x, y, "o-", color=color, label=f"{words}, slope {_slope(x, y):.2f}")
            y = [row["peak_memory_mb"] / 1024.0 for row in chosen]
            axes[1, column].plot(x, y, "o-", color=DATA, label=f"slope {_slope(x, y):.2f}")
            for axis, what in zip(axes[:, column], ("seconds of a pass", "memory [GB]"), strict=True):
                axis.set_xscale("log")
                axis.set_yscale("log")
                axis.set_ylabel(what)
                axis.legend(loc="best")
            axes[1, column].set_xlabel(label)
            axes[1, column].set_xticks(x, [f"{value:,}" for value in x])
            axes[1, column].set_xticks([], minor=True)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of ln y against ln x, between the last two points."""
    return float(np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2]))


def main() -> int:
    """Draw the growth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines() if line.startswith("{")]
    draw_growth(rows, options.folder / "modules_growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
