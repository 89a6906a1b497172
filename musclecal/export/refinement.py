"""A correction in phi or in run ranges as plain arrays, in JSON and in a numpy archive with the same content."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musclecal.covariance import checked_covariance
from musclecal.errors import InputError
from musclecal.export.arrays import json_bytes, npz_bytes
from musclecal.records import PhiRefinement, RunRefinement
from musclecal.store import written_atomically

__all__ = ["export_refinement", "load_refinement"]

FORMAT = "musclecal refinement 1"
_SIGNS = (
    "k_corr = (1 + A) k + q M, applied after the correction named in provenance, to the curvature k = 1/pT (1/GeV) of "
    "a muon of charge q = +1 or -1. A > 0 lowers pT; M > 0 lowers pT of mu+ and raises pT of mu-. Angles are not "
    "corrected. Bins are [low, high) in eta; muons outside are not corrected. "
)
_WAVES = "A = sum over terms t of A[eta bin][t] times terms[t] at the phi (rad) of the muon; likewise M."
_SECTORS = "A[eta bin][s], s = floor((phi + pi)/(2 pi) phi_sectors) for -pi <= phi < pi; likewise M."
_RUNS = "A[r][eta bin], r the range run_edges[r] <= run < run_edges[r + 1]; likewise M. Other runs are not corrected."
_NOT_CLOSURE = (
    "The resonance that this was derived from is no independent closure of muons corrected with it."
)


def export_refinement(
    refinement: PhiRefinement | RunRefinement, folder: Path, name: str, provenance: Mapping[str, str]
) -> None:
    """Write ``name``.json and ``name``.npz into ``folder``. The same input gives the same bytes.

    Raises
    ------
    InputError : a covariance that is none.
    """
    content = _content(refinement, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, encoded in ((".json", json_bytes(content)), (".npz", npz_bytes(content))):
        with written_atomically(folder / f"{name}{suffix}") as temporary:
            temporary.write_bytes(encoded)


def _content(refinement: PhiRefinement | RunRefinement, provenance: Mapping[str, str]) -> dict[str, Any]:
    r = refinement
    axis: dict[str, Any]
    if isinstance(r, RunRefinement):
        kind, words, axis = "runs", _RUNS, {"run_edges": list(r.run_edges)}
        order = "A, M of each eta bin of each range"
    else:
        kind, words = ("harmonics", _WAVES) if r.harmonics else ("sectors", _SECTORS)
        axis = {"harmonics": list(r.harmonics), "phi_sectors": r.phi_sectors}
        order = "A, M of each term of each eta bin"
    return {
        "format": FORMAT,
        "kind": kind,
        "signs": _SIGNS + words,
        "note": _NOT_CLOSURE,
        "units": {"A": "1", "M": "1/GeV", "eta_edges": "1"},
        "provenance": dict(sorted(provenance.items())),
        "resonance": r.resonance,
        "terms": list(r.terms),
        **axis,
        "eta_edges": r.eta_edges,
        "A": r.A,
        "M": r.M,
        "parameter_order": order,
        "covariance": checked_covariance(r.covariance),
        "chi2": r.chi2,
        "ndf": r.ndf,
        "p_value": r.p_value,
        "passes": r.passes,
        "last_change": r.last_change,
    }


def load_refinement(path: Path) -> PhiRefinement | RunRefinement:
    """Read a file of `export_refinement`, .json or .npz.

    Raises
    ------
    InputError : not such a file, or shapes that do not fit.
    """
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            with np.load(path, allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
        return _from_content(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except KeyError as error:
        raise InputError(f"{path}: not a refinement of musclecal, {error} is missing") from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable refinement of musclecal ({error})") from None


def _from_content(content: Mapping[str, Any]) -> PhiRefinement | RunRefinement:
    if str(content["format"]) != FORMAT:
        raise InputError(f"format {str(content['format'])!r}, this version reads {FORMAT!r}")
    edges, a, m, covariance = (
        np.asarray(content[key], dtype=np.float64) for key in ("eta_edges", "A", "M", "covariance")
    )
    in_runs = str(content["kind"]) == "runs"
    n_term, n_eta = len(content["terms"]), len(edges) - 1
    wanted = (n_term, n_eta) if in_runs else (n_eta, n_term)
    if a.shape != wanted or m.shape != wanted or covariance.shape != (2 * n_term * n_eta,) * 2:
        raise InputError(
            f"A {a.shape}, M {m.shape}, covariance {covariance.shape}: {wanted} parameters wanted"
        )
    fit = (float(content["chi2"]), int(content["ndf"]), float(content["p_value"]))
    passes = (int(content["passes"]), float(content["last_change"]))
    resonance = str(content["resonance"])
    if in_runs:
        runs = tuple(int(run) for run in content["run_edges"])
        return RunRefinement(resonance, edges, runs, a, m, checked_covariance(covariance), *fit, *passes)
    harmonics = tuple(int(h) for h in content["harmonics"])
    sectors = int(content["phi_sectors"])
    return PhiRefinement(
        resonance, edges, harmonics, sectors, a, m, checked_covariance(covariance), *fit, *passes
    )
