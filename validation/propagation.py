r"""What the uncertainties of a muon calibration do to a boson mass: a linearised template fit.

Expected counts are n + d dm + T zeta, with d = dn/dm, T = dn/dtheta v_i per independent variation v_i (zeta ~ N(0, 1)),
and a free yield per group of cells. Columns are divided by sqrt(n), and their part along the yields is taken off, which
profiles the yields exactly. Then

.. math:: S = \frac{dm}{d\theta} = \frac{d\cdot\partial n/\partial\theta}{d\cdot d}
   \quad\text{(calibration fixed)}, \qquad
   \sigma_m^{-2} = d\cdot d - d\cdot T\,(T^T T + 1)^{-1}\,T^T\!\cdot d \quad\text{(nuisances in the fit)} .

=============  ===============================================================================================
unprofiled     sqrt(S V S^T): the calibration is fixed in the fit, and wrong by one of its own errors
frozen         sqrt(sigma_m^2 - sigma_m^2 with the nuisances of a source fixed): conditional; not additive
constrained    norm of cov(m, zeta_i) over a source: what its own measurement adds to sigma_m; adds up in quadrature
=============  ===============================================================================================

Not for: templates (`musclecal.validation.w_templates`, `z_templates`), backgrounds, theory uncertainties.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from musclecal.covariance import eigenvariations
from musclecal.errors import InputError
from musclecal.records import BosonTemplates, Floats, MassImpacts

__all__ = [
    "LUMINOSITY",
    "Source",
    "calibration_sources",
    "derivative_noise",
    "fitted_shift",
    "impacts_table",
    "mass_impacts",
    "only_groups",
    "sensitivity_by_group",
]

LUMINOSITY = 16.8
"""1/fb, of the W mass measurement of CMS (arXiv:2412.13872)."""

_MEV = 1e3
_SCALE, _RESOLUTION = ("A", "e", "M"), ("a", "b", "c")


@dataclass(frozen=True)
class Source:
    """Independent variations of one kind.

    Attributes
    ----------
    name : for tables.
    scale : (n_variation, 3 n_eta) one standard deviation each of A0, e0, M0, A1, ...
    resolution : (n_variation, 3 n_eta) of a0, b0, c0, a1, ...
    """

    name: str
    scale: Floats
    resolution: Floats

    def __len__(self) -> int:
        return len(self.scale)


def _spread(variations: Floats, names: Sequence[str], all_names: Sequence[str], n_eta: int) -> Floats:
    """(n_variation, 3 n_eta) of variations (n_variation, n_eta n_name) of some of the parameters, the others zero."""
    full = np.zeros((len(variations), n_eta, len(all_names)))
    full[:, :, [all_names.index(name) for name in names]] = variations.reshape(-1, n_eta, len(names))
    return full.reshape(len(variations), -1)


def _variations(
    covariance: Floats, what: str, names: Sequence[str], all_names: Sequence[str], n_eta: int
) -> Floats:
    if not names or len(set(names)) != len(names) or not set(names) <= set(all_names):
        raise InputError(f"{what}: parameters {tuple(names)} must be some of {tuple(all_names)}")
    n = n_eta * len(names)
    if np.shape(covariance) != (n, n):
        raise InputError(
            f"{what}: a covariance of shape {np.shape(covariance)}, expected {(n, n)} for {n_eta} eta bins "
            f"and {', '.join(names)}"
        )
    labels = [f"{what} {name}{i}" for i in range(n_eta) for name in names]
    return _spread(eigenvariations(covariance, labels), names, all_names, n_eta)


def calibration_sources(
    n_eta: int,
    *,
    calibration: Floats | None = None,
    s: float = 1.0,
    closure: Floats | None = None,
    closure_parameters: Sequence[str] = ("A", "M"),
    mass_error: float | None = None,
    resolution: Floats | None = None,
    resolution_parameters: Sequence[str] = ("a", "c"),
) -> tuple[Source, ...]:
    """The rows of the table: those of the uncertainties that are given.

    Parameters
    ----------
    calibration : (3 n_eta, 3 n_eta) of `ScaleCalibration`, order A0, e0, M0, A1, ...; s : factor on its errors.
    closure : (n_eta n_fitted, ...) of `Closure`, parameters of an eta bin together: closure_parameters.
    mass_error : relative error of the mass of the closure resonance; it moves all A together.
    resolution : (n_eta n_fitted, ...), parameters of an eta bin together: resolution_parameters, of a, b, c.

    Raises
    ------
    InputError : shapes, parameter names, or a covariance that is none; nothing given.
    """
    sources = []
    none = np.zeros((0, 3 * n_eta))

    def add(name: str, scale: Floats = none, widths: Floats = none) -> None:
        n = max(len(scale), len(widths))
        empty = np.zeros((n, 3 * n_eta))
        sources.append(Source(name, scale if len(scale) else empty, widths if len(widths) else empty))

    if calibration is not None:
        if not (np.isfinite(s) and s >= 0.0):
            raise InputError(f"s: a factor of at least zero, got {s}")
        label = "calibration statistics" if s == 1.0 else f"calibration statistics x {s:.3g}"
        add(label, s * _variations(calibration, "calibration", _SCALE, _SCALE, n_eta))
    if closure is not None:
        add("Z closure statistics", _variations(closure, "closure", closure_parameters, _SCALE, n_eta))
    if mass_error is not None:
        if not (np.isfinite(mass_error) and mass_error >= 0.0):
            raise InputError(f"mass_error: a relative error of at least zero, got {mass_error}")
        add("resonance mass", mass_error * np.tile([1.0, 0.0, 0.0], n_eta)[None, :])
    if resolution is not None:
        widths = _variations(resolution, "resolution", resolution_parameters, _RESOLUTION, n_eta)
        add("resolution", widths=widths)
    if not sources:
        raise InputError("propagation: give a calibration, closure or resolution covariance, or a mass error")
    return tuple(sources)


@dataclass(frozen=True)
class _Columns:
    """Derivatives over sqrt(n) at some luminosity, orthogonal to the free yields.

    Attributes
    ----------
    mass : (n_cell,) 1/GeV. scale, resolution : (n_cell, 3 n_eta). weight : (n_cell,) sqrt(n).
    """

    mass: Floats
    scale: Floats
    resolution: Floats
    weight: Floats
    projector: Floats

    def without_yields(self, column: Floats) -> Floats:
        """``column`` (n_cell, ...) minus its part along the yields."""
        return np.asarray(column - self.projector.T @ (self.projector @ column))


def _columns(templates: BosonTemplates, luminosity: float, free_yields: bool) -> _Columns:
    if not (np.isfinite(luminosity) and luminosity > 0.0):
        raise InputError(f"luminosity: must be positive, got {luminosity}")
    filled = templates.counts > 0.0
    if not np.any(filled):
        raise InputError(f"{templates.boson} templates: no events in any cell")
    weight = np.sqrt(luminosity * np.where(filled, templates.counts, 0.0))
    n_group = len(templates.group_names) if free_yields else 0
    projector = np.zeros((n_group, len(weight)))
    if free_yields:
        projector[templates.groups, np.arange(len(weight))] = weight
        norm = np.linalg.norm(projector, axis=1, keepdims=True)
        projector /= np.where(norm > 0.0, norm, 1.0)
    over = np.where(filled, luminosity / np.where(filled, weight, 1.0), 0.0)
    bare = _Columns(np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0)), weight, projector)
    columns = replace(
        bare,
        mass=bare.without_yields(over * templates.mass_derivative),
        scale=bare.without_yields(over[:, None] * templates.scale_derivative),
        resolution=bare.without_yields(over[:, None] * templates.resolution_derivative),
    )
    if not columns.mass @ columns.mass > 0.0:
        raise InputError(f"{templates.boson} templates: nothing in them depends on the mass")
    return columns


def only_groups(templates: BosonTemplates, groups: Sequence[int]) -> BosonTemplates:
    """A fit to some yield groups alone, one charge for example. Raises `InputError` for none or unknown ones."""
    wanted = list(groups)
    if not wanted or not all(0 <= g < len(templates.group_names) for g in wanted):
        raise InputError(f"groups: {wanted}, there are {len(templates.group_names)}")
    rows = np.isin(templates.groups, wanted)
    number = np.full(len(templates.group_names), -1)
    number[sorted(set(wanted))] = np.arange(len(set(wanted)))
    return replace(
        templates,
        groups=number[templates.groups[rows]],
        group_names=tuple(templates.group_names[g] for g in sorted(set(wanted))),
        counts=templates.counts[rows],
        mass_derivative=templates.mass_derivative[rows],
        mass_noise=templates.mass_noise[rows],
        scale_derivative=templates.scale_derivative[rows],
        resolution_derivative=templates.resolution_derivative[rows],
    )


def sensitivity_by_group(templates: BosonTemplates, *, free_yields: bool = True) -> Floats:
    """(n_group, 3 n_eta) what the cells of each yield group add to S, in MeV per unit of A0, e0, M0, A1, ...

    The sum over groups is `MassImpacts.scale_sensitivity`.
    """
    columns = _columns(templates, 1.0, free_yields)
    per_cell = columns.mass[:, None] * columns.scale
    total = np.zeros((len(templates.group_names), per_cell.shape[1]))
    np.add.at(total, templates.groups, per_cell)
    return np.asarray(_MEV * total / (columns.mass @ columns.mass))


def fitted_shift(templates: BosonTemplates, counts: Floats, *, free_yields: bool = True) -> float:
    """Shift in MeV of the fitted mass for ``counts`` (n_cell,) for 1/fb in place of those of the templates.

    The yields are scaled group by group to those of the templates first, so that large shifts stay linear in the mass.
    """
    if np.shape(counts) != templates.counts.shape:
        raise InputError(f"counts: shape {np.shape(counts)}, the templates have {templates.counts.shape}")
    columns = _columns(templates, 1.0, free_yields)
    expected = templates.counts
    if free_yields:
        n_group = len(templates.group_names)
        ratio = np.bincount(templates.groups, expected, n_group) / np.bincount(
            templates.groups, counts, n_group
        )
        counts = counts * ratio[templates.groups]
    filled = columns.weight > 0.0
    residual = np.where(filled, (counts - expected) / np.where(filled, columns.weight, 1.0), 0.0)
    return float(_MEV * (columns.mass @ columns.without_yields(residual)) / (columns.mass @ columns.mass))


def derivative_noise(templates: BosonTemplates, *, free_yields: bool = True) -> float:
    """Part of the information on the mass that is noise of the draws: unprofiled shifts are too small by this."""
    columns = _columns(templates, 1.0, free_yields)
    counts = np.where(templates.counts > 0.0, templates.counts, np.inf)
    return float(np.sum(templates.mass_noise / counts) / (columns.mass @ columns.mass))


def _variance(mass: Floats, nuisances: Floats) -> float:
    """sigma_m^2 in GeV^2; ``nuisances`` (n_cell, n_nuisance)."""
    information = float(mass @ mass)
    if nuisances.shape[1]:
        along = nuisances.T @ mass
        information -= float(along @ cho_solve(_constrained(nuisances), along))
    return 1.0 / information


def _constrained(nuisances: Floats) -> tuple[Floats, bool]:
    """Cholesky factor of T^T T + 1."""
    factor: tuple[Floats, bool] = cho_factor(nuisances.T @ nuisances + np.eye(nuisances.shape[1]))
    return factor


def mass_impacts(
    templates: BosonTemplates,
    sources: Sequence[Source],
    *,
    luminosity: float = LUMINOSITY,
    free_yields: bool = True,
) -> MassImpacts:
    """Impacts of ``sources`` (`calibration_sources`) on the mass, at ``luminosity`` in 1/fb.

    Parameters
    ----------
    free_yields : a yield per group of cells is fitted along; otherwise all are known.

    Raises
    ------
    InputError : no source, sources of another number of eta bins, empty templates, a luminosity that is not positive.
    """
    if not sources:
        raise InputError("propagation: no source")
    wrong = [x.name for x in sources if x.scale.shape[1] != 3 * templates.n_eta]
    if wrong:
        raise InputError(f"{wrong[0]}: not the {templates.n_eta} eta bins of the templates")
    columns = _columns(templates, luminosity, free_yields)
    information = float(columns.mass @ columns.mass)
    scale, resolution = ((columns.mass @ c) / information for c in (columns.scale, columns.resolution))
    each = [source.scale @ scale + source.resolution @ resolution for source in sources]
    parts = [columns.scale @ x.scale.T + columns.resolution @ x.resolution.T for x in sources]
    everything = np.concatenate(parts, axis=1)
    total = _variance(columns.mass, everything)
    shifts = -total * cho_solve(_constrained(everything), everything.T @ columns.mass)
    ends = np.cumsum([len(source) for source in sources])
    constrained = [np.linalg.norm(part) for part in np.split(shifts, ends[:-1])]
    others = [[part for j, part in enumerate(parts) if j != i] for i in range(len(parts))]
    none = np.zeros((len(columns.mass), 0))
    fixed = [_variance(columns.mass, np.concatenate([none, *other], axis=1)) for other in others]
    return MassImpacts(
        boson=templates.boson,
        luminosity=float(luminosity),
        eta_edges=np.asarray(templates.eta_edges, dtype=np.float64),
        sources=tuple(source.name for source in sources),
        n_nuisances=tuple(len(source) for source in sources),
        unprofiled=_MEV * np.array([np.linalg.norm(part) for part in each]),
        frozen=_MEV * np.sqrt(np.clip(total - np.array(fixed), 0.0, None)),
        constrained=_MEV * np.array(constrained),
        unprofiled_total=float(_MEV * np.linalg.norm(np.concatenate(each))),
        frozen_total=float(_MEV * np.sqrt(max(total - 1.0 / information, 0.0))),
        constrained_total=float(_MEV * np.linalg.norm(shifts)),
        statistical=float(_MEV / np.sqrt(information)),
        total_error=float(_MEV * np.sqrt(total)),
        data_error=float(_MEV * np.sqrt(total - shifts @ shifts)),
        scale_sensitivity=_MEV * scale.reshape(-1, 3),
        resolution_sensitivity=_MEV * resolution.reshape(-1, 3),
        nuisance_unprofiled=_MEV * np.concatenate(each),
        nuisance_constrained=_MEV * shifts,
    )


def impacts_table(*impacts: MassImpacts) -> str:
    """Markdown: a row per source, and for each mass the columns unprofiled, frozen and constrained, in MeV."""
    if not impacts or any(x.sources != impacts[0].sources for x in impacts):
        raise InputError("table: impacts of the same sources are needed")
    columns = ("unprofiled", "frozen", "constrained")
    lines = ["| source | nuisances |" + "".join(f" m_{x.boson} {c} |" for x in impacts for c in columns)]
    lines.append("|---|---|" + "---|" * (3 * len(impacts)))
    for i, name in enumerate(impacts[0].sources):
        values = "".join(f" {getattr(x, c)[i]:.2f} |" for x in impacts for c in columns)
        lines.append(f"| {name} | {impacts[0].n_nuisances[i]} |{values}")
    totals = "".join(f" {getattr(x, c + '_total'):.2f} |" for x in impacts for c in columns)
    lines.append(f"| calibration, total | {sum(impacts[0].n_nuisances)} |{totals}")
    errors = "".join(f" {x.statistical:.2f} | {x.data_error:.2f} | {x.total_error:.2f} |" for x in impacts)
    lines.append(f"| fixed: statistics; fit: data, all | |{errors}")
    return "\n".join(lines)
