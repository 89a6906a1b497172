"""Muons with the factors that every port of a correction must give for them: `reference.parquet`."""

from pathlib import Path
from typing import Any

import numpy as np

from musclecal.errors import InputError
from musclecal.records import CorrectionTables, Floats
from musclecal.scale import relative_correction
from musclecal.smear import normal_draws, smeared_factors
from musclecal.store import written_atomically

__all__ = ["REFERENCE_FILE", "export_reference", "load_reference", "reference_of"]

REFERENCE_FILE = "reference.parquet"
_MUONS = 1000
_SEED = 20161


def export_reference(tables: CorrectionTables, path: Path) -> None:
    """Write 1,000 muons (pt, eta, phi, charge, run, lumi, event) and what they become.

    ``scale`` is the nominal factor on pT, ``<variation>_up`` and ``<variation>_down`` that of the first and the last
    variation, ``draw`` the unit Gaussian of the smearing with salt 0, ``smear`` its factor where there is a smearing. A
    tenth of the muons are on edges of eta, or outside the ranges, where all factors are 1.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(column) for name, column in reference_of(tables).items()})
    with written_atomically(path) as temporary:
        pq.write_table(table, temporary, compression="none")


def load_reference(path: Path) -> dict[str, Any]:
    """The columns of a file of `export_reference`. Raises `InputError` if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable table of reference muons ({error})") from None
    return {name: table[name].to_numpy() for name in table.column_names}


def reference_of(tables: CorrectionTables) -> dict[str, Any]:
    """The columns, computed with numpy alone, apart from the draws."""
    muons = _muons(tables)
    pt, eta, charge = muons["pt"], muons["eta"], muons["charge"]
    result = muons | {"scale": _factors(tables, tables.parameters, pt, eta, charge)}
    for i in sorted({0, tables.n_variations - 1}):
        for side, sign in (("up", 1.0), ("down", -1.0)):
            shifted = tables.parameters + sign * tables.variations[:, :, i].ravel()
            name = f"{tables.variation_names[i]}_{side}"
            result[name] = _factors(tables, shifted, pt, eta, charge)
    event = (muons["run"], muons["lumi"], muons["event"])
    result["draw"] = normal_draws(*event, muons["phi"])
    if tables.smearing is not None:
        result["smear"] = smeared_factors(pt, eta, muons["phi"], *event, 0, tables.smearing, tables.pt_range)
    return result


def _muons(tables: CorrectionTables) -> dict[str, Any]:
    rng = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
    (low, high), edges = tables.pt_range, tables.eta_edges
    pt = np.exp(rng.uniform(np.log(low), np.log(high), _MUONS))
    eta = rng.uniform(edges[0], edges[-1], _MUONS)
    on_edge = np.arange(50)
    eta[on_edge] = edges[on_edge % len(edges)]
    pt[50:75], pt[75:100] = 0.5 * low, high
    phi = rng.uniform(-np.pi, np.pi, _MUONS).astype(np.float32).astype(np.float64)
    charge = np.where(rng.random(_MUONS) < 0.5, -1.0, 1.0)
    run, lumi = rng.integers(1, 400_000, _MUONS), rng.integers(1, 3000, _MUONS)
    return {
        "pt": pt, "eta": eta, "phi": phi, "charge": charge, "run": run, "lumi": lumi,
        "event": rng.integers(1, 2**62, _MUONS),
    }  # fmt: skip


def _factors(tables: CorrectionTables, parameters: Floats, pt: Floats, eta: Floats, charge: Floats) -> Floats:
    i = np.searchsorted(tables.eta_edges, eta, side="right") - 1
    valid = (i >= 0) & (i < tables.n_eta) & (pt >= tables.pt_range[0]) & (pt < tables.pt_range[1])
    A, e, M = parameters.reshape(-1, 3)[np.where(valid, i, 0)].T
    return np.where(valid, 1.0 / (1.0 + relative_correction(pt, charge, A, e, M)), 1.0)
