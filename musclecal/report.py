"""Results in words: tables for people, and the JSON objects that scripts read. Nothing is fitted here."""

from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import chi2 as chi2_distribution

from musclecal.campaign import Campaign
from musclecal.covariance import chi2_of
from musclecal.figures import write_figures
from musclecal.fits.likelihood import FitStatus
from musclecal.module_report import modules_text, scale_bias_text
from musclecal.records import (
    Closure,
    ClosureSplits,
    MassFits,
    MassHistogram,
    ScaleCalibration,
    ScaleParameters,
)
from musclecal.scale import relative_correction
from musclecal.selection import format_cut_flow
from musclecal.store import load
from musclecal.tasks import Task, write_text
from musclecal.uncertainty_report import resolution_text, systematic_text
from musclecal.validation.closure import mean_residual
from musclecal.validation.joint_table import joint_text
from musclecal.validation.propagation import impacts_table

__all__ = [
    "bins_text",
    "calibration_table",
    "calibration_text",
    "closure_table",
    "closure_text",
    "cut_flow_text",
    "fill_table",
    "fit_table",
    "fit_text",
    "inclusive_text",
    "report_task",
    "splits_table",
    "splits_text",
    "summary",
]


def cut_flow_text(campaign: Campaign, resonance: str, passes: int) -> str:
    """Cut flows of all samples of a resonance, and what fell outside the binning."""
    parts = []
    for kind in ("data", "simulation"):
        histogram = load(campaign.fill_task(resonance, kind, passes).output, MassHistogram)
        for name, flow in histogram.cut_flows.items():
            parts.append(f"{name}\n{format_cut_flow(flow)}")
        where = f"{resonance} {kind}: {histogram.n_events:,.0f} events in {len(histogram.bins):,} 4D bins"
        parts.append(f"{where}, {histogram.n_outside:,} outside the binning")
    return "\n\n".join(parts)


def fill_table(campaign: Campaign) -> dict[str, object]:
    """Events, occupied bins and cut flows of data and simulation."""
    table: dict[str, object] = {"resonance": campaign.calibrated}
    for kind in ("data", "simulation"):
        histogram = load(campaign.fill_task(campaign.calibrated, kind, 0).output, MassHistogram)
        table[kind] = {
            "events": histogram.n_events,
            "bins": len(histogram.bins),
            "outside": histogram.n_outside,
            "pt_edges": list(histogram.binning.pt_edges),
            "cut_flows": {
                name: dict(zip(flow.names, flow.counts, strict=True))
                for name, flow in histogram.cut_flows.items()
            },
        }
    return table


def _statuses(fits: MassFits) -> dict[str, int]:
    status = fits.data.status
    return {s.name.lower(): int(np.count_nonzero(status == s)) for s in FitStatus}


def fit_table(fits: MassFits) -> dict[str, object]:
    """How the mass fits went."""
    good = fits.usable
    chi2, ndf = float(fits.data.chi2[good].sum()), int(fits.data.ndf[good].sum())
    return {
        "resonance": fits.resonance,
        "model": fits.model,
        "background": fits.background,
        "bins": len(fits.bins),
        "usable": int(np.count_nonzero(good)),
        "status": _statuses(fits),
        "events_fraction": fits.events_fraction,
        "converged_fraction": fits.converged_fraction,
        "chi2": chi2,
        "ndf": ndf,
    }


def fit_text(fits: MassFits) -> str:
    """How the mass fits went, in words."""
    good = fits.usable
    chi2, ndf = fits.data.chi2[good].sum(), fits.data.ndf[good].sum()
    failed = ", ".join(f"{n} {name}" for name, n in _statuses(fits).items() if n and name != "good")
    offset = 1e5 * (np.average(fits.scale[good], weights=1.0 / fits.scale_variance[good]) - 1.0)
    return (
        f"{fits.resonance}: {len(fits.bins)} bins fitted with {fits.model} + {fits.background} background, "
        f"{np.count_nonzero(good)} good{f' ({failed})' if failed else ''}\n"
        f"events in used fits {100 * fits.events_fraction:.2f} % of the selected ones, "
        f"{100 * fits.converged_fraction:.2f} % of those in fitted bins\n"
        f"Pearson chi2 of the data fits {chi2:.0f}/{ndf} = {chi2 / max(ndf, 1):.3f}; "
        f"median width {100 * np.median(fits.data.width[good]):.2f} %; "
        f"mean mass scale data/simulation - 1 = {offset:+.1f}e-5"
    )


