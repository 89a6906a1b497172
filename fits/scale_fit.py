r"""A, e, M per eta bin from the mass scales of 4D bins: one weighted linear least-squares problem.

For bin b = (i, j) with the ratio s_b of the mass scales of data and simulation (physics.md section 2)

.. math:: s_b^2 = \bigl(1 + f_+(A_i - e_i\langle k_+\rangle + M_i\langle 1/k_+\rangle)\bigr)
                  \bigl(1 + f_-(A_j - e_j\langle k_-\rangle - M_j\langle 1/k_-\rangle)\bigr)

linear up to the product of two small terms, for which the linear step is repeated. e is fitted about the mean
curvature of its eta bin, where it does not correlate with A, and transformed back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import chi2 as chi2_distribution

from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.fits.normal_equations import solve_normal
from musclecal.records import Floats, Ints, MassFits, ScaleCalibration

__all__ = ["PARAMETERS", "ScaleSolution", "fit_scale", "model_of_bins", "scale_calibration"]

PARAMETERS = ("A", "e", "M")


@dataclass(frozen=True)
class ScaleSolution:
    """Fitted parameters, some or all of A, e, M.

    Attributes
    ----------
    parameter_names : of A, e, M in this order.
    values : (n_eta, n_fitted). covariance : (n_eta n_fitted, ...), parameters of an eta bin together.
    chi2, ndf, p_value : of the 4D mass scales. pulls : (n_used,). bins : (n_used,) 4D bin numbers.
    rank, condition : of the normal matrix scaled to unit diagonal; `fit_scale` raises where a direction is not fixed.
    mean_k : (n_eta,) 1/GeV.
    """

    parameter_names: tuple[str, ...]
    values: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    pulls: Floats
    bins: Ints
    rank: int
    condition: float
    mean_k: Floats


def _mean_curvature(n_eta: int, i: Ints, j: Ints, k: Floats, weight: Floats) -> Floats:
    """(n_eta,) weighted mean curvature of the muons of both charges in an eta bin."""
    total = np.bincount(i, weight * k[:, 0], n_eta) + np.bincount(j, weight * k[:, 1], n_eta)
    norm = np.bincount(i, weight, n_eta) + np.bincount(j, weight, n_eta)
    return np.asarray(total / np.where(norm > 0.0, norm, 1.0))


def _columns(names: Sequence[str], k: Floats, pt: Floats, f: Floats, charge: int, k0: Floats) -> Floats:
    """(n_bin, n_fitted): d(f dk/k)/d parameter of one muon, with e about ``k0`` (n_bin,)."""
    of = {"A": np.ones_like(k), "e": -(k - k0), "M": charge * pt}
    return np.ascontiguousarray(np.stack([f * of[name] for name in names], axis=1))


@kernel
def _changes(i: Ints, j: Ints, plus: Floats, minus: Floats, beta: Floats, out: Floats) -> None:
    """f dk/k (n_bin, 2) of mu+ in eta bin i and of mu- in eta bin j, at parameters beta (n_eta n_fitted,)."""
    n_fit = plus.shape[1]
    for b in range(i.size):
        out[b, 0] = out[b, 1] = 0.0
        for p in range(n_fit):
            out[b, 0] += plus[b, p] * beta[i[b] * n_fit + p]
            out[b, 1] += minus[b, p] * beta[j[b] * n_fit + p]


@kernel
def _add_bins(
    i: Ints, j: Ints, plus: Floats, minus: Floats, changes: Floats, square: Floats, weight: Floats, normal: Floats,
    vector: Floats,
) -> None:  # fmt: skip
    """Normal matrix and right-hand side of s^2 = (1 + a+)(1 + a-), linearised at ``changes`` a+, a- (n_bin, 2).

    A 4D bin has 2 n_fitted derivatives that are not 0; both muons may be in the same eta bin.
    """
    n_fit = plus.shape[1]
    place, slope = np.empty(2 * n_fit, dtype=np.int64), np.empty(2 * n_fit)
    for b in range(i.size):
        first, second = 1.0 + changes[b, 0], 1.0 + changes[b, 1]
        residual = weight[b] * (square[b] - first * second)
        for p in range(n_fit):
            place[p], slope[p] = i[b] * n_fit + p, plus[b, p] * second
            place[n_fit + p], slope[n_fit + p] = j[b] * n_fit + p, minus[b, p] * first
        for p in range(2 * n_fit):
            vector[place[p]] += slope[p] * residual
            for q in range(2 * n_fit):
                normal[place[p], place[q]] += weight[b] * slope[p] * slope[q]


def _column_sizes(
    names: Sequence[str], i: Ints, j: Ints, k: Floats, pt: Floats, f: Floats, weight: Floats, n_eta: int
) -> Floats:
    """(n_eta n_fitted,) size of each column with e about zero.

    About the mean curvature the column of e vanishes where all bins have the same curvature: in units of its own
    size it would be rounding that looks measured.
    """
    square = np.zeros((n_eta, len(names)))
    for muon, (eta_bin, charge) in enumerate(((i, 1), (j, -1))):
        columns = _columns(names, k[:, muon], pt[:, muon], f[:, muon], charge, np.zeros(len(k)))
        for p in range(len(names)):
            square[:, p] += np.bincount(eta_bin, weight * columns[:, p] ** 2, n_eta)
    return np.sqrt(square).ravel()


def _check_both_charges(n_eta: int, i: Ints, j: Ints, edges: tuple[float, ...]) -> None:
    """A and M of an eta bin are one number if it holds muons of one charge only."""
    for charge, eta_bin in (("mu+", i), ("mu-", j)):
        missing = np.flatnonzero(np.bincount(eta_bin, minlength=n_eta) == 0)
        if len(missing):
            n = int(missing[0])
            raise InputError(
                f"eta bin {n} ({edges[n]:g} to {edges[n + 1]:g}) has no fitted 4D bin with a {charge}: "
                "use wider or fewer eta bins, lower min_events, or more events"
            )


def parameter_labels(names: Sequence[str], edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the parameters of all eta bins for messages, in the order of their covariance."""
    return tuple(f"{name}[{low:g}, {high:g}]" for low, high in pairwise(edges) for name in names)


