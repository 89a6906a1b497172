"""A guard against a loss of speed: ratios of small works to loops that do not change, never seconds.

    python -m benchmarks.guard
    python -m benchmarks.guard --store

Each work takes turns with a plain loop of the same kind, compiled or of numpy, that nobody will make faster:
exponentials and divisions beside fits, hyperbolic functions beside a fill, a table searched by bisection beside an
application, numpy's bincount beside the chi2. Rounds are short, times are those of the processor and the best of each
is taken: a machine that is busy with other things makes no difference but for what they take from its caches. A ratio
is what a work does over what its loop does in that time. --store writes ``ratios.json``, to be done on an idle
machine where `tests/test_speed.py` should compare from then on; it fails below 60 % of one.

Processors differ in how fast they are at one thing beside another, so ratios are stored for each kind of them; of
another kind nothing is known.
"""

import os

os.environ.setdefault("MUSCLECAL_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from benchmarks.apply import tables
from benchmarks.peers import chi2, fill, fit
from benchmarks.peers.rows import processor
from musclecal.correction import Correction
from musclecal.fits.histogram import fill as fill_pairs
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.scale_fit import fit_scale
from musclecal.fits.shapes import gaussian
from musclecal.records import Floats, Ints

STORED = Path(__file__).with_name("ratios.json")
LEAST = 0.6
"""Of a stored ratio."""
ROUNDS, SECONDS = 400, 3.0
STORING = 5
"""Ratios of which the median is stored."""

Run = Callable[[], object]


@numba.njit(cache=False, nogil=True)  # type: ignore[untyped-decorator]
def _exponentials(x: Floats) -> float:
    total = 0.0
    for i in range(x.size):
        total += math.exp(-x[i]) / (1.0 + total * total)
    return total


@numba.njit(cache=False, nogil=True)  # type: ignore[untyped-decorator]
def _hyperbolic(x: Floats, counts: Ints) -> float:
    total = 0.0
    for i in range(x.size):
        y = math.sinh(x[i]) + math.cosh(x[i]) + math.cos(x[i])
        counts[int(y) & 1023] += 1
        total += math.sqrt(y * y)
    return total


@numba.njit(cache=False, nogil=True)  # type: ignore[untyped-decorator]
def _table_factors(pt: Floats, eta: Floats, edges: Floats, values: Floats, out: Floats) -> None:
    for i in range(pt.size):
        low, high = 0, edges.size - 1
        while high - low > 1:
            middle = (low + high) // 2
            if eta[i] >= edges[middle]:
                low = middle
            else:
                high = middle
        out[i] = 1.0 / (1.0 + values[low] / pt[i])


def _fits() -> tuple[Run, Run]:
    masses = fit.drawn(16, seed=3)
    model = gaussian(masses.binning, len(masses.counts))
    x = np.random.default_rng(1).uniform(0.0, 1.0, 50_000)
    return lambda: fit_bins(masses.counts, model, "exponential", threads=1), lambda: _exponentials(x)


def _fill() -> tuple[Run, Run]:
    pairs = fill.simulated(20_000, seed=3)
    x, counts = np.random.default_rng(1).uniform(0.0, 2.4, 20_000), np.zeros(1024, dtype=np.int64)
    return lambda: fill_pairs([pairs.events], pairs.binning, threads=1), lambda: _hyperbolic(x, counts)


def _chi2() -> tuple[Run, Run]:
    fits = chi2.mass_fits(1_000, n_eta=6)
    rng = np.random.default_rng(1)
    bins, weights = rng.integers(0, 144, 20_000), rng.uniform(0.0, 1.0, 20_000)
    return lambda: fit_scale(fits), lambda: np.bincount(bins, weights, 144)


def _apply() -> tuple[Run, Run]:
    made, n = tables(), 8_000
    correction = Correction(made)
    rng = np.random.default_rng(1)
    pt, eta, phi = rng.uniform(3, 100, n), rng.uniform(-2.4, 2.4, n), rng.uniform(-3.1, 3.1, n)
    charge, out, room = rng.choice([-1.0, 1.0], n), np.empty(n), np.empty(n)
    edges, values = np.array(made.eta_edges), np.array(made.e)
    return (
        lambda: correction.scale(pt, eta, phi, charge, out=out),
        lambda: _table_factors(pt, eta, edges, values, room),
    )


WORKS: dict[str, Callable[[], tuple[Run, Run]]] = {
    "fit": _fits,
    "fill": _fill,
    "chi2": _chi2,
    "apply": _apply,
}


def ratio(name: str, rounds: int = ROUNDS, seconds: float = SECONDS) -> float:
    """Runs of a work in the time of one run of its loop."""
    runs = WORKS[name]()
    best = [math.inf, math.inf]
    for run in runs:
        run()
    begin = time.perf_counter()
    for n in range(rounds):
        if n >= 20 and time.perf_counter() - begin > seconds:
            break
        for i, run in enumerate(runs):
            start = time.process_time()
            run()
            best[i] = min(best[i], time.process_time() - start)
    return best[1] / best[0]


def stored() -> dict[str, float]:
    """Ratios to compare with; none where this kind of processor is not known."""
    ratios: dict[str, float] = _of_all_processors().get(processor(), {})
    return ratios


def _of_all_processors() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = (
        json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    )
    return found


def main() -> int:
    """Ratios beside the stored ones; 1 where one is too low."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", action="store_true", help="write the ratios of this machine")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    before = stored()
    times = STORING if options.store else 1
    now = {name: float(np.median([ratio(name) for _ in range(times)])) for name in WORKS}
    if options.store:
        known = _of_all_processors() | {processor(): {name: float(f"{r:.4g}") for name, r in now.items()}}
        STORED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(now))
    else:
        for name, value in now.items():
            of = f"{value / before[name]:.2f} of the stored one" if name in before else "not stored"
            print(f"{name:<6} {value:.4f}  {of}")
    slow = [name for name in now if name in before and now[name] < LEAST * before[name]]
    return 1 if slow and not options.store else 0


if __name__ == "__main__":
    sys.exit(main())
