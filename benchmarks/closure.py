"""Whether the template closure finds what is there and nothing else: every bar of the engine, measured.

    python benchmarks/closure.py --seeds 7
    python benchmarks/closure.py --seeds 7 --parts z jpsi
    python benchmarks/closure.py --quick

A seed is 3e6 Z in the binning against 12e6 simulated ones, and 1e6 J/psi with 15 % background and a random truth
against 4e6. The Z are used as they are (null) and with biases injected into the same events: A, M, one M for all, a
pT^2 term, more resolution. "paired" is the result minus that of the null sample, which takes the statistics of the
events out; "direct" is the result itself. The bars on slopes are on the paired figures. The data are corrected with
the result and fitted again: two passes at the Z, three at the J/psi. Studies: 48 eta bins, weighted simulation, data
with another pT spectrum and with other radiation, each without and with reweighted simulation.

Units: A and dk/k 1e-5, M 1e-6/GeV, width ((sigma_k/k)^2) 1e-6. Progress goes to stderr, tables to stdout.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np

from musclecal.apply import correct
from musclecal.binning import Binning, TemplateBinning, equal_eta_edges
from musclecal.fits.reweight import SpectrumWeights, spectrum_counts, spectrum_weights
from musclecal.fits.scale_information import (
    InformationSolution,
    eta_design,
    scale_information,
    solve_information,
)
from musclecal.fits.template_background import expected_purity
from musclecal.fits.template_closure import bin_information, log_derivatives
from musclecal.fits.templates import fill_templates
from musclecal.records import DimuonEvents, Floats, ScaleParameters, TemplateHistogram
from musclecal.resonances import resonance
from musclecal.scale import relative_correction
from musclecal.simulate import SimulationSettings, no_bias, simulate

Row = dict[str, float]
Sample = list[DimuonEvents]

Z_STEP, JPSI_STEP = 0.01, 0.006
PT2 = 4e-7
EXTRA_WIDTH = 25e-6
UNIFORM_M = 2e-5


@dataclass(frozen=True)
class Bar:
    """Range that ``statistic`` has to be in, in each seed or on average."""

    statistic: str
    low: float
    high: float
    average: bool = False

    def holds(self, values: Floats) -> bool:
        """Whether the values of all seeds, or their average, are inside."""
        tested = values.mean(keepdims=True) if self.average else values
        return bool(np.all((tested >= self.low) & (tested <= self.high)))


BARS = (
    Bar("null: mean A", -5.5, 5.5),
    Bar("null: mean A", -2.0, 2.0, average=True),
    Bar("null: mean M", -11.0, 11.0),
    Bar("null: chi2/n", 0.55, 1.7),
    Bar("null: chi2/n", 0.75, 1.25, average=True),
    Bar("null: events used", 0.999, 1.0),
    Bar("null: fit chi2/ndf", 0.98, 1.02),
    Bar("null: sigma A", 0.0, 13.0),
    Bar("null: sigma M", 0.0, 5.5),
    Bar("A slope, paired", 0.97, 1.03),
    Bar("M slope, paired", 0.95, 1.05),
    Bar("uniform M, paired", 0.8, 1.2),
    Bar("pT^2 term, paired", 0.95, 1.05),
    Bar("width, paired", 21.0, 29.0),
    Bar("Jpsi pass 2: chi2/n", 0.6, 1.5),
    Bar("Jpsi pass 2: L(6)", -3.5, 3.5),
    Bar("seconds: fill of 12e6 Z", 0.0, 6.0),
    Bar("seconds: fit", 0.0, 2.0),
)


# Samples ------------------------------------------------------------------------------------------------------------


def z_settings() -> SimulationSettings:
    """Wider than the cuts, so that momenta may move over them."""
    return SimulationSettings(resonance("Z"), (20.0, 120.0), (-2.4, 2.4), (68.0, 116.0))


def z_binning(n_eta: int = 24) -> TemplateBinning:
    """Six bins of pT asymmetry, 1 GeV mass bins."""
    return TemplateBinning(
        equal_eta_edges(n_eta, 2.4),
        (-1.0, -0.2, -0.1, 0.0, 0.1, 0.2, 1.0),
        (10.0, 200.0),
        (25.0, 100.0),
        (75.0, 107.0),
        32,
        resonance("Z").line.mass,
    )


def jpsi_settings() -> SimulationSettings:
    """J/psi with room around cuts and window."""
    return SimulationSettings(resonance("Jpsi"), (3.5, 60.0), (-2.4, 2.4), (2.7, 3.4))


def jpsi_binning() -> TemplateBinning:
    """Asymmetry and mean pT, the latter for e."""
    return TemplateBinning(
        equal_eta_edges(24, 2.4),
        (-1.0, -0.35, -0.15, 0.0, 0.15, 0.35, 1.0),
        (4.0, 5.2, 6.2, 7.5, 10.0, 60.0),
        (4.0, 50.0),
        (2.85, 3.25),
        40,
        resonance("Jpsi").line.mass,
    )


def spectrum_binning() -> Binning:
    """Cells in which the pT spectra of Z are compared: of pT m_Z/m, so that weights do not change the mass itself."""
    edges = (25.0, 32.0, 38.0, 43.0, 50.0, 62.0, 100.0)
    return Binning(
        equal_eta_edges(24, 2.4), edges, (75.0, 107.0), 32, resonance("Z").line.mass, pt_scaled=True
    )


def kept(settings: SimulationSettings, n_events: int, seed: int) -> Sample:
    """A sample in memory, without the columns that nobody asks for."""
    return [
        replace(events, run=None, lumi=None, event=None, extra={})
        for events in simulate(settings, n_events, seed)
    ]


def number_for(settings: SimulationSettings, inside: float, binning: TemplateBinning) -> int:
    """Pairs to simulate so that ``inside`` of them fall into the binning."""
    pilot = 100_000
    found = fill_templates(
        simulate(settings, pilot, seed=999), binning, step=0.01, derivatives=False
    ).n_events
    return round(inside * pilot / found)


def random_truth(seed: int, eta_edges: tuple[float, ...]) -> ScaleParameters:
    """Independent Gaussian A, e, M of the usual size in every eta bin."""
    rng = np.random.default_rng([seed, 81])
    n = len(eta_edges) - 1
    return ScaleParameters(
        np.array(eta_edges), rng.normal(0, 3e-4, n), rng.normal(0, 2e-3, n), rng.normal(0, 2e-5, n)
    )


# Biases, injected into events ---------------------------------------------------------------------------------------


def biased(sample: Sample, truth: ScaleParameters) -> Iterator[DimuonEvents]:
    """Events that a correction A or M (not both in one eta bin, no e) takes back to ``sample``, exactly."""
    inverse = replace(truth, A=-truth.A / (1.0 + truth.A), M=-truth.M)
    return (correct(events, inverse) for events in sample)


def with_pt2_term(sample: Sample) -> Iterator[DimuonEvents]:
    """Events that lack a relative correction of the curvature ``PT2`` pT^2."""
    for events in sample:
        yield events.with_momenta(
            events.plus.pt * (1.0 + PT2 * events.plus.pt**2),
            events.minus.pt * (1.0 + PT2 * events.minus.pt**2),
        )


def smeared(sample: Sample, seed: int) -> Iterator[DimuonEvents]:
    """Events with ``EXTRA_WIDTH`` more of (sigma_k/k)^2."""
    for block, events in enumerate(sample):
        rng = np.random.Generator(np.random.Philox(key=[seed, block]))
        g = 1.0 + np.sqrt(EXTRA_WIDTH) * rng.standard_normal((2, len(events)))
        yield events.with_momenta(events.plus.pt / g[0], events.minus.pt / g[1])


def mean_square_pt(sample: Sample, binning: TemplateBinning) -> float:
    """Average pT^2 of the muons inside the cuts, GeV^2."""
    total = n = 0.0
    low, high = binning.muon_pt
    m_low, m_high = binning.mass_window
    for events in sample:
        inside = (events.mass >= m_low) & (events.mass < m_high)
        for muons in (events.plus, events.minus):
            scaled = muons.pt * binning.mass_reference / events.mass
            inside &= (scaled >= low) & (scaled < high)
        total += float(np.sum(events.plus.pt[inside] ** 2 + events.minus.pt[inside] ** 2))
        n += 2.0 * np.count_nonzero(inside)
    return total / n


# Fits ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """``table`` (n_eta, n_name): corrections summed over passes, and the width of the last; the last pass' solution."""

    names: tuple[str, ...]
    table: Floats
    solution: InformationSolution
    events_fraction: float
    seconds: float

    def of(self, name: str) -> tuple[Floats, Floats]:
        """(n_eta,) values and (n_eta, n_eta) covariance."""
        p, n = self.names.index(name), len(self.names)
        return self.table[:, p], self.solution.covariance[p::n, p::n]

    def mean(self, name: str) -> float:
        """Inverse-covariance weighted over eta bins."""
        values, covariance = self.of(name)
        weights = np.linalg.solve(covariance, np.ones(len(values)))
        return float(weights @ values / weights.sum())

    def chi2_per_parameter(self, truth: ScaleParameters, names: tuple[str, ...]) -> float:
        """Of result - truth in ``names``, with their full covariance."""
        columns = [self.names.index(name) for name in names]
        d = self.table[:, columns] - np.stack([getattr(truth, name) for name in names], axis=1)
        n = len(self.names)
        rows = (np.arange(len(d))[:, None] * n + columns).ravel()
        return float(
            d.ravel() @ np.linalg.solve(self.solution.covariance[np.ix_(rows, rows)], d.ravel()) / d.size
        )

    def scale(self, eta_edges: Iterable[float]) -> ScaleParameters:
        """The correction found."""
        found = {name: np.zeros(len(self.table)) for name in "AeM"}
        found |= {name: self.table[:, p] for p, name in enumerate(self.names) if name != "width"}
        return ScaleParameters(np.array(list(eta_edges)), **found)


