"""Tables that analysts apply without this package: correctionlib JSON, numpy arrays, ROOT, C++, text.

Every file states its units, signs, parameter order, range of validity and provenance, and is the same to the
byte when it is written again from the same calibration.

Not for: files between stages (`musclecal.store`).
"""

from musclecal.export.arrays import export_json, export_npz, load_arrays
from musclecal.export.correctionlib_json import export_correctionlib, load_correctionlib
from musclecal.export.cpp_header import export_header
from musclecal.export.folder import read_tables
from musclecal.export.refinement import export_refinement, load_refinement
from musclecal.export.response_file import load_response, response_beside
from musclecal.export.rochester import export_rochester
from musclecal.export.root_file import export_root, load_root
from musclecal.export.tables import correction_tables

__all__ = [
    "correction_tables",
    "export_correctionlib",
    "export_header",
    "export_json",
    "export_npz",
    "export_refinement",
    "export_rochester",
    "export_root",
    "load_arrays",
    "load_correctionlib",
    "load_refinement",
    "load_response",
    "load_root",
    "read_tables",
    "response_beside",
]
