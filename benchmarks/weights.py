"""How well weights stand for a shift of the momentum scale, and how fast they are.

    python benchmarks/weights.py --draws 1e6

Muons of W decays in 24 bins of eta and 30 of pT (26 to 56 GeV), a shift of dk/k of 1e-3 and 1e-4 at 40 GeV by A, e or M
alone. Slopes of the change by weights 1 + theta d ln w, by exp(theta d ln w), and by really moved muons, each against
the expected change (from the exact probability of each generated muon to be in a bin). The response is fitted to the
same muons. With as many muons as there are, weights and moved muons fluctuate: the second column of numbers is the rms
of their slopes over parts of the sample, scaled to the whole.
"""

import argparse
import os
import time
from collections.abc import Iterator

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np
from scipy.special import ndtr

from musclecal.boson_simulation import BosonSettings, simulate_w
from musclecal.bosons import boson
from musclecal.fits.response import fit_response
from musclecal.records import CorrectionTables, DimuonEvents, Floats, Muons, Response
from musclecal.scale import biased_curvature, relative_correction
from musclecal.simulate import default_resolution
from musclecal.validation.plot_style import FIT, draw_points, figure_file
from musclecal.weights import variation_weights, weight_derivatives

RESOLUTION = default_resolution()
ETA_EDGES = RESOLUTION.eta_edges
GEN_PT_EDGES = np.geomspace(20.0, 64.0, 13)
PT_EDGES = np.linspace(26.0, 56.0, 31)
UNITS = {"A": (1.0, 0.0, 0.0), "e": (0.0, 40.0, 0.0), "M": (0.0, 0.0, 1.0 / 40.0)}
PARTS = 10


def w_muons(charge: int, draws: int) -> tuple[Muons, Muons]:
    """Measured and generated muons of W+ or W- that may reach the templates."""
    settings = BosonSettings(boson("W+" if charge > 0 else "W-"), RESOLUTION)
    kept: list[tuple[Muons, Muons]] = []
    for chunk in simulate_w(settings, draws, 3):
        near = (chunk.generated.pt > 19.0) & (chunk.generated.pt < 70.0) & (np.abs(chunk.generated.eta) < 2.4)
        kept.append((chunk.measured.select(near), chunk.generated.select(near)))
    measured, generated = (
        Muons(*(np.concatenate([getattr(part[i], name) for part in kept]) for name in ("pt", "eta", "phi")))
        for i in range(2)
    )
    return measured, generated


def template(pt: Floats, eta: Floats, weights: Floats | None = None) -> Floats:
    return np.histogram2d(eta, pt, [ETA_EDGES, PT_EDGES], weights=weights)[0]


def expected(true: Muons, charge: int, shift: tuple[float, float, float]) -> Floats:
    """The template of muons corrected with ``shift``, on average."""
    i = np.searchsorted(ETA_EDGES, true.eta, side="right") - 1
    sigma = np.sqrt(RESOLUTION.a[i] + RESOLUTION.c[i] * true.pt**2)
    k = np.array([biased_curvature(1.0 / edge, float(charge), *shift) for edge in PT_EDGES])
    above = np.stack([np.bincount(i, ndtr((x * true.pt - 1.0) / sigma), 24) for x in k], axis=1)
    return above[:, :-1] - above[:, 1:]


def slopes(change: Floats, wanted: Floats) -> float:
    return float((change * wanted).sum() / (wanted * wanted).sum())


def compared(response: Response, measured: Muons, true: Muons, charge: int) -> Iterator[str]:
    pt, eta = measured.pt, measured.eta
    derivatives = weight_derivatives(response, pt, eta, charge, true.pt)
    parts = np.arange(len(pt)) // 2 % PARTS
    nominal = {p: expected(true.select(parts == p), charge, (0.0, 0.0, 0.0)) for p in range(PARTS)}
    for name, unit in UNITS.items():
        for size in (1e-3, -1e-3, 1e-4, -1e-4):
            shift = (size * unit[0], size * unit[1], size * unit[2])
            step = derivatives @ np.array(shift)
            to = pt / (1.0 + relative_correction(pt, charge, *shift))
            found, wanted = [], []
            for p in range(PARTS):
                mine = parts == p
                before = template(pt[mine], eta[mine])
                wanted.append(expected(true.select(mine), charge, shift) - nominal[p])
                found.append([
                    template(pt[mine], eta[mine], step[mine]),
                    template(pt[mine], eta[mine], np.expm1(step[mine])),
                    template(to[mine], eta[mine]) - before,
                ])  # fmt: skip
            whole = [slopes(sum(f[n] for f in found), sum(wanted)) for n in range(3)]  # type: ignore[arg-type]
            each = np.array([[slopes(x, w) for x in f] for f, w in zip(found, wanted, strict=True)])
            noise = each.std(axis=0, ddof=1) / np.sqrt(PARTS)
            columns = [f"{a:.3f} +- {b:.3f}" for a, b in zip(whole, noise, strict=True)]
            yield f"| mu{'+' if charge > 0 else '-'} {name} {size:+.0e} | " + " | ".join(columns) + " |"


