"""Work on parts of the input in many processes, and the sum of what they give: Dask, imported when it is used.

The sum is a binary tree over the parts in their order, whoever works on which: what is added is the same, to the bit,
on one core and on a thousand. A part whose process dies is worked on again; one that fails again and again is told and
left out, or ends all (``strict``).

Not for: what a part is (`musclecal.samples`), nor batch systems: dask-jobqueue and its like start workers in them.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from musclecal.compiled import source_digest
from musclecal.errors import InputError

__all__ = ["Cluster", "PartsFailed", "Summed", "tree_sum"]

ROWS_OF_A_PART = 5_000_000

_PATIENCE = "20s"
"""For a scheduler that does not answer."""

_P = TypeVar("_P")
_R = TypeVar("_R")

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Summed(Generic[_R]):
    """``total`` of the parts that did not fail; ``failed``: a line for each that did."""

    total: _R
    failed: tuple[str, ...] = ()


class PartsFailed(InputError):
    """Parts of the input could not be worked on that may not be missing."""


class _Tree(Generic[_R]):
    """A binary tree over n places, summed as places become known: at most log2(n) + 1 sums wait for their neighbour."""

    def __init__(self, n: int, add: Callable[[_R, _R], _R]) -> None:
        self._n, self._add = n, add
        self._waiting: dict[tuple[int, int], _R | None] = {}
        self.root: _R | None = None

    def put(self, place: int, value: _R | None, level: int = 0) -> None:
        """``value`` of a place; None where there is none, and never will be."""
        width = -(-self._n // 2**level)
        if width == 1:
            self.root = value
        elif place ^ 1 >= width:
            self.put(place // 2, value, level + 1)
        elif (level, place ^ 1) in self._waiting:
            other = self._waiting.pop((level, place ^ 1))
            left, right = (other, value) if place % 2 else (value, other)
            if left is None or right is None:
                self.put(place // 2, right if left is None else left, level + 1)
            else:
                self.put(place // 2, self._add(left, right), level + 1)
        else:
            self._waiting[level, place] = value


def tree_sum(parts: Sequence[_P], add: Callable[[_R, _R], _R], work: Callable[[_P], _R]) -> _R:
    """The sum of ``work(part)``, as `Cluster.total` adds, in this process. Raises ValueError without any part."""
    tree = _Tree[_R](len(parts), add)
    for place, part in enumerate(parts):
        tree.put(place, work(part))
    if tree.root is None:
        raise ValueError("nothing to sum")
    return tree.root


def _same(work: _P) -> _P:
    return work


def _alone(work: Callable[[_P], _R], part: _P) -> _R:
    """Work on a part in a process that is one of many: kernels use one thread."""
    os.environ.setdefault("MUSCLECAL_THREADS", "1")
    return work(part)


class Cluster:
    """Processes that a Dask scheduler knows. A context: those that it has started itself end with it.

    Parameters
    ----------
    scheduler : address (tcp://host:8786), the JSON file that a scheduler has written, or local:N for N processes here;
        local: one a processor.
    retries : how often a part that fails is tried again. strict : whether one that fails for good ends all.
    rows : of a file in a part, at most.

    Raises
    ------
    InputError : no such scheduler, a process without this version of musclecal, or Dask is not installed.
    """

    def __init__(
        self, scheduler: str, *, retries: int = 2, strict: bool = False, rows: int = ROWS_OF_A_PART
    ) -> None:
        self._retries, self._strict, self.rows = retries, strict, rows
        try:
            import distributed
        except ImportError:
            raise InputError(
                "--scheduler: needs dask.distributed: pip install 'musclecal[distributed]'"
            ) from None
        self._local: Any = None
        where: dict[str, Any] = {"address": scheduler, "timeout": _PATIENCE}
        if local := re.fullmatch(r"local(?::([1-9]\d*))?", scheduler):
            self._local = distributed.LocalCluster(
                n_workers=int(local[1] or len(os.sched_getaffinity(0))), threads_per_worker=1,
                # No dashboard; its server is there nevertheless: on a free port, so that two clusters do not quarrel
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL, env={"MUSCLECAL_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
            where = {"address": self._local}
        elif scheduler.endswith(".json"):
            if not Path(scheduler).is_file():
                raise InputError(f"--scheduler {scheduler}: no such file")
            where = {"scheduler_file": scheduler, "timeout": _PATIENCE}
        elif not re.match(r"[a-z]+://.", scheduler):
            raise InputError(
                f"--scheduler {scheduler}: local, local:N with N processes, an address as tcp://host:8786, or a file "
                "NAME.json of a scheduler"
            )
        try:
            self._client = distributed.Client(**where)
        except (OSError, ValueError) as error:
            raise InputError(f"--scheduler {scheduler}: no scheduler answers: {error}") from None
        try:
            self._check_workers()
        except InputError:
            self.__exit__(None, None, None)
            raise

    def _check_workers(self) -> None:
        """Dask waits for ever for a process that cannot import its work; and other sources give other bits."""
        for worker, digest in self._client.run(source_digest, on_error="return").items():
            if isinstance(digest, BaseException):
                raise InputError(f"--scheduler: process {worker} cannot import musclecal: {_reason(digest)}")
            if digest != source_digest():
                raise InputError(f"--scheduler: process {worker} has another version of musclecal or numba")

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        if self._local is not None:
            self._local.close()

    @property
    def n_processes(self) -> int:
        """Those that are there now; more may join, as batch systems start them."""
        return len(self._client.scheduler_info()["workers"])

    def total(
        self, work: Callable[[_P], _R], parts: Sequence[_P], add: Callable[[_R, _R], _R],
        progress: Progress | None = None,
    ) -> Summed[_R]:  # fmt: skip
        """The sum of ``work(part)`` over all parts; all of it can be pickled.

        ``progress`` is told the parts done, and those there are.

        Raises
        ------
        PartsFailed : all parts failed for good, or one did and the cluster is strict.
        """
        from distributed import as_completed

        # What is done may hold large tables: it goes to each process once, not with each part
        there = self._client.submit(_same, work, pure=False)
        submitted = [
            self._client.submit(_alone, there, part, retries=self._retries, pure=False) for part in parts
        ]
        places = {future.key: place for place, future in enumerate(submitted)}
        # Sums go before parts, so that few of these wait in memory
        tree = _Tree[Any](
            len(parts), lambda one, two: self._client.submit(add, one, two, pure=False, priority=1)
        )
        failed: dict[int, str] = {}
        under_way = as_completed(submitted)
        del submitted  # else no part could be forgotten once it is added
        for done, future in enumerate(under_way, start=1):
            place = places[future.key]
            if future.status == "finished":
                tree.put(place, future)
            else:
                part = f"{parts[place]}: "
                failed[place] = part + _reason(future.exception()).removeprefix(part)
                if self._strict:
                    raise PartsFailed(failed[place])
                tree.put(place, None)
            del future
            if progress:
                progress(done, len(parts))
        told = tuple(failed[place] for place in sorted(failed))
        if tree.root is None:
            raise PartsFailed(f"all {len(parts)} parts failed, the first: {told[0]}")
        return Summed(tree.root.result(), told)


def _reason(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
