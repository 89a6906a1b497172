"""Correction factors of muons, from the tables of `benchmarks.apply`: correctionlib, numpy, and a loop in C++.

What is not alike: ours and correctionlib also know 121 variations, which are not asked for; correctionlib evaluates a
general graph. numpy searches bins, takes A, e, M and computes in columns. "roccor-like" is a loop such as RoccoR's
users write, compiled here with ``g++ -O3 -march=native`` for this processor: eta bin by bisection in a table, one
formula; it has no phi bins, and writes into memory that is there, so that ours does too ("with out"). Beside the
others both make new arrays.
"""

import ctypes
import gzip
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.apply import tables
from benchmarks.peers.rows import Difference, Effort, Peer, Timed, Work, largest, need
from musclecal.correction import Correction
from musclecal.records import CorrectionTables, Floats

AIMS = {"correctionlib": 30.0, "numpy": 8.0, "roccor-like": 1.0}
BYTES = 32.0
"""pt, eta, charge and the factor of a muon."""
ETA_MAX, PT_RANGE = 2.4, (2.0, 200.0)

CODE = r"""
#include <algorithm>
#include <cstddef>
extern "C" void factors(std::size_t n, const double* pt, const double* eta, const double* charge, std::size_t n_eta,
                        const double* edges, const double* A, const double* e, const double* M, double low, double high,
                        double* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const double x = eta[i], p = pt[i];
    if (!(x >= edges[0] && x < edges[n_eta] && p >= low && p < high)) { out[i] = 1.0; continue; }
    const std::size_t b = std::upper_bound(edges, edges + n_eta + 1, x) - edges - 1;
    out[i] = 1.0 / (1.0 + A[b] - e[b] / p + charge[i] * M[b] * p);
  }
}
"""

Muons = tuple[Floats, Floats, Floats, Floats]
"""pt, eta, phi, charge."""


def muons(n: int, seed: int = 4) -> Muons:
    """Some of them outside of the tables."""
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(3, 100, n), rng.uniform(-2.5, 2.5, n), rng.uniform(-np.pi, np.pi, n), rng.choice([-1.0, 1.0], n)
    )  # fmt: skip


def with_numpy(made: CorrectionTables, sample: Muons) -> Callable[[], Floats]:
    """In columns."""
    pt, eta, _, charge = sample

    def run() -> Floats:
        i = np.clip(np.searchsorted(made.eta_edges, eta, side="right") - 1, 0, made.n_eta - 1)
        factor = 1.0 / (1.0 + made.A[i] - made.e[i] / pt + charge * made.M[i] * pt)
        return np.where((np.abs(eta) < ETA_MAX) & (pt >= PT_RANGE[0]) & (pt < PT_RANGE[1]), factor, 1.0)

    return run


def with_correctionlib(made: CorrectionTables, sample: Muons) -> Callable[[], Floats]:
    """From the exported file."""
    need("correctionlib")
    import correctionlib

    from musclecal.export.correctionlib_json import export_correctionlib

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "muon_scale.json.gz"
        export_correctionlib(made, path)
        text = gzip.decompress(path.read_bytes()).decode()
    correction = correctionlib.CorrectionSet.from_string(text)["muon_pt_scale"]
    pt, eta, _, charge = sample
    return lambda: np.asarray(correction.evaluate(pt, eta, charge, "nom"))


def compiled(code: str) -> ctypes.CDLL:
    """A library; ImportError without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise ImportError("no g++")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "code.cc", Path(folder) / "code.so"
        source.write_text(code, encoding="utf-8")
        options = ["-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run([compiler, *options], check=True)
        return ctypes.CDLL(str(library))


def with_cpp(made: CorrectionTables, sample: Muons) -> Callable[[], Floats]:
    """A loop over muons."""
    library = compiled(CODE)
    pt, eta, _, charge = sample
    out = np.empty_like(pt)
    edges, A, e, M = (
        np.ascontiguousarray(x, dtype=np.float64) for x in (made.eta_edges, made.A, made.e, made.M)
    )

    def pointer(array: Floats) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def run() -> Floats:
        library.factors(
            ctypes.c_size_t(len(pt)), pointer(pt), pointer(eta), pointer(charge), ctypes.c_size_t(len(A)),
            pointer(edges), pointer(A), pointer(e), pointer(M), ctypes.c_double(PT_RANGE[0]),
            ctypes.c_double(PT_RANGE[1]), pointer(out),
        )  # fmt: skip
        return out

    return run


def work(effort: Effort) -> Work:
    """``apply``."""
    made, n = tables(), effort.of(4e6, 10_000)
    correction, sample = Correction(made), muons(n)
    few = tuple(column[: max(n // 40, 10_000)] for column in sample)
    factors, out = correction.scale(*sample), np.empty(n)

    def peer(
        maker: Callable[[CorrectionTables, Muons], Callable[[], Floats]], of: Muons, ours: Timed | None
    ) -> Peer:
        run = maker(made, of)
        difference = largest(run() - factors[: len(of[0])])
        return Peer(Timed(run, len(of[0])), (Difference("factors, largest", difference, 1e-12),), ours)

    into = Timed(lambda: correction.scale(*sample, out=out), n)
    correction.scale(*sample, out=out)
    return Work(
        "apply",
        "muons",
        Timed(lambda: correction.scale(*sample), n),
        BYTES,
        {
            "correctionlib": lambda: peer(with_correctionlib, (few[0], few[1], few[2], few[3]), None),
            "numpy": lambda: peer(with_numpy, sample, None),
        },
        {"roccor-like": lambda: peer(with_cpp, sample, into)},
        AIMS,
    )
