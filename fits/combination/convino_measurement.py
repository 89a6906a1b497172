"""Reader of a measurement file of Convino; the format is in `musclecal.fits.combination.convino_files`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.convino_text import (
    NUMBER,
    Blocks,
    Line,
    assignments,
    blocks_of,
    numbered,
)
from musclecal.fits.combination.likelihood_input import (
    from_correlations,
    from_hessian,
    from_table,
    with_external,
)
from musclecal.records import Floats
from musclecal.records.combination_likelihood import STATISTICAL, LikelihoodInput

__all__ = ["read_convino_measurement"]

MEASUREMENT_BLOCKS = (
    "hessian",
    "correlation matrix",
    "not fitted",
    "systematics",
    "estimates",
    "nuisance values",
)

_TWO_SIDED = re.compile(rf"^\(\s*({NUMBER})\s*([+-]{NUMBER[5:]})\s*\)$")
_ENTRY = re.compile(r"\([^)]*\)|[^\s()]+")


def _triangle(lines: Sequence[Line], block: str) -> tuple[list[str], list[float | None], Floats]:
    """Names, constraints in parentheses and the symmetric matrix of which the lower triangle is given."""
    names: list[str] = []
    constraints: list[float | None] = []
    matrix = np.zeros((len(lines), len(lines)))
    for row, line in enumerate(lines):
        name, *entries = _ENTRY.findall(line.text)
        if name in names:
            raise line.error(f"[{block}]: {name!r} is there twice")
        names.append(name)
        given = bool(entries) and entries[0].startswith("(")
        constraints.append(
            line.number_of(entries.pop(0)[1:-1].strip(), f"constraint of {name!r}") if given else None
        )
        if len(entries) != row + 1:
            raise line.error(
                f"[{block}]: {name!r} is row {row + 1} of a lower triangle, but has {len(entries)} numbers"
            )
        for column, entry in enumerate(entries):
            matrix[row, column] = matrix[column, row] = line.number_of(
                entry, f"{name!r} with {names[column]!r}"
            )
    return names, constraints, matrix


def _shift(line: Line, text: str, what: str) -> tuple[float, float]:
    """Changes up and down: ``6.1`` is (6.1, -6.1), ``(+5-3)`` is (5, -3)."""
    both = _TWO_SIDED.match(text)
    if both:
        return float(both[1]), float(both[2])
    if text.startswith("("):
        raise line.error(f"{what}: {text!r} is not of the form (+5-3)")
    value = line.number_of(text, what)
    return value, -value


@dataclass(frozen=True)
class _Table:
    """Of sources that were not fitted: up, down (n_estimate, n_source), stat (n_estimate,) or None."""

    estimates: list[str]
    sources: list[str]
    up: Floats
    down: Floats
    stat: Floats | None


def _table(lines: Sequence[Line]) -> _Table:
    header, *rows = lines
    names = header.text.split()
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise header.error(f"[not fitted]: {twice!r} is there twice")
    estimates: list[str] = []
    both = np.zeros((len(rows), len(names), 2))
    for row, line in enumerate(rows):
        estimate, *entries = _ENTRY.findall(line.text)
        if estimate in estimates:
            raise line.error(f"[not fitted]: estimate {estimate!r} is there twice")
        estimates.append(estimate)
        if len(entries) != len(names):
            raise line.error(
                f"[not fitted]: {len(names)} columns, but {len(entries)} numbers for {estimate!r}"
            )
        for column, entry in enumerate(entries):
            both[row, column] = _shift(line, entry, f"{names[column]!r} of {estimate!r}")
    chosen = [n for n, name in enumerate(names) if name != STATISTICAL]
    stat = both[:, names.index(STATISTICAL), 0] if STATISTICAL in names else None
    return _Table(estimates, [names[n] for n in chosen], both[:, chosen, 0], both[:, chosen, 1], stat)


def _kinds(blocks: Blocks, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources that are relative, and those that are free."""
    kinds: dict[str, list[str]] = {"absolute": [], "relative": [], "free": []}
    for line in blocks.get("systematics", []):
        source, kind = line.assignment()
        if source not in known:
            raise line.error(f"[systematics]: no source {source!r} in this file")
        if kind == "lognormal":
            raise line.error(f"[systematics]: {source!r} is log-normal, which no program implements")
        if kind not in kinds:
            raise line.error(f"[systematics]: {source!r} is {kind!r}, none of absolute, relative, free")
        kinds[kind].append(source)
    return kinds["relative"], kinds["free"]


