r"""Combinations of combinations: each group by itself, then the results, with all correlations between them.

With the weights :math:`W_g` of the groups in the blocks of W', the results are :math:`y' = W' y` and their sources
:math:`V'_s = W' V_s W'^T`. Weights inside a group stay those of the group: the result is never more precise than the
combination of all inputs at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from musclecal.errors import InputError
from musclecal.fits.combination.best_linear import blue
from musclecal.records import Combined, Floats, GroupedCombination

__all__ = ["combine_groups"]


def combine_groups(
    values: ArrayLike,
    sources: Mapping[str, ArrayLike],
    groups: Mapping[str, Sequence[int]],
    design: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    observables: Sequence[str] | None = None,
) -> GroupedCombination:
    """Combine each group, then the combinations.

    Parameters
    ----------
    values, sources, design, names, observables : as in `blue`.
    groups : numbers of the inputs of each group; every input is in one of them.
    """
    whole = blue(values, sources, design, names=names, observables=observables)
    _refuse_partial(groups, whole.names)
    stack = {name: np.asarray(covariance, dtype=np.float64) for name, covariance in sources.items()}
    parts, rows, columns, labels = {}, [], [], []
    for group, inputs in groups.items():
        part, seen = _combined_alone(whole, stack, list(inputs))
        parts[group] = part
        for weights, observable in zip(part.weights, seen, strict=True):
            row = np.zeros(len(whole.inputs))
            row[list(inputs)] = weights
            rows.append(row)
            columns.append(np.eye(len(whole.observables))[observable])
            labels.append(group if len(seen) == 1 else f"{group} {whole.observables[observable]}")
    together = np.array(rows)
    combined = blue(
        together @ whole.inputs,
        {name: together @ covariance @ together.T for name, covariance in stack.items()},
        np.array(columns),
        names=labels,
        observables=whole.observables,
    )
    return GroupedCombination(parts, combined)


def _combined_alone(
    whole: Combined, stack: Mapping[str, Floats], inputs: list[int]
) -> tuple[Combined, Sequence[int]]:
    """The inputs of a group alone, and which observables they measure."""
    seen = np.flatnonzero(np.any(whole.design[inputs] != 0.0, axis=0)).tolist()
    part = blue(
        whole.inputs[inputs],
        {name: covariance[np.ix_(inputs, inputs)] for name, covariance in stack.items()},
        whole.design[np.ix_(inputs, seen)],
        names=[whole.names[i] for i in inputs],
        observables=[whole.observables[a] for a in seen],
    )
    return part, seen


def _refuse_partial(groups: Mapping[str, Sequence[int]], names: Sequence[str]) -> None:
    used = [i for inputs in groups.values() for i in inputs]
    wrong = [i for i in used if not 0 <= i < len(names)]
    if wrong:
        raise InputError(f"groups: there is no input {wrong[0]} among {len(names)}")
    for i, name in enumerate(names):
        if used.count(i) != 1:
            raise InputError(f"groups: {name} is in {used.count(i)} groups")
