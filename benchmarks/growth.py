"""How time grows: with events (fill, read), histograms (fit), parameters (chi2) and threads (fill, fit).

    python -m benchmarks.growth --out docs/figures
    python -m benchmarks.growth --scale 10 --json

A line of JSON for each curve, and a figure growth.png: seconds on logarithmic axes, best of several rounds in which
all points of a curve take turns. The slope is that of a straight line through the upper half of the points, where
what does not grow no longer matters; 1 is proportional. Beside threads stands the speed-up over one thread, without a
slope: on a machine with more threads asked for than processors idle it says what the machine was doing. chi2 has the
same number of masses for any number of parameters.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers import chi2, fill, fit, read
from benchmarks.peers.rows import Effort, Timed, in_turns, tell
from musclecal.fits.histogram import fill as fill_pairs
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.scale_fit import fit_scale
from musclecal.fits.shapes import gaussian
from musclecal.records import DimuonEvents

Run = Callable[[], object]
TICKS = {"threads": (1, 2, 4, 8, 16, 32, 64), "parameters": (36, 72, 144, 288)}


@dataclass(frozen=True)
class Curve:
    """Seconds of a work for several sizes ``x`` of what ``axis`` says; ``load`` of the machine after it."""

    work: str
    axis: str
    x: tuple[float, ...]
    seconds: tuple[float, ...]
    load: float

    @property
    def slope(self) -> float:
        """d ln(seconds)/d ln(x) over the upper half."""
        half = min(len(self.x) // 2, max(len(self.x) - 2, 0))
        if len(self.x) < 2:
            return 0.0
        return float(np.polyfit(np.log(self.x[half:]), np.log(self.seconds[half:]), 1)[0])

    def as_json(self) -> dict[str, object]:
        """For one line."""
        return asdict(self) | {"slope": self.slope}


def curve(work: str, axis: str, runs: Mapping[float, Run], effort: Effort) -> Curve:
    """All points in turns, after each was run once."""
    tell(f"{work} against {axis}: {', '.join(f'{x:g}' for x in runs)}")
    for run in runs.values():
        run()
    rates = in_turns({str(x): Timed(run, 1.0) for x, run in runs.items()}, effort)
    return Curve(work, axis, tuple(runs), tuple(1.0 / rate for rate in rates.values()), os.getloadavg()[0])


def sizes(largest: float, n: int = 6) -> list[int]:
    """``n`` sizes, each twice the one before."""
    return [max(1, round(largest / 2**i)) for i in reversed(range(n))]


def _chunks(pairs: fill.Pairs, n: int) -> list[DimuonEvents]:
    """As a reader gives them."""
    step = max(1, n // 16)
    return [pairs.events.select(np.arange(first, min(first + step, n))) for first in range(0, n, step)]


def against_events(effort: Effort) -> list[Curve]:
    """fill, read."""
    of_fill, of_read = sizes(effort.of(4e5, 3200)), sizes(effort.of(2e5, 3200))
    pairs = fill.simulated(of_fill[-1])

    def filled(n: int) -> Run:
        chunks = _chunks(pairs, n)
        return lambda: fill_pairs(chunks, pairs.binning, threads=1)

    curves = [curve("fill", "pairs", {n: filled(n) for n in of_fill}, effort)]
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: Path(folder) / f"{n}.root" for n in of_read}
        for n, path in paths.items():
            read.write(path, n)

        def reading(path: Path) -> Run:
            return lambda: read.read(path)

        curves.append(curve("read", "events", {n: reading(path) for n, path in paths.items()}, effort))
    return curves


def against_histograms(effort: Effort) -> Curve:
    """fit."""
    of_fit = sizes(effort.of(2000, 64))
    masses = fit.drawn(of_fit[-1])

    def fitted(n: int) -> Run:
        model = gaussian(masses.binning, n)
        return lambda: fit_bins(masses.counts[:n], model, "exponential", threads=1)

    return curve("fit", "histograms", {n: fitted(n) for n in of_fit}, effort)


def against_parameters(effort: Effort) -> Curve:
    """chi2."""

    def solved(n_eta: int) -> Run:
        fits = chi2.mass_fits(effort.of(40_000, 20_000), n_eta)
        return lambda: fit_scale(fits)

    return curve("chi2", "parameters", {3 * n: solved(n) for n in (12, 16, 24, 32, 48, 64, 96)}, effort)


def against_threads(effort: Effort) -> list[Curve]:
    """fill, fit."""
    threads = range(1, len(os.sched_getaffinity(0)) + 1)
    n, masses = effort.of(4e5, 3200), fit.drawn(effort.of(2000, 256))
    pairs, model = fill.simulated(n), gaussian(masses.binning, len(masses.counts))
    chunks = _chunks(pairs, n)

    def filled(t: int) -> Run:
        return lambda: fill_pairs(chunks, pairs.binning, threads=t)

    def fitted(t: int) -> Run:
        return lambda: fit_bins(masses.counts, model, "exponential", threads=t)

    return [
        curve("fill", "threads", {t: filled(t) for t in threads}, effort),
        curve("fit", "threads", {t: fitted(t) for t in threads}, effort),
    ]


def measure(effort: Effort) -> list[Curve]:
    """All curves."""
    return [
        *against_events(effort), against_histograms(effort), against_parameters(effort), *against_threads(effort)
    ]  # fmt: skip


def draw(curves: Sequence[Curve], path: Path) -> None:
    """A panel for events, histograms, parameters and threads each."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from musclecal.validation.plot_style import BACKGROUND, FIT, figure_file

    panels = (
        ("events or pairs", ("pairs", "events")),
        ("histograms", ("histograms",)),
        ("parameters", ("parameters",)),
        ("threads", ("threads",)),
    )
    with figure_file(path, 9.5, 7.5, pdf=False) as figure:
        for axis, (label, names) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for one, colour in zip((c for c in curves if c.axis in names), (FIT, BACKGROUND), strict=False):
                text = f"{one.work}, slope {one.slope:.2f}"
                if label == "threads":
                    text = f"{one.work}, speed-up {one.seconds[0] / min(one.seconds):.2f}"
                axis.plot(one.x, one.seconds, "o-", color=colour, markersize=5.0, label=text)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            if label in TICKS:
                largest = max(x for c in curves if c.axis in names for x in c.x)
                ticks = [t for t in TICKS[label] if t <= largest]
                axis.set_xticks(ticks, [str(t) for t in ticks])
            low, high = axis.get_ylim()
            axis.set_ylim(0.7 * low, 3.0 * high)
            axis.set_xlabel(label)
            axis.set_ylabel("seconds")
            axis.legend(loc="upper left")


def main(arguments: Sequence[str] | None = None) -> int:
    """A line a curve, and a figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a curve")
    parser.add_argument("--out", type=Path, help="folder for growth.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    curves = measure(Effort(options.scale, options.rounds, options.seconds))
    for one in curves:
        points = "  ".join(f"{x:g}: {s:.3g} s" for x, s in zip(one.x, one.seconds, strict=True))
        print(
            json.dumps(one.as_json())
            if options.json
            else f"{one.work:<5} {one.axis:<11} slope {one.slope:5.2f}   {points}"
        )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(curves, options.out / "growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
