r"""How far off the momentum scale is, against eta, for a detector that is not where it is thought to be.

The bias of the curvature is that of fits to hits without noise, of muons at fixed pT and eta and evenly in phi, at the
parameters that are assumed, while the detector is at others:

.. math:: \frac{\delta k}{k} = \text{even} + q\,\text{odd}

even acts on both charges alike (field, energy loss), odd on one against the other (alignment).

Not for: statistical errors of fits of data (`musclecal.geometry.modules.variance_of` with `bias_combinations`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.geometry.detector import planes_of
from musclecal.geometry.refit import RefitCuts, module_jacobians, refit_tracks
from musclecal.geometry.refit_kernels import CONVERGED
from musclecal.geometry.simulate import (
    DetectorEffects,
    simulate_tracks,
    start_states,
    track_maker,
)
from musclecal.records import Detector, FieldMap, Floats, Ints, Refits, Tracks

__all__ = ["MomentumBias", "bias_combinations", "momentum_bias", "probe_tracks"]

_CUTS = RefitCuts(tolerance=1e-10, hit_chi2=np.inf, most_rejected=0)
_SEED = 1


@dataclass(frozen=True)
class MomentumBias:
    """dk/k of muons of one pT.

    Attributes
    ----------
    pt : GeV. eta : (n_eta,) where. even, odd : (n_eta,) of dk/k = even + q odd, averages over phi.
    """

    pt: float
    eta: Floats
    even: Floats
    odd: Floats

    @property
    def even_rms(self) -> float:
        """Root of the mean square over eta."""
        return float(np.sqrt(np.mean(self.even**2)))

    @property
    def odd_rms(self) -> float:
        """Root of the mean square over eta."""
        return float(np.sqrt(np.mean(self.odd**2)))


def probe_tracks(
    detector: Detector, field_map: FieldMap, truth: Floats, pt: float, eta: Floats, n_phi: int = 48
) -> Tracks:
    """Hits without noise of muons of ``pt`` at each of ``eta`` (n_eta,), charge + then -, at n_phi azimuths."""
    phi = 2.0 * np.pi * (np.arange(n_phi) + 0.37) / n_phi - np.pi
    at, charge, azimuth = (x.ravel() for x in np.meshgrid(eta, [1.0, -1.0], phi, indexing="ij"))
    maker = track_maker(detector, field_map, truth, DetectorEffects(smear=False, scatter=False))
    return simulate_tracks(maker, start_states(charge, np.full(at.size, pt), at, azimuth), _SEED)


def momentum_bias(
    detector: Detector,
    field_map: FieldMap,
    truth: Floats,
    assumed: Floats,
    pt: float,
    eta: Floats,
    n_phi: int = 48,
) -> MomentumBias:
    """Bias of fits at the parameters ``assumed`` (n_units, P) of a detector at ``truth`` (n_units, P).

    Raises
    ------
    InputError : an ``eta`` where no track of a charge can be fitted.
    """
    tracks = probe_tracks(detector, field_map, truth, pt, eta, n_phi)
    refits = refit_tracks(tracks, planes_of(detector, field_map), assumed, _CUTS)
    assert tracks.truth is not None
    _fitted(refits, pt, eta, n_phi)
    # pT is what is biased: k = |q/p|/cos(lambda)
    k, true = (np.abs(x[:, 0]) / np.cos(x[:, 1]) for x in (refits.local, tracks.truth))
    bias = np.nanmean((k / true - 1.0).reshape(len(eta), 2, n_phi), axis=2)
    return MomentumBias(pt, np.asarray(eta), bias.mean(axis=1), 0.5 * (bias[:, 0] - bias[:, 1]))


def bias_combinations(
    detector: Detector, field_map: FieldMap, pt: float, eta: Floats, n_slots: int = 4, n_phi: int = 48
) -> tuple[Floats, Floats]:
    """even and odd, (n_eta, n_units, P) each: the bias is the sum over their products with (truth - assumed).

    To first order, at the nominal detector: for the errors of biases.

    Raises
    ------
    InputError : as `momentum_bias`.
    """
    nominal = np.zeros((detector.n_units, n_slots))
    tracks = probe_tracks(detector, field_map, nominal, pt, eta, n_phi)
    planes = planes_of(detector, field_map)
    refits = refit_tracks(tracks, planes, nominal, _CUTS)
    units, jacobian = module_jacobians(tracks, refits, planes, nominal)
    q_over_p, lam = refits.local[:, 0], refits.local[:, 1]
    relative = jacobian[:, 0] / q_over_p[:, None] + np.tan(lam)[:, None] * jacobian[:, 1]
    per_charge = np.zeros((len(eta), 2, detector.n_units, n_slots))
    _scatter(per_charge.reshape(2 * len(eta), -1), units, relative, n_phi, n_slots)
    per_charge /= _fitted(refits, pt, eta, n_phi)[:, :, None, None]
    return per_charge.mean(axis=1), 0.5 * (per_charge[:, 0] - per_charge[:, 1])


def _fitted(refits: Refits, pt: float, eta: Floats, n_phi: int) -> Ints:
    """(n_eta, 2) how many of the tracks of each charge have a fit."""
    number = np.sum((refits.status == CONVERGED).reshape(len(eta), 2, n_phi), axis=2)
    if not np.all(number):
        at = eta[np.argmin(number.min(axis=1))]
        raise InputError(f"eta {at:g}: no track of pT {pt:g} GeV has a fit")
    return number


def _scatter(out: Floats, units: NDArray[np.int32], relative: Floats, n_phi: int, n_slots: int) -> None:
    """Sum over n_phi tracks in a row of rows (n_max P) into rows (n_units P)."""
    for row in range(len(out)):
        for track in range(row * n_phi, (row + 1) * n_phi):
            for i, unit in enumerate(units[track]):
                if unit >= 0:
                    place = slice(n_slots * unit, n_slots * (unit + 1))
                    out[row, place] += relative[track, n_slots * i : n_slots * (i + 1)]
