"""The kernel cache is never stale; `in_order` keeps order, laziness and errors for any number of threads."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from types import ModuleType

import numba
import numpy as np
import pytest

from musclecal import compiled
from musclecal.compiled import in_order, innermost, kernel, n_threads
from musclecal.records import Floats

SOURCES = {
    "__init__.py": "",
    "constants.py": "STEP = 1.0\n",
    "geometry/part.py": "PART = 'geometry'\n",
    "fits/shapes/part.py": "PART = 'fits'\n",
    "validation/part.py": "PART = 'validation'\n",
    "callee.py": (
        "from musclecal.compiled import kernel\n"
        "from musclecal.constants import STEP\n"
        "@kernel\n"
        "def stepped(x):\n"
        "    return x + STEP\n"
    ),
    "caller.py": (
        "from musclecal.callee import stepped\n"
        "from musclecal.compiled import kernel\n"
        "@kernel\n"
        "def twice(x):\n"
        "    return stepped(stepped(x))\n"
        "print(twice(0.0), sum(twice.stats.cache_hits.values()))\n"
    ),
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with the real compiled.py in it, laid out as musclecal is installed."""
    folder = tmp_path / "musclecal"
    for name, text in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(compiled.__file__, folder / "compiled.py")
    return folder


def load(package: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compiled_copy", package / "compiled.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cache_name(package: Path) -> str:
    return str(load(package).cache_directory().name)


def test_cache_name_is_a_function_of_the_sources(package: Path, tmp_path: Path) -> None:
    before = cache_name(package)
    for source in package.rglob("*.py"):
        os.utime(source, (1.0, 1.0))
    moved = package.rename(tmp_path / "elsewhere")
    assert cache_name(moved) == before


@pytest.mark.parametrize("name", [*SOURCES, "compiled.py"])
def test_cache_name_changes_with_every_source(package: Path, name: str) -> None:
    before = cache_name(package)
    source = package / name
    source.write_bytes(source.read_bytes() + b"# changed\n")
    assert cache_name(package) != before


def test_cache_name_changes_with_a_new_or_renamed_source(package: Path) -> None:
    names = [cache_name(package)]
    (package / "geometry/new.py").write_text("")
    names.append(cache_name(package))
    (package / "geometry/new.py").rename(package / "geometry/renamed.py")
    names.append(cache_name(package))
    assert len(set(names)) == 3


def test_real_folders_are_part_of_the_cache_name(package: Path, tmp_path: Path) -> None:
    """In a checkout geometry, fits and validation are links out of the package."""
    for name in ("geometry", "fits", "validation"):
        (package / name).rename(tmp_path / name)
        (package / name).symlink_to(Path("..") / name)
    before = cache_name(package)
    (tmp_path / "fits/shapes/part.py").write_text("PART = 'other'\n")
    assert cache_name(package) != before


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled, so nothing is cached")
def test_changed_constant_of_a_callee_is_seen(package: Path, tmp_path: Path) -> None:
    """Trap 10 of physics.md: numba alone would serve the caller's old machine code."""

    def run() -> str:
        result = subprocess.run(
            [sys.executable, "-m", "musclecal.caller"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "MUSCLECAL_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.strip()

    assert [run(), run()] == ["2.0 0", "2.0 1"]
    (package / "constants.py").write_text("STEP = 5.0\n")
    assert run() == "10.0 0"


def test_cache_folder_can_be_chosen(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSCLECAL_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert load(package).cache_directory().parent == tmp_path / "xdg" / "musclecal"
    monkeypatch.setenv("MUSCLECAL_CACHE_DIR", str(tmp_path / "chosen"))
    assert load(package).cache_directory().parent == tmp_path / "chosen"


def test_folder_that_cannot_be_written_means_compiling_anew(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MUSCLECAL_CACHE_DIR", str(tmp_path / "file"))

    def half(x: float) -> float:
        return 0.5 * x

    before = numba.config.CACHE_DIR
    assert load(package).kernel(half)(3.0) == 1.5
    assert before == numba.config.CACHE_DIR


def test_division_by_zero_is_as_in_numpy() -> None:
    if numba.config.DISABLE_JIT:
        pytest.skip("plain Python raises")

    def inverse(x: float) -> float:
        return 1.0 / x

    assert kernel(inverse)(0.0) == float("inf")


def test_parts_of_kernels_leave_the_counts_of_references_as_they_are() -> None:
    def first_of_rest(x: Floats, n: int) -> float:
        rest = x[n:]
        rest[0] += 1.0
        return float(rest[0])

    part, x = innermost(first_of_rest), np.zeros(3)

    def several(x: Floats) -> float:
        total = 0.0
        for n in range(3):
            total += part(x, n)
        return total

    whole, before = kernel(several), sys.getrefcount(x)
    assert [whole(x), part(x, 1)] == [3.0, 2.0]
    assert sys.getrefcount(x) == before
    np.testing.assert_array_equal(x, [1.0, 2.0, 1.0])


def test_parts_of_kernels_make_no_arrays() -> None:
    if numba.config.DISABLE_JIT:
        pytest.skip("plain Python does")

    def made(n: int) -> float:
        return float(np.zeros(n)[0])

    with pytest.raises(numba.core.errors.NumbaError, match="zeros"):
        innermost(made)(3)


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
def test_results_come_in_the_order_of_the_blocks(threads: int) -> None:
    def slow_first(block: int) -> int:
        time.sleep(0.002 * ((7 * block) % 5))
        return 10 * block

    assert list(in_order(slow_first, range(40), threads)) == [10 * n for n in range(40)]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_blocks(threads: int, n: int) -> None:
    assert list(in_order(str, range(n), threads)) == [str(block) for block in range(n)]


def test_the_first_block_of_a_kind_of_work_runs_alone() -> None:
    """It compiles: numba's tables of types break when several threads fill them."""
    under_way, most = set[int](), dict[int, int]()

    def work(block: int) -> int:
        under_way.add(block)
        time.sleep(0.02)
        most[block] = len(under_way)
        under_way.remove(block)
        return block

    assert list(in_order(work, range(6), 3)) == list(range(6))
    assert most[0] == 1
    assert max(most.values()) > 1
    most.clear()
    assert list(in_order(work, range(6), 3)) == list(range(6))
    assert most[0] > 1


@pytest.mark.parametrize("threads", [1, 3])
def test_endless_blocks_are_taken_a_few_ahead(threads: int) -> None:
    taken = []

    def blocks() -> Iterator[int]:
        for n in count():
            taken.append(n)
            yield n

    results = in_order(abs, blocks(), threads)
    assert taken == []
    assert list(islice(results, 10)) == list(range(10))
    results.close()  # type: ignore[attr-defined]
    assert 10 <= len(taken) <= 10 + 2 * threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_errors_arrive_at_their_place(threads: int) -> None:
    """Also where a later block fails first: what comes before it is still given."""

    def work(block: int) -> int:
        if block == 3:
            raise ZeroDivisionError(f"block {block}")
        time.sleep(0.005)
        return block

    results = in_order(work, count(), threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="block 3"):
        next(results)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_errors_of_the_blocks_arrive(threads: int) -> None:
    def blocks() -> Iterator[int]:
        yield from range(20)
        raise OSError("file ends early")

    with pytest.raises(OSError, match="file ends early"):
        list(in_order(abs, blocks(), threads))


@pytest.mark.parametrize("how", ["closed", "exhausted", "failed"])
def test_no_thread_is_left(how: str) -> None:
    before = set(threading.enumerate())
    results = in_order(lambda block: 1 / (5 - block), range(5 if how == "exhausted" else 9), 3)
    if how == "failed":
        with pytest.raises(ZeroDivisionError):
            list(results)
    elif how == "exhausted":
        list(results)
    else:
        next(results)
        results.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before


def test_closing_drops_work_that_has_not_begun() -> None:
    begun = []

    def work(block: int) -> int:
        begun.append(block)
        time.sleep(0.02)
        return block

    results = in_order(work, count(), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    n_begun = len(begun)
    assert n_begun <= 4
    time.sleep(0.05)
    assert len(begun) == n_begun


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSCLECAL_THREADS", "3")
    assert n_threads() == 3
    monkeypatch.setenv("MUSCLECAL_THREADS", "0")
    assert n_threads() == len(os.sched_getaffinity(0))
    monkeypatch.delenv("MUSCLECAL_THREADS")
    assert n_threads() == len(os.sched_getaffinity(0))


STAGES = """\
[campaign]
name = "small"
output = "out"
passes = 1
[binning]
eta_bins = 2
[resonances.Jpsi]
pt_edges = [4.0, 6.5, 40.0]
[samples.data]
resonance = "Jpsi"
kind = "data"
simulate = { events = 20_000, seed = 1 }
[samples.mc]
resonance = "Jpsi"
kind = "simulation"
simulate = { events = 20_000, seed = 2 }
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="compiled kernels only")
def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    """Of simulate, fill, fit and extract: nothing is written to the folder of compiled kernels."""
    (tmp_path / "campaign.toml").write_text(STAGES)
    kernels = tmp_path / "kernels"
    states = []
    for _ in range(2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "musclecal.cli", "extract"], check=True, cwd=tmp_path, capture_output=True,
            env=os.environ | {"MUSCLECAL_CACHE_DIR": str(kernels), "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        states.append({path: path.stat().st_mtime_ns for path in kernels.rglob("*") if path.is_file()})
    assert len(states[0]) > 20
    assert states[1] == states[0]
