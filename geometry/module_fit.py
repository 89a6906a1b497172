"""From pairs of tracks to corrections of modules: sums over pairs, the global fit, and again at what it has found.

Not for: single parts of it (`musclecal.geometry.refit`, `block_sums`, `module_equations`, `modules`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from musclecal.kinematics import pair_masses
from musclecal.records import (
    Detector,
    Floats,
    MassConstraint,
    ModuleCorrections,
    ModuleSums,
    PairRefits,
    Pairs,
)

__all__ = [
    "ModuleModel", "Pass", "detector_fingerprint", "fit_modules", "gen_masses", "mass_constraint", "module_model",
    "module_sums",
]  # fmt: skip

N_SLOTS = 4
"""Parameters of a unit: shifts u and v, field, material. 6 with w and gamma."""

_WIDTHS, _MODE_WIDTHS = Widths(), ModeWidths()


def detector_fingerprint(detector: Detector) -> str:
    """16 hexadecimal digits of all numbers of a detector: sums of different ones cannot be merged."""
    digest = hashlib.sha256()
    for field in fields(detector):
        value = getattr(detector, field.name)
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return f"{detector.name} {digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class ModuleModel:
    """What is fitted: ``kinds`` (n_units, P) of the parameters, their prior ``widths`` (n_units, P) and ``modes``."""

    kinds: np.ndarray
    widths: Floats
    modes: Modes


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
    return ModuleModel(kinds, independent_widths(kinds, widths), modes)


def gen_masses(pairs: Pairs) -> Floats:
    """(n_pair,) GeV, true masses after radiation.

    Raises
    ------
    InputError : the tracks have no truth.
    """
    truth = pairs.tracks.truth
    if truth is None:
        raise InputError("pairs: the mass after radiation needs simulated tracks with their truth")
    pt, eta = np.cos(truth[:, 1]) / np.abs(truth[:, 0]), np.arctanh(np.sin(truth[:, 1]))
    plus, minus = pairs.pairs.T
    phi = truth[:, 2]
    return np.asarray(pair_masses(pt[plus], eta[plus], phi[plus], pt[minus], eta[minus], phi[minus]))


def mass_constraint(
    refits: Sequence[PairRefits], gen_mass: Sequence[Floats], window: tuple[float, float],
    robust: float = float("inf"),
) -> MassConstraint:  # fmt: skip
    """Target and width of the mass, from a simulation fitted with its own detector.

    The width is that of the generator mass after radiation of pairs with a fitted mass in ``window``. The target is the
    mean of the logarithm of the fitted mass, each pair with the weight that it has in the global fit: it differs from
    that of the generator mass by what the window lets in and by the curvature of m as a function of k, of order
    (sigma_k/k)^2.

    Parameters
    ----------
    refits, gen_mass : chunks of the same simulated pairs.

    Raises
    ------
    InputError : fewer than a hundred pairs in the window.
    """
    fitted, sigma = (
        np.concatenate([getattr(chunk, name) for chunk in refits]) for name in ("mass", "mass_sigma")
    )
    inside = (
        (np.concatenate([chunk.status for chunk in refits]) == 0)
        & (fitted >= window[0])
        & (fitted < window[1])
    )
    if inside.sum() < 100:
        raise InputError(f"mass window {window}: {inside.sum()} simulated pairs are too few")
    width = float(np.concatenate(gen_mass)[inside].std())
    target = float(np.mean(fitted[inside]))
    weight = 1.0 / ((sigma[inside] / fitted[inside]) ** 2 + (width / target) ** 2)
    return MassConstraint(
        float(np.exp(np.average(np.log(fitted[inside]), weights=weight))), width, window, robust
    )


def module_sums(
    chunks: Iterable[Pairs], detector: Detector, planes: Planes, values: Floats, mass: MassConstraint | None = None,
    cuts: RefitCuts = DEFAULT_CUTS, progress: Callable[[int], None] | None = None,
) -> ModuleSums:  # fmt: skip
    """Sums of the global fit over pairs, fitted with the detector at ``values`` (n_units, P).

    ``progress`` is called with the number of pairs after each chunk.
    """
    sums = BlockSums(detector.n_units, values.shape[1])
    done = 0
    for chunk in chunks:
        for part in contributions(chunk.tracks, chunk.pairs, planes, values, mass, cuts):
            sums.add(part.units, part.matrix, part.vector, part.good, part.chi2, part.ndf)
        done += len(chunk)
        if progress:
            progress(done)
    return sums.finish(values, detector_fingerprint(detector))


@dataclass(frozen=True)
class Pass:
    """One linearisation: its sums, and the corrections that they give.

    ``moved`` is the largest change of a parameter in units of its prior width.
    """

    sums: ModuleSums
    corrections: ModuleCorrections
    moved: float


def fit_modules(
    summed: Callable[[Floats], ModuleSums], model: ModuleModel, *, most_passes: int = 4, moved: float = 0.5,
    solver: Solver = "cg",
) -> Iterator[Pass]:  # fmt: skip
    """Global fits, each at the parameters of the one before, until none moves by more than ``moved`` prior widths.

    What is left then is of second order: a pass that moves parameters by half a width leaves a few per cent of it.

    Parameters
    ----------
    summed : sums of all samples for tracks fitted at the parameters (n_units, P) that it is given.

    Raises
    ------
    InputError : as `solve_modules`.
    """
    values = np.zeros(model.widths.shape)
    for _ in range(most_passes):
        sums = summed(values)
        equations = ModuleEquations(sums, model.widths, model.modes)
        corrections = solve_modules(equations, model.kinds, solver=solver)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.abs(corrections.values - values) / model.widths
        largest = float(np.max(change[model.widths > 0.0]))
        values = corrections.values
        yield Pass(sums, corrections, largest)
        if largest < moved:
            return
