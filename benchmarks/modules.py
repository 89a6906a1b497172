"""Module corrections against the truth that was injected: how much of the bias of the momentum scale is left.

    python -m benchmarks.modules --pairs 1e5 --seed 1
    python -m benchmarks.modules --pairs 1e5 --seed 1 --no-mass --json
    python -m benchmarks.modules --pairs 1e5 --free 1e5 --free-resonance Z
    python -m benchmarks.modules --pairs 2e4 --detector barrel --figures docs/figures

J/psi pairs with radiation through a detector like that of CMS in 2016 that is displaced, in a field and with matter
that are not as assumed (`musclecal.geometry.misalignment`, its usual sizes); hits with 98 % efficiency; all fits start
from the hits. The target of the mass comes from a simulation of the nominal detector. Bias: dk/k = even + q odd of
muons of 10 and 40 GeV in 24 bins of eta, root of the mean square. Score: gradient over its standard deviation at the
true parameters, which must be N(0, 1), parameter by parameter and along each type of parameter as a whole.

One line of JSON on stdout with --json, or a table; progress on stderr. `python -m benchmarks.modules_figures` draws
many such lines.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from musclecal.geometry.block_matrix import block_times
from musclecal.geometry.block_sums import merge_sums, weighted
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.mass_target import mass_constraint
from musclecal.geometry.misalignment import Misalignment, misaligned
from musclecal.geometry.module_equations import ModuleEquations
from musclecal.geometry.module_fit import ModuleModel, Pass, fit_modules, module_model, module_sums
from musclecal.geometry.modules import variance_of
from musclecal.geometry.momentum_bias import MomentumBias, bias_combinations, momentum_bias
from musclecal.geometry.refit import DEFAULT_CUTS, RefitCuts
from musclecal.geometry.simulate import DetectorEffects, simulate_pairs, track_maker
from musclecal.geometry.trace import Planes
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
from musclecal.store import load, save

WINDOW = (2.9, 3.3)
"""GeV, of the fitted mass."""
MASSES = {"Jpsi": (2.6, 3.5), "Z": (60.0, 120.0)}
"""GeV, of simulated pairs."""
MUON_PT = {"Jpsi": (3.0, 60.0), "Z": (20.0, 100.0)}
EFFECTS = DetectorEffects(efficiency=0.98)
REFERENCE_PAIRS = 500_000
"""The error of their mean mass is 1.5e-5."""
_REFERENCE_SEED = 999_000
PTS = (10.0, 40.0)
CARRIED_PTS = (4.0, 6.0, 10.0, 20.0, 40.0)
"""GeV, of the biases that --save keeps for benchmarks/modules_scale.py."""
PULLED = 48
"""Parameters whose errors are computed exactly, drawn among those that many tracks have met."""


@dataclass
class Study:
    """A detector, where it really is, what was fitted, and how long it took."""

    detector: Detector
    field_map: FieldMap
    truth: Floats
    model: ModuleModel
    eta_max: float
    mass: MassConstraint | None = None
    passes: list[Pass] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def eta(self) -> Floats:
        """Middles of 24 bins."""
        edges = np.linspace(-self.eta_max, self.eta_max, 25)
        return np.asarray(0.5 * (edges[1:] + edges[:-1]))

    @property
    def planes(self) -> Planes:
        """As the fits take the detector."""
        return planes_of(self.detector, self.field_map)

    @property
    def found(self) -> Floats:
        """(n_units, P) the corrections."""
        return self.passes[-1].corrections.values

    @property
    def equations(self) -> ModuleEquations:
        """Of the last pass."""
        return self.model.equations(self.passes[-1].sums)

    def bias(self, assumed: Floats, pt: float) -> MomentumBias:
        """Of muons of ``pt`` GeV, fitted in the detector at ``assumed``."""
        return momentum_bias(self.detector, self.field_map, self.truth, assumed, pt, self.eta)

    def pairs(self, truth: Floats, n: int, seed: int, name: str = "Jpsi") -> Iterator[Pairs]:
        """Pairs of muons of a resonance, in chunks."""
        eta = (-self.eta_max, self.eta_max)
        settings = SimulationSettings(resonance(name), MUON_PT[name], eta, MASSES[name])
        return simulate_pairs(track_maker(self.detector, self.field_map, truth, EFFECTS), settings, n, seed)


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def new_study(options: argparse.Namespace) -> Study:
    """The detector and the injection of a seed."""
    cms = options.detector == "cms"
    detector = cms_tracker() if cms else barrel_tracker(options.finer)
    sizes = Misalignment(**{name: options.worse * size for name, size in asdict(Misalignment()).items()})
    truth, model = misaligned(detector, options.seed, sizes), module_model(detector)
    return Study(detector, solenoid_map(), truth, model, 2.4 if cms else 0.9)


def fit(study: Study, options: argparse.Namespace) -> dict[str, object]:
    """Simulate and fit; what the fit says of itself."""
    start, seed = time.perf_counter(), options.seed
    data = list(study.pairs(study.truth, int(options.pairs), seed + 1000))
    free = (
        list(study.pairs(study.truth, int(options.free), seed + 3000, options.free_resonance))
        if options.free
        else []
    )
    study.seconds["simulation"] = time.perf_counter() - start
    say(f"simulated in {study.seconds['simulation']:.0f} s")
    begun = time.perf_counter()
    if not options.no_mass:
        study.mass = reference_mass(study, options)
    study.seconds["reference"] = time.perf_counter() - begun
    say(f"mass: {study.mass}, {study.seconds['reference']:.0f} s")
    study.seconds["sums"], begun = 0.0, time.perf_counter()

    def summed(values: Floats, cuts: RefitCuts) -> ModuleSums:
        before = time.perf_counter()
        sums = module_sums(data, study.detector, study.planes, values, study.mass, cuts)
        if free:
            more = module_sums(free, study.detector, study.planes, values, None, cuts)
            sums = merge_sums(sums, weighted(more, options.free_weight))
        study.seconds["sums"] += time.perf_counter() - before
        return sums

    for each in fit_modules(summed, study.model, most_passes=options.passes):
        study.passes.append(each)
        say(
            f"pass {len(study.passes)}: {time.perf_counter() - begun:.0f} s, {each.corrections.n_pairs} pairs, "
            f"chi2/ndf {each.sums.chi2 / each.sums.ndf:.4f}, {each.corrections.iterations} iterations, "
            f"moved {each.moved:.2f} widths"
        )
    study.seconds["solution"] = time.perf_counter() - begun - study.seconds["sums"]
    last = study.passes[-1]
    row: dict[str, object] = {
        "detector": study.detector.name, "units": study.detector.n_units, "pairs": int(options.pairs),
        "seed": seed, "worse": options.worse, "mass": study.mass is not None, "free": int(options.free),
        "free_resonance": options.free_resonance if options.free else None,
        "chi2_ndf": last.corrections.chi2 / last.corrections.ndf, "passes": len(study.passes),
        "iterations": last.corrections.iterations, "blocks": len(last.sums.columns),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }  # fmt: skip
    if not options.no_score:
        begun = time.perf_counter()
        at_truth = module_sums(data, study.detector, study.planes, study.truth, study.mass, DEFAULT_CUTS)
        row["score_pull_rms"], row["score_z"] = scores(at_truth, study.model)
        row["chi2_ndf_at_truth"] = at_truth.chi2 / at_truth.ndf
        study.seconds["score"] = time.perf_counter() - begun
    return row


def reference_mass(study: Study, options: argparse.Namespace) -> MassConstraint:
    """From a simulation in which nothing is wrong; kept in a file, if one is named: it is the same for all seeds."""
    if options.target and options.target.exists():
        return load(options.target, MassConstraint)
    nominal = np.zeros_like(study.truth)
    found = mass_constraint(
        study.pairs(nominal, int(options.reference), _REFERENCE_SEED), study.planes, WINDOW, options.robust
    )
    if options.target:
        save(options.target, found)
    return found


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


def compare(before: Sequence[MomentumBias], after: Sequence[MomentumBias]) -> dict[str, object]:
    """Root mean squares over eta, and the mean of the even bias that is left: what the target of the mass is off by."""
    row: dict[str, object] = {}
    for one, two in zip(before, after, strict=True):
        row |= {
            f"even_rms_pt{one.pt:.0f}_before": one.even_rms, f"even_rms_pt{one.pt:.0f}_after": two.even_rms,
            f"even_mean_pt{one.pt:.0f}_after": float(np.mean(two.even)),
            f"odd_rms_pt{one.pt:.0f}_before": one.odd_rms, f"odd_rms_pt{one.pt:.0f}_after": two.odd_rms,
        }  # fmt: skip
    return row


def bias_errors(study: Study, equations: ModuleEquations, pt: float) -> tuple[Floats, Floats]:
    """(n_eta,) standard deviations of the even and the odd bias that the fit and its prior leave."""
    even, odd = bias_combinations(study.detector, study.field_map, pt, study.eta)
    covariance = variance_of(equations, np.concatenate([even, odd]))
    sigma = np.sqrt(np.diagonal(covariance))
    return sigma[: len(study.eta)], sigma[len(study.eta) :]


def parameter_pulls(study: Study, equations: ModuleEquations) -> dict[str, float]:
    """Root mean square of (found - true)/sigma by type, of parameters drawn among those that tracks have met."""
    rng = np.random.default_rng(1)
    places = np.argwhere((study.model.kinds > 0) & (equations.sums.uses[:, None] >= 30))
    chosen = places[rng.choice(len(places), PULLED, replace=False)]
    combinations = np.zeros((PULLED, *study.truth.shape))
    combinations[np.arange(PULLED), chosen[:, 0], chosen[:, 1]] = 1.0
    sigma = np.sqrt(np.diagonal(variance_of(equations, combinations)))
    pull = (study.found - study.truth)[chosen[:, 0], chosen[:, 1]] / sigma
    kinds = study.model.kinds[chosen[:, 0], chosen[:, 1]]
    return {PARAMETER_TYPES[k]: float(np.sqrt(np.mean(pull[kinds == k] ** 2))) for k in np.unique(kinds)} | {
        "all": float(np.sqrt(np.mean(pull**2)))
    }


def draw(
    study: Study, before: Sequence[MomentumBias], after: Sequence[MomentumBias],
    errors: Sequence[tuple[Floats, Floats]], folder: Path,
) -> None:  # fmt: skip
    from benchmarks.modules_figures import draw_bias, draw_parameters

    last = study.passes[-1].corrections
    title = f"{study.detector.name}, {last.n_pairs:,} pairs, charge-even and charge-odd bias of the momentum scale"
    draw_bias(before, after, errors, title, folder / "modules_bias.png")
    true, found = study.equations.amplitudes_of(
        np.stack([study.truth.ravel(), study.found.ravel()], axis=1)
    ).T
    draw_parameters(
        study.truth, last, (true, found), study.model.modes.widths, folder / "modules_parameters.png"
    )


def main() -> int:
    """Print a table, or a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=float, default=1e5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--detector", choices=("cms", "barrel"), default="cms")
    parser.add_argument("--finer", type=int, default=1, help="of the barrel: times more units in phi and z")
    parser.add_argument("--worse", type=float, default=1.0, help="times the usual sizes of what is wrong")
    parser.add_argument("--passes", type=int, default=4, help="linearisations, at most")
    parser.add_argument("--reference", type=float, default=REFERENCE_PAIRS, help="pairs behind the target")
    parser.add_argument("--target", type=Path, help="h5 file of the target, written if it is not there")
    parser.add_argument("--robust", type=float, default=2.0, help="standard deviations (Huber), inf for none")
    parser.add_argument("--no-mass", action="store_true", help="leave the mass of the pairs free")
    parser.add_argument(
        "--free", type=float, default=0.0, help="pairs of a second sample, its mass left free"
    )
    parser.add_argument("--free-resonance", choices=tuple(MASSES), default="Z")
    parser.add_argument("--free-weight", type=float, default=1.0)
    parser.add_argument("--no-score", action="store_true", help="without the sums at the true parameters")
    parser.add_argument(
        "--errors", action="store_true", help="with the expected errors of bias and parameters"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", type=Path, help="npz of the bias that is left")
    parser.add_argument("--figures", type=Path, help="folder for modules_bias.png and modules_parameters.png")
    options = parser.parse_args()
    start = time.perf_counter()
    study = new_study(options)
    before = [study.bias(np.zeros_like(study.truth), pt) for pt in PTS]
    row = fit(study, options)
    after = [study.bias(study.found, pt) for pt in PTS]
    row |= compare(before, after)
    errors: list[tuple[Floats, Floats]] = []
    if options.errors or options.figures:
        equations = study.equations
        errors = [bias_errors(study, equations, pt) for pt in PTS]
        row["bias_pull_rms"] = {
            f"{name}_pt{bias.pt:.0f}": float(np.sqrt(np.mean((getattr(bias, name) / sigma) ** 2)))
            for bias, both in zip(after, errors, strict=True)
            for name, sigma in zip(("even", "odd"), both, strict=True)
        }
        row["bias_error_rms"] = {
            f"{name}_pt{pt:.0f}": float(np.sqrt(np.mean(sigma**2)))
            for pt, both in zip(PTS, errors, strict=True)
            for name, sigma in zip(("even", "odd"), both, strict=True)
        }
        row["parameter_pull_rms"] = parameter_pulls(study, equations)
    row |= {f"seconds_{name}": seconds for name, seconds in study.seconds.items()}
    row |= {"seconds": time.perf_counter() - start, "load": os.getloadavg()[0]}
    if options.json:
        print(json.dumps(row))
    else:
        print("\n".join(f"{name:<26} {value}" for name, value in row.items()))
    if options.save:
        left = [study.bias(study.found, pt) for pt in CARRIED_PTS]
        even, odd = ([getattr(bias, name) for bias in left] for name in ("even", "odd"))
        np.savez(options.save, pt=CARRIED_PTS, eta=study.eta, even=even, odd=odd)
    if options.figures:
        draw(study, before, after, errors, options.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