def fit(
    data: TemplateHistogram, simulation: TemplateHistogram, names: tuple[str, ...], background: bool
) -> Fit:
    """One linear step."""
    start = time.perf_counter()
    purity = expected_purity(data, simulation) if background else None
    bins = bin_information(data, simulation, log_derivatives(data, simulation), purity=purity)
    information = scale_information(bins, "closure")
    solution = solve_information(information, eta_design(information, names))
    seconds = time.perf_counter() - start
    return Fit(names, solution.values.reshape(-1, len(names)), solution, information.events_fraction, seconds)


def passes(
    data: Callable[[], Iterable[DimuonEvents]],
    simulation: TemplateHistogram,
    n_pass: int,
    *,
    names: tuple[str, ...] = ("A", "M", "width"),
    step: float = Z_STEP,
    background: bool = False,
) -> Iterator[Fit]:
    """The fit of every pass: correct the data with what was found so far, fill and fit again."""
    binning = simulation.binning
    scale = no_bias(np.array(binning.eta_edges))
    found = np.zeros((binning.n_eta, len(names)))
    moves = np.array([name != "width" for name in names])
    for _ in range(n_pass):
        histogram = fill_templates((correct(events, scale) for events in data()), binning, step=step)
        change = fit(histogram, simulation, names, background)
        result = replace(change, table=np.where(moves, found, 0.0) + change.table)
        yield result
        found, scale = result.table, result.scale(binning.eta_edges)


