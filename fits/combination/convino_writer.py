"""Writer of the text files of Convino; `read_convino` gives the same problem back.

What the format cannot say is changed in writing, and only that: a source that inputs share exactly gets a name for each
input and correlations of 1, which programs (and `read_convino`) take as 0.999.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from musclecal.errors import InputError
from musclecal.records import Floats
from musclecal.records.combination_likelihood import CorrelationRange, LikelihoodInput, LikelihoodProblem

__all__ = ["write_convino"]


def _number(value: float) -> str:
    """The shortest text that is read back as the same number."""
    return repr(float(value))


def _shift(up: float, down: float) -> str:
    return _number(up) if down == -up else f"({float(up):+.17g}{float(down):+.17g})"


def _block(name: str, lines: Sequence[str]) -> str:
    return "\n".join([f"[{name}]", *(f"  {line}" for line in lines), f"[end {name}]", ""])


def hessian_of(one: LikelihoodInput) -> tuple[tuple[str, ...], Floats]:
    """Names and Hessian of the parameters that were fitted, sources first: the inverse of `from_hessian`."""
    k = one.up[:, one.profiled]
    kappa = -one.weight @ k
    inside = np.ix_(one.profiled, one.profiled)
    sources = one.constraint[inside] + np.diag(one.prior[one.profiled]) + k.T @ one.weight @ k
    names = tuple(np.array(one.sources, dtype=object)[one.profiled]) + one.estimates
    return names, np.block([[sources, kappa.T], [kappa, one.weight]])


def _is_bare(one: LikelihoodInput) -> bool:
    """Nothing was fitted, and statistics are not correlated: a table says it all."""
    return not np.any(one.profiled) and np.count_nonzero(one.weight - np.diag(np.diagonal(one.weight))) == 0


def measurement_text(one: LikelihoodInput) -> str:
    """Text of a measurement file."""
    blocks = []
    if not _is_bare(one):
        names, hessian = hessian_of(one)
        rows = [" ".join([name, *map(_number, hessian[n, : n + 1])]) for n, name in enumerate(names)]
        blocks.append(_block("hessian", rows))
    outside = np.flatnonzero(~one.profiled)
    if _is_bare(one) or len(outside):
        header = " ".join([*(one.sources[n] for n in outside), "stat"])
        stat = 1.0 / np.sqrt(np.diagonal(one.weight))
        rows = [
            " ".join([name, *(_shift(one.up[m, n], one.down[m, n]) for n in outside), _number(stat[m])])
            for m, name in enumerate(one.estimates)
        ]
        blocks.append(_block("not fitted", [header, *rows]))
    kinds = [f"{s} = relative" for s, relative in zip(one.sources, one.relative, strict=True) if relative]
    kinds += [f"{s} = free" for s, prior in zip(one.sources, one.prior, strict=True) if prior == 0.0]
    blocks.append(_block("systematics", kinds))
    fitted = [f"{s} = {_number(v)}" for s, v in zip(one.sources, one.fitted, strict=True) if v != 0.0]
    if fitted:
        blocks.append(_block("nuisance values", fitted))
    values = [f"n_estimates = {len(one.estimates)}"]
    for n, (name, value) in enumerate(zip(one.estimates, one.values, strict=True)):
        values += [f"name_{n} = {name}", f"value_{n} = {_number(value)}"]
    return "\n".join([*blocks, _block("estimates", values)])


def _separate_names(problem: LikelihoodProblem) -> tuple[list[LikelihoodInput], dict[str, tuple[str, ...]]]:
    """Inputs with a name for each of their sources, and what each source is called now."""
    from musclecal.fits.combination.likelihood_input import renamed

    owners = {s: [n for n, one in enumerate(problem.inputs) if s in one.sources] for s in problem.sources}
    shared = {s: n for s, n in owners.items() if len(n) > 1}
    inputs = [
        renamed(one, {s: f"{s}_{n}" for s in one.sources if s in shared})
        for n, one in enumerate(problem.inputs)
    ]
    called = {s: tuple(f"{s}_{n}" for n in owners[s]) if s in shared else (s,) for s in owners}
    names = [name for one in inputs for name in (*one.sources, *one.estimates)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Convino: {twice!r} would be the name of two things")
    return inputs, called


def _terms(ranges: Sequence[CorrelationRange], called: dict[str, tuple[str, ...]]) -> list[str]:
    """Lines of correlations; those of the same first source share a line, so that they are scanned together."""
    lines: dict[str, list[str]] = {}
    for one in ranges:
        span = f" & {_number(one.start)} : {_number(one.stop)}" if one.start != one.stop else ""
        for first in called[one.first]:
            for second in called[one.second]:
                lines.setdefault(first, []).append(f"({_number(one.rho)}{span}) {second}")
    if len(lines) > 1 and any(one.start != one.stop for one in ranges):
        raise InputError(
            f"Convino: correlations of {' and '.join(lines)} are scanned together, "
            "but the format scans one source at a time"
        )
    return [f"{first} = {' + '.join(terms)}" for first, terms in lines.items()]


def _correlation_lines(problem: LikelihoodProblem, called: dict[str, tuple[str, ...]]) -> list[str]:
    lines = [
        f"{first} = (1) {second}" for copies in called.values() for first, second in combinations(copies, 2)
    ]
    scanned = [one for scan in problem.scans for one in scan.ranges]
    for one in problem.correlations:
        if one not in scanned:
            lines += _terms([one], called)
    for scan in problem.scans:
        lines += _terms(scan.ranges, called)
    return lines


def write_convino(problem: LikelihoodProblem, path: str | Path) -> None:
    """The main file ``path``, and beside it a file for each input, ``<stem>_0.txt`` and so on.

    Raises
    ------
    InputError : names with spaces or brackets, which the format cannot hold.
    """
    path = Path(path)
    inputs, called = _separate_names(problem)
    for name in (n for one in inputs for n in (*one.sources, *one.estimates)):
        if not name or any(c in " \t#=+()[];&:" for c in name):
            raise InputError(
                f"Convino: {name!r} is no name for its files: no spaces and none of # = + ( ) [ ] ; & :"
            )
    files = [f"{path.stem}_{n}.txt" for n in range(len(inputs))]
    for name, one in zip(files, inputs, strict=True):
        (path.parent / name).write_text(measurement_text(one), encoding="utf-8")
    groups = [
        f"{group} = {' + '.join(name for member in members for name in called.get(member, (member,)))}"
        for group, members in problem.groups
    ]
    text = [
        _block("global", [f"normalise = {str(problem.normalise).lower()}"]),
        _block("inputs", [f"nFiles = {len(files)}", *(f"file{n} = {name}" for n, name in enumerate(files))]),
        _block(
            "observables", [f"{name} = {' + '.join(estimates)}" for name, estimates in problem.observables]
        ),
        _block("correlations", _correlation_lines(problem, called)),
        _block("uncertainty impacts", groups),
    ]
    path.write_text("\n".join(text), encoding="utf-8")
