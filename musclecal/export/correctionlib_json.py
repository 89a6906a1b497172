"""The tables as a correctionlib v2 file, to be evaluated from C++ or Python without this package.

Choices that the file itself does not explain:

* Eta edges are always written out. correctionlib 2.9 has a ``UniformBinning``, but its arithmetic moves some
  values on an edge to the neighbouring bin (-2.0 with 24 bins of 0.2, for one) and takes nan into the first
  bin; with edges written out, the bins are those of `musclecal.binning` to the last bit.
* ``flow`` is 1 on every axis (pT, eta, charge, phi): outside the ranges and for nan the factor is 1.
* A variation is a formula with six parameters, A, e, M and their shifts, used once with plus and once with
  minus: the up and down parts of the file are the same text and compress to little more than one of them.
* A formula sees inputs only. A ``transform`` node puts the draw in the place of phi, after another has rounded phi to
  float32 by Veltkamp's splitting (Dekker, Numer. Math. 18 (1971) 224).
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musclecal.errors import InputError
from musclecal.export.tables import FORMAT, SIGNS, SMEARING, VARIATIONS, content_of, tables_of
from musclecal.records import CorrectionTables, Floats
from musclecal.smear import DISTRIBUTION, DRAW_INPUTS
from musclecal.store import written_atomically

if TYPE_CHECKING:
    from correctionlib import schemav2

__all__ = [
    "CORRECTION_NAME",
    "SMEAR_NAME",
    "VAR_NAME",
    "correction_set",
    "correctionlib_bytes",
    "export_correctionlib",
    "load_correctionlib",
    "variation_names",
]

CORRECTION_NAME, SMEAR_NAME = "muon_pt_scale", "muon_pt_smear"
_BOTH_NAME, VAR_NAME = "muon_pt_scale_smear", "muon_pt_scale_var"
_NOMINAL, _UP, _DOWN = range(3)
_FORMULAS = (
    "1.0/(1.0 + [0] - [1]/x + y*[2]*x)",
    "1.0/(1.0 + ([0]+[3]) - ([1]+[4])/x + y*([2]+[5])*x)",
    "1.0/(1.0 + ([0]-[3]) - ([1]-[4])/x + y*([2]-[5])*x)",
)
_IN_SIGMA = "1.0/(1.0 + ([0]+z*[3]) - ([1]+z*[4])/x + y*([2]+z*[5])*x)"
_SMEARED = "1.0/(1.0 + sqrt(max(0.0, [0] + [2]*x*x + [1]*x*x/(x*x + [3])))*y)"
_NARROW = 1e-15
"""Of the bins of the two charges; correctionlib reads no numbers that are closer to 1."""
_TO_FLOAT32 = "536870913.0*x - (536870913.0*x - x)"
_ANY_PHI = [-1e6, 1e6]
_ARCHIVE = "musclecal tables: "


def export_correctionlib(tables: CorrectionTables, path: Path) -> None:
    """Write a gzipped correctionlib file, usually ``muon_scale.json.gz``.

    ``muon_pt_scale(pt, eta, charge, syst)`` is the factor on pT; ``syst`` is ``nom`` or the name of a variation with
    ``_up`` or ``_down``, anything else raises. ``muon_pt_scale_var(pt, eta, charge, ivar, nsigma)`` is the same with
    variation ``ivar`` by ``nsigma`` standard deviations. ``muon_A``, ``muon_e``, ``muon_M`` of (eta) are the tables
    alone. With a smearing ``muon_pt_smear(pt, eta, phi, run, lumi, event, salt)``, and ``muon_pt_scale_smear``, one
    after the other. Numbers have 12 significant digits; the same tables give the same bytes.
    """
    with written_atomically(path) as temporary:
        temporary.write_bytes(correctionlib_bytes({"": tables}))


def correctionlib_bytes(periods: Mapping[str, CorrectionTables]) -> bytes:
    """The gzipped file of `correction_set`: equal tables are equal bytes."""
    encoded = correction_set(periods).model_dump_json(exclude_unset=True).encode()
    return gzip.compress(encoded, compresslevel=9, mtime=0)


def load_correctionlib(path: Path) -> CorrectionTables:
    """The tables in a file of `export_correctionlib`, with its 12 digits.

    Raises
    ------
    InputError : not a file of this package.
    """
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        found = [c for c in content["corrections"] if c["name"] == CORRECTION_NAME]
        table = _archived(content["description"]) | _in_formulas(found[0])
        return tables_of(table | {"covariance": _statistical(table)})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a correctionlib file of this package ({error})") from None


def correction_set(periods: Mapping[str, CorrectionTables]) -> "schemav2.CorrectionSet":
    """The corrections of one period (whatever its name), or of several, with ``period`` as an input before all others.

    In a period that lacks a variation of another one, that variation is the nominal correction.
    """
    from correctionlib import schemav2

    first = next(iter(periods.values()))
    corrections = [_scale(periods), _scale_var(periods), *(_table(periods, letter) for letter in "AeM")]
    compound = None
    if all(t.smearing is not None for t in periods.values()):
        corrections.append(_smear(periods))
        compound = [_scale_then_smear(periods)]
    archive = {name: _archive_of(t) for name, t in periods.items()}
    text = [
        "Muon momentum scale correction, made by musclecal.",
        *(f"{key}: {value}" for key, value in first.provenance.items() if len(periods) == 1),
        _ARCHIVE + json.dumps(archive),
    ]
    content = {"compound_corrections": compound} if compound else {}
    return schemav2.CorrectionSet(
        schema_version=2, description="\n".join(text), corrections=corrections, **content
    )


# Trees --------------------------------------------------------------------------------------------------------------


def _per_period(periods: Mapping[str, CorrectionTables], tree: Callable[[CorrectionTables], Any]) -> Any:
    """The tree of the only period, or a category of periods."""
    from correctionlib import schemav2

    if len(periods) == 1:
        return tree(next(iter(periods.values())))
    items = [schemav2.CategoryItem(key=name, value=tree(tables)) for name, tables in periods.items()]
    return schemav2.Category(nodetype="category", input="period", content=items)


def _binning(axis: str, edges: Iterable[float], content: list[Any], outside: float = 1.0) -> Any:
    from correctionlib import schemav2

    numbers: list[Any] = [float(edge) for edge in edges]
    return schemav2.Binning(nodetype="binning", input=axis, edges=numbers, content=content, flow=outside)


def _formula(expression: str, variables: list[str], parameters: list[float] | None = None) -> Any:
    from correctionlib import schemav2

    given = {} if parameters is None else {"parameters": parameters}
    return schemav2.Formula(
        nodetype="formula", parser="TFormula", expression=expression, variables=variables, **given
    )


def _transform(axis: str, rule: Any, content: Any) -> Any:
    from correctionlib import schemav2

    return schemav2.Transform(nodetype="transform", input=axis, rule=rule, content=content)


def _if_charged(content: Any) -> Any:
    """pT becomes -1, which is outside of every range, unless the charge is +1 or -1."""
    edges = [-1.0, -1.0 + _NARROW, 1.0, 1.0 + _NARROW]
    same = _formula("x", ["pt"])
    return _transform("pt", _binning("charge", edges, [same, -1.0, same], outside=-1.0), content)


def _in_range(tables: CorrectionTables, formula: int, parameters: Floats) -> Any:
    """One formula per eta bin with its row of ``parameters``; 1 outside the ranges."""
    from correctionlib import schemav2

    eta_bins: list[Any] = [
        schemav2.FormulaRef(nodetype="formularef", index=formula, parameters=row)
        for row in parameters.tolist()
    ]
    return _binning("pt", tables.pt_range, [_binning("eta", tables.eta_edges, eta_bins)])


def _scale(periods: Mapping[str, CorrectionTables]) -> Any:
    """A category of syst above all, so that a typo raises for every muon; then ranges; then eta bins."""
    from correctionlib import schemav2

    names = variation_names(periods)

    def tree(tables: CorrectionTables) -> Any:
        nominal = _rounded(tables.parameters.reshape(-1, 3))
        unvaried = _in_range(tables, _NOMINAL, nominal)
        items = [schemav2.CategoryItem(key="nom", value=unvaried)]
        for name in names:
            shifts = _shifts(tables, name)
            for side, formula in (("up", _UP), ("down", _DOWN)):
                cells = (
                    unvaried if shifts is None else _in_range(tables, formula, np.hstack([nominal, shifts]))
                )
                items.append(schemav2.CategoryItem(key=f"{name}_{side}", value=cells))
        return _if_charged(schemav2.Category(nodetype="category", input="syst", content=items))

    syst = schemav2.Variable(
        name="syst",
        type="string",
        description="nom, or the name of a variation with _up or _down; else an error",
    )
    return _correction(
        CORRECTION_NAME, _about_scale(periods), [*_muon_inputs(periods, "pt", "eta", "charge"), syst],
        _per_period(periods, tree), [_formula(text, ["pt", "charge"]) for text in _FORMULAS],
    )  # fmt: skip


def _scale_var(periods: Mapping[str, CorrectionTables]) -> Any:
    from correctionlib import schemav2

    names = variation_names(periods)

    def tree(tables: CorrectionTables) -> Any:
        nominal = _rounded(tables.parameters.reshape(-1, 3))
        unvaried = _in_range(tables, 0, np.hstack([nominal, np.zeros_like(nominal)]))
        items = []
        for number, name in enumerate(names):
            shifts = _shifts(tables, name)
            cells = unvaried if shifts is None else _in_range(tables, 0, np.hstack([nominal, shifts]))
            items.append(schemav2.CategoryItem(key=number, value=cells))
        return _if_charged(schemav2.Category(nodetype="category", input="ivar", content=items))

    more = [
        schemav2.Variable(
            name="ivar", type="int", description=f"number of the variation, 0 to {len(names) - 1}: {', '.join(names)}"
        ),
        schemav2.Variable(name="nsigma", type="real", description="standard deviations to shift it by; 0: nominal"),
    ]  # fmt: skip
    about = f"{CORRECTION_NAME} with variation number ivar shifted by nsigma. {VARIATIONS}"
    return _correction(
        VAR_NAME, about, [*_muon_inputs(periods, "pt", "eta", "charge"), *more], _per_period(periods, tree),
        [_formula(_IN_SIGMA, ["pt", "charge", "nsigma"])],
    )  # fmt: skip


def _smear(periods: Mapping[str, CorrectionTables]) -> Any:
    from correctionlib import schemav2

    def tree(tables: CorrectionTables) -> Any:
        assert tables.smearing is not None
        m = tables.smearing
        rows = _rounded(np.stack([m.a, m.b, m.c, m.d], axis=1)).tolist()
        sizes = [_formula(_SMEARED, ["pt", "phi"], row) for row in rows]
        draw = schemav2.HashPRNG(nodetype="hashprng", inputs=list(DRAW_INPUTS), distribution=DISTRIBUTION)
        smeared = _transform("phi", draw, _binning("eta", m.eta_edges, sizes))
        rounded = _transform("phi", _formula(_TO_FLOAT32, ["phi"]), smeared)
        return _binning("pt", tables.pt_range, [_binning("phi", _ANY_PHI, [rounded])])

    return _correction(
        SMEAR_NAME, f"Factor on pT of a simulated muon that gives it the resolution of the data. {SMEARING}",
        _muon_inputs(periods, "pt", "eta", "phi", *DRAW_INPUTS), _per_period(periods, tree),
    )  # fmt: skip


def _scale_then_smear(periods: Mapping[str, CorrectionTables]) -> Any:
    from correctionlib import schemav2

    syst = schemav2.Variable(name="syst", type="string", description=f"as of {CORRECTION_NAME}")
    return schemav2.CompoundCorrection(
        name=_BOTH_NAME,
        description=f"{CORRECTION_NAME}, then {SMEAR_NAME} of the scaled pT. Simulation needs {SMEAR_NAME} alone where "
        "the scale is that of data.",
        inputs=[*_muon_inputs(periods, "pt", "eta", "phi", "charge", *DRAW_INPUTS), syst],
        output=_output("corrected and smeared pT over measured pT"),
        inputs_update=["pt"],
        input_op="*",
        output_op="*",
        stack=[CORRECTION_NAME, SMEAR_NAME],
    )


def _table(periods: Mapping[str, CorrectionTables], letter: str) -> Any:
    units = {"A": "dimensionless", "e": "GeV", "M": "1/GeV"}

    def tree(tables: CorrectionTables) -> Any:
        values: list[Any] = _rounded(getattr(tables, letter)).tolist()
        return _binning("eta", tables.eta_edges, values, outside=0.0)

    about = f"{letter} ({units[letter]}) alone, 0 outside the eta bins. {SIGNS}"
    return _correction(f"muon_{letter}", about, _muon_inputs(periods, "eta"), _per_period(periods, tree))


def _correction(
    name: str, about: str, inputs: list[Any], data: Any, formulas: list[Any] | None = None
) -> Any:
    from correctionlib import schemav2

    generic = {} if formulas is None else {"generic_formulas": formulas}
    return schemav2.Correction(
        name=name, version=2, description=about, inputs=inputs, data=data,
        output=_output("a number, dimensionless unless said otherwise"), **generic,
    )  # fmt: skip


# Words --------------------------------------------------------------------------------------------------------------


def _output(text: str) -> Any:
    from correctionlib import schemav2

    return schemav2.Variable(name="factor", type="real", description=text)


def _muon_inputs(periods: Mapping[str, CorrectionTables], *names: str) -> list[Any]:
    from correctionlib import schemav2

    ranges = {t.pt_range for t in periods.values()}
    low, high = next(iter(ranges))
    inside = f"{low:g} <= pt < {high:g}" if len(ranges) == 1 else "in the range of its period"
    known = {
        "period": ("string", f"one of {', '.join(periods)}; else an error"),
        "pt": (
            "real",
            f"pT before the correction, GeV; factor 1 unless {inside}, and for nan",
        ),
        "eta": ("real", "eta of the muon; [low, high) bins, no correction outside and for nan"),
        "phi": ("real", "phi of the muon, rad, rounded to float32 before it is used; factor 1 for nan"),
        "charge": ("real", "+1.0 or -1.0, as a floating point number; else no correction"),
        "run": ("int", "run number"),
        "lumi": ("int", "luminosity block"),
        "event": ("int", "event number"),
        "salt": ("int", "0, or another number for another independent set of draws"),
    }
    wanted = (*(("period",) if len(periods) > 1 else ()), *dict.fromkeys(names))
    return [schemav2.Variable(name=n, type=known[n][0], description=known[n][1]) for n in wanted]


def _about_scale(periods: Mapping[str, CorrectionTables]) -> str:
    several = len(periods) > 1
    each = " ".join(f"Period {n}: {_about_one(t)}" if several else _about_one(t) for n, t in periods.items())
    names = _listed(variation_names(periods))
    return (
        f"Factor on the transverse momentum of a muon: 1/(1 + A - e/pT + q M pT). {SIGNS} {each} "
        f"syst: nom, or {names}, with _up or _down; there is no default. {VARIATIONS}"
    )


def _about_one(t: CorrectionTables) -> str:
    (low, high), edges = t.pt_range, t.eta_edges
    corrects = t.provenance.get("corrects", "data")
    return (
        f"For {corrects}. A: dimensionless, e: GeV, M: 1/GeV, in {t.n_eta} bins of eta. Valid for "
        f"{edges[0]:g} <= eta < {edges[-1]:g} and {low:g} <= pT < {high:g} GeV; the factor is exactly 1 outside, "
        f"for nan in pt or eta, and for a charge that is not +1 or -1. s = {t.s:.4g}."
    )


def variation_names(periods: Mapping[str, CorrectionTables]) -> list[str]:
    """All variations, each once."""
    return list(dict.fromkeys(name for t in periods.values() for name in t.variation_names))


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 5 else f"{names[0]}, {names[1]}, ..., {names[-1]}"


def _shifts(tables: CorrectionTables, name: str) -> Floats | None:
    """(n_eta, 3) of a variation; None if these tables do not have it."""
    if name not in tables.variation_names:
        return None
    return _rounded(tables.variations[:, :, tables.variation_names.index(name)])


def _rounded(values: Floats) -> Floats:
    """12 significant digits."""
    return np.array([float(f"{x:.12g}") for x in values.ravel()]).reshape(values.shape)


# The way back -------------------------------------------------------------------------------------------------------


def _archive_of(tables: CorrectionTables) -> dict[str, Any]:
    """What a reader needs beside the formulas."""
    content = content_of(tables)
    kept = ("format", "provenance", "s", "parameter_order")
    smearing = {name: value.tolist() for name, value in content.items() if name.startswith("smearing_")}
    residuals = {name: value.tolist() for name, value in content.items() if name.startswith("residuals_")}
    return {name: content[name] for name in kept} | smearing | residuals


def _archived(description: str) -> dict[str, Any]:
    (line,) = [line for line in description.splitlines() if line.startswith(_ARCHIVE)] or [""]
    if not line:
        raise InputError(f"no {FORMAT} in the description")
    archive: dict[str, dict[str, Any]] = json.loads(line.removeprefix(_ARCHIVE))
    if len(archive) > 1:
        raise InputError(
            f"several periods ({', '.join(archive)}): load the calibration_<period>.npz beside it, or use correctionlib"
        )
    return next(iter(archive.values()))


def _statistical(table: Mapping[str, Any]) -> Floats:
    """The covariance that the statistical variations sum to."""
    stat = [i for i, name in enumerate(table["variation_names"]) if name.startswith("stat")]
    rows = table["variations"][:, :, stat].reshape(3 * len(table["A"]), -1)
    return np.asarray(rows @ rows.T / float(table["s"]) ** 2)


def _in_formulas(correction: Mapping[str, Any]) -> dict[str, Any]:
    """A, e, M, variations, edges and ranges from the parameters of the formulas of muon_pt_scale."""
    items = {item["key"]: item["value"] for item in correction["data"]["content"]["content"]}
    in_pt = items.pop("nom")
    in_eta = in_pt["content"][0]
    nominal = np.array([cell["parameters"] for cell in in_eta["content"]])
    names = [key.removesuffix("_up") for key in items if key.endswith("_up")]
    up = [[cell["parameters"][3:] for cell in items[f"{n}_up"]["content"][0]["content"]] for n in names]
    variations = np.moveaxis(np.array(up).reshape(len(names), len(nominal), 3), 0, 2)
    return {
        "pt_range": in_pt["edges"],
        "eta_edges": in_eta["edges"],
        **dict(zip("AeM", nominal.T, strict=True)),
        "variation_names": names,
        "variations": variations,
    }
