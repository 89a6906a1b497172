"""The resolution of simulated muons from their own generator-level momenta, muon by muon.

Cells are in the true pT: in measured pT a falling spectrum would widen and shift the residuals. Events must not be
selected on the measured momentum of the muons near the edges of the cells, nor tightly on the mass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from musclecal.binning import bin_of
from musclecal.compiled import in_order, kernel
from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats, Ints, MuonResiduals

__all__ = ["core_variance", "fill_residuals", "fill_residuals_by_charge", "joined_residuals"]

_CORE = 4.0
_INSIDE = 0.998866
"""Variance of a unit Gaussian cut at +-4: 1 - 8 phi(4)/(2 Phi(4) - 1)."""
_PT_UNIT = 2.0**-20


@kernel
def _count(
    pt: Floats, gen_pt: Floats, gen_eta: Floats, eta_edges: Floats, pt_edges: Floats, reach: float, unit: float,
    counts: Ints, sums: Ints, beyond: Ints,
) -> None:  # fmt: skip
    n_residual = counts.shape[2]
    for n in range(pt.size):
        i, j = bin_of(eta_edges, gen_eta[n]), bin_of(pt_edges, gen_pt[n])
        if i < 0 or j < 0 or not pt[n] > 0.0:
            continue
        b = int(np.floor((gen_pt[n] / pt[n] - 1.0 + reach) / (2.0 * reach) * n_residual))
        if b < 0 or b >= n_residual:
            beyond[0] += 1
            continue
        counts[i, j, b] += 1
        sums[i, j, 0] += int(round(gen_pt[n] / unit))
        sums[i, j, 1] += int(round(gen_pt[n] * gen_pt[n] / unit))


def fill_residuals(
    chunks: Iterable[DimuonEvents],
    eta_edges: Floats,
    pt_edges: Floats,
    *,
    reach: float = 0.25,
    bins: int = 1000,
    threads: int | None = None,
) -> MuonResiduals:
    """Count k_measured/k_true - 1 of both muons; the result does not depend on chunks or threads.

    Parameters
    ----------
    chunks : simulated events with generator-level muons.
    eta_edges, pt_edges : of the cells, the latter (GeV) in true pT and well inside what was selected.
    reach, bins : of the residual axis.

    Raises
    ------
    InputError : no generator-level muons, or none in the cells.
    """
    counts, sums, beyond = _filled(chunks, eta_edges, pt_edges, reach, bins, threads)
    return _residuals(eta_edges, pt_edges, reach, counts.sum(axis=0), sums.sum(axis=0), beyond.sum())


def fill_residuals_by_charge(
    chunks: Iterable[DimuonEvents],
    eta_edges: Floats,
    pt_edges: Floats,
    *,
    reach: float = 0.25,
    bins: int = 1000,
    threads: int | None = None,
) -> tuple[MuonResiduals, MuonResiduals]:
    """The same as `fill_residuals` for mu+ and for mu- by themselves."""
    filled = _filled(chunks, eta_edges, pt_edges, reach, bins, threads)
    plus, minus = (
        _residuals(eta_edges, pt_edges, reach, counts, sums, beyond)
        for counts, sums, beyond in zip(*filled, strict=True)
    )
    return plus, minus


def _filled(
    chunks: Iterable[DimuonEvents], eta_edges: Floats, pt_edges: Floats, reach: float, bins: int, threads: int | None
) -> tuple[Ints, Ints, Ints]:  # fmt: skip
    """Counts, sums of pT and its square, muons beyond: (2, ...) of mu+, then of mu-."""
    eta_edges, pt_edges = (np.ascontiguousarray(x, dtype=np.float64) for x in (eta_edges, pt_edges))
    cells = (2, len(eta_edges) - 1, len(pt_edges) - 1)

    def work(events: DimuonEvents) -> tuple[Ints, Ints, Ints]:
        if events.gen_plus is None or events.gen_minus is None:
            raise InputError("resolution: the simulation has no generator-level muons (gen_* columns)")
        counts, sums = np.zeros((*cells, bins), dtype=np.int64), np.zeros((*cells, 2), dtype=np.int64)
        beyond = np.zeros((2, 1), dtype=np.int64)
        for i, (muons, true) in enumerate(((events.plus, events.gen_plus), (events.minus, events.gen_minus))):
            _count(
                muons.pt,
                true.pt,
                true.eta,
                eta_edges,
                pt_edges,
                reach,
                _PT_UNIT,
                counts[i],
                sums[i],
                beyond[i],
            )
        return counts, sums, beyond

    total: tuple[Ints, Ints, Ints] | None = None
    for parts in in_order(work, chunks, threads):
        total = parts if total is None else (total[0] + parts[0], total[1] + parts[1], total[2] + parts[2])
    if total is None or not total[0].sum():
        raise InputError("resolution: no simulated muon in the cells of eta and true pT")
    return total


def _residuals(
    eta_edges: Floats, pt_edges: Floats, reach: float, counts: Ints, sums: Ints, beyond: Ints
) -> MuonResiduals:  # fmt: skip
    eta_edges, pt_edges = (np.array(x, dtype=np.float64) for x in (eta_edges, pt_edges))
    means = sums * _PT_UNIT / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    return MuonResiduals(
        eta_edges, pt_edges, counts, reach, means[:, :, 0], means[:, :, 1], int(beyond.sum())
    )


def joined_residuals(parts: Sequence[MuonResiduals]) -> MuonResiduals:
    """The cells of several samples beside each other: each sample in the momenta that its selection does not cut.

    The pT edges of the whole then do not increase from part to part; cells are known by their average pT.
    """
    first = parts[0]
    return replace(
        first,
        pt_edges=np.concatenate([part.pt_edges for part in parts]),
        counts=np.concatenate([part.counts for part in parts], axis=1),
        mean_pt=np.concatenate([part.mean_pt for part in parts], axis=1),
        mean_pt2=np.concatenate([part.mean_pt2 for part in parts], axis=1),
        n_beyond=sum(part.n_beyond for part in parts),
    )


def core_variance(residuals: MuonResiduals) -> tuple[Floats, Ints]:
    """((n_eta, n_pt) variance within four standard deviations, as if Gaussian; muons within them).

    Tails beyond are left out: a fitted mass width does not follow them either. NaN in cells with fewer than two muons.
    """
    n_residual = residuals.counts.shape[2]
    step = 2.0 * residuals.reach / n_residual
    x = -residuals.reach + step * (np.arange(n_residual) + 0.5)
    counts = residuals.counts.astype(np.float64)
    inside = np.ones(counts.shape, dtype=bool)
    for _ in range(20):
        kept = counts * inside
        n = kept.sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (kept @ x) / n
            square = ((x - mean[:, :, None]) ** 2 * kept).sum(axis=2) / (n - 1.0)
            # Sheppard: equal bins widen the variance by step^2/12.
            variance = np.where(
                n > 1.0, (square - step**2 / 12.0) / (1.0 if inside.all() else _INSIDE), np.nan
            )
            now = np.abs(x - mean[:, :, None]) <= _CORE * np.sqrt(variance)[:, :, None]
        if np.array_equal(now, inside):
            break
        inside = now
    return variance, n.astype(np.int64)
