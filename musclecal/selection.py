"""Named cuts on muon pairs, and how many pairs each of them leaves.

Cuts are half-open like the bins of a histogram: low <= x < high. Not for: reading, and the drops that a
reader counts (`musclecal.events`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.expressions import Condition
from musclecal.records import CutFlow, DimuonEvents, Floats

__all__ = ["Cuts", "format_cut_flow", "names_needed", "select"]

Booleans = NDArray[np.bool_]

PER_MUON = ("pt", "eta", "phi", "pt_err")
OF_PAIR = ("mass", "run", "lumi", "event")
ALWAYS_KNOWN = frozenset(f"{name}_{charge}" for name in PER_MUON for charge in ("plus", "minus")) | {*OF_PAIR}


@dataclass(frozen=True)
class Cuts:
    """A selection. None: no cut.

    Parameters
    ----------
    muon_pt_min, muon_pt_max : GeV, of both muons.
    eta_min, eta_max : signed, of both muons: the outer edges of the binning.
    mass_window : (low, high), GeV.
    expressions : conditions (`musclecal.expressions`) over pt_plus, pt_minus, eta_*, phi_*, pt_err_*, mass,
        run, lumi, event and the extra columns that were read.

    Raises
    ------
    InputError : a limit that is not finite or leaves nothing, an expression that is not allowed.
    """

    muon_pt_min: float | None = None
    muon_pt_max: float | None = None
    eta_min: float | None = None
    eta_max: float | None = None
    mass_window: tuple[float, float] | None = None
    expressions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_limits("muon_pt", self.muon_pt_min, self.muon_pt_max)
        _check_limits("eta", self.eta_min, self.eta_max)
        _check_limits("mass_window", *(self.mass_window or (None, None)))
        if isinstance(self.expressions, str):
            raise InputError(
                f"expressions: must be a list of expressions, got one string {self.expressions!r}"
            )
        object.__setattr__(self, "expressions", tuple(self.expressions))
        names_needed(self.expressions)

    @cached_property
    def _conditions(self) -> tuple[Condition, ...]:
        return tuple(Condition(text) for text in self.expressions)

    def passes(self, events: DimuonEvents) -> Mapping[str, Booleans]:
        """(n_event,) per cut, by its name, in order."""
        steps: dict[str, Booleans] = {}
        pt, eta = (events.plus.pt, events.minus.pt), (events.plus.eta, events.minus.eta)
        if self.muon_pt_min is not None:
            steps[f"pT > {self.muon_pt_min:g} GeV"] = _inside(pt, self.muon_pt_min, None)
        if self.muon_pt_max is not None:
            steps[f"pT < {self.muon_pt_max:g} GeV"] = _inside(pt, None, self.muon_pt_max)
        if self.eta_min is not None or self.eta_max is not None:
            steps[_between("eta", self.eta_min, self.eta_max)] = _inside(eta, self.eta_min, self.eta_max)
        if self.mass_window is not None:
            steps[_between("m", *self.mass_window, " GeV")] = _inside((events.mass,), *self.mass_window)
        columns = _columns(events, self._conditions)
        return steps | {c.text: c.passes(columns, len(events)) for c in self._conditions}


def _check_limits(name: str, low: float | None, high: float | None) -> None:
    for limit in (low, high):
        if limit is not None and not math.isfinite(limit):
            raise InputError(f"{name}: limits must be finite, got {limit}")
    if low is not None and high is not None and low >= high:
        raise InputError(f"{name}: the lower limit {low:g} is not below the upper one {high:g}")


def _between(name: str, low: float | None, high: float | None, unit: str = "") -> str:
    below = "" if low is None else f"{low:g} < "
    above = "" if high is None else f" < {high:g}{unit}"
    return f"{below}{name}{above}"


def _inside(columns: tuple[Floats, ...], low: float | None, high: float | None) -> Booleans:
    passed = np.ones(columns[0].shape, dtype=np.bool_)
    for column in columns:
        if low is not None:
            passed &= column >= low
        if high is not None:
            passed &= column < high
    return passed


def _columns(events: DimuonEvents, conditions: Iterable[Condition]) -> Mapping[str, NDArray[Any]]:
    """What conditions may use; the mass is computed only for those that do."""
    columns: dict[str, NDArray[Any] | None] = dict(events.extra)
    for charge, muons in (("plus", events.plus), ("minus", events.minus)):
        columns |= {f"{name}_{charge}": getattr(muons, name) for name in PER_MUON}
    columns |= {"run": events.run, "lumi": events.lumi, "event": events.event}
    uses_mass = any("mass" in condition.names for condition in conditions)
    columns["mass"] = events.mass if uses_mass else np.empty(0)
    return {name: column for name, column in columns.items() if column is not None}


def names_needed(expressions: Iterable[str]) -> tuple[str, ...]:
    """Extra columns that the reader must load for these expressions, sorted: ``extra`` of `read_dimuons`.

    Raises
    ------
    InputError : an expression that is not allowed.
    """
    used = {name for text in expressions for name in Condition(text).names}
    return tuple(sorted(used - ALWAYS_KNOWN))


def select(events: DimuonEvents, cuts: Cuts) -> tuple[DimuonEvents, CutFlow]:
    """The pairs that pass all cuts, and how many each cut left.

    The flow starts with all pairs that came in, so that the reader's flow goes on with it (`CutFlow.then`).
    """
    passed = np.ones(len(events), dtype=np.bool_)
    names, counts = ["pairs"], [len(events)]
    for name, cut in cuts.passes(events).items():
        passed &= cut
        names.append(name)
        counts.append(int(np.count_nonzero(passed)))
    chosen = events if passed.all() else events.select(passed)
    return chosen, CutFlow(tuple(names), tuple(counts))


def format_cut_flow(flow: CutFlow) -> str:
    """A cut flow as an aligned table: step, pairs, and the fraction of the step before and of the first."""
    first = flow.counts[:1]
    rows = [("step", "pairs", "of previous", "of first")]
    for name, count, before in zip(flow.names, flow.counts, first + flow.counts[:-1], strict=True):
        rows.append((name, f"{count:,}", _percent(count, before), _percent(count, first[0])))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    numbers = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join((row[0].ljust(widths[0]), *numbers))


def _percent(count: int, of: int) -> str:
    return f"{100.0 * count / of:.2f} %" if of else "-"
