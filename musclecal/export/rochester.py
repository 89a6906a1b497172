"""The tables in the form of Rochester corrections, 1/pT' = kappa/pT + q lambda: a table to read and compare.

Its two numbers have no place for the energy loss, which is put into kappa at one pT. Not for: correcting muons, where
any of the other formats is exact, nor for programs that read the files of other authors.
"""

from pathlib import Path

import numpy as np

from musclecal.errors import InputError
from musclecal.export.tables import FORMAT
from musclecal.records import CorrectionTables, Floats
from musclecal.store import written_atomically

__all__ = ["export_rochester", "kappa_and_lambda", "load_kappa_and_lambda"]

_ELSEWHERE = (5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 100.0)
"""GeV, where the comments say how far off the table is."""


def export_rochester(tables: CorrectionTables, path: Path, pt: float = 45.0) -> None:
    """Write a text file with a line of eta_low, eta_high, kappa, lambda for each eta bin, comments above.

    Parameters
    ----------
    pt : GeV, where kappa contains the energy loss exactly. At another pT the relative curvature is wrong by
        e (1/pT - 1/pt); the comments say how much that is.

    Raises
    ------
    InputError : a pT where the correction is not valid.
    """
    low, high = tables.pt_range
    if not low <= pt < high:
        raise InputError(f"pt: {pt:g} GeV is outside of the range {low:g} to {high:g} GeV of the correction")
    rows = np.column_stack([tables.eta_edges[:-1], tables.eta_edges[1:], kappa_and_lambda(tables, pt)])
    lines = [f"# {line}" for line in _comments(tables, pt)] + [
        " ".join(f"{x:.17g}" for x in row) for row in rows
    ]
    with written_atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def kappa_and_lambda(tables: CorrectionTables, pt: float) -> Floats:
    """(n_eta, 2) kappa = 1 + A - e/pt and lambda = M (1/GeV), with the energy loss at ``pt`` in GeV."""
    return np.stack([1.0 + tables.A - tables.e / pt, tables.M], axis=1)


def load_kappa_and_lambda(path: Path) -> tuple[Floats, Floats]:
    """eta edges (n_eta + 1,) and (n_eta, 2) kappa, lambda of a file of `export_rochester`. A, e, M are not in it.

    Raises
    ------
    InputError : not such a file.
    """
    try:
        table = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a table of kappa and lambda ({error})") from None
    if table.shape[1] != 4 or not np.array_equal(table[1:, 0], table[:-1, 1]):
        raise InputError(f"{path}: lines of eta_low, eta_high, kappa, lambda without gaps are wanted")
    return np.append(table[:, 0], table[-1, 1]), table[:, 2:]


def _comments(tables: CorrectionTables, pt: float) -> list[str]:
    """Formula, signs, validity, how far off at other pT, provenance."""
    (low, high), steepest = tables.pt_range, float(np.max(np.abs(tables.e)))
    off = [
        f"{other:g} GeV: {steepest * abs(1.0 / other - 1.0 / pt):.2g}"
        for other in _ELSEWHERE
        if low <= other < high
    ]
    return [
        f"Muon momentum scale in the form of Rochester, made by musclecal ({FORMAT}).",
        "1/pT_corrected = kappa/pT + q lambda, pT in GeV as measured, q = +1 or -1 the charge.",
        f"kappa = 1 + A - e/({pt:g} GeV), dimensionless: kappa > 1 lowers pT.",
        "lambda = M in 1/GeV: lambda > 0 lowers pT of mu+ and raises pT of mu-. Bins are [eta_low, eta_high).",
        f"Not for muons outside of the table, nor outside of {low:g} <= pT < {high:g} GeV.",
        f"The energy loss e is exact at {pt:g} GeV only: elsewhere the relative curvature is wrong by "
        f"e (1/pT - 1/{pt:g} GeV).",
        f"In the worst eta bin this is at {', '.join(off)}.",
        "No uncertainties are given here; they are in the other formats.",
        *(f"{key}: {' '.join(str(value).split())}" for key, value in tables.provenance.items()),
        "eta_low eta_high kappa lambda",
    ]  # fmt: skip
