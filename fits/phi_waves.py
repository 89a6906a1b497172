r"""What a template fit in phi sectors says about waves in phi, with the two muons of a pair nearly back to back.

A 4D bin holds pairs with mu+ in one sector and mu- in another. The average of :math:`e^{ih\phi}` over its muons is not
that over the sector: of pairs with mu- in the neighbour of the opposite sector, mu+ is near the edge on that side. With
averages over sectors, waves of odd h, of which back-to-back pairs see little anyway, come back as 0.7 to 0.8 of
themselves from 12 sectors. Here the averages follow from the distribution of :math:`\phi_+ - \phi_-`, the same all
around the detector, in classes of eta separation and asymmetry, with which it changes:

.. math:: \langle e^{ih\phi_\pm}\rangle_{s_+ s_-} = e^{ih c_{s_\pm}}\, t^h_\pm(s_- - s_+), \qquad
   c_s \text{ the middle of sector } s .
"""

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from musclecal.binning import TemplateBinning
from musclecal.errors import InputError
from musclecal.fits.scale_information import Design, region_design, sector_design
from musclecal.fits.template_closure import BinInformation
from musclecal.records import DimuonEvents, Floats, Ints, ScaleInformation

__all__ = ["common_wave_designs", "count_angles", "wave_averages", "wave_designs", "wave_information"]

_ANGLES = 1440
_POINTS = 48
"""Of the integral over a sector."""
_SEPARATION = 0.8
"""Width in eta of the classes of pairs."""


def _classes(binning: TemplateBinning, eta_plus: Ints, eta_minus: Ints, asymmetry: Ints) -> Ints:
    """Number of the class of pairs, from eta bins and bin of the asymmetry."""
    edges = np.asarray(binning.eta_edges)
    middle = 0.5 * (edges[1:] + edges[:-1])
    separation = np.abs(middle[eta_plus] - middle[eta_minus])
    return np.asarray((separation / _SEPARATION).astype(np.int64) * binning.shape[2] + asymmetry)


def _n_class(binning: TemplateBinning) -> int:
    farthest = np.array([0]), np.array([binning.n_eta - 1])
    return int(_classes(binning, *farthest, np.array([binning.shape[2] - 1]))[0]) + 1


def count_angles(chunks: Iterable[DimuonEvents], binning: TemplateBinning) -> Ints:
    """(n_class, 1440) pairs inside the axes, in equal bins of 0 <= phi+ - phi- < 2 pi, by eta separation and asymmetry.

    Raises
    ------
    InputError : there are none.
    """
    counts = np.zeros((_n_class(binning), _ANGLES), dtype=np.int64)
    for events in chunks:
        kind = _class_of_events(events, binning)
        turns = (events.plus.phi - events.minus.phi) / (2.0 * np.pi)
        index = ((turns - np.floor(turns)) * _ANGLES).astype(np.int64) % _ANGLES
        inside = kind >= 0
        counts += np.bincount((kind * _ANGLES + index)[inside], minlength=counts.size).reshape(counts.shape)
    if not counts.any():
        raise InputError("phi waves: no pair inside the mass window and the pT range")
    return counts


def _class_of_events(events: DimuonEvents, binning: TemplateBinning) -> Ints:
    """(n_event,) class of each pair, -1 outside."""
    (low, high), (pt_low, pt_high) = binning.mass_window, binning.muon_pt
    p, m = events.plus, events.minus
    axes = [
        np.searchsorted(edges, values, side="right") - 1
        for edges, values in (
            (binning.eta_edges, p.eta),
            (binning.eta_edges, m.eta),
            (binning.asymmetry_edges, (p.pt - m.pt) / (p.pt + m.pt)),
        )
    ]
    sizes = (binning.n_eta, binning.n_eta, binning.shape[2])
    inside = (events.mass >= low) & (events.mass < high)
    for pt in (p.pt, m.pt):
        scaled = pt * binning.mass_reference / events.mass
        inside &= (scaled >= pt_low) & (scaled < pt_high)
    for axis, size in zip(axes, sizes, strict=True):
        inside &= (axis >= 0) & (axis < size)
    known = (np.clip(axis, 0, size - 1) for axis, size in zip(axes, sizes, strict=True))
    return np.where(inside, _classes(binning, *known), -1)


