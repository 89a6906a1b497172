"""The mass of muon pairs as a measurement in the global fit: given, or found from simulated pairs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from musclecal.campaign.module_inputs import ModuleInputs, pairs_of_files
from musclecal.errors import InputError
from musclecal.geometry.mass_target import mass_constraint
from musclecal.records import (
    MassConstraint,
    Pairs,
)
from musclecal.store import load, save
from musclecal.tasks import Task

__all__ = ["ModuleMass"]

_ROBUST = 2.0
"""Standard deviations: with a reference, whose target is that of robust masses."""


class ModuleMass(ModuleInputs):
    """Its task."""

    @property
    def _window(self) -> tuple[float, float]:
        return self._modules.mass_window or self.config.resonance(self.calibrated).mass_window

    def mass_task(self) -> Task:
        """Target and width of the mass: given, or from simulated pairs."""
        m = self._modules
        output = self._module_folder / "mass.h5"
        patterns = () if m.reference is None else m.reference.hits
        files = self._hit_files("modules.reference.hits", patterns) if patterns else ()
        for file in (file for hits in self._fitted_hits.values() for file in hits.files):
            if file in files:
                raise InputError(
                    f"modules.reference.hits: {file} is among the data, whose scale it would hide"
                )
        options = {
            "given": m.model_dump(include={"target", "sigma", "growth", "error"}),
            "robust": repr(m.robust),
            "window": self._window,
            "simulate": None if m.reference is None else m.reference.model_dump(exclude={"hits"}),
            **self._simulation_options(self.calibrated),
            "cuts": self._cuts._asdict(),
        }
        run = partial(self._find_mass, files, output)
        return Task("modules/mass", "modules", output, run, options, files + self._detector_files)

    def _find_mass(self, files: tuple[str, ...], output: Path) -> None:
        m = self._modules
        robust = m.robust or (_ROBUST if m.reference else float("inf"))
        if m.target is not None and m.sigma is not None:
            save(output, MassConstraint(m.target, m.sigma, self._window, robust, m.growth, m.error))
            return
        try:
            found = mass_constraint(
                self._reference_pairs(files), self._planes, self._window, robust, self._cuts
            )
        except InputError as error:
            raise InputError(f"modules.reference: {error}") from None
        save(output, found)

    def _reference_pairs(self, files: tuple[str, ...]) -> Iterator[Pairs]:
        """The simulated pairs that give the mass, with as much background as they are said to have."""
        assert self._modules.reference is not None
        table = self._modules.reference.simulate
        chunks = (
            pairs_of_files(files, self.detector)
            if table is None
            else self._simulated(table, self.calibrated, nominal=True)
        )
        yield from self._counted(chunks, None if table is None else table.pairs)

    @property
    def mass_found(self) -> MassConstraint | None:
        """Target and width of the mass, once the task is done; None where it is not measured, or sums were given."""
        if not self._modules.mass or self._modules.sums:
            return None
        return load(self.mass_task().output, MassConstraint)