def bins_text(fits: MassFits) -> str:
    """One line per fitted 4D bin."""
    lines = ["   bin    events  status  scale-1[1e-5]    error  width[%]  backgr.  chi2/ndf  where"]
    error = np.sqrt(fits.scale_variance)
    for row, number in enumerate(fits.bins):
        data = fits.data
        lines.append(
            f"{number:6d} {data.n_events[row]:9.0f} {FitStatus(data.status[row]).name.lower():>7} "
            f"{1e5 * (fits.scale[row] - 1):14.1f} {1e5 * error[row]:8.1f} {100 * data.width[row]:9.3f} "
            f"{data.parameters[row, 2]:8.3f} {data.chi2[row]:5.0f}/{data.ndf[row]:<4d} {fits.binning.describe(number)}"
        )
    return "\n".join(lines)


def calibration_table(calibration: ScaleCalibration) -> dict[str, object]:
    """The calibration as plain numbers."""
    return {
        "eta_edges": calibration.eta_edges.tolist(),
        "A": calibration.A.tolist(),
        "e": calibration.e.tolist(),
        "M": calibration.M.tolist(),
        "covariance": calibration.covariance.tolist(),
        "parameter_order": "A, e, M of each eta bin",
        "chi2": calibration.chi2,
        "ndf": calibration.ndf,
        "p_value": calibration.p_value,
        "rank": calibration.rank,
        "condition": calibration.condition,
        "passes": calibration.passes,
        "residual_chi2": calibration.residual_chi2,
        "events_fraction": calibration.events_fraction,
        "converged_fraction": calibration.converged_fraction,
    }


def calibration_text(calibration: ScaleCalibration, truth: ScaleParameters | None = None) -> str:
    """A, e, M per eta bin with errors; beside the injected truth, if there is one."""
    c = calibration
    error = np.sqrt(np.diag(c.covariance)).reshape(-1, 3)
    units, names = (1e-5, 1e-3, 1e-6), ("A [1e-5]", "e [MeV]", "M [1e-6/GeV]")
    with_truth = "" if truth is None else "    truth"
    lines = ["eta bin          " + "".join(f"{name:>20}{with_truth}" for name in names)]
    for n in range(c.n_eta):
        line = f"{c.eta_edges[n]:+6.2f} .. {c.eta_edges[n + 1]:+6.2f} "
        for p, name in enumerate("AeM"):
            line += f"{getattr(c, name)[n] / units[p]:11.2f} +- {error[n, p] / units[p]:5.2f}"
            if truth is not None:
                line += f"{getattr(truth, name)[n] / units[p]:9.2f}"
        lines.append(line)
    lines.append(
        f"fit chi2 {c.chi2:.0f}/{c.ndf} (p = {c.p_value:.2g}); "
        f"rank {c.rank} of {3 * c.n_eta}, condition {c.condition:.0f}; "
        f"{100 * c.events_fraction:.2f} % of the selected events used; {c.passes} passes"
        + ("" if c.residual_chi2 is None else f", the last one changed chi2/n by {c.residual_chi2:.3f}")
        + (" (NOT CONVERGED: more events are needed)" if (c.residual_chi2 or 0.0) > _SETTLED else "")
    )
    if truth is not None:
        lines.append(_truth_text(c, truth))
    return "\n".join(lines)


_SETTLED = 0.05
"""chi2 per parameter: a last pass that changed more has not converged."""


def _truth_text(calibration: ScaleCalibration, truth: ScaleParameters) -> str:
    difference = calibration.parameters - truth.parameters
    test = chi2_of(difference, calibration.covariance)
    d = difference.reshape(-1, 3)
    means = []
    for pt in (6.0, 40.0):
        mean = np.mean([relative_correction(pt, q, d[:, 0], d[:, 1], d[:, 2]).mean() for q in (1, -1)])
        means.append(f"at {pt:g} GeV {1e5 * mean:+.1f}e-5")
    return (
        f"result against truth: chi2 {test.chi2:.0f}/{test.ndf} (p = {test.p_value:.2g}); "
        f"mean error of dk/k {', '.join(means)}"
    )


