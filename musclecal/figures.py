"""The figures of a campaign: which record goes into which plot."""

from pathlib import Path

import numpy as np

from musclecal.campaign import Campaign
from musclecal.errors import InputError
from musclecal.fits.mass_fits import signal_model
from musclecal.records import MassFits
from musclecal.validation import (
    closure_plots,
    plots,
    propagation_plots,
    resolution_plots,
    systematic_plots,
)
from musclecal.validation.systematics import expected_factors

__all__ = ["draw_mass_fit", "write_figures"]


def _spectrum(
    campaign: Campaign, fits: MassFits, passes: int, number: int | None, *, simulation: bool = False
) -> plots.MassSpectrum:
    """The data (or simulation) of one fitted 4D bin, or of all usable ones, with the fit."""
    data, simulated = campaign.histograms(fits.resonance, passes)
    rows = np.searchsorted(simulated.bins, fits.bins)
    resonance = campaign.config.resonance(fits.resonance)
    model = signal_model(campaign.mass_model(fits.resonance), simulated, rows, resonance)
    if simulation:
        counts, shown, background, label = simulated.counts[rows], fits.pure, "none", "Simulation"
    else:
        counts, shown = data.counts[np.searchsorted(data.bins, fits.bins)], fits.data
        background, label = fits.background, "Data"
    if number is None:
        return plots.sum_of_bins(counts, shown, model, background, fits.usable, label=label)
    row = int(np.searchsorted(fits.bins, number))
    if row == len(fits.bins) or fits.bins[row] != number:
        raise InputError(
            f"bin {number} was not fitted (fewer than {fits.min_events} events): see `draw --list`"
        )
    return plots.spectrum_of_bin(counts, shown, model, background, row, label=label)


def draw_mass_fit(
    campaign: Campaign,
    resonance: str,
    passes: int,
    number: int | None,
    path: Path,
    *,
    simulation: bool = False,
) -> None:
    """Draw the fit of 4D bin ``number``, or of the sum over all used bins."""
    fits = campaign.mass_fits(resonance, passes)
    spectrum = _spectrum(campaign, fits, passes, number, simulation=simulation)
    title = f"{len(fits.bins)} 4D bins together" if number is None else fits.binning.describe(number)
    plots.plot_mass_fit(spectrum, path, title=f"{campaign.config.resonance(resonance).label}: {title}")


def _draw_template_closure(campaign: Campaign, name: str, folder: Path) -> None:
    """Masses of data and simulation, and the parts of the sample."""
    resonance, part = campaign.sample_to_close(name)
    parameters = campaign.config.settings(resonance).closure_parameters
    task = campaign.template_task(resonance, campaign.calibrated_muons(), parameters, part)
    data, simulation = campaign.template_histograms(resonance, task, part)
    label = campaign.config.resonance(resonance).label
    closure_plots.plot_masses(
        data, simulation, folder / f"mass_{name}.png", title=f"{label}: calibrated muons"
    )
    closure_plots.plot_splits(campaign.splits(name), folder / f"splits_{name}.png")


def write_uncertainty_figures(campaign: Campaign, folder: Path) -> None:
    """Figures of the resolution, the scaled systematic and the propagation, as far as the campaign has them."""
    if campaign.resolution_resonances:
        found = campaign.resolution()
        resolution_plots.plot_resolution(found.simulation, found.data, folder / "resolution.png")
        pairs = [
            (campaign.width_closure(name, smeared=False), campaign.width_closure(name))
            for name in campaign.width_closures
        ]
        resolution_plots.plot_width_closure(pairs, folder / "widths.png")
    if not campaign.systematic_closures:
        return
    calibration, systematic = campaign.calibration(), campaign.systematic()
    closures = [campaign.closure(name) for name in campaign.systematic_closures]
    p_values = {f"{c.resonance}: A and M": c.p_value for c in closures}
    for closure in closures:
        name = closure.resonance
        systematic_plots.plot_scaled_closure(
            closure, calibration, systematic, folder / f"closure_scaled_{name}.png"
        )
        systematic_plots.plot_residual_pulls(closure, folder / f"closure_pulls_{name}.png")
        if closure.engine == "template":
            p_values |= {f"{name}: {test.name}": test.p_value for test in campaign.splits(name).tests}
    systematic_plots.plot_p_values(p_values, folder / "p_values.png")
    factor = systematic.factor(systematic.quoted)
    used = (
        closures
        if systematic.quoted == "joint"
        else [c for c in closures if c.resonance == systematic.quoted]
    )
    toys = {"n_toys": campaign.config.systematics.toys, "seed": campaign.config.systematics.seed}
    systematic_plots.plot_s_toys(
        factor,
        expected_factors(calibration, used, **toys),
        folder / "s_toys.png",
        expected_factors(calibration, used, factor.s, **toys),
    )
    propagation_plots.plot_mass_impacts(list(campaign.impacts()), folder / "mass_impacts.png")


def write_figures(campaign: Campaign, folder: Path) -> None:
    """All figures of a finished campaign."""
    folder.mkdir(parents=True, exist_ok=True)
    calibration, truth = campaign.calibration(), campaign.truth()
    plots.plot_calibration(calibration, folder / "calibration.png", truth)
    plots.plot_scale_at(calibration, folder / "scale_at_pt.png", truth=truth)
    if len(calibration.pulls):
        plots.plot_pulls(calibration, folder / "pulls.png")
    plots.plot_covariance(calibration, folder / "correlations.png")
    draw_mass_fit(
        campaign, campaign.calibrated, campaign.last_pass, None, folder / f"mass_{campaign.calibrated}.png"
    )
    closures, before = [], []
    for name in campaign.closures:
        closures.append(campaign.closure(name))
        before.append(campaign.closure(name, corrected=False))
        plots.plot_closure(closures[-1], folder / f"closure_{name}.png", calibration)
        if closures[-1].engine == "scalar":
            draw_mass_fit(campaign, name, campaign.last_pass + 1, None, folder / f"mass_{name}.png")
        else:
            _draw_template_closure(campaign, name, folder)
    if closures:
        fits = campaign.mass_fits(campaign.calibrated, campaign.last_pass)
        spectrum = _spectrum(campaign, fits, campaign.last_pass, None)
        plots.plot_overview(
            calibration, spectrum, closures[:3], folder / "overview.png", truth, before=before,
            title=f"{campaign.config.resonance(campaign.calibrated).label}: masses in {len(fits.bins)} 4D bins",
        )  # fmt: skip
    write_uncertainty_figures(campaign, folder)
