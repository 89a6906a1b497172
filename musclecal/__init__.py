"""Muon momentum scale calibration for collider experiments.

From muon pairs to a validated correction: ``musclecal run --demo`` shows the whole chain on a sample with known truth.
In an analysis: ``musclecal.load(folder).scale(pt, eta, phi, charge)``.
"""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musclecal.correction import Correction

__all__ = ["load"]


def load(path: str | PathLike[str], period: str | None = None, *, check: bool = True) -> "Correction":
    """The correction in an export folder or one of its files (npz, json, json.gz, root).

    Parameters
    ----------
    period : which one of a folder of ``musclecal merge``. Tables of one period must be of this one, if they say theirs.
    check : refuse a file that is not as the manifest.json beside it says.

    Raises
    ------
    InputError : no such file, or not an export of this package; no period of several, an unknown one, or another than
        that of the tables; a file that was edited after the export.
    """
    from musclecal.correction import Correction
    from musclecal.export import read_tables, response_beside

    return Correction(read_tables(path, period, check=check), response_beside(path, check=check))
