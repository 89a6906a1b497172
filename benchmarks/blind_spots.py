"""What the whole chain makes of mis-models: calibrate on J/psi, close on Upsilon(1S) and Z, split, and scale.

    python benchmarks/blind_spots.py --seeds 3
    python benchmarks/blind_spots.py --seeds 8 --models "nothing" "pT^2 term 4e-7"
    python benchmarks/blind_spots.py --scale 0.1 --models "nothing"
    python benchmarks/blind_spots.py --json > 1.json; python benchmarks/blind_spots.py --summary 1.json 2.json

A seed is a random truth (A ~ 3e-4, e ~ 2e-3 GeV, M ~ 2e-5 /GeV), 1.18e6 J/psi candidates, 15 % of them background,
against 4e6 simulated J/psi (mass fits, two passes), and for the closures 7.2e5 Upsilon candidates, 30 % of them
background, against 3.2e6 simulated, and 1.03e6 Z against 4.1e6 (template fits, two passes). These are numbers in an
acceptance wider than the cuts: inside are 1.06e6, 3.5e5 and 9.2e5. ``--jpsi 2`` doubles the J/psi. Simulation and
random numbers of the data are the same for all models of a seed. A model is in the data of all three resonances; half
of the data have another run number.

"J/psi again" is what another pass at the J/psi still changes: the sample is that of the calibration, so only mistakes
in applying it show. "extra width" is the (sigma_k/k)^2 per eta bin that the closures' data have more than simulation.

Exit code 3 when the chain without mis-model has an s outside 0.6-1.4, or the pT^2 term an s below 3 at the Z.
Progress goes to stderr, tables or one line of JSON to stdout.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np
from accuracy import PT_EDGES, loose, random_truth
from scipy.special import chdtrc

from musclecal.apply import correct
from musclecal.binning import Binning, TemplateBinning, equal_eta_edges
from musclecal.covariance import chi2_of
from musclecal.fits.histogram import fill
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.scale_fit import scale_calibration
from musclecal.fits.scale_information import (
    eta_design,
    scale_information,
    solve_eta_bins,
    solve_information,
)
from musclecal.fits.template_background import expected_purity
from musclecal.fits.template_closure import BinInformation, LogDerivatives, bin_information, log_derivatives
from musclecal.fits.templates import fill_templates
from musclecal.records import (
    DimuonEvents,
    MassHistogram,
    ScaleCalibration,
    ScaleFactor,
    ScaleInformation,
    ScaleParameters,
    SplitTest,
    TemplateFit,
    TemplateHistogram,
)
from musclecal.resonances import resonance
from musclecal.simulate import MisModel, SimulationSettings, default_resolution, no_bias, simulate
from musclecal.validation.blind_spots import FOUND, Check, blind_spot_table, blind_spots
from musclecal.validation.closure import template_closure
from musclecal.validation.splits import half_tests, phi_tests, run_test
from musclecal.validation.systematics import scale_systematic

Sample = list[DimuonEvents]
Correction = Callable[[DimuonEvents], DimuonEvents]

ETA_EDGES = equal_eta_edges(24, 2.4)
PASSES = 2
PHI_SECTORS = {"Y1S": 8, "Z": 12}
HARMONICS = (1, 2, 3)
RUNS = (1, 2)

# simulated pairs, data (signal and background), share of background in the data, its slope (1/GeV)
SIZES = {
    "Jpsi": (4_000_000, 1_180_000, 0.15, 1.0),
    "Y1S": (3_200_000, 720_000, 0.3, 0.3),
    "Z": (4_100_000, 1_030_000, 0.0, 0.0),
}
MUON_PT = {"Y1S": (4.0, 50.0), "Z": (25.0, 100.0)}
ROOM = {"Y1S": ((3.65, 54.0), (8.5, 10.2)), "Z": ((20.0, 120.0), (68.0, 116.0))}
"""Acceptance in muon pT and mass, wider than the cuts, so that momenta may move over them."""


NO_MISMODEL = MisModel()


@dataclass(frozen=True)
class Model:
    """What is wrong with the data of all resonances, with how the calibration is applied, or with the closure fits.

    Attributes
    ----------
    run_step : added to A in the second half of the runs. resolution : factor on sigma_k/k.
    flipped : parameter whose sign is wrong when the calibration is applied.
    forgotten : the closure fits know nothing of background, and 1 % of the Z candidates are some.
    """

    name: str
    mismodel: MisModel = NO_MISMODEL
    run_step: float = 0.0
    resolution: float = 1.0
    flipped: str = ""
    forgotten: bool = False


NOTHING, PT2 = "nothing", "pT^2 term 4e-7"
MODELS = (
    Model(NOTHING),
    Model(PT2, MisModel(pt2=4e-7)),
    Model("1e-3 cos(phi)", MisModel(phi_amplitude=1e-3, phi_harmonic=1)),
    Model("1e-3 cos(2 phi)", MisModel(phi_amplitude=1e-3, phi_harmonic=2)),
    Model("5e-4 sin(2 pi eta), pT > 20", MisModel(eta_amplitude=5e-4, eta_period=1.0, eta_pt_min=20.0)),
    Model("A + 5e-4 in half of the runs", run_step=5e-4),
    Model("resolution + 5 %", resolution=1.05),
    Model("e applied with the wrong sign", flipped="e"),
    Model("M applied with the wrong sign", flipped="M"),
    Model("background not in the closure fits", forgotten=True),
)


# Samples ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Templates:
    """Simulation of a closure resonance, without and with phi sectors."""

    whole: TemplateHistogram
    in_phi: TemplateHistogram


@dataclass(frozen=True)
class Simulation:
    """What is simulated once a seed."""

    jpsi: MassHistogram
    closures: dict[str, Templates]


def jpsi_binning() -> Binning:
    """The 4D bins of the calibration."""
    r = resonance("Jpsi")
    return Binning(ETA_EDGES, PT_EDGES, r.mass_window, r.mass_bins, r.line.mass)


def template_binning(name: str, phi_sectors: int = 1) -> TemplateBinning:
    """The axes of a closure, those of the resonance by default."""
    r, axes = resonance(name), resonance(name).template
    return TemplateBinning(
        ETA_EDGES, axes.asymmetry_edges, axes.pt_edges, MUON_PT[name], r.mass_window, axes.mass_bins, r.line.mass,
        phi_sectors,
    )  # fmt: skip


def settings_of(name: str) -> SimulationSettings:
    """Acceptance of data and simulation."""
    if name == "Jpsi":
        return loose(name, PT_EDGES)
    return SimulationSettings(resonance(name), ROOM[name][0], (-2.4, 2.4), ROOM[name][1])


def kept(chunks: Iterable[DimuonEvents]) -> Sample:
    """A sample in memory, without the columns that nobody asks for."""
    return [
        replace(events, gen_plus=None, gen_minus=None, lumi=None, event=None, extra={}) for events in chunks
    ]


def measured(
    name: str, model: Model, truth: ScaleParameters, seed: int, scale: Mapping[str, float]
) -> Sample:
    """Data of one resonance, in two runs; ``scale`` of the numbers in `SIZES`."""
    _, n, background, slope = SIZES[name]
    settings = replace(
        settings_of(name),
        background=0.01 if model.forgotten and name == "Z" else background,
        background_slope=slope,
        mismodel=model.mismodel,
        resolution=default_resolution().scaled(model.resolution),
    )
    sample: Sample = []
    for run, step in zip(RUNS, (0.0, model.run_step), strict=True):
        in_run = replace(settings, truth=replace(truth, A=truth.A + step), run=run)
        sample += kept(simulate(in_run, round(scale[name] * n / len(RUNS)), 10 * seed + run))
    return sample


def templates(name: str, scale: Mapping[str, float], seed: int) -> Templates:
    """Both histograms of one simulated sample."""
    events = kept(simulate(settings_of(name), round(scale[name] * SIZES[name][0]), seed))
    step = resonance(name).template.step
    return Templates(
        fill_templates(events, template_binning(name), step=step),
        fill_templates(events, template_binning(name, PHI_SECTORS[name]), step=step, derivatives=False),
    )


def simulated(seed: int, scale: Mapping[str, float]) -> Simulation:
    """J/psi beyond the window, so that whatever is smeared into it is there."""
    settings = loose("Jpsi", PT_EDGES, 0.12)
    jpsi = fill(simulate(settings, round(scale["Jpsi"] * SIZES["Jpsi"][0]), 4000 + seed), jpsi_binning())
    return Simulation(
        jpsi, {name: templates(name, scale, 1000 * n + seed) for n, name in enumerate(("Y1S", "Z"), start=5)}
    )


# The chain ----------------------------------------------------------------------------------------------------------


def corrected(sample: Sample, *scales: ScaleParameters) -> Iterator[DimuonEvents]:
    """The events after corrections, one after the other."""
    for events in sample:
        for scale in scales:
            events = correct(events, scale)
        yield events


def calibrated(
    sample: Sample, simulation: MassHistogram, before: ScaleCalibration | None = None
) -> ScaleCalibration:
    """One pass of mass fits on events corrected with ``before``."""
    scales = () if before is None else (before,)
    fits = fit_masses(
        fill(corrected(sample, *scales), jpsi_binning()),
        simulation,
        resonance("Jpsi"),
        MassModel("simulation-shape"),
    )
    return scale_calibration(fits, before)


@dataclass(frozen=True)
class Closed:
    """The template fit of one resonance at its last point, and all that was asked of it."""

    fit: TemplateFit
    splits: tuple[SplitTest, ...]
    width_p_value: float


def closed(
    name: str, sample: Sample, applied: ScaleParameters, simulation: Templates, forgotten: bool
) -> Closed:
    """Fit twice, the second time on events corrected with the first result; then split."""
    binning, step = template_binning(name), resonance(name).template.step
    background = resonance(name).background != "none" and not forgotten
    point, change = no_bias(np.array(ETA_EDGES)), 0.0
    for _ in range(PASSES):
        point_of_fit = point
        data = fill_templates(corrected(sample, applied, point), binning, step=step)
        derivatives = log_derivatives(data, simulation.whole)
        purity = expected_purity(data, simulation.whole) if background else None
        bins = bin_information(data, simulation.whole, derivatives, purity=purity)
        information = scale_information(bins, name)
        found = solve_eta_bins(information, ("A", "M"))
        flat = found.values.ravel()
        change = float(flat @ np.linalg.solve(found.covariance, flat)) / len(flat)
        point = replace(point, A=point.A + found.values[:, 0], M=point.M + found.values[:, 1])

    def part(events: Sample, of: TemplateHistogram) -> BinInformation:
        """Some of the events, or all in phi sectors; derivatives and purity are those of the whole."""
        histogram = fill_templates(
            corrected(events, applied, point_of_fit), of.binning, step=step, derivatives=False
        )
        return part_information(histogram, of, data, simulation.whole, derivatives, background)

    runs = [
        scale_information(part([e.select(e.run == run) for e in sample], simulation.whole), name)
        for run in RUNS
    ]
    tests = phi_tests(scale_information(part(sample, simulation.in_phi), name), HARMONICS)
    tests += half_tests(bins)
    tests += (run_test(runs, [f"run {run}" for run in RUNS], simulation.whole.n_events),)
    return Closed(TemplateFit(information, point_of_fit, PASSES, change), tests, width_p_value(information))


def part_information(
    histogram: TemplateHistogram,
    simulation: TemplateHistogram,
    whole_data: TemplateHistogram,
    whole_simulation: TemplateHistogram,
    derivatives: LogDerivatives,
    background: bool,
) -> BinInformation:
    """What 4D bins of a part say, with the purity of the whole."""
    purity = None
    if background:
        rows = np.searchsorted(whole_data.bins, histogram.binning.without_phi(histogram.bins))
        purity = expected_purity(whole_data, whole_simulation)[rows]
    return bin_information(histogram, simulation, derivatives, purity=purity)


def width_p_value(information: ScaleInformation) -> float:
    """Of no difference in width between data and simulation in any eta bin, A and M being free."""
    names = ("A", "M", "width")
    solution = solve_information(information, eta_design(information, names))
    widths = solution.only(range(2, len(solution.labels), len(names)))
    return chi2_of(widths.values, widths.covariance).p_value


@dataclass(frozen=True)
class Verdict:
    """All that was found with one model in one seed."""

    seed: int
    checks: tuple[Check, ...]
    factors: tuple[ScaleFactor, ...]
    means: dict[str, float]


def judged(
    seed: int, model: Model, again: ScaleCalibration, calibration: ScaleCalibration, found: dict[str, Closed]
) -> Verdict:
    """Closures, scaled systematic, and p-values of every test."""
    closures = {name: template_closure(c.fit, calibration) for name, c in found.items()}
    systematic = scale_systematic(calibration, list(closures.values()))
    factors = (*systematic.factors, systematic.joint)
    checks = [Check(model.name, f"{f.name}: A, M", f.p_value, f.s) for f in factors]
    n = 3 * (len(ETA_EDGES) - 1)
    checks.append(Check(model.name, "J/psi again", float(chdtrc(n, n * (again.residual_chi2 or 0.0)))))
    for name, c in found.items():
        checks += [Check(model.name, f"{name}: {test.name}", test.p_value) for test in c.splits]
        checks.append(Check(model.name, f"{name}: extra width", c.width_p_value))
    means = {name: 1e5 * float(closure.values[:, 0].mean()) for name, closure in closures.items()}
    return Verdict(seed, tuple(checks), factors, means)


def one_seed(seed: int, models: Sequence[Model], scale: Mapping[str, float]) -> Iterator[Verdict]:
    """All models on the same simulation."""
    start = time.perf_counter()
    simulation = simulated(seed, scale)
    truth = random_truth(seed, ETA_EDGES)
    progress(f"seed {seed}: simulation", start)
    plain: dict[str, Sample] = {}
    calibration: ScaleCalibration | None = None
    for model in models:
        start = time.perf_counter()
        data = plain
        if not (model.flipped and plain):
            data = {n: measured(n, model, truth, 100 * seed + i, scale) for i, n in enumerate(SIZES)}
        if not (model.flipped and plain and calibration):
            result = calibrated(data["Jpsi"], simulation.jpsi)
            result = calibrated(data["Jpsi"], simulation.jpsi, result)
        else:
            result = calibration
        if model == Model(model.name):
            plain, calibration = data, result
        applied = again = result
        if model.flipped:
            applied = replace(result, **{model.flipped: -getattr(result, model.flipped)})
            again = calibrated(data["Jpsi"], simulation.jpsi, applied)
        found = {
            name: closed(name, data[name], applied, simulation.closures[name], model.forgotten)
            for name in simulation.closures
        }
        yield judged(seed, model, again, result, found)
        progress(f"seed {seed}: {model.name}", start)


def progress(text: str, start: float) -> None:
    """To stderr, with the time it took."""
    print(f"{text}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


# Tables -------------------------------------------------------------------------------------------------------------


def of_all_seeds(verdicts: Sequence[Verdict]) -> list[Check]:
    """Every cell of the table with the medians of p-value and s over the seeds."""
    cells: dict[tuple[str, str], list[Check]] = {}
    for check in (check for verdict in verdicts for check in verdict.checks):
        cells.setdefault((check.model, check.test), []).append(check)
    return [
        Check(
            *key,
            float(np.median([c.p_value for c in checks])),
            None if checks[0].s is None else float(np.median([c.s for c in checks if c.s is not None])),
        )
        for key, checks in cells.items()
    ]


def false_alarms(verdicts: Sequence[Verdict], below: float) -> tuple[int, int]:
    """(p-values below, all p-values) where nothing is wrong, "J/psi again" aside."""
    p = [c.p_value for v in verdicts for c in v.checks if c.model == NOTHING and c.test != "J/psi again"]
    return sum(value < below for value in p), len(p)


def factor_rows(verdicts: Sequence[Verdict]) -> list[str]:
    """s with its 68 % interval of every seed and model."""
    names = [factor.name for factor in verdicts[0].factors]
    rows = [
        f"| seed | injected | {' | '.join(names)} | {' | '.join(f'mean A {n}' for n in verdicts[0].means)} |"
    ]
    rows.append("|---" * (2 + len(names) + len(verdicts[0].means)) + "|")
    for v in verdicts:
        cells = [f"{f.s:.2f} ({f.interval_68[0]:.2f} ... {f.interval_68[1]:.2f})" for f in v.factors]
        means = [f"{mean:+.1f}" for mean in v.means.values()]
        rows.append(f"| {v.seed} | {v.checks[0].model} | {' | '.join(cells + means)} |")
    return rows


def bars(verdicts: Sequence[Verdict]) -> list[tuple[str, bool]]:
    """What the project asks for, seed by seed."""
    out = []
    for verdict in verdicts:
        s = {factor.name: factor.s for factor in verdict.factors}
        if verdict.checks[0].model == NOTHING:
            out += [
                (f"seed {verdict.seed}: s({name}) = {x:.2f} in 0.6-1.4", 0.6 <= x <= 1.4)
                for name, x in s.items()
            ]
        if verdict.checks[0].model == PT2:
            out.append((f"seed {verdict.seed}: pT^2 term, s(Z) = {s['Z']:.2f} > 3", s["Z"] > 3.0))
    return out


def stored(path: Path) -> list[Verdict]:
    """What an earlier ``--json`` found."""
    return [
        Verdict(
            v["seed"],
            tuple(Check(**check) for check in v["checks"]),
            tuple(ScaleFactor(**factor) for factor in v["factors"]),
            v["means"],
        )
        for v in json.loads(path.read_text())["verdicts"]
    ]


def report(verdicts: Sequence[Verdict]) -> str:
    """Tables and bars."""
    checks = of_all_seeds(verdicts)
    models, tests = ({getattr(c, key): None for c in checks} for key in ("model", "test"))
    by_test = {(c.model, c.test): c for c in checks}
    lines = ["median p-value and s over the seeds, transposed for reading:", ""]
    lines.append("| test | " + " | ".join(models) + " |")
    lines.append("|---" * (1 + len(models)) + "|")
    for test in tests:
        cells = []
        for model in models:
            check = by_test[model, test]
            p = f"{check.p_value:.2g}" if check.p_value >= FOUND else f"**{check.p_value:.2g}**"
            cells.append(p + ("" if check.s is None else f", s = {check.s:.2f}"))
        lines.append(f"| {test} | {' | '.join(cells)} |")
    unseen = [m for m in blind_spots(checks) if m != NOTHING]
    few, n = false_alarms(verdicts, 0.01)
    lines += ["", blind_spot_table(checks), "", *factor_rows(verdicts), ""]
    lines.append(f"found by no test: {', '.join(unseen) or 'none'}")
    lines.append(f"nothing injected: {few} of {n} p-values below 0.01")
    lines += [f"{text}: {'pass' if holds else 'FAIL'}" for text, holds in bars(verdicts)]
    return "\n".join(lines)


def main() -> int:
    """0 when all bars hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="on the numbers of events of all samples")
    parser.add_argument("--jpsi", type=float, default=1.0, help="further factor on those of the J/psi")
    names = [model.name for model in MODELS]
    parser.add_argument("--models", nargs="+", default=names, choices=names, metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--summary", nargs="+", type=Path, help="only the tables of these outputs of --json")
    options = parser.parse_args()
    models = [model for model in MODELS if model.name in options.models]
    verdicts: list[Verdict] = []
    for path in options.summary or ():
        verdicts += stored(path)
    scale = dict.fromkeys(SIZES, options.scale) | {"Jpsi": options.scale * options.jpsi}
    for seed in range(options.first, options.first + (0 if options.summary else options.seeds)):
        for verdict in one_seed(seed, models, scale):
            verdicts.append(verdict)
            print("; ".join(factor_rows([verdict])[2:]), file=sys.stderr, flush=True)
    if options.json:
        judgements = [{"bar": text, "holds": holds} for text, holds in bars(verdicts)]
        print(json.dumps({"verdicts": [asdict(v) for v in verdicts], "bars": judgements}))
    else:
        print(report(verdicts))
    return 0 if all(holds for _, holds in bars(verdicts)) else 3


if __name__ == "__main__":
    sys.exit(main())
