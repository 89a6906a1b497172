"""The stage modules: corrections of modules from hits, and samples of muons that are made of hits.

For each pass: sums of each file of pairs (tasks of their own, so that jobs can share them), one global fit. Then the
table of corrections, and the samples with hits, fitted again and corrected, as files of muons like any other.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from musclecal.campaign.inputs import Inputs
from musclecal.cluster import tree_sum
from musclecal.config import SampleConfig, SimulateConfig
from musclecal.errors import InputError
from musclecal.events import expand_paths, write_dimuons
from musclecal.geometry.block_sums import merge_sums, weighted
from musclecal.geometry.corrected_pairs import corrected_events
from musclecal.geometry.correction_file import start_values, write_corrections
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.detector_files import read_detector
from musclecal.geometry.field import read_field_map, solenoid_map
from musclecal.geometry.hit_files import read_pairs, write_tracks
from musclecal.geometry.mass_target import mass_constraint
from musclecal.geometry.misalignment import Misalignment, misaligned
from musclecal.geometry.modes import ModeWidths, Widths
from musclecal.geometry.module_fit import (
    SETTLED,
    ModuleModel,
    PassSummary,
    cuts_text,
    detector_fingerprint,
    is_last,
    largest_move,
    module_model,
    module_sums,
    pass_cuts,
)
from musclecal.geometry.modules import solve_modules
from musclecal.geometry.refit import RefitCuts
from musclecal.geometry.simulate import DetectorEffects, simulate_pairs, track_maker
from musclecal.geometry.trace import Planes
from musclecal.module_config import ModulesConfig, SimulateHitsConfig
from musclecal.records import (
    Detector,
    DimuonEvents,
    FieldMap,
    Floats,
    MassConstraint,
    ModuleCorrections,
    ModuleSums,
    Pairs,
)
from musclecal.samples import simulation_settings
from musclecal.store import load, load_attributes, save
from musclecal.tasks import Task
from musclecal.validation.module_plots import plot_module_corrections

__all__ = ["ModuleStages"]

_ROBUST = 2.0
"""Standard deviations: with a reference, whose target is that of robust masses."""
_CHUNK = 20_000
"""Pairs in memory at a time."""


@dataclass(frozen=True)
class _SumsFile:
    """One of the files that a global fit merges; ``is_free``: it leaves the mass of its pairs free."""

    file: str
    is_free: bool
    weight: float


def pairs_of_files(files: Sequence[str], detector: Detector) -> Iterator[Pairs]:
    """Raises InputError, behind the last of them, where there are events but no pair."""
    n_pairs = n_events = 0
    for file in files:
        for pairs in read_pairs(file, detector, chunk_tracks=2 * _CHUNK):
            n_pairs += len(pairs)
            n_events += pairs.n_events or 0
            yield pairs
    if n_events and not n_pairs:
        raise InputError(
            f"{', '.join(files)}: no event with exactly two tracks of opposite charge, of {n_events:,} read"
        )


@dataclass(frozen=True)
class _FittedHits:
    """Files of pairs of one kind that a global fit uses; ``made`` by tasks, or there already."""

    files: tuple[str, ...]
    is_free: bool
    made: tuple[Task, ...] = ()


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


class ModuleStages(Inputs):
    """The stage modules."""

    @property
    def has_modules(self) -> bool:
        """Whether the campaign file has a table [modules]."""
        return self.config.modules is not None

    @property
    def _modules(self) -> ModulesConfig:
        if self.config.modules is None:
            raise InputError(f"{self.path}: modules: the table [modules] is missing")
        return self.config.modules

    @property
    def _module_folder(self) -> Path:
        return self._main_output / "modules"

    # The detector

    @cached_property
    def detector(self) -> Detector:
        """That of [modules].

        Raises
        ------
        InputError : a file that is missing or something else.
        """
        built_in = {"cms": cms_tracker, "barrel": barrel_tracker}
        name = self._modules.detector
        if name in built_in:
            return built_in[name]()
        return read_detector(self.folder / name)

    @cached_property
    def field_map(self) -> FieldMap:
        """The field that the detector stands in."""
        name = self._modules.field
        return solenoid_map() if name == "solenoid" else read_field_map(self.folder / name)

    @cached_property
    def _planes(self) -> Planes:
        return planes_of(self.detector, self.field_map)

    @property
    def _detector_files(self) -> tuple[str, ...]:
        names = (self._modules.detector, self._modules.field)
        return tuple(str(self.folder / n) for n in names if n not in ("cms", "barrel", "solenoid"))

    @property
    def _detector_options(self) -> dict[str, object]:
        return self._modules.model_dump(include={"detector", "field", "parameters"})

    @property
    def _cuts(self) -> RefitCuts:
        m = self._modules
        return RefitCuts(hit_chi2=m.hit_chi2, chi2_per_ndf=m.chi2_per_ndf, gradient=m.gradient)

    @cached_property
    def module_model(self) -> ModuleModel:
        """What is fitted, with its prior."""
        m = self._modules
        mode_widths = ModeWidths(**m.mode_widths) if m.modes else None
        return module_model(self.detector, Widths(**m.widths), mode_widths, m.parameters)

    # Pairs of tracks

    @property
    def _is_misaligned(self) -> bool:
        """Whether anything is simulated in a detector that is not where it is thought to be."""
        m = self._modules
        samples = (s for s in self.config.samples.values() if s.kind == "data")
        return m.simulate is not None or any(s.simulate_hits is not None for s in samples)

    def module_truth(self) -> Floats | None:
        """(n_units, P) where the detector of simulated data is; None if there are none."""
        if not self.has_modules or not self._is_misaligned:
            return None
        m = self._modules
        return misaligned(self.detector, m.misalignment_seed, Misalignment(**m.misalignment), m.parameters)

    @property
    def _truth_options(self) -> dict[str, object]:
        return self._modules.model_dump(include={"misalignment", "misalignment_seed"})

    def _simulated(self, table: SimulateHitsConfig, resonance: str, *, nominal: bool) -> Iterator[Pairs]:
        """Pairs through the detector, as it is described or, not ``nominal``, where it is."""
        names = {"background", "background_slope", "muon_pt", "fsr", "seed"}
        generated = SimulateConfig(events=table.pairs, **table.model_dump(include=names))
        # All true masses that can be measured in the window.
        sample = SampleConfig(resonance=resonance, kind="simulation", simulate=generated)
        settings = simulation_settings(
            sample, generated, self.config.resonance(resonance), self.config.binning.edges, self.folder
        )
        effects = DetectorEffects(efficiency=table.efficiency, noise=table.noise, loss=table.loss)
        truth = None if nominal else self.module_truth()
        maker = track_maker(self.detector, self.field_map, truth, effects)
        return simulate_pairs(maker, settings, table.pairs, table.seed, chunk_pairs=_CHUNK)

    def _hit_files(self, key: str, patterns: Iterable[str]) -> tuple[str, ...]:
        try:
            return tuple(expand_paths([str(self.folder / p) for p in patterns]))
        except InputError as error:
            raise InputError(f"{key}: {error}") from None

    def _counted(self, chunks: Iterable[Pairs], total: int | None) -> Iterator[Pairs]:
        done = 0
        for pairs in chunks:
            yield pairs
            done += len(pairs)
            self.progress(done, total)

    def _hits_task(self, name: str, resonance: str, table: SimulateHitsConfig) -> Task:
        """Simulated pairs that the fit uses, as a file: each pass reads them."""
        output = self._module_folder / f"{name}.parquet"
        options = {"simulate": table.model_dump(), **self._simulation_options(resonance)}
        run = partial(self._write_hits, table, resonance, output)
        return Task(f"modules/{name}", "modules", output, run, options, self._detector_files)

    def _simulation_options(self, resonance: str) -> dict[str, object]:
        return {
            **self._detector_options,
            **self._truth_options,
            "resonance": self._settings_of(resonance, "model", "background", "mass_bins", "min_events"),
            "eta_edges": self.config.binning.edges,
        }

    def _write_hits(self, table: SimulateHitsConfig, resonance: str, output: Path) -> None:
        made = self._simulated(table, resonance, nominal=False)
        write_tracks(output, self._counted(made, table.pairs), self.detector)

    # The mass as a measurement

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

    # Sums

    @cached_property
    def _fitted_hits(self) -> dict[str, _FittedHits]:
        """By name of the sums: a file each."""
        m = self._modules
        found: dict[str, _FittedHits] = {}
        for key, table, resonance, name in (
            ("modules", m, self.calibrated, "pairs"),
            ("modules.free", m.free, m.free.resonance if m.free else "", "free"),
        ):
            if table is None:
                continue
            free = table is m.free
            if table.simulate is not None:
                task = self._hits_task(name, resonance, table.simulate)
                found[name] = _FittedHits((str(task.output),), free, (task,))
            for file in self._hit_files(f"{key}.hits", table.hits) if table.hits else ():
                if file in (known.files[0] for known in found.values()):
                    raise InputError(f"{key}.hits: {file} stands there twice: its pairs would count twice")
                stem = ("free_" if free else "") + Path(file).name.split(".")[0]
                while stem in found:
                    stem += "+"
                found[stem] = _FittedHits((file,), free)
        return found

    def _hits_of_sums(self) -> dict[str, _FittedHits]:
        """What the sums of a pass are made of: files one by one, or for a cluster all of a kind together."""
        if self.cluster is None:
            return self._fitted_hits
        together: dict[str, _FittedHits] = {}
        for hits in self._fitted_hits.values():
            name = "free_all" if hits.is_free else "all"
            before = together.get(name, _FittedHits((), hits.is_free))
            together[name] = _FittedHits(before.files + hits.files, hits.is_free, before.made + hits.made)
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

    def _sums_task(self, passes: int, name: str, hits: _FittedHits) -> Task:
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

    def _sum(self, passes: int, hits: _FittedHits, mass: Task | None, output: Path) -> tuple[str, ...]:
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

    @property
    def mass_found(self) -> MassConstraint | None:
        """Target and width of the mass, once the task is done; None where it is not measured, or sums were given."""
        if not self._modules.mass or self._modules.sums:
            return None
        return load(self.mass_task().output, MassConstraint)

    def module_tasks(self) -> tuple[Task, ...]:
        """All that the stage modules makes: the corrections, and the samples with hits."""
        samples = (self._refit_task(name, s) for name, s in self.config.samples.items() if s.has_hits)
        return (self.corrections_task(), *samples)

    # Samples of muons with hits

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


def _save_pass(output: Path, found: ModuleCorrections, summary: PassSummary) -> None:
    save(output, found, attributes={"summary": json.dumps(asdict(summary))})


def _with_pairs(output: Path, chunks: Iterable[DimuonEvents]) -> Iterator[DimuonEvents]:
    n = 0
    for events in chunks:
        n += len(events)
        yield events
    if n == 0:
        raise InputError(f"{output}: no pair of tracks in the hits of this sample")
