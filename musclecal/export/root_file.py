"""The tables as histograms of a ROOT file, in the layout that WRemnants reads (docs/wremnants.md).

The covariance is twice in the file: times s^2 as `covariance_matrix`, in agreement with the errors of `A`, `e`, `M`,
and as it was measured, so that nothing is lost in rounding on the way back.
"""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from musclecal.errors import InputError
from musclecal.export.tables import content_of, tables_of
from musclecal.records import CorrectionTables, Floats
from musclecal.store import written_atomically

__all__ = ["export_root", "load_root"]

_UNITS = {"A": "A", "e": "e (GeV)", "M": "M (1/GeV)"}
_SMEARING = ("a", "b", "c", "d", "clipped")
_CONTENT = "content"
_NEW_YEAR_1995 = 1 << 22 | 1 << 17
"""First date that ROOT can write: 1995-01-01 00:00."""


def export_root(tables: CorrectionTables, path: Path) -> None:
    """Write histograms of double precision, usually to ``muon_scale.root``.

    TH1 ``A``, ``e``, ``M`` against eta, their errors statistical times s. TH2 ``covariance_matrix`` in the order A0,
    e0, M0, A1, ..., statistical times s^2; ``statistical_covariance``, without s; ``eigenvectors``, parameter against
    number of the variation, ready to use. TH1 ``A<name>`` and ``M<name>`` (1/GeV) for each closure, as ``AZ`` and
    ``MZ``. TH1 ``a``, ``b``, ``c``, ``d``, ``clipped`` of the smearing. TObjString ``content``: JSON with signs,
    units, names of the variations, s, pt_range, provenance.

    The same tables give the same bytes with one version of uproot: it is given a fixed UUID and no name of a file, and
    the dates that it writes are replaced by the first of January 1995.
    """
    encoded = _undated(_written(_objects(tables)))
    with written_atomically(path) as temporary:
        temporary.write_bytes(encoded)


def load_root(path: Path) -> CorrectionTables:
    """The tables in a file of `export_root`, to the last bit.

    Raises
    ------
    InputError : not such a file, or one whose covariances do not belong together.
    """
    import uproot

    try:
        with uproot.open(path) as file:
            return tables_of(_content_in(file))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except KeyError as error:
        raise InputError(f"{path}: not a ROOT file of musclecal, {error} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path}: not a readable ROOT file of musclecal ({error})") from None


def _objects(tables: CorrectionTables) -> Iterator[tuple[str, Any]]:
    t = tables
    sigma = t.s * np.sqrt(np.diagonal(t.covariance)).reshape(-1, 3)
    for column, letter in enumerate("AeM"):
        title = f"{_UNITS[letter]}, error: statistical times s = {t.s:.4g}"
        yield letter, _curve(getattr(t, letter), sigma[:, column], t.eta_edges, title)
    order = "A0, e0, M0, A1, ..."
    yield (
        "covariance_matrix",
        _matrix(t.s**2 * t.covariance, f"statistical, times s^2 = {t.s**2:.4g}; {order}"),
    )
    yield "statistical_covariance", _matrix(t.covariance, f"statistical, without s; {order}")
    yield (
        "eigenvectors",
        _matrix(t.variations.reshape(3 * t.n_eta, -1), f"variations by one sigma, stat contain s; {order}"),
    )
    for name, table in t.residuals.items():
        for letter, values, errors in (("A", *table.T[:2]), ("M", *table.T[2:])):
            title = f"{_UNITS[letter]} that the {name} sees after the correction"
            yield letter + name, _curve(values, errors, _edges_for(t, len(table)), title)
    if t.smearing is not None:
        for name in _SMEARING:
            values = getattr(t.smearing, name)
            yield name, _curve(values, np.zeros_like(values), t.smearing.eta_edges, f"{name} of the smearing")
    yield _CONTENT, json.dumps(_words(t))


def _edges_for(tables: CorrectionTables, n_bins: int) -> Floats:
    """Of the calibration; bin numbers for a closure with other bins, of which the tables do not keep the edges."""
    return tables.eta_edges if n_bins == tables.n_eta else np.arange(n_bins + 1.0)


