"""From pairs of tracks to corrections of modules: sums over pairs, the global fit, and again at what it has found.

Not for: single parts of it (`musclecal.geometry.pair_refit`, `block_sums`, `module_equations`, `modules`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from musclecal.errors import InputError
from musclecal.geometry.block_sums import BlockSums
from musclecal.geometry.modes import (
    Modes,
    ModeWidths,
    Widths,
    independent_widths,
    no_modes,
    parameter_kinds,
    structure_modes,
)
from musclecal.geometry.module_equations import ModuleEquations
from musclecal.geometry.modules import Solver, solve_modules
from musclecal.geometry.pair_refit import contributions
from musclecal.geometry.refit import DEFAULT_CUTS, RefitCuts
from musclecal.geometry.trace import Planes
from musclecal.records import (
    PARAMETER_TYPES,
    Detector,
    Floats,
    MassConstraint,
    ModuleCorrections,
    ModuleSums,
    Pairs,
)

__all__ = [
    "SETTLED", "ModuleModel", "Pass", "PassSummary", "cuts_text", "detector_fingerprint", "fit_modules", "is_last",
    "largest_move", "module_model", "module_sums", "pass_cuts",
]  # fmt: skip

N_SLOTS = 4
"""Parameters of a unit: shifts u and v, field, material. 6 with w and gamma."""

SETTLED = 0.5
"""Prior widths: what is left after a pass that moves no parameter by more is of second order, a few per cent of it."""

_LOOSER = 4.0
"""Cuts of the first of several passes are those of errors that are so many times larger."""

_MOST_AGAINST_CHARGE, _FEW = 0.02, 10
"""Pairs that bend against their charge: single ones are left out, more of them mean that charge or field are wrong."""

_WIDTHS, _MODE_WIDTHS = Widths(), ModeWidths()


def detector_fingerprint(detector: Detector, planes: Planes) -> str:
    """16 hexadecimal digits of all numbers of a detector and its field: sums of different ones cannot be merged."""
    digest = hashlib.sha256()
    numbers = [getattr(detector, field.name) for field in fields(detector)]
    for value in (*numbers, planes.r, planes.z, planes.bending, planes.loss):
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return f"{detector.name} {digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class ModuleModel:
    """What is fitted.

    Attributes
    ----------
    kinds : (n_units, P) of the parameters. widths : (n_units, P) of their prior. modes : of structures.
    places : (n_units,) names of layers.
    """

    kinds: np.ndarray
    widths: Floats
    modes: Modes
    places: tuple[str, ...]

    def equations(self, sums: ModuleSums) -> ModuleEquations:
        """Of sums with this prior."""
        return ModuleEquations(sums, self.widths, self.modes, name=self.name_of)

    def name_of(self, unit: int, slot: int) -> str:
        """A parameter in words, as files of corrections name it."""
        return f"{PARAMETER_TYPES[self.kinds[unit, slot]]} of module {unit} ({self.places[unit]})"


def module_model(
    detector: Detector, widths: Widths = _WIDTHS, mode_widths: ModeWidths | None = _MODE_WIDTHS,
    n_slots: int = N_SLOTS,
) -> ModuleModel:  # fmt: skip
    """Parameters of a detector with their prior; ``mode_widths`` None: independent ones only."""
    kinds = parameter_kinds(detector.unit, detector.side, detector.measures_v, n_slots)
    modes = no_modes(detector.n_units, n_slots)
    if mode_widths is not None:
        axes = np.stack([detector.u, detector.v, detector.w], axis=1)
        modes = structure_modes(
            detector.centre, axes, detector.unit, detector.side, detector.measures_v, detector.layer,
            detector.layer_names, n_slots=n_slots, widths=mode_widths,
        )  # fmt: skip
    layers = np.zeros(detector.n_units, dtype=np.int64)
    layers[detector.unit] = detector.layer
    places = tuple(detector.layer_names[layer] for layer in layers)
    return ModuleModel(kinds, independent_widths(kinds, widths), modes, places)


def module_sums(
    chunks: Iterable[Pairs], detector: Detector, planes: Planes, values: Floats, mass: MassConstraint | None = None,
    cuts: RefitCuts = DEFAULT_CUTS, progress: Callable[[int], None] | None = None,
) -> ModuleSums:  # fmt: skip
    """Sums of the global fit over pairs, fitted with the detector at ``values`` (n_units, P).

    ``progress`` is called with the number of pairs after each chunk.

    Raises
    ------
    InputError : many pairs bend against their charge; as `contributions`.
    """
    sums = BlockSums(detector.n_units, values.shape[1])
    done = events = fitted = against_charge = 0
    for chunk in chunks:
        for part in contributions(chunk.tracks, chunk.pairs, planes, values, mass, cuts):
            sums.add(part.units, part.matrix, part.vector, part.good, part.chi2, part.ndf)
            fitted += int(np.count_nonzero(np.isfinite(part.mass)))
            against_charge += int(np.count_nonzero(part.against_charge))
        done += len(chunk)
        events += len(chunk) if chunk.n_events is None else chunk.n_events
        if progress:
            progress(done)
    if against_charge > max(_MOST_AGAINST_CHARGE * fitted, _FEW):
        raise InputError(
            f"{against_charge} of {fitted} pairs bend against the charges of their muons: check the column 'charge', "
            "and the sign of the field map"
        )
    measured = "" if mass is None else mass.definition
    return sums.finish(values, detector_fingerprint(detector, planes), cuts_text(cuts), measured, events)


def cuts_text(cuts: RefitCuts) -> str:
    """Cuts as sums name them."""
    return ", ".join(f"{name} {value:g}" for name, value in cuts._asdict().items())


@dataclass(frozen=True)
class PassSummary:
    """What is told of one pass of a campaign; of one that was not needed, that before it.

    Attributes
    ----------
    chi2, ndf : of the tracks as they were fitted, before the solution.
    moved : largest change of a parameter, prior widths. amplitude : largest of a mode, ``mode``, prior widths.
    passes : until then, this one included. read : pairs that there were, of so many ``events``.
    is_last : whether no other is needed. settled : whether what is left is small, with the cuts that were asked for.
    mass : the target in words, "" where the mass is free.
    """

    chi2: float
    ndf: float
    moved: float
    amplitude: float
    mode: str
    passes: int
    read: int
    events: int
    is_last: bool
    settled: bool
    mass: str


@dataclass(frozen=True)
class Pass:
    """One linearisation: its sums, and the corrections that they give.

    ``moved`` is the largest change of a parameter in units of its prior width.
    """

    sums: ModuleSums
    corrections: ModuleCorrections
    moved: float


def pass_cuts(cuts: RefitCuts, number: int, most_passes: int) -> RefitCuts:
    """Cuts of pass ``number``, from 0: loose in the first of several, as a detector that is off loses good hits."""
    if number > 0 or most_passes == 1:
        return cuts
    return cuts._replace(
        hit_chi2=_LOOSER**2 * cuts.hit_chi2,
        chi2_per_ndf=_LOOSER**2 * cuts.chi2_per_ndf,
        gradient=_LOOSER * cuts.gradient,
    )


def is_last(number: int, largest: float, most_passes: int, settled: float = SETTLED) -> bool:
    """Whether no pass follows ``number``, which has moved parameters by up to ``largest`` prior widths.

    The first of several never is the last: its cuts are loose.
    """
    return number + 1 >= most_passes or (number > 0 and largest < settled)


def fit_modules(
    summed: Callable[[Floats, RefitCuts], ModuleSums], model: ModuleModel, *, cuts: RefitCuts = DEFAULT_CUTS,
    most_passes: int = 4, settled: float = SETTLED, solver: Solver = "cg",
) -> Iterator[Pass]:  # fmt: skip
    """Global fits, each at the parameters of the one before, until none moves by more than ``settled`` prior widths.

    Parameters
    ----------
    summed : sums of all samples for tracks fitted at the parameters (n_units, P) and with the cuts that it is given.

    Raises
    ------
    InputError : as `solve_modules`.
    """
    values = np.zeros(model.widths.shape)
    for number in range(most_passes):
        sums = summed(values, pass_cuts(cuts, number, most_passes))
        equations = model.equations(sums)
        corrections = solve_modules(equations, model.kinds, solver=solver)
        moved = largest_move(corrections.values, values, model.widths)
        values = corrections.values
        yield Pass(sums, corrections, moved)
        if is_last(number, moved, most_passes, settled):
            return


def largest_move(values: Floats, before: Floats, widths: Floats) -> float:
    """The largest change of a parameter in units of its prior width; all (n_units, P)."""
    fitted = widths > 0.0
    return float(np.max(np.abs(values - before)[fitted] / widths[fitted], initial=0.0))
