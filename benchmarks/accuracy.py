"""How far the calibration is from the truth: many simulated campaigns with random truth, one line of numbers each.

    python benchmarks/accuracy.py --seeds 20
    python benchmarks/accuracy.py --seeds 2 --jpsi 2e7 --eta-bins 48
    python benchmarks/accuracy.py --seeds 6 --exponent-factor 1.2 --reweight
    python benchmarks/accuracy.py --seeds 10 --jpsi 5e6 --upsilon 3e6

A seed is a random truth (A ~ 3e-4, e ~ 2e-3 GeV, M ~ 2e-5 /GeV), J/psi data with 15 % background biased with its
exact inverse, and four times as many simulated J/psi. d is result - truth; L(pT) the error of dk/k at pT averaged over
eta bins and charges. Units: 1e-5 for L and rms.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np

from musclecal.apply import correct
from musclecal.binning import Binning, equal_eta_edges
from musclecal.covariance import chi2_of
from musclecal.fits.histogram import fill
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.reweight import spectrum_counts, spectrum_weights
from musclecal.fits.scale_fit import scale_calibration
from musclecal.records import DimuonEvents, MassHistogram, ScaleCalibration, ScaleParameters
from musclecal.resonances import resonance
from musclecal.scale import relative_correction
from musclecal.simulate import SimulationSettings, default_resolution, simulate
from musclecal.validation.closure import closure_test, mean_residual

Chunks = Callable[[], Iterable[DimuonEvents]]

PT_EDGES = (4.0, 4.9, 6.4, 9.5, 40.0)
MODELS = ("simulation-shape", "generator-template")

# statistic: (lower bar, upper bar, ideal mean or None), from the accuracy requirements of the project
BARS = {
    "chi2/n": (0.6, 1.55, 1.0),
    "rms pull A": (0.6, 1.5, None),
    "rms pull e": (0.6, 1.5, None),
    "rms pull M": (0.6, 1.4, None),
    "L(6)": (-2.5, 2.5, 0.0),
    "L(40)": (-9.5, 9.5, 0.0),
    "rms(10)": (0.0, 20.5, None),
    "rms(40)": (0.0, 67.0, None),
    "fit chi2/ndf": (0.94, 1.09, 1.0),
    "second pass chi2/n": (0.0, 0.15, None),
    "events fraction": (0.99, 1.0, None),
}


def random_truth(seed: int, eta_edges: tuple[float, ...]) -> ScaleParameters:
    """Independent Gaussian A, e, M of the usual size in every eta bin."""
    rng = np.random.default_rng([seed, 71])
    n = len(eta_edges) - 1
    return ScaleParameters(
        np.array(eta_edges), rng.normal(0, 3e-4, n), rng.normal(0, 2e-3, n), rng.normal(0, 2e-5, n)
    )


def loose(name: str, pt_edges: tuple[float, ...], beyond: float = 0.015) -> SimulationSettings:
    """Acceptance a little wider than the analysis, as an ntuple has: the mass window by the fraction ``beyond``."""
    r = resonance(name)
    low, high = r.mass_window
    room = 0.2 if r.pt_scaled else 0.03
    return SimulationSettings(
        r,
        ((1.0 - room) * pt_edges[0], (1.0 + room) * pt_edges[-1]),
        (-2.4, 2.4),
        ((1.0 - beyond) * low, (1.0 + beyond) * high),
    )


def number_for(settings: SimulationSettings, inside: float, binning: Binning) -> int:
    """Pairs to simulate so that ``inside`` of them fall into the binning."""
    pilot = 200_000
    found = fill(simulate(settings, pilot, seed=999), binning).n_events
    return round(inside * pilot / found)


def statistics(calibration: ScaleCalibration, truth: ScaleParameters) -> dict[str, float]:
    """All numbers of one seed."""
    difference = calibration.parameters - truth.parameters
    d = difference.reshape(-1, 3)
    pulls = d / np.sqrt(np.diag(calibration.covariance)).reshape(-1, 3)

    def error_at(pt: float) -> np.ndarray:
        return 1e5 * np.array([relative_correction(pt, q, d[:, 0], d[:, 1], d[:, 2]) for q in (1, -1)])

    ones = np.tile([0.0, 0.0, 1.0], len(d)) / len(d)
    return {
        "chi2/n": chi2_of(difference, calibration.covariance).chi2 / len(difference),
        **{f"rms pull {name}": float(np.sqrt(np.mean(pulls[:, p] ** 2))) for p, name in enumerate("AeM")},
        "pull of mean M": float(ones @ difference / np.sqrt(ones @ calibration.covariance @ ones)),
        "L(6)": float(error_at(6.0).mean()),
        "L(40)": float(error_at(40.0).mean()),
        "rms(10)": float(np.sqrt(np.mean(error_at(10.0) ** 2))),
        "rms(40)": float(np.sqrt(np.mean(error_at(40.0) ** 2))),
        "fit chi2/ndf": calibration.chi2 / calibration.ndf,
        "events fraction": calibration.events_fraction,
        "converged fraction": calibration.converged_fraction,
    }


def corrected(chunks: Iterable[DimuonEvents], scale: ScaleParameters | None) -> Iterator[DimuonEvents]:
    """The events after a correction."""
    return (events if scale is None else correct(events, scale) for events in chunks)


def reference(simulation: Chunks, data: Chunks, binning: Binning, reweight: bool) -> MassHistogram:
    """Histogram of the simulation, reweighted to the data's spectrum if asked."""
    if not reweight:
        return fill(simulation(), binning)
    weights = spectrum_weights(
        spectrum_counts(data(), binning), spectrum_counts(simulation(), binning), binning
    )
    return fill(simulation(), binning, weight=weights)


