"""The tables as plain arrays, in a numpy archive and in JSON with the same content.

For those who apply A, e, M in their own code, or propagate the full covariance: all variations of a muon are one small
product with ``variations``.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musclecal.errors import InputError
from musclecal.export.tables import content_of, tables_of
from musclecal.records import CorrectionTables
from musclecal.store import written_atomically

__all__ = ["export_json", "export_npz", "json_bytes", "load_arrays", "npz_bytes", "read_npz"]


def export_npz(tables: CorrectionTables, path: Path) -> None:
    """Write a numpy archive. It holds the arrays of `CorrectionTables` with all digits, and their meaning in words.

    ``variations`` (n_eta, 3, n_var) is the matrix D: J . D[eta bin] with J = (1, -1/pT, q pT) are the relative shifts
    of the curvature of a muon by all variations. Mappings are JSON text. The same tables give the same bytes.
    """
    with written_atomically(path) as temporary:
        temporary.write_bytes(npz_bytes(content_of(tables)))


def export_json(tables: CorrectionTables, path: Path) -> None:
    """Write JSON with the same content."""
    with written_atomically(path) as temporary:
        temporary.write_bytes(json_bytes(content_of(tables)))


def load_arrays(path: str | os.PathLike[str]) -> CorrectionTables:
    """Read a file of `export_npz` or `export_json`, or of the format that was before them.

    Raises
    ------
    InputError : not such a file, another parameter order, a covariance that is not positive semi-definite,
        variations that are not its own, or values as in `musclecal.export.tables.checked_tables`. The message names
        the file.
    """
    path = Path(path)
    try:
        content = _read_json(path) if path.suffix == ".json" else read_npz(path)
        return tables_of(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: not a file of musclecal's array export, {error} is missing") from error
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable file of musclecal's array export ({error})") from error


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


def read_npz(path: Path) -> dict[str, Any]:
    """What `npz_bytes` wrote, with the mappings ``provenance`` and ``units``. Raises what numpy and JSON raise."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        content = {name: archive[name] for name in archive.files}
    return content | {name: json.loads(str(content[name])) for name in ("provenance", "units")}


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
