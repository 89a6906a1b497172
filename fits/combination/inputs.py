"""What a combination is given, checked once: shapes, finite numbers, symmetry, a total that can be inverted.

Single sources may be singular, and are not asked to be positive semi-definite: published correlations are rounded.
`musclecal.fits.combination.audit` says which are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from musclecal.errors import InputError
from musclecal.records import Floats, Measurements

__all__ = ["CheckedInputs", "checked_inputs", "checked_matrix", "describe", "refuse_bad_sources"]

_ASYMMETRY = 1e-10
_LEADING = 0.3
"""Components of a unit eigenvector above this are named."""


@dataclass(frozen=True)
class CheckedInputs:
    """``values`` (n,), ``design`` (n, m), ``stack`` (n_source, n, n), ``total`` (n, n), and names."""

    values: Floats
    design: Floats
    stack: Floats
    total: Floats
    sources: tuple[str, ...]
    names: tuple[str, ...]
    observables: tuple[str, ...]


def checked_inputs(
    values: ArrayLike,
    sources: Mapping[str, ArrayLike],
    design: ArrayLike | None,
    names: Sequence[str] | None,
    observables: Sequence[str] | None,
) -> CheckedInputs:
    """All of them as arrays, or an error that names the wrong one."""
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or not y.size:
        raise InputError(f"combination: values must be of shape (n,) with n > 0, got {y.shape}")
    labels = _labels(names, len(y), "input")
    if not np.all(np.isfinite(y)):
        raise InputError(f"combination: the value of {labels[int(np.argmin(np.isfinite(y)))]} is not finite")
    u = _checked_design(design, labels)
    columns = _labels(observables, u.shape[1], "observable")
    _refuse_unmeasured(u, labels, columns)
    stack = _checked_sources(sources, labels)
    total = np.asarray(stack.sum(axis=0))
    _refuse_indefinite(total, labels)
    return CheckedInputs(y, u, stack, total, tuple(sources), labels, columns)


def checked_matrix(matrix: ArrayLike, labels: Sequence[str], what: str) -> Floats:
    """(n, n) finite and symmetric; ``what`` it is, for messages."""
    checked = np.array(matrix, dtype=np.float64)
    n = len(labels)
    if checked.shape != (n, n):
        raise InputError(f"{what}: a matrix of shape {checked.shape} does not go with {n} inputs")
    _refuse_bad_elements(checked[None], (what,), labels)
    return np.asarray(0.5 * (checked + checked.T))


def refuse_bad_sources(measurements: Measurements) -> None:
    """Shifts and correlations of another number of inputs than there are values."""
    n = len(measurements.values)
    for name, source in measurements.sources.items():
        if source.shifts.shape != (n,) or source.correlation.shape != (n, n):
            raise InputError(
                f"source {name}: shifts of shape {source.shifts.shape} and correlations of shape "
                f"{source.correlation.shape} do not go with {n} inputs"
            )


def _labels(names: Sequence[str] | None, n: int, word: str) -> tuple[str, ...]:
    labels = tuple(f"{word} {i}" for i in range(n)) if names is None else tuple(names)
    if len(labels) != n:
        raise InputError(f"combination: {n} {word}s, but {len(labels)} names")
    return labels


def _checked_design(design: ArrayLike | None, labels: Sequence[str]) -> Floats:
    n = len(labels)
    u = np.ones((n, 1)) if design is None else np.array(design, dtype=np.float64)
    if u.ndim != 2 or len(u) != n or not u.shape[1]:
        raise InputError(f"combination: a design of shape {u.shape} does not go with {n} inputs")
    wrong = ~np.all(np.isfinite(u), axis=1)
    if np.any(wrong):
        raise InputError(f"combination: the design of {labels[int(np.argmax(wrong))]} is not finite")
    return u


def _refuse_unmeasured(u: Floats, labels: Sequence[str], columns: Sequence[str]) -> None:
    rows, seen = np.any(u != 0.0, axis=1), np.any(u != 0.0, axis=0)
    if not np.all(rows):
        raise InputError(f"combination: {labels[int(np.argmin(rows))]} measures no observable")
    if not np.all(seen):
        raise InputError(f"combination: no input measures {columns[int(np.argmin(seen))]}")
    if u.shape[1] == 1:
        return
    size, vectors = np.linalg.eigh(_scaled_gram(u))
    if size[0] < u.shape[1] * 1e-13 or u.shape[1] > len(u):
        raise InputError(
            "combination: the inputs do not tell all observables apart, first: "
            f"{describe(vectors[:, 0], columns)}"
        )


def _scaled_gram(u: Floats) -> Floats:
    """(m, m) products of the columns, each of unit length."""
    scaled = u / np.linalg.norm(u, axis=0)
    return np.asarray(scaled.T @ scaled)


def _checked_sources(sources: Mapping[str, ArrayLike], labels: Sequence[str]) -> Floats:
    """(n_source, n, n) symmetric."""
    n = len(labels)
    if not sources:
        raise InputError("combination: no source of uncertainty")
    arrays = [np.asarray(covariance, dtype=np.float64) for covariance in sources.values()]
    for name, array in zip(sources, arrays, strict=True):
        if array.shape != (n, n):
            raise InputError(f"source {name}: covariance of shape {array.shape} does not go with {n} inputs")
    stack = np.stack(arrays)
    _refuse_bad_elements(stack, [f"source {name}" for name in sources], labels)
    return np.asarray(0.5 * (stack + stack.transpose(0, 2, 1)))


def _refuse_bad_elements(stack: Floats, what: Sequence[str], labels: Sequence[str]) -> None:
    """Elements that are not finite, or not those of a symmetric matrix; a negative variance."""
    if not np.all(np.isfinite(stack)):
        s, i, j = np.argwhere(~np.isfinite(stack))[0]
        raise InputError(f"{what[s]}: {stack[s, i, j]} between {labels[i]} and {labels[j]}")
    size = np.max(np.abs(stack), axis=(1, 2), keepdims=True)
    uneven = np.abs(stack - stack.transpose(0, 2, 1)) > _ASYMMETRY * size
    if np.any(uneven):
        s, i, j = np.argwhere(uneven)[0]
        raise InputError(
            f"{what[s]}: not symmetric, {stack[s, i, j]:.6g} and {stack[s, j, i]:.6g} "
            f"between {labels[i]} and {labels[j]}"
        )
    variance = np.diagonal(stack, axis1=1, axis2=2)
    if np.min(variance) < 0.0:
        s, i = np.argwhere(variance < 0.0)[0]
        raise InputError(f"{what[s]}: negative variance {variance[s, i]:.3g} of {labels[i]}")


def _refuse_indefinite(total: Floats, labels: Sequence[str]) -> None:
    """A total covariance that cannot be inverted: which combination of inputs has no uncertainty, or less than none."""
    variance = np.diagonal(total)
    if np.min(variance) <= 0.0:
        raise InputError(f"combination: {labels[int(np.argmin(variance))]} has no uncertainty")
    unit = np.sqrt(variance)
    scaled = total / unit[:, None] / unit
    size = np.linalg.eigvalsh(scaled)
    rounding = 4.0 * len(size) * np.finfo(np.float64).eps * size[-1]
    if size[0] > rounding:
        return
    where = describe(np.linalg.eigh(scaled)[1][:, 0], labels)
    if size[0] < -rounding:
        raise InputError(
            f"combination: the total covariance is not positive definite, eigenvalue {size[0]:.3g} of its "
            f"correlation matrix, along {where}: these correlations contradict each other; the audit says which"
        )
    raise InputError(
        f"combination: the total covariance is singular, eigenvalue {size[0]:.1g} of its correlation matrix: "
        f"{where} (in standard deviations) has no uncertainty. Is an input there twice, or is a source without "
        "correlations (statistics) missing?"
    )


def describe(vector: Floats, labels: Sequence[str]) -> str:
    """Its leading components in words, largest first."""
    order = np.argsort(-np.abs(vector), kind="stable")[:4]
    named = [i for n, i in enumerate(order) if n == 0 or abs(vector[i]) > _LEADING]
    return " ".join(f"{vector[i]:+.2f} {labels[i]}" for i in named)
