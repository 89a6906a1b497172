"""The works by name."""

from collections.abc import Callable, Iterator

from benchmarks.peers import apply, chi2, fill, fit, modules, read
from benchmarks.peers.rows import Effort, Row, Work, rows_of

Rows = Callable[[Effort, bool], Iterator[Row]]
"""Rows of a work; the flag asks for peers that the package does not depend on."""


def _of(make: Callable[[Effort], Work]) -> Rows:
    return lambda effort, others: rows_of(make(effort), effort, others)


WORKS: dict[str, Rows] = {
    "fit": _of(fit.work),
    "fit template": _of(fit.template_work),
    "fill": _of(fill.work),
    "chi2": _of(chi2.work),
    "read": _of(read.work),
    "apply": _of(apply.work),
    "modules": modules.rows,
}
