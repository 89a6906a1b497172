"""Apply a correction to muons in memory. Muons outside the eta range of the correction keep their momentum."""

import numpy as np

from musclecal.binning import bin_of
from musclecal.compiled import kernel
from musclecal.records import DimuonEvents, Floats, Muons, ScaleParameters
from musclecal.scale import corrected_curvature

__all__ = ["correct", "corrected_pt"]


@kernel
def _corrected_pt(
    pt: Floats, eta: Floats, charge: float, edges: Floats, a: Floats, e: Floats, m: Floats, out: Floats
) -> None:
    for n in range(pt.size):
        i = bin_of(edges, eta[n])
        out[n] = pt[n] if i < 0 else 1.0 / corrected_curvature(1.0 / pt[n], charge, a[i], e[i], m[i])


def corrected_pt(muons: Muons, charge: int, scale: ScaleParameters) -> Floats:
    """Corrected transverse momenta, (n_event,) GeV, of muons that all have ``charge`` (+1 or -1)."""
    out = np.empty(len(muons))
    _corrected_pt(
        muons.pt, muons.eta, float(charge), np.asarray(scale.eta_edges), scale.A, scale.e, scale.M, out
    )
    return out


def correct(events: DimuonEvents, scale: ScaleParameters) -> DimuonEvents:
    """The events with both measured momenta corrected; angles are left as they are."""
    return events.with_momenta(corrected_pt(events.plus, +1, scale), corrected_pt(events.minus, -1, scale))
