"""The stage joint: one calibration from several resonances, and which events it leaves for closure.

The first pass starts from the calibration on one resonance (mass fits or template), never from the joint one. Each
later pass fills and fits the other samples again, corrected with the joint result of the pass before.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from musclecal.campaign.template import Applied, TemplateStages
from musclecal.covariance import chi2_of
from musclecal.errors import InputError
from musclecal.fits.contribution import (
    ALL_EVENTS,
    HALVES,
    Contribution,
    contribution_name,
    of_calibration,
    of_information,
    sample_and_part,
)
from musclecal.fits.joint_fit import joint_fit, refuse_if_used
from musclecal.records import JointFit, ScaleCalibration, ScaleParameters
from musclecal.store import load, save
from musclecal.tasks import Task

__all__ = ["JointStages"]


class JointStages(TemplateStages):
    """The stage joint, and the calibration of the engine "joint"."""

    # What is used, and what is kept

    @property
    def is_joint(self) -> bool:
        """Whether the calibration of this campaign is that of several resonances."""
        return self.config.campaign.engine == "joint"

    @property
    def joint_kept(self) -> tuple[str, ...]:
        """Samples that the joint fit leaves for closure: other halves, and resonances of which it uses nothing."""
        use = self.config.joint.use
        known = (self.calibrated, *super().closures)
        used = [sample_and_part(name) for name in use]
        for name, part in used:
            if name not in known:
                raise InputError(f"joint.use: the campaign has no data of {name}: it has {', '.join(known)}")
            if self._is_fast(name) and (name, part) != (self.calibrated, ALL_EVENTS):
                raise InputError(f'joint.use: {name} has no simulation of its own (reference = "fast")')
        halves = (contribution_name(n, h) for n, part in used if part != ALL_EVENTS for h in HALVES)
        resonances = [name for name, _ in used]
        return (*(half for half in halves if half not in use), *(n for n in known if n not in resonances))

    @property
    def closures(self) -> tuple[str, ...]:
        """Resonances with data that the calibration does not use, or of which it leaves a half."""
        if not self.is_joint:
            return super().closures
        return tuple(sample_and_part(name)[0] for name in self.joint_kept)

    def sample_to_close(self, name: str) -> tuple[str, str]:
        """(resonance, part) of a closure after the calibration; for "Z" the half that the calibration leaves of it.

        Raises
        ------
        InputError : the calibration used these events; what it kept is named.
        """
        resonance, part = sample_and_part(name)
        if self.is_joint:
            for kept in map(sample_and_part, self.joint_kept):
                if part == ALL_EVENTS and kept[0] == resonance:
                    return kept
            refuse_if_used(self.config.joint.use, self.joint_kept, resonance, part)
        return resonance, part

    # The fit

    @property
    def first_engine(self) -> str:
        """The engine of the calibration on one resonance, where the joint fit starts."""
        if not self.is_joint:
            return self.config.campaign.engine
        return "mass-fits" if self._is_fast(self.calibrated) else "template"

    def _muons_of_pass(self, passes: int) -> Applied:
        """Muons of a pass: with the calibration on one resonance, then with the joint result of the pass before."""
        if passes > 0:
            before = passes - 1
            return self.corrected_by(
                f"joint@{before}", self.joint_task(before), lambda: self.joint(before).calibration
            )
        engine = self.first_engine
        name = engine if self.is_joint else "calibrated"
        return self.corrected_by(name, self.extraction_task(engine), partial(self.calibration, engine))

    def joint_task(self, passes: int | None = None) -> Task:
        """One calibration from several resonances after a pass (default: the last), and how they agree."""
        if passes is None:
            passes = self.last_pass
        names, muons = self._joint_samples(passes), self._muons_of_pass(passes)
        output = self._joint_output(passes)
        after: tuple[Task, ...] = (self.extraction_task(self.first_engine), *muons.after)
        for name in names:
            if name != self.calibrated:
                after += (self._part_task(name, muons),)
        options = {"samples": names, "use": self.config.joint.use}
        run = partial(self._fit_jointly, passes, names, muons, output)
        return Task(f"joint@{passes}", "joint", output, run, options, (), after)

    def _joint_output(self, passes: int) -> Path:
        return self.output / "joint" / f"joint@{passes}.h5"

    def _joint_samples(self, passes: int) -> tuple[str, ...]:
        """Samples of a pass: the used ones, and in the last all that they can be compared with."""
        kept = self.joint_kept
        compared = [name for name in kept if name == self.calibrated or not self._is_fast(name)]
        return (*self.config.joint.use, *(compared if passes == self.last_pass else ()))

    def _part_task(self, name: str, muons: Applied) -> Task:
        resonance, part = sample_and_part(name)
        return self.template_task(resonance, muons, part=part)

    def _fit_jointly(self, passes: int, names: tuple[str, ...], muons: Applied, output: Path) -> None:
        before = muons.scale()
        assert before is not None
        contributions = [self._contribution(name, muons, before) for name in names]
        result = joint_fit(contributions, self.config.joint.use, passes=passes + 1)
        if passes > 0:
            found = result.calibration
            change = chi2_of(found.parameters - before.parameters, found.covariance)
            result = replace(result, calibration=replace(found, residual_chi2=change.chi2 / change.ndf))
        save(output, result)

    def _contribution(self, name: str, muons: Applied, before: ScaleParameters) -> Contribution:
        """What a sample says, about its own minimum in A and M, and about the e of ``before``."""
        if name == self.calibrated:
            return of_calibration(name, self.calibration(self.first_engine))
        fit = self.template_fit(self._part_task(name, muons))
        applied = ScaleParameters(
            before.eta_edges,
            *(getattr(before, letter) + getattr(fit.point, letter) for letter in ("A", "e", "M")),
        )
        return of_information(fit.information, applied, part=sample_and_part(name)[1])

    def joint(self, passes: int | None = None) -> JointFit:
        """The joint fit after a pass (default: the last), once its task is done."""
        return load(self._joint_output(self.last_pass if passes is None else passes), JointFit)

    # The calibration

    def extraction_task(self, engine: str) -> Task:
        """A, e, M by mass fits, by one template fit of all cells, or from several resonances."""
        if engine != "joint":
            return super().extraction_task(engine)
        output = self.output / "extract" / "calibration_joint.h5"
        run = partial(self._extract_jointly, output)
        return Task("extract/calibration_joint", "extract", output, run, {}, (), (self.joint_task(),))

    def _extract_jointly(self, output: Path) -> None:
        calibration: ScaleCalibration = self.joint().calibration
        save(output, calibration)
