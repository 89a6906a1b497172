"""The smooth background under a peak for the template fit: ln of it is quadratic in m, in groups of 4D bins.

Bins of a template fit have few events each. Groups of the same asymmetry and pT in a block of eta have enough to fit
a background beside the simulated peak, which gives the purity in every mass bin. In the template fit itself
amount and slope are free again, bin by bin, about this start, so no bound on them is needed.

An exponential alone is not enough where something else opens with the mass, like a cut on pT itself in the sample: with
30 % background a curvature left out moved A by -0.9e-5 at the Upsilon.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline

from musclecal.errors import InputError
from musclecal.fits.shapes.log_spline import SplineAxis
from musclecal.fits.shapes.simulation_shape import pooled_tables, width_classes
from musclecal.fits.template_closure import smoothing_matrix
from musclecal.fits.templates import MUON_SHIFTS
from musclecal.records import Floats, Ints, TemplateHistogram

__all__ = ["expected_purity"]

_ETA_BLOCKS = 6
_STEPS = 25
_SHAPE_PRIORS = (1.0, 0.5)
"""Expected sizes of slope and curvature: change of ln(background) by z and z^2 at the ends of the window."""
_WIDTH_SMOOTHING = ((0.3, 0.15), (1.2, 0.4))
"""In eta: of the mean of both muons, and of half their difference, for place and width of a peak. The second where
the first finds fewer than ``_ENOUGH`` simulated events."""
_ENOUGH = 100.0
_CLASSES, _CLASS_EVENTS = 24, 2e4
"""Most classes of width, and least simulated events in one."""
_KNOT_DISTANCE = 0.4
"""Of the splines, in widths."""
_PENALTY = 1.0
"""Of the shape of a class. With 100 the shoulders of a peak are 3 % off."""
_LEAST_PURITY = 1e-3
"""Cells with less are not used (purity 0): with next to no signal on both sides there is nothing to compare, and a
purity that is not that of the cell moves A."""


def _groups(histogram: TemplateHistogram) -> tuple[Ints, int]:
    """Number of the group of each 4D bin, and the number of groups."""
    binning = histogram.binning
    plus, minus, a, p = binning.unravel(histogram.bins)
    sum_of_eta = plus // binning.phi_sectors + minus // binning.phi_sectors
    block = sum_of_eta * _ETA_BLOCKS // (2 * binning.n_eta)
    n_a, n_p = binning.shape[2:]
    return np.asarray((block * n_a + a) * n_p + p, dtype=np.int64), _ETA_BLOCKS * n_a * n_p


def _summed(group: Ints, n_group: int, table: Floats) -> Floats:
    """(n_group, n_mass) sums of the rows of a table."""
    out = np.zeros((n_group, table.shape[1]))
    np.add.at(out, group, table)
    return out


def expected_purity(data: TemplateHistogram, simulation: TemplateHistogram) -> Floats:
    """(n_bin of the data, n_mass) expected share of the signal in the data; 0 where there is too little to be used.

    In each group n = rho (N + x dN/dx + v dN/dv) + exp(b0 + b1 z + b2 z^2), z from -1 to 1 over the mass window,
    by weighted least squares repeated: x a common correction of both muons, v a width, so that neither is taken for
    background. The data may have phi sectors, the simulation may be that of all sectors together.

    Raises
    ------
    InputError : other axes, or simulation without derivatives.
    """
    if replace(data.binning, phi_sectors=1) != replace(simulation.binning, phi_sectors=1):
        raise InputError("background: data and simulation have different axes")
    if not simulation.derivatives.size:
        raise InputError("background: the simulation was filled without derivatives")
    group, n_group = _groups(data)
    n = _summed(group, n_group, data.counts)
    sim_group, _ = _groups(simulation)
    shift, width = MUON_SHIFTS.index("A"), MUON_SHIFTS.index("width")
    changes = (
        simulation.derivatives[:, :, : len(MUON_SHIFTS)] + simulation.derivatives[:, :, len(MUON_SHIFTS) :]
    )
    tables = (simulation.counts, changes[:, :, shift], changes[:, :, width])
    signal = np.stack([_summed(sim_group, n_group, table) for table in tables], axis=-1)
    background, used = _fitted_background(n, _same_shape(signal, simulation.binning.shape))
    peak = _local_peaks(simulation, data.binning.without_phi(data.bins))
    purity = peak / (peak + np.maximum(background[group], 1e-12))
    return np.where(used[group, None], np.where(purity < _LEAST_PURITY, 0.0, purity), 1.0)


def _local_peaks(simulation: TemplateHistogram, bins: Ints) -> Floats:
    """(len(bins), n_mass) normalised simulated peaks of 4D bins without phi: a common shape for all of similar width.

    A group holds peaks of many widths, and so does a neighbourhood in eta: an average is too wide for a half of its
    bins and too narrow for the other, which moved the scale at pT 40 GeV by 3e-5. The counts of a bin
    alone, on the other side, would be fitted like a parameter per cell. All asymmetries share a peak.
    """
    binning = replace(simulation.binning, phi_sectors=1)
    n_eta, n_a, n_p = binning.shape[1:]
    dense = _summed(simulation.binning.without_phi(simulation.bins), binning.n_bins, simulation.counts)
    cells = dense.reshape(n_eta**2, n_a, -1).sum(axis=1)
    smooth = np.zeros_like(cells).reshape(-1, binning.mass_bins)
    for lengths in reversed(_WIDTH_SMOOTHING):
        candidate = (smoothing_matrix(binning.eta_edges, *lengths) @ cells).reshape(smooth.shape)
        smooth = np.where(candidate.sum(axis=1, keepdims=True) >= _ENOUGH, candidate, smooth)
    seen = smooth.sum(axis=1) > 0.0
    own = cells.reshape(smooth.shape)
    peaks = np.zeros_like(smooth)
    peaks[seen] = _pooled_peaks(own[seen], smooth[seen], binning.mass_window)
    plus, minus, _, p = binning.unravel(bins)
    return np.asarray(peaks[(plus * n_eta + minus) * n_p + p])


def _pooled_peaks(own: Floats, smooth: Floats, window: tuple[float, float]) -> Floats:
    """(n_cell, n_mass) normalised peaks at the median and with the width of ``smooth``, their shape from ``own``.

    The shapes are tabulated wherever a cell of any width looks: nothing is extrapolated.
    """
    edges = np.linspace(*window, own.shape[1] + 1)
    cumulative = np.concatenate([np.zeros((len(smooth), 1)), np.cumsum(smooth, axis=1)], axis=1)
    cumulative /= cumulative[:, -1:]
    low, middle, high = np.array([np.interp((0.16, 0.5, 0.84), row, edges) for row in cumulative]).T
    width = 0.5 * (high - low)
    width = np.maximum(width, 0.2 * np.median(width))
    events = own.sum(axis=1)
    least = max(_CLASS_EVENTS, events.sum() / _CLASSES)
    classes = width_classes(width, events, np.zeros(len(width), dtype=np.int64), least)
    t_edges = (edges - middle[:, None]) / width[:, None]
    low, high = np.floor(t_edges.min() / _KNOT_DISTANCE), np.ceil(t_edges.max() / _KNOT_DISTANCE)
    axis = SplineAxis(
        low * _KNOT_DISTANCE, high * _KNOT_DISTANCE, 4 * round(high - low) + 1, knot_distance=_KNOT_DISTANCE
    )
    peaks = np.empty_like(own)
    for c, table in enumerate(pooled_tables(own, edges, middle, width, classes, penalty=_PENALTY, axis=axis)):
        below = CubicHermiteSpline(axis.nodes, *np.split(table, 2))
        peaks[classes == c] = np.diff(below(t_edges[classes == c]), axis=1)
    return np.asarray(peaks / peaks.sum(axis=1, keepdims=True))


def _same_shape(signal: Floats, shape: tuple[int, int, int, int]) -> Floats:
    """The templates with one shape for all asymmetries: in the tails a group alone has too few simulated events.

    What is left of their noise would be fitted like a parameter per cell.
    """
    per_asymmetry = signal.reshape(_ETA_BLOCKS, shape[2], shape[3], *signal.shape[1:])
    common = per_asymmetry.sum(axis=1, keepdims=True)
    events = common[..., 0].sum(axis=-1)[..., None, None]
    share = per_asymmetry[..., 0].sum(axis=-1)[..., None, None] / np.where(events > 0.0, events, 1.0)
    return np.asarray((common * share).reshape(signal.shape))


def _fitted_background(n: Floats, signal: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """(n_group, n_mass) background per signal event, and (n_group,) whether a group has data and simulation.

    ``signal`` (n_group, n_mass, 3) is the template and its two derivatives.
    """
    n_group, n_mass = n.shape
    n_signal, n_shape = signal.shape[2], 1 + len(_SHAPE_PRIORS)
    powers = np.linspace(-1.0, 1.0, n_mass)[:, None] ** np.arange(n_shape)
    total, simulated = n.sum(axis=1), signal[:, :, 0].sum(axis=1)
    used = (total > 0.0) & (simulated > 0.0)
    rho = np.where(used, total / np.where(simulated > 0.0, simulated, 1.0), 0.0)
    unit = rho[:, None, None] * signal
    shape = np.zeros((n_group, n_shape))
    shape[:, 0] = np.log(np.maximum(0.05 * total / n_mass, 1e-6))
    size = np.zeros((n_group, n_signal))
    size[:, 0] = 0.95
    prior = np.zeros(n_signal + n_shape)
    prior[n_signal + 1 :] = 1.0 / np.array(_SHAPE_PRIORS) ** 2
    smallest = 1e-9 * np.eye(len(prior))
    for _ in range(_STEPS):
        background = np.exp(shape @ powers.T)
        expected = np.einsum("gmc,gc->gm", unit, size) + background
        simulated_part = np.maximum(rho * size[:, 0], 0.0)[:, None] ** 2 * signal[:, :, 0]
        weight = 1.0 / np.maximum(expected + simulated_part, 0.2)
        columns = np.concatenate([unit, background[:, :, None] * powers], axis=2)
        normal = np.einsum("gmp,gm,gmq->gpq", columns, weight, columns) + np.diag(prior)
        scale = np.sqrt(np.einsum("gpp->gp", normal)) + 1e-300
        vector = np.einsum("gmp,gm,gm->gp", columns, weight, n - expected)
        vector[:, n_signal:] -= prior[n_signal:] * shape
        scaled = normal / scale[:, :, None] / scale[:, None, :] + smallest
        step = np.linalg.solve(scaled, (vector / scale)[:, :, None])[:, :, 0] / scale
        size += step[:, :n_signal]
        shape += np.clip(step[:, n_signal:], -0.7, 0.7)
    background = np.exp(shape @ powers.T)
    peak = np.maximum(size[:, :1], 1e-9) * unit[:, :, 0].sum(axis=1, keepdims=True)
    return background / np.where(used[:, None], peak, 1.0), used
