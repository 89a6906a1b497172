"""A coffea processor with corrected muons: python z_mass.py FOLDER FILE..., FOLDER as `musclecal export` writes it.

FILE are NanoAOD. The histogram of the mass of two muons of opposite charge has an axis of variations; muons are moved
from one bin to another as a whole, whichever pT they had before. musclecal itself is needed on the workers only for
`musclecal.load`; with correctionlib alone the same factors come from examples/awkward.
"""

import sys
from typing import Any

import awkward as ak
import hist
import numpy as np
from coffea import processor
from coffea.nanoevents import NanoAODSchema

import musclecal


class ZMass(processor.ProcessorABC):
    """Mass of all pairs of opposite charge; ``systs`` are names of variations with _up or _down."""

    def __init__(self, folder: str, systs: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._systs = ("nom", *systs)

    def process(self, events: Any) -> dict[str, Any]:
        """The histogram of one chunk, and how many muons were not corrected."""
        correction = musclecal.load(self._folder)
        masses = hist.Hist(
            hist.axis.StrCategory(self._systs, name="syst"),
            hist.axis.Regular(60, 60.0, 120.0, name="mass", label="mass [GeV]"),
        )
        muons = events.Muon
        kinematics = (muons.pt, muons.eta, muons.phi, muons.charge)
        for syst in self._systs:
            corrected = ak.with_field(muons, muons.pt * correction.scale(*kinematics, syst=syst), "pt")
            pairs = ak.combinations(corrected, 2, fields=["one", "two"])
            pairs = pairs[pairs.one.charge != pairs.two.charge]
            masses.fill(syst=syst, mass=ak.to_numpy(ak.flatten((pairs.one + pairs.two).mass)))
        left = int(np.sum(ak.to_numpy(ak.flatten(~correction.validity(*kinematics).valid))))
        return {"mass": masses, "uncorrected muons": left}

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the histograms of chunks are added as they are."""
        return accumulator


def run(folder: str, files: list[str], systs: tuple[str, ...] = ()) -> dict[str, Any]:
    """All files here, in chunks."""
    runner = processor.Runner(processor.IterativeExecutor(status=False), schema=NanoAODSchema, chunksize=1000)
    return runner({"Z": {"files": dict.fromkeys(files, "Events")}}, ZMass(folder, systs))


if __name__ == "__main__":
    result = run(sys.argv[1], sys.argv[2:])
    print("pairs", int(result["mass"].sum()), "muons without correction", result["uncorrected muons"])
