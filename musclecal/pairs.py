"""Muons as a file has them, turned into opposite-sign pairs ordered by charge, every drop counted.

`opposite_sign_events` of files with a pair a row, `paired` of files with any number of muons an event.

Not for: names of columns, or cuts that an analyst chooses (`musclecal.selection`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.compiled import kernel
from musclecal.records import CutFlow, DimuonEvents, Floats, Ints, Muons

__all__ = ["CandidatePairs", "LoadedPairs", "opposite_sign_events", "paired"]

Booleans = NDArray[np.bool_]
Numbers = NDArray[Any]


@dataclass(frozen=True)
class CandidatePairs:
    """Pairs of muons, one a row of the file, whatever their charges.

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


class LoadedPairs(NamedTuple):
    """What a chunk of a file gives: opposite-sign pairs, what was dropped, and pT (GeV) of the muons as they were read,
    measured and generated (None in data).
    """

    events: DimuonEvents
    flow: CutFlow
    pt: Numbers
    gen_pt: Floats | None


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


_PHYSICAL, _MATCHED = 1, 2
"""Bits of what a muon passes."""


@kernel
def _add_physical(pt: Numbers, eta: Numbers, phi: Numbers, bit: int, passes: NDArray[np.uint8]) -> None:
    for i in range(pt.size):
        finite = (abs(pt[i]) < math.inf) & (abs(eta[i]) < math.inf) & (abs(phi[i]) < math.inf)
        passes[i] += bit * (finite & (pt[i] > 0.0))


@kernel
def _opposite_signs(
    counts: Ints,
    passes: NDArray[np.uint8],
    charge: Floats,
    event: Ints,
    plus: Ints,
    minus: Ints,
    passed: Ints,
) -> int:
    """Usable pairs of the muons of each event, in the order (0, 1), (0, 2), ..., (1, 2), ...; their number.

    ``passed`` (5,) counts all pairs, and those left after each step.
    """
    n, first, n_all, n_physical, n_charged, n_opposite = 0, 0, 0, 0, 0, 0
    for number in range(counts.size):
        n_all += counts[number] * (counts[number] - 1) // 2
        last = first + counts[number]
        for i in range(first, last):
            for j in range(i + 1, last):
                both = passes[i] & passes[j]
                physical = both & _PHYSICAL != 0
                charged = physical & (abs(charge[i]) == 1.0) & (abs(charge[j]) == 1.0)
                opposite = charged & (charge[i] == -charge[j])
                good = opposite & (both & _MATCHED != 0)
                n_physical += physical
                n_charged += charged
                n_opposite += opposite
                event[n] = number
                plus[n], minus[n] = (i, j) if charge[i] > 0.0 else (j, i)
                n += good
        first = last
    passed[0], passed[1], passed[2], passed[3], passed[4] = n_all, n_physical, n_charged, n_opposite, n
    return n


def paired(
    counts: Ints, momenta: Sequence[Numbers], charge: Numbers, generated: Muons | None = None
) -> tuple[Ints, Ints, Ints, CutFlow]:
    """Number of the event, mu+ and mu- of each usable opposite-sign pair (n_pair,); what was dropped.

    Parameters
    ----------
    counts : (n_event,) muons of each event; what follows is of the muons of all events, one after another.
    momenta : pT (GeV), eta, phi. charge : numbers of any type.
    generated : their generator-level muons, nan where there is none; None in data.
    """
    passes = np.zeros(len(charge), dtype=np.uint8)
    pt, eta, phi = momenta
    _add_physical(pt, eta, phi, _PHYSICAL, passes)
    if generated is None:
        passes += _MATCHED
    else:
        _add_physical(generated.pt, generated.eta, generated.phi, _MATCHED, passes)
    room = int(np.sum(counts * (counts - 1) // 2)) + 1
    event, plus, minus = (np.empty(room, dtype=np.int64) for _ in range(3))
    passed = np.zeros(5, dtype=np.int64)
    n = _opposite_signs(counts, passes, charge, event, plus, minus, passed)
    n_steps = len(_STEPS) - (generated is None)
    flow = CutFlow(("pairs read", *_STEPS[:n_steps]), tuple(int(x) for x in passed[: n_steps + 1]))
    return event[:n], plus[:n], minus[:n], flow


_STEPS = ("finite momenta", "charge +1 or -1", "opposite sign", "generator match")


def _usable(pairs: CandidatePairs) -> tuple[Booleans, CutFlow]:
    one, two = pairs.charge_one, pairs.charge_two
    steps = [
        _physical(pairs.one) & _physical(pairs.two),
        (np.abs(one) == 1.0) & (np.abs(two) == 1.0),
        one == -two,
    ]
    if pairs.gen_one is not None and pairs.gen_two is not None:
        steps.append(_physical(pairs.gen_one) & _physical(pairs.gen_two))
    kept = np.ones(len(pairs.one), dtype=np.bool_)
    counts = [kept.size]
    for passed in steps:
        kept &= passed
        counts.append(int(np.count_nonzero(kept)))
    return kept, CutFlow(("pairs read", *_STEPS[: len(steps)]), tuple(counts))


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
