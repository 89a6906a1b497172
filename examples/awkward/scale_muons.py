"""Corrected jagged muons with awkward and correctionlib, as in a coffea processor: python scale_muons.py FOLDER.

FOLDER is what `musclecal export` writes. musclecal itself is not needed here.
"""

import sys
from pathlib import Path
from typing import Any

import awkward as ak
import correctionlib
import numpy as np

TOY = {
    "run": [1, 1, 1],
    "luminosityBlock": [7, 7, 8],
    "event": [101, 102, 9_007_199_254_740_993],
    "Muon": [
        [
            {"pt": 27.0, "eta": 0.3, "phi": 0.1, "charge": 1},
            {"pt": 41.0, "eta": -1.7, "phi": 2.0, "charge": -1},
        ],
        [],
        [{"pt": 500.0, "eta": 0.0, "phi": -3.0, "charge": 1}],
    ],
}


def flat(values: ak.Array) -> np.ndarray:
    """One real number for each muon; charges too, as correctionlib wants them."""
    return ak.to_numpy(ak.flatten(values)).astype(np.float64)


def scale(muons: ak.Array, corrections: correctionlib.CorrectionSet, syst: str = "nom") -> ak.Array:
    """Factor on pT of each muon; ``syst`` is nom or the name of a variation with _up or _down."""
    values = corrections["muon_pt_scale"].evaluate(flat(muons.pt), flat(muons.eta), flat(muons.charge), syst)
    return ak.unflatten(values, ak.num(muons))


def smear(events: ak.Array, corrections: correctionlib.CorrectionSet, salt: int = 0) -> ak.Array:
    """Factor on pT of each simulated muon, a function of the muon alone."""
    muons = events.Muon
    keys = [
        ak.to_numpy(ak.flatten(ak.broadcast_arrays(number, muons.pt)[0])).astype(np.int64)
        for number in (events.run, events.luminosityBlock, events.event)
    ]
    values = corrections["muon_pt_smear"].evaluate(
        flat(muons.pt), flat(muons.eta), flat(muons.phi), *keys, salt
    )
    return ak.unflatten(values, ak.num(muons))


def shifts(muons: ak.Array, tables: Any) -> ak.Array:
    """Relative shifts of the curvature by all variations, (muon, variation), from ``muon_scale.npz``: one product.

    The corrected pT of variation i is pT/(1/factor + shift i). Zero out of the ranges of eta and pT.
    """
    pt, eta, charge = flat(muons.pt), flat(muons.eta), flat(muons.charge)
    edges, (low, high) = tables["eta_edges"], tables["pt_range"]
    valid = (pt >= low) & (pt < high) & (eta >= edges[0]) & (eta < edges[-1])
    eta_bin = np.searchsorted(edges, eta[valid], side="right") - 1
    jacobian = np.stack([np.ones(valid.sum()), -1.0 / pt[valid], charge[valid] * pt[valid]], axis=1)
    out = np.zeros((len(pt), tables["variations"].shape[2]))
    out[valid] = np.einsum("mp,mpv->mv", jacobian, tables["variations"][eta_bin])
    return ak.unflatten(out, ak.num(muons))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    corrections = correctionlib.CorrectionSet.from_file(str(folder / "muon_scale.json.gz"))
    muons = ak.Array(TOY["Muon"])
    print("measured ", muons.pt.tolist())
    print("corrected", (muons.pt * scale(muons, corrections)).tolist())
    print("stat0_up ", (muons.pt * scale(muons, corrections, "stat0_up")).tolist())
