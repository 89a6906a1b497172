"""Tables that analysts apply without this package: correctionlib JSON, numpy arrays.

Every file states its units, signs, parameter order, range of validity and provenance, and is the same to the
byte when it is written again from the same calibration.

Not for: files between stages (`musclecal.store`).
"""

from musclecal.export.arrays import ScaleArrays, export_arrays, load_arrays
from musclecal.export.correctionlib_json import export_correctionlib
from musclecal.export.refinement import export_refinement, load_refinement

__all__ = [
    "ScaleArrays",
    "export_arrays",
    "export_correctionlib",
    "export_refinement",
    "load_arrays",
    "load_refinement",
]
