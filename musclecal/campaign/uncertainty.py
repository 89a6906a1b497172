"""The stages systematics and propagate: what the closures say about the uncertainty, and what it means."""

from functools import partial
from pathlib import Path

import numpy as np

from musclecal.campaign.resolution import ResolutionStages
from musclecal.errors import InputError
from musclecal.fits.resolution import resolution_model
from musclecal.records import (
    BosonTemplates,
    Closure,
    MassImpacts,
    NuisanceGroup,
    Nuisances,
    Resolution,
    ScaleSystematic,
)
from musclecal.resonances import resonance
from musclecal.simulate import ResolutionModel, default_resolution
from musclecal.store import load, save
from musclecal.tasks import Task
from musclecal.validation.nuisances import RESOLUTION, calibration_nuisances, resolution_nuisances
from musclecal.validation.propagation import calibration_sources, mass_impacts
from musclecal.validation.systematics import scale_systematic, stacked_residuals
from musclecal.validation.w_templates import WBinning, w_templates
from musclecal.validation.z_templates import ZBinning, z_templates

__all__ = ["UncertaintyStages"]

BOSONS = ("W", "Z")


class UncertaintyStages(ResolutionStages):
    """The stages systematics and propagate."""

    # Systematics

    @property
    def systematic_closures(self) -> tuple[str, ...]:
        """Resonances whose closures set s: those of the campaign file with data that the calibration does not use."""
        return tuple(name for name in self.config.systematics.resonances if name in self.closures)

    def systematics_task(self) -> Task:
        """s of each closure and jointly; the nuisances beside it."""
        names, quote = self.systematic_closures, self.config.systematics.quote
        wanted = self.config.systematics.resonances
        for name in (quote,) if quote != "joint" else () if names else wanted:
            self.sample_to_close(name)
        if not names:
            raise InputError(f"systematics: no data of any of {', '.join(wanted)} to close on")
        if quote not in ("joint", *names):
            raise InputError(f"systematics.quote: {quote} is not among the closures: {', '.join(names)}")
        output = self.output / "systematics" / "systematic.h5"
        after = (self.calibration_task, *(self.closure_task(name) for name in names))
        if self.resolution_resonances:
            after += (self.resolution_task(),)
        options = {"settings": self.config.systematics.model_dump(), "resonances": names}
        also = (output.with_name("nuisances.h5"),)
        return Task("systematics", "systematics", output, self._systematics, options, (), after, also)

    def _systematics(self) -> None:
        settings = self.config.systematics
        closures = {name: self.closure(name) for name in self.systematic_closures}
        systematic = scale_systematic(
            self.calibration(),
            tuple(closures.values()),
            quote=settings.quote,
            n_toys=settings.toys,
            seed=settings.seed,
        )
        own = [closures[name] for name in settings.nuisances_from if name in closures]
        nuisances = calibration_nuisances(systematic, own, self._resolution_nuisances())
        output = self.systematics_task().output
        save(output.with_name("nuisances.h5"), nuisances)
        save(output, systematic)

    def _resolution_nuisances(self) -> NuisanceGroup | None:
        if not self.resolution_resonances:
            return None
        difference = self.resolution().difference
        inflation = self.config.systematics.resolution_inflation
        return resolution_nuisances(_all_parameters(difference), difference.eta_edges, inflation=inflation)

    def systematic(self) -> ScaleSystematic:
        """The scaled systematic, once its task is done."""
        return load(self.systematics_task().output, ScaleSystematic)

    def sensitivities(self) -> dict[str, float]:
        """How well each closure measures s: the calibration's variance over the closure's own, median over modes."""
        calibration = self.calibration()
        closures: dict[str, tuple[Closure, ...]] = {n: (self.closure(n),) for n in self.systematic_closures}
        closures["joint"] = tuple(self.closure(name) for name in self.systematic_closures)
        return {
            name: float(np.median(stacked_residuals(calibration, group).modes.ratio))
            for name, group in closures.items()
        }

    def nuisances(self) -> Nuisances:
        """The nuisances, once their task is done."""
        return load(self.systematics_task().output.with_name("nuisances.h5"), Nuisances)

    # Propagation to m_W and m_Z

    def boson_templates_task(self, boson: str) -> Task:
        """Templates of the W or Z, with the derivatives by the calibration's parameters."""
        settings = self.config.propagation
        output = self.output / "propagate" / f"{boson}_templates.h5"
        run = partial(self._fill_boson, boson, output)
        after = (self.resolution_task(),) if self.resolution_resonances else ()
        options = {
            "draws": settings.draws,
            "seed": settings.seed,
            "pt_edges": settings.pt_edges,
            "eta_edges": self.config.binning.edges,
        }
        return Task(f"propagate/{boson}_templates", "propagate", output, run, options, (), after)

    def _fill_boson(self, boson: str, output: Path) -> None:
        settings, edges = self.config.propagation, self.config.binning.edges
        resolution = self._known_resolution()
        if boson == "W":
            changes = {} if settings.pt_edges is None else {"pt_edges": settings.pt_edges}
            templates = w_templates(
                WBinning(eta_edges=edges, **changes),
                resolution=resolution, n_draws=settings.draws, seed=settings.seed,
            )  # fmt: skip
        else:
            regions = tuple(np.linspace(edges[0], edges[-1], 15).tolist())
            templates = z_templates(
                ZBinning(eta_edges=edges, region_edges=regions),
                resolution=resolution, n_draws=settings.draws, seed=settings.seed + 1,
            )  # fmt: skip
        save(output, templates)

    def _known_resolution(self) -> ResolutionModel:
        return (
            resolution_model(self.resolution().data) if self.resolution_resonances else default_resolution()
        )

    def propagate_task(self, boson: str) -> Task:
        """What the calibration's uncertainties do to the fitted mass of the W or Z."""
        settings = self.config.propagation
        output = self.output / "propagate" / f"{boson}_impacts.h5"
        run = partial(self._propagate, boson, output)
        after: tuple[Task, ...] = (
            self.boson_templates_task(boson),
            self.calibration_task,
            self.systematics_task(),
        )
        if self.resolution_resonances:
            after += (self.resolution_task(),)
        if self._limiting_closure is not None:
            after += (self.closure_task(self._limiting_closure),)
        options = {
            "luminosity": settings.luminosity,
            "free_yields": settings.free_yields,
            "closure": settings.closure,
            "resolution_inflation": self.config.systematics.resolution_inflation,
        }
        return Task(f"propagate/{boson}", "propagate", output, run, options, (), after)

    @property
    def _limiting_closure(self) -> str | None:
        """The closure whose own statistics limit the calibration."""
        name = self.config.propagation.closure
        return name if name in self.closures else None

    def _propagate(self, boson: str, output: Path) -> None:
        settings, calibration = self.config.propagation, self.calibration()
        name = self._limiting_closure
        closure = None if name is None else self.closure(name)
        difference = self.resolution().difference if self.resolution_resonances else None
        line = resonance(name or self.calibrated).line
        inflation = self.config.systematics.resolution_inflation
        sources = calibration_sources(
            calibration.n_eta,
            calibration=calibration.covariance,
            s=self.systematic().s,
            closure=None if closure is None else closure.covariance,
            closure_parameters=("A", "M") if closure is None else closure.parameter_names,
            mass_error=line.mass_error / line.mass,
            resolution=None if difference is None else inflation**2 * _all_parameters(difference),
            resolution_parameters=RESOLUTION,
        )
        templates = load(self.boson_templates_task(boson).output, BosonTemplates)
        save(
            output,
            mass_impacts(
                templates, sources, luminosity=settings.luminosity, free_yields=settings.free_yields
            ),
        )

    def impacts(self) -> tuple[MassImpacts, ...]:
        """Impacts on m_W and m_Z, once their tasks are done."""
        return tuple(load(self.propagate_task(boson).output, MassImpacts) for boson in BOSONS)


def _all_parameters(resolution: Resolution) -> np.ndarray:
    """(3 n_eta, 3 n_eta) covariance in the order a0, b0, c0, a1, ...; zero where b was not fitted."""
    n_eta, names = len(resolution.a), resolution.parameter_names
    rows = np.array([3 * n + RESOLUTION.index(name) for n in range(n_eta) for name in names])
    covariance = np.zeros((3 * n_eta, 3 * n_eta))
    covariance[np.ix_(rows, rows)] = resolution.covariance
    return covariance
