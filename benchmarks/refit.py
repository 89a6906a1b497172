"""How fast tracks and pairs are refitted, beside a fixed loop, the memory, and the Kalman filter of ACTS.

    python -m benchmarks.refit
    python -m benchmarks.refit --tracks 2e4 --pairs 5e3 --json
    python -m benchmarks.refit --acts

On one thread, the best of several rounds in which all take turns, so that a busy machine is busy for all: of the time
on the clock, and of the time of the processor. The detector is `cms_tracker` where it is thought to be; muons of 3 to
60 GeV and J/psi within |eta| < 2.4; fits start from the hits; `contributions` has the mass as a measurement.

The fixed loop, to compare machines: one unit is 18 times (18 planes) a product of two 6 x 6 matrices, written as three
loops, and six times the sine and cosine of an angle, compiled as our kernels are. Rates are also given in units.

--acts needs ``pip install pyacts==48.1.0`` (Linux, a wheel; not needed by anything else). It runs ACTS' examples in the
same process: their generic detector, 3.8 T, muons of the same momenta from Fatras, Gaussian smearing of hits, hits by
truth, `makeKalmanFitterFunction` on one thread; only the fit is on the clock. Not alike, so that the ratio is no more
than an order of magnitude: ACTS' detector has other planes (12 hits, all with two coordinates, and as many surfaces
without hits), material averaged over surfaces, and finds the surfaces by navigation, where we are told them; it
integrates any field (Runge-Kutta, adaptive), where we step along helices of a map; scattering is noise of a filter with
a pass backwards, where we have all hits in one covariance; it starts from smeared truth and passes once, where we
start from hits and iterate (two or three times); it gives the state at every surface, we at the beam line alone.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["MUSCLECAL_THREADS"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from musclecal.compiled import kernel
from musclecal.geometry.detector import cms_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.pair_refit import contributions, refit_pairs
from musclecal.geometry.refit import refit_tracks
from musclecal.geometry.simulate import flat_muons, simulate_pairs, simulate_tracks, track_maker
from musclecal.records import Floats, MassConstraint, PairRefits, Pairs, Refits, Tracks
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

ROUNDS = 5
UNITS = 5000
PLANES, ANGLES = 18, 6
PT, ETA_MAX = (3.0, 60.0), 2.4
MASS = MassConstraint(3.0969, 0.005, (2.9, 3.3))
ACTS_MUONS = 100
"""An event."""
SMEARING = {(7, 8, 9): (0.0144, 0.0144), (12, 13, 14): (0.0231, 0.346), (16, 17, 18): (0.0346, 3.12)}
"""mm, in the two coordinates of the volumes of ACTS' generic detector."""

Seconds = tuple[float, float]
"""On the clock, and of the processor."""


@kernel
def reference(matrix: Floats, product: Floats, room: Floats, units: int, planes: int, angles: int) -> float:
    """The fixed loop; ``matrix`` (6, 6) a rotation, so that ``product`` stays one."""
    angle = 0.3
    for _ in range(units * planes):
        for i in range(6):
            for j in range(6):
                total = 0.0
                for k in range(6):
                    total += matrix[i, k] * product[k, j]
                room[i, j] = total
        for i in range(6):
            for j in range(6):
                product[i, j] = room[i, j]
        for _ in range(angles):
            angle = np.sin(angle) + np.cos(angle)
    return float(angle + product[0, 0])


def taken(run: Callable[[], object]) -> Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def best(runs: dict[str, Callable[[], Seconds]]) -> dict[str, Seconds]:
    """The least of each, taken in turn after a round that compiles."""
    seconds: dict[str, Seconds] = dict.fromkeys(runs, (np.inf, np.inf))
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            clock, processor = run()
            seconds[name] = min(seconds[name][0], clock), min(seconds[name][1], processor)
    return seconds


def chi2_per_ndf(fits: Refits | PairRefits) -> float:
    good = fits.status == 0
    return float(fits.chi2[good].sum() / fits.ndf[good].sum())


def pull_width(fits: Refits, states: Floats) -> float:
    """Of q/p at the start of a track, where no energy is lost yet."""
    good = fits.status == 0
    return float(np.std(((fits.local[:, 0] - states[:, 0]) / np.sqrt(fits.covariance[:, 0, 0]))[good]))


