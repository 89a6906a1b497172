"""The corrections of modules in words and as JSON. Nothing is fitted here but the hits of muons without noise."""

import numpy as np

from musclecal.campaign import Campaign
from musclecal.geometry.module_fit import PassSummary
from musclecal.geometry.momentum_bias import MomentumBias, momentum_bias
from musclecal.records import (
    PARAMETER_TYPES,
    PARAMETER_UNITS,
    Detector,
    ModuleCorrections,
    ScaleParameters,
)
from musclecal.validation.module_plots import significant_modes

__all__ = [
    "bias_after_scale",
    "bias_text",
    "module_biases",
    "modules_table",
    "modules_text",
    "scale_bias_text",
]

_MODES, _LARGEST, _NAMED = 10, 10, 8
_FAR = 4.0
"""Prior widths of a mode."""
_PT = 10.0
"""GeV, of the muons whose bias is told."""


def module_biases(campaign: Campaign) -> dict[str, MomentumBias]:
    """Of simulated data: dk/k in the middle of each eta bin, before and after the corrections of modules."""
    truth = campaign.module_truth()
    if truth is None:
        return {}
    edges = np.array(campaign.config.binning.edges)
    eta = 0.5 * (edges[1:] + edges[:-1])
    found = campaign.module_corrections().values
    return {
        name: momentum_bias(campaign.detector, campaign.field_map, truth, values, _PT, eta)
        for name, values in (("before", np.zeros_like(found)), ("after modules", found))
    }


def bias_after_scale(bias: MomentumBias, scale: ScaleParameters) -> MomentumBias:
    """What is left after k_corr = (1 + A - e k) k + q M, in the eta bins of ``scale``, to first order."""
    even = bias.even + scale.A - scale.e / bias.pt
    return MomentumBias(bias.pt, bias.eta, even, bias.odd + scale.M * bias.pt)


def bias_text(biases: dict[str, MomentumBias]) -> str:
    """One line for each."""
    lines = [f"true bias of dk/k at pT {_PT:g} GeV, rms over eta, charge-even and charge-odd:"]
    lines += [f"  {n:<16} {1e5 * b.even_rms:8.1f} {1e5 * b.odd_rms:8.1f}  e-5" for n, b in biases.items()]
    return "\n".join(lines)


def _largest(c: ModuleCorrections) -> list[tuple[int, int]]:
    """(unit, slot) of the corrections that are most errors from zero."""
    known = (c.kinds > 0) & (c.sigma > 0.0) & (c.uses > 0)[:, None]
    size = np.where(known, np.abs(c.values) / np.where(known, c.sigma, 1.0), -1.0)
    order = np.argsort(-size, axis=None, kind="stable")[:_LARGEST]
    places = [divmod(int(k), c.values.shape[1]) for k in order]
    return [(unit, slot) for unit, slot in places if known[unit, slot]]


def _layer_of(detector: Detector) -> list[str]:
    names = [""] * detector.n_units
    for sensor in np.flatnonzero(detector.side == 0):
        names[int(detector.unit[sensor])] = detector.layer_names[int(detector.layer[sensor])]
    return names


def modules_table(campaign: Campaign) -> dict[str, object]:
    """The global fit as plain numbers."""
    c = campaign.module_corrections()
    first, last = campaign.pass_summary(0), campaign.pass_summary()
    table: dict[str, object] = {
        "detector": c.detector,
        "units": len(c.uses),
        "units_used": int(np.count_nonzero(c.uses)),
        "units_without_hits": c.without_hits.tolist(),
        "parameters": int(np.count_nonzero(c.kinds)),
        "mass": _mass_table(campaign),
        "mass_of_sums": last.mass,
        "pairs": c.n_pairs,
        "pairs_read": last.read,
        "events_read": last.events,
        "settled": last.settled,
        "passes": last.passes,
        "moved": last.moved,
        "chi2_before": first.chi2,
        "chi2_after": c.chi2,
        "prior_chi2": c.prior_chi2,
        "ndf": c.ndf,
        "iterations": c.iterations,
        "residual": c.residual,
        "sigma_is": c.sigma_is,
        "modes": [
            {
                "name": c.mode_names[k],
                "amplitude": float(c.amplitudes[k]),
                "sigma": float(c.amplitude_sigma[k]),
            }
            for k in significant_modes(c, _MODES)
        ],
        "largest": [
            {
                "module": unit,
                "type": PARAMETER_TYPES[c.kinds[unit, slot]],
                "value": float(c.values[unit, slot]),
                "sigma": float(c.sigma[unit, slot]),
                "uses": int(c.uses[unit]),
            }
            for unit, slot in _largest(c)
        ],
        "bias": {
            name: {"eta": b.eta.tolist(), "even": b.even.tolist(), "odd": b.odd.tolist()}
            for name, b in module_biases(campaign).items()
        },
        "samples": {
            name: {"file": str(task.output), "corrected": campaign.config.samples[name].is_module_corrected}
            for name, task in campaign.made_samples.items()
            if campaign.config.samples[name].has_hits
        },
    }
    return table


