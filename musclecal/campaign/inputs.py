"""What a campaign file gives: its samples, the tasks that make them, the binning, the selected events."""

import json
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np

from musclecal.binning import Binning
from musclecal.cluster import Cluster, Summed
from musclecal.config import CampaignConfig, load_campaign
from musclecal.errors import InputError
from musclecal.events import expand_paths, write_dimuons
from musclecal.fits.residuals import fill_residuals
from musclecal.fits.resolution import fit_generator_resolution
from musclecal.generator_reference import generator_replicas
from musclecal.records import DimuonEvents, Resolution
from musclecal.resonances import resonance
from musclecal.samples import Correction, Progress, Source, simulation_settings
from musclecal.simulate import simulate
from musclecal.store import load, save
from musclecal.tasks import Task, write_text

__all__ = ["Inputs"]

_FINE_BINS = 1 << 20
_EVENTS_PER_BIN = 120
_REPLICAS = 4
"""Of each simulated pair, in the reference of the simulation as target."""
_RESOLUTION_CELLS = 6


class _Addable(Protocol):
    def __add__(self, other: Self, /) -> Self: ...


_Sum = TypeVar("_Sum", bound=_Addable)


def _quiet(done: int, total: int | None) -> None:
    """No progress."""


@dataclass(frozen=True)
class Inputs:
    """A campaign file and its folder.

    Attributes
    ----------
    path : of the campaign file; files and the output folder are relative to its folder.
    progress : told the rows done and the rows in all of a long task.
    target : "data" or "simulation", in place of campaign.target of the file.
    cluster : who works on parts of samples; None: this process.
    """

    path: Path
    progress: Progress = field(default=_quiet, compare=False)
    target: str | None = None
    cluster: Cluster | None = field(default=None, compare=False)

    @cached_property
    def config(self) -> CampaignConfig:
        """What the file says, and what is corrected."""
        config = load_campaign(self.path)
        if self.target is None:
            return config
        campaign = config.campaign.model_copy(update={"target": self.target})
        return config.model_copy(update={"campaign": campaign})

    @property
    def folder(self) -> Path:
        """Folder of the campaign file."""
        return self.path.resolve().parent

    @cached_property
    def output(self) -> Path:
        """The output folder; of the simulation as target, one inside it."""
        return self._main_output / "simulation_target" if self.corrects_simulation else self._main_output

    @property
    def _main_output(self) -> Path:
        return self.folder / self.config.campaign.output

    @property
    def corrects_simulation(self) -> bool:
        """Whether the simulation is corrected to its own truth: it is the data, its smeared truth the simulation."""
        return self.config.campaign.target == "simulation"

    @property
    def calibrated(self) -> str:
        """Name of the resonance that is calibrated on."""
        return self.config.campaign.resonance

    @property
    def closures(self) -> tuple[str, ...]:
        """Resonances with data that the calibration does not use."""
        kind = "simulation" if self.corrects_simulation else "data"
        with_data = {s.resonance: None for s in self.config.samples.values() if s.kind == kind}
        return tuple(name for name in with_data if name != self.calibrated)

    # Samples

    def _files(self, name: str) -> tuple[str, ...]:
        sample = self.config.samples[name]
        if sample.simulate is not None:
            return (str(self._main_output / "samples" / f"{name}.{sample.simulate.format}"),)
        if sample.has_hits:
            return (str(self._main_output / "samples" / f"{name}.parquet"),)
        patterns = [p if "://" in p else str(self.folder / p) for p in sample.files]
        try:
            return tuple(expand_paths(patterns))
        except InputError as error:
            raise InputError(f"samples.{name}.files: {error}") from None

    @cached_property
    def simulate_tasks(self) -> tuple[Task, ...]:
        """One task per sample that the built-in simulation makes."""
        tasks = []
        for name, sample in self.config.samples.items():
            if sample.simulate is None:
                continue
            table = sample.simulate
            inputs = tuple(
                str(self.folder / file) for file in (table.truth, table.resolution) if file is not None
            )
            options = {
                "simulate": table.model_dump(),
                "kind": sample.kind,
                "resonance": self._settings_of(
                    sample.resonance, "model", "background", "mass_bins", "min_events"
                ),
                "eta_edges": self.config.binning.edges,
            }
            output = Path(self._files(name)[0])
            run = partial(self._simulate, name, output)
            tasks.append(Task(f"simulate/{name}", "simulate", output, run, options, inputs))
        return tuple(tasks)

    @property
    def made_samples(self) -> dict[str, Task]:
        """The tasks that make samples, by name of the sample."""
        return {task.name.split("/")[1]: task for task in self.simulate_tasks}

    def _settings_of(self, name: str, *unused: str) -> str:
        """What a task knows of a resonance, for its manifest: not the axes of the template fit, nor ``unused``."""
        default = resonance(name)
        changes = {key: getattr(default, key) for key in ("template", *unused)}
        return repr(replace(self.config.resonance(name), **changes))

    def _simulate(self, name: str, output: Path) -> None:
        sample = self.config.samples[name]
        table = sample.simulate
        assert table is not None
        r = self.config.resonance(sample.resonance)
        settings = simulation_settings(sample, table, r, self.config.binning.edges, self.folder)
        if table.generator == "pythia8":
            from musclecal.pythia import simulate_with_pythia as generate
        else:
            generate = simulate
        write_dimuons(output, self._watched(generate(settings, table.events, table.seed), table.events))

    def _watched(self, chunks: Iterable[DimuonEvents], total: int) -> Iterator[DimuonEvents]:
        done = 0
        for events in chunks:
            yield events
            done += len(events)
            self.progress(done, total)

    def _inputs(self, resonance: str, kind: str) -> tuple[tuple[str, ...], tuple[Task, ...]]:
        """(files, tasks) that the samples of a resonance and kind come from."""
        names = self.config.samples_of(resonance, kind)
        files, tasks = self._inputs_of(names)
        if self.corrects_simulation and kind == "simulation" and names:
            tasks += (self.own_resolution_task(resonance),)
        return files, tasks

    def _inputs_of(self, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[Task, ...]]:
        """(files, tasks) that samples come from."""
        names = tuple(names)
        made = self.made_samples
        tasks = tuple(made[name] for name in names if name in made)
        owner: dict[str, str] = {}
        for name in names:
            for file in () if name in made else self._files(name):
                if file in owner:
                    raise InputError(
                        f"{file}: belongs to the samples {owner[file]} and {name}: it would count twice"
                    )
                owner[file] = name
        files = tuple(owner)
        return tuple(f.rsplit(":", 1)[0] if ".root:" in f else f for f in files), tasks

    def _source(
        self,
        resonance: str,
        kind: str,
        *,
        muon_pt: tuple[float, float] | None = None,
        mass_window: tuple[float, float] | None = None,
        corrections: tuple[Correction, ...] = (),
    ) -> Source:
        """Selected events of the samples of a resonance and kind."""
        samples = self.config.samples_of(resonance, kind)
        edges = self.config.binning.edges
        replicas = _REPLICAS if self.corrects_simulation and kind == "simulation" else 1
        if replicas > 1:
            resolution = load(self.own_resolution_task(resonance).output, Resolution)
            made = partial(generator_replicas, resolution=resolution, replicas=replicas)
            corrections = (made, *corrections)
        return Source(
            samples={name: (sample, self._files(name)) for name, sample in samples.items()},
            eta_range=(edges[0], edges[-1]),
            muon_pt=muon_pt,
            mass_window=mass_window,
            corrections=corrections,
            chunk_events=max(self.config.campaign.chunk_events // replicas, 1),
            generator=kind == "simulation",
            replicas=replicas,
            progress=self.progress,
        )

    def summed(self, source: Source, work: Callable[[Source], _Sum]) -> Summed[_Sum]:
        """``work`` done with a source: here, or in parts by the processes of ``cluster``, and added up.

        Raises
        ------
        PartsFailed : as `Cluster.total`.
        """
        if self.cluster is None:
            return Summed(work(source))
        return self.cluster.total(work, source.parts(self.cluster.rows), operator.add, self.progress)

    def own_resolution_task(self, resonance: str) -> Task:
        """Resolution of the simulation as target, from its own residuals."""
        files, tasks = self._inputs(resonance, "data")
        r = self.config.resonance(resonance)
        output = self.output / "target" / f"{resonance}_resolution.h5"
        options = {
            "samples": self._sample_options(resonance, "simulation"),
            "pt_edges": (r.pt_edges[0], r.pt_edges[-1]),
            "eta_edges": self.config.binning.edges,
        }
        run = partial(self._own_resolution, resonance, output)
        return Task(f"target/{resonance}_resolution", "fill", output, run, options, files, tasks)

    def _own_resolution(self, resonance: str, output: Path) -> None:
        edges, pt_edges = self.config.binning.edges, self.config.resonance(resonance).pt_edges
        source = replace(self._source(resonance, "data"), generator=True)
        # Cells in true pT, six resolutions from where the sample may end in measured pT.
        cells = np.geomspace(1.1 * pt_edges[0], pt_edges[-1] / 1.1, _RESOLUTION_CELLS + 1)
        try:
            save(output, fit_generator_resolution(fill_residuals(source, np.array(edges), cells)))
        except InputError as error:
            raise InputError(f"target = simulation: {resonance}: {error}") from None

    def _binned_source(
        self, resonance: str, kind: str, binning: Binning, corrections: tuple[Correction, ...] = ()
    ) -> Source:
        """Selected events for mass fits: cut where the axes end."""
        muon_pt = None if binning.pt_scaled else (binning.pt_edges[0], binning.pt_edges[-1])
        return self._source(
            resonance, kind, muon_pt=muon_pt, mass_window=binning.mass_window, corrections=corrections
        )

    def _sample_options(self, resonance: str, kind: str) -> dict[str, object]:
        samples = self.config.samples_of(resonance, kind)
        return {name: sample.choices() for name, sample in samples.items()}

    # Binning

    @cached_property
    def _binning_tasks(self) -> dict[str, Task]:
        return {}

    def binning_task(self, resonance: str) -> Task:
        """The pT edges of a resonance: given, or from the data."""
        if not self.config.samples_of(resonance, "data"):
            raise InputError(f'samples: no sample of kind "data" for the resonance {resonance}')
        if resonance not in self._binning_tasks:
            files, tasks = self._inputs(resonance, "data")
            r, table = self.config.resonance(resonance), self.config.settings(resonance)
            given = table.pt_edges is not None
            options = {
                "pt_edges": r.pt_edges,
                "given": given,
                "muon_pt": table.muon_pt,
                "eta_edges": self.config.binning.edges,
                "mass_window": r.mass_window,
                "pt_scaled": r.pt_scaled,
                "samples": self._sample_options(resonance, "data"),
            }
            self._binning_tasks[resonance] = Task(
                f"binning/{resonance}",
                "fill",
                self.output / "binning" / f"{resonance}.json",
                partial(self._choose_edges, resonance),
                options,
                () if given else files,
                () if given else tasks,
            )
        return self._binning_tasks[resonance]

    def _choose_edges(self, resonance: str) -> None:
        table = self.config.settings(resonance)
        edges = self.config.resonance(resonance).pt_edges
        if table.pt_edges is None:
            outer = table.muon_pt or (edges[0], edges[-1])
            binning = self.config.binning_of(resonance, outer)
            edges = _edges_for(self._binned_source(resonance, "data", binning), binning)
        self.config.binning_of(resonance, edges)
        text = json.dumps({"resonance": resonance, "pt_edges": edges})
        write_text(self.binning_task(resonance).output, text + "\n")

    def binning(self, resonance: str) -> Binning:
        """The 4D binning, once its task is done."""
        path = self.binning_task(resonance).output
        try:
            edges = tuple(json.loads(path.read_text(encoding="utf-8"))["pt_edges"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{path}: damaged: delete it, or rerun with --force") from None
        return self.config.binning_of(resonance, edges)


def _edges_for(source: Iterable[DimuonEvents], binning: Binning) -> tuple[float, ...]:
    """Two to six pT bins with equal numbers of muons, such that a typical 4D bin has enough events.

    Muons are counted in very fine bins of ln pT: the edges do not depend on the chunks or the order of the events.
    """
    low, high = binning.pt_edges[0], binning.pt_edges[-1]
    step = np.log(high / low) / _FINE_BINS
    eta_edges, n_eta = np.array(binning.eta_edges), binning.n_eta
    muons, pairs = np.zeros(_FINE_BINS, dtype=np.int64), np.zeros(n_eta * n_eta, dtype=np.int64)
    for events in source:
        common = binning.mass_reference / events.mass if binning.pt_scaled else 1.0
        fine = [
            np.floor(np.log(m.pt * common / low) / step).astype(np.int64) for m in (events.plus, events.minus)
        ]
        i, j = (np.searchsorted(eta_edges, m.eta, side="right") - 1 for m in (events.plus, events.minus))
        inside = (np.minimum(*fine) >= 0) & (np.maximum(*fine) < _FINE_BINS)
        for index in fine:
            muons += np.bincount(index[inside], minlength=_FINE_BINS)
        pairs += np.bincount((i * n_eta + j)[inside], minlength=n_eta * n_eta)
    n_all = int(pairs.sum())
    if n_all < 2:
        raise InputError(f"only {n_all} selected pairs: check units, mass_window and cuts")
    occupied = 1.0 / np.sum((pairs / n_all) ** 2)
    n_pt = int(np.clip(np.sqrt(n_all / (_EVENTS_PER_BIN * occupied)), 2, 6))
    below = np.cumsum(muons) / muons.sum()
    inner = low * np.exp(step * (0.5 + np.searchsorted(below, np.arange(1, n_pt) / n_pt)))
    edges = (low, *(float(f"{x:.3g}") for x in inner), high)
    return tuple(float(x) for x in np.unique(edges) if low <= x <= high)
