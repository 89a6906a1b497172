"""The cells in which the response of a simulated sample is fitted, where nobody chose them (`musclecal.fits.response`).

In eta those of the calibration, cut where they are wider than 0.4. In true pT 10 to 28 % wide, as fine as the sample
allows, and 10 % away from where it ends in measured pT: it may have been cut there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.residuals import fill_residuals_by_charge
from musclecal.records import DimuonEvents, Floats, Ints

__all__ = ["narrow_eta_edges", "pt_cells"]

_WIDEST = 0.4
_STEP, _HIGHEST = 1.05, 3000.0
"""Possible edges are powers of 1.05 GeV, in three digits."""
_FEWEST_STEPS, _MOST_STEPS = 2, 5
_ENOUGH = 200
"""Muons of each charge in a cell of each eta bin."""
_ROOM = 1.1


def narrow_eta_edges(eta_edges: Floats) -> Floats:
    """The edges, with further ones inside bins that are wider than 0.4: the resolution changes with eta."""
    parts = [
        np.linspace(low, high, int(np.ceil((high - low) / _WIDEST - 1e-9)) + 1)[:-1]
        for low, high in pairwise(np.asarray(eta_edges, dtype=np.float64))
    ]
    return np.append(np.concatenate(parts), eta_edges[-1])


@dataclass
class _Watched:
    """Events on their way, and the range (GeV) of their measured pT."""

    chunks: Iterable[DimuonEvents]
    low: float = np.inf
    high: float = 0.0

    def __iter__(self) -> Iterator[DimuonEvents]:
        for events in self.chunks:
            for muons in (events.plus, events.minus):
                self.low = min(self.low, float(np.min(muons.pt, initial=np.inf)))
                self.high = max(self.high, float(np.max(muons.pt, initial=0.0)))
            yield events


def pt_cells(chunks: Iterable[DimuonEvents], eta_edges: Floats, *, threads: int | None = None) -> Floats:
    """(n_pt + 1,) GeV, edges in true pT with at least 200 muons of each charge between them in every eta bin.

    The same for any chunks and threads.

    Raises
    ------
    InputError : no generator-level muons, or too few muons for one cell.
    """
    n = int(np.log(_HIGHEST) / np.log(_STEP))
    grid = np.array([float(f"{_STEP**i:.3g}") for i in range(n)])
    watched = _Watched(chunks)
    plus, minus = fill_residuals_by_charge(watched, eta_edges, grid, bins=1, threads=threads)
    first, last = np.searchsorted(grid, [_ROOM * watched.low, watched.high / _ROOM])
    counts = np.stack([plus.counts, minus.counts])[:, :, :, 0]
    edges = grid[_chosen(counts, int(first), int(last) - 1)]
    if len(edges) < 2:
        raise InputError(
            f"response: nowhere in true pT {_ENOUGH} muons of each charge in every eta bin: more simulation, or wider "
            "cells"
        )
    return np.asarray(edges)


def _chosen(counts: Ints, first: int, last: int) -> list[int]:
    """Numbers of the edges between ``first`` and ``last``, from counts (2, n_eta, n_step); none if there is no cell."""

    def enough(low: int, high: int) -> bool:
        return high - low >= _FEWEST_STEPS and bool(counts[:, :, low:high].sum(axis=2).min() >= _ENOUGH)

    chosen: list[int] = []
    for end in range(first + 1, last + 1):
        if enough(first, end):
            while not chosen and enough(first + 1, end):
                first += 1
            chosen += [end] if chosen else [first, end]
            first = end
        elif end - first == _MOST_STEPS:
            if chosen:
                break
            first += 1
    return chosen
