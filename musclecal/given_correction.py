"""A correction from a file, to be applied to muons in memory: an export of this package, or somebody else's.

Understood are a folder of `musclecal export`, its files, a JSON file with eta_edges, A, e, M, and any
correctionlib file whose (first) correction takes pt, eta and charge, in any order, with further string inputs
set to "nom" or "nominal".
"""

import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from musclecal.apply import correct
from musclecal.errors import InputError
from musclecal.export.folder import holds_tables, read_tables, table_file
from musclecal.records import DimuonEvents, Floats, Muons, ScaleParameters, ScaleWithCovariance
from musclecal.samples import Correction, read_scale

__all__ = ["GivenCorrection", "read_correction"]

_NOMINAL = ("nom", "nominal")


@dataclass(frozen=True)
class GivenCorrection:
    """A correction of pairs, ``files`` it came from, and A, e, M with covariance where it is an export of ours."""

    correction: Correction
    files: tuple[str, ...]
    scale: ScaleWithCovariance | None = None


def read_correction(path: Path) -> GivenCorrection:
    """The correction in a file or an export folder.

    Raises
    ------
    InputError : not a correction that is understood; the message names the file and what is missing.
    """
    file = _only_file(path) if path.is_dir() and not holds_tables(path) else table_file(path)
    if holds_tables(file):
        tables = read_tables(file)
        return GivenCorrection(partial(correct, scale=tables), (str(file),), tables)
    if _is_correctionlib(file):
        return GivenCorrection(_from_correctionlib(file), (str(file),))
    scale: ScaleParameters = read_scale(file)
    return GivenCorrection(partial(correct, scale=scale), (str(file),))


def _only_file(folder: Path) -> Path:
    """The only file of a folder that is no export."""
    files = sorted(p for p in folder.iterdir() if p.name.endswith((".json", ".json.gz")))
    if len(files) != 1:
        raise InputError(f"{folder}: not an export folder: give the correction file itself")
    return files[0]


def _is_correctionlib(file: Path) -> bool:
    return file.name.endswith(".gz") or '"schema_version"' in _text(file)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _from_correctionlib(file: Path) -> Correction:
    import correctionlib

    try:
        found = correctionlib.CorrectionSet.from_file(str(file))
    except (RuntimeError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{file}: not a correctionlib file: {error}") from None
    for correction in found.values():
        names = [variable.name for variable in correction.inputs]
        if {"pt", "eta", "charge"} <= set(names):
            nominal = _nominal_of(file, correction)
            return partial(_corrected_pairs, correction=correction, nominal=nominal, file=file)
    raise InputError(f"{file}: holds no correction with the inputs pt, eta and charge")


def _nominal_of(file: Path, correction: Any) -> dict[str, str]:
    """The value of each string input that means no variation."""
    nominal: dict[str, str] = {}
    sample = {"pt": 30.0, "eta": 0.5, "charge": 1.0, "phi": 0.1}
    strings = [v.name for v in correction.inputs if v.type == "string"]
    others = [v.name for v in correction.inputs if v.name not in sample and v.type != "string"]
    if others:
        raise InputError(
            f"{file}: correction {correction.name} needs the input {others[0]!r}, which is not known here"
        )
    for word in _NOMINAL:
        nominal = dict.fromkeys(strings, word)
        try:
            correction.evaluate(*_arguments(correction, sample | nominal))
        except (RuntimeError, IndexError, ValueError):
            continue
        return nominal
    raise InputError(
        f"{file}: correction {correction.name} knows neither {_NOMINAL[0]!r} nor {_NOMINAL[1]!r}"
    )


def _arguments(correction: Any, values: dict[str, Any]) -> list[Any]:
    """The values in the order of the correction's inputs; charges as integers where it wants them so."""
    arguments = []
    for variable in correction.inputs:
        value = values[variable.name]
        arguments.append(np.asarray(value).astype(np.int64)[()] if variable.type == "int" else value)
    return arguments


def _corrected_pairs(
    events: DimuonEvents, correction: Any, nominal: dict[str, str], file: Path
) -> DimuonEvents:
    def corrected(muons: Muons, charge: float) -> Floats:
        columns = {"pt": muons.pt, "eta": muons.eta, "phi": muons.phi, "charge": np.full(len(muons), charge)}
        try:
            factor = correction.evaluate(*_arguments(correction, columns | nominal))
        except (RuntimeError, IndexError, ValueError) as error:
            raise InputError(
                f"{file}: correction {correction.name} refuses some of the muons: {error}"
            ) from None
        return np.asarray(muons.pt * factor, dtype=np.float64)

    return events.with_momenta(corrected(events.plus, 1.0), corrected(events.minus, -1.0))
