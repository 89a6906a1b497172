r"""A, e, M of resonances, eras or experiments combined per eta bin: `blue` with 3 n_eta observables.

Each calibration gives all 3 n_eta parameters with its covariance. Named sources (final-state radiation, the mass of a
resonance, the background model, field, material) have signed shifts of the parameters of each calibration; one of equal
name is the same in all. A calibration against the others is a free shift of all its parameters: with
:math:`P = V^{-1} - V^{-1} U\,\mathrm{cov}\,U^T V^{-1}` and g its inputs, the difference is :math:`P_{gg}^{-1} (P y)_g`
with the covariance :math:`P_{gg}^{-1}`.

Not for: fits of several resonances at once (`musclecal.fits.joint_fit`), which know the masses bin by bin.
"""

from collections.abc import Mapping

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import chdtrc

from musclecal.errors import InputError
from musclecal.fits.combination.best_linear import blue
from musclecal.records import (
    CalibrationAgainstOthers,
    Combined,
    CombinedCalibration,
    Floats,
    ScaleWithCovariance,
)

__all__ = ["combine_calibrations"]

OWN = "own"
"""Source of the covariances that the calibrations bring along, independent of each other."""


def combine_calibrations(
    calibrations: Mapping[str, ScaleWithCovariance],
    shifts: Mapping[str, Mapping[str, Floats]] | None = None,
) -> CombinedCalibration:
    """Combine two calibrations or more.

    Parameters
    ----------
    calibrations : by name, with the same eta edges.
    shifts : by source, then by calibration: (3 n_eta,) SIGNED change of A0, e0, M0, A1, ... when the source moves up by
        one standard deviation. A calibration that is not named there does not feel the source.

    Raises
    ------
    InputError : fewer than two calibrations, other eta edges, a source of that name or a calibration that there is not,
        shifts of another shape, numbers that are not finite, a covariance that is not positive definite.
    """
    names = list(calibrations)
    if len(names) < 2:
        raise InputError(f"calibrations: two at least are combined, got {len(names)}")
    edges = np.asarray(calibrations[names[0]].eta_edges)
    for name in names[1:]:
        if not np.array_equal(calibrations[name].eta_edges, edges):
            raise InputError(f"calibration {name!r}: its eta edges are not those of {names[0]!r}")
    n = 3 * (len(edges) - 1)
    values = np.concatenate([calibrations[name].parameters for name in names])
    parameters = [f"{key}{i}" for i in range(n // 3) for key in "AeM"]
    combined = blue(
        values,
        {OWN: _own(calibrations), **_shared(names, shifts or {}, n)},
        np.tile(np.eye(n), (len(names), 1)),
        names=[f"{name} {parameter}" for name in names for parameter in parameters],
        observables=parameters,
    )
    scale, energy, sagitta = combined.values.reshape(-1, 3).T
    return CombinedCalibration(
        ScaleWithCovariance(edges, scale, energy, sagitta, combined.covariance),
        combined,
        tuple(_against_others(name, combined, slice(i * n, (i + 1) * n)) for i, name in enumerate(names)),
    )


def _own(calibrations: Mapping[str, ScaleWithCovariance]) -> Floats:
    """Block by block."""
    blocks = [np.asarray(one.covariance) for one in calibrations.values()]
    ends = np.cumsum([0, *(len(block) for block in blocks)])
    total = np.zeros((ends[-1], ends[-1]))
    for start, end, block in zip(ends[:-1], ends[1:], blocks, strict=True):
        total[start:end, start:end] = block
    return total


def _shared(names: list[str], shifts: Mapping[str, Mapping[str, Floats]], n: int) -> dict[str, Floats]:
    """Covariance of each named source."""
    found = {}
    for source, of_calibrations in shifts.items():
        if source == OWN:
            raise InputError(f"source {OWN!r}: the name is that of the calibrations' own covariances")
        moved = np.zeros((len(names), n))
        for name, change in of_calibrations.items():
            if name not in names:
                raise InputError(f"source {source!r}: there is no calibration {name!r}")
            values = np.asarray(change, dtype=np.float64)
            if values.shape != (n,) or not np.all(np.isfinite(values)):
                raise InputError(f"source {source!r}: calibration {name!r} needs {n} finite shifts")
            moved[names.index(name)] = values
        found[source] = np.outer(moved.ravel(), moved.ravel())
    return found


def _against_others(name: str, combined: Combined, mine: slice) -> CalibrationAgainstOthers:
    precision = combined.residual_precision[mine, mine]
    unit = 1.0 / np.sqrt(np.diagonal(precision))
    factor = cho_factor(precision * unit[:, None] * unit)
    covariance = unit[:, None] * cho_solve(factor, np.eye(len(unit))) * unit
    force = combined.residual_precision[mine] @ combined.inputs
    difference = covariance @ force
    chi2 = float(force @ difference)
    return CalibrationAgainstOthers(
        name, difference, covariance, chi2, len(unit), float(chdtrc(len(unit), chi2))
    )
