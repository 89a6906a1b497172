"""How fast an exported correction is applied: factors, all variations, draws, beside correctionlib and the memory.

    python benchmarks/apply.py
    python benchmarks/apply.py --muons 4e6 --json

On one thread, the best of several rounds; peers take turns with ours, so that a busy machine is busy for both. The
tables are those of 24 eta bins with 121 variations. "of triad" is bytes of pt, eta, charge and factor per second over
the bandwidth of a[i] = b[i] + s c[i] on arrays of the same length in the same round. "with out" writes into memory
that is there already, as the triad does; "scale" takes new memory for its result: beyond 32 MiB (4.2e6 muons) the
operating system gives it anew each time, and clears it.
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["MUSCLECAL_THREADS"] = "1"

import correctionlib
import numba
import numpy as np

from musclecal.binning import equal_eta_edges
from musclecal.correction import Correction
from musclecal.export.correctionlib_json import export_correctionlib
from musclecal.export.tables import correction_tables
from musclecal.records import CorrectionTables, Floats, NuisanceGroup, ScaleWithCovariance, Smearing

ROUNDS = 15


@numba.njit(cache=False)  # type: ignore[untyped-decorator]
def triad(a: Floats, b: Floats, c: Floats, s: float) -> None:
    """The memory of the machine on one core."""
    for i in range(a.size):
        a[i] = b[i] + s * c[i]


def tables(n_eta: int = 24) -> CorrectionTables:
    """Of the usual size, with closures of the Z, its mass, and a smearing."""
    rng = np.random.default_rng(3)
    edges = np.array(equal_eta_edges(n_eta, 2.4))
    sigma = np.tile([1e-4, 8e-4, 8e-6], n_eta)
    scale = ScaleWithCovariance(
        edges, rng.normal(0, 3e-4, n_eta), rng.normal(2e-3, 1e-3, n_eta), rng.normal(0, 2e-5, n_eta),
        np.diag(sigma**2),
    )  # fmt: skip
    names = tuple(f"closure_Z_{i}" for i in range(2 * n_eta))
    closure = NuisanceGroup("closure_Z", edges, ("A", "M"), names, np.diag(np.tile([1e-4, 4e-6], n_eta)))
    mass = NuisanceGroup("mass_Z", edges, ("A",), ("mass_Z",), np.full((1, n_eta), 2.3e-5))
    ones = np.ones(n_eta)
    smearing = Smearing(edges, 1e-5 * ones, 0.0 * ones, 1e-9 * ones, 370.0 * ones, 0.0 * ones)
    return correction_tables(
        scale, {"campaign": "benchmark"}, s=2.0, others=(closure, mass), smearing=smearing
    )


def best(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, taken in turn."""
    seconds = dict.fromkeys(runs, np.inf)
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main() -> int:
    """Print a table, or a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--muons", type=float, default=4e6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n, few = int(options.muons), int(options.muons) // 40
    rng = np.random.default_rng(4)
    pt, eta, phi = rng.uniform(3, 100, n), rng.uniform(-2.5, 2.5, n), rng.uniform(-np.pi, np.pi, n)
    charge, one, event = rng.choice([-1.0, 1.0], n), np.ones(n, dtype=np.int64), np.arange(n)
    made = tables()
    correction = Correction(made)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "muon_scale.json.gz"
        export_correctionlib(made, path)
        peer = correctionlib.CorrectionSet.from_string(gzip.decompress(path.read_bytes()).decode())[
            "muon_pt_scale"
        ]
    small = (pt[:few], eta[:few], phi[:few], charge[:few])
    a, b, c = np.zeros(n), np.ones(n), np.ones(n)
    A, e, M = made.A, made.e, made.M
    factor = np.zeros(n)

    def with_numpy() -> Floats:
        i = np.clip(np.searchsorted(made.eta_edges, eta, side="right") - 1, 0, made.n_eta - 1)
        factor = 1.0 / (1.0 + A[i] - e[i] / pt + charge * M[i] * pt)
        return np.where((np.abs(eta) < 2.4) & (pt >= 2.0) & (pt < 200.0), factor, 1.0)

    seconds = best({
        "triad": lambda: triad(a, b, c, 2.0),
        "scale with out": lambda: correction.scale(pt, eta, phi, charge, out=factor),
        "scale": lambda: correction.scale(pt, eta, phi, charge),
        "numpy": with_numpy,
        "correctionlib": lambda: peer.evaluate(pt[:few], eta[:few], charge[:few], "nom"),
        "variations": lambda: correction.variations(*small),
        "smear": lambda: correction.smear(pt, eta, phi, charge, one, one, event),
    })  # fmt: skip
    per_muon = {
        name: s / (few if name in ("correctionlib", "variations") else n) for name, s in seconds.items()
    }
    difference = np.abs(correction.scale(*small) - peer.evaluate(small[0], small[1], small[3], "nom")).max()
    row = {
        "muons": n,
        "triad GB/s": 24e-9 / per_muon["triad"],
        "scale with out ns/muon": 1e9 * per_muon["scale with out"],
        "scale with out of triad": 32.0 / per_muon["scale with out"] / (24.0 / per_muon["triad"]),
        "scale ns/muon": 1e9 * per_muon["scale"],
        "scale of triad": 32.0 / per_muon["scale"] / (24.0 / per_muon["triad"]),
        "scale over correctionlib": per_muon["correctionlib"] / per_muon["scale"],
        "scale over numpy": per_muon["numpy"] / per_muon["scale"],
        "variations": made.n_variations,
        "variations us/muon": 1e6 * per_muon["variations"],
        "smear ns/muon": 1e9 * per_muon["smear"],
        "largest difference": float(difference),
        "load": os.getloadavg()[0],
    }
    if options.json:
        print(json.dumps(row))
    else:
        print("\n".join(f"{name:<26} {value:.4g}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
