"""Columns of muons of any structure as flat arrays for kernels, and results in that structure again.

Not for: what is computed of them (`musclecal.correction`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musclecal.errors import InputError

__all__ = ["flattened"]

_KEPT = {"real": ("f4", "f8", "i4"), "integer": ("i8", "u8")}
"""Types that kernels take as they are; others are converted."""


def flattened(
    columns: Sequence[Any], kinds: Sequence[str]
) -> tuple[list[NDArray[Any]], Callable[[Any], Any]]:
    """The columns broadcast and flattened to (n,), and what gives a result (n, ...) their structure.

    Parameters
    ----------
    columns : scalars, numpy arrays of any shape, or awkward arrays; a value an event goes to all muons of the event.
    kinds : "real" or "integer" of each column. Real ones stay float32, float64 or int32, whole ones 64-bit integers;
        others are converted.

    Raises
    ------
    InputError : columns that do not fit together, missing values, no numbers.
    """
    if any(type(column).__module__.partition(".")[0] == "awkward" for column in columns):
        return _flattened_awkward(columns, kinds)
    if any(np.ma.is_masked(column) for column in columns):
        raise InputError("muons: some values are missing (masked): drop them first")
    try:
        arrays = np.broadcast_arrays(*(np.asarray(column) for column in columns))
    except ValueError as error:
        raise InputError(f"muons: columns that do not fit ({error})") from None
    shape = arrays[0].shape
    flat = [_typed(array.ravel(), kind) for array, kind in zip(arrays, kinds, strict=True)]

    def rebuild(values: NDArray[Any]) -> Any:
        return values.reshape((*shape, *values.shape[1:]))[()]

    return flat, rebuild


def _flattened_awkward(
    columns: Sequence[Any], kinds: Sequence[str]
) -> tuple[list[NDArray[Any]], Callable[[Any], Any]]:
    import awkward as ak

    try:
        arrays = ak.broadcast_arrays(*columns)
        missing = any(ak.any(ak.is_none(x, axis=n), axis=None) for x in arrays for n in range(x.ndim))
    except (ValueError, TypeError) as error:
        raise InputError(f"muons: columns of different structure ({error})".splitlines()[0]) from None
    if missing:
        raise InputError("muons: some values are missing (None): drop them first")
    counts = []
    for axis in range(arrays[0].ndim - 1, 0, -1):
        counts.append(ak.flatten(ak.num(arrays[0], axis=axis), axis=None))
    flat = [
        _typed(ak.to_numpy(ak.flatten(array, axis=None)), kind)
        for array, kind in zip(arrays, kinds, strict=True)
    ]

    def rebuild(values: NDArray[Any]) -> Any:
        result = ak.Array(values) if values.ndim == 1 else ak.from_regular(values, axis=None)
        for n in counts:
            result = ak.unflatten(result, n)
        return result

    return flat, rebuild


def _typed(column: NDArray[Any], kind: str) -> NDArray[Any]:
    allowed = "iuf" if kind == "real" else "iu"
    if column.dtype.kind not in allowed and column.size:
        raise InputError(f"muons: {kind} numbers are needed, got {column.dtype}")
    if column.dtype.isnative and column.dtype.str[1:] in _KEPT[kind]:
        return np.ascontiguousarray(column)
    return np.ascontiguousarray(column, dtype=np.float64 if kind == "real" else np.int64)
