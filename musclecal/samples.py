"""The events of a campaign: made by the simulation or read from files, corrected, selected, with their cut flow."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from musclecal.columnar import RowRange
from musclecal.config import SampleConfig, SimulateConfig
from musclecal.errors import InputError
from musclecal.events import read_dimuons, row_ranges
from musclecal.records import CutFlow, DimuonEvents, Floats, ScaleParameters
from musclecal.resonances import Resonance
from musclecal.selection import Cuts, names_needed, select
from musclecal.simulate import MisModel, ResolutionModel, SimulationSettings, default_resolution

__all__ = [
    "Correction",
    "Progress",
    "Source",
    "read_resolution",
    "read_scale",
    "simulation_settings",
    "write_scale",
]

Progress = Callable[[int, int | None], None]
Correction = Callable[[DimuonEvents], DimuonEvents]
"""Gives the events with other momenta."""


def _read_per_eta(path: Path, names: tuple[str, ...]) -> list[Floats]:
    """eta_edges and further columns per eta bin of a JSON object. Raises `InputError` naming the file and the key."""
    wanted_keys = ", ".join(("eta_edges", *names))
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON file with {wanted_keys}: {error}") from None
    columns: list[Floats] = []
    for key in ("eta_edges", *names):
        if not isinstance(table, dict) or key not in table:
            raise InputError(f"{path}: key {key!r} is missing")
        try:
            column = np.array(table[key], dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"{path}: {key}: not a list of numbers") from None
        wanted = max(columns[0].size, 2) - 1 if columns else max(column.size, 2)
        if column.shape != (wanted,) or not np.all(np.isfinite(column)):
            raise InputError(f"{path}: {key}: {wanted} finite numbers wanted")
        columns.append(column)
    if np.any(np.diff(columns[0]) <= 0.0):
        raise InputError(f"{path}: eta_edges: must increase")
    return columns


_ROOM = 0.03
"""Part of pT that a simulated sample reaches beyond the axes, in pT m_ref/m, over the whole mass window."""


def read_scale(path: Path) -> ScaleParameters:
    """A, e (GeV), M (1/GeV) per eta bin from a JSON object. Raises `InputError` naming the file and the key."""
    return ScaleParameters(*_read_per_eta(path, ("A", "e", "M")))


def read_resolution(path: Path) -> ResolutionModel:
    """a, b, c (1/GeV^2), d (GeV^2) per eta bin from a JSON object. Raises `InputError` naming the file and the key."""
    model = ResolutionModel(*_read_per_eta(path, ("a", "b", "c", "d")))
    for key in ("a", "b", "c", "d"):
        if np.any(getattr(model, key) < 0.0):
            raise InputError(f"{path}: {key}: must not be negative")
    return model


def write_scale(path: Path, scale: ScaleParameters) -> None:
    """The file that `read_scale` reads."""
    table = {key: getattr(scale, key).tolist() for key in ("eta_edges", "A", "e", "M")}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def simulation_settings(
    sample: SampleConfig,
    table: SimulateConfig,
    resonance: Resonance,
    eta_edges: tuple[float, ...],
    folder: Path,
) -> SimulationSettings:
    """Settings of a [samples.NAME.simulate] table; the acceptance is a little wider than the analysis.

    Simulation, from which generator-level templates are made, has all masses that could be smeared into the window.
    """
    window, edges = resonance.mass_window, resonance.pt_edges
    low = edges[0] * window[0] / resonance.line.mass * (1.0 - _ROOM)
    high = edges[-1] * window[1] / resonance.line.mass * (1.0 + _ROOM)
    beyond = 0.015 if sample.kind == "data" else 0.12
    widest = max(abs(eta_edges[0]), abs(eta_edges[-1])) + 0.2
    spectrum = replace(resonance.spectrum, y_max=max(resonance.spectrum.y_max, widest))
    resolution = (
        default_resolution() if table.resolution is None else read_resolution(folder / table.resolution)
    )
    changes = {
        "p0": table.spectrum_p0,
        "y_max": table.spectrum_y_max,
        "exponent": table.spectrum_exponent,
        "polarisation": table.polarisation,
    }
    return SimulationSettings(
        resonance=resonance,
        muon_pt=table.muon_pt or (low, high),
        eta_range=(eta_edges[0], eta_edges[-1]),
        mass_window=(window[0] * (1.0 - beyond), window[1] * (1.0 + beyond)),
        resolution=resolution.scaled(table.resolution_factor),
        truth=None if table.truth is None else read_scale(folder / table.truth),
        mismodel=MisModel(
            table.pt2,
            table.phi_amplitude,
            table.phi_harmonic,
            table.eta_amplitude,
            table.eta_period,
            table.eta_pt_min,
        ),
        fsr=table.fsr,
        background=table.background,
        background_slope=table.background_slope,
        run=table.run,
        spectrum=replace(spectrum, **{key: value for key, value in changes.items() if value is not None}),
    )


@dataclass
class Source:
    """Selected events of all samples of one resonance and kind; ``flows`` is complete once they have been read.

    Attributes
    ----------
    samples : configuration and files of each sample, by name.
    eta_range : (low, high) of both muons.
    muon_pt : (low, high), GeV, of both muons; None does not cut.
    mass_window : (low, high), GeV, of data; simulation is never cut on its measured mass. None does not cut.
    corrections : applied to the events, in this order, before the cuts.
    generator : read generator-level muons; the measured mass is then not cut.
    replicas : how many pairs the corrections make of one.
    rows : of a single file; None: all.
    """

    samples: Mapping[str, tuple[SampleConfig, tuple[str, ...]]]
    eta_range: tuple[float, float]
    muon_pt: tuple[float, float] | None = None
    mass_window: tuple[float, float] | None = None
    corrections: tuple[Correction, ...] = ()
    chunk_events: int = 200_000
    generator: bool = False
    replicas: int = 1
    rows: RowRange | None = None
    progress: Progress | None = None
    flows: dict[str, CutFlow] = field(default_factory=dict)

    def __str__(self) -> str:
        """Names the part that this is."""
        files = ", ".join(file for _, files in self.samples.values() for file in files)
        return files if self.rows is None else f"{files}, rows {self.rows[0]} to {self.rows[1] - 1}"

    def parts(self, rows: int) -> tuple["Source", ...]:
        """The same events in parts: files, and pieces of at most ``rows`` rows of those that say how many they have."""
        return tuple(
            replace(self, samples={name: (sample, (file,))}, rows=part, progress=None, flows={})
            for name, (sample, files) in self.samples.items()
            for file in files
            for part in row_ranges(file, rows)
        )

    def _cuts(self, sample: SampleConfig) -> Cuts:
        low, high = self.muon_pt or (None, None)
        return Cuts(
            muon_pt_min=low,
            muon_pt_max=high,
            eta_min=self.eta_range[0],
            eta_max=self.eta_range[1],
            mass_window=None if self.generator else self.mass_window,
            expressions=sample.cuts,
        )

    def __iter__(self) -> Iterator[DimuonEvents]:
        self.flows = {}
        for name, (sample, files) in self.samples.items():
            cuts = self._cuts(sample)
            for events, read in self._read(sample, files):
                for correction in self.corrections:
                    events = correction(events)
                if self.replicas > 1:
                    read = CutFlow((*read.names, "replicas"), (*read.counts, len(events)))
                selected, cut = select(events, cuts)
                self.flows[name] = self.flows.get(name, CutFlow()) + read.then(cut)
                yield selected

    def _read(self, sample: SampleConfig, files: Iterable[str]) -> Iterator[tuple[DimuonEvents, CutFlow]]:
        return read_dimuons(
            list(files),
            sample.columns,
            generator=self.generator,
            extra=names_needed(sample.cuts),
            chunk_events=self.chunk_events,
            rows=self.rows,
            progress=self.progress,
        )
