"""What the factor s finds, how wide it is and whether its interval covers, for covariances as calibrations have them.

    python benchmarks/systematic.py
    python benchmarks/systematic.py --figures docs/figures

The covariances are those of a Fisher model: kinematics from the simulation of the package, in 24 eta bins, mass scales
as well measured as the mass width and the number of events allow. Toys draw the error of the calibration from s^2 V,
once for all closures, the resonances' masses, and the closures' own errors. One command, three minutes of one core.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np
from scipy.special import chdtrc

from musclecal.binning import Binning, equal_eta_edges
from musclecal.covariance import chi2_of
from musclecal.fits.histogram import fill
from musclecal.fits.scale_fit import scale_calibration
from musclecal.records import (
    BinFits,
    Closure,
    Floats,
    Ints,
    MassFits,
    MassHistogram,
    ScaleCalibration,
    ScaleParameters,
)
from musclecal.resonances import Resonance, resonance
from musclecal.scale import relative_correction
from musclecal.simulate import SimulationSettings, default_resolution, simulate
from musclecal.validation.blind_spots import Check, blind_spot_table
from musclecal.validation.closure import closure_test
from musclecal.validation.scale_factor import (
    Modes,
    covering_factor,
    likelihood_factor,
    likelihood_interval,
    solved_factors,
    toy_factors,
    toy_interval,
)
from musclecal.validation.systematics import (
    expected_factors,
    mass_shift,
    scale_systematic,
    stacked_residuals,
)

N_ETA = 24
SIMULATED = 4.0  # simulated events per event of the data
EVENTS = 300_000


def binning_of(r: Resonance) -> Binning:
    """24 eta bins, and the defaults of the resonance."""
    return Binning(
        equal_eta_edges(N_ETA, 2.4), r.pt_edges, r.mass_window, r.mass_bins, r.line.mass, r.pt_scaled
    )


def histogram_of(name: str) -> MassHistogram:
    """Some simulated events, for the kinematics."""
    r = resonance(name)
    room = 0.2 if r.pt_scaled else 0.03
    settings = SimulationSettings(
        r, ((1.0 - room) * r.pt_edges[0], (1.0 + room) * r.pt_edges[-1]), (-2.4, 2.4), r.mass_window
    )
    return fill(simulate(settings, EVENTS, seed=77), binning_of(r))


def fisher_fits(histogram: MassHistogram, name: str, events: float) -> MassFits:
    """Mass scales of one, with variance w^2/N: w^2 of the resolution, and twice that of half the natural width."""
    r, binning = resonance(name), histogram.binning
    i, j, _, _ = binning.unravel(histogram.bins)
    share = 0.25 * (relative_variance(binning, i, histogram.mean_pt[:, 0]) * histogram.mean_f[:, 0] ** 2)
    share += 0.25 * (relative_variance(binning, j, histogram.mean_pt[:, 1]) * histogram.mean_f[:, 1] ** 2)
    natural = 0.5 * r.line.width / r.line.mass
    n_events = histogram.counts.sum(axis=1) * (events / histogram.n_events)
    data = bin_fits((share + 2.0 * natural**2) / n_events, n_events)
    reference = bin_fits((share + 2.0 * natural**2) / (SIMULATED * n_events), n_events)
    return MassFits(
        binning, name, "fisher", "none", histogram.bins, data, reference, reference,
        histogram.mean_k, histogram.mean_pt, histogram.mean_f, events, events, 0,
    )  # fmt: skip


def relative_variance(binning: Binning, eta_bin: Ints, pt: Floats) -> Floats:
    """(sigma_k/k)^2 of muons of transverse momentum ``pt``."""
    model = default_resolution()
    centre = 0.5 * (np.array(binning.eta_edges)[1:] + np.array(binning.eta_edges)[:-1])[eta_bin]
    n = np.searchsorted(model.eta_edges, centre, side="right") - 1
    return np.asarray(model.a[n] + model.c[n] * pt**2)


def bin_fits(variance: Floats, n_events: Floats) -> BinFits:
    """Converged fits of the scale 1 with this variance."""
    n = len(variance)
    covariance = np.zeros((n, 2, 2))
    covariance[:, 0, 0] = variance
    whole, one = np.zeros(n, dtype=np.int64), np.ones(n)
    parameters = np.stack([one, 0.01 * one], axis=1)
    return BinFits(
        ("scale", "width"),
        parameters,
        covariance,
        whole,
        0 * one,
        one,
        whole + 1,
        n_events,
        n_events,
        whole + 1,
    )


def model(
    histograms: dict[str, MassHistogram], jpsi: float, closures: dict[str, float]
) -> tuple[ScaleCalibration, list[Closure]]:
    """Calibration on ``jpsi`` J/psi, and closures with the given numbers of events; all parameters zero."""
    calibration = scale_calibration(fisher_fits(histograms["Jpsi"], "Jpsi", jpsi))
    return calibration, [
        closure_test(fisher_fits(histograms[name], name, events), calibration)
        for name, events in closures.items()
    ]


def thrown(
    rng: np.random.Generator, calibration: ScaleCalibration, closures: Sequence[Closure], s: float
) -> list[Closure]:
    """The closures of one toy: one error of the calibration for all, each its own mass and statistics."""
    error = s * np.linalg.cholesky(calibration.covariance) @ rng.normal(size=3 * N_ETA)
    toys = []
    for closure in closures:
        a, e, m = error.reshape(N_ETA, 3).T
        seen = np.stack([a - e * closure.mean_k, m], axis=1).ravel()
        own = np.linalg.cholesky(closure.covariance) @ rng.normal(size=2 * N_ETA)
        values = seen + mass_shift(closure) * rng.normal() + own
        toys.append(replace(closure, values=values.reshape(N_ETA, 2)))
    return toys


def described(values: Floats) -> str:
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84])
    return f"{middle:.3f} ({low:.2f} ... {high:.2f})"


def spread_rows(cases: dict[str, Floats]) -> list[str]:
    rows = [
        "| covariances | n | V_J/V_C: least, median, largest | s, true 1 | s = 0 | in 0.78-1.22 | s, true 2.1 "
        "| ML, true 1 | ML, true 2.1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rng = np.random.default_rng(98)
    for name, ratio in cases.items():
        found = {s: toy_factors(ratio, s) for s in (1.0, 2.1)}
        likelihood = {
            s: [likelihood_factor(modes) for modes in experiments(rng, ratio, s, 1000)] for s in (1.0, 2.1)
        }
        rows.append(
            f"| {name} | {ratio.size} | {ratio.min():.2g}, {np.median(ratio):.2g}, {ratio.max():.2g} | "
            f"{described(found[1.0])} | {100 * np.mean(found[1.0] == 0.0):.1f} % | "
            f"{100 * np.mean(np.abs(found[1.0] - 1.0) < 0.22):.1f} % | {described(found[2.1])} | "
            f"{described(np.array(likelihood[1.0]))} | {described(np.array(likelihood[2.1]))} |"
        )
    return rows


def experiments(rng: np.random.Generator, ratio: Floats, s: float, n: int) -> list[Modes]:
    """Residuals of experiments whose true factor is ``s``."""
    pulls = rng.normal(size=(n, ratio.size)) ** 2
    return [Modes(row * (1.0 + s * s * ratio), ratio) for row in pulls]


def by_inversion(modes: Modes) -> tuple[tuple[float, float], ...]:
    return toy_interval(covering(modes), modes.ratio, n_toys=2000)


def by_percentiles(modes: Modes) -> tuple[tuple[float, float], ...]:
    toys = toy_factors(modes.ratio, covering(modes), n_toys=2000)
    low, lower, upper, high = np.quantile(toys, [0.025, 0.16, 0.84, 0.975])
    return (lower, upper), (low, high)


def by_likelihood(modes: Modes) -> tuple[tuple[float, float], ...]:
    return likelihood_interval(modes, likelihood_factor(modes))


def covering(modes: Modes) -> float:
    return float(solved_factors(modes.pull_squared[None, :], modes.ratio)[0])


METHODS: dict[str, Callable[[Modes], tuple[tuple[float, float], ...]]] = {
    "inversion": by_inversion,
    "percentiles at s": by_percentiles,
    "likelihood": by_likelihood,
}


def coverage_rows(cases: dict[str, Floats], n: int) -> list[str]:
    rows = [
        f"| covariances | true s | {' | '.join(f'{name}: 68 %, 95 %' for name in METHODS)} |",
        "|---|---|" + "---|" * len(METHODS),
    ]
    rng = np.random.default_rng(99)
    for name, ratio in cases.items():
        for s in (0.5, 1.0, 2.1):
            toys = experiments(rng, ratio, s, n)
            cells = []
            for method in METHODS.values():
                inside = np.array([[low <= s <= high for low, high in method(modes)] for modes in toys])
                cells.append(", ".join(f"{100 * share:.1f}" for share in inside.mean(axis=0)))
            rows.append(f"| {name} | {s:g} | {' | '.join(cells)} |")
    return rows


def chain_rows(cases: dict[str, tuple[ScaleCalibration, list[Closure]]], n: int) -> list[str]:
    """Through `scale_systematic`: the error of the calibration drawn in A, e, M, not in modes."""
    rows = ["| closures | true s | joint s | joint ML | chi2/n at s = 1 |", "|---|---|---|---|---|"]
    rng = np.random.default_rng(5)
    for name, (calibration, closures) in cases.items():
        for s in (1.0, 2.1):
            found = [
                scale_systematic(calibration, thrown(rng, calibration, closures, s), n_toys=50).joint
                for _ in range(n)
            ]
            rows.append(
                f"| {name} | {s:g} | {described(np.array([f.s for f in found]))} | "
                f"{described(np.array([f.s_ml for f in found]))} | {np.mean([f.chi2 / f.ndf for f in found]):.2f} |"
            )
    return rows


Correction = Callable[[Floats, float], Floats]
"""What muons of this pT (GeV) and charge still need, dk/k."""


def needing(fits: MassFits, x: Correction, applied: ScaleParameters | None = None) -> MassFits:
    """Mass scales of muons that need the correction ``x``, after ``applied``."""
    factors = []
    for column, (charge, eta_bin) in enumerate(
        zip((1.0, -1.0), fits.binning.unravel(fits.bins)[:2], strict=True)
    ):
        pt = fits.mean_pt[:, column]
        still = x(pt, charge)
        if applied is not None:
            a, e, m = applied.A[eta_bin], applied.e[eta_bin], applied.M[eta_bin]
            still = still - relative_correction(pt, charge, a, e, m)
        factors.append(1.0 + fits.mean_f[:, column] * still)
    scale = np.sqrt(factors[0] * factors[1])
    return replace(fits, data=replace(fits.data, parameters=np.stack([scale, fits.data.width], axis=1)))


def nothing(pt: Floats, _: float) -> Floats:
    return 0.0 * pt


MODELS: dict[str, tuple[Correction, Correction]] = {
    "nothing": (nothing, nothing),
    "pT^2 term, 4e-7 pT^2": (lambda pt, _: 4e-7 * pt**2, nothing),
    "pT^2 term, 1e-7 pT^2": (lambda pt, _: 1e-7 * pt**2, nothing),
    "charge-odd pT^2 term, 1e-7 q pT^2": (lambda pt, q: 1e-7 * q * pt**2, nothing),
    "e of 2 MeV applied with the wrong sign": (nothing, lambda pt, _: -4e-3 / pt),
    "M of 2e-5 applied with the wrong sign": (nothing, lambda pt, q: 4e-5 * q * pt),
    "phi modulation of 1e-3, cos(phi)": (nothing, nothing),  # its average over phi
}
"""Injected: what all muons need before the calibration, which finds what it can, and what is added afterwards."""


def expected_checks(histograms: dict[str, MassHistogram]) -> list[Check]:
    """What each test finds on average: 5e6 J/psi, 5e6 Y, 1.5e7 Z, the stated uncertainties being right otherwise."""
    events = {"Jpsi": 5e6, "Y1S": 5e6, "Z": 1.5e7}
    fits = {name: fisher_fits(histograms[name], name, n) for name, n in events.items()}
    checks = []
    for model_name, (before, after) in MODELS.items():
        found = scale_calibration(needing(fits["Jpsi"], before))

        def left(pt: Floats, q: float, both: tuple[Correction, Correction] = (before, after)) -> Floats:
            return both[0](pt, q) + both[1](pt, q)

        for name, parameters in (("Z", ("A", "M")), ("Y1S", ("A", "M")), ("Y1S", ("A", "e", "M"))):
            closure = closure_test(needing(fits[name], left, found), found, parameters)
            modes = stacked_residuals(found, [closure]).modes
            average = Modes(modes.pull_squared + 1.0 + modes.ratio, modes.ratio)
            chi2 = average.chi2(1.0)
            p = float(chdtrc(average.ratio.size, chi2))
            checks.append(Check(model_name, f"{name}: {', '.join(parameters)}", p, covering_factor(average)))
        again = scale_calibration(needing(fits["Jpsi"], left, found))
        second = chi2_of(again.parameters, again.covariance)  # the same events: nothing fluctuates
        checks.append(Check(model_name, "second J/psi pass", second.p_value))
    return checks


def figures(folder: Path, calibration: ScaleCalibration, closures: list[Closure]) -> None:
    """The figures of docs/systematic.md: one toy whose calibration is 2.1 times worse than it says."""
    from musclecal.validation import systematic_plots as plots

    toys = thrown(np.random.default_rng(12), calibration, closures, 2.1)
    stacks = [stacked_residuals(calibration, [toy]) for toy in toys]
    chi2 = [stack.modes.chi2(1.0) for stack in stacks]
    toys = [replace(toy, s=1.0, chi2=x) for toy, x in zip(toys, chi2, strict=True)]
    systematic = scale_systematic(calibration, toys, quote="Z")
    z = next(toy for toy in toys if toy.resonance == "Z")
    plots.plot_scaled_closure(z, calibration, systematic, folder / "systematic_closure.png")
    plots.plot_s_toys(
        systematic.factor("Z"),
        expected_factors(calibration, [z]),
        folder / "systematic_s.png",
        expected_factors(calibration, [z], systematic.factor("Z").s),
    )


def main() -> None:
    """Print the tables of docs/systematic.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=2000, help="per coverage")
    parser.add_argument("--figures", type=Path, help="draw the figures of the page into this folder")
    options = parser.parse_args()
    histograms = {name: histogram_of(name) for name in ("Jpsi", "Y1S", "Z")}
    chains = {
        "Z, 1e6 J/psi, 5e5 Z": model(histograms, 1e6, {"Z": 5e5}),
        "Z, 5e6 J/psi, 1.5e7 Z": model(histograms, 5e6, {"Z": 1.5e7}),
        "Y(1S), 1e6 J/psi, 5e6 Y": model(histograms, 1e6, {"Y1S": 5e6}),
        "both, 5e6 J/psi, 5e6 Y, 1.5e7 Z": model(histograms, 5e6, {"Y1S": 5e6, "Z": 1.5e7}),
    }
    cases = {"V_J = V_C": np.ones(48), "V_J = 2 V_C": np.full(48, 2.0)}
    cases |= {name: stacked_residuals(*chain).modes.ratio for name, chain in chains.items()}
    if options.figures:
        figures(options.figures, *chains["Z, 5e6 J/psi, 1.5e7 Z"])
    v = chains["Z, 1e6 J/psi, 5e5 Z"][0].covariance
    ae = v[0::3, 1::3].diagonal() / np.sqrt(v[0::3, 0::3].diagonal() * v[1::3, 1::3].diagonal())
    print(f"correlation of A and e in an eta bin: {ae.min():.3f} to {ae.max():.3f}\n")
    print("\n".join(spread_rows(cases)), "\n")
    uneven = ("V_J = V_C", "Z, 1e6 J/psi, 5e5 Z", "both, 5e6 J/psi, 5e6 Y, 1.5e7 Z")
    print("\n".join(coverage_rows({name: cases[name] for name in uneven}, options.experiments)), "\n")
    print("\n".join(chain_rows(chains, 200)), "\n")
    print(blind_spot_table(expected_checks(histograms)), "\n")
    start = time.perf_counter()
    toy_factors(np.ones(96))
    print(f"{time.perf_counter() - start:.2f} s for 10,000 toys of 96 residuals")


if __name__ == "__main__":
    main()
