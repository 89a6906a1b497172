"""Reader of the text files of Convino: a main file, and one file for each measurement.

    main          [global] [inputs] [observables] [correlations] [uncertainty impacts]
    measurement   [hessian] or [correlation matrix], [not fitted], [systematics], [estimates], [nuisance values]

``#`` starts a comment, text outside blocks is ignored. Names are unique over all files: a source that two measurements
have in common has two names, and a correlation. ``[nuisance values]`` and ``name = free`` are additions of pyconvino.
Log-normal sources are in the format, but in no program: they are refused. Files are read as UTF-8.

Stricter than the programs in one respect: blocks and keys that nobody knows are errors, as a misspelt one would drop
sources without a word.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.likelihood_input import (
    from_correlations,
    from_hessian,
    from_table,
    with_external,
)
from musclecal.records import Floats
from musclecal.records.combination_likelihood import (
    CorrelationRange,
    CorrelationScan,
    LikelihoodInput,
    LikelihoodProblem,
)

__all__ = ["read_convino", "read_convino_measurement"]

MAIN_BLOCKS = ("global", "inputs", "observables", "correlations", "uncertainty impacts")
MEASUREMENT_BLOCKS = (
    "hessian",
    "correlation matrix",
    "not fitted",
    "systematics",
    "estimates",
    "nuisance values",
)
STATISTICAL = "stat"

_BLOCK = re.compile(r"^\[\s*([^\[\]]+?)\s*\]$")
_INCLUDE = re.compile(r"^\s*#!FILE\s*=\s*([^#]+)")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TWO_SIDED = re.compile(rf"^\(\s*({_NUMBER})\s*([+-]{_NUMBER[5:]})\s*\)$")
_TERM = re.compile(rf"^\(\s*({_NUMBER})\s*(?:&\s*({_NUMBER})\s*:\s*({_NUMBER})\s*)?\)\s*([^\s()=]+)$")
_ENTRY = re.compile(r"\([^)]*\)|[^\s()]+")


@dataclass(frozen=True)
class _Line:
    """A line without its comment, and where it stands."""

    path: Path
    number: int
    text: str

    def error(self, message: str) -> InputError:
        """An error that says where."""
        return InputError(f"{self.path}, line {self.number}: {message}")

    def number_of(self, text: str, what: str) -> float:
        """``text`` as a finite number."""
        if not re.fullmatch(_NUMBER, text):
            raise self.error(f"{what}: {text!r} is no number")
        return float(text)

    def assignment(self) -> tuple[str, str]:
        """Both sides of ``key = value``."""
        key, equals, value = self.text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise self.error(f"expected 'name = value', got {self.text!r}")
        return key.strip(), value.strip().rstrip(";").strip()


_Blocks = dict[str, list[_Line]]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8") from error


def _included(path: Path, seen: tuple[Path, ...]) -> Iterator[_Line]:
    """Lines of a file of correlations, with those that it includes itself."""
    if path.resolve() in seen:
        raise InputError(f"{path}: includes itself")
    for number, raw in enumerate(_lines(path), start=1):
        include = _INCLUDE.match(raw)
        if include:
            yield from _included(path.parent / include[1].strip(), (*seen, path.resolve()))
            continue
        text = raw.split("#", 1)[0].strip()
        if text and not _BLOCK.match(text):
            yield _Line(path, number, text)


def _blocks(path: Path, allowed: Sequence[str]) -> _Blocks:
    """Lines of each block of a file, comments and empty lines left out."""
    found: _Blocks = {}
    block, opened = None, 0
    for number, raw in enumerate(_lines(path), start=1):
        include = _INCLUDE.match(raw)
        if include and block is not None:
            found[block].extend(_included(path.parent / include[1].strip(), (path.resolve(),)))
            continue
        line = _Line(path, number, raw.split("#", 1)[0].strip())
        marker = _BLOCK.match(line.text)
        if marker is None:
            if block is not None and line.text:
                found[block].append(line)
            continue
        name = " ".join(marker[1].split()).lower()
        if block is None:
            if name not in allowed:
                raise line.error(f"unknown block [{name}]: there are {', '.join(f'[{b}]' for b in allowed)}")
            if name in found:
                raise line.error(f"block [{name}] is there twice")
            block, opened, found[name] = name, number, []
        elif name == f"end {block}":
            block = None
        else:
            raise line.error(
                f"[{name}] inside [{block}], which starts in line {opened} and has no [end {block}]"
            )
    if block is not None:
        raise InputError(f"{path}, line {opened}: block [{block}] has no [end {block}]")
    return found


def _assignments(lines: Sequence[_Line], block: str) -> dict[str, tuple[str, _Line]]:
    """Values of a block of ``key = value``, and their lines."""
    result: dict[str, tuple[str, _Line]] = {}
    for line in lines:
        key, value = line.assignment()
        if key in result:
            raise line.error(f"[{block}]: {key!r} is there twice")
        result[key] = value, line
    return result


def _numbered(
    values: dict[str, tuple[str, _Line]], path: Path, block: str, count: str, *keys: str
) -> list[list[tuple[str, _Line]]]:
    """``keys`` 0, 1, ... of a block that says in ``count`` how many there are."""
    if count not in values:
        raise InputError(f"{path}: [{block}] does not say {count!r}")
    text, line = values.pop(count)
    if not text.isdigit():
        raise line.error(f"[{block}]: {count} = {text!r} is no count")
    wanted = [[f"{key}{n}" for key in keys] for n in range(int(text))]
    for name in (name for one in wanted for name in one):
        if name not in values:
            raise line.error(f"[{block}]: {count} = {text}, but there is no {name!r}")
    result = [[values.pop(name) for name in one] for one in wanted]
    if values:
        key, (_, line) = next(iter(values.items()))
        raise line.error(f"[{block}]: unknown key {key!r}")
    return result


def _triangle(lines: Sequence[_Line], block: str) -> tuple[list[str], list[float | None], Floats]:
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


def _shift(line: _Line, text: str, what: str) -> tuple[float, float]:
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


def _table(lines: Sequence[_Line]) -> _Table:
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


def _kinds(blocks: _Blocks, known: Sequence[str]) -> tuple[list[str], list[str]]:
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


def _estimates(blocks: _Blocks, path: Path) -> dict[str, float]:
    entries = _numbered(
        _assignments(blocks.get("estimates", []), "estimates"),
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


def _fitted(blocks: _Blocks, known: Sequence[str]) -> dict[str, float]:
    result = {}
    for source, (value, line) in _assignments(blocks.get("nuisance values", []), "nuisance values").items():
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
    blocks = _blocks(path, MEASUREMENT_BLOCKS)
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


def _correlations(lines: Sequence[_Line], sources: Sequence[str]) -> list[CorrelationScan]:
    """Each line: ``A = (nominal & from : to) B + (nominal) C``."""
    result = []
    for line in lines:
        first, terms = line.assignment()
        ranges = []
        for term in re.split(r"\+\s*(?=\()", terms):
            match = _TERM.match(term.strip())
            if match is None:
                raise line.error(
                    f"[correlations]: {term.strip()!r} is not of the form (0.2 & -0.5 : 0.5) name"
                )
            rho, start, stop, second = match.groups()
            for name in (first, second):
                if name not in sources:
                    raise line.error(f"[correlations]: no source {name!r}")
            numbers = [float(rho), float(start or rho), float(stop or rho)]
            if max(abs(number) for number in numbers) > 1.0:
                raise line.error(f"[correlations]: {term.strip()!r} leaves [-1, 1]")
            ranges.append(CorrelationRange(first, second, *numbers))
        result.append(CorrelationScan(f"{first}, {' + '.join(one.second for one in ranges)}", tuple(ranges)))
    return result


def _sums(lines: Sequence[_Line], block: str, known: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each line: ``name = a + b``."""
    result: list[tuple[str, tuple[str, ...]]] = []
    for line in lines:
        name, terms = line.assignment()
        members = tuple(term.strip() for term in terms.split("+"))
        for member in members:
            if member not in known:
                raise line.error(f"[{block}]: {name!r} has {member!r}, which is not there")
        if any(name == other for other, _ in result):
            raise line.error(f"[{block}]: {name!r} is there twice")
        result.append((name, members))
    return result


