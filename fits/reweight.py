"""Weights that give the simulation the momentum spectrum of the data.

A pT spectrum that is wrong by 20 % in its exponent moves the scale at 6 GeV by 4e-5: in a falling spectrum more muons
come from below than from above, so a measured momentum is too high by slope x resolution^2, in the simulation with its
own slope. What must be weighted are therefore the true momenta: a weight that is a function of the measured ones makes
the measured spectra agree and leaves the bias where it was (measured: docs/accuracy.md).

The weight is the ratio of the normalised measured distributions of data and simulation in cells of (pT+, pT-), in
regions of the pair's mean |eta|, made smooth with a cubic polynomial in ln pT+ and ln pT-, and taken at the
generator-level momenta where the simulation has them. Not for: spectra with steps inside the acceptance.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from musclecal.binning import Binning
from musclecal.errors import InputError
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
    region = _regions(events.plus.eta, events.minus.eta, binning)
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


def _basis(x: Floats, y: Floats) -> Floats:
    """(n, 10) monomials of total degree 3 and less."""
    return np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=-1)


def _regions(plus_eta: Floats, minus_eta: Floats, binning: Binning) -> Ints:
    """Region of the pair's mean |eta|."""
    reach = max(abs(binning.eta_edges[0]), abs(binning.eta_edges[-1]))
    mean_eta = 0.5 * np.abs(plus_eta + minus_eta)
    return np.minimum((mean_eta / reach * _ETA_REGIONS).astype(np.int64), _ETA_REGIONS - 1)


@dataclass(frozen=True)
class SpectrumWeights:
    """exp of a cubic polynomial in ln pT+ and ln pT-, between 1/limit and limit.

    Attributes
    ----------
    coefficients : (n_region, 10), of `_basis`; the origin is ``centre`` in ln pT (GeV).
    """

    binning: Binning
    coefficients: Floats
    centre: float
    limit: float

    def __call__(self, events: DimuonEvents) -> Floats:
        """(n_event,) weights, at generator level where the events have it."""
        plus, minus, mass = events.plus, events.minus, events.mass
        if events.gen_plus is not None and events.gen_minus is not None and events.gen_mass is not None:
            plus, minus, mass = events.gen_plus, events.gen_minus, events.gen_mass
        common = np.log(self.binning.mass_reference / mass) if self.binning.pt_scaled else 0.0
        x = np.log(plus.pt) + common - self.centre
        y = np.log(minus.pt) + common - self.centre
        region = _regions(events.plus.eta, events.minus.eta, self.binning)
        log_weight = np.einsum("ni,ni->n", _basis(x, y), self.coefficients[region])
        return np.exp(np.clip(log_weight, -np.log(self.limit), np.log(self.limit)))


def spectrum_weights(
    data: Ints, simulation: Ints, binning: Binning, *, limit: float = 5.0
) -> SpectrumWeights:
    """Weights from the `spectrum_counts` of data and simulation. Cells with fewer than ten events are left out.

    Raises
    ------
    InputError : too few cells with events in both.
    """
    edges = np.log(_fine_edges(binning))
    middles = 0.5 * (edges[1:] + edges[:-1])
    centre = float(np.mean(middles))
    x, y = (axis.ravel() for axis in np.meshgrid(middles - centre, middles - centre, indexing="ij"))
    basis = _basis(x, y)
    share = simulation.sum() / max(int(data.sum()), 1)
    coefficients = np.zeros((_ETA_REGIONS, basis.shape[1]))
    for region, (d, s) in enumerate(
        zip(np.split(data, _ETA_REGIONS), np.split(simulation, _ETA_REGIONS), strict=True)
    ):
        used = (d >= 10) & (s >= 10)
        if np.count_nonzero(used) < 2 * basis.shape[1]:
            raise InputError(
                f"reweight: only {np.count_nonzero(used)} cells of the spectrum have ten events in data and "
                "simulation; use reweight = false for so few events"
            )
        sigma = np.sqrt(1.0 / d[used] + 1.0 / s[used])
        target = np.log(share * d[used] / s[used])
        coefficients[region] = np.linalg.lstsq(basis[used] / sigma[:, None], target / sigma, rcond=None)[0]
    return SpectrumWeights(binning, coefficients, centre, limit)