class Acts:
    """ACTS' Kalman filter on its own tracks; a call gives the seconds of the fits of ``n_events`` events."""

    def __init__(self, n_events: int) -> None:
        try:
            import acts
            from acts import examples
        except ImportError as error:
            raise SystemExit(f"--acts: no pyacts here ({error}); pip install pyacts==48.1.0") from error
        self.n_events = n_events
        self.acts, self.examples = acts, examples
        self.detector = examples.GenericDetector(examples.GenericDetector.Config())
        self.geometry = self.detector.trackingGeometry()
        self.field = acts.ConstantBField(acts.Vector3(0.0, 0.0, 3.8 * acts.UnitConstants.T))
        self.tracks = self.hits = self.states = self.coordinates = 0
        self.chi2 = 0.0

    def __call__(self) -> Seconds:
        times: list[Seconds] = []

        def note(_: Any) -> None:
            times.append((time.perf_counter(), time.process_time()))

        self.tracks = self.hits = self.states = self.coordinates = 0
        self.chi2 = 0.0
        with tempfile.TemporaryDirectory() as folder:
            sequence = self.simulation(Path(folder))
            for algorithm in (
                self.algorithm("before", note),
                self.fit(),
                self.algorithm("after", note),
                self.look(),
            ):
                sequence.addAlgorithm(algorithm)
            sequence.run()
        clock, processor = (np.array(times[1::2]) - np.array(times[0::2])).sum(axis=0)
        return float(clock), float(processor)

    def fit(self) -> Any:
        """The algorithm that is timed."""
        quiet, examples = self.acts.logging.WARNING, self.examples
        fitter = examples.makeKalmanFitterFunction(
            self.geometry, self.field, multipleScattering=True, energyLoss=True, reverseFilteringMomThreshold=0.0,
            reverseFilteringCovarianceScaling=100.0, freeToBoundCorrection=examples.FreeToBoundCorrection(False),
            chi2Cut=float("inf"), useJosephFormulation=False, level=quiet,
        )  # fmt: skip
        return examples.TrackFittingAlgorithm(
            level=quiet, inputMeasurements="measurements", inputProtoTracks="truth_particle_tracks",
            inputInitialTrackParameters="estimatedparameters", inputClusters="", outputTracks="fitted", pickTrack=-1,
            fit=fitter, calibrator=examples.makePassThroughCalibrator(), linkForward=False,
            referenceSurface=self.acts.Surface.createPerigee(self.acts.Vector3(0.0, 0.0, 0.0)),
        )  # fmt: skip

    def look(self) -> Any:
        """Counts tracks and what they have."""
        handle: list[Any] = []

        def count(event: Any) -> None:
            tracks = handle[0](event)
            for i in range(len(tracks)):
                track = tracks.getTrack(i)
                self.tracks += 1
                self.hits += track.nMeasurements
                self.states += track.nTrackStates
                self.chi2 += track.chi2
                self.coordinates += track.nDoF

        looking = self.algorithm("look", count)
        handle.append(self.examples.ReadDataHandle(looking, self.examples.ConstTrackContainer, "tracks"))
        handle[0].initialize("fitted")
        return looking

    def algorithm(self, name: str, work: Callable[[Any], None]) -> Any:
        """One that calls ``work`` with what is known of an event."""
        done = self.examples.ProcessCode.SUCCESS

        class Algorithm(self.examples.IAlgorithm):  # type: ignore[name-defined,misc]
            def execute(self, context: Any) -> Any:
                work(context.eventStore)
                return done

        return Algorithm(name, self.acts.logging.WARNING)

    def simulation(self, folder: Path) -> Any:
        """Muons, hits, measurements, and what a fit starts from."""
        from acts.examples import reconstruction, simulation

        u = self.acts.UnitConstants
        random = self.examples.RandomNumbers(seed=42)
        sequence = self.examples.Sequencer(
            events=self.n_events, numThreads=1, logLevel=self.acts.logging.WARNING, outputDir=str(folder),
            trackFpes=False,
        )  # fmt: skip
        muon = simulation.ParticleConfig(ACTS_MUONS, self.acts.PdgParticle.eMuon, randomizeCharge=True)
        simulation.addParticleGun(
            sequence, simulation.MomentumConfig(PT[0] * u.GeV, PT[1] * u.GeV, transverse=True),
            simulation.EtaConfig(-ETA_MAX, ETA_MAX, uniform=True), particleConfig=muon, rnd=random,
        )  # fmt: skip
        simulation.addFatras(
            sequence, self.geometry, self.field, rnd=random, inputParticles="particles_generated"
        )
        smearing = folder / "smearing.json"
        smearing.write_text(json.dumps(smearing_of_volumes()), encoding="utf-8")
        simulation.addDigitization(sequence, self.geometry, self.field, digiConfigFile=smearing, rnd=random)
        simulation.addDigiParticleSelection(
            sequence, simulation.ParticleSelectorConfig(measurements=(7, None))
        )
        reconstruction.addSeeding(
            sequence, self.geometry, self.field, rnd=random, inputParticles="particles_generated",
            seedingAlgorithm=reconstruction.SeedingAlgorithm.TruthSmeared,
            particleHypothesis=self.acts.ParticleHypothesis.muon,
            initialSigmas=[u.mm, u.mm, u.degree, u.degree, 0.0, u.ns], initialSigmaQoverPt=0.1 / u.GeV,
            initialSigmaPtRel=0.1, initialVarInflation=[1.0] * 6,
        )  # fmt: skip
        return sequence


