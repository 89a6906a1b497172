"""The one place that says how kernels are compiled, cached and run on several threads.

Kernels release the interpreter lock and are run over blocks by a thread pool: the blocks are fixed by the
problem, never by the number of threads, so a result does not depend on how many there are.

Not for: anything numerical.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numba

__all__ = [
    "borrowing",
    "cache_directory",
    "in_order",
    "innermost",
    "kernel",
    "n_threads",
    "source_digest",
    "summing",
]

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_R = TypeVar("_R")


@cache
def source_digest() -> str:
    """Hash of every source file of the package and of the version of numba, 16 hexadecimal digits."""
    package = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for folder in (package, package / "geometry", package / "fits", package / "validation"):
        for source in sorted(folder.rglob("*.py")):
            digest.update(source.relative_to(package).as_posix().encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@cache
def cache_directory() -> Path:
    """Folder of the compiled kernels, named by `source_digest`.

    Numba looks only at the file of a kernel itself: a changed constant or callee in another file would leave
    stale machine code behind. A changed source gives another folder, so nothing can be stale.
    ``MUSCLECAL_CACHE_DIR`` chooses where these folders are kept.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "musclecal"
    return Path(os.environ.get("MUSCLECAL_CACHE_DIR", default)) / source_digest()


def innermost(function: _F) -> _F:
    """As `kernel`, for parts of a kernel that make no array: put in line, and references to arrays are not counted.

    Otherwise counting, and handing over records of arrays, is half of the time of a refit. The caller holds the arrays.
    A function that does make one (a[:] = b does, if a and b are arrays) is refused when it is compiled.
    """
    return _compiled(function, _nrt=False, forceinline=True)


def kernel(function: _F) -> _F:
    """Compile ``function`` with the options of this house: nopython, no interpreter lock, cached, IEEE arithmetic.

    Division by zero gives inf or nan as in numpy. A folder that cannot be written means compiling anew.
    """
    return _compiled(function)


def summing(function: _F) -> _F:
    """As `kernel`, for loops that add up many terms: in any order, products without rounding in between.

    So that they are vectorised. The same processor gives the same sums; nan and inf keep their meaning.
    """
    return _compiled(function, _nrt=False, fastmath={"reassoc", "contract"})


def borrowing(function: _F) -> _F:
    """As `innermost`, but called: for parts that are called from several places, or long."""
    return _compiled(function, _nrt=False)


def _compiled(function: _F, **more: Any) -> _F:
    if numba.config.DISABLE_JIT:
        return function
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", **more}
    before = numba.config.CACHE_DIR
    try:
        cache_directory().mkdir(parents=True, exist_ok=True)
        numba.config.CACHE_DIR = str(cache_directory())
        compiled: _F = numba.njit(cache=True, **options)(function)
    except (OSError, RuntimeError):
        compiled = numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


def n_threads() -> int:
    """Number of threads: ``MUSCLECAL_THREADS``, else the processors this process may use."""
    return max(1, int(os.environ.get("MUSCLECAL_THREADS", 0)) or len(os.sched_getaffinity(0)))


_done_before: set[object] = set()
"""Kinds of work whose kernels are compiled."""


def in_order(work: Callable[[_T], _R], blocks: Iterable[_T], threads: int | None = None) -> Iterator[_R]:
    """``work(block)`` for every block on a pool of threads; results come in the order of the blocks.

    A few blocks ahead of the one asked for are under way at any time, so an endless ``blocks`` is fine: the
    caller stops asking. The first block ever of a kind of work (a function by its code, else the type) runs alone: it
    compiles, as a rule, and numba's tables of types are not safe against several threads that do.
    """
    threads = n_threads() if threads is None else threads
    if threads == 1:
        yield from map(work, blocks)
        return
    waiting = iter(blocks)
    kind = getattr(work, "__code__", type(work))
    if kind not in _done_before:
        for block in islice(waiting, 1):
            result = work(block)
            _done_before.add(kind)
            yield result
    with ThreadPoolExecutor(threads) as pool:
        under_way: list[Future[_R]] = [pool.submit(work, block) for block in islice(waiting, 2 * threads)]
        try:
            while under_way:
                first = under_way.pop(0)
                under_way += [pool.submit(work, block) for block in islice(waiting, 1)]
                yield first.result()
        finally:
            for future in under_way:
                future.cancel()
