"""Weights that give the simulation the momentum spectrum of the data inside the 4D bins.

A pT spectrum that is wrong by 20 % in its exponent moves the scale at 6 GeV by 5e-5 (physics.md section 2). The weight
is the ratio of the normalised distributions of data and simulation in cells of (pT+, pT-), each pT bin cut into
equal parts in ln pT, in regions of the pair's mean |eta|. It is a function of the measured muons alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from musclecal.binning import Binning
from musclecal.records import DimuonEvents, Floats, Ints

__all__ = ["SpectrumWeights", "spectrum_counts", "spectrum_weights"]

_PARTS = 4
_ETA_REGIONS = 4


def _fine_edges(binning: Binning) -> Floats:
    edges = np.log(binning.pt_edges)
    parts = np.linspace(edges[:-1], edges[1:], _PARTS, endpoint=False).T.ravel()
    return np.exp(np.append(parts, edges[-1]))


def _cells(events: DimuonEvents, binning: Binning) -> tuple[Ints, int]:
    """Cell number of each pair, -1 outside the binning or the mass window, and the number of cells."""
    edges = _fine_edges(binning)
    n_pt = len(edges) - 1
    common = binning.mass_reference / events.mass if binning.pt_scaled else 1.0
    k = np.searchsorted(edges, events.plus.pt * common, side="right") - 1
    m = np.searchsorted(edges, events.minus.pt * common, side="right") - 1
    mean_eta = 0.5 * np.abs(events.plus.eta + events.minus.eta)
    reach = max(abs(binning.eta_edges[0]), abs(binning.eta_edges[-1]))
    region = np.minimum((mean_eta / reach * _ETA_REGIONS).astype(np.int64), _ETA_REGIONS - 1)
    low, high = binning.mass_window
    inside = (k >= 0) & (k < n_pt) & (m >= 0) & (m < n_pt) & (events.mass >= low) & (events.mass < high)
    return np.where(inside, (region * n_pt + k) * n_pt + m, -1), _ETA_REGIONS * n_pt * n_pt


def spectrum_counts(chunks: Iterable[DimuonEvents], binning: Binning) -> Ints:
    """Pairs per cell, (n_cell,)."""
    total: Ints | None = None
    for events in chunks:
        cell, n_cell = _cells(events, binning)
        counts = np.bincount(cell[cell >= 0], minlength=n_cell)
        total = counts if total is None else total + counts
    return np.zeros(0, dtype=np.int64) if total is None else total


@dataclass(frozen=True)
class SpectrumWeights:
    """Weight per cell (n_cell,) of a binning; one outside."""

    binning: Binning
    weight: Floats

    def __call__(self, events: DimuonEvents) -> Floats:
        """(n_event,) weights."""
        cell, _ = _cells(events, self.binning)
        return np.where(cell >= 0, self.weight[cell], 1.0)


def spectrum_weights(
    data: Ints, simulation: Ints, binning: Binning, *, limit: float = 5.0
) -> SpectrumWeights:
    """Weights from the `spectrum_counts` of data and simulation; one where either is empty.

    They are kept between 1/limit and limit.
    """
    both = (data > 0) & (simulation > 0)
    ratio = np.ones(len(data))
    ratio[both] = data[both] / data[both].sum() * simulation[both].sum() / simulation[both]
    return SpectrumWeights(binning, np.clip(ratio, 1.0 / limit, limit))
