"""The stage modules: corrections of modules from hits, and samples of muons that are made of hits.

Samples with hits are fitted again and corrected, and are files of muons like any other then.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from musclecal.campaign.module_fits import ModuleFits
from musclecal.campaign.module_inputs import pairs_of_files
from musclecal.config import SampleConfig
from musclecal.errors import InputError
from musclecal.events import write_dimuons
from musclecal.geometry.corrected_pairs import corrected_events
from musclecal.records import (
    DimuonEvents,
)
from musclecal.tasks import Task

__all__ = ["ModuleStages"]


class ModuleStages(ModuleFits):
    """The stage modules."""

    def module_tasks(self) -> tuple[Task, ...]:
        """All that the stage modules makes: the corrections, and the samples with hits."""
        samples = (self._refit_task(name, s) for name, s in self.config.samples.items() if s.has_hits)
        return (self.corrections_task(), *samples)

    @property
    def made_samples(self) -> dict[str, Task]:
        """The tasks that make samples, those of muons with hits among them, by name of the sample."""
        samples = self.config.samples.items()
        return super().made_samples | {name: self._refit_task(name, s) for name, s in samples if s.has_hits}

    def _refit_task(self, name: str, sample: SampleConfig) -> Task:
        corrected = (self._solve_task(self.module_passes - 1),) if sample.is_module_corrected else ()
        files = self._hit_files(f"samples.{name}.hits", sample.hits) if sample.hits else ()
        options: dict[str, object] = {"corrected": bool(corrected), "cuts": self._cuts._asdict()}
        options |= self._detector_options
        if sample.simulate_hits is not None:
            options |= {"simulate": sample.simulate_hits.model_dump(), "kind": sample.kind}
            options |= self._simulation_options(sample.resonance)
        output = Path(self._files(name)[0])
        run = partial(self._refit, sample, files, output)
        inputs = files + self._detector_files
        return Task(f"samples/{name}", "modules", output, run, options, inputs, corrected)

    def _refit(self, sample: SampleConfig, files: tuple[str, ...], output: Path) -> None:
        table, total = sample.simulate_hits, None
        if table is None:
            pairs = pairs_of_files(files, self.detector)
        else:
            pairs, total = (
                self._simulated(table, sample.resonance, nominal=sample.kind == "simulation"),
                table.pairs,
            )
        values = self.module_corrections().values if sample.is_module_corrected else None
        events = corrected_events(self._counted(pairs, total), self._planes, values, self._cuts)
        write_dimuons(output, _with_pairs(output, events))


def _with_pairs(output: Path, chunks: Iterable[DimuonEvents]) -> Iterator[DimuonEvents]:
    n = 0
    for events in chunks:
        n += len(events)
        yield events
    if n == 0:
        raise InputError(f"{output}: no pair of tracks in the hits of this sample")
