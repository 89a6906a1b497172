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
_NO_VALUES = (np.nan, np.inf, -np.inf, 0.0, -30.0)
"""Of pT and eta: an eta of 0 is one, and -30 is outside."""
_NO_CHARGES = (0.0, 2.0, -2.0, 0.5, np.nan)
_SALTS = (0, 1, 20_260, -1)


def export_reference(tables: CorrectionTables, path: Path) -> None:
    """Write 1,000 muons (pt, eta, phi, charge, run, lumi, event, salt) and what they become.

    ``scale`` is the nominal factor on pT, ``<variation>_up`` and ``<variation>_down`` that of the first and the last
    variation, ``draw`` the unit Gaussian of the smearing with the muon's salt, ``smear`` its factor where there is a
    smearing. A fifth of the muons are on edges of eta, outside the ranges, nan, infinite, or have a charge that is
    none: where a muon is not valid its factors are 1, but for the smearing of a wrong charge.
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


def reference_of(tables: CorrectionTables, *, older: bool = False) -> dict[str, Any]:
    """The columns, computed with numpy alone, apart from the draws.

    ``older`` : as they were before there was a salt, with finite muons of charge +1 and -1 alone.
    """
    muons = _muons(tables) if older else _with_others(_muons(tables))
    pt, eta, charge = muons["pt"], muons["eta"], muons["charge"]
    result = muons | {"scale": _factors(tables, tables.parameters, pt, eta, charge)}
    for i in sorted({0, tables.n_variations - 1}):
        for side, sign in (("up", 1.0), ("down", -1.0)):
            shifted = tables.parameters + sign * tables.variations[:, :, i].ravel()
            name = f"{tables.variation_names[i]}_{side}"
            result[name] = _factors(tables, shifted, pt, eta, charge)
    return result | _smeared(tables, muons)


def _smeared(tables: CorrectionTables, muons: dict[str, Any]) -> dict[str, Any]:
    """The columns ``draw`` and ``smear``."""
    draw, factor = np.empty(_MUONS), np.ones(_MUONS)
    salts = muons.get("salt", np.zeros(_MUONS, dtype=np.int64))
    for salt in np.unique(salts):
        of = salts == salt
        run, lumi, event, phi = (muons[name][of] for name in ("run", "lumi", "event", "phi"))
        draw[of] = normal_draws(run, lumi, event, phi, int(salt))
        if tables.smearing is not None:
            factor[of] = smeared_factors(
                muons["pt"][of], muons["eta"][of], phi, run, lumi, event, int(salt), tables.smearing, tables.pt_range
            )  # fmt: skip
    return {"draw": draw} | ({} if tables.smearing is None else {"smear": factor})


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


def _with_others(muons: dict[str, Any]) -> dict[str, Any]:
    """The muons, some with values that are none, and some with other salts."""
    pt, eta, charge = (muons[name].copy() for name in ("pt", "eta", "charge"))
    n = len(_NO_VALUES)
    for i, value in enumerate(_NO_VALUES):
        pt[100 + i : 130 : n], eta[130 + i : 160 : n] = value, value
    for i, value in enumerate(_NO_CHARGES):
        charge[160 + i : 200 : len(_NO_CHARGES)] = value
    salt = np.zeros(_MUONS, dtype=np.int64)
    for i, value in enumerate(_SALTS):
        salt[800 + i :: len(_SALTS)] = value
    return muons | {"pt": pt, "eta": eta, "charge": charge, "salt": salt}


def _factors(tables: CorrectionTables, parameters: Floats, pt: Floats, eta: Floats, charge: Floats) -> Floats:
    """1 where a muon is not valid; nan has no bin, and is in no range."""
    i = np.searchsorted(tables.eta_edges, eta, side="right") - 1
    valid = (i >= 0) & (i < tables.n_eta) & (pt >= tables.pt_range[0]) & (pt < tables.pt_range[1])
    valid &= np.abs(charge) == 1.0
    out = np.ones(len(pt))
    A, e, M = parameters.reshape(-1, 3)[i[valid]].T
    out[valid] = 1.0 / (1.0 + relative_correction(pt[valid], charge[valid], A, e, M))
    return out
