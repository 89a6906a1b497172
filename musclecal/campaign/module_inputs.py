"""The detector of a campaign with modules, and pairs of tracks: of files, or simulated with known truth.

Not for: what is fitted to them (`musclecal.campaign.module_fits`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from musclecal.campaign.inputs import Inputs
from musclecal.config import SampleConfig, SimulateConfig
from musclecal.errors import InputError
from musclecal.events import expand_paths
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.detector_files import read_detector
from musclecal.geometry.field import read_field_map, solenoid_map
from musclecal.geometry.hit_files import read_pairs, write_tracks
from musclecal.geometry.misalignment import Misalignment, misaligned
from musclecal.geometry.modes import ModeWidths, Widths
from musclecal.geometry.module_fit import (
    ModuleModel,
    module_model,
)
from musclecal.geometry.refit import RefitCuts
from musclecal.geometry.simulate import DetectorEffects, simulate_pairs, track_maker
from musclecal.geometry.trace import Planes
from musclecal.module_config import ModulesConfig, SimulateHitsConfig
from musclecal.records import (
    Detector,
    FieldMap,
    Floats,
    Pairs,
)
from musclecal.samples import simulation_settings
from musclecal.tasks import Task

__all__ = ["FittedHits", "ModuleInputs", "pairs_of_files"]

_CHUNK = 20_000
"""Pairs in memory at a time."""


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
class FittedHits:
    """Files of pairs of one kind that a global fit uses; ``made`` by tasks, or there already."""

    files: tuple[str, ...]
    is_free: bool
    made: tuple[Task, ...] = ()


class ModuleInputs(Inputs):
    """The table [modules] of the campaign file."""

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

    @cached_property
    def _fitted_hits(self) -> dict[str, FittedHits]:
        """By name of the sums: a file each."""
        m = self._modules
        found: dict[str, FittedHits] = {}
        for key, table, resonance, name in (
            ("modules", m, self.calibrated, "pairs"),
            ("modules.free", m.free, m.free.resonance if m.free else "", "free"),
        ):
            if table is None:
                continue
            free = table is m.free
            if table.simulate is not None:
                task = self._hits_task(name, resonance, table.simulate)
                found[name] = FittedHits((str(task.output),), free, (task,))
            for file in self._hit_files(f"{key}.hits", table.hits) if table.hits else ():
                if file in (known.files[0] for known in found.values()):
                    raise InputError(f"{key}.hits: {file} stands there twice: its pairs would count twice")
                stem = ("free_" if free else "") + Path(file).name.split(".")[0]
                while stem in found:
                    stem += "+"
                found[stem] = FittedHits((file,), free)
        return found
