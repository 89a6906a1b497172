"""A campaign: which tasks a campaign file asks for, and how each makes its output from those before it.

Folders under the output folder: samples, binning, fill, fit, extract, closure, export, figures. ``@0`` is the first
pass, on the muons as measured; ``@1`` the second, on corrected muons; closures use the last calibration.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from musclecal.binning import Binning
from musclecal.config import CampaignConfig, load_campaign
from musclecal.errors import InputError, QualityGateError
from musclecal.events import expand_paths, write_dimuons
from musclecal.export import export_arrays, export_correctionlib
from musclecal.fast_simulation import fast_simulation
from musclecal.fits.fast_resolution import measured_resolution
from musclecal.fits.histogram import fill, merged
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.reweight import spectrum_counts, spectrum_weights
from musclecal.fits.scale_fit import scale_calibration
from musclecal.records import (
    Closure,
    DimuonEvents,
    MassFits,
    MassHistogram,
    ScaleCalibration,
    ScaleParameters,
)
from musclecal.samples import Progress, Source, read_scale, simulation_settings
from musclecal.simulate import simulate
from musclecal.store import load, save
from musclecal.tasks import Task, package_version, write_text
from musclecal.validation.closure import closure_test

__all__ = ["STAGES", "Campaign"]

STAGES = ("simulate", "fill", "fit", "extract", "closure", "export")

_FINE_BINS = 1 << 20
_EVENTS_PER_BIN = 120
_FAST_EVENTS = 2_000_000
_FAST_SEED = 20_110_000
_NEAR_PEAK = 0.04


def _quiet(done: int, total: int | None) -> None:
    """No progress."""


@dataclass(frozen=True)
class Campaign:
    """A campaign file and its folder.

    Attributes
    ----------
    path : of the campaign file; files and the output folder are relative to its folder.
    progress : told the rows done and the rows in all of a long task.
    """

    path: Path
    progress: Progress = field(default=_quiet, compare=False)

    @cached_property
    def config(self) -> CampaignConfig:
        """What the file says."""
        return load_campaign(self.path)

    @property
    def folder(self) -> Path:
        """Folder of the campaign file."""
        return self.path.resolve().parent

    @cached_property
    def output(self) -> Path:
        """The output folder."""
        return self.folder / self.config.campaign.output

    @property
    def calibrated(self) -> str:
        """Name of the resonance that is calibrated on."""
        return self.config.campaign.resonance

    @property
    def closures(self) -> tuple[str, ...]:
        """Resonances with data that the calibration does not use."""
        with_data = {s.resonance: None for s in self.config.samples.values() if s.kind == "data"}
        return tuple(name for name in with_data if name != self.calibrated)

    # Samples

    def _files(self, name: str) -> tuple[str, ...]:
        sample = self.config.samples[name]
        if sample.simulate is not None:
            return (str(self.output / "samples" / f"{name}.{sample.simulate.format}"),)
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
                "resonance": repr(self.config.resonance(sample.resonance)),
                "eta_edges": self.config.binning.edges,
            }
            output = Path(self._files(name)[0])
            run = partial(self._simulate, name, output)
            tasks.append(Task(f"simulate/{name}", "simulate", output, run, options, inputs))
        return tuple(tasks)

    def _simulate(self, name: str, output: Path) -> None:
        sample = self.config.samples[name]
        table = sample.simulate
        assert table is not None
        resonance = self.config.resonance(sample.resonance)
        settings = simulation_settings(sample, table, resonance, self.config.binning.edges, self.folder)
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
        made = {task.name: task for task in self.simulate_tasks}
        tasks = tuple(made[f"simulate/{name}"] for name in names if f"simulate/{name}" in made)
        owner: dict[str, str] = {}
        for name in names:
            for file in () if f"simulate/{name}" in made else self._files(name):
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
        binning: Binning,
        scale: ScaleParameters | None = None,
        *,
        loose: bool = False,
    ) -> Source:
        samples = self.config.samples_of(resonance, kind)
        return Source(
            samples={name: (sample, self._files(name)) for name, sample in samples.items()},
            binning=binning,
            scale=scale,
            chunk_events=self.config.campaign.chunk_events,
            generator=kind == "simulation",
            progress=self.progress,
            loose_pt=loose,
        )

    def _sample_options(self, resonance: str, kind: str) -> dict[str, object]:
        samples = self.config.samples_of(resonance, kind)
        return {name: sample.model_dump(exclude={"files", "simulate"}) for name, sample in samples.items()}

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
            source = self._source(resonance, "data", self.config.binning_of(resonance, outer))
            edges = _edges_for(source, source.binning)
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

    # Histograms

    def _scale_task(self, passes: int) -> tuple[Task, ...]:
        """The calibration that muons of pass ``passes`` are corrected with."""
        return () if passes == 0 else (self.extract_task(passes - 1),)

    def _scale(self, passes: int) -> ScaleCalibration | None:
        return None if passes == 0 else load(self.extract_task(passes - 1).output, ScaleCalibration)

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
            "resonance": repr(r),
            "eta_edges": self.config.binning.edges,
            "reweight": self._sample_options(resonance, "data") if reweighted else None,
            "fast": [_FAST_EVENTS, _FAST_SEED, r.min_events] if fast else None,
        }
        run = partial(self._fill, resonance, kind, passes, fast, reweighted)
        return Task(f"fill/{name}", "fill", self.output / "fill" / f"{name}.h5", run, options, files, after)

    def _is_fast(self, resonance: str) -> bool:
        return any(s.reference == "fast" for s in self.config.samples_of(resonance, "data").values())

    def _fill(self, resonance: str, kind: str, passes: int, fast: bool, reweighted: bool) -> None:
        binning = self.binning(resonance)
        output = self.fill_task(resonance, kind, passes).output
        if fast:
            save(output, self._fast_reference(resonance, passes, binning))
            return
        source = self._source(resonance, kind, binning, self._scale(passes) if kind == "data" else None)
        weight = None
        if reweighted:
            data = spectrum_counts(self._source(resonance, "data", binning, self._scale(passes)), binning)
            weight = spectrum_weights(data, spectrum_counts(source, binning), binning)
        try:
            save(output, fill(source, binning, weight=weight, cut_flows=lambda: source.flows))
        except InputError as error:
            raise InputError(f"{resonance} {kind}: {error}") from None

    def _fast_reference(self, resonance: str, passes: int, binning: Binning) -> MassHistogram:
        data = load(self.fill_task(resonance, "data", passes).output, MassHistogram)
        r = self.config.resonance(resonance)
        resolution = measured_resolution(data, r, r.background, r.min_events)
        seeds = self._source(resonance, "data", binning, self._scale(passes), loose=True)
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
            "resonance": repr(self.config.resonance(resonance)),
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

    def calibration(self) -> ScaleCalibration:
        """The final calibration, once its task is done."""
        return load(self.extract_task(self.last_pass).output, ScaleCalibration)

    def mass_fits(self, resonance: str, passes: int) -> MassFits:
        """Mass fits, once their task is done."""
        return load(self.fit_task(resonance, passes).output, MassFits)

    # Closure

    def closure_task(self, resonance: str, *, corrected: bool = True) -> Task:
        """Residual correction at another resonance (or the same one, as one more pass), or what it sees uncorrected."""
        passes = self.last_pass + 1 if corrected else 0
        parameters = self.config.settings(resonance).closure_parameters
        after = (self.fit_task(resonance, passes), *self._scale_task(passes))
        name = resonance if corrected else f"{resonance}_uncorrected"
        output = self.output / "closure" / f"{name}.h5"
        run = partial(self._close, resonance, passes, parameters, output)
        return Task(f"closure/{name}", "closure", output, run, {"parameters": parameters}, (), after)

    def _close(self, resonance: str, passes: int, parameters: tuple[str, ...], output: Path) -> None:
        save(output, closure_test(self.mass_fits(resonance, passes), self._scale(passes), parameters))

    def closure(self, resonance: str, *, corrected: bool = True) -> Closure:
        """The closure of a resonance, once its task is done."""
        return load(self.closure_task(resonance, corrected=corrected).output, Closure)

    # Export

    def export_task(self) -> Task:
        """The correctionlib file, with the arrays beside it."""
        output = self.output / "export" / "muon_scale.json.gz"
        also = tuple(output.with_name(f"calibration.{suffix}") for suffix in ("npz", "json"))
        return Task("export", "export", output, self._export, {"provenance": self._provenance()}, (),
                    (self.extract_task(self.last_pass),), also)  # fmt: skip

    def _provenance(self) -> dict[str, str]:
        samples = self.config.samples
        used = [name for name, s in samples.items() if s.resonance == self.calibrated]
        return {
            "campaign": self.config.campaign.name,
            "musclecal": package_version(),
            "resonance": self.calibrated,
            "model": self.config.resonance(self.calibrated).model,
            "samples": ", ".join(used),
            "passes": str(self.config.campaign.passes),
        }

    def _export(self) -> None:
        calibration, output = self.calibration(), self.export_task().output
        export_arrays(calibration, output.parent, self._provenance())
        export_correctionlib(calibration, output, self._provenance())

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

    # All

    def tasks(self, stage: str) -> tuple[Task, ...]:
        """The tasks that a stage asks for; what they need comes with them."""
        makers: dict[str, Callable[[], tuple[Task, ...]]] = {
            "simulate": lambda: self.simulate_tasks,
            "fill": lambda: tuple(
                self.fill_task(self.calibrated, kind, 0) for kind in ("data", "simulation")
            ),
            "fit": lambda: (self.fit_task(self.calibrated, 0),),
            "extract": lambda: (self.extract_task(self.last_pass),),
            "closure": lambda: tuple(self.closure_task(name) for name in self.closures),
            "export": lambda: (self.export_task(),),
        }
        return makers[stage]()

    def with_progress(self, progress: Progress) -> "Campaign":
        """The same campaign, telling ``progress``."""
        return replace(self, progress=progress)

    def check_fit_gates(self, fits: MassFits) -> None:
        """Raise `QualityGateError` where the mass fits are worse than the campaign file allows."""
        _raise_failures(self._fraction_failures(fits.converged_fraction, fits.events_fraction))

    def _fraction_failures(self, converged: float, events: float) -> list[str]:
        gates = self.config.gates
        failed = []
        if converged < gates.converged_fraction:
            failed.append(f"converged fraction {converged:.4f} < {gates.converged_fraction:g}")
        if events < gates.events_fraction:
            failed.append(f"events fraction {events:.4f} < {gates.events_fraction:g}")
        return failed

    def check_gates(self, closures: Iterable[str]) -> None:
        """Raise `QualityGateError` where a result is worse than the campaign file allows."""
        gates, calibration = self.config.gates, self.calibration()
        failed = self._fraction_failures(calibration.converged_fraction, calibration.events_fraction)
        if calibration.p_value < gates.fit_p_value:
            failed.append(f"fit of A, e, M: p-value {calibration.p_value:.2g} < {gates.fit_p_value:g}")
        change = calibration.residual_chi2
        if change is not None and change > gates.second_pass_chi2:
            failed.append(f"last pass changed chi2/n by {change:.2f} > {gates.second_pass_chi2:g}")
        for name in closures:
            p_value = self.closure(name).p_value
            if name in gates.closure_resonances and p_value < gates.closure_p_value:
                failed.append(f"closure at {name}: p-value {p_value:.2g} < {gates.closure_p_value:g}")
        _raise_failures(failed)


def _raise_failures(failed: list[str]) -> None:
    if failed:
        raise QualityGateError("quality gate: " + "; ".join(failed))


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