def fit_scale(fits: MassFits, parameters: Sequence[str] = PARAMETERS) -> ScaleSolution:
    """Least-squares solution for the correction that is still to be applied to the muons that were fitted.

    Raises
    ------
    InputError : no usable bin, an eta bin without one of the charges, combinations that the bins do not fix.
    """
    names = tuple(name for name in PARAMETERS if name in parameters)
    edges, n_eta = fits.binning.eta_edges, fits.binning.n_eta
    used = np.flatnonzero(fits.usable)
    if not len(used):
        raise InputError("no mass fit has converged: draw a bin with `musclecal draw` to see why")
    i, j, _, _ = fits.binning.unravel(fits.bins[used])
    _check_both_charges(n_eta, i, j, edges)
    k, pt, f = fits.mean_k[used], fits.mean_pt[used], fits.mean_f[used]
    s = fits.scale[used]
    weight = 1.0 / (4.0 * s**2 * fits.scale_variance[used])
    k0 = _mean_curvature(n_eta, i, j, k, weight)
    plus = _columns(names, k[:, 0], pt[:, 0], f[:, 0], +1, k0[i])
    minus = _columns(names, k[:, 1], pt[:, 1], f[:, 1], -1, k0[j])
    unit = _column_sizes(names, i, j, k, pt, f, weight, n_eta)
    beta, changes = np.zeros(n_eta * len(names)), np.zeros((len(used), 2))
    for _ in range(3):
        normal, vector = np.zeros((len(beta), len(beta))), np.zeros(len(beta))
        _add_bins(i, j, plus, minus, changes, s**2, weight, normal, vector)
        step = solve_normal(normal, vector, parameter_labels(names, edges), unit)
        beta = beta + step.values
        _changes(i, j, plus, minus, beta, changes)
    residual = s**2 - (1.0 + changes[:, 0]) * (1.0 + changes[:, 1])
    chi2, ndf = float(np.sum(weight * residual**2)), len(used) - len(beta)
    back = _about_zero(names, k0)
    return ScaleSolution(
        parameter_names=names,
        values=(back @ beta).reshape(n_eta, len(names)),
        covariance=back @ step.covariance @ back.T,
        chi2=chi2,
        ndf=ndf,
        p_value=float(chi2_distribution.sf(chi2, ndf)) if ndf > 0 else 1.0,
        pulls=residual * np.sqrt(weight),
        bins=fits.bins[used],
        rank=len(beta),
        condition=step.condition,
        mean_k=k0,
    )


def _about_zero(names: Sequence[str], k0: Floats) -> Floats:
    """Matrix from parameters with e about k0 to those of the model: A = A' + e k0."""
    n_eta, n_fit = len(k0), len(names)
    back = np.eye(n_eta * n_fit)
    if "A" in names and "e" in names:
        a, e = names.index("A"), names.index("e")
        for n in range(n_eta):
            back[n * n_fit + a, n * n_fit + e] = k0[n]
    return back


def model_of_bins(fits: MassFits, A: Floats, e: Floats, M: Floats) -> Floats:
    """s_b^2 (n_bin,) predicted for every fitted bin: the formula of this module, written out for tests and plots."""
    i, j, _, _ = fits.binning.unravel(fits.bins)
    k, pt, f = fits.mean_k, fits.mean_pt, fits.mean_f
    plus = f[:, 0] * (A[i] - e[i] * k[:, 0] + M[i] * pt[:, 0])
    minus = f[:, 1] * (A[j] - e[j] * k[:, 1] - M[j] * pt[:, 1])
    return np.asarray((1.0 + plus) * (1.0 + minus))


def scale_calibration(fits: MassFits, before: ScaleCalibration | None = None) -> ScaleCalibration:
    """The calibration after one more pass: ``before`` was applied to the muons of ``fits`` (None: nothing was).

    Corrections add up: their product is of second order in a residual of 1e-5. The covariance is that of this pass.
    """
    solution = fit_scale(fits)
    values = solution.values
    residual = None
    if before is not None:
        flat = values.ravel()
        residual = float(flat @ np.linalg.solve(solution.covariance, flat)) / len(flat)
        values = values + np.stack([before.A, before.e, before.M], axis=1)
    return ScaleCalibration(
        eta_edges=np.array(fits.binning.eta_edges),
        A=values[:, 0].copy(),
        e=values[:, 1].copy(),
        M=values[:, 2].copy(),
        covariance=solution.covariance,
        chi2=solution.chi2,
        ndf=solution.ndf,
        p_value=solution.p_value,
        rank=solution.rank,
        condition=solution.condition,
        pulls=solution.pulls,
        bins=solution.bins,
        mean_k=solution.mean_k,
        events_fraction=fits.events_fraction,
        converged_fraction=fits.converged_fraction,
        passes=1 if before is None else before.passes + 1,
        residual_chi2=residual,
    )
