r"""The response of simulated muons beside the tables, for weights in place of shifted momenta: `response.npz`.

A numpy archive that says all that `musclecal.weights` needs; docs/weights.md evaluates it with numpy alone.

Not for: how it is fitted (`musclecal.fits.response`).
"""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from musclecal.errors import InputError
from musclecal.export.arrays import npz_bytes, read_npz
from musclecal.export.manifest import refuse_edited
from musclecal.records import Floats, Response
from musclecal.store import written_atomically

__all__ = [
    "RESPONSE_FILE", "check_response_file", "checked_response", "export_response", "load_response", "response_beside",
]  # fmt: skip

RESPONSE_FILE = "response.npz"
_FORMAT = "musclecal response 1"
_ABOUT = (
    "Density of rho = k/k_true of simulated muons, k = 1/pT measured, k_true = 1/gen_pt after radiation. In the bins "
    "[low, high) of eta and of gen_pt the density of t = (rho - 1 - location)/width is exp(log_density). location "
    "(charge: 0 is mu+, 1 is mu-; eta bin; pT edge) and width (eta bin, pT edge) are linear in ln gen_pt between the "
    "pt_edges; log_density and slope = d log_density/dt (eta bin, node) are linear in t between the nodes, which are "
    "equally spaced; beyond the nodes rho and slope are those of the last node. With g' = slope/width: "
    "d ln w/d(A, e, M) = (-(1 + rho g'), 2 k + k rho g', -q g'/k_true), k = rho k_true; the weight of a shift is 1 + "
    "its product with the shift of (A, e, M). 0 outside of the bins, without generated muon, and for what is not "
    "finite. n_muons (charge, eta bin, pT bin) is what it was fitted to, n_beyond were too far off to be counted."
)
_UNITS = {
    "eta_edges": "1", "pt_edges": "GeV", "location": "1", "width": "1", "nodes": "1", "log_density": "1", "slope": "1",
    "n_muons": "muons", "n_beyond": "muons",
}  # fmt: skip
_NORMALISED, _SLOPE = 1e-6, 1e-2
"""How far the integral of a density may be from 1, and a slope from that of the density between two nodes."""


def export_response(response: Response, path: Path, provenance: Mapping[str, str]) -> None:
    """Write the archive. The same input gives the same bytes. Raises `InputError` as `checked_response`."""
    encoded = npz_bytes(_content(checked_response(response), provenance))
    with written_atomically(path) as temporary:
        temporary.write_bytes(encoded)


def _content(response: Response, provenance: Mapping[str, str]) -> dict[str, Any]:
    values = {field.name: getattr(response, field.name) for field in fields(Response)}
    return {
        "format": _FORMAT,
        "about": _ABOUT,
        "units": _UNITS,
        "provenance": dict(sorted(provenance.items())),
    } | values


def load_response(path: Path) -> Response:
    """Read a file of `export_response`.

    Raises
    ------
    InputError : not such a file, or a response as refused by `checked_response`; the message names the file.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Response, dict[str, str]]:
    """The response and its provenance."""
    try:
        content = read_npz(path)
        if str(content["format"]) != _FORMAT:
            raise InputError(f"format {str(content['format'])!r}, this version reads {_FORMAT!r}")
        if content["units"] != _UNITS:
            raise InputError(f"units {content['units']}, expected {_UNITS}")
        arrays = {name: content[name] for name in _UNITS if name != "n_beyond"}
        return checked_response(Response(**arrays, n_beyond=int(content["n_beyond"]))), content["provenance"]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except KeyError as error:
        raise InputError(f"{path}: not a response of musclecal, {error} is missing") from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable response of musclecal ({error})") from None


def response_beside(path: str | os.PathLike[str], *, check: bool = True) -> Response | None:
    """The response in an export folder, or beside a file of one; None where there is none.

    Raises
    ------
    InputError : it cannot be read; with ``check``, it is not what the manifest means.
    """
    place = Path(path)
    file = (place if place.is_dir() else place.parent) / RESPONSE_FILE
    if not file.is_file():
        return None
    if check:
        refuse_edited(file, must_be_listed=True)
    return load_response(file)


def check_response_file(path: Path, provenance: Mapping[str, str]) -> str:
    """What was checked: the response itself, that it belongs to the tables, and that it is the same written again.

    Raises
    ------
    InputError : what is wrong, with the file.
    """
    response, found = _read(path)
    if found != dict(provenance):
        raise InputError(f"{path}: another provenance than the tables")
    if npz_bytes(_content(response, found)) != path.read_bytes():
        raise InputError(f"{path}: is another file when it is written again")
    n_eta, n_pt = response.n_muons.shape[1:]
    return (
        f"{path.name}: {n_eta} eta x {n_pt} pT bins, finite numbers, integrals of 1, the same written again"
    )


def checked_response(response: Response) -> Response:
    """The response, if it is one.

    Raises
    ------
    InputError : shapes that do not fit, numbers that are not finite, edges or nodes in disorder, a width that is not
        positive, a density whose integral is not 1, a slope that is not that of the density.
    """
    n_eta, n_pt, n_node = (
        len(np.atleast_1d(getattr(response, name))) for name in ("eta_edges", "pt_edges", "nodes")
    )
    wanted = {
        "eta_edges": (n_eta,), "pt_edges": (n_pt,), "location": (2, n_eta - 1, n_pt), "width": (n_eta - 1, n_pt),
        "nodes": (n_node,), "log_density": (n_eta - 1, n_node), "slope": (n_eta - 1, n_node),
        "n_muons": (2, n_eta - 1, n_pt - 1),
    }  # fmt: skip
    for name, shape in wanted.items():
        array = np.asarray(getattr(response, name))
        if array.shape != shape or array.dtype.kind not in ("i" if name == "n_muons" else "f"):
            raise InputError(f"{name}: shape {shape} wanted, got {array.dtype} of {array.shape}")
        if not np.all(np.isfinite(array)):
            raise InputError(f"{name}: some are not finite")
    for name in ("eta_edges", "pt_edges", "nodes"):
        if len(getattr(response, name)) < 2 or np.any(np.diff(getattr(response, name)) <= 0.0):
            raise InputError(f"{name}: must increase")
    if response.pt_edges[0] <= 0.0 or np.any(response.width <= 0.0):
        raise InputError("pt_edges and width must be positive")
    steps = np.diff(response.nodes)
    if np.max(np.abs(steps - steps[0])) > 1e-9 * steps[0]:
        raise InputError("nodes: must be equally spaced")
    _refuse_other_shape(response, steps[0])
    return response


def _refuse_other_shape(response: Response, step: float) -> None:
    """By the trapezoidal rule, in each eta bin."""
    integral = step * _trapezoids(np.exp(response.log_density)).sum(axis=1)
    if np.any(np.abs(integral - 1.0) > _NORMALISED):
        i = int(np.argmax(np.abs(integral - 1.0)))
        raise InputError(f"log_density: the integral of the density in eta bin {i} is {integral[i]:.6g}")
    risen = np.diff(response.log_density, axis=1) / step
    wrong = np.abs(_trapezoids(response.slope) - risen) > _SLOPE
    if np.any(wrong):
        i = int(np.argmax(np.any(wrong, axis=1)))
        raise InputError(f"slope: is not that of log_density in eta bin {i}")


def _trapezoids(values: Floats) -> Floats:
    return np.asarray(0.5 * (values[:, 1:] + values[:, :-1]))