def smearing_of_volumes() -> dict[str, object]:
    """`SMEARING` as ACTS reads it."""
    entries = [
        {
            "volume": volume,
            "value": {
                "smearing": [
                    {"index": i, "mean": 0.0, "stddev": sigma, "type": "Gauss"}
                    for i, sigma in enumerate(sigmas)
                ]
            },
        }
        for volumes, sigmas in SMEARING.items()
        for volume in volumes
    ]
    header = {"format-version": 0, "value-identifier": "digitization-configuration"}
    return {"acts-geometry-hierarchy-map": header, "entries": entries}


def sample(n_tracks: int, n_pairs: int) -> tuple[Any, Floats, Tracks, Pairs]:
    """Planes, start states and tracks of single muons, and pairs."""
    detector, field = cms_tracker(), solenoid_map()
    maker = track_maker(detector, field)
    states = flat_muons(n_tracks, 1, pt=PT, eta=(-ETA_MAX, ETA_MAX))
    jpsi = SimulationSettings(resonance("Jpsi"), PT, (-ETA_MAX, ETA_MAX), (2.6, 3.5))
    pairs = next(iter(simulate_pairs(maker, jpsi, n_pairs, 1, chunk_pairs=n_pairs)))
    return planes_of(detector, field), states, simulate_tracks(maker, states, 1), pairs


def measure(n_tracks: int, n_pairs: int, with_acts: bool) -> dict[str, float]:
    planes, states, tracks, pairs = sample(n_tracks, n_pairs)
    fits, pair_fits = refit_tracks(tracks, planes), refit_pairs(pairs.tracks, pairs.pairs, planes)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    product, room = np.eye(6), np.empty((6, 6))

    def contribute() -> None:
        for _ in contributions(pairs.tracks, pairs.pairs, planes, None, MASS):
            pass

    runs = {
        "reference": lambda: taken(lambda: reference(rotation, product, room, UNITS, PLANES, ANGLES)),
        "tracks": lambda: taken(lambda: refit_tracks(tracks, planes)),
        "pairs": lambda: taken(lambda: refit_pairs(pairs.tracks, pairs.pairs, planes)),
        "contributions": lambda: taken(contribute),
    }
    numbers = {"reference": UNITS, "tracks": n_tracks, "pairs": n_pairs, "contributions": n_pairs}
    acts = Acts(max(1, n_tracks // (10 * ACTS_MUONS))) if with_acts else None
    if acts:
        runs["acts"] = acts
    seconds = best(runs)
    if acts:
        numbers["acts"] = acts.tracks
    row: dict[str, float] = {"load": os.getloadavg()[0]}
    for name, n in numbers.items():
        row[f"{name} per second"] = n / seconds[name][0]
        row[f"{name} per second of processor"] = n / seconds[name][1]
        if name != "reference":
            row[f"{name} in units of reference"] = n / seconds[name][1] / (UNITS / seconds["reference"][1])
    row |= {
        "planes per track": float(np.mean(np.sum(tracks.module >= 0, axis=1))),
        "fitted tracks": float(np.mean(fits.status == 0)),
        "chi2/ndf of tracks": chi2_per_ndf(fits),
        "pull width of q/p": pull_width(fits, states),
        "fitted pairs": float(np.mean(pair_fits.status == 0)),
        "chi2/ndf of pairs": chi2_per_ndf(pair_fits),
        "largest memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if acts:
        hits = float(np.mean(tracks.n_hits))
        row |= {
            "tracks over acts": row["tracks per second of processor"] / row["acts per second of processor"],
            "acts hits per track": acts.hits / acts.tracks,
            "acts surfaces per track": acts.states / acts.tracks,
            "acts chi2 per coordinate": acts.chi2 / acts.coordinates,
        }
        row["hits over acts"] = row["tracks over acts"] * hits / row["acts hits per track"]
    return row


def main() -> int:
    """Print a table, or a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tracks", type=float, default=2e4)
    parser.add_argument("--pairs", type=float, default=5e3)
    parser.add_argument("--acts", action="store_true", help="beside the Kalman filter of ACTS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    row = measure(int(options.tracks), int(options.pairs), options.acts)
    if options.json:
        print(json.dumps(row))
        return 0
    print("\n".join(f"{name:<42} {value:.4g}" for name, value in row.items()))
    if options.acts:
        print("not alike with acts: planes, material, navigation, field, start values, passes (see --help)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
