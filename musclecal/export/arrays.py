"""The calibration as plain arrays, in a numpy archive and in JSON with the same content.

For those who apply A, e, M in their own code, or propagate the full covariance. `load_arrays` gives back what
`musclecal.apply` takes. The words that explain signs, units and variations are kept here for all exports.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musclecal.covariance import checked_covariance, eigenvariations, scale_parameter_names
from musclecal.errors import InputError
from musclecal.records import Floats, ScaleCalibration, ScaleParameters, ScaleWithCovariance
from musclecal.store import written_atomically

__all__ = [
    "SIGNS",
    "UNITS",
    "VARIATIONS",
    "ScaleArrays",
    "checked_arrays",
    "export_arrays",
    "json_bytes",
    "load_arrays",
    "npz_bytes",
]

FORMAT = "musclecal arrays 1"
SIGNS = (
    "k_corr = (1 + A - e k) k + q M, applied to the measured curvature k = 1/pT (1/GeV) of a muon of charge "
    "q = +1 or -1. A > 0 lowers pT; e > 0 raises pT by about e; M > 0 lowers pT of mu+ and raises pT of mu-. "
    "Angles are not corrected. Bins are [low, high) in eta; muons outside the eta range are not corrected."
)
UNITS = {"A": "1", "e": "GeV", "M": "1/GeV", "eta_edges": "1"}
VARIATIONS = (
    "Variation i shifts all parameters together by +v_i or -v_i; the v_i are independent, and the sum over i "
    "of v_i v_i^T is the statistical covariance. UNSCALED: not multiplied by the closure factor s."
)


@dataclass(frozen=True)
class ScaleArrays(ScaleWithCovariance):
    """A correction with its covariance (statistical, not scaled by the closure factor), as exported.

    Attributes
    ----------
    provenance : where the numbers come from, as the exporter was told.
    """

    provenance: Mapping[str, str]

    @property
    def variations(self) -> Floats:
        """(n_eta, 3, n_var) shifts of A, e, M; the last axis counts the eigenvariations, n_var = 3 n_eta."""
        rows = eigenvariations(self.covariance, scale_parameter_names(self.n_eta))
        return np.ascontiguousarray(rows.T.reshape(self.n_eta, 3, -1))


def checked_arrays(scale: ScaleParameters, covariance: Floats, provenance: Mapping[str, str]) -> ScaleArrays:
    """A correction that may be exported: shapes, finiteness, edges and covariance are checked.

    Raises
    ------
    InputError : what is wrong, with the parameter and eta bin.
    """
    edges = np.asarray(scale.eta_edges, dtype=np.float64)
    if edges.ndim != 1 or not np.all(np.isfinite(edges)) or np.any(np.diff(edges) <= 0.0) or edges.size < 2:
        raise InputError(f"eta_edges: must be finite and increasing, got {edges.tolist()}")
    n_eta = edges.size - 1
    values = {name: _checked_parameter(name, getattr(scale, name), n_eta) for name in ("A", "e", "M")}
    if np.shape(covariance) != (3 * n_eta, 3 * n_eta):
        raise InputError(
            f"covariance: {n_eta} eta bins need {3 * n_eta} parameters, got {np.shape(covariance)}"
        )
    matrix = checked_covariance(covariance, scale_parameter_names(n_eta))
    return ScaleArrays(edges, **values, covariance=matrix, provenance=dict(provenance))


def export_arrays(
    calibration: ScaleCalibration, folder: str | os.PathLike[str], provenance: Mapping[str, str]
) -> None:
    """Write ``calibration.npz`` and ``calibration.json`` into ``folder``, made if it is not there.

    Both hold ``eta_edges``, ``A``, ``e``, ``M``, ``covariance`` and ``variations`` (n_eta, 3, n_var) with all
    digits, and in words ``format``, ``parameter_order``, ``units``, ``signs``, ``about_variations`` and
    ``provenance`` (the two mappings as JSON text in the archive). The same input gives the same bytes.

    Raises
    ------
    InputError : the calibration cannot be used, see `checked_arrays`.
    """
    content = _content(checked_arrays(calibration, calibration.covariance, provenance))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, encoded in (("calibration.npz", npz_bytes(content)), ("calibration.json", json_bytes(content))):
        with written_atomically(folder / name) as temporary:
            temporary.write_bytes(encoded)


def load_arrays(path: str | os.PathLike[str]) -> ScaleArrays:
    """Read a file of `export_arrays`, ``.npz`` or ``.json``.

    Raises
    ------
    InputError : not such a file, another parameter order, a covariance that is not positive semi-definite,
        variations that are not its own, or values as in `checked_arrays`. The message names the file.
    """
    path = Path(path)
    try:
        content = _read_json(path) if path.suffix == ".json" else _read_npz(path)
        return _from_content(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: not a file of musclecal's array export, {error} is missing") from error
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable file of musclecal's array export ({error})") from error


def _checked_parameter(name: str, values: Floats, n_eta: int) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (n_eta,):
        raise InputError(f"{name}: {n_eta} eta bins need as many values, got shape {values.shape}")
    if not np.all(np.isfinite(values)):
        i = int(np.argmin(np.isfinite(values)))
        raise InputError(f"{name}: {values[i]} in eta bin {i}")
    return values


def _content(arrays: ScaleArrays) -> dict[str, Any]:
    """All that is exported, in the order in which a person reads it."""
    return {
        "format": FORMAT,
        "signs": SIGNS,
        "units": UNITS,
        "about_variations": VARIATIONS,
        "provenance": dict(sorted(arrays.provenance.items())),
        "parameter_order": list(scale_parameter_names(arrays.n_eta)),
        "eta_edges": arrays.eta_edges,
        "A": arrays.A,
        "e": arrays.e,
        "M": arrays.M,
        "covariance": arrays.covariance,
        "variations": arrays.variations,
    }


def _from_content(content: Mapping[str, Any]) -> ScaleArrays:
    if str(content["format"]) != FORMAT:
        raise InputError(f"format {str(content['format'])!r}, this version reads {FORMAT!r}")
    A, e, M = (np.asarray(content[name], dtype=np.float64) for name in ("A", "e", "M"))
    expected, found = scale_parameter_names(len(A)), tuple(str(name) for name in content["parameter_order"])
    if found != expected:
        raise InputError(f"parameter order {_some(found)}, expected {_some(expected)}")
    scale = ScaleParameters(np.asarray(content["eta_edges"], dtype=np.float64), A, e, M)
    covariance = np.asarray(content["covariance"], dtype=np.float64)
    arrays = checked_arrays(scale, covariance, content["provenance"])
    _refuse_other_variations(np.asarray(content["variations"], dtype=np.float64), arrays)
    return arrays


def _refuse_other_variations(variations: Floats, arrays: ScaleArrays) -> None:
    """The variations must sum to the covariance: a file of which only one was edited is refused."""
    rows = variations.reshape(len(arrays.covariance), -1)
    sigma = np.sqrt(np.diagonal(arrays.covariance))
    difference = np.abs(rows @ rows.T - arrays.covariance)
    if not np.all(difference <= 1e-9 * np.outer(sigma, sigma)):
        raise InputError("the variations do not sum to the covariance")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def npz_bytes(content: Mapping[str, Any]) -> bytes:
    """A numpy archive, uncompressed and without dates, so that equal content is equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, value in content.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            array = io.BytesIO()
            np.lib.format.write_array(array, np.asarray(_json_text(value)), allow_pickle=False)
            archive.writestr(member, array.getvalue())
    return buffer.getvalue()


def _json_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def _read_npz(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        content = {name: archive[name] for name in archive.files}
    return content | {"provenance": json.loads(str(content["provenance"]))}


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON with a line for each key and each row of an array: equal content is equal bytes."""
    lines = [f"  {json.dumps(name)}: {_rows(value, '  ')}" for name, value in content.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _rows(value: Any, indent: str) -> str:
    """JSON with one line for each innermost list."""
    if isinstance(value, np.ndarray) and value.ndim > 1:
        rows = (f"{indent}  {_rows(row, indent + '  ')}" for row in value)
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    return json.dumps(plain, allow_nan=False, ensure_ascii=False)
