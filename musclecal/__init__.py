"""Muon momentum scale calibration for collider experiments.

From muon pairs to a validated correction: ``musclecal run --demo`` shows the whole chain on a sample with known truth.
In an analysis: ``musclecal.load(folder).scale(pt, eta, phi, charge)``.
"""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musclecal.correction import Correction

__all__ = ["load"]


def load(path: str | PathLike[str]) -> "Correction":
    """The correction in an export folder or one of its files (npz, json, json.gz, root).

    Raises
    ------
    InputError : no such file, or not an export of this package.
    """
    from musclecal.correction import Correction
    from musclecal.export import read_tables, response_beside

    return Correction(read_tables(path), response_beside(path))
