"""Apply a correction in phi or in run ranges to muons in memory, after the one that it was derived on.

Muons outside its eta range or its run ranges keep their momentum. A covariance is not needed here.
"""

import math

import numpy as np

from musclecal.binning import bin_of, sector_of
from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats, Ints, Muons, PhiRefinement, RunRefinement
from musclecal.scale import corrected_curvature

__all__ = ["refine"]


@kernel
def _pt_in_waves(
    pt: Floats, eta: Floats, phi: Floats, charge: float, edges: Floats, harmonics: Ints, a: Floats, m: Floats,
    out: Floats,
) -> None:  # fmt: skip
    for n in range(pt.size):
        i = bin_of(edges, eta[n])
        out[n] = pt[n]
        if i < 0:
            continue
        a_here, m_here = a[i, 0], m[i, 0]
        for h in range(harmonics.size):
            cos, sin = math.cos(harmonics[h] * phi[n]), math.sin(harmonics[h] * phi[n])
            a_here += a[i, 1 + 2 * h] * cos + a[i, 2 + 2 * h] * sin
            m_here += m[i, 1 + 2 * h] * cos + m[i, 2 + 2 * h] * sin
        out[n] = 1.0 / corrected_curvature(1.0 / pt[n], charge, a_here, 0.0, m_here)


@kernel
def _pt_in_sectors(
    pt: Floats, eta: Floats, phi: Floats, charge: float, edges: Floats, a: Floats, m: Floats, out: Floats
) -> None:
    for n in range(pt.size):
        i = bin_of(edges, eta[n])
        out[n] = pt[n]
        if i >= 0:
            s = sector_of(phi[n], a.shape[1])
            out[n] = 1.0 / corrected_curvature(1.0 / pt[n], charge, a[i, s], 0.0, m[i, s])


@kernel
def _pt_in_runs(
    pt: Floats, eta: Floats, run: Ints, charge: float, edges: Floats, run_edges: Floats, a: Floats, m: Floats,
    out: Floats,
) -> None:  # fmt: skip
    for n in range(pt.size):
        i, r = bin_of(edges, eta[n]), bin_of(run_edges, float(run[n]))
        out[n] = pt[n]
        if i >= 0 and r >= 0:
            out[n] = 1.0 / corrected_curvature(1.0 / pt[n], charge, a[r, i], 0.0, m[r, i])


def _refined_pt(
    muons: Muons, run: Ints | None, charge: float, refinement: PhiRefinement | RunRefinement
) -> Floats:
    out = np.empty(len(muons))
    edges, a, m = (np.ascontiguousarray(x) for x in (refinement.eta_edges, refinement.A, refinement.M))
    if isinstance(refinement, RunRefinement):
        if run is None:
            raise InputError("refinement in run ranges: the events have no run numbers")
        run_edges = np.array(refinement.run_edges, dtype=np.float64)
        _pt_in_runs(muons.pt, muons.eta, run, charge, edges, run_edges, a, m, out)
    elif refinement.harmonics:
        harmonics = np.array(refinement.harmonics, dtype=np.int64)
        _pt_in_waves(muons.pt, muons.eta, muons.phi, charge, edges, harmonics, a, m, out)
    else:
        _pt_in_sectors(muons.pt, muons.eta, muons.phi, charge, edges, a, m, out)
    return out


def refine(events: DimuonEvents, refinement: PhiRefinement | RunRefinement) -> DimuonEvents:
    """The events with both measured momenta corrected; angles are left as they are.

    Raises
    ------
    InputError : run ranges for events without run numbers.
    """
    return events.with_momenta(
        _refined_pt(events.plus, events.run, 1.0, refinement),
        _refined_pt(events.minus, events.run, -1.0, refinement),
    )
