r"""The muon resolution a, c (and b) per eta bin, of simulation, of data, and what the simulation lacks.

.. math:: w_b^2 = \tfrac14\bigl[f_+^2\,\sigma_i^2(k_+) + f_-^2\,\sigma_j^2(k_-)\bigr], \qquad
   \sigma^2(k) = a + \frac{c}{k^2} + \frac{b}{1 + d k^2}

for the relative mass width of 4D bin b = (i, j) (physics.md section 3), linear in a, c, b with averages of pT^2 over
the bin: one weighted linear least-squares problem over eta+ x eta- of all resonances.

What to use when:

=======================================  ==============================================================================
`fit_generator_resolution`               simulation: exact, from its own true momenta
`fit_resolution` (..., "difference")     data minus simulation, same bins, same model: what the model does wrong cancels
`data_resolution`                        data: the sum of the two; this is what is quoted
`fit_resolution` (..., "data")           without trust in the generator-level momenta; carries the bias of the model
`smearing_difference`                    what the simulation is to be smeared with
=======================================  ==============================================================================

Coefficients are not bounded: a negative one is a fluctuation, or says that the simulation is worse than the data, and
clipping would bias the others. Only what is handed to the smearing is clipped, as a variance at each pT.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import chdtrc

from musclecal.covariance import chi2_of, eigenvariations
from musclecal.errors import InputError
from musclecal.fits.residuals import core_variance
from musclecal.fits.widths import share_of_muons
from musclecal.records import Floats, Ints, MassWidths, MuonResiduals, Resolution, Smearing
from musclecal.simulate import ResolutionModel

__all__ = [
    "data_resolution",
    "fit_generator_resolution",
    "fit_resolution",
    "resolution_model",
    "smearing_difference",
    "smearing_variations",
    "variance_at",
]

REGIME = 370.0
"""d in GeV^2 where b is not fitted, or nothing else is known: the regimes of the hit numbers part at 19 GeV."""

_NO_DIFFERENCE = 0.05
_SINGULAR = 1e-12


def _regime_average(mean_pt: Floats, mean_pt2: Floats, d: float) -> Floats:
    """Average of 1/(1 + d/pT^2) over the muons of a bin, as of two muons with the same mean and spread of pT."""
    spread = np.sqrt(np.maximum(mean_pt2 - mean_pt**2, 0.0))
    return np.asarray(0.5 * sum((pt**2 / (pt**2 + d) for pt in (mean_pt - spread, mean_pt + spread)), 0.0))


def _columns(names: Sequence[str], mean_pt: Floats, mean_pt2: Floats, d: float) -> list[Floats]:
    """d(sigma^2)/d(parameter), each of the shape of ``mean_pt``."""
    known = {"a": np.ones_like(mean_pt), "c": mean_pt2, "b": _regime_average(mean_pt, mean_pt2, d)}
    return [known[name] for name in names]


def _least_squares(
    design: Floats, target: Floats, error: Floats, names: Sequence[str], eta_edges: Floats
) -> tuple[Floats, Floats, float]:
    """(values, covariance, chi2). ``design`` (n_row, n_eta, n_par)."""
    n_row, n_eta, n_par = design.shape
    weighted = design.reshape(n_row, n_eta * n_par) / error[:, None]
    size = np.sqrt((weighted**2).sum(axis=0))
    if np.any(size == 0.0):
        i = int(np.argmin(size)) // n_par
        raise InputError(
            f"resolution: eta bin {i} ({eta_edges[i]:g} to {eta_edges[i + 1]:g}) has no fitted width"
        )
    scaled = weighted / size
    normal = scaled.T @ scaled
    eigenvalues, vectors = np.linalg.eigh(normal)
    if eigenvalues[0] < _SINGULAR * eigenvalues[-1]:
        p = int(np.argmax(np.abs(vectors[:, 0])))
        raise InputError(
            f"resolution: the widths do not fix {names[p % n_par]} of eta bin {p // n_par}: "
            "add a resonance with other momenta, or fit fewer parameters"
        )
    factor = cho_factor(normal)
    solution = cho_solve(factor, scaled.T @ (target / error))
    covariance = cho_solve(factor, np.eye(len(normal))) / size[:, None] / size
    return (
        solution / size,
        0.5 * (covariance + covariance.T),
        float(np.sum((target / error - scaled @ solution) ** 2)),
    )


def _record(
    kind: str, source: tuple[str, ...], eta_edges: Floats, names: tuple[str, ...], d: float, values: Floats,
    covariance: Floats, chi2: float, n_row: int, pt_range: Floats,
) -> Resolution:  # fmt: skip
    n_eta = len(eta_edges) - 1
    columns = dict(zip(names, values.reshape(n_eta, len(names)).T.copy(), strict=True))
    zero, ndf = np.zeros(n_eta), n_row - len(values)
    return Resolution(
        kind=kind,
        eta_edges=np.array(eta_edges, dtype=np.float64),
        parameter_names=names,
        a=columns["a"],
        b=columns.get("b", zero),
        c=columns["c"],
        d=np.full(n_eta, d),
        covariance=covariance,
        chi2=chi2,
        ndf=ndf,
        p_value=float(chdtrc(ndf, chi2)) if ndf > 0 else 1.0,
        pt_range=pt_range,
        source=source,
    )


def _parameters(fit_b: bool) -> tuple[str, ...]:
    return ("a", "c", "b") if fit_b else ("a", "c")


def _pt_range(n_eta: int, eta_bin: Ints, pt: Floats) -> Floats:
    """(n_eta, 2) lowest and highest of ``pt`` in each eta bin."""
    low, high = np.full(n_eta, np.inf), np.zeros(n_eta)
    np.minimum.at(low, eta_bin, pt)
    np.maximum.at(high, eta_bin, pt)
    return np.stack([low, high], axis=1)


def fit_resolution(
    widths: Sequence[MassWidths], kind: str = "difference", *, fit_b: bool = False, d: float = REGIME
) -> Resolution:
    """a, c (and b) per eta bin from the mass widths of one or several resonances.

    Parameters
    ----------
    widths : all with the same eta bins.
    kind : "difference" of data and simulation, "data" or "simulation" by themselves.
    fit_b : fit b for the given ``d`` (GeV^2); else b = 0.

    Raises
    ------
    InputError : nothing to fit, other eta bins, an eta bin without widths, parameters that the widths do not fix.
    """
    if kind not in ("difference", "data", "simulation"):
        raise InputError(f"resolution: kind must be difference, data or simulation, got {kind!r}")
    if not widths or any(w.binning.eta_edges != widths[0].binning.eta_edges for w in widths):
        raise InputError(
            "resolution: mass widths with the same eta bins are needed, of at least one resonance"
        )
    names, eta_edges = _parameters(fit_b), np.array(widths[0].binning.eta_edges)
    n_eta = len(eta_edges) - 1
    designs, targets, variances = [], [], []
    for w in widths:
        i, j, _, _ = w.binning.unravel(w.bins)
        columns = _columns(names, w.mean_pt, w.mean_pt2, d)
        designs.append(np.stack([share_of_muons(n_eta, i, j, w.mean_f, *x.T) for x in columns], axis=2))
        targets.append(
            {"difference": w.data - w.simulation, "data": w.data, "simulation": w.simulation}[kind]
        )
        parts = {"data": w.data_error**2, "simulation": w.simulation_error**2}
        variances.append(parts["data"] + parts["simulation"] if kind == "difference" else parts[kind])
    design, target, error = (
        np.concatenate(designs),
        np.concatenate(targets),
        np.sqrt(np.concatenate(variances)),
    )
    values, covariance, chi2 = _least_squares(design, target, error, names, eta_edges)
    eta_bin = np.concatenate([bins for w in widths for bins in w.binning.unravel(w.bins)[:2]])
    pt = np.concatenate([column for w in widths for column in w.mean_pt.T])
    source = tuple(w.resonance for w in widths)
    return _record(
        kind,
        source,
        eta_edges,
        names,
        d,
        values,
        covariance,
        chi2,
        len(target),
        _pt_range(n_eta, eta_bin, pt),
    )


def fit_generator_resolution(
    residuals: MuonResiduals, *, fit_b: bool = False, d: float = REGIME, min_muons: int = 50
) -> Resolution:
    """a, c (and b) per eta bin of simulated muons from their own residuals, in cells with at least ``min_muons``.

    Raises
    ------
    InputError : an eta bin with too few cells.
    """
    variance, n = core_variance(residuals)
    i, cell = np.nonzero(n >= min_muons)
    names, n_eta = _parameters(fit_b), len(residuals.eta_edges) - 1
    design = np.zeros((len(i), n_eta, len(names)))
    pt, pt2 = residuals.mean_pt[i, cell], residuals.mean_pt2[i, cell]
    design[np.arange(len(i)), i] = np.stack(_columns(names, pt, pt2, d), axis=1)
    target, relative = variance[i, cell], np.sqrt(2.0 / n[i, cell])
    expected = target
    for _ in range(4):
        values, covariance, chi2 = _least_squares(
            design, target, relative * expected, names, residuals.eta_edges
        )
        expected = np.clip(design.reshape(len(i), -1) @ values, 0.25 * target, 4.0 * target)
    return _record(
        "simulation", ("generator",), residuals.eta_edges, names, d, values, covariance, chi2, len(target),
        _pt_range(n_eta, i, pt),
    )  # fmt: skip


def data_resolution(simulation: Resolution, difference: Resolution) -> Resolution:
    """The resolution of the data: that of the simulation plus the difference, covariances added.

    The chi2 is that of the difference. The covariance is a little too large: the statistical error of the simulated
    widths is in the difference although the residuals of the same muons are known.

    Raises
    ------
    InputError : other eta bins, parameters or d.
    """
    same = np.array_equal(simulation.eta_edges, difference.eta_edges) and np.array_equal(
        simulation.d, difference.d
    )
    if not same or simulation.parameter_names != difference.parameter_names:
        raise InputError("resolution: simulation and difference have other eta bins, parameters or d")
    return replace(
        difference,
        kind="data",
        a=simulation.a + difference.a,
        b=simulation.b + difference.b,
        c=simulation.c + difference.c,
        covariance=simulation.covariance + difference.covariance,
        source=simulation.source + difference.source,
    )


def variance_at(resolution: Resolution | Smearing | ResolutionModel, pt: Floats) -> Floats:
    """(n_eta, n_pt) a + c pT^2 + b/(1 + d/pT^2), unclipped, at ``pt`` (n_pt,) or (n_eta, n_pt) GeV."""
    square = np.asarray(pt, dtype=np.float64) ** 2
    a, b, c, d = (x[:, None] for x in (resolution.a, resolution.b, resolution.c, resolution.d))
    return np.asarray(a + c * square + b * square / (square + d))


def resolution_model(resolution: Resolution) -> ResolutionModel:
    """For the simulation, which needs a variance at every pT: coefficients below zero are set to zero one by one."""
    a, b, c = (np.maximum(x, 0.0) for x in (resolution.a, resolution.b, resolution.c))
    return ResolutionModel(resolution.eta_edges, a, b, c, resolution.d)


def smearing_difference(difference: Resolution) -> Smearing:
    """What simulated muons are to be smeared with: the difference where it is positive, at each pT.

    A difference that is compatible with none at all (p > 0.05) is not smeared: its positive half would make the
    simulation too wide.

    Raises
    ------
    InputError : a resolution that is no difference.
    """
    if difference.kind != "difference":
        raise InputError(f"smearing: a difference of data and simulation is needed, not {difference.kind}")
    low, high = difference.pt_range.T
    pt = low[:, None] * (high / low)[:, None] ** np.linspace(0.0, 1.0, 101)
    clipped = np.mean(variance_at(difference, pt) < 0.0, axis=1)
    d = difference
    found = np.stack([getattr(d, name) for name in d.parameter_names], axis=1).ravel()
    if chi2_of(found, d.covariance, d.names).p_value > _NO_DIFFERENCE:
        zero = np.zeros(len(d.a))
        return Smearing(d.eta_edges, zero, zero.copy(), zero.copy(), d.d.copy(), clipped)
    return Smearing(d.eta_edges, d.a.copy(), d.b.copy(), d.c.copy(), d.d.copy(), clipped)


def smearing_variations(difference: Resolution) -> tuple[Smearing, ...]:
    """The smearing with each independent one-sigma variation of the difference added: n_par n_eta of them."""
    shifts = eigenvariations(difference.covariance, difference.names)
    shifts = shifts.reshape(len(shifts), len(difference.a), len(difference.parameter_names))
    variations = []
    for shift in shifts:
        moved = {
            name: getattr(difference, name) + shift[:, n] for n, name in enumerate(difference.parameter_names)
        }
        variations.append(smearing_difference(replace(difference, **moved)))
    return tuple(variations)