def wave_averages(angles: Ints, n_sectors: int, harmonic: int) -> NDArray[np.complex128]:
    """(n_sectors, n_sectors, 2) averages of exp(i h phi) of mu+ and mu- over pairs in the sectors (of mu+, of mu-).

    Parameters
    ----------
    angles : (1440,) counts of phi+ - phi-.
    """
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


def _terms(bins: BinInformation, angles: Ints, harmonics: Sequence[int]) -> Floats:
    """(n_bin, 2, 1 + 2 n_harmonic) averages of 1, cos(h phi), sin(h phi), ... of mu+ and mu- in each 4D bin."""
    binning, n_phi = bins.binning, bins.binning.phi_sectors
    plus, minus, asymmetry, _ = binning.unravel(bins.bins)
    kind = _classes(binning, plus // n_phi, minus // n_phi, asymmetry)
    terms = np.ones((len(plus), 2, 1 + 2 * len(harmonics)))
    for n, harmonic in enumerate(harmonics):
        averages = np.stack([wave_averages(counts, n_phi, harmonic) for counts in angles])
        wave = averages[kind, plus % n_phi, minus % n_phi]
        terms[:, :, 1 + 2 * n], terms[:, :, 2 + 2 * n] = wave.real, wave.imag
    return terms


def wave_information(
    bins: BinInformation, angles: Ints, harmonics: Sequence[int], resonance: str
) -> ScaleInformation:
    """The sum over 4D bins, as a function of the coefficients of 1, cos(h phi), sin(h phi), ... in each eta bin.

    The terms stand where `ScaleInformation` has phi sectors: ``phi_sectors`` is their number, and the region of eta bin
    i and term t is i n_term + t.
    """
    n_phi, n_eta = bins.binning.phi_sectors, bins.binning.n_eta
    plus, minus, _, _ = bins.binning.unravel(bins.bins)
    eta = (plus // n_phi, minus // n_phi)
    terms = _terms(bins, angles, harmonics)
    n_term = terms.shape[2]
    vector = np.zeros((n_eta, n_term, 4))
    for muon, part in enumerate(_PARTS):
        for t in range(n_term):
            np.add.at(vector[:, t], eta[muon], terms[:, muon, t, None] * bins.vector[:, part])
    return ScaleInformation(
        resonance=resonance,
        eta_edges=np.array(bins.binning.eta_edges),
        phi_sectors=n_term,
        normal=_of_terms(bins.normal, eta, terms, n_eta),
        vector=vector.ravel(),
        chi2=float(bins.chi2.sum()),
        ndf=round(float(bins.ndf.sum())),
        mean_k=np.repeat(_mean_curvature(bins, *eta), n_term),
        events_used=float(bins.events.sum()),
        events_selected=bins.events_selected,
        noise=_of_terms(bins.noise, eta, terms, n_eta),
    )


_PARTS = (slice(0, 4), slice(4, 8))
"""Shifts of mu+ and of mu- in the matrices of a 4D bin."""


def _of_terms(matrices: Floats, eta: tuple[Ints, Ints], terms: Floats, n_eta: int) -> Floats:
    """(4 n_eta n_term, ...) sum over 4D bins of their (8, 8) matrices times the ``terms`` (n_bin, 2, n_term)."""
    n_bin, n_term = len(matrices), terms.shape[2]
    total = np.zeros((n_eta, n_term, 4, n_eta, n_term, 4))
    for one, of_one in enumerate(_PARTS):
        for two, of_two in enumerate(_PARTS):
            flat = matrices[:, of_one, of_two].reshape(n_bin, 16)
            cell = eta[one] * n_eta + eta[two]
            for s, t in product(range(n_term), repeat=2):
                weight = terms[:, one, s] * terms[:, two, t]
                summing = csr_array((weight, (cell, np.arange(n_bin))), shape=(n_eta * n_eta, n_bin))
                summed = (summing @ flat).reshape(n_eta, n_eta, 4, 4)
                total[:, s, :, :, t, :] += summed.transpose(0, 2, 1, 3)
    return np.asarray(total.reshape(4 * n_eta * n_term, -1))


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
