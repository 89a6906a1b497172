"""The resolution stage: widths of data and simulation, the smearing that simulation needs, and whether it closes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from musclecal.campaign.refinement import RefinementStages
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.residuals import fill_residuals, joined_residuals
from musclecal.fits.resolution import (
    data_resolution,
    fit_generator_resolution,
    fit_resolution,
    smearing_difference,
)
from musclecal.fits.widths import fit_widths
from musclecal.records import MassHistogram, MassWidths, Resolution, Smearing, WidthClosure
from musclecal.smear import smear
from musclecal.store import load, save
from musclecal.tasks import Task
from musclecal.validation.width_closure import width_closure

__all__ = ["FittedResolution", "ResolutionStages"]

_ABOVE_SELECTION = 1.08
"""True pT this far above the lowest selected one are not cut by the selection."""
_RESIDUAL_CELLS = 6


@dataclass(frozen=True)
class FittedResolution:
    """Of simulation, of data, their difference, and the smearing that follows from it."""

    simulation: Resolution
    data: Resolution
    difference: Resolution
    smearing: Smearing


class ResolutionStages(RefinementStages):
    """The stage resolution."""

    @property
    def resolution_resonances(self) -> tuple[str, ...]:
        """Resonances whose widths give the resolution: those of the campaign file that have data and simulation."""
        return self._with_simulation(self.config.resolution.resonances)

    @property
    def width_closures(self) -> tuple[str, ...]:
        """Resonances whose widths are compared after smearing."""
        kept = self._with_simulation(self.config.resolution.closure)
        return (
            *self.resolution_resonances,
            *(name for name in kept if name not in self.resolution_resonances),
        )

    def _with_simulation(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            name
            for name in names
            if self.config.samples_of(name, "data") and self.config.samples_of(name, "simulation")
        )

    @property
    def _calibrated_pass(self) -> int:
        """The pass of calibrated muons, or of those as measured where the campaign calibrates nothing."""
        return self.last_pass + 1 if self.config.samples_of(self.calibrated, "data") else 0

    def resolution_task(self) -> Task:
        """Resolution of simulation and data, their difference, the smearing: four files."""
        used = self.resolution_resonances
        if not used:
            wanted = ", ".join(self.config.resolution.resonances)
            raise InputError(f"resolution: no data with a simulation of their own for any of {wanted}")
        folder = self.output / "resolution"
        settings = self.config.resolution
        after = tuple(
            self.fill_task(name, kind, self._calibrated_pass)
            for name in used
            for kind in ("data", "simulation")
        )
        files = tuple(file for name in used for file in self._inputs(name, "simulation")[0])
        tasks = tuple(task for name in used for task in self._inputs(name, "simulation")[1])
        options = {
            "resonances": used,
            "fit_b": settings.fit_b,
            "d": settings.d,
            "min_events": settings.min_events,
            "samples": {name: self._sample_options(name, "simulation") for name in used},
        }
        also = tuple(folder / f"{name}.h5" for name in ("simulation", "data", "smearing"))
        output, after = folder / "difference.h5", (*after, *tasks)
        return Task("resolution", "resolution", output, self._fit_resolution, options, files, after, also)

    def _widths(self, resonance: str, simulation: Path) -> MassWidths:
        data = load(self.fill_task(resonance, "data", self._calibrated_pass).output, MassHistogram)
        r = self.config.resonance(resonance)
        try:
            return fit_widths(
                data, load(simulation, MassHistogram), r, min_events=self.config.resolution.min_events
            )
        except InputError as error:
            raise InputError(f"{resonance}: {error}") from None

    def _simulation_task(self, resonance: str) -> Task:
        return self.fill_task(resonance, "simulation", self._calibrated_pass)

    def _fit_resolution(self) -> None:
        settings = self.config.resolution
        widths, residuals = [], []
        for name in self.resolution_resonances:
            widths.append(self._widths(name, self._simulation_task(name).output))
            low, high = self.config.resonance(name).pt_edges[0], self.config.resonance(name).pt_edges[-1]
            cells = np.geomspace(_ABOVE_SELECTION * low, min(0.9 * high, 12.0 * low), _RESIDUAL_CELLS + 1)
            source = self._source(name, "simulation", muon_pt=(low, high))
            residuals.append(fill_residuals(source, np.array(self.config.binning.edges), cells))
        simulation = fit_generator_resolution(joined_residuals(residuals), fit_b=settings.fit_b, d=settings.d)
        difference = fit_resolution(widths, fit_b=settings.fit_b, d=settings.d)
        output = self.resolution_task().output
        for name, record in (
            ("simulation", simulation),
            ("data", data_resolution(simulation, difference)),
            ("smearing", smearing_difference(difference)),
            ("difference", difference),
        ):
            save(output.with_name(f"{name}.h5"), record)

    def resolution(self) -> FittedResolution:
        """The fitted resolutions, once their task is done."""
        folder = self.resolution_task().output.parent
        simulation, data, difference = (
            load(folder / f"{name}.h5", Resolution) for name in ("simulation", "data", "difference")
        )
        return FittedResolution(simulation, data, difference, load(folder / "smearing.h5", Smearing))

    def smeared_fill_task(self, resonance: str) -> Task:
        """Histogram of the smeared simulation."""
        files, tasks = self._inputs(resonance, "simulation")
        output = self.output / "fill" / f"{resonance}_simulation_smeared.h5"
        run = partial(self._fill_smeared, resonance, output)
        options = {
            "samples": self._sample_options(resonance, "simulation"),
            "resonance": self._settings_of(resonance),
            "eta_edges": self.config.binning.edges,
            "salt": self.config.resolution.salt,
        }
        after = (self.binning_task(resonance), *tasks, self.resolution_task())
        return Task(f"fill/{resonance}_simulation_smeared", "resolution", output, run, options, files, after)

    def _fill_smeared(self, resonance: str, output: Path) -> None:
        binning = self.binning(resonance)
        smeared = partial(smear, extra=self.resolution().smearing, salt=self.config.resolution.salt)
        source = self._binned_source(resonance, "simulation", binning, (smeared,))
        save(output, fill(source, binning, cut_flows=lambda: source.flows))

    def width_closure_task(self, resonance: str, *, smeared: bool = True) -> Task:
        """Width ratios of data and simulation, the latter smeared or as it is."""
        simulation = self.smeared_fill_task(resonance) if smeared else self._simulation_task(resonance)
        name = f"{resonance}_{'smeared' if smeared else 'as_simulated'}"
        output = self.output / "resolution" / f"width_{name}.h5"
        run = partial(self._close_widths, resonance, simulation.output, output)
        after = (self.fill_task(resonance, "data", self._calibrated_pass), simulation, self.resolution_task())
        options = {"min_events": self.config.resolution.min_events}
        return Task(f"resolution/width_{name}", "resolution", output, run, options, (), after)

    def _close_widths(self, resonance: str, simulation: Path, output: Path) -> None:
        used = resonance in self.resolution_resonances
        save(output, width_closure(self._widths(resonance, simulation), used=used))

    def width_closure(self, resonance: str, *, smeared: bool = True) -> WidthClosure:
        """The width ratios, once their task is done."""
        return load(self.width_closure_task(resonance, smeared=smeared).output, WidthClosure)

    def resolution_tasks(self) -> tuple[Task, ...]:
        """All of the stage."""
        return (
            self.resolution_task(),
            *(
                self.width_closure_task(name, smeared=smeared)
                for name in self.width_closures
                for smeared in (False, True)
            ),
        )
