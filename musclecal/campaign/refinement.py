"""The refine stage: a correction in phi, in phi sectors or in run ranges, where a split of the sample asks for one.

Derived on top of a correction, pass by pass until nothing changes. What it was derived from is no independent closure
afterwards: of the split tests after it, those of the fitted waves, sectors or ranges come out too well by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from musclecal.campaign.closures import ClosureStages, in_runs
from musclecal.campaign.template import Applied, DataAndSimulation
from musclecal.errors import InputError
from musclecal.export import export_refinement
from musclecal.fits.phi_waves import count_angles
from musclecal.fits.refinement import joined, run_step, sector_step, wave_step
from musclecal.fits.scale_information import require_sectors, scale_information
from musclecal.records import PhiRefinement, RunRefinement, ScaleInformation, TemplateHistogram
from musclecal.refine import refine
from musclecal.samples import Correction
from musclecal.store import load, save
from musclecal.tasks import Task, package_version

__all__ = ["RefinementStages", "Refining"]

_MOST_PASSES = 5
_SMALL_CHANGE = 0.01
"""chi2 per parameter of a pass that changes nothing."""

Refinement = PhiRefinement | RunRefinement
_Refinement = TypeVar("_Refinement", PhiRefinement, RunRefinement)


@dataclass(frozen=True)
class Refining:
    """In what a correction is derived: ``where`` is phi (waves, ``harmonics``), sectors or runs."""

    where: str
    harmonics: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Part of file names."""
        return self.where + "".join(f"_{h}" for h in self.harmonics)

    @property
    def fitted_tests(self) -> tuple[str, ...]:
        """Split tests that are none any more on the sample that this was derived from."""
        waves = tuple(f"phi harmonic {h}" for h in self.harmonics)
        return {"phi": (*waves, "phi sectors"), "sectors": ("phi sectors",), "runs": ("run ranges",)}[
            self.where
        ]


