"""What is exported, before it has a format: values, variations, validity, words.

`correction_tables` makes it from a calibration, `content_of` and `tables_of` turn it into the names and values of the
array formats and back. The words that explain signs, units and variations are kept here for all formats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from musclecal.covariance import checked_covariance, eigenvariations, scale_parameter_names
from musclecal.errors import InputError
from musclecal.records import (
    Closure,
    CorrectionTables,
    Floats,
    NuisanceGroup,
    ScaleWithCovariance,
    Smearing,
)
from musclecal.scale import relative_correction

__all__ = [
    "FORMAT",
    "OLDER",
    "PT_RANGE",
    "SIGNS",
    "SMEARING",
    "VARIATIONS",
    "checked_tables",
    "content_of",
    "correction_tables",
    "tables_of",
]

FORMAT = "musclecal tables 2"
OLDER = "musclecal arrays 1"
PT_RANGE = (2.0, 200.0)
"""GeV. The parametrisation extrapolates beyond the muons that it was made from; its uncertainty grows with it."""

SIGNS = (
    "k_corr = (1 + A - e k) k + q M, applied to the measured curvature k = 1/pT (1/GeV) of a muon of charge "
    "q = +1 or -1: corrected pT = pT/(1 + A - e/pT + q M pT). A > 0 lowers pT; e > 0 raises pT by about e; M > 0 "
    "lowers pT of mu+ and raises pT of mu-. Angles are not corrected. Bins are [low, high) in eta. Muons outside the "
    "ranges of eta and pT are not corrected: the factor is 1."
)
UNITS = {"A": "1", "e": "GeV", "M": "1/GeV", "eta_edges": "1", "pt_range": "GeV"}
VARIATIONS = (
    "Variation i shifts all parameters together by +v_i or -v_i, one standard deviation; the v_i are independent. "
    "Those named stat<i> are SCALED: the sum of their v_i v_i^T is s^2 times the statistical covariance, s the factor "
    "that the closures ask for. The others are what the closures could not have seen, and the masses of their "
    "resonances."
)
SMEARING = (
    "Simulated muons: pT -> pT/(1 + sigma g), sigma^2 = max(0, a + c pT^2 + b pT^2/(pT^2 + d)) in the bin of eta, g a "
    "unit Gaussian that is a function of run, lumi, event, phi rounded to float32 and salt: XXH64 of the five "
    "little-endian 64-bit words (phi as float64), PCG-XSH-RR 64/32, polar method."
)
_SMEARING_PARTS = tuple(field.name for field in fields(Smearing))


def correction_tables(
    calibration: ScaleWithCovariance,
    provenance: Mapping[str, str],
    *,
    s: float = 1.0,
    others: Sequence[NuisanceGroup] = (),
    smearing: Smearing | None = None,
    closures: Sequence[Closure] = (),
    pt_range: tuple[float, float] = PT_RANGE,
) -> CorrectionTables:
    """The tables of a calibration.

    Parameters
    ----------
    s : factor on the statistical uncertainty.
    others : variations of A, e, M from other sources, with the eta bins of the calibration.
    closures : whose residuals are shown beside the correction.

    Raises
    ------
    InputError : see `checked_tables`; another eta binning in ``others``.
    """
    calibration = _checked_scale(calibration)
    n_eta = calibration.n_eta
    names = [f"stat{i}" for i in range(3 * n_eta)]
    rows = [s * eigenvariations(calibration.covariance, scale_parameter_names(n_eta))]
    for group in others:
        names += group.names
        rows.append(_in_all_parameters(group, calibration.eta_edges))
    return checked_tables(
        calibration,
        s,
        names,
        np.concatenate(rows).T.reshape(n_eta, 3, -1),
        pt_range,
        smearing,
        {c.resonance: _residuals(c) for c in closures},
        provenance,
    )


def _in_all_parameters(group: NuisanceGroup, eta_edges: Floats) -> Floats:
    """(n, 3 n_eta) variations of a group in the parameters of a calibration."""
    if len(group.eta_edges) != len(eta_edges) or not np.array_equal(group.eta_edges, eta_edges):
        raise InputError(f"{group.name}: other eta bins than the calibration")
    columns = ["AeM".index(letter) for letter in group.parameters]
    out = np.zeros((len(group.names), len(eta_edges) - 1, 3))
    out[:, :, columns] = group.variations.reshape(len(group.names), -1, len(columns))
    return out.reshape(len(out), -1)


def _residuals(closure: Closure) -> Floats:
    """(n_eta, 4) A, its error, M, its error; zero for a parameter that was not fitted."""
    out = np.zeros((len(closure.values), 4))
    errors = np.sqrt(np.diagonal(closure.covariance)).reshape(closure.values.shape)
    for column, name in enumerate(closure.parameter_names):
        if name in "AM":
            first = 2 * "AM".index(name)
            out[:, first], out[:, first + 1] = closure.values[:, column], errors[:, column]
    return out


def checked_tables(
    scale: ScaleWithCovariance,
    s: float,
    names: Sequence[str],
    variations: Floats,
    pt_range: tuple[float, float],
    smearing: Smearing | None,
    residuals: Mapping[str, Floats],
    provenance: Mapping[str, str],
) -> CorrectionTables:
    """Tables that may be used: shapes, finiteness, edges, covariance and variations are checked.

    Raises
    ------
    InputError : what is wrong, with the parameter and eta bin; a correction that turns the charge inside ``pt_range``.
    """
    scale = _checked_scale(scale)
    if not 0.0 < s < np.inf:
        raise InputError(f"s: must be positive, got {s}")
    tables = CorrectionTables(
        scale.eta_edges, scale.A, scale.e, scale.M, scale.covariance, s=float(s), variation_names=tuple(names),
        variations=np.ascontiguousarray(variations, dtype=np.float64),
        pt_range=(float(pt_range[0]), float(pt_range[1])), smearing=smearing, residuals=dict(residuals),
        provenance=dict(sorted(provenance.items())),
    )  # fmt: skip
    _refuse_other_variations(tables)
    _refuse_unphysical(tables)
    if smearing is not None:
        _refuse_bad_smearing(smearing)
    _refuse_bad_residuals(tables)
    return tables


def _checked_scale(scale: ScaleWithCovariance) -> ScaleWithCovariance:
    """A copy in float64, with matching shapes, finite numbers, and a covariance that is one."""
    edges = np.array(scale.eta_edges, dtype=np.float64)
    if edges.ndim != 1 or not np.all(np.isfinite(edges)) or np.any(np.diff(edges) <= 0.0) or edges.size < 2:
        raise InputError(f"eta_edges: must be finite and increasing, got {edges.tolist()}")
    n_eta = edges.size - 1
    values = {name: _checked_parameter(name, getattr(scale, name), n_eta) for name in ("A", "e", "M")}
    if np.shape(scale.covariance) != (3 * n_eta, 3 * n_eta):
        wrong = np.shape(scale.covariance)
        raise InputError(f"covariance: {n_eta} eta bins need {3 * n_eta} parameters, got {wrong}")
    matrix = checked_covariance(scale.covariance, scale_parameter_names(n_eta))
    return ScaleWithCovariance(edges, **values, covariance=matrix)


def _checked_parameter(name: str, values: Floats, n_eta: int) -> Floats:
    values = np.array(values, dtype=np.float64)
    if values.shape != (n_eta,):
        raise InputError(f"{name}: {n_eta} eta bins need as many values, got shape {values.shape}")
    if not np.all(np.isfinite(values)):
        i = int(np.argmin(np.isfinite(values)))
        raise InputError(f"{name}: {values[i]} in eta bin {i}")
    return values


def _refuse_other_variations(tables: CorrectionTables) -> None:
    """The statistical variations must sum to the covariance: a file of which only one was edited is refused."""
    names = tables.variation_names
    if tables.variations.shape != (tables.n_eta, 3, len(names)) or len(set(names)) < len(names):
        raise InputError(f"variations: shape {tables.variations.shape} for {len(names)} different names")
    if not np.all(np.isfinite(tables.variations)):
        raise InputError("variations: some are not finite")
    stat = [i for i, name in enumerate(names) if name.startswith("stat")]
    rows = tables.variations[:, :, stat].reshape(3 * tables.n_eta, -1)
    sigma = tables.s * np.sqrt(np.diagonal(tables.covariance))
    difference = np.abs(rows @ rows.T - tables.s**2 * tables.covariance)
    if not np.all(difference <= 1e-9 * np.outer(sigma, sigma)):
        raise InputError("the variations named stat do not sum to s^2 times the covariance")


def _refuse_unphysical(tables: CorrectionTables) -> None:
    """pT must stay positive: 1 + A - e/pT + q M pT is smallest at an end of the range, or above 1 + A."""
    low, high = tables.pt_range
    if not 0.0 < low < high < np.inf:
        raise InputError(f"pt_range: need 0 < low < high, got {low} and {high} GeV")
    nominal = tables.parameters.reshape(-1, 3)
    shifts = np.moveaxis(tables.variations, 2, 0)
    A, e, M = np.moveaxis(np.concatenate([nominal[None], nominal + shifts, nominal - shifts]), 2, 0)
    relative = [A] + [relative_correction(pt, q, A, e, M) for pt in tables.pt_range for q in (-1, 1)]
    worst = np.min(relative, axis=(0, 1))
    if np.any(worst <= -1.0):
        i = int(np.argmin(worst))
        raise InputError(
            f"eta bin {i}: the correction of the curvature or a variation of it reaches {worst[i]:.3g} "
            f"between {low:g} and {high:g} GeV, so pT would be negative: narrow pt_range, or see why"
        )


def _refuse_bad_smearing(smearing: Smearing) -> None:
    edges = np.asarray(smearing.eta_edges)
    for name in _SMEARING_PARTS:
        values = np.asarray(getattr(smearing, name))
        wanted = len(edges) - (name != "eta_edges")
        if values.shape != (wanted,) or not np.all(np.isfinite(values)):
            raise InputError(f"smearing: {name} must be {wanted} finite numbers")
    if np.any(np.diff(edges) <= 0.0):
        raise InputError("smearing: eta_edges must increase")


def _refuse_bad_residuals(tables: CorrectionTables) -> None:
    for name, table in tables.residuals.items():
        if np.ndim(table) != 2 or np.shape(table)[1] != 4 or not np.all(np.isfinite(table)):
            raise InputError(f"residuals_{name}: need four finite numbers in each eta bin")


def content_of(tables: CorrectionTables) -> dict[str, Any]:
    """All that is exported, in the order in which a person reads it."""
    t = tables
    content: dict[str, Any] = {
        "format": FORMAT,
        "signs": SIGNS,
        "units": UNITS,
        "about_variations": VARIATIONS,
        "provenance": dict(t.provenance),
        "pt_range": np.array(t.pt_range),
        "s": t.s,
        "parameter_order": list(scale_parameter_names(t.n_eta)),
        "eta_edges": t.eta_edges,
        "A": t.A,
        "e": t.e,
        "M": t.M,
        "covariance": t.covariance,
        "variation_names": list(t.variation_names),
        "variations": t.variations,
    }
    if t.smearing is not None:
        content["about_smearing"] = SMEARING
        content |= {f"smearing_{name}": getattr(t.smearing, name) for name in _SMEARING_PARTS}
    return content | {f"residuals_{name}": table for name, table in t.residuals.items()}


def tables_of(content: Mapping[str, Any]) -> CorrectionTables:
    """The tables of a content as in `content_of`, or of the format before it (statistical variations alone).

    Raises
    ------
    InputError : another format, units or parameter order; see `checked_tables`.
    KeyError : something is missing.
    """
    found = str(content["format"])
    if found not in (FORMAT, OLDER):
        raise InputError(f"format {found!r}, this version reads {FORMAT!r} and {OLDER!r}")
    if dict(content.get("units", UNITS)) != UNITS and found == FORMAT:
        raise InputError(f"units {dict(content['units'])}, expected {UNITS}")
    A, e, M = (np.asarray(content[name], dtype=np.float64) for name in ("A", "e", "M"))
    expected, order = scale_parameter_names(len(A)), tuple(str(name) for name in content["parameter_order"])
    if order != expected:
        raise InputError(f"parameter order {_some(order)}, expected {_some(expected)}")
    edges, covariance = (np.asarray(content[key], dtype=np.float64) for key in ("eta_edges", "covariance"))
    scale = ScaleWithCovariance(edges, A, e, M, covariance)
    variations = np.asarray(content["variations"], dtype=np.float64)
    if found == OLDER:
        names = [f"stat{i}" for i in range(variations.shape[-1])]
        return checked_tables(scale, 1.0, names, variations, PT_RANGE, None, {}, content["provenance"])
    low, high = (float(x) for x in content["pt_range"])
    smearing = None
    if "smearing_a" in content:
        parts = {name: np.asarray(content[f"smearing_{name}"], dtype=np.float64) for name in _SMEARING_PARTS}
        smearing = Smearing(**parts)
    residuals = {
        name.removeprefix("residuals_"): np.asarray(table, dtype=np.float64)
        for name, table in content.items()
        if name.startswith("residuals_")
    }
    names = [str(name) for name in content["variation_names"]]
    provenance = content["provenance"]
    return checked_tables(
        scale, float(content["s"]), names, variations, (low, high), smearing, residuals, provenance
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
