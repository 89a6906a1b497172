"""The stage export: the calibration with its uncertainties as tables for analyses, and the response for weights."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from musclecal.campaign.uncertainty import UncertaintyStages
from musclecal.errors import InputError
from musclecal.export.folder import DEFAULT_FORMATS, FORMATS, export_folder, known_formats
from musclecal.export.manifest import MANIFEST
from musclecal.export.reference_vectors import REFERENCE_FILE
from musclecal.export.response_file import RESPONSE_FILE
from musclecal.export.tables import correction_tables
from musclecal.export.validate import validate_folder
from musclecal.fits.contribution import contribution_name, sample_and_part
from musclecal.fits.response import fit_response
from musclecal.fits.response_cells import narrow_eta_edges, pt_cells
from musclecal.records import CorrectionTables, DimuonEvents, Response
from musclecal.samples import Source
from musclecal.store import load, save
from musclecal.tasks import Task, fingerprint, package_version

__all__ = ["ExportStages"]

_OF_OTHERS = ("scale_stat", "resolution")
"""Groups of nuisances that are no further variations of A, e, M: the first is scaled from the covariance itself."""


class ExportStages(UncertaintyStages):
    """The stage export."""

    @property
    def _is_scaled(self) -> bool:
        """Whether the uncertainty is scaled by what closures show."""
        return self.config.export.scaled and bool(self.systematic_closures)

    @property
    def _is_smeared(self) -> bool:
        """Whether the tables hold a smearing: its a and c need the widths of two resonances."""
        return len(self.resolution_resonances) > 1 and not self.corrects_simulation

    def export_task(self, formats: tuple[str, ...] = ()) -> Task:
        """The folder of tables; the manifest is what makes it complete."""
        wanted = known_formats(formats or self.config.export.formats or DEFAULT_FORMATS)
        after = (
            *((self.response_task(),) if self._has_response else ()),
            self.calibration_task,
            *((self.systematics_task(),) if self._is_scaled else ()),
            *((self.resolution_task(),) if self._is_smeared else ()),
        )
        settings = self.config.export.model_dump() | {"formats": wanted}
        output = self.output / "export" / MANIFEST
        names = (
            *(FORMATS[f][0] for f in wanted),
            REFERENCE_FILE,
            *((RESPONSE_FILE,) if self._has_response else ()),
        )
        also = tuple(output.with_name(name) for name in names)
        options = {"provenance": self._provenance(), "settings": settings}
        run = partial(self._export, wanted)
        return Task("export", "export", output, run, options, (), after, also)

    # The response

    @property
    def _has_response(self) -> bool:
        return self.config.export.response is not None

    def response_task(self) -> Task:
        """The response of the simulated muons that export.response names.

        Raises
        ------
        InputError : the campaign file names none.
        """
        name = self.config.export.response
        if name is None:
            raise InputError(f"{self.path}: export.response: needed for the response of simulated muons")
        samples = self.config.response_samples()
        files, tasks = self._inputs_of(samples)
        output = self.output / "response" / f"{name}.h5"
        options = {
            "samples": {key: s.choices() for key, s in samples.items()},
            "eta_edges": self._response_eta_edges.tolist(),
            "pt_edges": self.config.export.response_pt_edges,
        }
        return Task(f"response/{name}", "export", output, self._fit_response, options, files, tasks)

    @property
    def _response_eta_edges(self) -> np.ndarray:
        given = self.config.export.response_eta_edges
        return narrow_eta_edges(np.array(self.config.binning.edges)) if given is None else np.array(given)

    def _fit_response(self) -> None:
        eta_edges, given = self._response_eta_edges, self.config.export.response_pt_edges
        try:
            pt_edges = pt_cells(self._response_events(), eta_edges) if given is None else np.array(given)
            found = fit_response(self._response_events(), eta_edges, pt_edges)
        except InputError as error:
            raise InputError(f"export.response: {self.config.export.response}: {error}") from None
        save(self.response_task().output, found)

    def _response_events(self) -> Iterator[DimuonEvents]:
        """Muons as they were simulated and measured, whatever is corrected, whatever is smeared."""
        edges = self._response_eta_edges
        for name, sample in self.config.response_samples().items():
            source = Source(
                {name: (sample, self._files(name))},
                eta_range=(float(edges[0]), float(edges[-1])),
                chunk_events=self.config.campaign.chunk_events,
                generator=True,
                progress=self.progress,
            )
            for events in source:
                if events.gen_plus is None:
                    raise InputError(f"the sample {name} has no generator-level muons (gen_* columns)")
                yield events

    def response(self) -> Response:
        """The response of simulated muons, once its task is done."""
        return load(self.response_task().output, Response)

    # The tables

    def tables(self) -> CorrectionTables:
        """The calibration as analyses use it, once the tasks before the export are done."""
        unscaled = partial(
            correction_tables,
            self.calibration(),
            self._provenance(),
            smearing=self.resolution().smearing if self._is_smeared else None,
            pt_range=self.config.export.pt_range,
        )
        if not self._is_scaled:
            return unscaled()
        return unscaled(
            s=self.systematic().s,
            others=tuple(group for group in self.nuisances().groups if group.name not in _OF_OTHERS),
            closures=tuple(self.closure(name) for name in self.systematic_closures),
        )

    def _export(self, formats: tuple[str, ...]) -> None:
        folder = self.output / "export"
        response = self.response() if self._has_response else None
        export_folder(self.tables(), folder, formats, self.config.export.licence, response)
        validate_folder(folder)

    def _provenance(self) -> dict[str, str]:
        names = self.config.joint.use if self.is_joint else (self.calibrated,)
        resonances = {sample_and_part(name)[0] for name in names}
        more = {}
        if self.first_engine == "mass-fits":
            more["model"] = self.config.resonance(self.calibrated).model
        if self.config.export.period:
            more["period"] = self.config.export.period
        if self._is_scaled:
            kept = self._scaling_closures
            more["closures"] = ", ".join(contribution_name(*closure) for closure in kept)
            more["closure_samples"] = ", ".join(self._used_samples({resonance for resonance, _ in kept}))
        else:
            more["uncertainty"] = "not scaled: no closure set s"
        if self._has_response:
            more["response"] = ", ".join(self.config.response_samples())
        return more | {
            "corrects": "simulation, to its own truth" if self.corrects_simulation else "data",
            "campaign": self.config.campaign.name,
            "config": fingerprint(self.path)[:23],
            "musclecal": package_version(),
            "engine": self.config.campaign.engine,
            "resonances": ", ".join(names),
            "samples": ", ".join(self._used_samples(resonances)),
            "passes": str(self.config.campaign.passes),
        }

    @property
    def _scaling_closures(self) -> tuple[tuple[str, str], ...]:
        """(resonance, part) of the closures that set s."""
        quote = self.config.systematics.quote
        names = self.systematic_closures if quote == "joint" else (quote,)
        return tuple(self.sample_to_close(name) for name in names)

    def _used_samples(self, resonances: set[str]) -> list[str]:
        """Samples of some resonances; with the simulation as target no data."""
        return [
            name
            for name, sample in self.config.samples.items()
            if sample.resonance in resonances
            and (sample.kind == "simulation" or not self.corrects_simulation)
        ]
