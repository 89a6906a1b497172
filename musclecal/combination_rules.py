"""From the file of a combination to arrays: shifts, and correlations by name, by pair and by rule.

A source that several inputs have is the same in all of them, rho = 1, until a table [[correlations]] says otherwise.
Statistical errors are uncorrelated. Tables are applied in their order: of several for one pair the last one holds, for
rho and for the scan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from musclecal.combination_config import STATISTICS, CombinationConfig, CorrelationTable
from musclecal.errors import InputError
from musclecal.records import CorrelationRange, Floats
from musclecal.records.combination_case import CaseSource, CombinationCase

__all__ = ["base_case", "with_correlations"]

Pairs = Sequence[tuple[int, int]]


def base_case(config: CombinationConfig) -> CombinationCase:
    """The combination of a file, without scenarios. Raises `InputError` naming table and key."""
    inputs, observables = config.inputs, config.observable_names
    names = tuple(inputs)
    design = np.array([[float(one.observable == name) for name in observables] for one in inputs.values()])
    sources = {STATISTICS: _statistics(config)}
    for name in config.source_names[1:]:
        sources[name] = _source(config, name)
    bare = CombinationCase(
        name="base",
        values=np.array([one.value for one in inputs.values()]),
        names=names,
        labels=tuple(one.labels for one in inputs.values()),
        design=design,
        observables=observables,
        sources=sources,
        scans={},
        method=config.method,
        form=config.form,
    )
    return with_correlations(bare, config.correlations, "correlations")


def _statistics(config: CombinationConfig) -> CaseSource:
    names = tuple(config.inputs)
    errors = np.array([one.stat or 0.0 for one in config.inputs.values()])
    covariance = np.diag(errors**2)
    if config.statistics is not None:
        rows = [names.index(name) for name in config.statistics.inputs]
        covariance[np.ix_(rows, rows)] = config.statistics.covariance
    variance = np.diagonal(covariance)
    if np.min(variance) <= 0.0:
        raise InputError(
            f"statistics.covariance: {names[int(np.argmin(variance))]} has a variance that is not positive"
        )
    errors = np.sqrt(variance)
    return CaseSource(errors, -errors, covariance / errors[:, None] / errors, statistical=True)


def _source(config: CombinationConfig, name: str) -> CaseSource:
    inputs = config.inputs.values()
    up, down = np.array([one.uncertainties.get(name, (0.0, 0.0)) for one in inputs]).T
    errors = np.array([one.shift_errors.get(name, 0.0) for one in inputs])
    table = config.sources.get(name)
    return CaseSource(
        up=up,
        down=down,
        correlation=np.ones((len(up), len(up))),
        shift_errors=errors if np.any(errors) else None,
        relative=table is not None and table.kind == "relative",
        statistical=table is not None and table.statistical,
        group="" if table is None else table.group,
    )


def with_correlations(
    case: CombinationCase, tables: Sequence[CorrelationTable], where: str
) -> CombinationCase:
    """``case`` with correlations and scans of ``tables``; ``where`` they stand, for messages."""
    for number, table in enumerate(tables):
        case = _with_table(case, table, f"{where}.{number}")
    return case


def _with_table(case: CombinationCase, table: CorrelationTable, place: str) -> CombinationCase:
    sources, scans = dict(case.sources), dict(case.scans)
    pairs = tuple(_pairs(case, table, place))
    if not pairs:
        raise InputError(f"{place}: no pair of inputs is meant")
    if table.rho is not None and table.scan and not table.scan[0] <= table.rho <= table.scan[1]:
        raise InputError(f"{place}.scan: rho = {table.rho:g} lies outside")
    for name in table.sources:
        if name not in sources:
            raise InputError(f"{place}.sources: there is no source {name!r}")
        sources[name] = replace(sources[name], correlation=_changed(case, name, table, pairs))
        scans = _without(scans, name, pairs)
        if table.scan is None:
            continue
        moved = _moved(sources[name], pairs)
        if not moved:
            raise InputError(f"{place}.scan: {name} moves no pair of these inputs together")
        key = table.scan_name or name
        scans[key] = (*scans.get(key, ()), CorrelationRange(name, moved, *table.scan))
    return replace(case, sources=sources, scans=scans)


def _pairs(case: CombinationCase, table: CorrelationTable, place: str) -> Iterator[tuple[int, int]]:
    """Those that a table means, i < j, each once."""
    for key, names in (("inputs", table.inputs or ()), ("pairs", [n for p in table.pairs or () for n in p])):
        for name in names:
            if name not in case.names:
                raise InputError(f"{place}.{key}: there is no input {name!r}")
    for key, labels in (("same", table.same), ("different", table.different)):
        for label in labels:
            missing = [name for name, of in zip(case.names, case.labels, strict=True) if label not in of]
            if missing:
                raise InputError(f"{place}.{key}: {missing[0]} has no label {label!r}")
    chosen = None if table.pairs is None else {frozenset(pair) for pair in table.pairs}
    if chosen is not None and any(len(pair) < 2 for pair in chosen):
        raise InputError(f"{place}.pairs: an input with itself")
    for j, b in enumerate(case.names):
        for i, a in enumerate(case.names[:j]):
            if chosen is not None and frozenset((a, b)) not in chosen:
                continue
            if table.inputs is not None and not {a, b} <= set(table.inputs):
                continue
            first, second = case.labels[i], case.labels[j]
            if all(first[x] == second[x] for x in table.same) and all(
                first[x] != second[x] for x in table.different
            ):
                yield i, j


def _changed(case: CombinationCase, name: str, table: CorrelationTable, pairs: Pairs) -> Floats:
    """(n, n) correlations of a source after ``table``."""
    rho = case.sources[name].correlation.copy()
    given = {} if table.inputs is None else {of: row for row, of in enumerate(table.inputs)}
    for i, j in pairs:
        if table.rho is not None:
            value = table.rho
        else:
            assert table.matrix is not None
            value = min(max(table.matrix[given[case.names[i]]][given[case.names[j]]], -1.0), 1.0)
        rho[i, j] = rho[j, i] = value
    return rho


def _moved(source: CaseSource, pairs: Pairs) -> tuple[tuple[int, int], ...]:
    """Pairs of inputs that the source moves both."""
    affected = (source.up != 0.0) | (source.down != 0.0)
    return tuple((i, j) for i, j in pairs if affected[i] and affected[j])


def _without(
    scans: Mapping[str, tuple[CorrelationRange, ...]], source: str, pairs: Pairs
) -> dict[str, tuple[CorrelationRange, ...]]:
    """``scans`` that leave ``pairs`` of a source where they are."""
    kept = {}
    for name, ranges in scans.items():
        rest = [
            replace(one, pairs=tuple(p for p in one.pairs if p not in pairs)) if one.source == source else one
            for one in ranges
        ]
        if any(one.pairs for one in rest):
            kept[name] = tuple(one for one in rest if one.pairs)
    return kept
