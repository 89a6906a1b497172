"""The template fit of a resonance: its histograms, filled and fitted again until the correction no longer changes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from musclecal.apply import correct
from musclecal.binning import TemplateBinning
from musclecal.campaign.calibration import CalibrationStages
from musclecal.errors import InputError
from musclecal.fits.contribution import ALL_EVENTS, half_of
from musclecal.fits.reweight import SpectrumWeights
from musclecal.fits.scale_fit import PARAMETERS
from musclecal.fits.scale_information import scale_information, solve_eta_bins, template_calibration
from musclecal.fits.template_background import expected_purity
from musclecal.fits.template_closure import BinInformation, bin_information, log_derivatives
from musclecal.fits.templates import fill_templates
from musclecal.records import (
    DimuonEvents,
    ScaleCalibration,
    ScaleParameters,
    ScaleWithCovariance,
    TemplateFit,
    TemplateHistogram,
)
from musclecal.samples import Correction
from musclecal.simulate import no_bias
from musclecal.store import load, save
from musclecal.tasks import Task

__all__ = ["Applied", "DataAndSimulation", "TemplateStages"]

_MOST_PASSES = 5
_SMALL_CHANGE = 0.01
"""chi2 per parameter of a pass that changes nothing."""


@dataclass(frozen=True)
class Applied:
    """What the data were corrected with before a closure looks at them.

    Attributes
    ----------
    name : "calibrated", "uncorrected", or of another correction: part of file names.
    after, inputs : tasks and files it comes from.
    corrections : gives them, once the tasks are done.
    scale : gives A, e, M with covariance, or None where there is none.
    """

    name: str
    after: tuple[Task, ...] = ()
    inputs: tuple[str, ...] = ()
    corrections: Callable[[], tuple[Correction, ...]] = tuple
    scale: Callable[[], ScaleWithCovariance | None] = lambda: None


@dataclass(frozen=True)
class DataAndSimulation:
    """The histograms of one linearisation point."""

    data: TemplateHistogram
    simulation: TemplateHistogram


class TemplateStages(CalibrationStages):
    """Template histograms and fits."""

    def template_simulation_task(self, resonance: str, phi_sectors: int = 1, part: str = ALL_EVENTS) -> Task:
        """Template histogram of the simulation, or of a half of it."""
        if not self.config.samples_of(resonance, "simulation"):
            raise InputError(
                f"samples: the resonance {resonance} has data but no simulation: "
                'add a sample of kind "simulation", or reference = "fast" to the data sample'
            )
        files, tasks = self._inputs(resonance, "simulation")
        reweighted = self.config.settings(resonance).reweight
        if reweighted:
            more_files, more_tasks = self._inputs(resonance, "data")
            files, tasks = files + more_files, (*tasks, *more_tasks, self.binning_task(resonance))
        name = f"{resonance}_simulation" + (f"_phi{phi_sectors}" if phi_sectors > 1 else "") + _suffix(part)
        output = self.output / "template" / f"{name}.h5"
        run = partial(self._fill_template_simulation, resonance, phi_sectors, part, output)
        options = self._template_options(resonance, phi_sectors) | {
            "samples": self._sample_options(resonance, "simulation"),
            "reweight": self._sample_options(resonance, "data") if reweighted else None,
        }
        return Task(f"template/{name}", "closure", output, run, options, files, tasks)

    def _template_options(self, resonance: str, phi_sectors: int = 1) -> dict[str, object]:
        r = self.config.resonance(resonance)
        return {
            "binning": repr(self.config.template_binning(resonance, phi_sectors)),
            "step": r.template.step,
            "background": r.background,
            "widths": self.config.settings(resonance).template.widths,
        }

    def _fill_template_simulation(self, resonance: str, phi_sectors: int, part: str, output: Path) -> None:
        weight = self._spectrum_weights(resonance, ()) if self.config.settings(resonance).reweight else None
        binning = self.config.template_binning(resonance, phi_sectors)
        save(output, self._filled(resonance, "simulation", binning, (), weight, _only(part)))

    def _filled(
        self,
        resonance: str,
        kind: str,
        binning: TemplateBinning,
        corrections: tuple[Correction, ...],
        weight: SpectrumWeights | None = None,
        only: Callable[[DimuonEvents], DimuonEvents] | None = None,
    ) -> TemplateHistogram:
        """A sample's histogram; its derivatives are those of all phi sectors together."""
        source = self._source(resonance, kind, corrections=corrections)
        try:
            return fill_templates(
                source if only is None else map(only, source),
                binning,
                step=self.config.resonance(resonance).template.step,
                derivatives=binning.phi_sectors == 1,
                weight=weight,
                cut_flows=lambda: source.flows,
            )
        except InputError as error:
            raise InputError(f"{resonance} {kind}: {error}") from None

    def template_task(
        self,
        resonance: str,
        applied: Applied,
        parameters: tuple[str, ...] = ("A", "M"),
        part: str = ALL_EVENTS,
    ) -> Task:
        """Fit of data to simulation (or of halves of both), with the data's histogram at the last point beside it."""
        if not self.config.samples_of(resonance, "data"):
            raise InputError(f'samples: no sample of kind "data" for the resonance {resonance}')
        files, tasks = self._inputs(resonance, "data")
        name = f"{resonance}_{applied.name}_{''.join(parameters)}{_suffix(part)}"
        output = self.output / "template" / f"{name}.h5"
        run = partial(self._fit_template, resonance, applied, parameters, part, output)
        options = self._template_options(resonance) | {
            "samples": self._sample_options(resonance, "data"),
            "parameters": parameters,
        }
        after = (self.template_simulation_task(resonance, part=part), *tasks, *applied.after)
        also = (self._data_histogram_of(output),)
        return Task(f"template/{name}", "closure", output, run, options, files + applied.inputs, after, also)

    @staticmethod
    def _data_histogram_of(fit: Path) -> Path:
        return fit.with_name(f"{fit.stem}_data.h5")

    def _fit_template(
        self, resonance: str, applied: Applied, parameters: tuple[str, ...], part: str, output: Path
    ) -> None:
        binning = self.config.template_binning(resonance)
        simulation = load(self.template_simulation_task(resonance, part=part).output, TemplateHistogram)
        given = applied.corrections()
        point = no_bias(np.array(binning.eta_edges))
        for passes in range(1, _MOST_PASSES + 1):
            corrections: tuple[Correction, ...] = (*given, partial(correct, scale=point))
            data = self._filled(resonance, "data", binning, corrections, only=_only(part))
            bins = self._bin_information(resonance, DataAndSimulation(data, simulation))
            information = scale_information(bins, resonance)
            solution = solve_eta_bins(information, parameters)
            flat = solution.values.ravel()
            change = float(flat @ np.linalg.solve(solution.covariance, flat)) / len(flat)
            if change < _SMALL_CHANGE or passes == _MOST_PASSES:
                break
            step = dict(zip(solution.parameter_names, solution.values.T, strict=True))
            point = ScaleParameters(
                point.eta_edges, *(getattr(point, name) + step.get(name, 0.0) for name in ("A", "e", "M"))
            )
        save(self._data_histogram_of(output), data)
        save(output, TemplateFit(information, point, passes, change))

    def _bin_information(
        self, resonance: str, histograms: DataAndSimulation, whole: DataAndSimulation | None = None
    ) -> BinInformation:
        """Reduce a pair of histograms; derivatives come from ``whole``, the same pair without phi sectors."""
        data, simulation = histograms.data, histograms.simulation
        source = whole or histograms
        purity = None
        if self.config.resonance(resonance).background != "none":
            rows = np.searchsorted(source.data.bins, data.binning.without_phi(data.bins))
            purity = expected_purity(source.data, source.simulation)[rows]
        return bin_information(
            data,
            simulation,
            log_derivatives(source.data, source.simulation),
            purity=purity,
            own_width=self.config.settings(resonance).template.widths == "bin",
        )

    # Extraction

    @property
    def calibration_task(self) -> Task:
        """The task that makes the final calibration, by the engine of the campaign file."""
        return self.extraction_task(self.config.campaign.engine)

    def extraction_task(self, engine: str) -> Task:
        """A, e, M by mass fits, or by one template fit of all cells."""
        if engine == "mass-fits":
            return self.extract_task(self.last_pass)
        fit = self.template_task(self.calibrated, Applied("uncorrected"), PARAMETERS)
        output = self.output / "extract" / "calibration_template.h5"
        run = partial(self._extract_from_templates, fit, output)
        return Task("extract/calibration_template", "extract", output, run, {}, (), (fit,))

    def calibration(self, engine: str | None = None) -> ScaleCalibration:
        """The final calibration, or that of an engine, once its task is done."""
        return load(self.extraction_task(engine or self.config.campaign.engine).output, ScaleCalibration)

    def _extract_from_templates(self, fit: Task, output: Path) -> None:
        data, simulation = self.template_histograms(self.calibrated, fit)
        bins = self._bin_information(self.calibrated, DataAndSimulation(data, simulation))
        save(output, template_calibration(self.template_fit(fit), bins))

    def corrected_by(self, name: str, task: Task, scale: Callable[[], ScaleCalibration]) -> Applied:
        """Muons corrected with a calibration that a task makes."""
        return Applied(name, (task,), (), lambda: self.corrections_of(scale()), scale)

    @staticmethod
    def corrections_at(applied: Applied, fit: TemplateFit) -> tuple[Correction, ...]:
        """What takes the data to the point of a fit."""
        return (*applied.corrections(), partial(correct, scale=fit.point))

    def template_fit(self, task: Task) -> TemplateFit:
        """The fit of a template task that is done."""
        return load(task.output, TemplateFit)

    def template_histograms(
        self, resonance: str, task: Task, part: str = ALL_EVENTS
    ) -> tuple[TemplateHistogram, TemplateHistogram]:
        """(data at the last point of a template task, simulation)."""
        simulation = load(self.template_simulation_task(resonance, part=part).output, TemplateHistogram)
        return load(self._data_histogram_of(task.output), TemplateHistogram), simulation


def _suffix(part: str) -> str:
    """Of file names."""
    return "" if part == ALL_EVENTS else f"_{part}"


def _only(part: str) -> Callable[[DimuonEvents], DimuonEvents] | None:
    """What keeps the events of a part."""
    return None if part == ALL_EVENTS else partial(half_of, part=part)
