"""How figures of musclecal look: style, colours, labels, and the small pieces that all of them draw.

matplotlib and mplhep are imported here alone and only when a figure is drawn; no pyplot figure is made, and the
style holds inside a `with` only. The same colour is the same thing everywhere: black the data and what was
fitted to them, vermilion the injected truth, light blue an uncertainty, blue a fitted curve (and mu+), purple
mu-, green the background.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musclecal.errors import InputError
from musclecal.records import Floats
from musclecal.store import written_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, FIT, BAND, TRUTH = "black", "#0072B2", "#9FD3F0", "#D55E00"
BACKGROUND, MINUS, PAST = "#009E73", "#A4497F", "#8C8C8C"
# From the palette of Okabe and Ito, told apart with any colour vision; band lighter, mu- darker than there.


UNITS = {"A": 1e-4, "e": 1e-3, "M": 1e-5}
LABELS = {"A": r"$A$  [$10^{-4}$]", "e": r"$e$  [MeV]", "M": r"$M$  [$10^{-5}$/GeV]"}
MASS_LABEL = r"$m_{\mu\mu}$  [GeV]"
ETA_LABEL = r"muon $\eta$"

_STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 13.0,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 1.1,
    "axes.labelsize": 14.0,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "xtick.major.size": 6.0,
    "ytick.major.size": 6.0,
    "xtick.minor.size": 3.0,
    "ytick.minor.size": 3.0,
    "pdf.fonttype": 42,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.hspace": 0.0,
}


@contextmanager
def figure_file(
    path: str | os.PathLike[str], width: float, height: float, pdf: bool, dpi: int = 150
) -> "Iterator[Figure]":
    """A figure (inches) in the style of this module, written to ``path`` unless there is an error."""
    target = Path(path)
    if target.suffix != ".png":
        raise InputError(
            f"{target}: figures are PNG files, give a name that ends in .png (pdf=True adds a PDF)"
        )
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", dict(_STYLE)]):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        yield figure
        with written_atomically(target) as temporary:
            figure.savefig(temporary, format="png")
        if pdf:
            with written_atomically(target.with_suffix(".pdf")) as temporary:
                figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})


def chi2_text(what: str, chi2: float, ndf: int, p_value: float) -> str:
    return rf"{what}: $\chi^2$/ndf = {chi2:.1f}/{ndf}, p = {probability_text(p_value)}"


def probability_text(p: float) -> str:
    """0.41, or a power of ten where that is short of digits."""
    if not 0.0 < p < 1e-3:
        return f"{p:.2g}"
    exponent = int(np.floor(np.log10(p)))
    return rf"{p / 10.0**exponent:.1f}$\times 10^{{{exponent}}}$"


def decimals(error: float) -> int:
    """So that an error has three digits."""
    return int(np.clip(2 - np.floor(np.log10(error)), 0, 12)) if error > 0.0 and np.isfinite(error) else 3


def bin_centres(edges: Floats) -> Floats:
    values = np.asarray(edges)
    return np.asarray(0.5 * (values[1:] + values[:-1]))


def draw_points(axis: "Axes", edges: Floats, value: Floats, error: Floats, label: str) -> None:
    axis.errorbar(
        bin_centres(edges), value, error, 0.5 * np.diff(edges), fmt="o", color=DATA, label=label, zorder=3,
        markersize=4.5, elinewidth=1.3,
    )  # fmt: skip


def draw_counts(axis: "Axes", counts: Floats, edges: Floats, label: str) -> None:
    """Points with Poisson errors (Garwood's central interval of 68 %); empty bins stay empty."""
    from mplhep.error_estimation import poisson_interval

    some = counts > 0.0
    if not np.any(some):
        return
    value = counts[some]
    low, high = poisson_interval(value, value)
    axis.errorbar(
        bin_centres(edges)[some], value, np.stack([value - low, high - value]), fmt="o", color=DATA, label=label,
        markersize=3.8 if len(counts) <= 60 else 3.0, elinewidth=1.1, zorder=3,
    )  # fmt: skip


def text_box(axis: "Axes", lines: Sequence[str]) -> None:
    axis.annotate(
        "\n".join(lines).replace("-", "−"),
        (0.03, 0.96),
        xycoords="axes fraction",
        va="top",
        fontsize=11.5,
        linespacing=1.45,
    )


def set_range(axis: "Axes", drawn: Floats, *, symmetric: bool = False, above: float = 0.08) -> None:
    """y range of what was drawn, with a margin, and ``above`` of the height free for text."""
    low, high = float(np.min(drawn)), float(np.max(drawn))
    if symmetric:
        low, high = min(low, -high), max(high, -low)
    span = max(high - low, 1e-9)
    axis.set_ylim(low - 0.08 * span, high + (0.03 + above) * span)


def eta_axis(axis: "Axes", edges: Floats) -> None:
    axis.set_xlim(float(edges[0]), float(edges[-1]))
    axis.set_xlabel(ETA_LABEL)


def legend_in_order(axis: "Axes", order: Sequence[str], **options: Any) -> None:
    """A legend of the entries in ``order``, those that were drawn."""
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    names = [name for name in order if name in handles]
    axis.legend([handles[name] for name in names], names, **options)
