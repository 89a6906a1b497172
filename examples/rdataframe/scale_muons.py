"""Corrected muons in RDataFrame: python scale_muons.py FOLDER [NANOAOD.root].

FOLDER is what `musclecal export` writes. Without a file of muons there are a few made here.
"""

import re
import sys
from pathlib import Path
from typing import Any

import ROOT

MUONS = "Muon_pt, Muon_eta, Muon_charge"
TOY = {
    "Muon_pt": "ROOT::RVecF{25.f + rdfentry_, 6.f, 1000.f}",
    "Muon_eta": "ROOT::RVecF{0.3f, -1.7f, 0.f}",
    "Muon_phi": "ROOT::RVecF{0.1f, 2.f, -3.f}",
    "Muon_charge": "ROOT::RVecI{1, -1, 1}",
    "run": "1u",
    "luminosityBlock": "2u",
    "event": "rdfentry_",
}


def declare(folder: Path) -> None:
    """Tell ROOT's compiler about the tables; once in a program."""
    header = folder.resolve() / "muon_scale.h"
    (namespace,) = re.findall(r"^namespace (\w+) {", header.read_text(), flags=re.MULTILINE)
    columns = Path(__file__).resolve().with_name("muon_columns.h")
    ROOT.gInterpreter.Declare(f'#define MUON_SCALE {namespace}\n#include "{header}"\n#include "{columns}"\n')


def with_corrected_muons(frame: Any) -> Any:
    """New columns: corrected pT, and pT with the first variation up and down by one standard deviation."""
    frame = frame.Define("Muon_scaled_pt", f"muon_columns::scaled_pt({MUONS})")
    for name, nsigma in (("up", 1.0), ("down", -1.0)):
        frame = frame.Define(
            f"Muon_scaled_pt_stat0_{name}", f"muon_columns::shifted_pt({MUONS}, 0, {nsigma})"
        )
    return frame


def with_smeared_muons(frame: Any) -> Any:
    """For simulation, where the tables have a smearing."""
    muons = "Muon_pt, Muon_eta, Muon_phi, run, luminosityBlock, event"
    return frame.Define("Muon_smeared_pt", f"muon_columns::smeared_pt({muons})")


def toy() -> Any:
    """Three muons in each of four events; the last one is beyond the range of the correction."""
    frame = ROOT.RDataFrame(4)
    for name, expression in TOY.items():
        frame = frame.Define(name, expression)
    return frame


if __name__ == "__main__":
    declare(Path(sys.argv[1]))
    events = ROOT.RDataFrame("Events", sys.argv[2]) if len(sys.argv) > 2 else toy()
    with_corrected_muons(events).Display(["Muon_pt", "Muon_scaled_pt", "Muon_scaled_pt_stat0_up"]).Print()
