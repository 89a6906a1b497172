"""The calibration as a correctionlib v2 file, to be evaluated from C++ or Python without this package.

Two choices that the file itself does not explain:

* Eta edges are always written out. correctionlib 2.9 has a ``UniformBinning``, but its arithmetic moves some
  values on an edge to the neighbouring bin (-2.0 with 24 bins of 0.2, for one) and takes nan into the first
  bin; with edges written out, the bins are those of `musclecal.binning` to the last bit.
* A variation is a formula with six parameters, A, e, M and their shifts, used once with plus and once with
  minus: the up and down parts of the file are the same text and compress to little more than one of them.
"""

import gzip
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from musclecal.errors import InputError
from musclecal.export.arrays import SIGNS, VARIATIONS, ScaleArrays, checked_arrays
from musclecal.records import Floats, ScaleCalibration
from musclecal.scale import relative_correction
from musclecal.store import written_atomically

if TYPE_CHECKING:
    from correctionlib import schemav2

__all__ = ["CORRECTION_NAME", "export_correctionlib", "scale_correction"]

CORRECTION_NAME = "muon_pt_scale"
_NOMINAL, _UP, _DOWN = range(3)
_FORMULAS = (
    "1.0/(1.0 + [0] - [1]/x + y*[2]*x)",
    "1.0/(1.0 + ([0]+[3]) - ([1]+[4])/x + y*([2]+[5])*x)",
    "1.0/(1.0 + ([0]-[3]) - ([1]-[4])/x + y*([2]-[5])*x)",
)


def export_correctionlib(
    calibration: ScaleCalibration,
    path: str | os.PathLike[str],
    provenance: Mapping[str, str],
    *,
    pt_range: tuple[float, float] = (2.0, 200.0),
) -> None:
    """Write ``calibration`` as a gzipped correctionlib file with the correction ``muon_pt_scale``.

    ``muon_pt_scale(pt, eta, charge, syst)`` is the factor on pT, 1/(1 + A - e/pT + q M pT), and exactly 1
    outside the eta range, outside low <= pT < high, and for nan in pt or eta. ``syst`` is ``nom``,
    ``stat<i>_up`` or ``stat<i>_down``, i = 0 ... 3 n_eta - 1, not scaled by the closure factor; anything else
    raises. Numbers have 12 significant digits; the same input gives the same bytes.

    Parameters
    ----------
    path : usually ``muon_scale.json.gz``.
    provenance : names and texts, put into the description of the file.
    pt_range : (low, high) GeV, where the correction is valid.

    Raises
    ------
    InputError : a calibration that cannot be used (see `checked_arrays`), a wrong ``pt_range``, or a
        correction that makes pT negative or infinite inside it.
    """
    from correctionlib import schemav2

    correction = scale_correction(calibration, provenance, pt_range=pt_range)
    content = schemav2.CorrectionSet(
        schema_version=2, description=_provenance_text(provenance), corrections=[correction]
    )
    encoded = content.model_dump_json(exclude_unset=True).encode()
    with written_atomically(path) as temporary:
        temporary.write_bytes(gzip.compress(encoded, compresslevel=9, mtime=0))


def scale_correction(
    calibration: ScaleCalibration,
    provenance: Mapping[str, str],
    *,
    pt_range: tuple[float, float] = (2.0, 200.0),
) -> "schemav2.Correction":
    """The correction of `export_correctionlib` as a schema object, to be put into a larger file."""
    from correctionlib import schemav2

    arrays = checked_arrays(calibration, calibration.covariance, provenance)
    variations = arrays.variations
    _refuse_unphysical(arrays, variations, pt_range)
    return schemav2.Correction(
        name=CORRECTION_NAME,
        version=1,
        description=_description(arrays, pt_range),
        inputs=_inputs(pt_range),
        output=schemav2.Variable(
            name="factor", type="real", description="corrected pT = factor * measured pT, dimensionless"
        ),
        generic_formulas=[
            schemav2.Formula(
                nodetype="formula", parser="TFormula", expression=expression, variables=["pt", "charge"]
            )
            for expression in _FORMULAS
        ],
        data=_tree(arrays, variations, pt_range),
    )


