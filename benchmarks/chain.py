"""Data and simulated J/psi on disk to A, e, M by campaign commands: seconds, memory, pulls of the result.

    python -m benchmarks.chain --pairs 1e6 --folder chain
    python -m benchmarks.chain --pairs 1e8 --folder chain --threads 2 --json

The folder gets as many data as simulated pairs, in NanoAOD-like ROOT files (float32, LZ4) of 5e6 pairs each, from our
own simulation with a random truth of the usual size and 15 % background; files that are there already are not made
again, so making them can be stopped and continued. A pair is about 50 bytes. Numbers are of pairs in an acceptance a
little wider than the cuts; fewer are inside. Then `musclecal fill`, `fit` and `extract` run, each in a process of its
own, as a user would; what they made before is taken away first. --generator also writes generator-level muons of the
simulation, and fits with the template of them.

"seconds" are those on the clock of the whole process, start and imports too; "peak MB" the largest memory of the
process; kernels are compiled by a campaign of 20,000 pairs first (--cold: not). The triad is of one thread, before
and after. Pulls are (result - truth)/error over all eta bins; with 1e8 pairs also what one pass leaves over is seen,
so --passes 2 is the recipe of a campaign, and reads the data twice.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.accuracy import PT_EDGES, loose, random_truth
from benchmarks.peers.rows import Effort, in_turns, tell, triad_run
from musclecal.binning import equal_eta_edges
from musclecal.campaign import Campaign
from musclecal.errors import QualityGateError
from musclecal.event_writer import write_dimuons
from musclecal.records import DimuonEvents, ScaleParameters
from musclecal.samples import write_scale
from musclecal.simulate import SimulationSettings, simulate

PAIRS_PER_FILE = 5_000_000
BACKGROUND = 0.15
STAGES = ("fill", "fit", "extract")
COMPILING = 20_000
MODELS = {False: "simulation-shape", True: "generator-template"}


@dataclass(frozen=True)
class Chain:
    """What is run, and where."""

    folder: Path
    pairs: int
    eta_bins: int = 24
    passes: int = 1
    threads: int = 0
    generator: bool = False

    @property
    def truth(self) -> ScaleParameters:
        """Of the data."""
        return random_truth(1, equal_eta_edges(self.eta_bins, 2.4))

    def files(self, kind: str) -> dict[Path, int]:
        """Pairs of each file."""
        n = -(-self.pairs // PAIRS_PER_FILE)
        sizes = [min(PAIRS_PER_FILE, self.pairs - i * PAIRS_PER_FILE) for i in range(n)]
        return {self.folder / f"{kind}_{i:03d}_{size}.root": size for i, size in enumerate(sizes)}


@dataclass(frozen=True)
class Stage:
    """One command. ``memory``: largest, in MB."""

    name: str
    seconds: float
    processor_seconds: float
    memory: float


def _settings(chain: Chain, kind: str) -> SimulationSettings:
    settings = loose("Jpsi", PT_EDGES, beyond=0.015 if kind == "data" else 0.12)
    return replace(settings, truth=chain.truth, background=BACKGROUND) if kind == "data" else settings


def _written(chunks: Iterable[DimuonEvents], generator: bool) -> Iterator[DimuonEvents]:
    """Without the columns that a file need not have."""
    for events in chunks:
        bare = replace(events, extra={})
        yield bare if generator else replace(bare, gen_plus=None, gen_minus=None)


def make_files(chain: Chain) -> None:
    """Those that are not there, each from a seed and a run of its own."""
    chain.folder.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(("data", "simulation")):
        settings, generator = _settings(chain, kind), chain.generator and kind == "simulation"
        for i, (path, n) in enumerate(chain.files(kind).items()):
            if path.exists():
                continue
            start = time.perf_counter()
            chunks = simulate(
                replace(settings, run=i + 1), n, seed=10_000 * (number + 1) + i, threads=chain.threads or None
            )
            write_dimuons(path, _written(chunks, generator))
            tell(f"{path.name}: {n} pairs in {time.perf_counter() - start:.0f} s")


def write_campaign(chain: Chain) -> Path:
    """The campaign file."""
    write_scale(chain.folder / "truth.json", chain.truth)
    text = (
        f'[campaign]\nname = "chain"\npasses = {chain.passes}\n\n[binning]\neta_bins = {chain.eta_bins}\n\n'
    )
    text += f'[resonances.Jpsi]\npt_edges = {list(PT_EDGES)}\nmodel = "{MODELS[chain.generator]}"\n'
    for kind in ("data", "simulation"):
        names = json.dumps([path.name for path in chain.files(kind)])
        text += f'\n[samples.jpsi_{kind}]\nresonance = "Jpsi"\nkind = "{kind}"\nfiles = {names}\n'
    path = chain.folder / "campaign.toml"
    path.write_text(text, encoding="utf-8")
    return path


def run_stage(name: str, campaign: Path, threads: int) -> Stage:
    """One command as a process; SystemExit where it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "MUSCLECAL_THREADS"}
    if threads:
        environment["MUSCLECAL_THREADS"] = str(threads)
    start = time.perf_counter()
    command = [sys.executable, "-m", "musclecal.cli", name, "--campaign", str(campaign)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode not in (0, QualityGateError.exit_code):
        raise SystemExit(f"musclecal {name}: exit code {process.returncode}\n{told}")
    gate = f", a quality gate failed: {told.strip().splitlines()[-1]}" if process.returncode else ""
    tell(f"{name}: {seconds:.1f} s, {usage.ru_maxrss / 1024:.0f} MB{gate}")
    return Stage(name, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def run_stages(chain: Chain) -> tuple[Stage, ...]:
    """All of them, from nothing."""
    make_files(chain)
    campaign = write_campaign(chain)
    shutil.rmtree(chain.folder / "out", ignore_errors=True)
    return tuple(run_stage(name, campaign, chain.threads) for name in STAGES)


def compile_kernels(chain: Chain) -> None:
    """A small campaign of the same kind."""
    small = replace(chain, folder=chain.folder / "compiling", pairs=COMPILING, eta_bins=4)
    tell("kernels are compiled")
    run_stages(small)
    shutil.rmtree(small.folder)


def pulls(chain: Chain) -> dict[str, float]:
    """rms of each parameter, and chi2 of all against the truth for each."""
    found = Campaign(chain.folder / "campaign.toml").calibration()
    difference = found.parameters - chain.truth.parameters
    pull = (difference / np.sqrt(np.diag(found.covariance))).reshape(-1, 3)
    chi2 = float(difference @ np.linalg.solve(found.covariance, difference)) / len(difference)
    rms = np.sqrt(np.mean(pull**2, axis=0))
    return {f"rms pull {name}": float(x) for name, x in zip("AeM", rms, strict=True)} | {"chi2/n": chi2}


def triad() -> float:
    """GB/s of one thread."""
    return 1e-9 * in_turns({"triad": triad_run()}, Effort(rounds=10, seconds=3.0))["triad"]


def measure(chain: Chain, cold: bool) -> dict[str, object]:
    """The row."""
    make_files(chain)
    if not cold:
        compile_kernels(chain)
    before = triad()
    stages = run_stages(chain)
    after = triad()
    bytes_read = sum(path.stat().st_size for kind in ("data", "simulation") for path in chain.files(kind))
    return {
        "pairs": chain.pairs,
        "threads": chain.threads or len(os.sched_getaffinity(0)),
        "eta bins": chain.eta_bins,
        "passes": chain.passes,
        "model": MODELS[chain.generator],
        "file GB": 1e-9 * bytes_read,
        "seconds": {stage.name: stage.seconds for stage in stages},
        "processor seconds": {stage.name: stage.processor_seconds for stage in stages},
        "peak MB": {stage.name: stage.memory for stage in stages},
        "total seconds": sum(stage.seconds for stage in stages),
        "largest MB": max(stage.memory for stage in stages),
        "pairs per second": 2 * chain.pairs / sum(stage.seconds for stage in stages),
        "triad GB/s": [before, after],
        **pulls(chain),
        "load": os.getloadavg()[0],
    }


def in_words(row: Mapping[str, object]) -> str:
    """A line each."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(x)}" for name, x in value.items())
        return ", ".join(text(x) for x in value) if isinstance(value, list) else str(value)

    return "\n".join(f"{name:<18} {text(value)}" for name, value in row.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found, or a JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=float, default=1e6, help="of data, and as many simulated")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0, help="of each command; by default all")
    parser.add_argument("--eta-bins", type=int, default=24)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument(
        "--generator", action="store_true", help="write generator-level muons, fit with templates"
    )
    parser.add_argument("--cold", action="store_true", help="compilation is on the clock if it is needed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    chain = Chain(
        options.folder,
        int(options.pairs),
        options.eta_bins,
        options.passes,
        options.threads,
        options.generator,
    )
    row = measure(chain, options.cold)
    print(json.dumps(row) if options.json else in_words(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
