"""Module corrections against the truth that was injected: how much of the bias of the momentum scale is left.

    python -m benchmarks.modules --pairs 1e5 --seed 1
    python -m benchmarks.modules --pairs 1e5 --seed 1 --no-mass --json
    python -m benchmarks.modules --pairs 2e4 --detector barrel --figures docs/figures

J/psi pairs with radiation through a detector like that of CMS in 2016 that is displaced, in a field and with matter
that are not as assumed (`musclecal.geometry.misalignment`, its usual sizes); hits with 98 % efficiency; all fits start
from the hits. The target of the mass comes from a simulation of the nominal detector. Bias: dk/k = even + q odd of
muons of 10 and 40 GeV in 24 bins of eta, root of the mean square. Score: gradient over its standard deviation at the
true parameters, which must be N(0, 1), parameter by parameter and along each type of parameter as a whole.

One line of JSON on stdout with --json, or a table; progress on stderr.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from musclecal.geometry.block_matrix import block_times
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.mass_target import mass_constraint
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.module_equations import ModuleEquations
from musclecal.geometry.module_fit import (
    ModuleModel,
    Pass,
    fit_modules,
    module_model,
    module_sums,
)
from musclecal.geometry.modules import variance_of
from musclecal.geometry.momentum_bias import MomentumBias, bias_combinations, momentum_bias
from musclecal.geometry.refit import DEFAULT_CUTS, RefitCuts
from musclecal.geometry.simulate import DetectorEffects, simulate_pairs, track_maker
from musclecal.records import (
    PARAMETER_TYPES,
    Detector,
    FieldMap,
    Floats,
    MassConstraint,
    ModuleSums,
    Pairs,
)
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

WINDOW = (2.9, 3.3)
"""GeV, of the fitted mass."""
EFFECTS = DetectorEffects(efficiency=0.98)
REFERENCE_PAIRS = 500_000
"""The error of their mean mass is 1.5e-5."""
PTS = (10.0, 40.0)
CARRIED_PTS = (4.0, 6.0, 10.0, 20.0, 40.0)
"""GeV, of the biases that --save keeps for benchmarks/modules_scale.py."""


@dataclass(frozen=True)
class Setup:
    """A detector, where it really is, and where its muons go."""

    detector: Detector
    field_map: FieldMap
    truth: Floats
    eta_max: float

    @property
    def eta(self) -> Floats:
        """Middles of 24 bins."""
        edges = np.linspace(-self.eta_max, self.eta_max, 25)
        return np.asarray(0.5 * (edges[1:] + edges[:-1]))

    def bias(self, assumed: Floats, pts: Sequence[float] = PTS) -> tuple[MomentumBias, ...]:
        """At each of ``pts`` (GeV)."""
        return tuple(
            momentum_bias(self.detector, self.field_map, self.truth, assumed, pt, self.eta) for pt in pts
        )

    def pairs(self, truth: Floats, n: int, seed: int) -> Iterator[Pairs]:
        """J/psi in chunks."""
        settings = SimulationSettings(
            resonance("Jpsi"), (3.0, 60.0), (-self.eta_max, self.eta_max), (2.6, 3.5)
        )
        maker = track_maker(self.detector, self.field_map, truth, EFFECTS)
        return simulate_pairs(maker, settings, n, seed)


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def reference_mass(setup: Setup, seed: int) -> MassConstraint:
    """From a simulation in which nothing is wrong."""
    nominal = np.zeros_like(setup.truth)
    planes = planes_of(setup.detector, setup.field_map)
    return mass_constraint(lambda: setup.pairs(nominal, REFERENCE_PAIRS, seed), planes, WINDOW)


def scores(sums: ModuleSums, model: ModuleModel) -> tuple[dict[str, float], dict[str, float]]:
    """Root mean square of the scores of parameters by type, and the score of each type as a whole."""
    diagonal = np.zeros_like(sums.vector)
    for row in range(sums.n_units):
        if sums.first[row] < sums.first[row + 1]:
            diagonal[row] = np.diagonal(sums.blocks[sums.first[row]])
    rms, whole = {}, {}
    for number, name in enumerate(PARAMETER_TYPES):
        which = (model.kinds == number) & (diagonal > 0.0) & (sums.uses[:, None] >= 30)
        if number == 0 or not which.any():
            continue
        rms[name] = float(np.sqrt(np.mean(sums.vector[which] ** 2 / diagonal[which])))
        along = which.astype(np.float64)[:, :, None]
        curvature = float(np.sum(along * block_times(sums, along)))
        whole[name] = float(np.sum(sums.vector[which]) / np.sqrt(curvature))
    return rms, whole


def bias_errors(setup: Setup, equations: ModuleEquations, pt: float) -> tuple[Floats, Floats]:
    """(n_eta,) standard deviations of the even and the odd bias that the fit and its prior leave."""
    even, odd = bias_combinations(setup.detector, setup.field_map, pt, setup.eta)
    covariance = variance_of(equations, np.concatenate([even, odd]))
    sigma = np.sqrt(np.diagonal(covariance))
    return sigma[: len(setup.eta)], sigma[len(setup.eta) :]


def run(
    options: argparse.Namespace,
) -> tuple[dict[str, object], list[tuple[MomentumBias, ...]], Setup, list[Pass]]:
    """Simulate, fit, compare."""
    start = time.perf_counter()
    detector = cms_tracker() if options.detector == "cms" else barrel_tracker()
    setup = Setup(
        detector,
        solenoid_map(),
        misaligned(detector, options.seed),
        2.4 if options.detector == "cms" else 0.9,
    )
    planes, model = planes_of(detector, setup.field_map), module_model(detector)
    chunks = list(setup.pairs(setup.truth, int(options.pairs), options.seed + 1000))
    simulated = time.perf_counter()
    say(f"simulated {options.pairs:g} pairs in {simulated - start:.0f} s")
    mass = None if options.no_mass else reference_mass(setup, options.seed + 2000)
    say(f"mass: {mass}, {time.perf_counter() - simulated:.0f} s")
    biases = [setup.bias(np.zeros_like(setup.truth))]
    begun = time.perf_counter()
    passes: list[Pass] = []

    def summed(values: Floats, cuts: RefitCuts) -> ModuleSums:
        return module_sums(chunks, detector, planes, values, mass, cuts)

    for each in fit_modules(summed, model, most_passes=options.passes):
        c = each.corrections
        passes.append(each)
        say(
            f"pass {len(passes)}: {time.perf_counter() - begun:.0f} s, {c.n_pairs} pairs, chi2/ndf "
            f"{each.sums.chi2 / each.sums.ndf:.4f}, {c.iterations} iterations, moved {each.moved:.2f} widths"
        )
    fitted = time.perf_counter() - begun
    biases.append(setup.bias(passes[-1].corrections.values))
    row: dict[str, object] = {
        "detector": options.detector, "pairs": int(options.pairs), "seed": options.seed, "mass": mass is not None,
    }  # fmt: skip
    for pt, before, after in zip(PTS, *biases, strict=True):
        row |= {
            f"even_rms_pt{pt:.0f}_before": before.even_rms, f"even_rms_pt{pt:.0f}_after": after.even_rms,
            f"odd_rms_pt{pt:.0f}_before": before.odd_rms, f"odd_rms_pt{pt:.0f}_after": after.odd_rms,
        }  # fmt: skip
    if not options.no_score:
        at_truth = module_sums(chunks, detector, planes, setup.truth, mass, DEFAULT_CUTS)
        row["score_pull_rms"], row["score_z"] = scores(at_truth, model)
        row["chi2_ndf_at_truth"] = at_truth.chi2 / at_truth.ndf
    last = passes[-1]
    row |= {
        "chi2_ndf": last.corrections.chi2 / last.corrections.ndf,
        "passes": len(passes),
        "iterations": last.corrections.iterations,
        "blocks": len(last.sums.columns),
        "fit_seconds": fitted,
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
        "load": os.getloadavg()[0],
    }
    return row, biases, setup, passes


def main() -> int:
    """Print a table, or a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=float, default=1e5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--detector", choices=("cms", "barrel"), default="cms")
    parser.add_argument("--passes", type=int, default=4, help="linearisations, at most")
    parser.add_argument("--no-mass", action="store_true", help="leave the mass of the pairs free")
    parser.add_argument("--no-score", action="store_true", help="without the sums at the true parameters")
    parser.add_argument("--errors", action="store_true", help="with the expected errors of the bias")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", type=Path, help="npz of the bias that is left")
    parser.add_argument("--figures", type=Path, help="folder for modules_bias.png and modules_parameters.png")
    options = parser.parse_args()
    row, biases, setup, passes = run(options)
    errors: list[tuple[Floats, Floats]] = []
    if options.errors or options.figures:
        model = module_model(setup.detector)
        equations = ModuleEquations(passes[-1].sums, model.widths, model.modes)
        errors = [bias_errors(setup, equations, pt) for pt in PTS]
        row["bias_pull_rms"] = {
            f"{name}_pt{after.pt:.0f}": float(np.sqrt(np.mean((getattr(after, name) / sigma) ** 2)))
            for after, both in zip(biases[1], errors, strict=True)
            for name, sigma in zip(("even", "odd"), both, strict=True)
        }
    if options.json:
        print(json.dumps(row))
    else:
        print("\n".join(f"{name:<26} {value}" for name, value in row.items()))
    if options.save:
        left = [setup.bias(passes[-1].corrections.values, pts)[0] for pts in zip(CARRIED_PTS)]
        np.savez(
            options.save,
            pt=CARRIED_PTS,
            eta=setup.eta,
            even=[b.even for b in left],
            odd=[b.odd for b in left],
        )
    if options.figures:
        from benchmarks.modules_figures import draw_bias, draw_parameters

        draw_bias(biases, options.figures / "modules_bias.png")
        draw_parameters(
            setup.detector, setup.truth, passes[-1].corrections, options.figures / "modules_parameters.png"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
