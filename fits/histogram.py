"""Fill muon pairs into 4D x mass histograms.

Everything that is summed is an integer (curvatures and weights in units of a power of two), so the result is the
same to the bit for any chunk size, number of threads and order of files.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from musclecal.binning import Binning, search_axis
from musclecal.compiled import in_order
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.fits.fill_kernels import N_VALUES, FillAxes, FillTables, add_pairs
from musclecal.fits.sparse_sums import SparseSums
from musclecal.records import CutFlow, DimuonEvents, Floats, MassHistogram

__all__ = ["MassSums", "as_hist", "fill", "mass_sums", "merged"]

# Units of the integer sums. Columns: k+, k-, 1/k+, 1/k-, f+, f-, 1/k+^2, 1/k-^2. A sum of 1e9
# events at the largest values (k = 1, pT = 1000 GeV) stays below 2^63.
_UNITS = 2.0 ** np.array([32, 32, 22, 22, 32, 32, 12, 12])
_WEIGHT_UNIT = 2.0**32
_SOME_GENERATOR = "some of the samples have generator-level muons, others have none"
_OVERFLOW = "histogram: an integer sum overflowed; fill fewer than 1e9 events at a time, or scale the weights"


def _axes(binning: Binning) -> FillAxes:
    first, last = binning.generator_range
    generator = binning.mass_reference * np.exp(binning.log_step * (np.arange(first, last + 2) - 0.5))
    return FillAxes(
        search_axis(binning.eta_edges), search_axis(binning.pt_edges), search_axis(binning.mass_edges**2),
        search_axis(generator), binning.mass_reference if binning.pt_scaled else 0.0,
    )  # fmt: skip


class _Sums:
    """What one thread has added up; the rows of 4D bins stand in the order in which they were met."""

    def __init__(self, binning: Binning, with_generator: bool, weighted: bool) -> None:
        self._n_bins, self._axes = binning.n_bins, _axes(binning)
        self._row_of, self._state = np.full(binning.n_bins, -1), np.zeros(2, dtype=np.int64)
        n_gen = len(self._axes.generator.edges) - 3 if with_generator else 0
        columns = {
            "counts": binning.mass_bins, "variances": binning.mass_bins if weighted else 0, "generator": n_gen,
            "sums": N_VALUES,
        }  # fmt: skip
        self._tables = {name: np.zeros((0, n), dtype=np.int64) for name, n in columns.items()}

    def add(self, events: DimuonEvents, weights: Floats | None) -> None:
        """Raises OverflowError."""
        used = int(self._state[0])
        self._make_room(used, used + len(events))
        plus, minus = events.plus, events.minus
        gen_mass = events.gen_mass if self._tables["generator"].shape[1] else None
        none = np.empty(0)
        whole = add_pairs(
            plus.pt, plus.eta, plus.phi, minus.pt, minus.eta, minus.phi, none if gen_mass is None else gen_mass,
            none if weights is None else weights, MUON_MASS, self._axes, _UNITS, _WEIGHT_UNIT,
            FillTables(self._row_of, self._state, **self._tables),
        )  # fmt: skip
        if not whole:
            raise OverflowError(_OVERFLOW)

    def _make_room(self, used: int, wanted: int) -> None:
        """Rows up to ``wanted``, of all 4D bins at most. Memory that is not written to is not taken."""
        room = len(self._tables["counts"])
        wanted = min(wanted, self._n_bins)
        if room >= wanted:
            return
        for name, table in self._tables.items():
            larger = np.zeros((min(max(wanted, 2 * room), self._n_bins), table.shape[1]), dtype=np.int64)
            larger[:used] = table[:used]
            self._tables[name] = larger

    @property
    def occupied(self) -> SparseSums:
        """In the order of 4D bins."""
        bins = np.flatnonzero(self._row_of >= 0)
        rows = self._row_of[bins]
        return SparseSums(
            bins, {name: table[rows] for name, table in self._tables.items()}, int(self._state[1])
        )


@dataclass(frozen=True)
class MassSums:
    """Sums of a part of a sample. Those of two parts add up, exactly, whichever comes first.

    Attributes
    ----------
    sums : of 4D bins; None of no chunk at all. weighted, with_generator : which there are.
    flows : cut flow of each sample.
    """

    binning: Binning
    weighted: bool
    sums: SparseSums | None = None
    with_generator: bool = False
    flows: Mapping[str, CutFlow] = field(default_factory=dict)

    def __add__(self, other: "MassSums") -> "MassSums":
        """Raises InputError where one has generator-level muons and the other has none; OverflowError."""
        names = (*self.flows, *(name for name in other.flows if name not in self.flows))
        flows = {name: self.flows.get(name, CutFlow()) + other.flows.get(name, CutFlow()) for name in names}
        if self.sums is None or other.sums is None:
            return replace(other if self.sums is None else self, flows=flows)
        if self.with_generator != other.with_generator:
            raise InputError(_SOME_GENERATOR)
        total = self.sums + other.sums
        # All entries are sums of positive numbers: a negative one has overflowed
        if any(table.size and table.min() < 0 for table in total.tables.values()):
            raise OverflowError(_OVERFLOW)
        return replace(self, sums=total, flows=flows)

    def histogram(self) -> MassHistogram:
        """Raises InputError if there is no event inside the binning."""
        if self.sums is None or not self.sums.tables["counts"].any():
            raise InputError(
                "no event inside the binning and the mass window: check units, mass_window and edges"
            )
        total = self.sums.only(self.sums.tables["counts"].sum(axis=1) > 0)
        counts, variances, generator, sums = (
            total.tables[name] for name in ("counts", "variances", "generator", "sums")
        )
        unit = _WEIGHT_UNIT if self.weighted else 1
        means = sums / _UNITS / (counts.sum(axis=1, keepdims=True) / unit)
        return MassHistogram(
            binning=self.binning,
            bins=total.bins,
            counts=counts / unit if self.weighted else counts,
            mean_k=means[:, 0:2],
            mean_pt=means[:, 2:4],
            mean_f=means[:, 4:6],
            generator=(generator / unit if self.weighted else generator) if self.with_generator else None,
            variances=variances / unit if self.weighted else None,
            n_outside=total.n_outside,
            cut_flows=self.flows,
            mean_pt2=means[:, 6:8],
        )


def mass_sums(
    chunks: Iterable[DimuonEvents], binning: Binning, *, weight: Callable[[DimuonEvents], Floats] | None = None,
    threads: int | None = None,
) -> MassSums:  # fmt: skip
    """Sums of all chunks, as `fill` takes them; without cut flows.

    Raises
    ------
    InputError : a weight out of range, or chunks of which only some have generator-level muons.
    """
    idle: list[_Sums] = []
    with_generator: bool | None = None

    def prepared() -> Iterable[tuple[DimuonEvents, bool]]:
        nonlocal with_generator
        for events in chunks:
            has_generator = events.gen_plus is not None
            if with_generator is None:
                with_generator = has_generator
            elif has_generator != with_generator:
                raise InputError(_SOME_GENERATOR)
            yield events, with_generator

    def work(item: tuple[DimuonEvents, bool]) -> None:
        events, generator = item
        weights = None if weight is None else np.ascontiguousarray(weight(events), dtype=np.float64)
        if weights is not None and not np.all((weights == 0.0) | ((weights >= 1e-3) & (weights < 1e4))):
            raise InputError("weights must be 0 or between 1e-3 and 1e4: divide them by their mean")
        try:
            mine = idle.pop()
        except IndexError:
            mine = _Sums(binning, generator, weight is not None)
        mine.add(events, weights)
        idle.append(mine)

    for _ in in_order(work, prepared(), threads):
        pass
    total = MassSums(binning, weight is not None)
    for each in idle:
        total += replace(total, sums=each.occupied, with_generator=bool(with_generator))
    return total


def fill(
    chunks: Iterable[DimuonEvents],
    binning: Binning,
    *,
    weight: Callable[[DimuonEvents], Floats] | None = None,
    cut_flows: Callable[[], Mapping[str, CutFlow]] = dict,
    threads: int | None = None,
) -> MassHistogram:
    """Fill all chunks; the mass is computed from both muons with the muon mass.

    Parameters
    ----------
    chunks : selected events; simulated ones should not be cut on their measured mass. The generator histogram is
        filled if the first chunk has generator-level muons.
    weight : gives the weights (n_event,) of a chunk, 0 or 1e-3 to 1e4; None counts events.
    cut_flows : asked at the end for the cut flows to keep with the histogram.

    Raises
    ------
    InputError : no event inside the binning, or a weight out of range.
    """
    sums = mass_sums(chunks, binning, weight=weight, threads=threads)
    return replace(sums, flows=cut_flows()).histogram()


def merged(histogram: MassHistogram) -> MassHistogram:
    """All 4D bins as one: the inclusive mass distribution, in the binning's outer edges."""
    b = histogram.binning
    outer = replace(b, eta_edges=(b.eta_edges[0], b.eta_edges[-1]), pt_edges=(b.pt_edges[0], b.pt_edges[-1]))
    events = histogram.counts.sum(axis=1)

    def mean(table: Floats) -> Floats:
        return np.average(table, axis=0, weights=events, keepdims=True)

    return replace(
        histogram,
        binning=outer,
        bins=np.zeros(1, dtype=np.int64),
        counts=histogram.counts.sum(axis=0, keepdims=True),
        variances=None if histogram.variances is None else histogram.variances.sum(axis=0, keepdims=True),
        generator=None if histogram.generator is None else histogram.generator.sum(axis=0, keepdims=True),
        mean_k=mean(histogram.mean_k),
        mean_pt=mean(histogram.mean_pt),
        mean_f=mean(histogram.mean_f),
        mean_pt2=None if histogram.mean_pt2 is None else mean(histogram.mean_pt2),
    )


