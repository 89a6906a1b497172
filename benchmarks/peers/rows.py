"""What a benchmark says of a work and a peer, and how the two are timed: in turns, in one process, the best of rounds.

A busy machine is then busy for both, and a ratio is steadier than the rates of which it is made. The bandwidth of the
memory is that of the triad a[i] = b[i] + s c[i] in the same rounds. That results agree is found out before anything
is timed; a work that disagrees has no ratio.

Not for: what is measured (the other files of this folder), or how rows are shown (`benchmarks.__main__`).
"""

import importlib.util
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.apply import triad
from musclecal.records import Floats

_TRIAD_LENGTH = 4_000_000
_TRIAD_BYTES = 24.0


def processor() -> str:
    """Kind of processor."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    lines = (line.partition(":") for line in information.read_text(encoding="utf-8").splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    return f"{fields.get('model name', platform.processor())}, model {fields.get('model', '?')}"


@dataclass(frozen=True)
class Effort:
    """How large the works are (1: as in the documents), and how long a row may be timed.

    Attributes
    ----------
    scale : factor on the numbers of units. rounds : at most. seconds : no round begins later, but for the second.
    """

    scale: float = 1.0
    rounds: int = 25
    seconds: float = 6.0

    def of(self, number: float, at_least: int = 1) -> int:
        """``number`` of units, scaled."""
        return max(at_least, round(self.scale * number))


@dataclass(frozen=True)
class Difference:
    """By how much two results differ, and what is allowed; inf where the number is only told."""

    what: str
    value: float
    limit: float = math.inf

    @property
    def allowed(self) -> bool:
        """False for nan."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Timed:
    """A call that does ``units`` of work. It has been called before, so that it is compiled."""

    run: Callable[[], object]
    units: float


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to the same result. ``ours``: where not the call of the work is the one that is alike."""

    timed: Timed
    differences: tuple[Difference, ...]
    ours: Timed | None = None


@dataclass(frozen=True)
class Work:
    """One thing that is done by us and by peers.

    Attributes
    ----------
    unit : of which rates are numbers a second.
    bytes_per_unit : that have to be moved; None where arithmetic is the limit.
    peers : makers of those that the package depends on anyhow. others : of the rest; ImportError is "not installed".
    aims : least ratio, by peer. close : called when all rows are there.
    """

    name: str
    unit: str
    ours: Timed
    bytes_per_unit: float | None
    peers: Mapping[str, Callable[[], Peer]]
    others: Mapping[str, Callable[[], Peer]] = field(default_factory=dict)
    aims: Mapping[str, float] = field(default_factory=dict)
    threads: int = 1
    close: Callable[[], object] = field(default=lambda: None)


@dataclass(frozen=True)
class Row:
    """One work beside one peer. ``ours`` and ``theirs`` are units per second; ``of_triad`` a fraction of the memory."""

    work: str
    peer: str
    unit: str
    ours: float
    theirs: float
    differences: tuple[Difference, ...]
    threads: int
    load: float
    of_triad: float | None = None
    aim: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether every difference is allowed."""
        return all(difference.allowed for difference in self.differences)

    @property
    def ratio(self) -> float | None:
        """ours/theirs; None where the results do not agree."""
        return self.ours / self.theirs if self.agrees else None

    def as_json(self) -> dict[str, object]:
        """For one line."""
        return {
            "work": self.work,
            "peer": self.peer,
            "unit": self.unit,
            "ours": self.ours,
            "theirs": self.theirs,
            "ratio": self.ratio,
            "aim": self.aim,
            "agreement": {d.what: d.value for d in self.differences},
            "limits": {d.what: d.limit for d in self.differences if math.isfinite(d.limit)},
            "threads": self.threads,
            "of_triad": self.of_triad,
            "load": self.load,
        }


def tell(message: str) -> None:
    """Progress."""
    print(message, file=sys.stderr, flush=True)


def need(module: str) -> None:
    """ImportError, before any work, where ``module`` is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"no module {module}")


@cache
def _triad_arrays() -> tuple[Floats, Floats, Floats]:
    arrays = tuple(np.full(_TRIAD_LENGTH, value) for value in (0.0, 1.0, 2.0))
    triad(*arrays, 2.0)
    return arrays[0], arrays[1], arrays[2]


def triad_run() -> Timed:
    """Units are bytes."""
    a, b, c = _triad_arrays()
    return Timed(lambda: triad(a, b, c, 2.0), _TRIAD_BYTES * a.size)


def in_turns(runs: Mapping[str, Timed], effort: Effort) -> dict[str, float]:
    """Units per second of each in its best round."""
    seconds = dict.fromkeys(runs, math.inf)
    begin = time.perf_counter()
    for n in range(effort.rounds):
        if n >= 2 and time.perf_counter() - begin > effort.seconds:
            break
        for name, timed in runs.items():
            start = time.perf_counter()
            timed.run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: timed.units / seconds[name] for name, timed in runs.items()}


def _row(work: Work, name: str, peer: Peer, effort: Effort) -> Row:
    runs = {"ours": peer.ours or work.ours, "theirs": peer.timed, "triad": triad_run()}
    rates = in_turns(runs, effort)
    moved = None if work.bytes_per_unit is None else rates["ours"] * work.bytes_per_unit
    return Row(
        work.name, name, work.unit, rates["ours"], rates["theirs"], peer.differences, work.threads,
        os.getloadavg()[0], None if moved is None else moved / rates["triad"], work.aims.get(name),
    )  # fmt: skip


def rows_of(work: Work, effort: Effort, others: bool) -> Iterator[Row]:
    """A row for each peer that is installed."""
    try:
        for name, make in {**work.peers, **(work.others if others else {})}.items():
            tell(f"{work.name}: {name}")
            try:
                peer = make()
            except ImportError as error:
                tell(f"{work.name}: {name} is not installed ({error})")
                continue
            yield _row(work, name, peer, effort)
    finally:
        work.close()


def largest(difference: Floats) -> float:
    """Largest of absolute values; nan if there is one, or nothing."""
    return float(np.max(np.abs(difference))) if np.size(difference) else math.nan
