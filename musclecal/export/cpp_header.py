"""The tables as one C++17 header without dependencies, for RDataFrame, macros and event loops.

The functions of the header say the same as those of the correctionlib file, muon by muon; its numbers have all digits.
The random draw is that of `musclecal.smear`, written down once more in C++.
"""

import re
from pathlib import Path

import numpy as np

from musclecal.errors import InputError
from musclecal.export.cpp_source import CORRECTION, DRAWS, OPENING, SMEAR
from musclecal.export.tables import FORMAT, SIGNS, SMEARING, VARIATIONS
from musclecal.records import CorrectionTables, Floats, Smearing
from musclecal.store import written_atomically

__all__ = ["export_header", "namespace_of"]

_KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t
    class co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue
    decltype default delete do double dynamic_cast else enum explicit export extern false float for friend
    goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
    protected public register reinterpret_cast requires return short signed sizeof static static_assert
    static_cast std struct switch template this thread_local throw true try typedef typeid typename union
    unsigned using virtual void volatile wchar_t while xor xor_eq
"""


def export_header(tables: CorrectionTables, path: Path, namespace: str | None = None) -> None:
    """Write a header, usually ``muon_scale.h``.

    In its namespace ``factor(pt, eta, charge)`` and ``factor(pt, eta, charge, ivar, nsigma)`` are the factor on pT, 1
    where the correction is not valid; ``validity`` of the same arguments is the reason; an ``ivar`` that does not exist
    throws. With a smearing ``smear(pt, eta, phi, run, lumi, event, salt)``. The same tables give the same bytes.

    Parameters
    ----------
    namespace : in which all names stand, so that the headers of two periods go into one program; by default
        `namespace_of` the period.

    Raises
    ------
    InputError : a namespace that is no C++ identifier.
    """
    name = namespace_of(tables.provenance.get("period", "")) if namespace is None else namespace
    _refuse_no_identifier(name)
    with written_atomically(path) as temporary:
        temporary.write_text(_header(tables, name), encoding="utf-8", newline="\n")


def namespace_of(period: str) -> str:
    """``muon_scale`` and the period, what is no letter or digit made an underscore."""
    return "_".join(["muon_scale", *re.findall("[A-Za-z0-9]+", period)])


def _refuse_no_identifier(name: str) -> None:
    """Names with two underscores belong to the compiler."""
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or "__" in name or name in _KEYWORDS.split():
        raise InputError(f"namespace: {name!r} is no C++ identifier that a header may use")


def _header(tables: CorrectionTables, namespace: str) -> str:
    smearing = tables.smearing
    return "\n".join(
        [
            *_comments(tables),
            OPENING.replace("NAMESPACE", namespace),
            _tables_struct(tables),
            CORRECTION,
            *([] if smearing is None else [_smearing_struct(smearing), DRAWS, SMEAR]),
            f"}}  // namespace {namespace}",
            "",
            "#endif",
            "",
        ]
    )


def _comments(tables: CorrectionTables) -> list[str]:
    """What the numbers mean and where they come from; a provenance cannot end its comment."""
    (low, high), edges = tables.pt_range, tables.eta_edges
    lines = [
        f"Muon momentum scale correction, made by musclecal ({FORMAT}).",
        f"For {tables.provenance.get('corrects', 'data')} of {edges[0]:g} <= eta < {edges[-1]:g} and "
        f"{low:g} <= pT < {high:g} GeV.",
        SIGNS,
        f"{VARIATIONS} Here s = {tables.s:.4g}.",
        *([] if tables.smearing is None else [SMEARING]),
        *(f"{key}: {value}" for key, value in tables.provenance.items()),
    ]
    return ["// " + " ".join(line.split()).rstrip("\\?/ ") for line in lines]


def _tables_struct(t: CorrectionTables) -> str:
    rows = np.moveaxis(t.variations, 2, 0)
    shifts = ",\n".join("      {" + ", ".join(_braced(row) for row in variation) + "}" for variation in rows)
    names = ", ".join('"' + re.sub(r'[\\"\n]', "_", name) + '"' for name in t.variation_names)
    return f"""
struct Tables {{
  static constexpr int n_eta = {t.n_eta};
  static constexpr int n_var = {t.n_variations};
  static constexpr double s = {_number(t.s)};
  static constexpr double pt_low = {_number(t.pt_range[0])};  // GeV
  static constexpr double pt_high = {_number(t.pt_range[1])};
  static constexpr double eta_edges[n_eta + 1] = {_braced(t.eta_edges)};
  // A, e (GeV), M (1/GeV) in each eta bin.
  static constexpr double nominal[n_eta][3] = {{{", ".join(_braced(row) for row in t.parameters.reshape(-1, 3))}}};
  static constexpr const char* variation_names[n_var] = {{{names}}};
  // Shifts of A, e, M by one standard deviation.
  static constexpr double variations[n_var][n_eta][3] = {{
{shifts}}};
}};"""


def _smearing_struct(m: Smearing) -> str:
    rows = np.stack([m.a, m.b, m.c, m.d], axis=1)
    return f"""
struct Resolution {{
  static constexpr int n_eta = {len(m.a)};
  static constexpr double eta_edges[n_eta + 1] = {_braced(np.asarray(m.eta_edges))};
  // a, b, c (1/GeV^2), d (GeV^2) in each eta bin.
  static constexpr double parameters[n_eta][4] = {{{", ".join(_braced(row) for row in rows)}}};
}};
"""


def _braced(values: Floats) -> str:
    return "{" + ", ".join(_number(x) for x in values) + "}"


def _number(value: float) -> str:
    return f"{value:.17g}"
