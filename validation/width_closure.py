"""Closure of widths: the mass widths of data over those of simulation, region by region, after smearing.

A region holds the 4D bins in which the muon with the larger abs(eta) is in one eta bin and the muon with the larger pT
in some neighbouring pT bins: every 4D bin is in one region, so the regions are independent. pT bins are joined until
the ratio is known to better than ``precision``.
"""

import numpy as np
from scipy.special import chdtrc

from musclecal.errors import InputError
from musclecal.records import Floats, Ints, MassWidths, WidthClosure

__all__ = ["width_closure"]


def _outer_and_harder(widths: MassWidths) -> tuple[Ints, Ints]:
    """(n_bin,) eta bin of the muon with the larger abs(eta) (mu+ of equal ones), and the higher of the pT bins."""
    i, j, k, m = widths.binning.unravel(widths.bins)
    edges = np.array(widths.binning.eta_edges)
    middle = np.abs(edges[1:] + edges[:-1])
    return np.where(middle[i] >= middle[j], i, j), np.maximum(k, m)


def _sums(widths: MassWidths) -> tuple[Floats, Floats, Floats]:
    """(n_bin,) weighted w^2 of data and of simulation, and the variance of their difference."""
    variance = widths.data_error**2 + widths.simulation_error**2
    return widths.data / variance, widths.simulation / variance, 1.0 / variance


def _joined(
    pt_bin: Ints, simulation: Floats, variance: Floats, precision: float, n_pt: int
) -> list[list[int]]:
    """Groups of neighbouring pT bins, from below, each with an expected error of the ratio below ``precision``."""
    total = np.stack([np.bincount(pt_bin, x, n_pt) for x in (simulation, variance)])
    groups: list[list[int]] = []
    waiting: list[int] = []
    for p in range(n_pt):
        waiting.append(p)
        s, v = total[:, waiting].sum(axis=1)
        if s > 0.0 and 0.5 * np.sqrt(v) / s < precision:
            groups.append(waiting)
            waiting = []
    if waiting and groups:
        groups[-1] += waiting
    elif waiting:
        groups.append(waiting)
    return groups


def width_closure(widths: MassWidths, *, used: bool, precision: float = 0.03) -> WidthClosure:
    """Ratios of the widths of data and simulation of one resonance.

    Parameters
    ----------
    widths : of data and smeared simulation (`musclecal.fits.widths`).
    used : whether the resolution was derived from these events: the fitted parameters then take up a part of chi2.
    precision : wanted error of each ratio.

    Raises
    ------
    InputError : the widths of the simulation are not positive where they are averaged.
    """
    eta_bin, pt_bin = _outer_and_harder(widths)
    data, simulation, variance = _sums(widths)
    rows = []
    for n in np.unique(eta_bin):
        here = eta_bin == n
        for group in _joined(pt_bin[here], simulation[here], variance[here], precision, widths.binning.n_pt):
            inside = here & np.isin(pt_bin, group)
            if np.any(inside):
                d, s, v = data[inside].sum(), simulation[inside].sum(), variance[inside].sum()
                rows.append((n, group[0], group[-1] + 1, d, s, v, widths.n_events[inside].sum()))
    table = np.array(rows)
    d, s, v = table[:, 3], table[:, 4], table[:, 5]
    if np.any(s <= 0.0):
        worst = int(np.argmin(s))
        low, high = np.array(widths.binning.eta_edges)[int(table[worst, 0]) + np.array([0, 1])]
        raise InputError(f"width closure: too few simulated events at {low:g} < eta < {high:g}")
    # The test is on the differences, which are Gaussian in the smallest region too; the ratio is what people read.
    chi2, error = float(np.sum((d - s) ** 2 / v)), 0.5 * np.sqrt(v) / s
    weight = 1.0 / error**2
    ratio = np.sqrt(np.maximum(d, 0.0) / s)
    return WidthClosure(
        resonance=widths.resonance,
        used=used,
        eta_edges=np.array(widths.binning.eta_edges),
        pt_edges=np.array(widths.binning.pt_edges),
        eta_bin=table[:, 0].astype(np.int64),
        pt_bins=table[:, 1:3].astype(np.int64),
        ratio=ratio,
        error=error,
        n_events=table[:, 6],
        chi2=chi2,
        ndf=len(table),
        p_value=float(chdtrc(len(table), chi2)),
        mean=float(np.average(ratio, weights=weight)),
        mean_error=float(weight.sum() ** -0.5),
    )