def _words(tables: CorrectionTables) -> dict[str, Any]:
    """Everything of the content that is not a histogram."""
    content = content_of(tables)
    words = {name: value for name, value in content.items() if not isinstance(value, np.ndarray)}
    smearing = {} if tables.smearing is None else {"smearing_eta_edges": tables.smearing.eta_edges.tolist()}
    short = {"pt_range": list(tables.pt_range), "eta_edges": tables.eta_edges.tolist()}
    return words | smearing | short | {"closures": list(tables.residuals)}


def _content_in(file: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(str(file[_CONTENT]))
    content |= {letter: file[letter].values() for letter in "AeM"}
    content["covariance"] = file["statistical_covariance"].values()
    scaled, s = file["covariance_matrix"].values(), float(content["s"])
    if not np.allclose(scaled, s**2 * content["covariance"], rtol=1e-12, atol=0.0):
        raise InputError("covariance_matrix is not s^2 times statistical_covariance")
    content["variations"] = file["eigenvectors"].values().reshape(len(content["A"]), 3, -1)
    for name in content["closures"]:
        both = [file[letter + name] for letter in "AM"]
        content[f"residuals_{name}"] = np.stack([x for h in both for x in (h.values(), h.errors())], axis=1)
    if "smearing_eta_edges" in content:
        content |= {f"smearing_{name}": file[name].values() for name in _SMEARING}
    return content


# Histograms and bytes -----------------------------------------------------------------------------------------------


def _axis(name: str, title: str, edges: Floats) -> Any:
    from uproot.writing.identify import to_TAxis

    return to_TAxis(
        name, title, len(edges) - 1, edges[0], edges[-1], fXbins=np.asarray(edges, dtype=np.float64)
    )


def _curve(values: Floats, errors: Floats, edges: Floats, title: str) -> Any:
    """TH1D with empty bins below and above."""
    from uproot.writing.identify import to_TH1x

    padded, squared = np.pad(values, 1), np.pad(errors**2, 1)
    no_moments = (0.0,) * 4
    return to_TH1x(
        None, title, padded, float(len(values)), *no_moments, squared, _axis("xaxis", "eta", edges)
    )


def _matrix(values: Floats, title: str) -> Any:
    """TH2D, first index along x, bins numbered from zero."""
    from uproot.writing.identify import to_TH2x

    across, along = (
        _axis(name, "", np.arange(n + 1.0)) for name, n in zip(("xaxis", "yaxis"), values.shape, strict=True)
    )
    no_moments = (0.0,) * 7
    return to_TH2x(
        None, title, np.pad(values, 1).T.ravel(), float(values.size), *no_moments, np.zeros(0), across, along
    )


class _InMemory(io.BytesIO):
    """A file whose bytes are still there after it has been closed."""

    def close(self) -> None:
        self.seek(0)


def _written(objects: Iterator[tuple[str, Any]]) -> bytes:
    """A ROOT file with so much room at its front that no list is moved later, which would leave old dates behind."""
    import uproot

    file = _InMemory()
    room = {"initial_directory_bytes": 1 << 14, "initial_streamers_bytes": 1 << 15}
    with uproot.recreate(file, uuid_function=lambda: UUID(int=0), compression=None, **room) as root:
        for name, value in objects:
            root[name] = value
    return file.getvalue()


def _undated(file: bytes) -> bytes:
    """A ROOT file with one date in all keys and in the directory.

    Positions are those of ROOT's file format: records follow each other from the first one, each begins with a TKey
    whose date is at byte 10 and whose own length at byte 14; the directory is in the first record, its list of keys
    repeats their headers.
    """
    out = bytearray(file)
    begin, end = struct.unpack_from(">ii", out, 8)
    (n_name,) = struct.unpack_from(">i", out, 28)
    directory = begin + n_name
    (key_list,) = struct.unpack_from(">i", out, directory + 26)
    dates = [directory + 2, directory + 6]
    record, length = begin, 1
    while record < end and length > 0:
        dates.append(record + 10)
        (length,) = struct.unpack_from(">i", out, record)
        record += length
    key = key_list + struct.unpack_from(">h", out, key_list + 14)[0]
    (n_keys,) = struct.unpack_from(">i", out, key)
    key += 4
    for _ in range(n_keys):
        dates.append(key + 10)
        key += struct.unpack_from(">h", out, key + 14)[0]
    for position in dates:
        struct.pack_into(">I", out, position, _NEW_YEAR_1995)
    return bytes(out)
