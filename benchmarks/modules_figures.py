"""Figures of benchmarks/modules.py: bias of the momentum scale against eta, and parameters against their truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from musclecal.geometry.momentum_bias import MomentumBias
from musclecal.records import PARAMETER_TYPES, Floats, ModuleCorrections
from musclecal.validation.plot_style import BAND, DATA, ETA_LABEL, FIT, PAST, TRUTH, figure_file

SCALES = {
    "u": (1e-4, "um"),
    "v": (1e-4, "um"),
    "u_stereo": (1e-4, "um"),
    "field": (1e-3, "10$^{-3}$"),
    "material": (0.01, "%"),
}


def draw_bias(
    before: Sequence[MomentumBias],
    after: Sequence[MomentumBias],
    errors: Sequence[tuple[Floats, Floats]],
    path: Path,
) -> None:
    """Even and odd bias at each pT; ``errors`` are even and odd (n_eta,) standard deviations after the fit, by pT."""
    with figure_file(path, 11.0, 7.5, pdf=False) as figure:
        axes = figure.subplots(2, len(before), sharex=True, squeeze=False)
        for column, (one, two) in enumerate(zip(before, after, strict=True)):
            for row, name in enumerate(("even", "odd")):
                axis = axes[row, column]
                y, z = (1e4 * getattr(bias, name) for bias in (one, two))
                axis.axhline(0.0, color=PAST, linewidth=0.8)
                axis.plot(one.eta, y, "s", color=PAST, markersize=4, label="as assumed")
                axis.plot(two.eta, z, "o", color=DATA, markersize=4.5, label="with module corrections")
                if errors:
                    sigma = 1e4 * errors[column][row]
                    axis.fill_between(
                        two.eta, -sigma, sigma, step="mid", color=BAND, label="expected, 1 sigma"
                    )
                rms = [np.sqrt(np.mean(x**2)) for x in (y, z)]
                axis.set_title(f"$p_T$ {one.pt:.0f} GeV: rms {rms[0]:.1f} to {rms[1]:.2f}")
                axis.set_ylabel(rf"{name} $\delta k/k$ [$10^{{-4}}$]")
                if row == 1:
                    axis.set_xlabel(ETA_LABEL)
        axes[0, 0].legend(loc="best")


def draw_parameters(
    truth: Floats, corrections: ModuleCorrections, modes: tuple[Floats, Floats], path: Path
) -> None:
    """Truth against fit of all parameters by type, and of the amplitudes of modes; ``modes`` are true and fitted."""
    with figure_file(path, 13.0, 8.0, pdf=False) as figure:
        axes = figure.subplots(2, 3).ravel()
        for axis, (name, (scale, unit)) in zip(axes, SCALES.items(), strict=False):
            which = (corrections.kinds == PARAMETER_TYPES.index(name)) & (corrections.uses[:, None] >= 30)
            x, y = truth[which] / scale, corrections.values[which] / scale
            limit = 1.05 * max(np.abs(x).max(), np.abs(y).max(), 1e-9)
            axis.plot(x, y, ".", color=FIT, markersize=2, alpha=0.5, rasterized=True)
            axis.plot([-limit, limit], [-limit, limit], color=TRUTH, linewidth=1.0)
            axis.set_title(f"{name}: spread {np.std(x):.2g}, left {np.std(y - x):.2g} {unit}")
            axis.set_xlabel(f"true [{unit}]")
            axis.set_ylabel(f"fitted [{unit}]")
        axis = axes[len(SCALES)]
        x, y = modes
        limit = 1.05 * max(np.abs(x).max(), np.abs(y).max())
        axis.plot(x, y, "o", color=FIT, markersize=3)
        axis.plot([-limit, limit], [-limit, limit], color=TRUTH, linewidth=1.0)
        axis.set_title("amplitudes of modes, in prior widths")
        axis.set_xlabel("true")
        axis.set_ylabel("fitted")
