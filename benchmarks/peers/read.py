"""NanoAOD-like files into opposite-sign pairs: 0 to 4 muons an event (float32, LZ4), with the numbers of run and event.

The file is in the memory of the operating system after the first round, so this is decompression, interpretation and
pairs, not a disk. What is not alike: ours gives pairs of mu+ and mu- in float64 with identifiers, after checks of
every momentum, and counts what it drops; "uproot" only reads the same branches into awkward arrays, chunk by chunk,
and makes no pair (its pairs are made for the agreement, outside of the clock); RDataFrame reads on one thread, makes
pairs and masses in compiled C++ and sums the masses, but keeps no pair. Its graph is built and its expressions are
compiled anew in each run, as in each of a user's scripts; `--scale` above 1 makes that matter less.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.peers.fill import ROOT_MASS, declare, mass
from benchmarks.peers.rows import Difference, Effort, Peer, Timed, Work
from musclecal.events import read_dimuons

BRANCHES = ("Muon_pt", "Muon_eta", "Muon_phi", "Muon_charge", "run", "luminosityBlock", "event")
BYTES_PER_EVENT, BYTES_PER_MUON = 16.0, 16.0
AIMS = {"uproot": 1.0 / 1.5}
CHUNK = 100_000

Sum = tuple[int, float]
"""Pairs and the sum of their masses in GeV."""


def write(path: Path, n: int, seed: int = 1) -> int:
    """``n`` events; gives the number of muons."""
    import awkward as ak
    import uproot

    rng = np.random.default_rng(seed)
    with uproot.recreate(path, compression=uproot.LZ4(1)) as file:
        total = 0
        for first in range(0, n, CHUNK):
            rows = min(CHUNK, n - first)
            counts = rng.choice(5, rows, p=(0.05, 0.15, 0.6, 0.15, 0.05))
            muons = int(counts.sum())
            fields = {
                "pt": (3.0 + rng.exponential(8.0, muons)).astype(np.float32),
                "eta": rng.uniform(-2.4, 2.4, muons).astype(np.float32),
                "phi": rng.uniform(-np.pi, np.pi, muons).astype(np.float32),
                "charge": rng.choice([-1, 1], muons).astype(np.int32),
            }
            branches = {
                "Muon": ak.zip({name: ak.unflatten(column, counts) for name, column in fields.items()}),
                "run": np.full(rows, 1, dtype=np.uint32),
                "luminosityBlock": (1 + np.arange(first, first + rows) // 1000).astype(np.uint32),
                "event": np.arange(first, first + rows, dtype=np.uint64),
            }
            if first == 0:
                tree = file.mktree("Events", branches)
            else:
                tree.extend(branches)
            total += muons
    return total


def ours(path: Path) -> Sum:
    """The masses are not on the clock of `read`; here for the agreement."""
    pairs, total = 0, 0.0
    for events, _ in read_dimuons(path):
        pairs, total = pairs + len(events), total + float(events.mass.sum())
    return pairs, total


def read(path: Path) -> int:
    """Pairs, and nothing done with them."""
    return sum(len(events) for events, _ in read_dimuons(path))


def with_uproot(path: Path) -> int:
    """Events."""
    import uproot

    with uproot.open(path) as file:
        return sum(len(chunk) for chunk in file["Events"].iterate(BRANCHES, step_size=500_000))


def pairs_of_uproot(path: Path) -> Sum:
    """By awkward's combinations."""
    import awkward as ak
    import uproot

    with uproot.open(path) as file:
        table = file["Events"].arrays(BRANCHES)
    muons = ak.zip({name: table[f"Muon_{name}"] for name in ("pt", "eta", "phi", "charge")})
    one, two = ak.unzip(ak.combinations(muons, 2))
    opposite = ak.flatten(one.charge * two.charge < 0)
    columns = [
        ak.to_numpy(ak.flatten(muon[name])[opposite]).astype(np.float64)
        for muon in (one, two)
        for name in ("pt", "eta", "phi")
    ]
    return len(columns[0]), float(mass(*columns).sum())


_ROOT_PAIRS = """
#include <ROOT/RVec.hxx>
namespace musclecal_benchmark_pairs {
using Floats = ROOT::RVecF;
inline ROOT::RVecD masses(const Floats& pt, const Floats& eta, const Floats& phi, const ROOT::RVecI& charge) {
  ROOT::RVecD out;
  for (std::size_t i = 0; i < pt.size(); ++i)
    for (std::size_t j = i + 1; j < pt.size(); ++j)
      if (charge[i] * charge[j] < 0)
        out.push_back(musclecal_benchmark::mass(pt[i], eta[i], phi[i], pt[j], eta[j], phi[j]));
  return out;
}
}
"""


def with_rdataframe(path: Path) -> Callable[[], Sum]:
    """Define, Sum."""
    declare(ROOT_MASS, "musclecal_benchmark")
    root = declare(_ROOT_PAIRS, "musclecal_benchmark_pairs")

    def run() -> Sum:
        columns = ", ".join(BRANCHES[:4])
        frame = root.RDataFrame("Events", str(path)).Define(
            "masses", f"musclecal_benchmark_pairs::masses({columns})"
        )
        frame = frame.Define("n_pairs", "masses.size()").Define("sum", "ROOT::VecOps::Sum(masses)")
        pairs, total = frame.Sum("n_pairs"), frame.Sum("sum")
        return int(pairs.GetValue()), float(total.GetValue())

    return run


def compared(one: Sum, two: Sum) -> tuple[Difference, ...]:
    """Pairs exactly, masses to rounding."""
    return (
        Difference("pairs that differ", float(abs(one[0] - two[0])), 0.0),
        Difference("sum of masses, relative", abs(two[1] / one[1] - 1.0), 1e-9),
    )


def work(effort: Effort) -> Work:
    """``read``; the file goes when it is closed."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "nano.root"
    n = effort.of(2e5, 2000)
    muons = write(path, n)
    found = ours(path)

    def uproot_peer() -> Peer:
        differences = compared(found, pairs_of_uproot(path))
        return Peer(Timed(lambda: with_uproot(path), n), differences)

    def rdataframe_peer() -> Peer:
        run = with_rdataframe(path)
        return Peer(Timed(run, n), compared(found, run()))

    return Work(
        "read", "events", Timed(lambda: read(path), n), BYTES_PER_EVENT + BYTES_PER_MUON * muons / n,
        {"uproot": uproot_peer}, {"rdataframe": rdataframe_peer}, AIMS,
        close=folder.cleanup,
    )  # fmt: skip
