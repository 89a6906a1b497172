"""The smooth background under a peak for the template fit: ln of it is quadratic in m, in groups of 4D bins.

Bins of a template fit have few events each. Groups of the same asymmetry and pT in a block of eta have enough to fit
a background beside the simulated peak, which gives the purity in every mass bin. In the template fit itself
amount and slope are free again, bin by bin, about this start, so no bound on them is needed.

An exponential alone is not enough even if that is how background is made: the axes of pT are scaled by m_ref/m and the
cut on the muons' pT is not, so near the cut it opens with the mass. With 30 % background the curvature left
out moved A by -1.5e-5 at the Upsilon.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.fits.template_closure import smoothing_matrix
from musclecal.fits.templates import MUON_SHIFTS
from musclecal.records import Floats, Ints, TemplateHistogram

__all__ = ["expected_purity"]

_ETA_BLOCKS = 6
_STEPS = 25
_SHAPE_PRIORS = (1.0, 0.5)
"""Expected sizes of slope and curvature: change of ln(background) by z and z^2 at the ends of the window."""
_PEAK_SMOOTHING = (1.2, 0.4)
"""In eta: of the mean of both muons, and of half their difference. With half of these the tails follow the simulated
counts of the cell: chi2/ndf 0.98 at the J/psi instead of 1.00."""
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
    """(len(bins), n_mass) normalised simulated peaks of 4D bins without phi, smoothed over neighbouring eta cells.

    A group holds peaks of many widths. The average is too wide for a half of its bins and too narrow for the other.
    All asymmetries share a peak, for the sake of the tails.
    """
    binning = replace(simulation.binning, phi_sectors=1)
    n_eta, n_a, n_p = binning.shape[1:]
    dense = _summed(simulation.binning.without_phi(simulation.bins), binning.n_bins, simulation.counts)
    cells = dense.reshape(n_eta, n_eta, n_a, n_p, -1).sum(axis=2)
    weights = smoothing_matrix(binning.eta_edges, *_PEAK_SMOOTHING)
    smooth = (weights @ cells.reshape(n_eta**2, -1)).reshape(cells.shape)
    plus, minus, _, p = binning.unravel(bins)
    peaks = smooth[plus, minus, p]
    total = peaks.sum(axis=1, keepdims=True)
    return np.asarray(peaks / np.where(total > 0.0, total, 1.0))


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