def _tree(arrays: ScaleArrays, variations: Floats, pt_range: tuple[float, float]) -> "schemav2.Category":
    """syst at the root, so that a typo raises for every muon; then pT range; then eta bin."""
    from correctionlib import schemav2

    nominal = _rounded(arrays.parameters.reshape(-1, 3))
    items = [schemav2.CategoryItem(key="nom", value=_in_range(arrays, _NOMINAL, nominal, pt_range))]
    for i in range(variations.shape[2]):
        both = np.hstack([nominal, _rounded(variations[:, :, i])])
        items += [
            schemav2.CategoryItem(key=f"stat{i}_up", value=_in_range(arrays, _UP, both, pt_range)),
            schemav2.CategoryItem(key=f"stat{i}_down", value=_in_range(arrays, _DOWN, both, pt_range)),
        ]
    return schemav2.Category(nodetype="category", input="syst", content=items)


def _in_range(
    arrays: ScaleArrays, formula: int, parameters: Floats, pt_range: tuple[float, float]
) -> "schemav2.Binning":
    """One formula per eta bin with its row of ``parameters``; 1 outside the ranges."""
    from correctionlib import schemav2

    eta_bins: list[Any] = [
        schemav2.FormulaRef(nodetype="formularef", index=formula, parameters=row)
        for row in parameters.tolist()
    ]
    in_eta = schemav2.Binning(
        nodetype="binning", input="eta", edges=arrays.eta_edges.tolist(), content=eta_bins, flow=1.0
    )
    return schemav2.Binning(
        nodetype="binning", input="pt", edges=[float(x) for x in pt_range], content=[in_eta], flow=1.0
    )


def _inputs(pt_range: tuple[float, float]) -> "list[schemav2.Variable]":
    from correctionlib import schemav2

    low, high = pt_range
    return [
        schemav2.Variable(
            name="pt",
            type="real",
            description=f"measured pT, GeV; factor 1 unless {low:g} <= pt < {high:g}, and for nan",
        ),
        schemav2.Variable(
            name="eta", type="real", description="eta of the muon; factor 1 outside the bins and for nan"
        ),
        schemav2.Variable(name="charge", type="real", description="+1.0 or -1.0, as a floating point number"),
        schemav2.Variable(
            name="syst", type="string", description="nom, stat<i>_up, stat<i>_down; else an error"
        ),
    ]


def _description(arrays: ScaleArrays, pt_range: tuple[float, float]) -> str:
    low, high = pt_range
    edges, last = arrays.eta_edges, 3 * arrays.n_eta - 1
    return (
        f"Factor on the transverse momentum of a muon: 1/(1 + A - e/pT + q M pT). {SIGNS} "
        f"A: dimensionless, e: GeV, M: 1/GeV, in {arrays.n_eta} bins of eta. "
        f"Valid for {edges[0]:g} <= eta < {edges[-1]:g} and {low:g} <= pT < {high:g} GeV; "
        "the factor is exactly 1 outside these ranges and for nan in pt or eta. "
        f"syst: nom, or stat0_up, stat0_down ... stat{last}_up, stat{last}_down; there is no default, "
        f"another name is an error. {VARIATIONS}"
    )


def _provenance_text(provenance: Mapping[str, str]) -> str:
    lines = [f"{name}: {text}" for name, text in sorted(provenance.items())]
    return "\n".join(["Muon momentum scale correction, made by musclecal.", *lines])


def _rounded(values: Floats) -> Floats:
    """12 significant digits."""
    return np.array([float(f"{x:.12g}") for x in values.ravel()]).reshape(values.shape)


def _refuse_unphysical(arrays: ScaleArrays, variations: Floats, pt_range: tuple[float, float]) -> None:
    """pT must stay positive: 1 + A - e/pT + q M pT is smallest at an end of the range, or above 1 + A."""
    low, high = pt_range
    if not 0.0 < low < high < np.inf:
        raise InputError(f"pt_range: need 0 < low < high, got {low} and {high} GeV")
    nominal = arrays.parameters.reshape(-1, 3)
    shifts = np.moveaxis(variations, 2, 0)
    A, e, M = np.moveaxis(np.concatenate([nominal[None], nominal + shifts, nominal - shifts]), 2, 0)
    relative = [A] + [relative_correction(pt, q, A, e, M) for pt in pt_range for q in (-1, 1)]
    worst = np.min(relative, axis=(0, 1))
    if np.any(worst <= -1.0):
        i = int(np.argmin(worst))
        raise InputError(
            f"eta bin {i}: the correction of the curvature or a variation of it reaches {worst[i]:.3g} "
            f"between {low:g} and {high:g} GeV, so pT would be negative: narrow pt_range, or see why"
        )