def _estimates(blocks: Blocks, path: Path) -> dict[str, float]:
    entries = numbered(
        assignments(blocks.get("estimates", []), "estimates"),
        path,
        "estimates",
        "n_estimates",
        "name_",
        "value_",
    )
    result: dict[str, float] = {}
    for (name, line), (value, value_line) in entries:
        if name in result:
            raise line.error(f"[estimates]: {name!r} is there twice")
        result[name] = value_line.number_of(value, f"value of {name!r}")
    if not result:
        raise InputError(f"{path}: [estimates] has no estimate")
    return result


def _fitted(blocks: Blocks, known: Sequence[str]) -> dict[str, float]:
    result = {}
    for source, (value, line) in assignments(blocks.get("nuisance values", []), "nuisance values").items():
        if source not in known:
            raise line.error(f"[nuisance values]: {source!r} is no fitted source of this file")
        result[source] = line.number_of(value, f"fitted value of {source!r}")
    return result


def read_convino_measurement(path: str | Path) -> LikelihoodInput:
    """One measurement file.

    Raises
    ------
    InputError : naming file, line and key.
    """
    path = Path(path)
    blocks = blocks_of(path, MEASUREMENT_BLOCKS)
    estimates = _estimates(blocks, path)
    hessian, correlations = blocks.get("hessian", []), blocks.get("correlation matrix", [])
    if hessian and correlations:
        raise correlations[0].error("both [hessian] and [correlation matrix]")
    fit = hessian or correlations
    table = _table(blocks["not fitted"]) if blocks.get("not fitted") else None
    if not fit and table is None:
        raise InputError(f"{path}: none of [hessian], [correlation matrix], [not fitted] says anything")
    names, constraints, matrix = _triangle(fit, "hessian" if hessian else "correlation matrix")
    fitted_sources = [name for name in names if name not in estimates]
    relative, free = _kinds(blocks, fitted_sources + (table.sources if table else []))
    of_fit = [source for source in relative if source in fitted_sources]
    of_table = [source for source in relative if source not in fitted_sources]
    values = _fitted(blocks, fitted_sources)
    if not fit:
        assert table is not None
        return _of_table(path, estimates, table, of_table, free)
    if hessian:
        one = from_hessian(str(path), names, matrix, estimates, fitted=values, free=free, relative=of_fit)
    else:
        sizes = []
        for line, name, size in zip(fit, names, constraints, strict=True):
            if size is None or size <= 0.0:
                raise line.error(
                    f"[correlation matrix]: {name!r} needs a positive (constraint) after its name"
                )
            sizes.append(size)
        wrong = np.flatnonzero(np.diagonal(matrix) != 1.0)
        if len(wrong):
            n = int(wrong[0])
            raise fit[n].error(
                f"[correlation matrix]: {names[n]!r} has {matrix[n, n]:g} on the diagonal, not 1"
            )
        one = from_correlations(
            str(path), names, matrix, sizes, estimates, fitted=values, free=free, relative=of_fit
        )
    if table is None:
        return one
    order = _rows(path, tuple(estimates), table)
    return with_external(one, table.sources, table.up[order], table.down[order], relative=of_table)


def _rows(path: Path, estimates: Sequence[str], table: _Table) -> list[int]:
    """Rows of the table in the order of the estimates."""
    unknown = [name for name in table.estimates if name not in estimates]
    if unknown:
        raise InputError(f"{path}: [not fitted] has a row {unknown[0]!r}, which is no estimate")
    missing = [name for name in estimates if name not in table.estimates]
    if missing:
        raise InputError(f"{path}: [not fitted] has no row {missing[0]!r}")
    return [table.estimates.index(name) for name in estimates]


def _of_table(
    path: Path, estimates: dict[str, float], table: _Table, relative: Sequence[str], free: Sequence[str]
) -> LikelihoodInput:
    if free:
        raise InputError(f"{path}: source {free[0]!r} is free, but was not fitted: nothing would fix it")
    order = _rows(path, tuple(estimates), table)
    if table.stat is None or not np.all(table.stat > 0.0):
        raise InputError(
            f"{path}: [not fitted] needs a positive 'stat' for each estimate, as there is no fit"
        )
    covariance = np.diag(table.stat[order] ** 2)
    return from_table(
        str(path), estimates, covariance, table.sources, table.up[order], table.down[order], relative=relative
    )
