"""Simulation shape: the reconstructed mass shape g(t), t = (m/(s m_ref) - 1)/w, pooled over bins of similar width.

FSR has another size in units of the resolution where the resolution differs, hence classes of equal width. Needs no
generator-level information.
"""

import numpy as np
from scipy.interpolate import BSpline

from musclecal.binning import Binning
from musclecal.fits.shapes.cumulative import STANDARD
from musclecal.fits.shapes.model import SignalModel, on_axis
from musclecal.records import Floats, Ints

__all__ = ["simulation_shape", "width_classes"]

_T_LOW, _T_HIGH, _N_NODE = -12.0, 8.0, 201
_KNOT_DISTANCE = 0.4
_PENALTY = 100.0


def width_classes(width: Floats, events: Floats, pt_pair: Ints, class_events: float) -> Ints:
    """(n_bin,) class number: bins of one pT pair in order of their width, about ``class_events`` in each class.

    pT pairs are kept apart because the edges of a pT bin cut into the mass shape. A class is filled up before the
    next is begun, and the last ones of a pT pair are not left nearly empty.
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
    n_classes = int(classes.max()) + 1
    nodes = np.linspace(_T_LOW, _T_HIGH, _N_NODE)
    middles = 0.5 * (nodes[1:] + nodes[:-1])
    t_edges = (binning.mass_edges[None, :] / (scale[:, None] * binning.mass_reference) - 1.0) / width[:, None]
    spacing = nodes[1] - nodes[0]
    cumulative = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    tables = np.empty((n_classes, 2 * _N_NODE))
    for c in range(n_classes):
        found = np.zeros(_N_NODE - 1)
        looked = np.zeros(_N_NODE - 1)
        for row in np.flatnonzero(classes == c):
            found += np.diff(np.interp(nodes, t_edges[row], cumulative[row]))
            inside = (middles > t_edges[row, 0]) & (middles < t_edges[row, -1])
            looked += events[row] * inside
        tables[c] = _smooth_table(found, looked * spacing, nodes)
    return on_axis("simulation-shape", STANDARD, binning, _T_LOW, spacing, tables, classes)


def _basis(t: Floats) -> Floats:
    """Cubic B-splines at ``t``, (n, n_coefficient)."""
    knots = np.arange(_T_LOW - 3 * _KNOT_DISTANCE, _T_HIGH + 3.5 * _KNOT_DISTANCE, _KNOT_DISTANCE)
    inside = np.clip(t, knots[3], knots[-4] - 1e-9)
    return np.asarray(BSpline.design_matrix(inside, knots, 3).toarray())


def _smooth_table(found: Floats, exposure: Floats, nodes: Floats) -> Floats:
    """Table of the shape from events per node interval and the events times interval width looked at.

    Poisson regression of ln g on B-splines with a penalty on third differences (P-splines: Eilers and Marx, Stat.
    Sci. 11 (1996) 89), whose limit is a Gaussian. A rough shape would make the likelihood of a bin rough.
    """
    middles = 0.5 * (nodes[1:] + nodes[:-1])
    basis = _basis(middles)
    third = np.diff(np.eye(basis.shape[1]), 3, axis=0)
    penalty = _PENALTY * third.T @ third + 1e-9 * np.eye(basis.shape[1])
    log_density = np.log((found + 0.5) / (exposure + 1.0))
    coefficients = np.linalg.lstsq(basis, log_density, rcond=None)[0]
    for _ in range(30):
        expected = exposure * np.exp(np.clip(basis @ coefficients, -40.0, 10.0))
        gradient = basis.T @ (found - expected) - penalty @ coefficients
        step = np.linalg.solve(basis.T @ (expected[:, None] * basis) + penalty, gradient)
        coefficients = coefficients + np.clip(step, -1.0, 1.0)
        if np.max(np.abs(step)) < 1e-9:
            break
    seen = middles[exposure > 0.0]
    at_nodes, at_middles = (
        np.exp(_basis(np.clip(t, seen[0], seen[-1])) @ coefficients) for t in (nodes, middles)
    )
    simpson = (nodes[1] - nodes[0]) * (at_nodes[1:] + 4.0 * at_middles + at_nodes[:-1]) / 6.0
    return np.concatenate([[0.0], np.cumsum(simpson), at_nodes])