def closure_table(closure: Closure) -> dict[str, object]:
    """The closure as plain numbers. A, M, e are corrections that are still to be applied."""
    table: dict[str, object] = {
        "resonance": closure.resonance,
        "part": closure.part,
        "engine": closure.engine,
        "eta_edges": closure.eta_edges.tolist(),
    }
    for column, name in enumerate(closure.parameter_names):
        table[name] = closure.values[:, column].tolist()
    return table | {
        "covariance": closure.covariance.tolist(),
        "calibration_covariance": closure.calibration_covariance.tolist(),
        "chi2": closure.chi2,
        "ndf": closure.ndf,
        "p_value": closure.p_value,
        "s": closure.s,
        "s_quoted": closure.s_quoted,
        "mean": {name: mean_residual(closure, name)[0] for name in closure.parameter_names},
        "mean_error": {name: mean_residual(closure, name)[1] for name in closure.parameter_names},
        "fit_chi2": closure.fit_chi2,
        "fit_ndf": closure.fit_ndf,
        "applied": closure.applied,
        "events_fraction": closure.events_fraction,
    }


def closure_text(closure: Closure) -> str:
    """Residuals per eta bin and the verdict."""
    c = closure
    n_fit = len(c.parameter_names)
    error = np.sqrt(np.diag(c.covariance)).reshape(-1, n_fit)
    total = np.sqrt(np.diag(c.covariance + c.calibration_covariance)).reshape(-1, n_fit)
    units = {"A": (1e-5, "A [1e-5]"), "e": (1e-3, "e [MeV]"), "M": (1e-6, "M [1e-6/GeV]")}
    what = {
        "uncorrected": "correction needed, as nothing was applied",
        "own events": "what is left on the events of the calibration itself: no verdict",
    }.get(c.applied, "residual correction")
    lines = [f"{c.name}: {what} (+- closure sample, all)"]
    lines.append("eta bin          " + "".join(f"{units[name][1]:>28}" for name in c.parameter_names))
    for n in range(len(c.values)):
        line = f"{c.eta_edges[n]:+6.2f} .. {c.eta_edges[n + 1]:+6.2f} "
        for p, name in enumerate(c.parameter_names):
            unit = units[name][0]
            line += f"{c.values[n, p] / unit:12.2f} +- {error[n, p] / unit:5.2f}, {total[n, p] / unit:5.2f}"
        lines.append(line)
    means = []
    for name in c.parameter_names:
        mean, mean_error, all_error = mean_residual(c, name)
        unit, label = units[name]
        words = (
            f"{mean / unit:+.1f} +- {mean_error / unit:.1f} (closure sample), {all_error / unit:.1f} (all)"
        )
        means.append(f"mean {label}: {words}")
    known = "with the calibration's uncertainty" if c.s is not None else "with that of the closure sample"
    scale = "" if c.s is None else f"; s = {c.s:.2f}, quoted {c.s_quoted:.2f}"
    lines.append(
        f"chi2 {c.chi2:.1f}/{c.ndf} {known}, p = {c.p_value:.2g}{scale}\n{'; '.join(means)}\n"
        f"fit chi2 {c.fit_chi2:.0f}/{c.fit_ndf} = {c.fit_chi2 / max(c.fit_ndf, 1):.3f}, "
        f"p = {chi2_distribution.sf(c.fit_chi2, max(c.fit_ndf, 1)):.2g}; "
        f"{100 * c.events_fraction:.1f} % of the selected events used ({c.engine})"
    )
    return "\n".join(lines)


def splits_table(splits: ClosureSplits) -> dict[str, object]:
    """The split tests as plain numbers."""
    tests = [
        {
            "name": test.name,
            "parts": list(test.parts),
            "parameters": list(test.parameter_names),
            "values": test.values.tolist(),
            "errors": test.errors.tolist(),
            "chi2": test.chi2,
            "ndf": test.ndf,
            "p_value": test.p_value,
        }
        for test in splits.tests
    ]
    return {"tests": tests, "p_value": splits.p_value}


