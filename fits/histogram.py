"""Fill muon pairs into 4D x mass histograms.

Everything that is summed is an integer (curvatures and weights in units of a power of two), so the result is the
same to the bit for any chunk size, number of threads and order of files.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from musclecal.binning import Binning, bin_of
from musclecal.compiled import in_order, kernel
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.fits.sparse_sums import SparseSums
from musclecal.kinematics import mass_factors, pair_mass
from musclecal.records import CutFlow, DimuonEvents, Floats, Ints, MassHistogram

__all__ = ["as_hist", "fill", "merged"]

# Units of the integer sums. Columns: k+, k-, 1/k+, 1/k-, f+, f-, 1/k+^2, 1/k-^2 and the weight itself. A sum of 1e9
# events at the largest values (k = 1, pT = 1000 GeV) stays below 2^63.
_UNITS = 2.0 ** np.array([32, 32, 22, 22, 32, 32, 12, 12, 32])
_WEIGHT_UNIT = 2.0**32
_OVERFLOW = "histogram: an integer sum overflowed; fill fewer than 1e9 events at a time, or scale the weights"


@kernel
def _locate(
    pt_plus: Floats, eta_plus: Floats, phi_plus: Floats, pt_minus: Floats, eta_minus: Floats, phi_minus: Floats,
    gen_mass: Floats, eta_edges: Floats, pt_edges: Floats, pt_scaled: bool, m_low: float, m_ref: float, step: float,
    n_mass: int, gen_first: int, n_gen: int, mu: float,
    number: Ints, mass_bin: Ints, gen_bin: Ints, values: Floats,
) -> None:  # fmt: skip
    """4D bin number, mass bin, generator bin (each -1 outside) and the summed values of each pair."""
    n_eta, n_pt = eta_edges.size - 1, pt_edges.size - 1
    for n in range(pt_plus.size):
        number[n] = mass_bin[n] = gen_bin[n] = -1
        p, q = pt_plus[n], pt_minus[n]
        mass = pair_mass(p, eta_plus[n], phi_plus[n], q, eta_minus[n], phi_minus[n], mu)
        if not mass > 0.0:
            continue
        common = m_ref / mass if pt_scaled else 1.0
        i, j = bin_of(eta_edges, eta_plus[n]), bin_of(eta_edges, eta_minus[n])
        k, m = bin_of(pt_edges, p * common), bin_of(pt_edges, q * common)
        if min(i, j, k, m) < 0:
            continue
        b = int(math.floor(math.log(mass / m_low) / step))
        if 0 <= b < n_mass:
            mass_bin[n] = b
        number[n] = ((i * n_eta + j) * n_pt + k) * n_pt + m
        f_plus, f_minus = mass_factors(p, eta_plus[n], q, eta_minus[n], mass, mu)
        values[n, 0], values[n, 1], values[n, 2], values[n, 3] = 1.0 / p, 1.0 / q, p, q
        values[n, 4], values[n, 5], values[n, 6], values[n, 7] = f_plus, f_minus, p * p, q * q
        if gen_mass.size and gen_mass[n] > 0.0:
            g = int(math.floor(math.log(gen_mass[n] / m_ref) / step + 0.5)) - gen_first
            if 0 <= g < n_gen:
                gen_bin[n] = g


@kernel
def _accumulate(
    number: Ints, mass_bin: Ints, gen_bin: Ints, values: Floats, weights: Floats, row_of: Ints, units: Floats,
    weight_unit: float, counts: Ints, variances: Ints, generator: Ints, sums: Ints,
) -> bool:  # fmt: skip
    """Add every located pair to its row; False when a sum has passed 2^63 (at once: later it could be positive again).

    Without weights, ``variances`` is empty and counts are plain counts.
    """
    weighted = weights.size > 0
    for n in range(number.size):
        if number[n] < 0:
            continue
        row = row_of[number[n]]
        w = weights[n] if weighted else 1.0
        if gen_bin[n] >= 0:
            generator[row, gen_bin[n]] += int(round(w * weight_unit)) if weighted else 1
            if generator[row, gen_bin[n]] < 0:
                return False
        if mass_bin[n] < 0:
            continue
        if weighted:
            counts[row, mass_bin[n]] += int(round(w * weight_unit))
            variances[row, mass_bin[n]] += int(round(w * w * weight_unit))
            if counts[row, mass_bin[n]] < 0 or variances[row, mass_bin[n]] < 0:
                return False
        else:
            counts[row, mass_bin[n]] += 1
        last = int(values.shape[1])
        for c in range(last):
            sums[row, c] += int(round(w * values[n, c] * units[c]))
            if sums[row, c] < 0:
                return False
        sums[row, last] += int(round(w * units[last]))
        if sums[row, last] < 0:
            return False
    return True


def _fill_chunk(
    events: DimuonEvents, weights: Floats | None, binning: Binning, with_generator: bool
) -> SparseSums:
    n = len(events)
    first, last = binning.generator_range
    n_gen = last - first + 1 if with_generator else 0
    number, mass_bin, gen_bin = (np.empty(n, dtype=np.int64) for _ in range(3))
    values = np.empty((n, len(_UNITS) - 1))
    gen_mass = events.gen_mass if with_generator else None
    plus, minus = events.plus, events.minus
    _locate(
        plus.pt, plus.eta, plus.phi, minus.pt, minus.eta, minus.phi,
        np.empty(0) if gen_mass is None else gen_mass, np.asarray(binning.eta_edges), np.asarray(binning.pt_edges),
        binning.pt_scaled, binning.mass_window[0], binning.mass_reference, binning.log_step, binning.mass_bins,
        first, n_gen, MUON_MASS, number, mass_bin, gen_bin, values,
    )  # fmt: skip
    # A pair outside the mass window still counts for the generator-level masses of its 4D bin: a template made of
    # pairs that were smeared into the window would lack those that the next smearing brings in.
    counted = (number >= 0) & (mass_bin >= 0)
    bins = np.unique(number[(number >= 0) & (counted | (gen_bin >= 0))])
    row_of = np.full(binning.n_bins, -1, dtype=np.int64)
    row_of[bins] = np.arange(len(bins))
    shape = (len(bins), binning.mass_bins)
    tables = {
        "counts": np.zeros(shape, dtype=np.int64),
        "variances": np.zeros((len(bins), 0) if weights is None else shape, dtype=np.int64),
        "generator": np.zeros((len(bins), n_gen), dtype=np.int64),
        "sums": np.zeros((len(bins), len(_UNITS)), dtype=np.int64),
    }
    whole = _accumulate(
        number, mass_bin, gen_bin, values, np.empty(0) if weights is None else weights, row_of, _UNITS, _WEIGHT_UNIT,
        *tables.values(),
    )  # fmt: skip
    if not whole:
        raise OverflowError(_OVERFLOW)
    return SparseSums(bins, tables, int(n - np.count_nonzero(counted)))


def _checked(partial: SparseSums) -> SparseSums:
    """All entries are sums of positive numbers: a negative one has overflowed."""
    for table in partial.tables.values():
        if table.size and table.min() < 0:
            raise OverflowError(_OVERFLOW)
    return partial


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
    total: SparseSums | None = None
    with_generator: bool | None = None

    def prepared() -> Iterable[tuple[DimuonEvents, bool]]:
        nonlocal with_generator
        for events in chunks:
            has_generator = events.gen_plus is not None
            if with_generator is None:
                with_generator = has_generator
            elif has_generator != with_generator:
                raise InputError("some of the samples have generator-level muons, others have none")
            yield events, with_generator

    def work(item: tuple[DimuonEvents, bool]) -> SparseSums:
        events, generator = item
        weights = None if weight is None else np.ascontiguousarray(weight(events), dtype=np.float64)
        if weights is not None and not np.all((weights == 0.0) | ((weights >= 1e-3) & (weights < 1e4))):
            raise InputError("weights must be 0 or between 1e-3 and 1e4: divide them by their mean")
        return _fill_chunk(events, weights, binning, generator)

    for partial in in_order(work, prepared(), threads):
        total = _checked(partial if total is None else total + partial)
    if total is None or not total.tables["counts"].any():
        raise InputError(
            "no event inside the binning and the mass window: check units, mass_window and edges"
        )
    weighted = weight is not None
    total = total.only(total.tables["counts"].sum(axis=1) > 0)
    counts, variances, generator, sums = (
        total.tables[name] for name in ("counts", "variances", "generator", "sums")
    )
    means = sums[:, :-1] / _UNITS[:-1] / (sums[:, -1:] / _UNITS[-1])
    unit = _WEIGHT_UNIT if weighted else 1
    return MassHistogram(
        binning=binning,
        bins=total.bins,
        counts=counts / unit if weighted else counts,
        mean_k=means[:, 0:2],
        mean_pt=means[:, 2:4],
        mean_f=means[:, 4:6],
        generator=(generator / unit if weighted else generator) if with_generator else None,
        variances=variances / unit if weighted else None,
        n_outside=total.n_outside,
        cut_flows=cut_flows(),
        mean_pt2=means[:, 6:8],
    )


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