class RefinementStages(ClosureStages):
    """The refine stage."""

    def refining(self, where: str, harmonics: tuple[int, ...] | None = None) -> Refining:
        """A choice that can be made with this campaign file.

        Raises
        ------
        InputError : harmonics for something else than phi, none, twice or too high; no run_edges.
        """
        closure = self.config.closure
        if where != "phi":
            if harmonics is not None:
                raise InputError(f"--harmonics belongs to --in phi, not to --in {where}")
            if where == "runs" and not closure.run_edges:
                raise InputError(f"{self.path}: closure.run_edges: needed for --in runs")
            return Refining(where)
        wanted = closure.harmonics if harmonics is None else harmonics
        if not wanted or len(set(wanted)) != len(wanted):
            raise InputError(f"--harmonics: at least one, and each one once, got {list(wanted)}")
        require_sectors(closure.phi_sectors, wanted)
        return Refining(where, tuple(sorted(wanted)))

    def refine_task(self, resonance: str, refining: Refining, applied: Applied | None = None) -> Task:
        """A and M in phi, sectors or run ranges, on top of ``applied`` (default: this campaign's calibration)."""
        applied = applied or self.calibrated_muons()
        self.engine_of(resonance, "template")
        if not self.config.samples_of(resonance, "data"):
            raise InputError(f'samples: no sample of kind "data" for the resonance {resonance}')
        files, tasks = self._inputs(resonance, "data")
        name = f"{resonance}_{refining.name}_{applied.name}"
        output = self.output / "refine" / f"{name}.h5"
        simulations: tuple[Task, ...] = (self.template_simulation_task(resonance),)
        if refining.where != "runs":
            simulations += (self.template_simulation_task(resonance, self.config.closure.phi_sectors),)
        options = self._template_options(resonance, self.config.closure.phi_sectors) | {
            "samples": self._sample_options(resonance, "data"),
            "where": refining.where,
            "harmonics": refining.harmonics,
            "run_edges": self.config.closure.run_edges,
            "campaign": self.config.campaign.name,
        }
        run = partial(self._refine, resonance, refining, applied, output)
        after = (*simulations, *tasks, *applied.after)
        also = tuple(output.with_suffix(suffix) for suffix in (".json", ".npz"))
        return Task(f"refine/{name}", "refine", output, run, options, files + applied.inputs, after, also)

    def _refine(self, resonance: str, refining: Refining, applied: Applied, output: Path) -> None:
        if refining.where == "runs":
            found: Refinement = self._converged(applied, partial(self._run_step, resonance))
        else:
            found = self._converged(applied, partial(self._phi_step, resonance, refining))
        provenance = {
            "campaign": self.config.campaign.name,
            "musclecal": package_version(),
            "resonance": resonance,
            "applied before": applied.name,
        }
        export_refinement(found, output.parent, output.stem, provenance)
        save(output, found)

    def _converged(
        self, applied: Applied, step_of: Callable[[tuple[Correction, ...]], _Refinement]
    ) -> _Refinement:
        """Steps, each on muons corrected with those before, until one changes nothing."""
        given: tuple[Correction, ...] = applied.corrections()
        step = step_of(given)
        found = step
        while step.last_change > _SMALL_CHANGE and found.passes < _MOST_PASSES:
            step = step_of((*given, partial(refine, refinement=found)))
            found = joined(found, step)
        return found

    def _whole(self, resonance: str, corrections: tuple[Correction, ...]) -> DataAndSimulation:
        """All phi and all runs together, with derivatives."""
        binning = self.config.template_binning(resonance)
        return DataAndSimulation(
            self._filled(resonance, "data", binning, corrections),
            load(self.template_simulation_task(resonance).output, TemplateHistogram),
        )

    def _phi_step(
        self, resonance: str, refining: Refining, corrections: tuple[Correction, ...]
    ) -> PhiRefinement:
        binning = self.config.template_binning(resonance, self.config.closure.phi_sectors)
        simulation = self.template_simulation_task(resonance, binning.phi_sectors).output
        in_phi = DataAndSimulation(
            self._filled(resonance, "data", binning, corrections), load(simulation, TemplateHistogram)
        )
        bins = self._bin_information(resonance, in_phi, self._whole(resonance, corrections))
        if not refining.harmonics:
            return sector_step(scale_information(bins, resonance))
        angles = count_angles(self._source(resonance, "data", corrections=corrections), binning)
        return wave_step(bins, angles, refining.harmonics, resonance)

    def _run_step(self, resonance: str, corrections: tuple[Correction, ...]) -> RunRefinement:
        whole = self._whole(resonance, corrections)
        edges = (0, *self.config.closure.run_edges)
        parts = [self._of_runs(resonance, whole, corrections, low, high) for low, high in pairwise(edges)]
        return run_step(parts, edges, whole.simulation.n_effective)

    def _of_runs(
        self,
        resonance: str,
        whole: DataAndSimulation,
        corrections: tuple[Correction, ...],
        low: int,
        high: int,
    ) -> ScaleInformation:
        """What one run range says, with the derivatives of all."""
        only = partial(in_runs, low=low, high=high)
        try:
            data = self._filled(resonance, "data", whole.data.binning, corrections, only=only)
            bins = self._bin_information(resonance, DataAndSimulation(data, whole.simulation), whole)
            return scale_information(bins, resonance)
        except InputError as error:
            raise InputError(f"runs {low} to {high - 1}: {error}") from None

    def refinement(self, resonance: str, refining: Refining, applied: Applied | None = None) -> Refinement:
        """The refinement, once its task is done."""
        output = self.refine_task(resonance, refining, applied).output
        return load(output, RunRefinement) if refining.where == "runs" else load(output, PhiRefinement)

    def refined_muons(self, resonance: str, refining: Refining, applied: Applied | None = None) -> Applied:
        """Muons corrected with ``applied`` and then with a refinement: for further closures and splits."""
        applied = applied or self.calibrated_muons()
        task = self.refine_task(resonance, refining, applied)

        def corrections() -> tuple[Correction, ...]:
            found = self.refinement(resonance, refining, applied)
            return *applied.corrections(), partial(refine, refinement=found)

        return replace(
            applied,
            name=f"{applied.name}_{resonance}_{refining.name}",
            after=(task, *applied.after),
            corrections=corrections,
            scale=lambda: None,
        )