def one_seed(seed: int, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Rows of numbers of one seed: one per model and pass, and one for the Upsilon."""
    edges = equal_eta_edges(options.eta_bins, 2.4)
    truth = random_truth(seed, edges)
    r = resonance("Jpsi")
    binning = Binning(edges, tuple(options.pt_edges), r.mass_window, r.mass_bins, r.line.mass)
    settings = loose("Jpsi", binning.pt_edges, 0.12)
    spectrum = replace(r.spectrum, exponent=1.0 + (r.spectrum.exponent - 1.0) * options.exponent_factor)
    biased = replace(
        loose("Jpsi", binning.pt_edges),
        truth=truth,
        background=0.15,
        resolution=default_resolution().scaled(options.resolution_factor),
        spectrum=spectrum,
    )
    n_data = number_for(biased, options.jpsi / 0.85, binning)
    n_simulated = number_for(settings, options.ratio * options.jpsi, binning)

    def data(scale: ScaleParameters | None = None) -> Iterator[DimuonEvents]:
        return corrected(simulate(biased, n_data, 2 * seed), scale)

    def simulation() -> Iterator[DimuonEvents]:
        return simulate(settings, n_simulated, 2 * seed + 1)

    simulated = reference(simulation, data, binning, options.reweight)
    calibration: ScaleCalibration | None = None
    for model in options.models:
        calibration = None
        for number in range(options.passes):
            start = time.perf_counter()
            fits = fit_masses(fill(data(calibration), binning), simulated, r, MassModel(model))
            calibration = scale_calibration(fits, calibration)
            row: dict[str, object] = {"seed": seed, "model": model, "pass": number + 1}
            row |= statistics(calibration, truth)
            if calibration.residual_chi2 is not None:
                row["second pass chi2/n"] = calibration.residual_chi2
            row["seconds"] = time.perf_counter() - start
            yield row
    if options.upsilon:
        assert calibration is not None
        yield upsilon(seed, calibration, truth, options)


def upsilon(
    seed: int, calibration: ScaleCalibration, truth: ScaleParameters, options: argparse.Namespace
) -> dict[str, object]:
    """Closure on the Upsilon(1S): residual A and M, and what it is without any correction."""
    r = resonance("Y1S")
    binning = Binning(calibration.eta_edges, r.pt_edges, r.mass_window, r.mass_bins, r.line.mass)
    settings = loose("Y1S", r.pt_edges, 0.12)
    biased = replace(loose("Y1S", r.pt_edges), truth=truth)
    n = int(options.upsilon)
    simulated = fill(simulate(settings, 4 * n, 5000 + 2 * seed), binning)
    row: dict[str, object] = {"seed": seed, "model": "Upsilon(1S) closure", "pass": options.passes + 1}
    for name, scale in (("", calibration), (" uncorrected", None)):
        events = fill(corrected(simulate(biased, n, 5001 + 2 * seed), scale), binning)
        fits = fit_masses(events, simulated, r, MassModel(options.models[-1]))
        closure = closure_test(fits, scale)
        row[f"chi2/n{name}"] = closure.chi2 / closure.ndf
        if scale is not None:
            row["s"] = closure.s
        row[f"mean A{name}"] = 1e5 * mean_residual(closure)[0]
        row[f"pull of mean M{name}"] = np.divide(*mean_residual(closure, "M")[::2])
    return row


def verdict(rows: list[dict[str, object]]) -> str:
    """Markdown tables: mean and spread over seeds against the bars, per model and pass."""
    lines: list[str] = []
    for model, number in dict.fromkeys((row["model"], row["pass"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["pass"]) == (model, number)]
        lines += [
            f"\n{model}, pass {number}, {len(chosen)} seeds\n",
            "| statistic | mean +- spread | bar | inside |",
        ]
        lines.append("|---|---|---|---|")
        keys = [
            k for k in chosen[0] if k not in ("seed", "model", "pass", "seconds") and chosen[0][k] is not None
        ]
        for key in keys:
            values = np.array([float(str(row[key])) for row in chosen])
            low, high, ideal = BARS.get(key, (None, None, None))
            if key == "L(6)" and model == "generator-template":
                low, high = -3.3, 3.3
            spread = values.std(ddof=1) if len(values) > 1 else float("nan")
            line = f"| {key} | {values.mean():.3f} +- {spread:.3f}"
            if low is None or "Upsilon" in str(model):
                lines.append(line + " | | |")
                continue
            inside = np.mean((values >= low) & (values <= high))
            line += f" | {low:g} ... {high:g} | {100 * inside:.0f} %"
            if ideal is not None and len(values) > 1:
                line += f", mean {(values.mean() - ideal) / (spread / np.sqrt(len(values))):+.1f} s.e. from {ideal:g}"
            lines.append(line + " |")
        if "rms pull A" in chosen[0]:
            squares = [float(str(row[f"rms pull {p}"])) ** 2 for row in chosen for p in "AeM"]
            lines.append(f"\npooled pull width {np.sqrt(np.mean(squares)):.3f}")
    return "\n".join(lines)


def main() -> None:
    """Run the seeds; rows go to stderr as they come, the tables to stdout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jpsi", type=float, default=1e6, help="J/psi inside the binning")
    parser.add_argument("--ratio", type=float, default=4.0, help="simulated J/psi per J/psi")
    parser.add_argument("--eta-bins", type=int, default=24)
    parser.add_argument("--pt-edges", type=float, nargs="+", default=list(PT_EDGES))
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--resolution-factor", type=float, default=1.0, help="of the data")
    parser.add_argument(
        "--exponent-factor", type=float, default=1.0, help="on the slope of the pT spectrum of the data"
    )
    parser.add_argument("--reweight", action="store_true")
    parser.add_argument("--upsilon", type=float, default=0.0, help="Upsilon(1,2,3S) to close on")
    parser.add_argument("--rows", type=Path, help="keep the rows in this file, one JSON object a line")
    parser.add_argument("--summary", action="store_true", help="only the tables of the rows in --rows")
    options = parser.parse_args()
    if options.summary:
        print(verdict([json.loads(line) for line in options.rows.read_text().splitlines()]))
        return
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        for row in one_seed(seed, options):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if options.rows:
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(verdict(rows))


if __name__ == "__main__":
    main()
