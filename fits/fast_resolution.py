r"""The muon resolution from fitted mass widths, enough to drive a fast reference simulation.

.. math:: w_b^2 = \tfrac14\bigl[f_+^2(a_i + c\langle p_{T+}\rangle^2) + f_-^2(a_j + c\langle p_{T-}\rangle^2)\bigr]

for the relative mass width of 4D bin b = (i, j) (physics.md section 3 with b = 0), linear in a >= 0 per eta bin and a
common c >= 0. c is held near a typical value where the momenta span too little to tell it from a.
"""

import numpy as np
from scipy.optimize import least_squares

from musclecal.errors import InputError
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.shapes.cumulative import LINES
from musclecal.fits.shapes.model import SignalModel, on_axis
from musclecal.records import Floats, Ints, MassHistogram
from musclecal.resonances import Resonance
from musclecal.simulate import ResolutionModel, default_resolution, lineshape

__all__ = ["lineshape_model", "measured_resolution"]

_LINESHAPE_EVENTS = 2_000_000


def lineshape_model(histogram: MassHistogram, n_bin: int, resonance: Resonance) -> SignalModel:
    """The true line shape with FSR, the same in all bins, to be smeared."""
    binning = histogram.binning
    first, last = binning.generator_range
    masses = lineshape(resonance, _LINESHAPE_EVENTS, seed=1)
    index = np.rint(np.log(masses / binning.mass_reference) / binning.log_step).astype(np.int64) - first
    inside = index[(index >= 0) & (index <= last - first)]
    table = np.bincount(inside, minlength=last - first + 1) / len(masses)
    return on_axis("lineshape", LINES, binning, first, 0.0, table[None, :], np.zeros(n_bin, dtype=np.int64))


def measured_resolution(
    histogram: MassHistogram, resonance: Resonance, background: str, min_events: int
) -> ResolutionModel:
    """Resolution per eta bin from the widths of the data themselves.

    Raises
    ------
    InputError : no 4D bin with enough events.
    """
    rows = np.flatnonzero(histogram.counts.sum(axis=1) >= min_events)
    if not len(rows):
        raise InputError(
            f"resolution: no 4D bin has {min_events} events: use fewer bins (pt_edges, eta_bins)"
        )
    fits = fit_bins(
        np.asarray(histogram.counts[rows], dtype=np.float64),
        lineshape_model(histogram, len(rows), resonance),
        background,
    )
    good = fits.converged & (fits.covariance[:, 1, 1] > 0.0)
    rows, width = rows[good], fits.width[good]
    error = 2.0 * width * np.sqrt(fits.covariance[good, 1, 1])
    # A fluctuation downwards has a small error of its own: the typical relative error at this count is fairer.
    typical = np.median(error / width**2 * np.sqrt(fits.n_events[good])) / np.sqrt(fits.n_events[good])
    return _solve(histogram, rows, width**2, typical * np.median(width) ** 2)


def _solve(histogram: MassHistogram, rows: Ints, square: Floats, error: Floats) -> ResolutionModel:
    binning = histogram.binning
    n_eta = binning.n_eta
    i, j, _, _ = binning.unravel(histogram.bins[rows])
    f, pt = histogram.mean_f[rows], histogram.mean_pt[rows]
    share = 0.25 * f**2
    typical = default_resolution().c.mean()
    design = np.zeros((len(rows) + 1, n_eta + 1))
    n = np.arange(len(rows))
    np.add.at(design, (n, i), share[:, 0])
    np.add.at(design, (n, j), share[:, 1])
    design[n, n_eta] = (share * pt**2).sum(axis=1) * typical
    weight = np.append(1.0 / error, 1.0)
    design[-1, n_eta] = 1.0
    target = np.append(square, 1.0)
    # Fits of few events on a large background may have any width: outliers count little.
    fit = least_squares(
        lambda parameters: weight * (design @ parameters - target),
        np.full(n_eta + 1, np.median(square)) + np.eye(n_eta + 1)[-1],
        jac=lambda _: weight[:, None] * design,
        bounds=(0.0, np.inf),
        loss="soft_l1",
        x_scale="jac",
    )
    solution = fit.x
    a, c = solution[:n_eta], np.full(n_eta, solution[n_eta] * typical)
    seen = np.bincount(np.concatenate([i, j]), minlength=n_eta) > 0
    a = np.where(seen, a, np.median(a[seen]))
    return ResolutionModel(np.array(binning.eta_edges), a, np.zeros(n_eta), c, np.full(n_eta, 370.0))
