r"""What a template fit in phi sectors says about waves in phi, with the two muons of a pair nearly back to back.

A 4D bin holds pairs with mu+ in one sector and mu- in another. The average of :math:`e^{ih\phi}` over its muons is not
that over the sector: of pairs with mu- in the neighbour of the opposite sector, mu+ is near the edge on that side. With
averages over sectors, waves of odd h, of which back-to-back pairs see little anyway, come back as 0.7 to 0.8 of
themselves from 12 sectors. Here the averages follow from the distribution of :math:`\phi_+ - \phi_-`, the same all
around the detector:

.. math:: \langle e^{ih\phi_\pm}\rangle_{s_+ s_-} = e^{ih c_{s_\pm}}\, t^h_\pm(s_- - s_+), \qquad
   c_s \text{ the middle of sector } s .
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from musclecal.binning import TemplateBinning
from musclecal.errors import InputError
from musclecal.fits.scale_information import Design, region_design, sector_design
from musclecal.fits.template_closure import BinInformation
from musclecal.records import DimuonEvents, Floats, Ints, ScaleInformation

__all__ = ["common_wave_designs", "count_angles", "wave_averages", "wave_designs", "wave_information"]

_ANGLES = 1440
_POINTS = 48
"""Of the integral over a sector."""


def count_angles(chunks: Iterable[DimuonEvents], binning: TemplateBinning) -> Ints:
    """(1440,) pairs inside the mass window and the pT range, in equal bins of 0 <= phi+ - phi- < 2 pi.

    Raises
    ------
    InputError : there are none.
    """
    counts = np.zeros(_ANGLES, dtype=np.int64)
    (low, high), (pt_low, pt_high) = binning.mass_window, binning.muon_pt
    for events in chunks:
        inside = (events.mass >= low) & (events.mass < high)
        for muons in (events.plus, events.minus):
            inside &= (muons.pt >= pt_low) & (muons.pt < pt_high)
        turns = (events.plus.phi - events.minus.phi)[inside] / (2.0 * np.pi)
        index = ((turns - np.floor(turns)) * _ANGLES).astype(np.int64) % _ANGLES
        counts += np.bincount(index, minlength=_ANGLES)
    if not counts.any():
        raise InputError("phi waves: no pair inside the mass window and the pT range")
    return counts


def wave_averages(angles: Ints, n_sectors: int, harmonic: int) -> NDArray[np.complex128]:
    """(n_sectors, n_sectors, 2) averages of exp(i h phi) of mu+ and mu- over pairs in the sectors (of mu+, of mu-)."""
    width = 2.0 * np.pi / n_sectors
    plus = width * ((np.arange(_POINTS) + 0.5) / _POINTS - 0.5)
    minus = plus[None, :] - 2.0 * np.pi * (np.arange(_ANGLES)[:, None] + 0.5) / _ANGLES
    steps = np.floor(minus / width + 0.5)
    weight = np.broadcast_to(np.asarray(angles, dtype=np.float64)[:, None], minus.shape)
    d = (steps.astype(np.int64) % n_sectors).ravel()
    norm = np.bincount(d, weight.ravel(), n_sectors)
    table = np.empty((n_sectors, 2), dtype=np.complex128)
    for muon, offset in enumerate((np.broadcast_to(plus, minus.shape), minus - width * steps)):
        wave = [np.bincount(d, (weight * f(harmonic * offset)).ravel(), n_sectors) for f in (np.cos, np.sin)]
        table[:, muon] = (wave[0] + 1j * wave[1]) / np.where(norm > 0.0, norm, 1.0)
    sector = np.arange(n_sectors)
    middle = np.exp(1j * harmonic * (-np.pi + width * (sector + 0.5)))
    of_pair = table[(sector[None, :] - sector[:, None]) % n_sectors]
    return of_pair * np.stack([np.tile(middle[:, None], n_sectors), np.tile(middle, (n_sectors, 1))], axis=2)


def _terms(angles: Ints, n_sectors: int, harmonics: Sequence[int]) -> Floats:
    """(n_sectors, n_sectors, 2, 1 + 2 n_harmonic) averages of 1, cos(h phi), sin(h phi), ... of mu+ and mu-."""
    waves = [wave_averages(angles, n_sectors, h) for h in harmonics]
    columns = [part for wave in waves for part in (wave.real, wave.imag)]
    return np.stack([np.ones((n_sectors, n_sectors, 2)), *columns], axis=3)


def wave_information(
    bins: BinInformation, angles: Ints, harmonics: Sequence[int], resonance: str
) -> ScaleInformation:
    """The sum over 4D bins, as a function of the coefficients of 1, cos(h phi), sin(h phi), ... in each eta bin.

    The terms stand where `ScaleInformation` has phi sectors: ``phi_sectors`` is their number, and the region of eta bin
    i and term t is i n_term + t.
    """
    n_phi, n_eta = bins.binning.phi_sectors, bins.binning.n_eta
    terms = _terms(angles, n_phi, harmonics)
    plus, minus, _, _ = bins.binning.unravel(bins.bins)
    n_term = terms.shape[3]
    n = n_eta * n_term * 4
    normal, noise, vector = np.zeros((n, n)), np.zeros((n, n)), np.zeros(n)
    for rows in _of_equal_sectors(plus % n_phi, minus % n_phi, n_phi):
        f = terms[plus[rows[0]] % n_phi, minus[rows[0]] % n_phi]
        eta = (plus[rows] // n_phi, minus[rows] // n_phi)
        for muon, part in enumerate(_PARTS):
            summed = np.zeros((n_eta, 4))
            np.add.at(summed, eta[muon], bins.vector[rows, part])
            vector += np.einsum("xa,t->xta", summed, f[muon]).ravel()
        normal += _of_terms(bins.normal[rows], eta, f, n_eta)
        noise += _of_terms(bins.noise[rows], eta, f, n_eta)
    return ScaleInformation(
        resonance=resonance,
        eta_edges=np.array(bins.binning.eta_edges),
        phi_sectors=n_term,
        normal=normal,
        vector=vector,
        chi2=float(bins.chi2.sum()),
        ndf=round(float(bins.ndf.sum())),
        mean_k=np.repeat(_mean_curvature(bins, plus // n_phi, minus // n_phi), n_term),
        events_used=float(bins.events.sum()),
        events_selected=bins.events_selected,
        noise=noise,
    )


_PARTS = (slice(0, 4), slice(4, 8))
"""Shifts of mu+ and of mu- in the matrices of a 4D bin."""


def _of_equal_sectors(plus: Ints, minus: Ints, n_phi: int) -> Iterator[Ints]:
    """Rows of the 4D bins of each pair of sectors that has any."""
    pair = plus * n_phi + minus
    order = np.argsort(pair, kind="stable")
    borders = np.searchsorted(pair[order], np.arange(n_phi * n_phi + 1))
    for first, last in pairwise(borders):
        if last > first:
            yield order[first:last]


def _of_terms(matrices: Floats, eta: tuple[Ints, Ints], f: Floats, n_eta: int) -> Floats:
    """(4 n_eta n_term, ...) sum of (n_row, 8, 8) matrices of 4D bins with the terms ``f`` (2, n_term)."""
    n = 4 * n_eta * f.shape[1]
    total = np.zeros((n, n))
    for one, of_one in enumerate(_PARTS):
        for two, of_two in enumerate(_PARTS):
            summed = np.zeros((n_eta, n_eta, 4, 4))
            np.add.at(summed, (eta[one], eta[two]), matrices[:, of_one, of_two])
            total += np.einsum("xyab,s,t->xsaytb", summed, f[one], f[two]).reshape(n, n)
    return total


def _mean_curvature(bins: BinInformation, plus: Ints, minus: Ints) -> Floats:
    n = bins.binning.n_eta
    weight = np.bincount(plus, bins.events, n) + np.bincount(minus, bins.events, n)
    curvature = np.bincount(plus, bins.events * bins.mean_k[:, 0], n)
    curvature += np.bincount(minus, bins.events * bins.mean_k[:, 1], n)
    return np.asarray(curvature / np.where(weight > 0.0, weight, 1.0))


def wave_designs(information: ScaleInformation) -> list[Design]:
    """A and M of every term of every eta bin, in the order (eta bin, term, A or M), then a width per eta bin."""
    widths = _of_first_term(information)
    design = region_design(information, "width", widths, [f"width {i}" for i in range(widths.shape[1])])
    seen = np.any(information.normal @ design.matrix)
    return [sector_design(information, ("A", "M")), *([design] if seen else [])]


def common_wave_designs(
    information: ScaleInformation, harmonics: Sequence[int], harmonic: int
) -> list[Design]:
    """A, M and width per eta bin, then cos and sin of one of the ``harmonics`` of A and of M, common to all eta."""
    n_eta, first = len(information.eta_edges) - 1, _of_first_term(information)
    designs = [
        region_design(information, name, first, [f"{name} {i}" for i in range(n_eta)])
        for name in ("A", "M", "width")
    ]
    designs = [design for design in designs if np.any(information.normal @ design.matrix)]
    column = 1 + 2 * list(harmonics).index(harmonic)
    waves = np.tile(np.eye(information.phi_sectors)[:, column : column + 2], (n_eta, 1))
    for name in ("A", "M"):
        labels = [f"{name} {wave}({harmonic} phi)" for wave in ("cos", "sin")]
        designs.append(region_design(information, name, waves, labels))
    return designs


def _of_first_term(information: ScaleInformation) -> Floats:
    """(n_eta n_term, n_eta) one in the constant term of each eta bin."""
    n_eta, n_term = len(information.eta_edges) - 1, information.phi_sectors
    return np.asarray(np.kron(np.eye(n_eta), np.eye(n_term)[:, :1]))
