"""A campaign: which tasks a campaign file asks for, and how each makes its output from those before it.

Folders under the output folder: samples, modules, binning, fill, fit, extract, template, closure, refine, export,
figures. Each class adds stages to those before it: `inputs`, `modules`, `calibration`, `template`, `joint`, `closures`,
`refinement`, `resolution`, `uncertainty`, `export`, and here the list of all.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from musclecal.campaign.closures import UNCORRECTED
from musclecal.campaign.export import ExportStages
from musclecal.campaign.template import Applied
from musclecal.campaign.uncertainty import BOSONS
from musclecal.errors import QualityGateError
from musclecal.records import MassFits, ScaleCalibration
from musclecal.samples import Progress
from musclecal.tasks import Task

__all__ = ["STAGES", "UNCORRECTED", "Campaign"]

STAGES = (
    "simulate",
    "modules",
    "fill",
    "fit",
    "extract",
    "closure",
    "resolution",
    "systematics",
    "propagate",
    "joint",
    "export",
)


_NDF_OF_A_PARAMETER = 5.0


class Campaign(ExportStages):
    """All stages of a campaign file."""

    # All

    def tasks(self, stage: str) -> tuple[Task, ...]:
        """The tasks that a stage asks for; what they need comes with them."""
        makers: dict[str, Callable[[], tuple[Task, ...]]] = {
            "simulate": lambda: self.simulate_tasks,
            "modules": self.module_tasks,
            "fill": lambda: tuple(
                self.fill_task(self.calibrated, kind, 0) for kind in ("data", "simulation")
            ),
            "fit": lambda: (self.fit_task(self.calibrated, 0),),
            "extract": lambda: (self.calibration_task,),
            "closure": lambda: tuple(self.closure_task(name) for name in self.closures),
            "resolution": self.resolution_tasks,
            "systematics": lambda: (self.systematics_task(),),
            "propagate": lambda: tuple(self.propagate_task(boson) for boson in BOSONS),
            "joint": lambda: (self.joint_task(),),
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

    def check_gates(self, closures: Iterable[str], calibration: ScaleCalibration | None = None) -> None:
        """Raise `QualityGateError` where a result is worse than the campaign file allows."""
        gates = self.config.gates
        calibration = calibration or self.calibration()
        failed = self._fraction_failures(calibration.converged_fraction, calibration.events_fraction)
        if calibration.p_value < gates.fit_p_value:
            failed.append(f"fit of A, e, M: p-value {calibration.p_value:.2g} < {gates.fit_p_value:g}")
        change = calibration.residual_chi2
        if change is not None and change > gates.second_pass_chi2:
            failed.append(f"last pass changed chi2/n by {change:.2f} > {gates.second_pass_chi2:g}")
        _raise_failures(failed + self._closure_failures(closures, None))

    def check_closure_gates(
        self, closures: Iterable[str], engine: str | None = None, applied: Applied | None = None
    ) -> None:
        """Raise `QualityGateError` where a closure after a correction is worse than the campaign file allows."""
        _raise_failures(self._closure_failures(closures, engine, applied))

    def check_module_gates(self) -> None:
        """Raise `QualityGateError` where the global fit is worse than the campaign file allows."""
        used = self.module_corrections().n_pairs
        fraction = used / max(self.pass_summary().read, 1)
        gates, failed = self.config.gates, []
        if fraction < gates.module_pairs_fraction:
            failed.append(
                f"pairs in the fit of modules: {fraction:.4f} < {gates.module_pairs_fraction:g} of those read"
            )
        corrections = self.module_corrections()
        per_ndf, (low, high) = corrections.chi2 / corrections.ndf, gates.module_chi2_per_ndf
        # Few tracks are fitted by so many parameters whatever they are
        enough = corrections.ndf > _NDF_OF_A_PARAMETER * np.count_nonzero(corrections.kinds)
        if enough and not low <= per_ndf <= high:
            failed.append(
                f"chi2/ndf of the tracks in the fit of modules: {per_ndf:.3f} not in {low:g} to {high:g}"
            )
        _raise_failures(failed)

    def check_width_gates(self) -> None:
        """Raise `QualityGateError` where smeared widths differ from the data's more than the campaign file allows."""
        least, failed = self.config.gates.width_p_value, []
        for name in self.width_closures:
            p_value = self.width_closure(name).p_value
            if p_value < least:
                failed.append(f"width closure at {name}: p-value {p_value:.2g} < {least:g}")
        _raise_failures(failed)

    def _closure_failures(
        self, closures: Iterable[str], engine: str | None, applied: Applied | None = None
    ) -> list[str]:
        gates, failed = self.config.gates, []
        for name in closures:
            closure = self.closure(name, engine=engine, applied=applied)
            # Without s the correction has no known uncertainty, or was made from the same events.
            gated = closure.resonance in gates.closure_resonances and closure.s is not None
            if (
                gated
                and not (closure.resonance == "Z" and closure.engine == "scalar")
                and closure.p_value < gates.closure_p_value
            ):
                failed.append(
                    f"closure at {closure.name}: p-value {closure.p_value:.2g} < {gates.closure_p_value:g}"
                )
        return failed


def _raise_failures(failed: list[str]) -> None:
    if failed:
        raise QualityGateError("quality gate: " + "; ".join(failed))
