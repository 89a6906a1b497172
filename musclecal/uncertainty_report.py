"""Resolution and scaled systematic in words, and as the JSON objects that scripts read. Nothing is fitted here."""

import numpy as np

from musclecal.campaign import Campaign
from musclecal.campaign.resolution import FittedResolution
from musclecal.records import MassImpacts, Nuisances, ScaleFactor, ScaleSystematic, WidthClosure

__all__ = [
    "impacts_json",
    "resolution_table",
    "resolution_text",
    "systematic_table",
    "systematic_text",
    "width_closure_text",
]


def resolution_text(campaign: Campaign) -> str:
    """sigma_k/k of data and simulation per eta bin, and the ratios of widths before and after smearing."""
    found = campaign.resolution()
    n_par = len(found.data.parameter_names)
    errors = {
        kind: np.sqrt(np.diag(getattr(found, kind).covariance)).reshape(-1, n_par)
        for kind in ("simulation", "data", "difference")
    }
    lines = [
        "(sigma_k/k)^2 = a + c pT^2" + (" + b/(1 + d/pT^2)" if n_par == 3 else ""),
        "eta bin            a [1e-6]: simulation         data     difference"
        "     c [1e-9/GeV^2]: simulation       data     difference",
    ]
    edges = found.data.eta_edges
    for n in range(len(edges) - 1):
        line = f"{edges[n]:+6.2f} .. {edges[n + 1]:+6.2f} "
        for p, (name, unit) in enumerate((("a", 1e-6), ("c", 1e-9))):
            for kind in ("simulation", "data", "difference"):
                value = getattr(getattr(found, kind), name)[n] / unit
                line += f"{value:10.1f} +-{errors[kind][n, p] / unit:6.1f}"
            line += "   " if p == 0 else ""
        lines.append(line)
    d = found.difference
    lines.append(
        f"difference from widths of {', '.join(d.source)}: chi2 {d.chi2:.0f}/{d.ndf}, p = {d.p_value:.2g}; simulation "
        f"worse than data in {100 * found.smearing.clipped.mean():.0f} % of the range, where it is not smeared"
    )
    lines += [width_closure_text(campaign, name) for name in campaign.width_closures]
    return "\n".join(lines)


def width_closure_text(campaign: Campaign, name: str) -> str:
    """One line: widths of data over simulation, before and after smearing."""

    def words(closure: WidthClosure) -> str:
        ratio = f"{closure.mean:.4f} +- {closure.mean_error:.4f}"
        return f"{ratio}, chi2 {closure.chi2:.0f}/{closure.ndf}, p = {closure.p_value:.2g}"

    before, after = (campaign.width_closure(name, smeared=smeared) for smeared in (False, True))
    used = "used" if after.used else "not used"
    return f"width ratio data/simulation at {name} ({used}): {words(before)}; smeared {words(after)}"


def resolution_table(found: FittedResolution) -> dict[str, object]:
    """The fitted resolutions as plain numbers."""
    table: dict[str, object] = {"eta_edges": found.data.eta_edges.tolist(), "d": found.data.d.tolist()}
    for kind in ("simulation", "data", "difference"):
        r = getattr(found, kind)
        table[kind] = {
            "a": r.a.tolist(),
            "b": r.b.tolist(),
            "c": r.c.tolist(),
            "covariance": r.covariance.tolist(),
            "parameter_order": ", ".join(r.parameter_names) + " of each eta bin",
            "chi2": r.chi2,
            "ndf": r.ndf,
            "p_value": r.p_value,
        }
    return table


_BLIND = 0.5
"""A closure whose own variance is more than twice the calibration's says little about s."""


def _factor_text(factor: ScaleFactor, sensitivity: float) -> str:
    low, high = factor.interval_68
    lower, upper = factor.interval_95
    return (
        f"  {factor.name:<8} s = {factor.s:5.2f}   68 % {low:.2f} .. {high:.2f}   95 % {lower:.2f} .. {upper:.2f}   "
        f"likelihood {factor.s_ml:.2f}   chi2(s=1) {factor.chi2:.1f}/{factor.ndf}, p = {factor.p_value:.2g}   "
        f"V_calibration/V_closure {sensitivity:.2f}"
        + ("" if sensitivity > _BLIND else ": measures its own noise rather than s")
    )


def systematic_text(campaign: Campaign) -> str:
    """s of each closure and jointly, what is quoted, and the nuisances that follow."""
    systematic, nuisances, sensitivities = (
        campaign.systematic(),
        campaign.nuisances(),
        campaign.sensitivities(),
    )
    groups = ", ".join(f"{len(group.names)} {group.name}" for group in nuisances.groups)
    return "\n".join(
        [
            "factor on the calibration's uncertainty that makes the residuals expected:",
            *(_factor_text(f, sensitivities[f.name]) for f in (*systematic.factors, systematic.joint)),
            f"quoted: {systematic.s:.2f} ({systematic.quoted}, at least 1)",
            f"nuisances: {groups}; {len(nuisances.names)} in all",
        ]
    )


def _factor_table(factor: ScaleFactor) -> dict[str, object]:
    def finite(values: tuple[float, float]) -> list[float | None]:
        return [value if np.isfinite(value) else None for value in values]

    return {
        "s": factor.s,
        "s_quoted": factor.s_quoted,
        "interval_68": finite(factor.interval_68),
        "interval_95": finite(factor.interval_95),
        "s_likelihood": factor.s_ml,
        "chi2": factor.chi2,
        "ndf": factor.ndf,
        "p_value": factor.p_value,
    }


def systematic_table(systematic: ScaleSystematic, nuisances: Nuisances) -> dict[str, object]:
    """The scaled systematic as plain numbers; null for an interval without a limit."""
    return {
        "s": systematic.s,
        "quoted": systematic.quoted,
        "factors": {f.name: _factor_table(f) for f in (*systematic.factors, systematic.joint)},
        "nuisances": {group.name: len(group.names) for group in nuisances.groups},
        "covariance": systematic.covariance.tolist(),
    }


def impacts_json(impacts: tuple[MassImpacts, ...]) -> dict[str, object]:
    """Impacts in MeV, by boson."""
    return {
        i.boson: {
            "luminosity": i.luminosity,
            "sources": list(i.sources),
            "unprofiled": i.unprofiled.tolist(),
            "frozen": i.frozen.tolist(),
            "constrained": i.constrained.tolist(),
            "unprofiled_total": i.unprofiled_total,
            "frozen_total": i.frozen_total,
            "constrained_total": i.constrained_total,
            "statistical": i.statistical,
            "total_error": i.total_error,
        }
        for i in impacts
    }