def splits_text(splits: ClosureSplits) -> str:
    """One line per split test, its parts below where they differ, and the verdict of all together."""
    lines = [
        f"{splits.resonance}: are parts of the sample alike? (A in 1e-5, M in 1e-6/GeV, about the whole sample)"
    ]
    units = {"A": 1e-5, "M": 1e-6}
    for test in splits.tests:
        lines.append(f"  {test.name:<18} chi2 {test.chi2:7.1f}/{test.ndf:<4d} p = {test.p_value:.2g}")
        if test.p_value > 0.01 and len(test.parts) > 2:
            continue
        for part, values, errors in zip(test.parts, test.values, test.errors, strict=True):
            numbers = (
                f"{name} {value / units[name]:+8.2f} +- {error / units[name]:5.2f}"
                for name, value, error in zip(test.parameter_names, values, errors, strict=True)
            )
            lines.append(f"    {part:<24} {'  '.join(numbers)}")
    lines.append(
        f"smallest p-value {splits.worst.p_value:.2g} ({splits.worst.name}); among {len(splits.tests)} tests one "
        f"that small has a probability of {splits.p_value:.2g}"
    )
    return "\n".join(lines)


def inclusive_text(campaign: Campaign, resonance: str) -> str:
    """The mass scale of a resonance, all muons in one fit, before and after the calibration."""
    parts = []
    for when, passes in (("before", 0), ("after", campaign.last_pass + 1)):
        scale, error = campaign.inclusive_scale(resonance, passes)
        parts.append(f"{when} {1e5 * (scale - 1.0):+.1f} +- {1e5 * error:.1f} e-5")
    return f"{resonance}: mass scale of data over simulation - 1, all bins in one fit: {', '.join(parts)}"


def summary(campaign: Campaign) -> str:
    """The whole campaign on a page or two."""
    config = campaign.config
    parts = [f"Campaign {config.campaign.name}"]
    if campaign.has_modules:
        parts.append(modules_text(campaign))
    parts.append(cut_flow_text(campaign, campaign.calibrated, 0))
    parts.append(fit_text(campaign.mass_fits(campaign.calibrated, campaign.last_pass)))
    parts.append(calibration_text(campaign.calibration(), campaign.truth()))
    if campaign.has_modules and campaign.module_truth() is not None:
        parts.append(scale_bias_text(campaign, campaign.calibration()))
    if campaign.is_joint:
        parts.append(joint_text(campaign.joint()))
    for name in campaign.closures:
        before, after = campaign.closure(name, corrected=False), campaign.closure(name)
        mean, error, _ = mean_residual(before)
        parts.append(
            closure_text(after)
            + f"\nbefore the calibration: mean A {1e5 * mean:+.1f} +- {1e5 * error:.1f} e-5, "
            f"chi2 {before.chi2:.1f}/{before.ndf}"
        )
        if after.engine == "scalar":
            parts += [inclusive_text(campaign, name), cut_flow_text(campaign, name, campaign.last_pass + 1)]
        else:
            parts.append(splits_text(campaign.splits(name)))
    if campaign.resolution_resonances:
        parts.append(resolution_text(campaign))
    if campaign.systematic_closures:
        parts += [
            systematic_text(campaign),
            "uncertainties of m_W and m_Z in MeV:\n" + impacts_table(*campaign.impacts()),
        ]
    parts.append(
        f"Correction: {campaign.export_task().output.parent}\nFigures: {campaign.output / 'figures'}"
    )
    return "\n\n".join(parts) + "\n"


def report_task(campaign: Campaign) -> Task:
    """The task that writes the figures and the summary of a campaign."""
    after = [campaign.export_task(), campaign.extract_task(campaign.last_pass)]
    if campaign.has_modules:
        after.append(campaign.corrections_task())
    for name in campaign.closures:
        after += [campaign.closure_task(name), campaign.closure_task(name, corrected=False)]
        if campaign.engine_of(name) == "template":
            after.append(campaign.splits_task(name))
    if campaign.resolution_resonances:
        after += campaign.tasks("resolution")
    if campaign.systematic_closures:
        after += (*campaign.tasks("systematics"), *campaign.tasks("propagate"))
    output = campaign.output / "report.txt"
    run = partial(_write_report, campaign, output)
    return Task("report", "report", output, run, {}, campaign.truth_files(), tuple(after))


def _write_report(campaign: Campaign, output: Path) -> None:
    write_figures(campaign, campaign.output / "figures")
    write_text(output, summary(campaign))