def speed(response: Response, measured: Muons, true: Muons) -> Iterator[str]:
    n = min(len(measured), 1_000_000)
    columns = measured.pt[:n], measured.eta[:n], 1, true.pt[:n]
    tables = CorrectionTables(
        ETA_EDGES, *np.zeros((3, 24)), np.zeros((72, 72)), 1.0, tuple(f"stat{i}" for i in range(144)),
        np.full((24, 3, 144), 1e-4), (2.0, 200.0), None, {}, {},
    )  # fmt: skip
    weight_derivatives(response, *columns)
    variation_weights(response, tables, *(c[:10] if isinstance(c, np.ndarray) else c for c in columns))
    start = time.perf_counter()
    weight_derivatives(response, *columns)
    middle = time.perf_counter()
    variation_weights(response, tables, *columns)
    end = time.perf_counter()
    yield f"{n / (middle - start) / 1e6:.1f}e6 muons/s (three derivatives, one core)"
    yield f"{(end - middle) / n * 1e6:.2f} microseconds a muon for 144 variations"


def draw(response: Response, measured: Muons, true: Muons, charge: int, path: str) -> None:
    """Relative change of the pT spectrum by each parameter, as expected and by weights, and the difference."""
    pt, size = measured.pt, 1e-4
    derivatives = weight_derivatives(response, pt, measured.eta, charge, true.pt)
    nominal = np.histogram(pt, PT_EDGES)[0]
    with figure_file(path, 11.0, 5.2, pdf=False) as figure:
        axes = figure.subplots(2, 3, sharex=True, height_ratios=(2, 1))
        for (name, unit), (top, bottom) in zip(UNITS.items(), axes.T, strict=True):
            shift = (size * unit[0], size * unit[1], size * unit[2])
            step = derivatives @ np.array(shift)
            wanted = sum(
                expected(true, charge, x).sum(axis=0) * s for x, s in ((shift, 1), ((0.0, 0.0, 0.0), -1))
            )
            change = np.histogram(pt, PT_EDGES, weights=step)[0]
            error = np.sqrt(np.histogram(pt, PT_EDGES, weights=step**2)[0])
            top.stairs(1e3 * wanted / nominal, PT_EDGES, baseline=None, color=FIT, label="moved")
            draw_points(top, PT_EDGES, 1e3 * change / nominal, 1e3 * error / nominal, "weights")
            draw_points(bottom, PT_EDGES, 1e3 * (change - wanted) / nominal, 1e3 * error / nominal, "")
            bottom.axhline(0.0, color=FIT)
            bottom.set_ylim(-0.24, 0.24)
            top.set_title(
                {"A": r"$A = 10^{-4}$", "e": r"$e = 4$ MeV", "M": r"$M = 2.5 \times 10^{-6}$/GeV"}[name]
            )
            bottom.set_xlabel(r"muon $p_T$  [GeV]")
        axes[0, 0].set_ylabel(r"change  [$10^{-3}$]")
        axes[1, 0].set_ylabel(r"difference")
        axes[0, 0].legend(loc="lower left")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--draws", type=float, default=1e6, help="W decays of each charge, two muons from each"
    )
    parser.add_argument(
        "--figure", help="PNG of the changes of the pT spectrum of mu+, instead of the table of slopes"
    )
    options = parser.parse_args()
    plus, minus = (w_muons(charge, int(options.draws)) for charge in (1, -1))
    n = min(len(plus[0]), len(minus[0]))
    (m1, g1), (m2, g2) = ((a.select(np.arange(n)), b.select(np.arange(n))) for a, b in (plus, minus))
    start = time.perf_counter()
    response = fit_response([DimuonEvents(m1, m2, g1, g2)], ETA_EDGES, GEN_PT_EDGES)
    print(f"{n} muons of each charge; response {time.perf_counter() - start:.1f} s, compilation included")
    for text in speed(response, m1, g1):
        print(text)
    if options.figure:
        draw(response, m1, g1, +1, options.figure)
        return
    print("| slope | 1 + theta d ln w | exp | really moved |\n|---|---|---|---|")
    for charge, measured, true in ((1, m1, g1), (-1, m2, g2)):
        for text in compared(response, measured, true, charge):
            print(text, flush=True)


if __name__ == "__main__":
    main()
