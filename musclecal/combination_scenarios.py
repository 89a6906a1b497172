"""Scenarios of a combination: named changes of its base.

The order is fixed: rename, split, merge, drop, scale, sign, rho. Names are those after the steps before. Scans of
what a scenario takes away go with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from musclecal.combination_config import CombinationConfig, ScenarioTable
from musclecal.combination_rules import base_case, with_correlations
from musclecal.errors import InputError
from musclecal.records import CorrelationRange, Floats
from musclecal.records.combination_case import CaseSource, CombinationCase

__all__ = ["combination_cases", "scenario_case"]

Scans = dict[str, tuple[CorrelationRange, ...]]


def combination_cases(
    config: CombinationConfig, wanted: Sequence[str] | None = None
) -> tuple[CombinationCase, ...]:
    """The base, and its scenarios (all, or those that are ``wanted``). Raises `InputError` naming table and key."""
    unknown = [name for name in wanted or () if name not in config.scenarios]
    if unknown:
        raise InputError(
            f"scenarios: there is no {unknown[0]!r}; there are {', '.join(config.scenarios) or 'none'}"
        )
    base = base_case(config)
    names = config.scenarios if wanted is None else dict.fromkeys(wanted)
    return (base, *(scenario_case(base, name, config.scenarios[name]) for name in names))


def scenario_case(base: CombinationCase, name: str, table: ScenarioTable) -> CombinationCase:
    """``base`` with the changes of one scenario."""
    where = f"scenarios.{name}"
    case = replace(base, name=name)
    for old, new in table.rename.items():
        case = _renamed(case, old, new, f"{where}.rename")
    for source, parts in table.split.items():
        place = f"{where}.split"
        if isinstance(parts, str):
            case = _split_by_label(case, source, parts, place)
        else:
            case = _split(case, source, parts, place)
    for new, members in table.merge.items():
        case = _merged(case, new, members, f"{where}.merge.{new}")
    for source in table.drop.sources:
        _known(case, source, f"{where}.drop.sources")
        case = _replaced(case, source, {})
    if table.drop.inputs:
        case = _without_inputs(case, table.drop.inputs, f"{where}.drop.inputs")
    for source, factor in table.scale.items():
        case = _scaled(case, source, np.full(len(case.names), factor), f"{where}.scale")
    for source, inputs in table.sign.items():
        turned = _indices(case, inputs, f"{where}.sign.{source}")
        factors = np.where(np.isin(np.arange(len(case.names)), turned), -1.0, 1.0)
        case = _scaled(case, source, factors, f"{where}.sign")
    return with_correlations(case, table.rho, f"{where}.rho")


def _known(case: CombinationCase, source: str, place: str) -> CaseSource:
    if source not in case.sources:
        raise InputError(f"{place}: there is no source {source!r}")
    return case.sources[source]


def _indices(case: CombinationCase, inputs: Sequence[str], place: str) -> list[int]:
    for name in inputs:
        if name not in case.names:
            raise InputError(f"{place}: there is no input {name!r}")
    return [case.names.index(name) for name in inputs]


def _replaced(
    case: CombinationCase, source: str, new: Mapping[str, CaseSource], *, keep_scans: bool = False
) -> CombinationCase:
    """``new`` sources in the place of one; its scans go, if they are not told to stay."""
    sources: dict[str, CaseSource] = {}
    for name, one in case.sources.items():
        sources.update(new if name == source else {name: one})
    return replace(
        case, sources=sources, scans=dict(case.scans) if keep_scans else _scans_without(case, source)
    )


def _scans_without(case: CombinationCase, source: str) -> Scans:
    left = {name: tuple(one for one in ranges if one.source != source) for name, ranges in case.scans.items()}
    return {name: ranges for name, ranges in left.items() if ranges}


def _renamed(case: CombinationCase, old: str, new: str, place: str) -> CombinationCase:
    source = _known(case, old, place)
    if new in case.sources:
        return _shared(case, old, new, place)
    scans = {
        new if name == old else name: tuple(
            replace(one, source=new) if one.source == old else one for one in ranges
        )
        for name, ranges in case.scans.items()
    }
    return replace(_replaced(case, old, {new: source}), scans=scans)


def _shared(case: CombinationCase, old: str, new: str, place: str) -> CombinationCase:
    """Two sources of different inputs become one, rho = 1 between them."""
    first, second = case.sources[new], case.sources[old]
    has_first, has_second = _affected(first), _affected(second)
    both = has_first & has_second
    if np.any(both):
        raise InputError(
            f"{place}: {case.names[int(np.argmax(both))]} has both {old!r} and {new!r}; merge adds them up"
        )
    _alike((new, first), (old, second), place)
    rho = np.where(has_second[:, None] & has_second, second.correlation, first.correlation)
    rho = np.where(has_first[:, None] & has_second | has_second[:, None] & has_first, 1.0, rho)
    errors = (
        None
        if first.shift_errors is None and second.shift_errors is None
        else _errors(first) * has_first + _errors(second) * has_second
    )
    one = replace(
        first, up=first.up + second.up, down=first.down + second.down, correlation=rho, shift_errors=errors
    )
    case = _replaced(case, old, {})
    return _replaced(case, new, {new: one}, keep_scans=True)


def _affected(source: CaseSource) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return (source.up != 0.0) | (source.down != 0.0)


def _errors(source: CaseSource) -> Floats:
    return np.zeros(len(source.up)) if source.shift_errors is None else source.shift_errors


def _alike(first: tuple[str, CaseSource], second: tuple[str, CaseSource], place: str) -> None:
    for key in ("relative", "statistical"):
        if getattr(first[1], key) != getattr(second[1], key):
            raise InputError(f"{place}: of {first[0]!r} and {second[0]!r} only one is {key}")


def _split_by_label(case: CombinationCase, source: str, label: str, place: str) -> CombinationCase:
    one, parts = _known(case, source, place), {}
    for name, labels, moved in zip(case.names, case.labels, _affected(one), strict=True):
        if moved and label not in labels:
            raise InputError(f"{place}.{source}: {name} has no label {label!r}")
    for value in dict.fromkeys(labels[label] for labels in case.labels if label in labels):
        inside = np.array([labels.get(label) == value for labels in case.labels])
        parts[f"{source} {value}"] = _times(one, inside.astype(np.float64))
    _new_names(case, parts, source, place)
    return _replaced(case, source, {name: part for name, part in parts.items() if np.any(_affected(part))})


def _split(case: CombinationCase, source: str, factors: Mapping[str, float], place: str) -> CombinationCase:
    one = _known(case, source, place)
    parts = {name: _times(one, np.full(len(case.names), factor)) for name, factor in factors.items()}
    _new_names(case, parts, source, place)
    return _replaced(case, source, parts)


def _new_names(case: CombinationCase, new: Mapping[str, CaseSource], old: str, place: str) -> None:
    for name in new:
        if name != old and name in case.sources:
            raise InputError(f"{place}.{old}: there is a source {name!r} already")


def _times(source: CaseSource, factors: Floats) -> CaseSource:
    errors = None if source.shift_errors is None else np.abs(factors) * source.shift_errors
    return replace(source, up=factors * source.up, down=factors * source.down, shift_errors=errors)


def _merged(case: CombinationCase, new: str, members: Sequence[str], place: str) -> CombinationCase:
    r"""One source with :math:`V = \sum V_s`; its shifts have the sign of their largest member."""
    if len(set(members)) < len(members):
        raise InputError(f"{place}: a source is there twice")
    sources = [_known(case, name, place) for name in members]
    for name, source in zip(members, sources, strict=True):
        _alike((members[0], sources[0]), (name, source), place)
        if source.asymmetric:
            raise InputError(f"{place}: {name} has asymmetric shifts, whose squares do not say enough")
    if new not in members and new in case.sources:
        raise InputError(f"{place}: there is a source of this name already")
    shifts = np.array([source.up for source in sources])
    covariance = np.sum([s.correlation * s.up[:, None] * s.up for s in sources], axis=0)
    largest = np.take_along_axis(shifts, np.argmax(np.abs(shifts), axis=0)[None], axis=0)[0]
    size = np.where(largest < 0.0, -1.0, 1.0) * np.sqrt(np.diagonal(covariance))
    unit = np.where(size == 0.0, 1.0, size)
    rho = covariance / unit[:, None] / unit
    np.fill_diagonal(rho, 1.0)
    known = all(source.shift_errors is None for source in sources)
    # Of the root of a sum of squares, in first order.
    weighted = np.sum([(s.up * _errors(s)) ** 2 for s in sources], axis=0)
    errors = None if known else np.sqrt(weighted) / np.abs(unit)
    one = replace(sources[0], up=size, down=-size, correlation=rho, shift_errors=errors)
    for name in members[1:]:
        case = _replaced(case, name, {})
    return _replaced(case, members[0], {new: one})


def _without_inputs(case: CombinationCase, inputs: Sequence[str], place: str) -> CombinationCase:
    """Without some inputs, and the observables that nothing measures any more."""
    out = _indices(case, inputs, place)
    kept = [i for i in range(len(case.names)) if i not in out]
    if not kept:
        raise InputError(f"{place}: no input is left")
    seen = np.any(case.design[kept] != 0.0, axis=0)
    square = np.ix_(kept, kept)
    sources = {
        name: replace(
            one,
            up=one.up[kept],
            down=one.down[kept],
            correlation=one.correlation[square],
            shift_errors=None if one.shift_errors is None else one.shift_errors[kept],
        )
        for name, one in case.sources.items()
    }
    scans: Scans = {}
    for name, ranges in case.scans.items():
        left = [
            replace(
                one, pairs=tuple((kept.index(i), kept.index(j)) for i, j in one.pairs if {i, j} <= {*kept})
            )
            for one in ranges
        ]
        if any(one.pairs for one in left):
            scans[name] = tuple(one for one in left if one.pairs)
    return replace(
        case,
        values=case.values[kept],
        names=tuple(case.names[i] for i in kept),
        labels=tuple(case.labels[i] for i in kept),
        design=case.design[kept][:, seen],
        observables=tuple(name for name, there in zip(case.observables, seen, strict=True) if there),
        sources=sources,
        scans=scans,
    )


def _scaled(
    case: CombinationCase,
    source: str,
    factors: Floats,
    place: str,
) -> CombinationCase:
    one = _times(_known(case, source, place), factors)
    case = _replaced(case, source, {source: one}, keep_scans=True)
    return case if np.any(_affected(one)) else replace(case, scans=_scans_without(case, source))
