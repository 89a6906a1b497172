"""Campaigns whose calibration is that of J/psi and half of the Z: against the truth, and on the other half.

    python benchmarks/joint_campaign.py --first 21 --seeds 17

1.5e5 J/psi with 15 % background and 2e5 Z, four times as many simulated of each, 12 eta bins, a truth of up to 2e-3
(A), 6 MeV (e) and 1.5e-4/GeV (M). A row per seed: chi2 per parameter against the truth, p-value of the agreement of the
samples, what the second pass changed (chi2 per parameter, and the largest change over its error), and the closure on
the odd half.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads get in the way of the kernels

import numpy as np

from musclecal.binning import equal_eta_edges
from musclecal.campaign import Campaign
from musclecal.covariance import chi2_of
from musclecal.records import ScaleParameters
from musclecal.samples import write_scale
from musclecal.tasks import run_tasks
from musclecal.validation.closure import mean_residual

N_ETA = 12
SAMPLES = (("j", "Jpsi", 150_000, 0.15), ("z", "Z", 200_000, 0.0))
"""Name, resonance, events of the data, background."""


def truth() -> ScaleParameters:
    """Many times what the samples can see, with both signs."""
    edges = np.array(equal_eta_edges(N_ETA, 2.4))
    x = 0.5 * (edges[1:] + edges[:-1]) / 2.4
    return ScaleParameters(edges, 2e-3 * np.cos(3 * x), 5e-3 * (1 + 0.4 * x), 1.5e-4 * np.sin(3 * x))


def campaign_in(folder: Path, seed: int) -> Campaign:
    """The campaign of a seed."""
    write_scale(folder / "truth.json", truth())
    text = '[campaign]\nname = "joint"\nengine = "joint"\n[joint]\nuse = ["Jpsi", "Z even"]\n'
    text += f"[binning]\neta_bins = {N_ETA}\n"
    for name, resonance, events, background in SAMPLES:
        first = 100 * seed + ord(name)
        for kind, made in (
            ("data", f'events = {events}, seed = {first}, truth = "truth.json", background = {background}'),
            ("simulation", f"events = {4 * events}, seed = {100_000 + first}"),
        ):
            text += f'[samples.{name}_{kind}]\nresonance = "{resonance}"\nkind = "{kind}"\nsimulate = {{{made}}}\n'
    (folder / "campaign.toml").write_text(text)
    return Campaign(folder / "campaign.toml")


def row_of(campaign: Campaign) -> str:
    """The result of a seed in words."""
    run_tasks([campaign.closure_task("Z")])
    first, found, closure = campaign.joint(0).calibration, campaign.calibration(), campaign.closure("Z")
    against = chi2_of(found.parameters - truth().parameters, found.covariance)
    change = np.abs(found.parameters - first.parameters) / np.sqrt(np.diag(found.covariance))
    mean, _, error = mean_residual(closure)
    return (
        f"{against.chi2 / against.ndf:9.3f} {found.p_value:9.3f} {found.residual_chi2:9.5f} {change.max():8.3f}    "
        f"{closure.name} {closure.chi2:5.1f}/{closure.ndf}, p = {closure.p_value:.3f}, s = {closure.s:.2f}, "
        f"mean A {1e5 * mean:+.1f} +- {1e5 * error:.1f}e-5"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=21)
    parser.add_argument("--seeds", type=int, default=17)
    options = parser.parse_args()
    print("seed  truth/n   p agree  change/n  largest    closure", flush=True)
    for seed in range(options.first, options.first + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{seed:4d} {row_of(campaign_in(Path(folder), seed))}", flush=True)


if __name__ == "__main__":
    main()
