r"""Combinations with relative uncertainties: of the combined value, not of the measured ones.

An input that fluctuates down has a smaller uncertainty if this is a fraction of the input, so it gets too much weight
and pulls the result down. Instead :math:`u_{s,i} = f_{s,i}\, \hat y_i` with :math:`\hat y = U x` of the step before,
until x is stable.

Not for: statistical uncertainties, which do not scale with the value; values near zero.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from musclecal.errors import InputError
from musclecal.fits.combination.best_linear import blue
from musclecal.records import Combined, Floats, RescaledCombination

__all__ = ["blue_rescaled"]


def blue_rescaled(
    values: ArrayLike,
    sources: Mapping[str, ArrayLike],
    relative: Collection[str],
    design: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    observables: Sequence[str] | None = None,
    tolerance: float = 1e-9,
    max_iterations: int = 100,
) -> RescaledCombination:
    """`blue` with the sources in ``relative`` scaled to the combined value.

    Parameters
    ----------
    sources : covariances (n, n) as measured, of the measured values.
    relative : names of those that scale.
    tolerance : largest last step, in standard deviations of the result.

    Raises
    ------
    InputError : as `blue`; a name that is no source; an input of value 0 with a relative uncertainty.
    """
    first = blue(values, sources, design, names=names, observables=observables)
    fixed, scaling = _parted(first, sources, relative)
    combined = first
    for iteration in range(1, max_iterations + 1):
        before = combined
        scale = _scale(before, scaling)
        scaled = {name: covariance * scale[:, None] * scale for name, covariance in scaling.items()}
        merged = {name: scaled[name] if name in scaled else fixed[name] for name in sources}
        combined = blue(values, merged, design, names=names, observables=observables)
        if np.all(np.abs(combined.values - before.values) <= tolerance * combined.errors):
            return RescaledCombination(combined, first, iteration, converged=True)
    return RescaledCombination(combined, first, max_iterations, converged=False)


def _parted(
    first: Combined, sources: Mapping[str, ArrayLike], relative: Collection[str]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Sources that stay and those that scale."""
    unknown = [name for name in relative if name not in sources]
    if unknown:
        raise InputError(f"relative uncertainties: there is no source {unknown[0]!r}")
    arrays = {name: np.asarray(covariance, dtype=np.float64) for name, covariance in sources.items()}
    scaling = {name: array for name, array in arrays.items() if name in relative}
    for name, array in scaling.items():
        nothing = (first.inputs == 0.0) & (np.diagonal(array) > 0.0)
        if np.any(nothing):
            raise InputError(
                f"source {name}: {first.names[int(np.argmax(nothing))]} is 0, so nothing is relative to it"
            )
    return {name: array for name, array in arrays.items() if name not in relative}, scaling


def _scale(combined: Combined, scaling: Mapping[str, Floats]) -> Floats:
    """(n,) combined over measured value."""
    inputs = combined.inputs
    scale = (combined.design @ combined.values) / np.where(inputs == 0.0, 1.0, inputs)
    affected = np.asarray(sum(np.diagonal(array) for array in scaling.values())) > 0.0
    opposite = affected & (scale <= 0.0)
    if np.any(opposite):
        name = combined.names[int(np.argmax(opposite))]
        raise InputError(f"relative uncertainties: {name} and what is combined have opposite signs")
    return np.asarray(scale)
