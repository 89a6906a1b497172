r"""Closure: what correction is left, seen by a resonance that the calibration did not use.

The residual r (A and M per eta bin, with e if asked) has the covariance of the closure sample alone, V_C. How much the
calibration's own uncertainty must be scaled for r to be expected is the s that solves (physics.md section 4)

.. math:: r^T C(s)^{-1} r = n, \qquad
   C(s) = s^2\,P V P^T + V_C + (\delta m/m)^2\,\mathbf 1\mathbf 1^T\ (A\ \mathrm{part})

with P the projection of (A, e, M) on what is fitted: A - e <k_C> and M.
"""

from collections.abc import Sequence

import numpy as np

from musclecal.covariance import chi2_of
from musclecal.fits.scale_fit import fit_scale
from musclecal.fits.scale_information import solve_eta_bins
from musclecal.records import Closure, Floats, MassFits, ScaleWithCovariance, TemplateFit
from musclecal.resonances import resonance
from musclecal.validation.scale_factor import scale_factor

__all__ = [
    "closure_test",
    "mass_direction",
    "mean_residual",
    "overlap",
    "projection",
    "scale_factor",
    "template_closure",
]


def projection(parameter_names: tuple[str, ...], mean_k: Floats) -> Floats:
    """P, (n_eta n_fitted, 3 n_eta): what a closure that fits ``parameter_names`` sees of (A, e, M).

    A closure without e sees A - e <k_C>, with ``mean_k`` (n_eta,) in 1/GeV.
    """
    n_eta, n_fit = len(mean_k), len(parameter_names)
    seen = np.zeros((n_eta, n_fit, n_eta, 3))
    for n in range(n_eta):
        for row, name in enumerate(parameter_names):
            seen[n, row, n, ("A", "e", "M").index(name)] = 1.0
        if "e" not in parameter_names and "A" in parameter_names:
            seen[n, parameter_names.index("A"), n, 1] = -mean_k[n]
    return seen.reshape(n_eta * n_fit, 3 * n_eta)


def overlap(eta_edges: Floats, calibrated_edges: Floats) -> Floats:
    """(3 n_eta, 3 n_calibrated): A, e, M averaged over the parts of the calibration's bins in each eta bin.

    The identity for the same edges. What lies outside the calibration was not corrected and has no uncertainty.
    """
    low = np.maximum(eta_edges[:-1, None], calibrated_edges[None, :-1])
    high = np.minimum(eta_edges[1:, None], calibrated_edges[None, 1:])
    share = np.maximum(high - low, 0.0) / np.diff(eta_edges)[:, None]
    return np.kron(share, np.eye(3))


def mass_direction(parameter_names: tuple[str, ...], n_eta: int) -> Floats:
    """(n_eta n_fitted,) 1 for every A: what a relative error of the resonance mass moves."""
    return np.tile([1.0 if name == "A" else 0.0 for name in parameter_names], n_eta)


def _mass_part(parameter_names: tuple[str, ...], n_eta: int, relative_error: float) -> Floats:
    """Covariance of a common relative error of the resonance mass: it moves all A together."""
    direction = mass_direction(parameter_names, n_eta)
    return relative_error**2 * np.outer(direction, direction)


def closure_test(
    fits: MassFits, calibration: ScaleWithCovariance | None, parameters: Sequence[str] = ("A", "M")
) -> Closure:
    """Residual of the muons in ``fits``, to which ``calibration`` has been applied (None: nothing was).

    Raises
    ------
    InputError : what `fit_scale` raises.
    """
    solution = fit_scale(fits, parameters)
    return _closure(
        fits.resonance, "scalar", np.array(fits.binning.eta_edges), solution.parameter_names, solution.values,
        solution.covariance, calibration, (solution.chi2, solution.ndf), solution.mean_k, fits.events_fraction,
    )  # fmt: skip


def template_closure(
    fit: TemplateFit, calibration: ScaleWithCovariance | None, parameters: Sequence[str] = ("A", "M")
) -> Closure:
    """Residual of a resonance in a template fit, after ``calibration`` (None: nothing was applied).

    Raises
    ------
    InputError : parameters that the sample does not fix.
    """
    information = fit.information
    solution = solve_eta_bins(information, parameters)
    names = solution.parameter_names
    already = np.stack([getattr(fit.point, name) for name in names], axis=1)
    return _closure(
        information.resonance, "template", information.eta_edges, names, solution.values + already,
        solution.covariance, calibration, (solution.chi2, solution.ndf), information.mean_k,
        information.events_fraction,
    )  # fmt: skip


def _closure(
    name: str,
    engine: str,
    eta_edges: Floats,
    parameter_names: tuple[str, ...],
    values: Floats,
    covariance: Floats,
    calibration: ScaleWithCovariance | None,
    fit_quality: tuple[float, int],
    mean_k: Floats,
    events_fraction: float,
) -> Closure:
    line = resonance(name).line
    calibration_part = np.zeros_like(covariance)
    if calibration is not None:
        seen = projection(parameter_names, mean_k) @ overlap(eta_edges, calibration.eta_edges)
        calibration_part = seen @ calibration.covariance @ seen.T
    mass_part = _mass_part(parameter_names, len(eta_edges) - 1, line.mass_error / line.mass)
    residual = values.ravel()
    against_zero = chi2_of(residual, calibration_part + mass_part + covariance)
    return Closure(
        resonance=name,
        engine=engine,
        eta_edges=eta_edges,
        parameter_names=parameter_names,
        values=values,
        covariance=covariance,
        calibration_covariance=calibration_part + mass_part,
        chi2=against_zero.chi2,
        ndf=against_zero.ndf,
        p_value=against_zero.p_value,
        fit_chi2=fit_quality[0],
        fit_ndf=fit_quality[1],
        s=None if calibration is None else scale_factor(residual, calibration_part, covariance + mass_part),
        mean_k=mean_k,
        events_fraction=events_fraction,
    )


def mean_residual(closure: Closure, parameter: str = "A") -> tuple[float, float, float]:
    """Average of a parameter over the eta bins, its error from the closure sample alone, and with the calibration's.

    The average is weighted by the inverse covariance of the closure sample. For A: the relative momentum scale that is
    still to be corrected.
    """
    n_fit = len(closure.parameter_names)
    rows = np.arange(len(closure.values)) * n_fit + closure.parameter_names.index(parameter)
    alone = closure.covariance[np.ix_(rows, rows)]
    weight = np.linalg.solve(alone, np.ones(len(rows)))
    weight /= weight.sum()
    total = alone + closure.calibration_covariance[np.ix_(rows, rows)]
    mean = weight @ closure.values.ravel()[rows]
    return float(mean), float(np.sqrt(weight @ alone @ weight)), float(np.sqrt(weight @ total @ weight))
