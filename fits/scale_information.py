r"""From what 4D bins say about their muons to A, e, M per eta bin, per sector, or as phi harmonics.

With F and v the sums over 4D bins (`ScaleInformation`), muon corrections that are linear in parameters,
:math:`x = X\beta`, give :math:`X^T F X\,\beta = X^T v`. Every closure, split and joint fit is a choice of X.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import chi2 as chi2_distribution

from musclecal.errors import InputError
from musclecal.fits.normal_equations import solve_normal, undiluted
from musclecal.fits.scale_fit import PARAMETERS, parameter_labels
from musclecal.fits.template_closure import BinInformation
from musclecal.fits.templates import MUON_SHIFTS
from musclecal.records import Floats, Ints, ScaleCalibration, ScaleInformation, TemplateFit

__all__ = [
    "Design",
    "EtaSolution",
    "InformationSolution",
    "eta_design",
    "harmonic_design",
    "region_design",
    "require_sectors",
    "scale_information",
    "sector_design",
    "solve_eta_bins",
    "solve_information",
    "template_calibration",
    "width_design",
]

_N_SHIFT = len(MUON_SHIFTS)


def scale_information(bins: BinInformation, resonance: str) -> ScaleInformation:
    """The sum over 4D bins, in regions of the muons."""
    binning = bins.binning
    n = binning.n_region
    plus, minus, _, _ = binning.unravel(bins.bins)
    vector = np.zeros((n, _N_SHIFT))
    np.add.at(vector, plus, bins.vector[:, :_N_SHIFT])
    np.add.at(vector, minus, bins.vector[:, _N_SHIFT:])
    weight = np.bincount(plus, bins.events, n) + np.bincount(minus, bins.events, n)
    curvature = np.bincount(plus, bins.events * bins.mean_k[:, 0], n)
    curvature += np.bincount(minus, bins.events * bins.mean_k[:, 1], n)
    return ScaleInformation(
        resonance=resonance,
        eta_edges=np.array(binning.eta_edges),
        phi_sectors=binning.phi_sectors,
        normal=_summed(bins.normal, plus, minus, n),
        vector=vector.ravel(),
        chi2=float(bins.chi2.sum()),
        ndf=round(float(bins.ndf.sum())),
        mean_k=curvature / np.where(weight > 0.0, weight, 1.0),
        events_used=float(bins.events.sum()),
        events_selected=bins.events_selected,
        noise=_summed(bins.noise, plus, minus, n),
    )


def _summed(of_bins: Floats, plus: Ints, minus: Ints, n: int) -> Floats:
    """(4 n, 4 n) sum of the (8, 8) matrices of the 4D bins, in the regions ``plus``, ``minus`` of their muons."""
    total = np.zeros((n, n, _N_SHIFT, _N_SHIFT))
    first, second = slice(0, _N_SHIFT), slice(_N_SHIFT, None)
    np.add.at(total, (plus, plus), of_bins[:, first, first])
    np.add.at(total, (minus, minus), of_bins[:, second, second])
    np.add.at(total, (plus, minus), of_bins[:, first, second])
    np.add.at(total, (minus, plus), of_bins[:, second, first])
    return np.asarray(total.transpose(0, 2, 1, 3).reshape(_N_SHIFT * n, _N_SHIFT * n))


@dataclass(frozen=True)
class Design:
    """Muon corrections as a linear function of parameters.

    Attributes
    ----------
    labels : (n_par,) names of the parameters.
    matrix : (4 n_region, n_par), rows as in `ScaleInformation`.
    """

    labels: tuple[str, ...]
    matrix: Floats


def _regions(information: ScaleInformation) -> tuple[int, int]:
    """Numbers of eta bins and of phi sectors."""
    return len(information.eta_edges) - 1, information.phi_sectors


def region_design(
    information: ScaleInformation, name: str, of_region: Floats, labels: Sequence[str]
) -> Design:
    """Any function of the region: the shift ``name`` of a muon is ``of_region`` (n_region, n_par) times parameters."""
    return Design(tuple(labels), _of_shift(information, name, of_region))


def _of_shift(information: ScaleInformation, name: str, of_region: Floats) -> Floats:
    """(4 n_region, n_par) design of one shift from (n_region, n_par)."""
    n_eta, sectors = _regions(information)
    out = np.zeros((n_eta * sectors, _N_SHIFT, of_region.shape[1]))
    out[:, MUON_SHIFTS.index(name)] = of_region
    return out.reshape(-1, of_region.shape[1])


def eta_design(information: ScaleInformation, names: Sequence[str]) -> Design:
    """One parameter of each of ``names`` (of A, e, M, width) per eta bin, parameters of an eta bin together."""
    n_eta, sectors = _regions(information)
    of_region = np.repeat(np.eye(n_eta), sectors, axis=0)
    blocks = np.stack([_of_shift(information, name, of_region) for name in names], axis=2)
    return Design(
        parameter_labels(names, information.eta_edges.tolist()), blocks.reshape(blocks.shape[0], -1)
    )


def width_design(information: ScaleInformation) -> Design:
    """A width per eta bin; nothing where every 4D bin had a width of its own."""
    widths = eta_design(information, ("width",))
    if np.any(information.normal @ widths.matrix):
        return widths
    return Design((), np.zeros((len(information.vector), 0)))


def require_sectors(phi_sectors: int, harmonics: Sequence[int]) -> None:
    """Raise `InputError` for a harmonic that the phi sectors cannot resolve."""
    for harmonic in harmonics:
        if not 0 < 2 * harmonic < phi_sectors:
            raise InputError(
                f"phi_sectors: harmonic {harmonic} needs more than {2 * harmonic} phi sectors, "
                f"there are {phi_sectors}"
            )


def sector_design(information: ScaleInformation, names: Sequence[str]) -> Design:
    """One parameter of each of ``names`` per region, eta bin x phi sector."""
    n_eta, sectors = _regions(information)
    blocks = np.stack([_of_shift(information, name, np.eye(n_eta * sectors)) for name in names], axis=2)
    edges = information.eta_edges
    labels = tuple(
        f"{name}[{edges[i]:g}, {edges[i + 1]:g}; sector {s}]"
        for i in range(n_eta)
        for s in range(sectors)
        for name in names
    )
    return Design(labels, blocks.reshape(blocks.shape[0], -1))


def harmonic_design(
    information: ScaleInformation, name: str, harmonic: int, *, per_eta: bool = False
) -> Design:
    """Amplitudes of cos(h phi) and sin(h phi) of one of A, e, M: common to all eta, or per eta bin.

    Averaged over a sector the wave is smaller by sin(h w/2)/(h w/2), w the width of a sector; this is in the design.
    """
    n_eta, sectors = _regions(information)
    width = 2.0 * np.pi / sectors
    phi = -np.pi + width * (np.arange(sectors) + 0.5)
    reduced = np.sinc(harmonic * width / (2.0 * np.pi))
    waves = reduced * np.stack([np.cos(harmonic * phi), np.sin(harmonic * phi)], axis=1)
    eta = np.eye(n_eta) if per_eta else np.ones((n_eta, 1))
    of_region = np.einsum("ie,sw->isew", eta, waves).reshape(n_eta * sectors, -1)
    edges = information.eta_edges
    bins = [f"[{low:g}, {high:g}]" for low, high in pairwise(edges)]
    where = bins if per_eta else [""]
    labels = tuple(f"{name} {wave}({harmonic} phi){w}" for w in where for wave in ("cos", "sin"))
    return region_design(information, name, of_region, labels)


@dataclass(frozen=True)
class InformationSolution:
    """Corrections still to be applied.

    Attributes
    ----------
    labels : (n_par,). values : (n_par,). covariance : (n_par, n_par).
    chi2, ndf, p_value : of the template fit with them applied.
    condition : of the normal matrix scaled to unit diagonal.
    """

    labels: tuple[str, ...]
    values: Floats
    covariance: Floats
    chi2: float
    ndf: int
    p_value: float
    condition: float

    def only(self, rows: Sequence[int]) -> "InformationSolution":
        """Some of the parameters, the others marginalised."""
        index = np.asarray(rows)
        return InformationSolution(
            tuple(self.labels[r] for r in index), self.values[index], self.covariance[np.ix_(index, index)],
            self.chi2, self.ndf, self.p_value, self.condition,
        )  # fmt: skip


def solve_information(information: ScaleInformation, *designs: Design) -> InformationSolution:
    """Fit the parameters of all ``designs`` together.

    Raises
    ------
    InputError : parameters that the sample does not fix.
    """
    matrix = np.concatenate([design.matrix for design in designs], axis=1)
    labels = tuple(label for design in designs for label in design.labels)
    normal, vector = matrix.T @ information.normal @ matrix, matrix.T @ information.vector
    noise = matrix.T @ information.noise @ matrix
    try:
        solution = solve_normal(*undiluted(normal, vector, noise), labels)
    except InputError as error:
        raise InputError(f"template fit at {information.resonance}: {error}") from None
    values = solution.values
    chi2 = information.chi2 - float(2.0 * values @ vector - values @ normal @ values)
    ndf = information.ndf - len(labels)
    return InformationSolution(
        labels, values, solution.covariance, chi2, ndf, float(chi2_distribution.sf(chi2, ndf)),
        solution.condition,
    )  # fmt: skip


@dataclass(frozen=True)
class EtaSolution:
    """Some of A, e, M per eta bin, the widths marginalised.

    Attributes
    ----------
    parameter_names : of A, e, M in this order.
    values : (n_eta, n_fitted). covariance : (n_eta n_fitted, ...), parameters of an eta bin together.
    extra_variance, extra_variance_error : (n_eta,) (sigma_k/k)^2 that the data lack (negative: have too much); (0,)
        where every 4D bin had a width of its own.
    chi2, ndf, p_value : of the template fit. condition : of the normal matrix scaled to unit diagonal.
    """

    parameter_names: tuple[str, ...]
    values: Floats
    covariance: Floats
    extra_variance: Floats
    extra_variance_error: Floats
    chi2: float
    ndf: int
    p_value: float
    condition: float


def solve_eta_bins(information: ScaleInformation, parameters: Sequence[str]) -> EtaSolution:
    """Fit some of A, e, M and the width per eta bin.

    Raises
    ------
    InputError : parameters that the sample does not fix.
    """
    names = tuple(name for name in PARAMETERS if name in parameters)
    solution = solve_information(information, eta_design(information, names), width_design(information))
    n_scale = (len(information.eta_edges) - 1) * len(names)
    scale = solution.only(range(n_scale))
    return EtaSolution(
        parameter_names=names,
        values=scale.values.reshape(-1, len(names)),
        covariance=scale.covariance,
        extra_variance=solution.values[n_scale:],
        extra_variance_error=np.sqrt(np.diagonal(solution.covariance)[n_scale:]),
        chi2=solution.chi2,
        ndf=solution.ndf,
        p_value=solution.p_value,
        condition=solution.condition,
    )


def template_calibration(fit: TemplateFit, bins: BinInformation) -> ScaleCalibration:
    """The calibration of a template fit of A, e and M to muons as measured; ``bins`` are those of its last point.

    A pull of a 4D bin is that of a common scale of both its muons, at the solution.

    Raises
    ------
    InputError : parameters that the sample does not fix.
    """
    information = fit.information
    solution = solve_eta_bins(information, PARAMETERS)
    values = solution.values + np.stack([fit.point.A, fit.point.e, fit.point.M], axis=1)
    return ScaleCalibration(
        eta_edges=information.eta_edges,
        A=values[:, 0].copy(),
        e=values[:, 1].copy(),
        M=values[:, 2].copy(),
        covariance=solution.covariance,
        chi2=solution.chi2,
        ndf=solution.ndf,
        p_value=solution.p_value,
        rank=values.size,
        condition=solution.condition,
        pulls=_pulls_of_common_scale(bins, solution),
        bins=bins.bins,
        mean_k=information.mean_k,
        events_fraction=information.events_fraction,
        converged_fraction=1.0,
        passes=fit.passes,
        residual_chi2=fit.last_change,
    )


def _pulls_of_common_scale(bins: BinInformation, solution: EtaSolution) -> Floats:
    """(n_bin,) score of a common scale of both muons at the solution, over its standard deviation."""
    widths = solution.extra_variance if len(solution.extra_variance) else np.zeros(len(solution.values))
    shifts = np.concatenate([solution.values, widths[:, None]], axis=1)
    plus, minus, _, _ = bins.binning.unravel(bins.bins)
    sectors = bins.binning.phi_sectors
    of_bin = np.concatenate([shifts[plus // sectors], shifts[minus // sectors]], axis=1)
    common = np.array([1.0, 0.0, 0.0, 0.0] * 2)
    score = bins.vector @ common - np.einsum("p,bpq,bq->b", common, bins.normal, of_bin)
    variance = np.einsum("p,bpq,q->b", common, bins.normal, common)
    return np.asarray(np.where(variance > 0.0, score / np.sqrt(np.where(variance > 0.0, variance, 1.0)), 0.0))