def _flag(values: dict[str, tuple[str, _Line]], key: str) -> bool:
    text, line = values.pop(key, ("false", None))
    if text.lower() not in ("true", "false"):
        assert line is not None
        raise line.error(f"[global]: {key} = {text!r} is neither true nor false")
    return text.lower() == "true"


def _unique(inputs: Sequence[LikelihoodInput]) -> None:
    first: dict[str, str] = {}
    for one in inputs:
        for name in (*one.estimates, *one.sources):
            if name in first:
                raise InputError(
                    f"{one.name}: {name!r} is also in {first[name]}: names must be unique over all files "
                    "(a common source has two names and a correlation)"
                )
            first[name] = one.name


def read_convino(path: str | Path) -> LikelihoodProblem:
    """A main file with all measurements that it names.

    Raises
    ------
    InputError : naming file, line and key.
    """
    path = Path(path)
    blocks = _blocks(path, MAIN_BLOCKS)
    options = _assignments(blocks.get("global", []), "global")
    _flag(options, "isDifferential")
    normalise, of_input = _flag(options, "normalise"), _flag(options, "normalisedInput")
    if of_input or options:
        raise InputError(
            f"{path}: [global]: {'normalisedInput' if of_input else next(iter(options))!r} is not supported"
        )
    files = _numbered(_assignments(blocks.get("inputs", []), "inputs"), path, "inputs", "nFiles", "file")
    inputs = tuple(read_convino_measurement(path.parent / name) for ((name, _),) in files)
    _unique(inputs)
    estimates = [estimate for one in inputs for estimate in one.estimates]
    sources = [source for one in inputs for source in one.sources]
    terms = _correlations(blocks.get("correlations", []), sources)
    return LikelihoodProblem(
        inputs=inputs,
        observables=tuple(_sums(blocks.get("observables", []), "observables", estimates)),
        correlations=tuple(one for scan in terms for one in scan.ranges),
        scans=tuple(scan for scan in terms if any(one.start != one.stop for one in scan.ranges)),
        groups=tuple(
            _sums(blocks.get("uncertainty impacts", []), "uncertainty impacts", [*sources, STATISTICAL])
        ),
        normalise=normalise,
    )
