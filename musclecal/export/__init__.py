"""Tables that analysts apply without this package: correctionlib JSON, numpy arrays.

Every file states its units, signs, parameter order, range of validity and provenance, and is the same to the
byte when it is written again from the same calibration.

Not for: files between stages (`musclecal.store`).
"""

from musclecal.export.arrays import export_json, export_npz, load_arrays
from musclecal.export.correctionlib_json import export_correctionlib, load_correctionlib
from musclecal.export.folder import read_tables
from musclecal.export.refinement import export_refinement, load_refinement
from musclecal.export.tables import correction_tables

__all__ = [
    "correction_tables",
    "export_correctionlib",
    "export_json",
    "export_npz",
    "export_refinement",
    "load_arrays",
    "load_correctionlib",
    "load_refinement",
    "read_tables",
]
