"""From samples to A, e, M: histograms, mass fits, extraction, pass by pass.

``@0`` is the first pass, on the muons as measured; ``@1`` the second, on corrected muons.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from musclecal.apply import correct
from musclecal.binning import Binning
from musclecal.campaign.modules import ModuleStages
from musclecal.errors import InputError
from musclecal.fast_simulation import fast_simulation
from musclecal.fits.fast_resolution import measured_resolution
from musclecal.fits.histogram import MassSums, fill, mass_sums, merged
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.reweight import SpectrumWeights, spectrum_counts, spectrum_weights
from musclecal.fits.scale_fit import scale_calibration
from musclecal.records import DimuonEvents, MassFits, MassHistogram, ScaleCalibration, ScaleParameters
from musclecal.samples import Correction, Source, read_scale
from musclecal.store import load, save
from musclecal.tasks import Task

__all__ = ["CalibrationStages"]

_FAST_EVENTS = 2_000_000
_FAST_SEED = 20_110_000
_NEAR_PEAK = 0.04


@dataclass(frozen=True)
class Filling:
    """What is done with a part of a sample, here or elsewhere: the sums of its histogram."""

    binning: Binning
    weight: SpectrumWeights | None = None

    def __call__(self, source: Source) -> MassSums:
        """Of selected events."""
        sums = mass_sums(source, self.binning, weight=self.weight)
        return replace(sums, flows=source.flows)


class CalibrationStages(ModuleStages):
    """The stages fill, fit and extract."""

    # Histograms

    def _scale_task(self, passes: int) -> tuple[Task, ...]:
        """The calibration that muons of pass ``passes`` are corrected with: after the last pass, the final one."""
        if passes == 0:
            return ()
        return (self.calibration_task if passes > self.last_pass else self.extract_task(passes - 1),)

    def _scale(self, passes: int) -> ScaleCalibration | None:
        return None if passes == 0 else load(self._scale_task(passes)[0].output, ScaleCalibration)

    @property
    def calibration_task(self) -> Task:
        """The task that makes the final calibration."""
        return self.extract_task(self.last_pass)

    def calibration(self) -> ScaleCalibration:
        """The final calibration, once its task is done."""
        return load(self.calibration_task.output, ScaleCalibration)

    def _corrections(self, passes: int) -> tuple[Correction, ...]:
        return self.corrections_of(self._scale(passes))

    @staticmethod
    def corrections_of(scale: ScaleParameters | None) -> tuple[Correction, ...]:
        """What applies a scale to events; nothing for None."""
        return () if scale is None else (partial(correct, scale=scale),)

    def fill_task(self, resonance: str, kind: str, passes: int) -> Task:
        """Histogram of data (corrected with the calibration of the pass before) or of simulation."""
        fast = kind == "simulation" and not self.config.samples_of(resonance, "simulation")
        if fast and not self._is_fast(resonance):
            raise InputError(
                f"samples: the resonance {resonance} has data but no simulation: "
                'add a sample of kind "simulation", or reference = "fast" to the data sample'
            )
        reweighted = kind == "simulation" and not fast and self.config.settings(resonance).reweight
        moving = kind == "data" or fast or reweighted
        name = f"{resonance}_{kind}@{passes if moving else 0}"
        files, tasks = self._inputs(resonance, "data" if fast else kind)
        if reweighted:
            more_files, more_tasks = self._inputs(resonance, "data")
            files, tasks = files + more_files, tasks + more_tasks
        after = (self.binning_task(resonance), *tasks)
        if moving:
            after += self._scale_task(passes)
        if fast:
            after += (self.fill_task(resonance, "data", passes),)
        r = self.config.resonance(resonance)
        options = {
            "samples": self._sample_options(resonance, "data" if fast else kind),
            "resonance": self._settings_of(resonance),
            "eta_edges": self.config.binning.edges,
            "reweight": self._sample_options(resonance, "data") if reweighted else None,
            "fast": [_FAST_EVENTS, _FAST_SEED, r.min_events] if fast else None,
        }
        run = partial(self._fill, resonance, kind, passes, fast, reweighted)
        return Task(f"fill/{name}", "fill", self.output / "fill" / f"{name}.h5", run, options, files, after)

    def _is_fast(self, resonance: str) -> bool:
        return any(s.reference == "fast" for s in self.config.samples_of(resonance, "data").values())

    def _fill(self, resonance: str, kind: str, passes: int, fast: bool, reweighted: bool) -> tuple[str, ...]:
        binning = self.binning(resonance)
        output = self.fill_task(resonance, kind, passes).output
        if fast:
            save(output, self._fast_reference(resonance, passes, binning))
            return ()
        corrections = self._corrections(passes) if kind == "data" else ()
        source = self._binned_source(resonance, kind, binning, corrections)
        weight = self._spectrum_weights(resonance, self._corrections(passes)) if reweighted else None
        try:
            summed = self.summed(source, Filling(binning, weight))
            save(output, summed.total.histogram())
        except InputError as error:
            raise InputError(f"{resonance} {kind}: {error}") from None
        return summed.failed

    def _spectrum_weights(self, resonance: str, corrections: tuple[Correction, ...]) -> SpectrumWeights:
        """Weights that give the simulation the spectrum of the data."""
        binning = self.binning(resonance)
        data, simulation = (
            spectrum_counts(self._binned_source(resonance, kind, binning, applied), binning)
            for kind, applied in (("data", corrections), ("simulation", ()))
        )
        return spectrum_weights(data, simulation, binning)

    def _fast_reference(self, resonance: str, passes: int, binning: Binning) -> MassHistogram:
        data = load(self.fill_task(resonance, "data", passes).output, MassHistogram)
        r = self.config.resonance(resonance)
        resolution = measured_resolution(data, r, r.background, r.min_events)
        seeds = self._source(
            resonance, "data", mass_window=binning.mass_window, corrections=self._corrections(passes)
        )
        lines = np.array([line.mass for line in r.lines])
        near = max(_NEAR_PEAK, 2.0 * r.line.width / r.line.mass)

        def near_peak() -> Iterator[DimuonEvents]:
            for events in seeds:
                distance = np.abs(np.log(events.mass[:, None] / lines[None, :])).min(axis=1)
                yield events.select(distance < near)

        n_seeds = sum(len(events) for events in near_peak())
        replicas = int(np.clip(_FAST_EVENTS // max(n_seeds, 1), 4, 200))
        made = fast_simulation(near_peak(), r, resolution, replicas=replicas, seed=_FAST_SEED)
        return fill(made, binning)

    # Fits

    def fit_task(self, resonance: str, passes: int) -> Task:
        """Mass fits of all 4D bins."""
        name = f"{resonance}@{passes}"
        after = (self.fill_task(resonance, "data", passes), self.fill_task(resonance, "simulation", passes))
        options = {
            "model": repr(self.mass_model(resonance)),
            "resonance": self._settings_of(resonance),
        }
        run = partial(self._fit, resonance, passes)
        return Task(f"fit/{name}", "fit", self.output / "fit" / f"{name}.h5", run, options, (), after)

    def mass_model(self, resonance: str) -> MassModel:
        """How the masses of a resonance are fitted."""
        r = self.config.resonance(resonance)
        return MassModel(r.model, r.background, r.min_events)

    def histograms(self, resonance: str, passes: int) -> tuple[MassHistogram, MassHistogram]:
        """(data, simulation), once their tasks are done."""
        data, simulation = (self.fill_task(resonance, kind, passes).output for kind in ("data", "simulation"))
        return load(data, MassHistogram), load(simulation, MassHistogram)

    def inclusive_scale(self, resonance: str, passes: int) -> tuple[float, float]:
        """Mass scale of data over simulation, and its error, in one fit to the muons of all 4D bins together."""
        data, simulation = (merged(histogram) for histogram in self.histograms(resonance, passes))
        fits = fit_masses(data, simulation, self.config.resonance(resonance), self.mass_model(resonance))
        return float(fits.scale[0]), float(np.sqrt(fits.scale_variance[0]))

    def _fit(self, resonance: str, passes: int) -> None:
        data, simulation = self.histograms(resonance, passes)
        fits = fit_masses(data, simulation, self.config.resonance(resonance), self.mass_model(resonance))
        save(self.fit_task(resonance, passes).output, fits)

    # Calibration

    @property
    def last_pass(self) -> int:
        """Number of the last pass."""
        return self.config.campaign.passes - 1

    def extract_task(self, passes: int) -> Task:
        """A, e, M after a pass."""
        name = f"calibration@{passes}"
        after = (self.fit_task(self.calibrated, passes), *self._scale_task(passes))
        run = partial(self._extract, passes)
        return Task(f"extract/{name}", "extract", self.output / "extract" / f"{name}.h5", run, {}, (), after)

    def _extract(self, passes: int) -> None:
        fits = load(self.fit_task(self.calibrated, passes).output, MassFits)
        save(self.extract_task(passes).output, scale_calibration(fits, self._scale(passes)))

    def mass_fits(self, resonance: str, passes: int) -> MassFits:
        """Mass fits, once their task is done."""
        return load(self.fit_task(resonance, passes).output, MassFits)

    def truth_files(self) -> tuple[str, ...]:
        """The files with the injected truth of simulated data of the calibration resonance."""
        samples = self.config.samples_of(self.calibrated, "data").values()
        return tuple(
            {str(self.folder / s.simulate.truth): None for s in samples if s.simulate and s.simulate.truth}
        )

    def truth(self) -> ScaleParameters | None:
        """The injected truth; None where there is none, or none in the eta bins of the campaign."""
        files = self.truth_files()
        truth = read_scale(Path(files[0])) if files else None
        same = truth is not None and np.array_equal(truth.eta_edges, self.config.binning.edges)
        return truth if same else None
