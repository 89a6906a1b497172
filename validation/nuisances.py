r"""The uncertainties of a calibration as independent nuisances, and what each does to a muon.

Four sources, as in the CMS m_W measurement (arXiv:2412.13872), with n_eta eta bins:

============== =============================================== =========== ==========================
group          variations of                                   number      covariance
============== =============================================== =========== ==========================
scale_stat     A, e, M                                         3 n_eta     s^2 V of the calibration
closure_Z      A, M                                            2 n_eta     V_C of the closure sample
mass_Z         A, all eta bins together                        1           (delta m/m)^2 1 1^T
resolution     a, b, c of (sigma_k/k)^2 = a+c/k^2+b/(1+d k^2)  3 n_eta     of the resolution fit
============== =============================================== =========== ==========================

The variations of a group are eigenvectors of its correlation matrix (`musclecal.covariance.eigenvariations`), so that
the sum of v v^T is the covariance to rounding. Variations of corrections, that is of what is applied to the data.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from musclecal.covariance import eigenvariations
from musclecal.errors import InputError
from musclecal.records import Closure, Floats, Ints, NuisanceGroup, Nuisances, ScaleSystematic
from musclecal.scale import correction_jacobian
from musclecal.validation.systematics import mass_shift

__all__ = [
    "RESOLUTION",
    "SCALE",
    "calibration_nuisances",
    "closure_nuisances",
    "eigen_nuisances",
    "mass_nuisance",
    "momentum_shifts",
    "resolution_nuisances",
    "resolution_shifts",
    "scale_nuisances",
]

SCALE = ("A", "e", "M")
RESOLUTION = ("a", "b", "c")


def eigen_nuisances(
    name: str, covariance: ArrayLike, eta_edges: ArrayLike, parameters: Sequence[str]
) -> NuisanceGroup:
    """Eigenvariations ``name_0``, ``name_1``, ... of a covariance (n_eta n_fitted, ...), by decreasing eigenvalue.

    Raises
    ------
    InputError : unknown ``parameters``, a covariance of another shape, or one that is none; the parameter that a
        negative eigenvalue belongs to is named.
    """
    letters = tuple(parameters)
    if (
        letters not in (tuple(p for p in known if p in letters) for known in (SCALE, RESOLUTION))
        or not letters
    ):
        raise InputError(f"{name}: parameters {letters} are not some of {SCALE} or of {RESOLUTION}, in order")
    edges = np.array(eta_edges, dtype=np.float64)
    labels = [f"{letter}{i}" for i in range(len(edges) - 1) for letter in letters]
    if np.shape(covariance) != (len(labels),) * 2:
        raise InputError(
            f"{name}: a covariance of shape {np.shape(covariance)} for {len(edges) - 1} eta bins of {letters}"
        )
    try:
        variations = eigenvariations(covariance, labels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return NuisanceGroup(name, edges, letters, tuple(f"{name}_{i}" for i in range(len(labels))), variations)


def scale_nuisances(systematic: ScaleSystematic) -> NuisanceGroup:
    """3 n_eta variations ``scale_stat_<i>`` of A, e, M: the statistics of the calibration, scaled."""
    return eigen_nuisances("scale_stat", systematic.covariance, systematic.eta_edges, SCALE)


def closure_nuisances(closure: Closure) -> NuisanceGroup:
    """2 n_eta variations ``closure_<resonance>_<i>`` of A and M: what the closure sample could not have seen."""
    return eigen_nuisances(
        f"closure_{closure.resonance}", closure.covariance, closure.eta_edges, closure.parameter_names
    )


def mass_nuisance(closure: Closure) -> NuisanceGroup:
    """One variation ``mass_<resonance>``, as if the resonance were lighter by its uncertainty: A = delta m/m."""
    if "A" not in closure.parameter_names:
        raise InputError(f"closure at {closure.resonance}: without A it does not see the resonance's mass")
    name = f"mass_{closure.resonance}"
    shift = mass_shift(closure)[closure.parameter_names.index("A") :: len(closure.parameter_names)]
    return NuisanceGroup(name, np.array(closure.eta_edges), ("A",), (name,), shift[None, :].copy())


def resolution_nuisances(
    covariance: ArrayLike,
    eta_edges: ArrayLike,
    parameters: Sequence[str] = RESOLUTION,
    *,
    inflation: float = 1.0,
) -> NuisanceGroup:
    """Variations ``resolution_<i>`` of a, b, c with ``inflation`` times their uncertainties.

    ``covariance`` (n_eta n_fitted, ...) in the order a0, b0, c0, a1, ...; a fixed parameter has zero rows.
    """
    if not 0.0 < inflation < np.inf:
        raise InputError(f"resolution: inflation must be positive, got {inflation}")
    scaled = inflation**2 * np.asarray(covariance, dtype=np.float64)
    return eigen_nuisances("resolution", scaled, eta_edges, parameters)


def calibration_nuisances(
    systematic: ScaleSystematic, closures: Sequence[Closure], resolution: NuisanceGroup | None = None
) -> Nuisances:
    """All groups: of the scaled calibration, of every closure and its resonance's mass, of the resolution if given.

    ``closures`` are those whose own limits are quoted as uncertainties; CMS takes the Z alone.
    """
    groups = [scale_nuisances(systematic)]
    for closure in closures:
        groups += [closure_nuisances(closure), mass_nuisance(closure)]
    found = Nuisances(tuple(groups if resolution is None else [*groups, resolution]))
    if len(set(found.names)) < len(found.names):
        raise InputError("nuisances: a resonance twice among the closures")
    return found


def momentum_shifts(nuisances: Nuisances, pt: ArrayLike, eta: ArrayLike, charge: ArrayLike) -> Floats:
    """(n_nuisance, n_muon) relative change of pT by each variation, -(dk/k) to first order.

    Zero outside the eta range, as the correction itself, and for variations of the resolution. Give muons in pieces if
    there are many: a million muons and 200 nuisances are 1.6 GB.

    Parameters
    ----------
    pt : GeV. charge : +1 or -1. Arrays (n_muon,) or scalars.

    Raises
    ------
    InputError : pT not positive, a charge other than +1 and -1.
    """
    pt, eta, charge = _muons(pt, eta, charge)
    jacobian = correction_jacobian(pt, charge)
    parts = []
    for group in nuisances.groups:
        columns = [SCALE.index(letter) for letter in group.parameters if letter in SCALE]
        parts.append(-_at_muons(group, eta, jacobian[:, columns]))
    return np.concatenate(parts)


def resolution_shifts(nuisances: Nuisances, pt: ArrayLike, eta: ArrayLike, d: float) -> Floats:
    """(n_nuisance, n_muon) change of (sigma_k/k)^2 by each variation, zero for those of the scale; ``d`` in GeV^2."""
    pt, eta, _ = _muons(pt, eta, 1.0)
    columns = {"a": np.ones_like(pt), "b": 1.0 / (1.0 + d / pt**2), "c": pt**2}
    parts = []
    for group in nuisances.groups:
        known = [columns[letter] for letter in group.parameters if letter in columns]
        parts.append(_at_muons(group, eta, np.stack(known, axis=1) if known else np.empty((len(pt), 0))))
    return np.concatenate(parts)


def _at_muons(group: NuisanceGroup, eta: Floats, jacobian: Floats) -> Floats:
    """(n_nuisance, n_muon) change of one number per muon; ``jacobian`` (n_muon, n_fitted) or (n_muon, 0)."""
    total = np.zeros((len(group.names), len(eta)))
    bins, inside = _eta_bins(group.eta_edges, eta)
    table = group.variations.reshape(len(group.names), -1, len(group.parameters))
    for p in range(jacobian.shape[1]):
        total += table[:, bins, p] * (jacobian[:, p] * inside)
    return total


def _eta_bins(edges: Floats, eta: Floats) -> tuple[Ints, Floats]:
    """(n_muon,) bin numbers, 0 outside, and 1 inside or 0 outside."""
    bins = np.searchsorted(edges, eta, side="right") - 1
    inside = (bins >= 0) & (bins < len(edges) - 1)
    return np.where(inside, bins, 0).astype(np.int64), inside.astype(np.float64)


def _muons(pt: ArrayLike, eta: ArrayLike, charge: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The three as arrays of one shape (n_muon,)."""
    values = [np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (pt, eta, charge)]
    pt, eta, charge = np.broadcast_arrays(*values)
    if pt.ndim != 1:
        raise InputError(f"muons: arrays of one axis, got shape {pt.shape}")
    if not np.all((pt > 0.0) & np.isfinite(pt)):
        raise InputError(f"muons: pt must be positive, got {pt[np.argmin((pt > 0.0) & np.isfinite(pt))]}")
    if not np.all(np.abs(charge) == 1.0):
        raise InputError(f"muons: charge must be +1 or -1, got {charge[np.argmin(np.abs(charge) == 1.0)]}")
    return pt, eta, charge
