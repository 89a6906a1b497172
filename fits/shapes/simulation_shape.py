"""Simulation shape: the reconstructed mass shape g(t), t = (m/(s m_ref) - 1)/w, pooled over bins of similar width.

FSR has another size in units of the resolution where the resolution differs, hence classes of equal width. Needs no
generator-level information.
"""

import numpy as np
from scipy.interpolate import CubicSpline

from musclecal.binning import Binning
from musclecal.fits.shapes.cumulative import STANDARD
from musclecal.fits.shapes.log_spline import SplineAxis
from musclecal.fits.shapes.model import SignalModel, on_axis
from musclecal.records import Floats, Ints

__all__ = ["pooled_tables", "simulation_shape", "width_classes"]

_T_LOW, _T_HIGH, _N_NODE = -12.0, 8.0, 201
_AXIS = SplineAxis(_T_LOW, _T_HIGH, _N_NODE, knot_distance=0.4)
_PENALTY = 100.0


def width_classes(width: Floats, events: Floats, pt_pair: Ints, class_events: float) -> Ints:
    """(n_bin,) class number: bins of one pT pair in order of their width, about ``class_events`` in each class.

    pT pairs are kept apart because the edges of a bin in plain pT cut into the mass shape. A class is filled up before
    the next is begun, and the last ones of a pT pair are not left nearly empty.
    """
    classes = np.empty(len(width), dtype=np.int64)
    first = 0
    for pair in np.unique(pt_pair):
        rows = np.flatnonzero(pt_pair == pair)
        rows = rows[np.argsort(width[rows], kind="stable")]
        share = np.cumsum(events[rows]) / events[rows].sum()
        n_classes = max(1, int(events[rows].sum() / class_events))
        classes[rows] = first + np.minimum((share * n_classes).astype(np.int64), n_classes - 1)
        first = int(classes[rows].max()) + 1
    return np.unique(classes, return_inverse=True)[1]


def simulation_shape(
    counts: Floats, scale: Floats, width: Floats, bins: Ints, binning: Binning, class_events: float
) -> SignalModel:
    """Pool the simulation of all bins.

    Parameters
    ----------
    counts : (n_bin, n_mass) of the simulation. scale, width : (n_bin,) of an earlier fit to it.
    bins : (n_bin,) 4D bin numbers. class_events : simulated events that make a class.
    """
    counts = np.asarray(counts, dtype=np.float64)
    events = counts.sum(axis=1)
    _, _, pt_plus, pt_minus = binning.unravel(bins)
    classes = width_classes(width, events, pt_plus * binning.n_pt + pt_minus, class_events)
    mass = scale * binning.mass_reference
    tables = pooled_tables(counts, binning.mass_edges, mass, mass * width, classes)
    return on_axis("simulation-shape", STANDARD, binning, _T_LOW, _AXIS.spacing, tables, classes)


def pooled_tables(
    counts: Floats,
    edges: Floats,
    place: Floats,
    width: Floats,
    classes: Ints,
    *,
    penalty: float = _PENALTY,
    axis: SplineAxis = _AXIS,
) -> Floats:
    """(n_class, 2 n_node) a shape g(t), t = (m - place)/width, per class: cumulative at the nodes, then density there.

    Parameters
    ----------
    counts : (n_row, n_mass) of the simulation. edges : (n_mass + 1,) of the mass bins, GeV.
    place, width : (n_row,) GeV. classes : (n_row,) class numbers from 0, none left out.
    penalty : how strongly ln g is kept near a parabola. axis : of t.
    """
    events = counts.sum(axis=1)
    mass = np.clip(place[:, None] + width[:, None] * axis.nodes, edges[0], edges[-1])
    found = np.diff(_cumulative_at(mass, counts, edges), axis=1)
    looked = np.diff(mass, axis=1) * (events / width)[:, None]
    n_classes = int(classes.max()) + 1
    tables = np.empty((n_classes, 2 * axis.n_node))
    for c in range(n_classes):
        mine = classes == c
        tables[c] = _smooth_table(
            np.maximum(found[mine].sum(axis=0), 0.0), looked[mine].sum(axis=0), penalty, axis
        )
    return tables


def _cumulative_at(mass: Floats, counts: Floats, edges: Floats) -> Floats:
    """(n_row, n) events below each of ``mass`` (n_row, n) inside the window.

    By cubic splines: a density that is constant in each mass bin is wider than the shape, by 1 % with bins of a third
    of the width, which is 10 % in the tails.
    """
    cumulative = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    spline = CubicSpline(edges, cumulative, axis=1, bc_type="natural")
    piece = np.clip(np.searchsorted(edges, mass, side="right") - 1, 0, counts.shape[1] - 1)
    x, row = mass - edges[piece], np.arange(len(counts))[:, None]
    c = spline.c[:, piece, row]
    return np.asarray(((c[0] * x + c[1]) * x + c[2]) * x + c[3])


def _smooth_table(found: Floats, exposure: Floats, strength: float, axis: SplineAxis) -> Floats:
    """Table of the shape from events per node interval and the events times interval width looked at.

    A rough shape would make the likelihood of a bin rough.
    """
    coefficients = axis.log_density(found, exposure, strength)
    seen = axis.middles[exposure > 0.0]
    at_nodes, at_middles = (
        np.exp(axis.basis(np.clip(t, seen[0], seen[-1])) @ coefficients) for t in (axis.nodes, axis.middles)
    )
    simpson = axis.spacing * (at_nodes[1:] + 4.0 * at_middles + at_nodes[:-1]) / 6.0
    return np.concatenate([[0.0], np.cumsum(simpson), at_nodes])