def _mass_table(campaign: Campaign) -> dict[str, object] | None:
    """As the keys of [modules] that give the same target; and its relative error."""
    mass = campaign.mass_found
    if mass is None:
        return None
    return {
        "target": mass.target,
        "sigma": mass.sigma,
        "growth": list(mass.growth),
        "robust": mass.robust if np.isfinite(mass.robust) else None,
        "error": mass.error,
    }


def _mass_text(campaign: Campaign) -> str:
    mass = campaign.mass_found
    if mass is None:
        of_sums = campaign.pass_summary().mass
        return f"mass in the sums: {of_sums}" if of_sums else "the mass is left free"
    known = f"+- {1e5 * mass.error:.1f}e-5" if mass.error > 0.0 else "as given"
    return (
        f"target of the mass {mass.target:.5f} GeV {known} (growth {mass.growth[0]:.4g}, {mass.growth[1]:.4g}); "
        f"sigma {mass.sigma:.5f} GeV, robust {mass.robust:g}"
    )


def _in_units(kind: str, value: float, sigma: float) -> str:
    unit = PARAMETER_UNITS[kind]
    factor, label = {"cm": (1e4, "um"), "rad": (1e6, "urad"), "1": (1e3, "e-3")}[unit]
    return f"{factor * value:+9.2f} +- {factor * sigma:.2f} {label}"


def _kind_of_mode(name: str) -> str:
    return "field" if name.startswith("field") else "material" if name.startswith("material") else "u"


def modules_text(campaign: Campaign) -> str:
    """The global fit on half a page."""
    c, layers = campaign.module_corrections(), _layer_of(campaign.detector)
    first, last = campaign.pass_summary(0), campaign.pass_summary()
    used = int(np.count_nonzero(c.uses))
    bound = " (errors are lower bounds)" if c.sigma_is != "exact" else ""
    lines = [
        f"Modules of {campaign.detector.name}: {used:,} of {len(c.uses):,} units used, "
        f"{np.count_nonzero(c.kinds):,} parameters, {c.n_pairs:,} of {last.read:,} pairs{_events_text(last)}",
        f"chi2 of the tracks {first.chi2:.0f} before, {c.chi2:.0f} after, ndf {c.ndf:.0f}: "
        f"{first.chi2 / first.ndf:.4f} -> {c.chi2 / c.ndf:.4f} per ndf; of the prior {c.prior_chi2:.0f}",
        f"{last.passes} passes, the last one moved no parameter by more than {last.moved:.2g} prior "
        f"widths; {c.iterations} iterations, residual {c.residual:.1e}",
        _without_hits_text(c, layers),
        _mass_text(campaign),
    ]
    if last.amplitude > _FAR:
        lines.append(
            f"far from what the prior expects: {last.mode} by {last.amplitude:.1f} widths. Are detector, field and "
            "target what they are thought to be?"
        )
    if not last.settled:
        lines.append(
            "not settled: what is not linear is left. Fit again at these corrections (modules.passes, modules.start)"
        )
    modes = significant_modes(c, _MODES)
    if modes:
        lines.append(f"most significant modes, largest displacement or relative change{bound}:")
        for k in modes:
            amplitude = _in_units(_kind_of_mode(c.mode_names[k]), c.amplitudes[k], c.amplitude_sigma[k])
            lines.append(f"  {c.mode_names[k]:<24} {amplitude}")
    lines.append(f"largest corrections{bound}:")
    for unit, slot in _largest(c):
        kind = PARAMETER_TYPES[c.kinds[unit, slot]]
        amplitude = _in_units(kind, c.values[unit, slot], c.sigma[unit, slot])
        lines.append(f"  unit {unit:<6} {layers[unit]:<16} {kind:<9} {amplitude}, {c.uses[unit]:,} tracks")
    biases = module_biases(campaign)
    if biases:
        lines.append(bias_text(biases))
    return "\n".join(lines)


def _events_text(fit: PassSummary) -> str:
    """How many events there were, where some have no pair."""
    return f", of {fit.events:,} events read" if fit.events != fit.read else ""


def _without_hits_text(c: ModuleCorrections, layers: list[str]) -> str:
    empty = c.without_hits
    if not len(empty):
        return "all units have hits"
    named = ", ".join(f"{unit} ({layers[unit]})" for unit in empty[:_NAMED])
    more = ", ..." if len(empty) > _NAMED else ""
    return f"{len(empty):,} units without hits keep their prior: {named}{more}"


def scale_bias_text(campaign: Campaign, scale: ScaleParameters) -> str:
    """The true bias before, after the modules and after A, e, M, where the truth is known."""
    biases = module_biases(campaign)
    if biases:
        biases["after A, e, M"] = bias_after_scale(biases["after modules"], scale)
    return bias_text(biases) if biases else ""
