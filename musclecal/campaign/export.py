"""The stage export: the calibration with its uncertainties as tables for analyses."""

from functools import partial

from musclecal.campaign.uncertainty import UncertaintyStages
from musclecal.export.folder import DEFAULT_FORMATS, FORMATS, export_folder, known_formats
from musclecal.export.manifest import MANIFEST
from musclecal.export.reference_vectors import REFERENCE_FILE
from musclecal.export.tables import correction_tables
from musclecal.export.validate import validate_folder
from musclecal.fits.contribution import sample_and_part
from musclecal.records import CorrectionTables
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
            self.calibration_task,
            *((self.systematics_task(),) if self._is_scaled else ()),
            *((self.resolution_task(),) if self._is_smeared else ()),
        )
        settings = self.config.export.model_dump() | {"formats": wanted}
        output = self.output / "export" / MANIFEST
        also = tuple(output.with_name(name) for name in (*(FORMATS[f][0] for f in wanted), REFERENCE_FILE))
        options = {"provenance": self._provenance(), "settings": settings}
        run = partial(self._export, wanted)
        return Task("export", "export", output, run, options, (), after, also)

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
        export_folder(self.tables(), folder, formats, self.config.export.licence)
        validate_folder(folder)

    def _provenance(self) -> dict[str, str]:
        names = self.config.joint.use if self.is_joint else (self.calibrated,)
        resonances = {sample_and_part(name)[0] for name in names}
        used = [name for name, s in self.config.samples.items() if s.resonance in resonances]
        more = {}
        if self.first_engine == "mass-fits":
            more["model"] = self.config.resonance(self.calibrated).model
        if self.config.export.period:
            more["period"] = self.config.export.period
        if not self._is_scaled:
            more["uncertainty"] = "not scaled: no closure set s"
        return more | {
            "corrects": "simulation, to its own truth" if self.corrects_simulation else "data",
            "campaign": self.config.campaign.name,
            "config": fingerprint(self.path)[:23],
            "musclecal": package_version(),
            "engine": self.config.campaign.engine,
            "resonances": ", ".join(names),
            "samples": ", ".join(used),
            "passes": str(self.config.campaign.passes),
        }
