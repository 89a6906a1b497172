"""What A, e, M fits take off the bias that module corrections leave: python -m benchmarks.modules_scale BIAS.npz

BIAS.npz is what `python -m benchmarks.modules --save` writes: dk/k = even + q odd in bins of eta at some pT. It is put
on the measured muons of 3.5e6 simulated J/psi (15 % background; 1e7 simulated ones without bias as reference), linear
in ln pT between the points; then A, e, M are fitted in 24 bins of eta and applied. Printed are the root mean squares
over eta of even and odd before and after, and the statistical error of the fit, at 10 and 40 GeV.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.accuracy import PT_EDGES, loose, number_for
from musclecal.binning import Binning, equal_eta_edges
from musclecal.fits.histogram import fill
from musclecal.fits.mass_fits import MassModel, fit_masses
from musclecal.fits.scale_fit import scale_calibration
from musclecal.records import DimuonEvents, Floats, Muons, ScaleCalibration
from musclecal.resonances import resonance
from musclecal.scale import relative_correction
from musclecal.simulate import simulate

N_ETA = 24


class Bias:
    """dk/k of muons, from even and odd (n_pt, n_eta) at ``pt`` (GeV) in bins of eta."""

    def __init__(self, path: Path, edges: Floats) -> None:
        with np.load(path) as archive:
            self._log_pt = np.log(archive["pt"])
            self._parts = {name: archive[name] for name in ("even", "odd")}
        self._edges = edges

    def at(self, name: str, pt: Floats, eta_bin: Floats) -> Floats:
        """Linear in ln pT, constant beyond the points."""
        x = np.clip(np.log(pt), self._log_pt[0], self._log_pt[-1])
        i = np.clip(np.searchsorted(self._log_pt, x, side="right") - 1, 0, len(self._log_pt) - 2)
        t = (x - self._log_pt[i]) / (self._log_pt[i + 1] - self._log_pt[i])
        table = self._parts[name]
        return np.asarray((1.0 - t) * table[i, eta_bin] + t * table[i + 1, eta_bin])

    def biased(self, muons: Muons, charge: float) -> Floats:
        """pT of muons whose curvature is (1 + dk/k) times what it was."""
        eta_bin = np.clip(np.searchsorted(self._edges, muons.eta, side="right") - 1, 0, len(self._edges) - 2)
        even, odd = (self.at(name, muons.pt, eta_bin) for name in ("even", "odd"))
        return np.asarray(muons.pt / (1.0 + even + charge * odd))


def left(bias: Bias, calibration: ScaleCalibration, pt: float) -> dict[str, float]:
    """Even and odd before and after, and the error of the calibration, in 1e-5."""
    bins, here = np.arange(N_ETA), np.full(N_ETA, pt)
    before = {name: bias.at(name, here, bins) for name in ("even", "odd")}
    parameters = calibration.parameters.reshape(-1, 3)
    both = {q: relative_correction(pt, q, *parameters.T) for q in (1.0, -1.0)}
    fitted = {"even": 0.5 * (both[1.0] + both[-1.0]), "odd": 0.5 * (both[1.0] - both[-1.0])}
    jacobian = {"even": np.array([1.0, -1.0 / pt, 0.0]), "odd": np.array([0.0, 0.0, pt])}
    row: dict[str, float] = {}
    for name, direction in jacobian.items():
        after = before[name] + fitted[name]
        blocks = [calibration.covariance[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] for i in bins]
        variance = np.array([direction @ block @ direction for block in blocks])
        for what, values in (("before", before[name]), ("after", after), ("sigma", np.sqrt(variance))):
            row[f"{name}_pt{pt:.0f}_{what}"] = float(1e5 * np.sqrt(np.mean(values**2)))
    return row


def main() -> int:
    """Print a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bias", type=Path)
    parser.add_argument("--jpsi", type=float, default=3.5e6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    edges = equal_eta_edges(N_ETA, 2.4)
    bias = Bias(options.bias, np.array(edges))
    r = resonance("Jpsi")
    binning = Binning(edges, PT_EDGES, r.mass_window, r.mass_bins, r.line.mass)
    data, reference = replace(loose("Jpsi", PT_EDGES), background=0.15), loose("Jpsi", PT_EDGES, 0.12)
    n_data = number_for(data, options.jpsi / 0.85, binning)
    n_reference = number_for(reference, 3.0 * options.jpsi, binning)

    def measured() -> Iterator[DimuonEvents]:
        for events in simulate(data, n_data, 2 * options.seed):
            yield events.with_momenta(bias.biased(events.plus, 1.0), bias.biased(events.minus, -1.0))

    simulated = fill(simulate(reference, n_reference, 2 * options.seed + 1), binning)
    calibration = scale_calibration(
        fit_masses(fill(measured(), binning), simulated, r, MassModel("simulation-shape")), None
    )
    row: dict[str, object] = {"jpsi": options.jpsi, "seed": options.seed}
    for pt in (10.0, 40.0):
        row |= left(bias, calibration, pt)
    print(json.dumps(row | {"chi2_ndf": calibration.chi2 / calibration.ndf}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