def as_hist(histogram: MassHistogram, *, keep: tuple[str, ...] = ("mass",)):  # type: ignore[no-untyped-def]
    """A `hist.Hist` of the axes in ``keep`` (of eta_plus, eta_minus, pt_plus, pt_minus, mass), summed over the others.

    The full 5D histogram would be almost empty, so choose the axes that are looked at.
    """
    import hist

    b = histogram.binning
    names = ("eta_plus", "eta_minus", "pt_plus", "pt_minus", "mass")
    unknown = set(keep) - set(names)
    if unknown:
        raise InputError(f"unknown axis {sorted(unknown)[0]!r}: known are {', '.join(names)}")
    edges = dict(
        zip(names, (b.eta_edges, b.eta_edges, b.pt_edges, b.pt_edges, tuple(b.mass_edges)), strict=True)
    )
    rows, mass = np.nonzero(histogram.counts)
    index = dict(zip(names, (*b.unravel(histogram.bins[rows]), mass), strict=True))
    shape = tuple(len(edges[name]) - 1 for name in keep)
    flat = np.ravel_multi_index(tuple(index[name] for name in keep), shape)
    size = math.prod(shape)
    counts = np.bincount(flat, histogram.counts[rows, mass], size).reshape(shape)
    variances = histogram.counts if histogram.variances is None else histogram.variances
    squares = np.bincount(flat, variances[rows, mass], size).reshape(shape)
    axes = [hist.axis.Variable(edges[name], name=name, flow=False) for name in keep]
    out = hist.Hist(*axes, storage=hist.storage.Weight())
    out.view().value, out.view().variance = counts, squares
    return out
