"""Muon pairs and what became of them: the records of the readers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from musclecal.kinematics import pair_masses
from musclecal.records.arrays import Floats, Ints

__all__ = ["CutFlow", "DimuonEvents", "Muons"]


@dataclass(frozen=True)
class Muons:
    """One muon of each event: ``pt`` (GeV), ``eta``, ``phi`` (rad), arrays (n_event,); ``pt_err`` (GeV) if known."""

    pt: Floats
    eta: Floats
    phi: Floats
    pt_err: Floats | None = None

    def __len__(self) -> int:
        return len(self.pt)

    def select(self, which: NDArray[np.bool_] | Ints) -> "Muons":
        """The muons of a mask or of indices."""
        error = None if self.pt_err is None else self.pt_err[which]
        return Muons(self.pt[which], self.eta[which], self.phi[which], error)


@dataclass(frozen=True)
class DimuonEvents:
    """Opposite-sign muon pairs, one row a pair: a chunk of a sample.

    Attributes
    ----------
    plus, minus : measured muons of charge +1 and -1.
    gen_plus, gen_minus : the same muons at generator level, after FSR; None in data.
    run, lumi, event : (n_event,) int64, or None where the file has none.
    extra : further columns by name, (n_event,) each; per-muon ones are called ``name_plus`` and ``name_minus``.
    """

    plus: Muons
    minus: Muons
    gen_plus: Muons | None = None
    gen_minus: Muons | None = None
    run: Ints | None = None
    lumi: Ints | None = None
    event: Ints | None = None
    extra: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.plus)

    @cached_property
    def mass(self) -> Floats:
        """(n_event,) GeV, from both momenta with the muon mass."""
        return _mass(self.plus, self.minus)

    @cached_property
    def gen_mass(self) -> Floats | None:
        """(n_event,) GeV at generator level after FSR, or None."""
        if self.gen_plus is None or self.gen_minus is None:
            return None
        return _mass(self.gen_plus, self.gen_minus)

    def select(self, which: NDArray[np.bool_] | Ints) -> "DimuonEvents":
        """The events of a mask or of indices."""
        return DimuonEvents(
            self.plus.select(which),
            self.minus.select(which),
            None if self.gen_plus is None else self.gen_plus.select(which),
            None if self.gen_minus is None else self.gen_minus.select(which),
            None if self.run is None else self.run[which],
            None if self.lumi is None else self.lumi[which],
            None if self.event is None else self.event[which],
            {name: column[which] for name, column in self.extra.items()},
        )

    def with_momenta(self, pt_plus: Floats, pt_minus: Floats) -> "DimuonEvents":
        """The same events with other measured transverse momenta (GeV)."""
        return replace(self, plus=replace(self.plus, pt=pt_plus), minus=replace(self.minus, pt=pt_minus))


def _mass(one: Muons, two: Muons) -> Floats:
    return np.asarray(pair_masses(one.pt, one.eta, one.phi, two.pt, two.eta, two.phi), dtype=np.float64)


@dataclass(frozen=True)
class CutFlow:
    """How many rows were left after each named step, in order: ``names`` and ``counts``, the first is what came in."""

    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    def __add__(self, other: "CutFlow") -> "CutFlow":
        """Two chunks of one sample together. The steps must be the same, if there are any."""
        if not self.names or not other.names:
            return self if self.names else other
        if self.names != other.names:
            raise ValueError(f"cut flows of different steps: {self.names} and {other.names}")
        return CutFlow(self.names, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def then(self, later: "CutFlow") -> "CutFlow":
        """This flow followed by ``later``, whose first step is what this one left."""
        if not self.names or not later.names:
            return self if self.names else later
        if self.counts[-1] != later.counts[0]:
            raise ValueError(f"a cut flow that leaves {self.counts[-1]} cannot go on with {later.counts[0]}")
        return CutFlow(self.names + later.names[1:], self.counts + later.counts[1:])
