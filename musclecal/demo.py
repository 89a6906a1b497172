"""Campaign files that musclecal writes: the demonstration with known truth, and the template of `musclecal init`."""

from pathlib import Path

import numpy as np

from musclecal.binning import equal_eta_edges
from musclecal.errors import InputError
from musclecal.records import ScaleParameters
from musclecal.samples import write_scale
from musclecal.store import written_atomically

__all__ = ["demo_truth", "write_demo", "write_template"]

_DEMO = """\
# The demonstration of musclecal: simulated samples with a known bias (truth.json), calibrated on the J/psi and
# closed on the Upsilon(1S) and the Z. Run it again, from this folder, with: musclecal run

[campaign]
name = "demo"
output = "out"

[binning]
eta_bins = 24
eta_max = 2.4

[resonances.Jpsi]
pt_edges = [4.0, 4.9, 6.4, 9.5, 40.0]

[propagation]
draws = 3_000_000           # enough where the calibration is fixed in the mass fit; ten million for fits with nuisances

[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
simulate = {{ events = 1_400_000, seed = 11, truth = "truth.json", background = 0.15 }}

[samples.jpsi_mc]
resonance = "Jpsi"
kind = "simulation"
simulate = {{ events = 5_100_000, seed = 12 }}

[samples.upsilon_data]
resonance = "Y1S"
kind = "data"
simulate = {{ events = 600_000, seed = 13, truth = "truth.json", background = 0.3, background_slope = 0.3 }}

[samples.upsilon_mc]
resonance = "Y1S"
kind = "simulation"
simulate = {{ events = 2_700_000, seed = 14 }}

[samples.z_data]
resonance = "Z"
kind = "data"
simulate = {{ events = 500_000, seed = 15, truth = "truth.json" }}

[samples.z_mc]
resonance = "Z"
kind = "simulation"
simulate = {{ events = 2_100_000, seed = 16 }}
"""

_DEMO_WITH_MODULES = """\
# The demonstration of musclecal from hits: a small barrel detector whose modules, field and matter are not what they
# are thought to be. First a global fit of modules to tracks, then A, e, M of the corrected muons. Run it again, from
# this folder, with: musclecal run

[campaign]
name = "demo-modules"
output = "out"
passes = 1

[binning]
eta_bins = 8
eta_max = 0.8

[resonances.Jpsi]
pt_edges = [4.0, 5.5, 8.5, 40.0]

[modules]
detector = "barrel"
simulate = { pairs = 20_000, seed = 21, background = 0.05, efficiency = 0.985, noise = 0.002 }
reference = { simulate = { pairs = 40_000, seed = 22, background = 0.05 } }
solver = "direct"
passes = 3

[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
simulate_hits = { pairs = 200_000, seed = 23, background = 0.05, efficiency = 0.985, noise = 0.002 }

[samples.jpsi_mc]
resonance = "Jpsi"
kind = "simulation"
simulate_hits = { pairs = 300_000, seed = 24, efficiency = 0.985, noise = 0.002 }
"""

_TEMPLATE = """\
# A musclecal campaign: fill in the files of your samples first. Paths are relative to this file.
# Momenta and masses in GeV, angles in rad.
# Run it with: musclecal run {name}

[campaign]
name = "my-period"
output = "out"             # everything that is made goes here
# passes = 2               # 2: calibrate the corrected events once more
# engine = "joint"         # J/psi, Upsilon and half of the Z in one fit, closed on the other half

[binning]
eta_bins = 24              # one A, e, M per eta bin
eta_max = 2.4
# eta_edges = [2.0, 2.5, 3.0, 4.5]     # any edges instead

[resonances.Jpsi]          # every key has a default
# pt_edges = [4.0, 4.9, 6.4, 9.5, 40.0]    # without it: edges from the statistics of the data
# mass_window = [2.85, 3.25]
# model = "simulation-shape"  # or generator-template, pooled-template, gaussian, crystal-ball, breit-wigner
# background = "exponential"  # or linear, none
# min_events = 50             # a 4D bin with fewer is not fitted
# reweight = false            # give the simulation the pT spectrum of the data

[closure]                  # of samples that the calibration does not use
# engine = "template"         # one fit of all cells; or scalar
# run_edges = [273000, 276000, 280000]     # split the data at these runs; the last range ends before the last number

[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
files = ["data/Jpsi_*.root"]           # NanoAOD (TTree or RNTuple): no columns needed
cuts = ["mass > 2.8"]                  # further conditions, e.g. "Muon_mediumId_plus and Muon_mediumId_minus"
# reference = "fast"                   # no simulation? make the reference from the data themselves

[samples.jpsi_mc]
resonance = "Jpsi"
kind = "simulation"
files = ["mc/Jpsi_*.parquet"]
# Flat files (ROOT, Parquet, CSV, CSV.gz) say which column is what; px, py, pz win over pt, eta, phi.
[samples.jpsi_mc.columns]
pt1 = "mu1_pt"
eta1 = "mu1_eta"
phi1 = "mu1_phi"
charge1 = "mu1_q"
pt2 = "mu2_pt"
eta2 = "mu2_eta"
phi2 = "mu2_phi"
charge2 = "mu2_q"
# gen_pt1 = "gen1_pt"        # generator level after FSR, for generator-template
# gen_eta1 = "gen1_eta"
# gen_phi1 = "gen1_phi"
# gen_pt2 = "gen2_pt"
# gen_eta2 = "gen2_eta"
# gen_phi2 = "gen2_phi"

# Samples that the calibration does not use close it:
# [samples.upsilon_data]
# resonance = "Y1S"
# ...
# [samples.z_data]
# resonance = "Z"
# ...
"""


def demo_truth(n_eta: int = 24, eta_max: float = 2.4) -> ScaleParameters:
    """The bias of the demonstration: A of some 3e-4, e of 2 MeV, M of 2e-5/GeV, smooth and rough parts in eta."""
    edges = np.array(equal_eta_edges(n_eta, eta_max))
    x = 0.5 * (edges[1:] + edges[:-1]) / eta_max
    rough = np.random.default_rng(2412).normal(size=(3, n_eta))
    return ScaleParameters(
        edges,
        3e-4 * np.cos(4.0 * x) + 1.5e-4 * rough[0],
        2e-3 * (0.3 + x**2) + 1e-3 * rough[1],
        2e-5 * np.sin(5.0 * x) + 1e-5 * rough[2],
    )


def _write(path: Path, text: str) -> None:
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_demo(folder: Path, *, with_modules: bool = False) -> Path:
    """Write campaign file and truth of the demonstration into ``folder``; gives the campaign file's path.

    ``with_modules``: that from hits, whose truth is a displaced detector.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: not a folder that can be made: {error.strerror}") from None
    path = folder / "campaign.toml"
    text = _DEMO_WITH_MODULES if with_modules else _DEMO.format()
    if path.exists() and path.read_bytes() != text.encode():
        raise InputError(f"{path}: there is another campaign file already: choose another folder, --demo DIR")
    _write(path, text)
    if not with_modules:
        write_scale(folder / "truth.json", demo_truth())
    return path


def write_template(path: Path) -> None:
    """Write the commented campaign file of `musclecal init`; never over an existing file."""
    if path.exists():
        raise InputError(f"{path}: exists already")
    _write(path, _TEMPLATE.format(name=path))