def last(fits: Iterator[Fit]) -> Fit:
    """Of all passes."""
    *_, final = fits
    return final


# One seed -----------------------------------------------------------------------------------------------------------


def null_figures(fit: Fit, label: str) -> Row:
    """What is found where nothing is, and the size of its errors."""
    nothing = no_bias(np.linspace(0.0, 1.0, len(fit.table) + 1))
    return {
        f"{label}: mean A": 1e5 * fit.mean("A"),
        f"{label}: mean M": 1e6 * fit.mean("M"),
        f"{label}: chi2/n": fit.chi2_per_parameter(nothing, ("A", "M")),
        f"{label}: events used": fit.events_fraction,
        f"{label}: fit chi2/ndf": fit.solution.chi2 / fit.solution.ndf,
        f"{label}: sigma A": 1e5 * float(np.sqrt(np.diag(fit.of("A")[1])).mean()),
        f"{label}: sigma M": 1e6 * float(np.sqrt(np.diag(fit.of("M")[1])).mean()),
    }


def slope(found: Floats, injected: Floats, covariance: Floats) -> float:
    """Of the straight line through zero: found against injected."""
    weighted = np.linalg.solve(covariance, injected)
    return float(weighted @ found / (weighted @ injected))


def z_part(seed: int, data: Sample, simulation: TemplateHistogram) -> Row:
    """The null sample, and all that is injected into it."""
    binning = simulation.binning
    null = last(passes(lambda: data, simulation, 2))
    row = null_figures(null, "null") | {"null: width": -1e6 * float(null.of("width")[0].mean())}
    row["seconds: fit"] = null.seconds
    truth = random_truth(seed, binning.eta_edges)
    zero = np.zeros(binning.n_eta)
    for name, values, label in (
        ("A", truth.A, "A slope"),
        ("M", truth.M, "M slope"),
        ("M", zero + UNIFORM_M, "uniform M"),
    ):
        injected = replace(no_bias(truth.eta_edges), **{name: values})
        result = last(passes(lambda injected=injected: biased(data, injected), simulation, 2))  # type: ignore[misc]
        found, covariance = result.of(name)
        row[f"{label}, paired"] = slope(found - null.of(name)[0], values, covariance)
        row[f"{label}, direct"] = slope(found, values, covariance)
    pt2 = last(passes(lambda: with_pt2_term(data), simulation, 2))
    expected = PT2 * mean_square_pt(data, binning)
    row["pT^2 term, paired"] = (pt2.mean("A") - null.mean("A")) / expected
    row["pT^2 term, direct"] = pt2.mean("A") / expected
    width = last(passes(lambda: smeared(data, seed), simulation, 2))
    for kind, before in (("paired", null.of("width")[0]), ("direct", zero)):
        row[f"width, {kind}"] = -1e6 * float(np.mean(width.of("width")[0] - before))
    row["width: change of mean A"] = 1e5 * (width.mean("A") - null.mean("A"))
    return row


