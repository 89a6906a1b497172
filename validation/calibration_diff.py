r"""What differs between two exported corrections, per eta bin, in units of its error.

Values are second minus first. A and e are correlated by 0.9, so a large change of both may be none for any muon: what
matters is dk/k at a low, a middle and a high pT of both charges, and the chi2 of all parameters with full covariance.
Errors are those of the statistics, without the factors s; a chi2 with them is given as well where it has a meaning.

Covariance of the difference, V_1 and V_2 those of the two:

* ``independent``: V_1 + V_2, for different data.
* ``shared``: one sample contains the other. If both fits weigh their data as well as can be (least squares with the
  right errors, the same model and binning), the difference is not correlated with the fit of the larger sample, and its
  covariance is V_small - V_large (Hausman, Econometrica 46 (1978) 1251). This is sound only along directions in which
  the smaller sample knows less. Both covariances are made diagonal together (which no choice of units can change),
  and only directions are used in which the variance of the difference is more than 1 % of that of the smaller sample:
  the rest would be a ratio of two small numbers. How many are left out is reported; many, or directions in which the
  larger sample knows less, mean that neither sample contains the other.

Other eta bins are compared on all edges of both inside the common range, every bin with the value of the bin around it:
structure inside a bin of the coarser one counts as a difference. Only for ``independent``: a fit in other bins is
another model, and its covariance no part of the other.

Not for: residuals of a correction at a resonance (`musclecal.validation.closure`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from musclecal.covariance import ROUNDING, Chi2
from musclecal.errors import InputError
from musclecal.records import CorrectionTables, Floats, Smearing
from musclecal.scale import correction_jacobian

__all__ = [
    "CHARGES", "CORRELATIONS", "PTS", "CalibrationDiff", "Correlation", "OtherDifference", "compare_calibrations",
]  # fmt: skip

Ints = NDArray[np.int64]
Correlation = Literal["independent", "shared"]
CORRELATIONS: tuple[Correlation, ...] = ("independent", "shared")
PTS = (6.0, 20.0, 45.0)
"""GeV: J/psi, Upsilon, Z and W."""
CHARGES = (1.0, -1.0)

_SAME_EDGE = 1e-9
_LEAST = 0.01
"""Of the variance of the smaller sample, what a direction of the difference must have."""


@dataclass(frozen=True)
class OtherDifference:
    """Something beside A, e, M that is not the same: what it is, and what the two say."""

    what: str
    first: str
    second: str


@dataclass(frozen=True)
class CalibrationDiff:
    """Two corrections and their difference, second minus first, in common eta bins.

    Attributes
    ----------
    names : of the two. correlation : independent or shared, see the module.
    eta_edges : (n_eta + 1,). bins : (2, n_eta) numbers of the bins in the two.
    values, errors : (2, n_eta, 3) A, e (GeV), M (1/GeV) of the two, errors of the statistics without s.
    difference, difference_errors : (n_eta, 3). An error of zero: nothing can be said.
    relative, relative_errors : (n_eta, 3, 2) difference of dk/k at `PTS` and `CHARGES`.
    chi2 : of all differences; ndf is the number of directions that can be compared.
    scaled : the same with both statistical errors times their s; None for shared.
    left_out : directions that are not in the chi2, of 3 n_eta.
    not_nested : of those, directions in which the sample that should contain the other knows less (shared alone).
    contains : shared: 0 or 1, which of the two has the larger sample; else -1.
    others : everything else that is not the same.
    """

    names: tuple[str, str]
    correlation: Correlation
    eta_edges: Floats
    bins: Ints
    values: Floats
    errors: Floats
    difference: Floats
    difference_errors: Floats
    relative: Floats
    relative_errors: Floats
    chi2: Chi2
    scaled: Chi2 | None
    left_out: int
    not_nested: int
    contains: int
    others: tuple[OtherDifference, ...]

    @property
    def sigma(self) -> Floats:
        """(n_eta, 3) differences over their errors; nan without an error."""
        return _ratio(self.difference, self.difference_errors)

    @property
    def relative_sigma(self) -> Floats:
        """(n_eta, 3, 2) differences of dk/k over their errors; nan without an error."""
        return _ratio(self.relative, self.relative_errors)


def compare_calibrations(
    first: CorrectionTables,
    second: CorrectionTables,
    correlation: Correlation = "independent",
    names: tuple[str, str] = ("first", "second"),
) -> CalibrationDiff:
    """Compare two exports; see the module for what the errors and the chi2 are.

    Raises
    ------
    InputError : no common range in eta; ``shared`` with other eta bins, or with the same uncertainty everywhere.
    """
    if correlation not in CORRELATIONS:
        raise InputError(f"correlation: {correlation!r} is none of {', '.join(CORRELATIONS)}")
    both = (first, second)
    edges = _common_edges(first.eta_edges, second.eta_edges, names)
    if correlation == "shared" and not _same_edges(first.eta_edges, second.eta_edges):
        raise InputError(
            f"shared needs the same eta bins: {names[0]} has {_binning(first.eta_edges)}, {names[1]} "
            f"{_binning(second.eta_edges)}"
        )
    centres = 0.5 * (edges[1:] + edges[:-1])
    bins = np.array([np.searchsorted(t.eta_edges, centres, side="right") - 1 for t in both])
    values = np.array([t.parameters.reshape(-1, 3)[i] for t, i in zip(both, bins, strict=True)])
    covariances = [_in_bins(t.covariance, i) for t, i in zip(both, bins, strict=True)]
    difference = values[1] - values[0]
    whitened = _whitened(covariances[0], covariances[1])
    contains = _contains(whitened, covariances[0]) if correlation == "shared" else -1
    variance = _variance(covariances, contains)
    chi2, left_out, not_nested = _chi2(difference.ravel(), whitened, covariances, contains, names)
    scaled = None
    if contains < 0:
        larger = [t.s**2 * v for t, v in zip(both, covariances, strict=True)]
        scaled = _chi2(difference.ravel(), _whitened(*larger), larger, -1, names)[0]
    pt, charge = np.meshgrid(PTS, CHARGES, indexing="ij")
    jacobian = correction_jacobian(pt, charge)
    blocks = variance.reshape(len(centres), 3, len(centres), 3)[
        range(len(centres)), :, range(len(centres)), :
    ]
    return CalibrationDiff(
        names, correlation, edges, bins, values, np.array([_errors(v) for v in covariances]).reshape(values.shape),
        difference, _errors(variance).reshape(difference.shape), np.einsum("pcj,nj->npc", jacobian, difference),
        _root(np.einsum("pcj,njk,pck->npc", jacobian, blocks, jacobian)), chi2, scaled, left_out, not_nested,
        contains, _others(first, second, edges, bins),
    )  # fmt: skip


# Common bins --------------------------------------------------------------------------------------------------------


def _common_edges(first: Floats, second: Floats, names: tuple[str, str]) -> Floats:
    low, high = max(first[0], second[0]), min(first[-1], second[-1])
    if not high - low > _SAME_EDGE:
        raise InputError(f"no eta in common: {names[0]} has {_binning(first)}, {names[1]} {_binning(second)}")
    every = np.sort(np.concatenate([first, second]))
    every = every[(every >= low - _SAME_EDGE) & (every <= high + _SAME_EDGE)]
    return np.asarray(every[np.concatenate([[True], np.diff(every) > _SAME_EDGE])])


def _same_edges(first: Floats, second: Floats) -> bool:
    return len(first) == len(second) and bool(np.all(np.abs(first - second) <= _SAME_EDGE))


def _binning(edges: Floats) -> str:
    return f"{len(edges) - 1} bins from {edges[0]:g} to {edges[-1]:g}"


def _in_bins(covariance: Floats, bins: Ints) -> Floats:
    """(3 n, 3 n) of the parameters of ``bins``, a bin may come several times."""
    rows = (3 * bins[:, None] + np.arange(3)).ravel()
    return np.asarray(covariance[np.ix_(rows, rows)])


# Covariance of the difference ---------------------------------------------------------------------------------------


def _whitened(first: Floats, second: Floats) -> Floats:
    """(n_par, n_dir) directions T with T^T (V_1 + V_2) T = 1; those without any variance are left out."""
    total = first + second
    sigma = np.sqrt(np.where(np.diagonal(total) > 0.0, np.diagonal(total), 1.0))
    eigenvalues, vectors = np.linalg.eigh(total / sigma[:, None] / sigma)
    kept = eigenvalues > ROUNDING * eigenvalues[-1]
    return np.asarray(vectors[:, kept] / np.sqrt(eigenvalues[kept]) / sigma[:, None])


def _contains(whitened: Floats, first: Floats) -> int:
    """The one that knows more: 1 if the first has more than half of the variance, averaged over directions."""
    return int(np.trace(whitened.T @ first @ whitened) > 0.5 * whitened.shape[1])


def _variance(covariances: list[Floats], contains: int) -> Floats:
    return (
        covariances[0] + covariances[1] if contains < 0 else covariances[1 - contains] - covariances[contains]
    )


def _chi2(
    difference: Floats, whitened: Floats, covariances: list[Floats], contains: int, names: tuple[str, str]
) -> tuple[Chi2, int, int]:
    """chi2, directions left out, and those of them in which the larger sample knows less."""
    if contains < 0:
        pulls, not_nested = whitened.T @ difference, 0
    else:
        # Of the two variances, which add up to one, in each common direction.
        smaller, axes = np.linalg.eigh(whitened.T @ covariances[1 - contains] @ whitened)
        variance = 2.0 * smaller - 1.0
        kept = variance > _LEAST * smaller
        not_nested = int(np.sum(-variance > _LEAST * (1.0 - smaller)))
        pulls = (axes.T @ whitened.T @ difference)[kept] / np.sqrt(variance[kept])
        if not len(pulls) and np.any(difference != 0.0):
            raise InputError(
                f"shared: {names[0]} and {names[1]} are as uncertain everywhere, so neither sample contains the other"
            )
    chi2, ndf = float(pulls @ pulls), len(pulls)
    p_value = float(chdtrc(ndf, chi2)) if ndf else 1.0
    return Chi2(chi2, ndf, p_value), len(difference) - ndf, not_nested


def _errors(covariance: Floats) -> Floats:
    return _root(np.diagonal(covariance))


def _root(variance: Floats) -> Floats:
    return np.sqrt(np.clip(variance, 0.0, None))


def _ratio(values: Floats, errors: Floats) -> Floats:
    return np.divide(values, errors, out=np.full(values.shape, np.nan), where=errors > 0.0)


# All the rest -------------------------------------------------------------------------------------------------------


def _others(
    first: CorrectionTables, second: CorrectionTables, edges: Floats, bins: Ints
) -> tuple[OtherDifference, ...]:
    rows = [("eta bins", _binning(first.eta_edges), _binning(second.eta_edges))]
    if rows[0][1] == rows[0][2] and not _same_edges(first.eta_edges, second.eta_edges):
        rows = [("eta bins", "other edges", "other edges")]
    elif rows[0][1] == rows[0][2]:
        rows = []
    rows += [("s", f"{first.s:.6g}", f"{second.s:.6g}")] if first.s != second.s else []
    if first.pt_range != second.pt_range:
        rows.append(("pT range", _range(first), _range(second)))
    rows += _variations(first, second, bins)
    rows += _smearings(first.smearing, second.smearing, edges)
    rows += _provenances(first.provenance, second.provenance)
    return tuple(OtherDifference(*row) for row in rows)


def _range(tables: CorrectionTables) -> str:
    return f"{tables.pt_range[0]:g} to {tables.pt_range[1]:g} GeV"


def _provenances(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    keys = sorted({*first, *second})
    return [(k, first.get(k, "-"), second.get(k, "-")) for k in keys if first.get(k) != second.get(k)]


def _variations(first: CorrectionTables, second: CorrectionTables, bins: Ints) -> list[tuple[str, str, str]]:
    """Groups of variations by the errors of dk/k that they make together, which a rotation among them leaves alone."""
    sizes = [_group_sizes(t, i) for t, i in zip((first, second), bins, strict=True)]
    rows = []
    for name in dict.fromkeys([*sizes[0], *sizes[1]]):
        (n, one), (m, other) = (s.get(name, (0, np.zeros((bins.shape[1], 3, 2)))) for s in sizes)
        if n != m or np.any(np.abs(one - other) > 1e-9 * np.max(one + other, initial=0.0)):
            rows.append((f"variations {name}", _size(n, one), _size(m, other)))
    return rows


def _group_sizes(tables: CorrectionTables, bins: Ints) -> dict[str, tuple[int, Floats]]:
    """Number of variations and errors (n_eta, 3, 2) of dk/k at `PTS` and `CHARGES`, by group."""
    end = f"_{tables.provenance.get('period', '')}"
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(tables.variation_names):
        groups.setdefault(re.sub(r"_?\d+$", "", name.removesuffix(end)) or name, []).append(i)
    pt, charge = np.meshgrid(PTS, CHARGES, indexing="ij")
    shifts = np.einsum("pcj,njv->npcv", correction_jacobian(pt, charge), tables.variations[bins])
    return {
        name: (len(rows), np.sqrt(np.sum(shifts[..., rows] ** 2, axis=-1))) for name, rows in groups.items()
    }


def _size(n: int, errors: Floats) -> str:
    if not n:
        return "none"
    typical = np.sqrt(np.mean(errors**2, axis=(0, 2)))
    numbers = ", ".join(f"{x:.3g}" for x in typical)
    return f"{n}; dk/k {numbers} at {', '.join(f'{pt:g}' for pt in PTS)} GeV"


def _smearings(first: Smearing | None, second: Smearing | None, edges: Floats) -> list[tuple[str, str, str]]:
    """The typical sigma_k/k in the common bins; other edges are compared at all edges of both inside them."""
    both = (first, second)
    inner = [np.asarray(m.eta_edges) for m in both if m is not None]
    every = np.unique(np.concatenate([edges, *inner]))
    every = every[(every >= edges[0]) & (every <= edges[-1])]
    centres = np.array([0.5 * (low + high) for low, high in pairwise(every)])
    one, other = (None if m is None else _extra_variance(m, centres) for m in both)
    if one is None and other is None:
        return []
    if one is not None and other is not None and np.allclose(one, other, rtol=1e-9, atol=1e-15):
        return []
    return [("smearing", _sigma_text(one), _sigma_text(other))]


def _extra_variance(smearing: Smearing, eta: Floats) -> Floats:
    """(n, 3) of (sigma_k/k)^2 at `PTS`; zero outside the bins."""
    i = np.searchsorted(smearing.eta_edges, eta, side="right") - 1
    inside = (i >= 0) & (i < len(smearing.a))
    i = np.where(inside, i, 0)
    a, b, c, d = (np.asarray(getattr(smearing, name))[i][:, None] for name in "abcd")
    square = np.array(PTS) ** 2
    variance = np.clip(a + c * square + b * square / (square + d), 0.0, None)
    return np.asarray(np.where(inside[:, None], variance, 0.0))


def _sigma_text(variance: Floats | None) -> str:
    if variance is None:
        return "none"
    numbers = ", ".join(f"{x:.4g}" for x in np.sqrt(np.mean(variance, axis=0)))
    return f"sigma_k/k {numbers} at {', '.join(f'{pt:g}' for pt in PTS)} GeV"
