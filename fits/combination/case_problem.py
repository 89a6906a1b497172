r"""A case of a combination as a likelihood: correlated effects become nuisances.

- All correlations 1 or -1: one nuisance.
- Symmetric and not scanned: :math:`\rho = L L^T`, one independent nuisance for each eigenvalue that is not 0.
- Asymmetric or scanned: inputs whose effects are the same up to a sign share a nuisance; other correlations are
  those of the prior. There they must be positive definite, and more than 0.999 is set to 0.999 (`prior`).

Statistics are the covariance of the inputs with all nuisances fixed.
"""

from dataclasses import dataclass

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.combination.definiteness import audit_correlation, in_words
from musclecal.fits.combination.likelihood_input import from_table
from musclecal.records import Floats
from musclecal.records.combination_case import CaseSource, CombinationCase
from musclecal.records.combination_likelihood import CorrelationRange, CorrelationScan, LikelihoodProblem

__all__ = ["CaseProblem", "case_problem"]

_SAME = 1e-9


@dataclass(frozen=True)
class CaseProblem:
    """``problem`` and ``members``, the nuisances of each source; ``statistics`` is the source that is none."""

    problem: LikelihoodProblem
    members: dict[str, tuple[str, ...]]
    statistics: str


@dataclass(frozen=True)
class _Nuisances:
    """``up``, ``down`` (n, n_nuisance) of ``names``; ``correlations`` of those that are correlated a priori.

    ``cluster`` (n,) number of the nuisance of each input and ``sign`` (n,) its direction; -1: not affected, or mixed.
    """

    names: tuple[str, ...]
    up: Floats
    down: Floats
    correlations: tuple[CorrelationRange, ...]
    cluster: tuple[int, ...]
    sign: tuple[float, ...]


def case_problem(case: CombinationCase, statistics: str) -> CaseProblem:
    """The likelihood of ``case``; ``statistics`` is the source of the statistical errors.

    Raises
    ------
    InputError : no statistics, correlations that contradict each other, a scan that breaks a nuisance in pieces.
    """
    if statistics not in case.sources:
        raise InputError(f"the likelihood needs statistical errors: there is no source {statistics!r}")
    parts = {name: _nuisances(case, name) for name in case.sources if name != statistics}
    one = from_table(
        "inputs",
        dict(zip(case.names, case.values.tolist(), strict=True)),
        case.measurements.covariances[statistics],
        [nuisance for part in parts.values() for nuisance in part.names],
        np.hstack([np.zeros((len(case.names), 0)), *(part.up for part in parts.values())]),
        np.hstack([np.zeros((len(case.names), 0)), *(part.down for part in parts.values())]),
        relative=[nuisance for name in case.relative if name in parts for nuisance in parts[name].names],
    )
    observables = tuple(
        (name, tuple(n for n, row in zip(case.names, case.design, strict=True) if row[a] != 0.0))
        for a, name in enumerate(case.observables)
    )
    problem = LikelihoodProblem(
        inputs=(one,),
        observables=observables,
        correlations=tuple(entry for part in parts.values() for entry in part.correlations),
        scans=_scans(case, parts),
    )
    return CaseProblem(problem, {name: part.names for name, part in parts.items()}, statistics)


def _nuisances(case: CombinationCase, name: str) -> _Nuisances:
    source = case.sources[name]
    inside = np.flatnonzero((source.up != 0.0) | (source.down != 0.0))
    labels = [case.names[i] for i in inside]
    found = audit_correlation(source.correlation[np.ix_(inside, inside)], labels, name)
    if not found.definite:
        raise InputError(in_words(found))
    scanned = {p for ranges in case.scans.values() for one in ranges if one.source == name for p in one.pairs}
    if source.asymmetric or scanned:
        return _clusters(name, source, case.names, [int(i) for i in inside], scanned)
    size, vectors = np.linalg.eigh(source.correlation[np.ix_(inside, inside)])
    used = np.flatnonzero(size > _SAME)[::-1]
    up = np.zeros((len(case.names), len(used)))
    up[inside] = source.up[inside, None] * vectors[:, used] * np.sqrt(size[used])
    names = (name,) if len(used) == 1 else tuple(f"{name} #{k + 1}" for k in range(len(used)))
    return _Nuisances(names, up, -up, (), (-1,) * len(up), (0.0,) * len(up))


def _clusters(
    name: str, source: CaseSource, inputs: tuple[str, ...], inside: list[int], scanned: set[tuple[int, int]]
) -> _Nuisances:
    """Inputs whose effects are the same up to a sign have one nuisance, which is called after the first of them."""
    rho, n = source.correlation, len(inputs)
    cluster, sign = [-1] * n, [0.0] * n
    heads: list[int] = []
    for i in inside:
        for k, head in enumerate(heads):
            fixed = (head, i) not in scanned and (i, head) not in scanned
            if fixed and abs(abs(rho[i, head]) - 1.0) < _SAME:
                cluster[i], sign[i] = k, float(np.sign(rho[i, head]))
                break
        else:
            cluster[i], sign[i] = len(heads), 1.0
            heads.append(i)
    up, down = np.zeros((n, len(heads))), np.zeros((n, len(heads)))
    for i in inside:
        plus, minus = (source.up, source.down) if sign[i] > 0.0 else (source.down, source.up)
        up[i, cluster[i]], down[i, cluster[i]] = plus[i], minus[i]
    names = (name,) if len(heads) == 1 else tuple(f"{name} [{inputs[i]}]" for i in heads)
    pairs = [(a, b) for b in range(len(heads)) for a in range(b)]
    correlations = tuple(
        CorrelationRange(names[a], names[b], *(3 * [float(rho[heads[a], heads[b]])]))
        for a, b in pairs
        if rho[heads[a], heads[b]] != 0.0
    )
    return _Nuisances(names, up, down, correlations, tuple(cluster), tuple(sign))


def _scans(case: CombinationCase, parts: dict[str, _Nuisances]) -> tuple[CorrelationScan, ...]:
    result = []
    for name, ranges in case.scans.items():
        found: dict[tuple[str, int, int], CorrelationRange] = {}
        for one in ranges:
            part = parts.get(one.source)
            if part is None:
                raise InputError(
                    f"scan {name}: the likelihood cannot scan the correlation of statistical errors"
                )
            wanted = {pair for other in ranges if other.source == one.source for pair in other.pairs}
            for i, j in one.pairs:
                a, b = part.cluster[i], part.cluster[j]
                _refuse_broken(name, case, part, (a, b), wanted)
                along = part.sign[i] * part.sign[j]
                rho = float(case.sources[one.source].correlation[i, j]) * along
                entry = CorrelationRange(
                    part.names[min(a, b)], part.names[max(a, b)], rho, along * one.low, along * one.high
                )
                if found.setdefault((one.source, min(a, b), max(a, b)), entry) != entry:
                    raise InputError(
                        f"scan {name}: the nuisances {entry.first} and {entry.second} are given two ranges"
                    )
        result.append(CorrelationScan(name, tuple(found.values())))
    return tuple(result)


def _refuse_broken(
    name: str, case: CombinationCase, part: _Nuisances, pair: tuple[int, int], wanted: set[tuple[int, int]]
) -> None:
    """All pairs of inputs of two nuisances move together, or none."""
    a, b = pair
    for i, of in enumerate(part.cluster):
        for j, other in enumerate(part.cluster):
            if {of, other} == {a, b} and (min(i, j), max(i, j)) not in wanted and of != other:
                raise InputError(
                    f"scan {name}: {case.names[i]} and {case.names[j]} do not move, but are fully correlated with "
                    "inputs that do: the likelihood cannot scan this"
                )