def jpsi_part(seed: int, n: float) -> Row:
    """Three passes of A, e, M from J/psi with background."""
    binning, settings = jpsi_binning(), jpsi_settings()
    truth = random_truth(seed, binning.eta_edges)
    # 15 % in the window of the fit, of an exponential that is nearly flat.
    window = (3.25 - 2.85) / (3.4 - 2.7)
    share = 0.15 / (0.15 + 0.85 * window)
    measured = replace(settings, truth=truth, background=share)
    simulation = fill_templates(
        simulate(settings, number_for(settings, 4.0 * n, binning), 7000 + seed), binning, step=JPSI_STEP
    )
    data = kept(measured, number_for(measured, n / 0.85, binning), 8000 + seed)
    row: Row = {}
    names = ("A", "e", "M", "width")
    for number, result in enumerate(
        passes(lambda: data, simulation, 3, names=names, step=JPSI_STEP, background=True), start=1
    ):
        found = result.scale(binning.eta_edges)
        d = (found.A - truth.A, found.e - truth.e, found.M - truth.M)
        label = f"Jpsi pass {number}"
        row[f"{label}: chi2/n"] = result.chi2_per_parameter(truth, ("A", "e", "M"))
        row[f"{label}: fit chi2/ndf"] = result.solution.chi2 / result.solution.ndf
        for pt in (6.0, 40.0):
            row[f"{label}: L({pt:g})"] = 1e5 * float(
                np.mean([relative_correction(pt, q, *d) for q in (1, -1)])
            )
    return row


def every_other_heavier(events: DimuonEvents) -> Floats:
    """Weights 0.25 and 1.75 that know nothing of the event: the power of 0.64 as many."""
    digits = np.floor(1e9 * np.abs(events.plus.phi)) % 2.0
    return np.asarray(0.25 + 1.5 * digits)


def study_part(seed: int, n: float, data: Sample, events: Sample) -> Row:
    """What the prototype did not look at; ``data`` and ``events`` (simulated) are those of the null sample."""
    fine = fill_templates(events, z_binning(48), step=Z_STEP)
    null = last(passes(lambda: data, fine, 2))
    row = null_figures(null, "48 eta bins")
    truth = random_truth(seed, fine.binning.eta_edges)
    injected = replace(no_bias(truth.eta_edges), A=truth.A)
    found, covariance = last(passes(lambda: biased(data, injected), fine, 2)).of("A")
    row["48 eta bins: A slope, paired"] = slope(found - null.of("A")[0], truth.A, covariance)

    def compare(label: str, sample: Sample, weight: Callable[[DimuonEvents], Floats] | None) -> None:
        simulation = fill_templates(events, z_binning(), step=Z_STEP, weight=weight)
        row.update(null_figures(last(passes(lambda: sample, simulation, 2)), label))

    compare("weighted simulation", data, every_other_heavier)
    z = z_settings()
    n_data = number_for(z, n, z_binning())
    spectrum = replace(z.resonance.spectrum, exponent=1.0 + 1.2 * (z.resonance.spectrum.exponent - 1.0))
    harder = kept(replace(z, spectrum=spectrum), n_data, 5000 + seed)
    tenth = n_data // 10
    less_radiation = [e.select(np.arange(len(e)) % 10 > 0) for e in data] + kept(
        replace(z, fsr=False), tenth, 6000 + seed
    )
    counts = spectrum_counts(events, spectrum_binning())
    for label, sample in (("spectrum", harder), ("radiation -10 %", less_radiation)):
        compare(label, sample, None)
        weights = spectrum_weights(spectrum_counts(sample, spectrum_binning()), counts, spectrum_binning())
        compare(f"{label}, reweighted", sample, normalised(weights, events))
    return row


