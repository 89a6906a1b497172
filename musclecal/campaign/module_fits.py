"""Global fits of modules, and their table of corrections.

For each pass the sums of each file of pairs, tasks of their own, so that jobs can share them, and a solution.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from musclecal.campaign.module_inputs import FittedHits, pairs_of_files
from musclecal.campaign.module_mass import ModuleMass
from musclecal.cluster import tree_sum
from musclecal.errors import InputError
from musclecal.geometry.block_sums import merge_sums, weighted
from musclecal.geometry.correction_file import start_values, write_corrections
from musclecal.geometry.module_fit import (
    SETTLED,
    PassSummary,
    cuts_text,
    detector_fingerprint,
    is_last,
    largest_move,
    module_sums,
    pass_cuts,
)
from musclecal.geometry.modules import solve_modules
from musclecal.geometry.refit import RefitCuts
from musclecal.geometry.trace import Planes
from musclecal.records import (
    Detector,
    Floats,
    MassConstraint,
    ModuleCorrections,
    ModuleSums,
    Pairs,
)
from musclecal.store import load, load_attributes, save
from musclecal.tasks import Task
from musclecal.validation.module_plots import plot_module_corrections

__all__ = ["ModuleFits", "Summing"]


@dataclass(frozen=True)
class _SumsFile:
    """One of the files that a global fit merges; ``is_free``: it leaves the mass of its pairs free."""

    file: str
    is_free: bool
    weight: float


@dataclass(frozen=True)
class Summing:
    """What is done with a file of hits, here or elsewhere: the sums of its pairs.

    Attributes
    ----------
    values : (n_units, P) where the detector is thought to be. mass : None leaves it free.
    """

    detector: Detector
    planes: Planes
    values: Floats
    mass: MassConstraint | None
    cuts: RefitCuts

    def __call__(self, file: str, progress: Callable[[int], None] | None = None) -> ModuleSums:
        """Raises InputError where no pair can be used."""
        sums = self.of_pairs(pairs_of_files((file,), self.detector), progress)
        if sums.n_pairs == 0:
            raise InputError(f"{file}: no pair of tracks that can be used")
        return sums

    def of_pairs(self, chunks: Iterable[Pairs], progress: Callable[[int], None] | None = None) -> ModuleSums:
        """Of none, too."""
        return module_sums(chunks, self.detector, self.planes, self.values, self.mass, self.cuts, progress)


class ModuleFits(ModuleMass):
    """Passes, each with its sums and its solution."""

    # Sums

    def _hits_of_sums(self) -> dict[str, FittedHits]:
        """What the sums of a pass are made of: files one by one, or for a cluster all of a kind together."""
        if self.cluster is None:
            return self._fitted_hits
        together: dict[str, FittedHits] = {}
        for hits in self._fitted_hits.values():
            name = "free_all" if hits.is_free else "all"
            before = together.get(name, FittedHits((), hits.is_free))
            together[name] = FittedHits(before.files + hits.files, hits.is_free, before.made + hits.made)
        return together

    def sums_tasks(self, passes: int, only: Iterable[Path] = ()) -> tuple[Task, ...]:
        """The sums of a pass, a task a file; of the files ``only`` if there are any.

        Raises
        ------
        InputError : a file that modules.hits and modules.free.hits do not have.
        """
        wanted = tuple(path.resolve() for path in only)
        known = {Path(hits.files[0]).resolve(): (name, hits) for name, hits in self._fitted_hits.items()}
        for path in wanted:
            if path not in known:
                raise InputError(f"{path}: not one of the files of hits of {self.path}")
        chosen = (known[path] for path in wanted) if wanted else self._hits_of_sums().items()
        return tuple(self._sums_task(passes, name, hits) for name, hits in chosen)

    def _sums_task(self, passes: int, name: str, hits: FittedHits) -> Task:
        mass = None if hits.is_free or not self._modules.mass else self.mass_task()
        before = () if passes == 0 else (self._solve_task(passes - 1),)
        output = self._module_folder / f"sums_{passes}_{name}.h5"
        cuts = self._cuts_of(passes)
        options = {**self._detector_options, "cuts": cuts._asdict(), "mass": mass is not None}
        run = partial(self._sum, passes, hits, mass, output)
        inputs = self._detector_files + (() if hits.made else hits.files)
        inputs += self._start_files if passes == 0 else ()
        after = (*hits.made, *(() if mass is None else (mass,)), *before)
        return Task(f"modules/sums_{passes}_{name}", "modules", output, run, options, inputs, after)

    def _sum(self, passes: int, hits: FittedHits, mass: Task | None, output: Path) -> tuple[str, ...]:
        constraint = None if mass is None else load(mass.output, MassConstraint)
        values, cuts = self._values_before(passes), self._cuts_of(passes)
        summing = Summing(self.detector, self._planes, values, constraint, cuts)
        if self._is_settled(passes):
            save(output, summing.of_pairs(()))
            return ()
        if self.cluster is None:
            (file,) = hits.files
            save(output, summing(file, lambda done: self.progress(done, None)))
            return ()
        summed = self.cluster.total(summing, hits.files, merge_sums, self.progress)
        save(output, summed.total)
        return summed.failed

    @property
    def _passes_before(self) -> int:
        """1 where the first pass begins at what an earlier fit has found: then it is not the first."""
        return 0 if self._modules.start is None else 1

    def _cuts_of(self, passes: int) -> RefitCuts:
        before = self._passes_before
        return pass_cuts(self._cuts, passes + before, self.module_passes + before)

    @property
    def _start_files(self) -> tuple[str, ...]:
        start = self._modules.start
        files = () if start is None else self._hit_files("modules.start", (start,))
        if len(files) > 1:
            raise InputError(f"modules.start: {start} matches {len(files)} files, it must be one")
        return files

    def _values_before(self, passes: int) -> Floats:
        if passes == 0:
            nominal = np.zeros((self.detector.n_units, self._modules.parameters))
            if not self._start_files:
                return nominal
            (file,) = self._start_files
            return start_values(file, detector_fingerprint(self.detector, self._planes), nominal.shape)
        return load(self._solve_task(passes - 1).output, ModuleCorrections).values

    def _is_settled(self, passes: int) -> bool:
        """Whether an earlier pass was the last that is needed: then this one has no sums, and repeats what it found."""
        return passes > 0 and self.pass_summary(passes - 1).is_last

    # The global fit

    @property
    def module_passes(self) -> int:
        """How many global fits there are at most: one, if the sums are given."""
        return 1 if self._modules.sums else self._modules.passes

    @cached_property
    def _solve_tasks(self) -> dict[int, Task]:
        return {}

    def _solve_task(self, passes: int) -> Task:
        if passes not in self._solve_tasks:
            self._solve_tasks[passes] = self._new_solve_task(passes)
        return self._solve_tasks[passes]

    def _new_solve_task(self, passes: int) -> Task:
        m = self._modules
        sums = () if m.sums else self.sums_tasks(passes)
        weight = 1.0 if m.free is None else m.free.weight
        if m.sums:
            parts = self._given_sums(weight)
        else:
            parts = tuple(
                _SumsFile(str(task.output), hits.is_free, weight if hits.is_free else 1.0)
                for task, hits in zip(sums, self._hits_of_sums().values(), strict=True)
            )
        given = tuple(part.file for part in parts) if m.sums else ()
        output = self._module_folder / f"corrections@{passes}.h5"
        options = {
            **self._detector_options,
            **m.model_dump(include={"modes", "solver"}),
            "widths": {name: repr(width) for name, width in m.widths.items()},
            "mode_widths": m.mode_widths,
            "weight": None if m.free is None else m.free.weight,
            "last": passes + 1 == self.module_passes,
        }
        run = partial(self._solve, passes, parts, output)
        return Task(
            f"modules/corrections@{passes}",
            "modules",
            output,
            run,
            options,
            given + self._detector_files,
            sums,
        )

    def _solve(self, passes: int, parts: tuple[_SumsFile, ...], output: Path) -> None:
        if self._is_settled(passes):
            _save_pass(output, self.module_corrections(passes - 1), self.pass_summary(passes - 1))
            return
        sums, before = self._merged(parts), self._passes_before
        model = self.module_model
        found = solve_modules(model.equations(sums), model.kinds, solver=self._modules.solver)
        moved = largest_move(found.values, sums.values, model.widths)
        amplitudes = np.abs(found.amplitudes) / model.modes.widths
        largest = int(np.argmax(amplitudes)) if len(amplitudes) else -1
        summary = PassSummary(
            chi2=sums.chi2,
            ndf=sums.ndf,
            moved=moved,
            amplitude=float(amplitudes[largest]) if largest >= 0 else 0.0,
            mode=model.modes.names[largest] if largest >= 0 else "",
            passes=passes + 1,
            read=sums.n_read,
            events=sums.n_events,
            is_last=is_last(passes + before, moved, self.module_passes + before),
            settled=moved < SETTLED and sums.cuts == cuts_text(self._cuts),
            mass=sums.mass,
        )
        _save_pass(output, found, summary)

    def _given_sums(self, weight: float) -> tuple[_SumsFile, ...]:
        """Sums that other jobs have made, of a second sample with its ``weight``."""
        m = self._modules
        files = self._hit_files("modules.sums", m.sums)
        free = self._hit_files("modules.free.sums", m.free.sums) if m.free else ()
        if twice := set(files) & set(free):
            raise InputError(f"modules.free.sums: {min(twice)} is among modules.sums")
        return (
            *(_SumsFile(file, False, 1.0) for file in files),
            *(_SumsFile(file, True, weight) for file in free),
        )

    def _merged(self, parts: tuple[_SumsFile, ...]) -> ModuleSums:
        """The sums of all files, each sample weighted; added in the order in which a cluster adds them."""
        seen: dict[bytes, str] = {}

        def read(part: _SumsFile) -> ModuleSums:
            sums = self._checked_sums(part)
            twin = seen.setdefault(sha256(sums.vector.tobytes()).digest(), part.file)
            if twin != part.file and sums.n_pairs:
                raise InputError(f"{part.file}: the same sums as in {twin}: pairs would count twice")
            return sums

        def add(*sums: ModuleSums) -> ModuleSums:
            try:
                return merge_sums(*sums)
            except InputError as error:
                names = ", ".join(Path(part.file).name for part in parts)
                raise InputError(f"modules: {names}: {error}") from None

        samples = []
        for is_free in (False, True):
            own = [part for part in parts if part.is_free == is_free]
            if own:
                sums, weight = tree_sum(own, add, read), own[0].weight
                samples.append(sums if weight == 1.0 else weighted(sums, weight))
        return add(*samples)

    def _checked_sums(self, part: _SumsFile) -> ModuleSums:
        """Those of this detector, and of this model."""
        sums, fingerprint = (
            load(Path(part.file), ModuleSums),
            detector_fingerprint(self.detector, self._planes),
        )
        shape = self.module_model.widths.shape
        if sums.detector != fingerprint:
            raise InputError(f"{part.file}: sums of the detector {sums.detector!r}, not of {fingerprint!r}")
        if sums.values.shape != shape:
            raise InputError(
                f"{part.file}: sums of {sums.values.shape} parameters, modules.parameters wants {shape}"
            )
        if bool(sums.mass) != (self._modules.mass and not part.is_free):
            here, wanted = ("measured", "free") if sums.mass else ("free", "measured")
            raise InputError(f"{part.file}: the mass of its pairs is {here}, it should be {wanted}")
        return sums

    def corrections_task(self) -> Task:
        """The table of all corrections, and their figure."""
        last = self._solve_task(self.module_passes - 1)
        output = self._module_folder / "module_corrections.parquet"
        figure = output.with_name("module_corrections.png")
        run = partial(self._write_table, last, output, figure)
        return Task(
            "modules/module_corrections", "modules", output, run, {}, self._detector_files, (last,), (figure,)
        )

    def _write_table(self, last: Task, output: Path, figure: Path) -> None:
        corrections = load(last.output, ModuleCorrections)
        plot_module_corrections(corrections, self.detector, figure)
        write_corrections(output, corrections)

    def module_corrections(self, passes: int | None = None) -> ModuleCorrections:
        """What the last global fit, or that of a pass, has found, once its task is done."""
        which = self.module_passes - 1 if passes is None else passes
        return load(self._solve_task(which).output, ModuleCorrections)

    def pass_summary(self, passes: int | None = None) -> PassSummary:
        """What is told of the last pass, or of one, once its task is done."""
        which = self.module_passes - 1 if passes is None else passes
        return PassSummary(**json.loads(load_attributes(self._solve_task(which).output)["summary"]))


def _save_pass(output: Path, found: ModuleCorrections, summary: PassSummary) -> None:
    save(output, found, attributes={"summary": json.dumps(asdict(summary))})
