r"""Muon pairs from tracks with hits: fitted as if the detector were nominal, then corrected for where its modules are.

A fit at the nominal detector is off by J p, with J = d local/d p of the track and p the corrections: to first order

.. math:: \text{local}_\text{corrected} = \text{local} - J p

Not for: finding the corrections (`musclecal.geometry.module_fit`).
"""

from collections.abc import Iterable, Iterator

import numpy as np

from musclecal.geometry.refit import DEFAULT_CUTS, RefitCuts, corrected_local, module_jacobians, refit_tracks
from musclecal.geometry.trace import Planes
from musclecal.records import DimuonEvents, Floats, Muons, Pairs, Refits

__all__ = ["corrected_events", "corrected_pairs"]

_PIECE = 10_000
"""Pairs whose derivatives are in memory at a time."""


def corrected_events(
    chunks: Iterable[Pairs],
    planes: Planes,
    corrections: Floats | None = None,
    cuts: RefitCuts = DEFAULT_CUTS,
) -> Iterator[DimuonEvents]:
    """The muons of pairs, in pieces; ``corrections`` (n_units, P), or None for the fits as they are."""
    for chunk in chunks:
        for first in range(0, len(chunk), _PIECE):
            piece = chunk.select(np.arange(first, min(first + _PIECE, len(chunk))))
            yield corrected_pairs(piece, planes, corrections, cuts)


def corrected_pairs(
    pairs: Pairs, planes: Planes, corrections: Floats | None = None, cuts: RefitCuts = DEFAULT_CUTS
) -> DimuonEvents:
    """One event a pair, with generator-level muons where the tracks have their truth; run and lumi, unknown, are 1.

    A muon whose track has no fit, or one that bends the other way than its charge says, has nan as pT: readers of the
    events drop and count it. chi2/ndf is among the further columns, as ``chi2_ndf_plus`` and ``_minus``.
    """
    tracks = pairs.tracks.select(pairs.pairs.T.ravel().astype(np.int64))
    refits = refit_tracks(tracks, planes, None, cuts)
    local = refits.local
    if corrections is not None:
        nominal = np.zeros_like(corrections)
        units, jacobian = module_jacobians(tracks, refits, planes, nominal)
        local = corrected_local(refits, units, jacobian, corrections)
    muons = _muons(local, refits, np.asarray(tracks.charge))
    n = len(pairs)
    plus, minus = np.arange(n), np.arange(n, 2 * n)
    chi2 = refits.chi2 / np.maximum(refits.ndf, 1)
    extra = {"chi2_ndf_plus": chi2[plus], "chi2_ndf_minus": chi2[minus]}
    if pairs.is_background is not None:
        extra["is_background"] = pairs.is_background.astype(np.float64)
    truth = None if tracks.truth is None else Muons(*_momenta(tracks.truth))
    return DimuonEvents(
        muons.select(plus),
        muons.select(minus),
        None if truth is None else truth.select(plus),
        None if truth is None else truth.select(minus),
        run=np.ones(n, dtype=np.int64),
        lumi=np.ones(n, dtype=np.int64),
        event=tracks.event[plus],
        extra=extra,
    )


def _momenta(local: Floats) -> tuple[Floats, Floats, Floats]:
    """pT, eta, phi of q/p, lambda, phi in the first columns of ``local`` (n, 3 or more)."""
    q_over_p, lam, phi = local[:, 0], local[:, 1], local[:, 2]
    wrapped = np.arctan2(np.sin(phi), np.cos(phi))
    return np.cos(lam) / np.abs(q_over_p), np.arcsinh(np.tan(lam)), wrapped


def _muons(local: Floats, refits: Refits, charge: Floats) -> Muons:
    pt, eta, phi = _momenta(local)
    q_over_p, slope, c = local[:, 0], np.tan(local[:, 1]), refits.covariance
    relative = c[:, 0, 0] / q_over_p**2 + 2.0 * slope * c[:, 0, 1] / q_over_p + slope**2 * c[:, 1, 1]
    bent = q_over_p * charge > 0.0
    return Muons(np.where(bent, pt, np.nan), eta, phi, pt * np.sqrt(relative))