def normalised(weights: SpectrumWeights, events: Sample) -> Callable[[DimuonEvents], Floats]:
    """The weights over their mean in the first chunk."""
    mean = float(weights(events[0]).mean())
    return lambda chunk: weights(chunk) / mean


def one_seed(seed: int, parts: list[str], size: float) -> Row:
    """All figures of one seed."""
    row: Row = {"seed": seed}
    if "z" in parts or "studies" in parts:
        z, binning = z_settings(), z_binning()
        data = kept(z, number_for(z, 3e6 * size, binning), 2000 + seed)
        events = kept(z, number_for(z, 12e6 * size, binning), 1000 + seed)
        if "z" in parts:
            fill_templates(data[:1], binning, step=Z_STEP)  # compiled before it is timed
            start = time.perf_counter()
            simulation = fill_templates(events, binning, step=Z_STEP)
            row["seconds: fill of 12e6 Z"] = (time.perf_counter() - start) / size
            row |= z_part(seed, data, simulation)
        if "studies" in parts:
            row |= study_part(seed, 3e6 * size, data, events)
    if "jpsi" in parts:
        row |= jpsi_part(seed, 1e6 * size)
    return row


# Tables -------------------------------------------------------------------------------------------------------------


def judged(rows: list[Row]) -> list[tuple[Bar, Floats, bool]]:
    """Every bar whose statistic was measured, with the values of all seeds."""
    out = []
    for bar in BARS:
        if bar.statistic in rows[0]:
            values = np.array([row[bar.statistic] for row in rows])
            out.append((bar, values, bar.holds(values)))
    return out


def summary(values: Floats) -> str:
    """Mean, its error, and the extremes."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.4g} +- {error:.2g} | {values.min():.4g} ... {values.max():.4g}"


def tables(rows: list[Row], with_bars: bool) -> str:
    """Markdown: the bars, then everything."""
    lines = []
    if with_bars:
        lines += [f"{len(rows)} seeds\n", "| statistic | bar | mean | extremes | |", "|---|---|---|---|---|"]
        for bar, values, holds in judged(rows):
            which = "average" if bar.average else "each"
            verdict = "pass" if holds else "FAIL"
            lines.append(
                f"| {bar.statistic} | {bar.low:g} ... {bar.high:g}, {which} | {summary(values)} | {verdict} |"
            )
        lines.append("")
    lines += ["| figure | mean | extremes |", "|---|---|---|"]
    for name in rows[0]:
        if name != "seed":
            lines.append(f"| {name} | {summary(np.array([row[name] for row in rows]))} |")
    return "\n".join(lines)


def main() -> int:
    """0 when all bars hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument(
        "--parts", nargs="+", default=["z", "jpsi", "studies"], choices=["z", "jpsi", "studies"]
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the events, no bars")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        start = time.perf_counter()
        rows.append(one_seed(seed, options.parts, 0.1 if options.quick else 1.0))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    bars = [] if options.quick else judged(rows)
    if options.json:
        verdicts = [
            {"statistic": b.statistic, "low": b.low, "high": b.high, "average": b.average, "holds": h}
            for b, _, h in bars
        ]
        print(json.dumps({"rows": rows, "bars": verdicts}))
    else:
        print(tables(rows, bool(bars)))
    return 0 if all(holds for _, _, holds in bars) else 3


if __name__ == "__main__":
    sys.exit(main())
