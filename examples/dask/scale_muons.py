"""Corrected muons with dask and correctionlib: python scale_muons.py FOLDER, FOLDER as `musclecal export` writes it.

Workers get the name of the file and read it once each; the tables themselves do not travel.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import correctionlib
import dask
import dask.array as da
import numpy as np


@cache
def corrections(path: str) -> correctionlib.CorrectionSet:
    """The corrections of a file, read at the first call in each process."""
    return correctionlib.CorrectionSet.from_file(path)


def scaled_pt(
    pt: np.ndarray, eta: np.ndarray, charge: np.ndarray, path: str, syst: str = "nom"
) -> np.ndarray:
    """Corrected pT of the muons of one block."""
    return pt * corrections(path)["muon_pt_scale"].evaluate(pt, eta, charge.astype(np.float64), syst)


def with_blocks(pt: da.Array, eta: da.Array, charge: da.Array, path: str, syst: str = "nom") -> da.Array:
    """A lazy array of corrected pT with the blocks of ``pt``."""
    return da.map_blocks(scaled_pt, pt, eta, charge, path=path, syst=syst, dtype=np.float64, meta=np.empty(0))


def with_delayed(chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]], path: str) -> list[Any]:
    """A task for each chunk of (pt, eta, charge), as a loop over files would make them."""
    return [dask.delayed(scaled_pt)(*chunk, path) for chunk in chunks]


if __name__ == "__main__":
    file = str((Path(sys.argv[1]) / "muon_scale.json.gz").resolve())
    rng = np.random.default_rng(1)
    muons = rng.uniform(5.0, 100.0, 1000), rng.uniform(-2.4, 2.4, 1000), rng.choice([-1, 1], 1000)
    lazy = with_blocks(*(da.from_array(column, chunks=300) for column in muons), file)
    print("mean pT, measured ", muons[0].mean())
    print("mean pT, corrected", lazy.mean().compute())
    print("the same in chunks", np.concatenate(dask.compute(*with_delayed([muons], file))).mean())
