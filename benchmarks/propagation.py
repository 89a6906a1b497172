"""What a calibration does to m_W and m_Z: sensitivities, what they depend on, and the table of a campaign.

    python benchmarks/propagation.py sensitivities --draws 1e7
    python benchmarks/propagation.py dependence --draws 3e6
    python benchmarks/propagation.py table --jpsi 2.5e6 --s 2.1

The J/psi row of the table comes from the package's own chain on simulated events (simulate, fill, fit, extract).
The Z closure row takes errors of A and M per eta bin as given, uncorrelated, and the resolution row relative errors
of a and c: both are examples.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import replace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np
from accuracy import PT_EDGES, loose, number_for, random_truth

from musclecal.binning import Binning, equal_eta_edges
from musclecal.boson_simulation import BosonSettings
from musclecal.bosons import boson
from musclecal.fits.histogram import fill
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.scale_fit import scale_calibration
from musclecal.records import BosonTemplates, ScaleCalibration, ScaleParameters
from musclecal.resonances import resonance
from musclecal.simulate import default_resolution, no_bias, simulate
from musclecal.validation.propagation import (
    calibration_sources,
    derivative_noise,
    fitted_shift,
    impacts_table,
    mass_impacts,
    only_groups,
    sensitivity_by_group,
)
from musclecal.validation.propagation_plots import plot_mass_impacts
from musclecal.validation.w_templates import WBinning, w_templates
from musclecal.validation.z_templates import ZBinning, z_templates

LEP = 2.1e-3 / 91.19
UNITS = np.array([1e-5, 1e-3, 1e-6])
"""1e-5 in A, 1 MeV in e, 1e-6/GeV in M."""


def summed(templates: BosonTemplates) -> tuple[np.ndarray, float]:
    """dm/d(A, e, M) common to all eta bins in MeV per `UNITS`, and the statistical error of m in MeV."""
    impacts = mass_impacts(templates, calibration_sources(templates.n_eta, mass_error=LEP))
    return impacts.scale_sensitivity.sum(axis=0) * UNITS, impacts.statistical


def line(name: str, templates: BosonTemplates) -> str:
    """One row: sensitivities to A, e, M, the statistical error."""
    values, statistical = summed(templates)
    return f"| {name} | " + " | ".join(f"{x:+.3f}" for x in values) + f" | {statistical:.2f} |"


HEADER = "| | dm/dA per 1e-5 | dm/de per MeV | dm/dM per 1e-6/GeV | stat, 16.8/fb |\n|---|---|---|---|---|"


def sensitivities(options: argparse.Namespace) -> Iterator[str]:
    """The sizes that are known beforehand."""
    start = time.perf_counter()
    w = w_templates(WBinning(equal_eta_edges(options.eta_bins, 2.4)), n_draws=options.draws)
    middle = time.perf_counter()
    z = z_templates(ZBinning(equal_eta_edges(options.eta_bins, 2.4)), n_draws=options.draws)
    yield f"W {middle - start:.1f} s, Z {time.perf_counter() - middle:.1f} s, compilation included"
    for templates in (w, z):
        yield f"{templates.boson}: noise of dn/dm {derivative_noise(templates):.2e} of the information"
    yield HEADER
    n = options.eta_bins
    yield line("m_W", w)
    yield line("m_W, mu+ alone", only_groups(w, range(n)))
    yield line("m_W, mu- alone", only_groups(w, range(n, 2 * n)))
    yield line("m_Z", z)
    parts = sensitivity_by_group(w).reshape(2, n, n, 3).sum(axis=(1, 2)) * UNITS
    yield f"parts of mu+ and mu- in the fit of both: A {parts[:, 0]}, e {parts[:, 1]}, M {parts[:, 2]}"
    weaker = replace(no_bias(w.eta_edges), A=np.full(n, 0.003 / 3.8))
    moved = w_templates(WBinning(tuple(w.eta_edges)), n_draws=options.draws, correction=weaker)
    linear = summed(w)[0][0] * 0.003 / 3.8 / 1e-5
    yield f"0.003 T of 3.8 T: {linear:.1f} MeV linear, {fitted_shift(w, moved.counts):.1f} MeV by moved events"


def dependence(options: argparse.Namespace) -> Iterator[str]:
    """What the sensitivities of m_W owe to the generator and to the selection."""
    yield HEADER
    yield line("default", w_templates(n_draws=options.draws))
    for text, changes in (
        ("p0 = 4 GeV, mean pT of the W", {"p0": 4.0}),
        ("p0 = 10 GeV, mean pT of the W", {"p0": 10.0}),
        ("no valence quarks, mean pT of the W", {"valence": 0.0}),
    ):
        plus, minus = (BosonSettings(replace(boson(name), **changes)) for name in ("W+", "W-"))
        means = f" {plus.boson.mean_pt:.1f} GeV"
        yield line(text + means, w_templates(plus=plus, minus=minus, n_draws=options.draws))
    unpolarised = [
        BosonSettings(replace(b, angular=replace(b.angular, a0=0.0, a2=0.0)))
        for b in (boson("W+"), boson("W-"))
    ]
    yield line("A0 = A2 = 0", w_templates(plus=unpolarised[0], minus=unpolarised[1], n_draws=options.draws))
    silent = [BosonSettings(boson(name), fsr=False) for name in ("W+", "W-")]
    yield line("no radiation", w_templates(plus=silent[0], minus=silent[1], n_draws=options.draws))
    worse = default_resolution().scaled(1.5)
    yield line("resolution x 1.5", w_templates(resolution=worse, n_draws=options.draws))
    for low, high in ((30.0, 50.0), (26.0, 65.0)):
        edges = tuple(np.arange(low, high + 0.5))
        yield line(
            f"pT {low:g} to {high:g} GeV", w_templates(WBinning(pt_edges=edges), n_draws=options.draws)
        )
    half = tuple(np.arange(26.0, 56.25, 0.5))
    yield line("pT bins of 0.5 GeV", w_templates(WBinning(pt_edges=half), n_draws=options.draws))
    for window in ((76.0, 106.0, 31), (82.0, 100.0, 37)):
        for pt in ((26.0, 60.0), (20.0, 100.0)):
            binning = ZBinning(mass_edges=tuple(np.linspace(*window)), muon_pt=pt)
            name = f"m_Z, {window[0]:g} to {window[1]:g} GeV, muon pT {pt[0]:g} to {pt[1]:g} GeV"
            yield line(name, z_templates(binning, n_draws=options.draws))


def jpsi_calibration(n_jpsi: float, eta_bins: int, seed: int) -> tuple[ScaleCalibration, ScaleParameters]:
    """One pass of the chain on ``n_jpsi`` J/psi with background and 4 times as many simulated ones; the truth."""
    edges = equal_eta_edges(eta_bins, 2.4)
    truth = random_truth(seed, edges)
    r = resonance("Jpsi")
    binning = Binning(edges, PT_EDGES, r.mass_window, r.mass_bins, r.line.mass)
    settings = loose("Jpsi", PT_EDGES, 0.12)
    biased = replace(loose("Jpsi", PT_EDGES), truth=truth, background=0.15)
    data = fill(simulate(biased, number_for(biased, n_jpsi / 0.85, binning), 2 * seed), binning)
    simulated = fill(simulate(settings, number_for(settings, 4.0 * n_jpsi, binning), 2 * seed + 1), binning)
    return scale_calibration(fit_masses(data, simulated, r, MassModel("simulation-shape"))), truth


def table(options: argparse.Namespace) -> Iterator[str]:
    """The table, with and without the other rows."""
    n = options.eta_bins
    calibration, truth = jpsi_calibration(options.jpsi, n, seed=1)
    binning = WBinning(equal_eta_edges(n, 2.4))
    w = w_templates(binning, n_draws=options.draws)
    z = z_templates(ZBinning(binning.eta_edges), n_draws=options.draws)
    r = default_resolution()
    centres = 0.5 * (w.eta_edges[1:] + w.eta_edges[:-1])
    at = np.searchsorted(r.eta_edges, centres) - 1
    errors = np.stack(
        [options.resolution_error * r.a[at], options.resolution_error * r.c[at]], axis=1
    ).ravel()
    sources = calibration_sources(
        n,
        calibration=calibration.covariance,
        s=options.s,
        closure=np.diag(np.tile([options.closure_a, options.closure_m], n) ** 2),
        mass_error=LEP,
        resolution=np.diag(errors**2),
    )
    impacts = [mass_impacts(x, sources) for x in (w, z)]
    yield impacts_table(*impacts)
    if options.figure:
        plot_mass_impacts(impacts, options.figure)
    alone = calibration_sources(n, calibration=calibration.covariance)
    yield "\nJ/psi alone, s = 1:\n" + impacts_table(*(mass_impacts(x, alone) for x in (w, z)))
    shift = impacts[0].scale_sensitivity.ravel() @ (calibration.parameters - truth.parameters)
    yield f"\nin this sample the calibration is off the truth by what moves m_W by {shift:+.1f} MeV (one pass)"


def main() -> None:
    """Print one of the three parts as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("sensitivities", "dependence", "table"))
    parser.add_argument("--draws", type=float, default=1e7, help="generated W decays per charge, Z decays")
    parser.add_argument("--eta-bins", type=int, default=24)
    parser.add_argument("--jpsi", type=float, default=2.5e6, help="J/psi inside the binning")
    parser.add_argument("--s", type=float, default=2.1)
    parser.add_argument(
        "--closure-a", type=float, default=11.5e-5, help="error of A per eta bin, of the Z closure"
    )
    parser.add_argument("--closure-m", type=float, default=4.6e-6, help="error of M per eta bin, 1/GeV")
    parser.add_argument(
        "--resolution-error", type=float, default=0.03, help="relative error of a and c per eta bin"
    )
    parser.add_argument("--figure", help="PNG of the table")
    options = parser.parse_args()
    for text in {"sensitivities": sensitivities, "dependence": dependence, "table": table}[options.part](
        options
    ):
        print(text, flush=True)


if __name__ == "__main__":
    main()
