"""What several resonances together are worth: errors of dk/k at pT 6, 20 and 40 GeV, and whether they are honest.

    python benchmarks/joint.py
    python benchmarks/joint.py --seeds 5 --sample 5e5

Every seed simulates J/psi, Upsilon(1S) with its neighbours, and Z with a random truth (A ~ 3e-4, e ~ 2e-3 GeV, M ~ 2e-5
/GeV), corrects the data with the truth plus a small random error, fits the templates, and puts the resonances together.
Information grows in proportion to the events: the table scales that of the first seed from ``--sample`` data and
``--ratio`` times as many simulated events of each resonance to the sizes asked for, with simulation in the same ratio.
Below it, the joint fit of the small samples against the truth: chi2 per parameter, and errors at pT 40 against those
that were expected. rms is over eta bins and both charges, in 1e-5.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np

from musclecal.apply import correct
from musclecal.binning import TemplateBinning, equal_eta_edges
from musclecal.covariance import chi2_of
from musclecal.fits.contribution import Contribution, of_information
from musclecal.fits.joint_fit import joint_fit
from musclecal.fits.scale_information import scale_information
from musclecal.fits.template_background import expected_purity
from musclecal.fits.template_closure import bin_information, log_derivatives
from musclecal.fits.templates import fill_templates
from musclecal.records import DimuonEvents, Floats, ScaleInformation, ScaleParameters
from musclecal.resonances import resonance
from musclecal.scale import relative_correction
from musclecal.simulate import SimulationSettings, simulate
from musclecal.validation.joint_table import expected_error, joint_text

PTS = (6.0, 20.0, 40.0)

BACKGROUND = {"Jpsi": 0.15, "Y1S": 0.3, "Z": 0.0}
"""Share of the data, by resonance."""

MUON_PT = {"Jpsi": (4.0, 50.0), "Y1S": (4.0, 50.0), "Z": (25.0, 100.0)}
"""GeV."""


def axes_of(name: str, eta_edges: tuple[float, ...]) -> TemplateBinning:
    """The default axes of the template fit of a resonance."""
    r = resonance(name)
    return TemplateBinning(
        eta_edges=eta_edges,
        asymmetry_edges=r.template.asymmetry_edges,
        pt_edges=r.template.pt_edges,
        muon_pt=MUON_PT[name],
        mass_window=r.mass_window,
        mass_bins=r.template.mass_bins,
        mass_reference=r.line.mass,
    )


def settings_of(name: str, truth: ScaleParameters | None, background: float) -> SimulationSettings:
    """Acceptance wider than the analysis; wider still in the mass for simulation."""
    (low, high), window = MUON_PT[name], resonance(name).mass_window
    mass = resonance(name).line.mass
    beyond = 0.05 if truth is None else 0.03
    return SimulationSettings(
        resonance(name),
        (0.97 * low * window[0] / mass, 1.03 * high * window[1] / mass),
        (-2.4, 2.4),
        ((1.0 - beyond) * window[0], (1.0 + beyond) * window[1]),
        truth=truth,
        background=background,
    )


def random_truth(
    rng: np.random.Generator, eta_edges: tuple[float, ...], size: float = 1.0
) -> ScaleParameters:
    """Independent Gaussian A, e, M in every eta bin, ``size`` times the usual ones."""
    n = len(eta_edges) - 1
    a, e, m = (size * rng.normal(0.0, s, n) for s in (3e-4, 2e-3, 2e-5))
    return ScaleParameters(np.array(eta_edges), a, e, m)


def corrected(chunks: Iterator[DimuonEvents], scale: ScaleParameters) -> Iterator[DimuonEvents]:
    """The events after a correction."""
    return (correct(events, scale) for events in chunks)


def information(
    name: str, truth: ScaleParameters, applied: ScaleParameters, signal: float, ratio: float, seed: int
) -> ScaleInformation:
    """What ``signal`` events of a resonance say, in the window and the binning."""
    axes, background = axes_of(name, tuple(truth.eta_edges.tolist())), BACKGROUND[name]
    step = resonance(name).template.step
    simulated_settings, settings = settings_of(name, None, 0.0), settings_of(name, truth, background)
    pilot = 200_000
    per_pair = fill_templates(simulate(simulated_settings, pilot, seed=999), axes, step=step).n_events / pilot
    simulated = fill_templates(
        simulate(simulated_settings, round(ratio * signal / per_pair), 2 * seed), axes, step=step
    )
    per_pair = (
        fill_templates(corrected(simulate(settings, pilot, 998), applied), axes, step=step).n_events / pilot
    )
    n_data = round(signal / (1.0 - background) / per_pair)
    data = fill_templates(corrected(simulate(settings, n_data, 2 * seed + 1), applied), axes, step=step)
    purity = expected_purity(data, simulated) if background else None
    bins = bin_information(data, simulated, log_derivatives(data, simulated), purity=purity)
    return scale_information(bins, name)


def scaled(contribution: Contribution, factor: float) -> Contribution:
    """The same with ``factor`` times the data and the simulation."""
    return replace(contribution, normal=factor * contribution.normal, vector=factor * contribution.vector)


def gain_table(contributions: dict[str, Contribution], wanted: dict[str, float], sample: float) -> str:
    """rms error of dk/k for more and more resonances."""
    lines = [
        "| resonances | " + " | ".join(f"pT {pt:g}" for pt in PTS) + " | largest corr(A, e) |",
        "|---|---|---|---|---|",
    ]
    for names in (["Jpsi"], ["Jpsi", "Y1S"], ["Jpsi", "Z"], ["Jpsi", "Y1S", "Z"], ["Y1S", "Z"], ["Y1S"]):
        fit = joint_fit([scaled(contributions[n], wanted[n] / sample) for n in names])
        covariance = fit.calibration.covariance
        root = np.sqrt(np.diagonal(covariance))
        tied = np.max(np.abs(np.diagonal(covariance, 1)[0::3] / root[0::3] / root[1::3]))
        errors = " | ".join(f"{1e5 * expected_error(fit.calibration, pt):.1f}" for pt in PTS)
        lines.append(f"| {' + '.join(f'{wanted[n]:g} {n}' for n in names)} | {errors} | {tied:.3f} |")
    return "\n".join(lines)


def rms_error(difference: Floats, pt: float) -> float:
    """rms over eta and charges of dk/k at pT."""
    a, e, m = difference.reshape(-1, 3).T
    return float(np.sqrt(np.mean([relative_correction(pt, q, a, e, m) ** 2 for q in (1, -1)])))


def one_seed(seed: int, options: argparse.Namespace) -> dict[str, Contribution]:
    """Contributions of the three resonances, and a line of the joint fit against the truth."""
    rng = np.random.default_rng([seed, 73])
    edges = equal_eta_edges(options.eta_bins, 2.4)
    truth = random_truth(rng, edges)
    off = random_truth(rng, edges, 0.1)
    applied = ScaleParameters(truth.eta_edges, truth.A + off.A, truth.e + off.e, truth.M + off.M)
    contributions: dict[str, Contribution] = {}
    for n, name in enumerate(BACKGROUND):
        start = time.perf_counter()
        said = information(name, truth, applied, options.sample, options.ratio, 10 * seed + n)
        # The simulation has the masses that are assumed: no uncertainty when comparing with its truth.
        contributions[name] = of_information(said, applied, mass_error=0.0)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    for names in (["Jpsi"], ["Jpsi", "Y1S"], ["Jpsi", "Y1S", "Z"]):
        fit = joint_fit([contributions[n] for n in names])
        difference = fit.calibration.parameters - truth.parameters
        test = chi2_of(difference, fit.calibration.covariance)
        errors = ", ".join(
            f"pT {pt:g} {1e5 * rms_error(difference, pt):.1f} ({1e5 * expected_error(fit.calibration, pt):.1f})"
            for pt in PTS
        )
        agreement = (
            f"agreement {fit.calibration.chi2:.0f}/{fit.calibration.ndf} (p = {fit.calibration.p_value:.2g})"
        )
        print(
            f"seed {seed} {' + '.join(names)}: chi2/n {test.chi2 / test.ndf:.2f}; rms (expected) {errors}; {agreement}"
        )
    print(joint_text(fit), flush=True)
    return contributions


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the first seed, and a line for each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument(
        "--sample", type=float, default=1e6, help="events simulated as data, of each resonance"
    )
    parser.add_argument("--ratio", type=float, default=4.0, help="simulated events per event of the data")
    parser.add_argument("--jpsi", type=float, default=5e6)
    parser.add_argument("--upsilon", type=float, default=3e6)
    parser.add_argument("--z", type=float, default=15e6)
    parser.add_argument("--eta-bins", type=int, default=24)
    options = parser.parse_args(arguments)
    wanted = {"Jpsi": options.jpsi, "Y1S": options.upsilon, "Z": options.z}
    for seed in range(options.first, options.first + options.seeds):
        contributions = one_seed(seed, options)
        # The table is that of the real masses.
        real = {
            n: replace(c, mass_error=resonance(n).line.mass_error / resonance(n).line.mass)
            for n, c in contributions.items()
        }
        print(
            gain_table(contributions, wanted, options.sample) + "\n\nwith the uncertainties of the masses\n"
        )
        print(gain_table(real, wanted, options.sample), flush=True)


if __name__ == "__main__":
    main()
