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
from collections.abc import Sequence
from pathlib import Path

from musclecal.errors import InputError
from musclecal.fits.combination.convino_measurement import read_convino_measurement
from musclecal.fits.combination.convino_text import (
    NUMBER,
    Line,
    assignments,
    blocks_of,
    numbered,
)
from musclecal.records.combination_likelihood import (
    STATISTICAL,
    CorrelationRange,
    CorrelationScan,
    LikelihoodInput,
    LikelihoodProblem,
)

__all__ = ["read_convino"]

MAIN_BLOCKS = ("global", "inputs", "observables", "correlations", "uncertainty impacts")

_TERM = re.compile(rf"^\(\s*({NUMBER})\s*(?:&\s*({NUMBER})\s*:\s*({NUMBER})\s*)?\)\s*([^\s()=]+)$")


def _correlations(lines: Sequence[Line], sources: Sequence[str]) -> list[CorrelationScan]:
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


def _sums(lines: Sequence[Line], block: str, known: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
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


def _flag(values: dict[str, tuple[str, Line]], key: str) -> bool:
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
    blocks = blocks_of(path, MAIN_BLOCKS)
    options = assignments(blocks.get("global", []), "global")
    _flag(options, "isDifferential")
    normalise, of_input = _flag(options, "normalise"), _flag(options, "normalisedInput")
    if of_input or options:
        raise InputError(
            f"{path}: [global]: {'normalisedInput' if of_input else next(iter(options))!r} is not supported"
        )
    files = numbered(assignments(blocks.get("inputs", []), "inputs"), path, "inputs", "nFiles", "file")
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
