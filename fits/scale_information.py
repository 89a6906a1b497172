r"""From what 4D bins say about their muons to A, e, M per eta bin, per sector, or as phi harmonics.

With F and v the sums over 4D bins (`ScaleInformation`), muon corrections that are linear in parameters, :math:`x
= X\beta`, give :math:`X^T F X\,\beta = X^T v`. Every closure, split and joint fit is a choice of X.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import chi2 as chi2_distribution

from musclecal.errors import InputError
from musclecal.fits.normal_equations import solve_normal
from musclecal.fits.scale_fit import PARAMETERS, parameter_labels
from musclecal.fits.template_closure import BinInformation
from musclecal.fits.templates import MUON_SHIFTS
from musclecal.records import Floats, ScaleInformation

__all__ = [
    "InformationSolution",
    "eta_design",
    "harmonic_design",
    "scale_information",
    "sector_design",
    "solve_information",
]

_N_SHIFT = len(MUON_SHIFTS)


def scale_information(bins: BinInformation, resonance: str) -> ScaleInformation:
    """The sum over 4D bins, in regions of the muons."""
    binning = bins.binning
    n = binning.n_region
    plus, minus, _, _ = binning.unravel(bins.bins)
    normal = np.zeros((n, n, _N_SHIFT, _N_SHIFT))
    vector = np.zeros((n, _N_SHIFT))
    first, second = slice(0, _N_SHIFT), slice(_N_SHIFT, None)
    np.add.at(normal, (plus, plus), bins.normal[:, first, first])
    np.add.at(normal, (minus, minus), bins.normal[:, second, second])
    np.add.at(normal, (plus, minus), bins.normal[:, first, second])
    np.add.at(normal, (minus, plus), bins.normal[:, second, first])
    np.add.at(vector, plus, bins.vector[:, first])
    np.add.at(vector, minus, bins.vector[:, second])
    weight = np.bincount(plus, bins.events, n) + np.bincount(minus, bins.events, n)
    curvature = np.bincount(plus, bins.events * bins.mean_k[:, 0], n)
    curvature += np.bincount(minus, bins.events * bins.mean_k[:, 1], n)
    return ScaleInformation(
        resonance=resonance,
        eta_edges=np.array(binning.eta_edges),
        phi_sectors=binning.phi_sectors,
        normal=normal.transpose(0, 2, 1, 3).reshape(_N_SHIFT * n, _N_SHIFT * n),
        vector=vector.ravel(),
        chi2=float(bins.chi2.sum()),
        ndf=round(float(bins.ndf.sum())),
        mean_k=curvature / np.where(weight > 0.0, weight, 1.0),
        events_used=float(bins.events.sum()),
        events_selected=bins.events_selected,
    )


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
    return Design(labels, _of_shift(information, name, of_region))


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
    try:
        solution = solve_normal(matrix.T @ information.normal @ matrix, matrix.T @ information.vector, labels)
    except InputError as error:
        raise InputError(f"template fit at {information.resonance}: {error}") from None
    change = float(solution.values @ (matrix.T @ information.vector))
    chi2, ndf = information.chi2 - change, information.ndf - len(labels)
    return InformationSolution(
        labels, solution.values, solution.covariance, chi2, ndf, float(chi2_distribution.sf(chi2, ndf)),
        solution.condition,
    )  # fmt: skip


def fitted_names(parameters: Sequence[str], *, widths: bool) -> tuple[str, ...]:
    """The shifts of an eta bin that are fitted: those of A, e, M in ``parameters``, and the width."""
    return tuple(name for name in PARAMETERS if name in parameters) + (("width",) if widths else ())
