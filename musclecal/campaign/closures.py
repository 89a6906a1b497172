"""Closures: what correction is left at a resonance, in which engine, after which correction, in which part of it."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from musclecal.campaign.joint import JointStages
from musclecal.campaign.template import Applied, DataAndSimulation
from musclecal.errors import InputError
from musclecal.fits.contribution import ALL_EVENTS, sample_and_part, shares_events
from musclecal.fits.phi_waves import count_angles, wave_information
from musclecal.fits.scale_information import scale_information
from musclecal.given_correction import read_correction
from musclecal.records import (
    Closure,
    ClosureSplits,
    CorrectionTables,
    DimuonEvents,
    ScaleWithCovariance,
    SplitTest,
    TemplateHistogram,
)
from musclecal.samples import Correction
from musclecal.store import load, save
from musclecal.tasks import Task
from musclecal.validation.closure import closure_test, template_closure
from musclecal.validation.splits import half_tests, phi_tests, run_test

__all__ = ["UNCORRECTED", "ClosureStages", "in_runs"]

UNCORRECTED = Applied("uncorrected")


def in_runs(events: DimuonEvents, low: int, high: int) -> DimuonEvents:
    """The events with low <= run < high."""
    if events.run is None:
        raise InputError("closure: run_edges are given, but a data file has no run numbers")
    return events.select((events.run >= low) & (events.run < high))


class ClosureStages(JointStages):
    """The closure stage."""

    def calibrated_muons(self) -> Applied:
        """Muons corrected with the calibration of this campaign.

        Raises
        ------
        InputError : the campaign has no data to calibrate on.
        """
        if not self.config.samples_of(self.calibrated, "data"):
            raise InputError(
                f'samples: no sample of kind "data" for the resonance {self.calibrated}, which is calibrated on: '
                "add one, or close with --uncorrected or --calibration"
            )
        return self.corrected_by("calibrated", self.calibration_task, self.calibration)

    def given_correction(self, path: Path) -> Applied:
        """Muons corrected with what is in a file or an export folder.

        Raises
        ------
        InputError : no correction there.
        """
        given = read_correction(path)
        name = "given_" + "".join(c if c.isalnum() else "_" for c in path.resolve().name)
        return Applied(name, (), given.files, lambda: (given.correction,), lambda: given.scale)

    def engine_of(self, resonance: str, wanted: str | None = None) -> str:
        """The closure engine for a resonance; data without simulation have the scalar one only."""
        if self._is_fast(resonance):
            if wanted == "template":
                raise InputError(
                    f"--engine template: the resonance {resonance} has no simulation of its own "
                    '(reference = "fast"): use the scalar engine'
                )
            return "scalar"
        return wanted or self.config.closure.engine

    def closure_task(
        self,
        name: str,
        *,
        corrected: bool = True,
        applied: Applied | None = None,
        engine: str | None = None,
    ) -> Task:
        """Residual correction at a resonance or a half of it: after the calibration, after ``applied``, or uncorrected.

        Raises
        ------
        InputError : the calibration used these events; half of a sample in the scalar engine.
        """
        applied = applied or (self.calibrated_muons() if corrected else UNCORRECTED)
        own = applied.name == "calibrated"
        resonance, part = self.sample_to_close(name) if own else sample_and_part(name)
        engine = self.engine_of(resonance, engine)
        parameters = self.config.settings(resonance).closure_parameters
        half = () if part == ALL_EVENTS else (part,)
        name = "_".join((resonance, *half, *(() if own else (applied.name,)), engine))
        output = self.output / "closure" / f"{name}.h5"
        if engine == "template":
            fit = self.template_task(resonance, applied, parameters, part)
            run = partial(self._close_template, fit, applied, parameters, part, output)
            after: tuple[Task, ...] = (fit, *applied.after)
        elif half:
            raise InputError(
                f"closure at {resonance} {part}: only the template engine closes half of a sample"
            )
        else:
            passes = self._passes_of(applied)
            run = partial(self._close_scalar, resonance, applied, parameters, output)
            after = (self.fit_task(resonance, passes), *self._scale_task(passes))
        options = {"parameters": parameters}
        return Task(f"closure/{name}", "closure", output, run, options, applied.inputs, after)

    def _passes_of(self, applied: Applied) -> int:
        """The pass of mass fits with these muons."""
        if applied.name not in ("calibrated", "uncorrected"):
            raise InputError("--calibration: only the template engine closes a given correction")
        return self.last_pass + 1 if applied.name == "calibrated" else 0

    def _close_template(
        self, fit: Task, applied: Applied, parameters: tuple[str, ...], part: str, output: Path
    ) -> None:
        closure = template_closure(self.template_fit(fit), applied.scale(), parameters)
        save(output, self._labelled(replace(closure, part=part), applied))

    def _close_scalar(
        self, resonance: str, applied: Applied, parameters: tuple[str, ...], output: Path
    ) -> None:
        passes = self._passes_of(applied)
        closure = closure_test(self.mass_fits(resonance, passes), self._scale(passes), parameters)
        save(output, self._labelled(closure, applied))

    def _labelled(self, closure: Closure, applied: Applied) -> Closure:
        """With what was applied; without s where the calibration was made from the same events."""
        own = applied.name == "calibrated" and closure.resonance not in self.closures
        own = own or self._is_made_from(closure, applied.scale())
        return (
            replace(closure, s=None, applied="own events") if own else replace(closure, applied=applied.name)
        )

    def _is_made_from(self, closure: Closure, scale: ScaleWithCovariance | None) -> bool:
        """Whether a correction is an export of this campaign that used events of the closure."""
        if not isinstance(scale, CorrectionTables):
            return False
        if scale.provenance.get("campaign") != self.config.campaign.name:
            return False
        used = scale.provenance.get("resonances", "").split(", ")
        return any(shares_events(name, closure.name) for name in used)

    def closure(
        self,
        name: str,
        *,
        corrected: bool = True,
        applied: Applied | None = None,
        engine: str | None = None,
    ) -> Closure:
        """The closure of a resonance or a half of it, once its task is done."""
        task = self.closure_task(name, corrected=corrected, applied=applied, engine=engine)
        return load(task.output, Closure)

    # Parts of the sample

    def splits_task(self, name: str, *, applied: Applied | None = None) -> Task:
        """Closure in phi, run ranges, charge order and pT asymmetry, in the template engine.

        Always of the whole sample: A and M of every eta bin are free, so it does not matter what they were fitted to.
        """
        resonance = sample_and_part(name)[0]
        applied = applied or self.calibrated_muons()
        settings = self.config.closure
        fit = self.template_task(resonance, applied, ("A", "M"))
        name = f"{resonance}_splits" + ("" if applied.name == "calibrated" else f"_{applied.name}")
        output = self.output / "closure" / f"{name}.h5"
        simulation = self.template_simulation_task(resonance, settings.phi_sectors)
        run = partial(self._split, resonance, applied, fit, simulation, output)
        options = {
            "phi_sectors": settings.phi_sectors,
            "harmonics": settings.harmonics,
            "run_edges": settings.run_edges,
        }
        after = (fit, simulation, *applied.after)
        return Task(f"closure/{name}", "closure", output, run, options, applied.inputs, after)

    def _split(self, resonance: str, applied: Applied, fit: Task, phi_simulation: Task, output: Path) -> None:
        settings = self.config.closure
        whole = DataAndSimulation(*self.template_histograms(resonance, fit))
        corrections = self.corrections_at(applied, self.template_fit(fit))
        binning = self.config.template_binning(resonance, settings.phi_sectors)
        in_phi = DataAndSimulation(
            self._filled(resonance, "data", binning, corrections),
            load(phi_simulation.output, TemplateHistogram),
        )
        bins = self._bin_information(resonance, in_phi, whole)
        angles = count_angles(self._source(resonance, "data", corrections=corrections), binning)
        waves = wave_information(bins, angles, settings.harmonics, resonance)
        tests = phi_tests(scale_information(bins, resonance), settings.harmonics, waves)
        tests += half_tests(self._bin_information(resonance, whole))
        if settings.run_edges:
            tests += (self._run_test(resonance, whole, corrections),)
        save(output, ClosureSplits(resonance, tests))

    def _run_test(
        self, resonance: str, whole: DataAndSimulation, corrections: tuple[Correction, ...]
    ) -> SplitTest:
        edges = (0, *self.config.closure.run_edges)
        parts, names = [], []
        for low, high in pairwise(edges):
            data = self._filled(
                resonance, "data", whole.data.binning, corrections, only=partial(in_runs, low=low, high=high)
            )
            bins = self._bin_information(resonance, DataAndSimulation(data, whole.simulation), whole)
            parts.append(scale_information(bins, resonance))
            names.append(f"runs {low} to {high - 1}")
        return run_test(parts, names, whole.simulation.n_effective)

    def splits(self, name: str, *, applied: Applied | None = None) -> ClosureSplits:
        """The split tests of a resonance, once their task is done."""
        return load(self.splits_task(name, applied=applied).output, ClosureSplits)
