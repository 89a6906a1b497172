"""Muon pairs as a file has them, turned into opposite-sign events ordered by charge, every drop counted.

Not for: names of columns, or cuts that an analyst chooses (`musclecal.selection`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from musclecal.records import CutFlow, DimuonEvents, Floats, Ints, Muons

__all__ = ["CandidatePairs", "opposite_sign_events", "pair_indices"]

Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class CandidatePairs:
    """Pairs of muons in the order of the file, whatever their charges.

    Attributes
    ----------
    one, two : measured muons, (n_pair,).
    charge_one, charge_two : (n_pair,) as the file has them.
    gen_one, gen_two : their generator-level muons after FSR, nan where there is none; None in data.
    run, lumi, event : (n_pair,) or None.
    extra : columns of the pair. muon_extra : columns of muon one and of muon two.
    """

    one: Muons
    two: Muons
    charge_one: Floats
    charge_two: Floats
    gen_one: Muons | None = None
    gen_two: Muons | None = None
    run: Ints | None = None
    lumi: Ints | None = None
    event: Ints | None = None
    extra: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    muon_extra: Mapping[str, tuple[NDArray[np.generic], NDArray[np.generic]]] = field(default_factory=dict)


def pair_indices(counts: Ints) -> tuple[Ints, Ints, Ints]:
    """All pairs of the muons of each event, in the order (0, 1), (0, 2), ..., (1, 2), ...

    Parameters
    ----------
    counts : (n_event,) muons of each event.

    Returns
    -------
    event, one, two : (n_pair,) number of the event, and of the two muons among the muons of all events.
    """
    first = np.cumsum(counts) - counts
    event = np.repeat(np.arange(counts.size), counts * (counts - 1) // 2)
    one, two = np.empty_like(event), np.empty_like(event)
    for count in np.unique(counts[counts > 1]):
        i, j = np.triu_indices(count, 1)
        start = first[counts == count][:, np.newaxis]
        here = counts[event] == count
        one[here], two[here] = (start + i).ravel(), (start + j).ravel()
    return event, one, two


def opposite_sign_events(pairs: CandidatePairs) -> tuple[DimuonEvents, CutFlow]:
    """The usable opposite-sign pairs, mu+ and mu- told apart, in the order of the file; what was dropped."""
    kept, flow = _usable(pairs)
    which: Booleans | slice = slice(None) if kept.all() else kept
    plus_first = np.asarray(pairs.charge_one[which] > 0.0)
    plus, minus = _muons_by_charge(pairs.one, pairs.two, which, plus_first)
    gen_plus, gen_minus = None, None
    if pairs.gen_one is not None and pairs.gen_two is not None:
        gen_plus, gen_minus = _muons_by_charge(pairs.gen_one, pairs.gen_two, which, plus_first)
    extra = {name: column[which] for name, column in pairs.extra.items()}
    for name, (one, two) in pairs.muon_extra.items():
        extra[f"{name}_plus"], extra[f"{name}_minus"] = _by_charge(one[which], two[which], plus_first)
    run, lumi, event = (None if ids is None else ids[which] for ids in (pairs.run, pairs.lumi, pairs.event))
    return DimuonEvents(plus, minus, gen_plus, gen_minus, run, lumi, event, extra), flow


def _usable(pairs: CandidatePairs) -> tuple[Booleans, CutFlow]:
    one, two = pairs.charge_one, pairs.charge_two
    steps = {
        "finite momenta": _physical(pairs.one) & _physical(pairs.two),
        "charge +1 or -1": (np.abs(one) == 1.0) & (np.abs(two) == 1.0),
        "opposite sign": one == -two,
    }
    if pairs.gen_one is not None and pairs.gen_two is not None:
        steps["generator match"] = _physical(pairs.gen_one) & _physical(pairs.gen_two)
    kept = np.ones(len(pairs.one), dtype=np.bool_)
    counts = [kept.size]
    for passed in steps.values():
        kept &= passed
        counts.append(int(np.count_nonzero(kept)))
    return kept, CutFlow(("pairs read", *steps), tuple(counts))


def _physical(muons: Muons) -> Booleans:
    return (muons.pt > 0.0) & np.isfinite(muons.pt) & np.isfinite(muons.eta) & np.isfinite(muons.phi)


def _by_charge(
    one: NDArray[np.generic], two: NDArray[np.generic], plus_first: Booleans
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    if plus_first.all():
        return one, two
    return np.where(plus_first, one, two), np.where(plus_first, two, one)


def _muons_by_charge(
    one: Muons, two: Muons, which: Booleans | slice, plus_first: Booleans
) -> tuple[Muons, Muons]:
    plus, minus = [], []
    for a, b in ((one.pt, two.pt), (one.eta, two.eta), (one.phi, two.phi), (one.pt_err, two.pt_err)):
        if a is None or b is None:
            continue
        for_plus, for_minus = _by_charge(a[which], b[which], plus_first)
        plus.append(np.asarray(for_plus, dtype=np.float64))
        minus.append(np.asarray(for_minus, dtype=np.float64))
    return Muons(*plus), Muons(*minus)
