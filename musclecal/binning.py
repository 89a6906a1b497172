"""The named axes of 4D mass histograms, and the only maker of 4D bin numbers.

`Binning`, for fits of one peak per bin: a 4D bin is (i, j, k, l) = (eta bin of mu+, eta bin of mu-, pT bin of mu+,
pT bin of mu-), numbered ((i n_eta + j) n_pt + k) n_pt + l. The mass axis is uniform in ln m, so that a mass scale is a
shift; the generator-level axis has the same step and one bin centred on the resonance mass.

`TemplateBinning`, for the template fit of all bins at once: (region of mu+, region of mu-, pT asymmetry, mean pT), with
regions of eta, or of eta and phi.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musclecal.compiled import innermost, kernel
from musclecal.errors import InputError

__all__ = [
    "Binning",
    "SearchAxis",
    "TemplateBinning",
    "bin_in",
    "bin_of",
    "equal_eta_edges",
    "find_bins",
    "search_axis",
]


@kernel
def bin_of(edges: NDArray[np.float64], x: float) -> int:
    """Number of the bin [edges[i], edges[i+1]) that holds ``x``; -1 outside and for nan."""
    if not (edges[0] <= x < edges[-1]):
        return -1
    low, high = 0, edges.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if x >= edges[middle]:
            low = middle
        else:
            high = middle
    return low


class SearchAxis(NamedTuple):
    """Edges, and how to find the bin of a value at once, without a branch.

    ``edges`` (n + 3,) have -inf before those of the axis, and nan, which nothing reaches, behind them: bin i of the
    axis is number i + 1 of these. The axis is cut into equal cells, ``cells`` a unit from ``low`` on; ``start``
    (n_cell + 2,) is the bin at the lower end of each, with one more cell below and above; the last is number ``top``.
    """

    edges: NDArray[np.float64]
    start: NDArray[np.int32]
    low: float
    cells: float
    top: float


_MOST_CELLS = 100_000
_FEW = 8
"""Edges: so many are compared with faster than a cell is looked up."""


def search_axis(edges: ArrayLike) -> SearchAxis:
    """With cells half as wide as the narrowest bin: at most one edge in each, unless that were too many of them."""
    inner = np.asarray(edges, dtype=np.float64)
    span = inner[-1] - inner[0]
    n = int(min(2.0 * np.ceil(span / np.diff(inner).min()), _MOST_CELLS))
    lower = (
        inner[0] + (np.arange(n) - 1e-6) * span / n
    )  # rounding must not put a value into the cell before its own
    start = np.concatenate([[0], np.searchsorted(inner, lower, side="right"), [len(inner) - 1]])
    outer = np.concatenate([[-np.inf], inner, [np.nan]])
    return SearchAxis(outer, start.astype(np.int32), float(inner[0]), float(n / span), n + 1.0)


@innermost
def _cell_of(axis: SearchAxis, x: float) -> float:
    cell = (x - axis.low) * axis.cells + 1.0
    cell = cell if cell > 0.0 else 0.0  # nan is below
    return cell if cell < axis.top else axis.top


@innermost
def _bin_from(axis: SearchAxis, cell: int, x: float) -> int:
    i = np.int64(axis.start[np.uintp(cell)])
    i += x >= axis.edges[np.uintp(i + 1)]
    while x >= axis.edges[np.uintp(i + 1)]:  # more than one edge in a cell is rare
        i += 1
    return i - 1 if i < axis.edges.size - 2 else -1


@innermost
def bin_in(axis: SearchAxis, x: float) -> int:
    """As `bin_of`, without a search."""
    return _bin_from(axis, int(_cell_of(axis, x)), x)


@innermost
def find_bins(axis: SearchAxis, x: NDArray[np.float64], out: NDArray[np.int32]) -> None:
    """`bin_in` of many values, in loops that are vectorised but for the looking up of cells."""
    edges, n = axis.edges, np.int32(axis.edges.size - 3)
    if n < _FEW:
        for i in range(x.size):
            out[i] = -1
        for k in range(1, n + 1):
            edge = edges[k]
            for i in range(x.size):
                out[i] += np.int32(x[i] >= edge)
        for i in range(x.size):
            out[i] = out[i] if x[i] < edges[n + 1] else np.int32(-1)
    else:
        for i in range(x.size):
            out[i] = np.int32(_cell_of(axis, x[i]))
        for i in range(x.size):
            out[i] = np.int32(_bin_from(axis, out[i], x[i]))


@kernel
def sector_of(phi: float, n_sectors: int) -> int:
    """Number of the equal sector of -pi <= phi <= pi; whole turns do not matter.

    pi, also where it was rounded up to single precision, is in the last sector.
    """
    turns = phi / (2.0 * math.pi) + 0.5
    if not 0.0 <= turns <= 1.0 + 1e-6:
        turns -= math.floor(turns)
    return min(int(turns * n_sectors), n_sectors - 1)


def equal_eta_edges(n_bins: int, eta_max: float) -> tuple[float, ...]:
    """Edges of ``n_bins`` equal bins of -eta_max < eta < eta_max, rounded to 12 digits."""
    return tuple(float(x) for x in np.round(np.linspace(-eta_max, eta_max, n_bins + 1), 12))


def _checked(edges: ArrayLike, axis: str) -> tuple[float, ...]:
    values = np.asarray(edges, dtype=np.float64)
    if values.ndim != 1 or values.size < 2:
        raise InputError(f"{axis}: need at least two edges, got {values.tolist()}")
    if not np.all(np.isfinite(values)) or np.any(np.diff(values) <= 0.0):
        raise InputError(f"{axis}: edges must be finite and increasing, got {values.tolist()}")
    return tuple(float(x) for x in values)


@dataclass(frozen=True)
class Binning:
    """Axes of a 4D mass histogram.

    Parameters
    ----------
    eta_edges : (n_eta + 1,), any increasing values.
    pt_edges : (n_pt + 1,), GeV, the same for both charges.
    mass_window : (low, high), GeV.
    mass_bins : number of mass bins, uniform in ln m.
    mass_reference : mass of the resonance, GeV.
    pt_scaled : the pT axes hold pT mass_reference/m.

    Raises
    ------
    InputError : edges not increasing, a window that does not contain the resonance, no bins.
    """

    eta_edges: tuple[float, ...]
    pt_edges: tuple[float, ...]
    mass_window: tuple[float, float]
    mass_bins: int
    mass_reference: float
    pt_scaled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta_edges", _checked(self.eta_edges, "eta_edges"))
        object.__setattr__(self, "pt_edges", _checked(self.pt_edges, "pt_edges"))
        low, high = _checked(self.mass_window, "mass_window")
        object.__setattr__(self, "mass_window", (low, high))
        if self.pt_edges[0] <= 0.0:
            raise InputError(f"pt_edges: must be positive, got {self.pt_edges[0]}")
        if self.mass_bins < 4:
            raise InputError(f"mass_bins: need at least 4, got {self.mass_bins}")
        if not low < self.mass_reference < high:
            raise InputError(f"mass_window: {low} to {high} GeV does not contain {self.mass_reference} GeV")

    @property
    def n_eta(self) -> int:
        """Number of eta bins."""
        return len(self.eta_edges) - 1

    @property
    def n_pt(self) -> int:
        """Number of pT bins."""
        return len(self.pt_edges) - 1

    @property
    def n_bins(self) -> int:
        """Number of 4D bins, occupied or not."""
        return (self.n_eta * self.n_pt) ** 2

    @property
    def log_step(self) -> float:
        """Width of the mass bins in ln m."""
        low, high = self.mass_window
        return math.log(high / low) / self.mass_bins

    @cached_property
    def mass_edges(self) -> NDArray[np.float64]:
        """(mass_bins + 1,), GeV."""
        low, _ = self.mass_window
        return low * np.exp(self.log_step * np.arange(self.mass_bins + 1))

    @cached_property
    def generator_range(self) -> tuple[int, int]:
        """First and last number j of the generator-level mass bins: bin j is centred on m_ref exp(j log_step).

        It reaches 12 % below and above the window, more than six resolutions.
        """
        low, high = self.mass_window
        first = math.floor(math.log(0.88 * low / self.mass_reference) / self.log_step)
        last = math.ceil(math.log(1.12 * high / self.mass_reference) / self.log_step)
        return first, last

    @cached_property
    def generator_masses(self) -> NDArray[np.float64]:
        """(n_gen,), GeV: centres in ln m of the generator-level mass bins."""
        first, last = self.generator_range
        return self.mass_reference * np.exp(self.log_step * np.arange(first, last + 1))

    def unravel(self, bins: ArrayLike) -> tuple[NDArray[np.int64], ...]:
        """(eta bin +, eta bin -, pT bin +, pT bin -) of 4D bin numbers."""
        shape = (self.n_eta, self.n_eta, self.n_pt, self.n_pt)
        return tuple(np.asarray(axis, dtype=np.int64) for axis in np.unravel_index(np.asarray(bins), shape))

    def describe(self, number: int) -> str:
        """A 4D bin in words, for messages and figure titles."""
        i, j, k, m = (int(x) for x in self.unravel(number))
        eta, pt = self.eta_edges, self.pt_edges
        return (
            f"{eta[i]:g} < eta+ < {eta[i + 1]:g}, {eta[j]:g} < eta- < {eta[j + 1]:g}, "
            f"{pt[k]:g} < pT+ < {pt[k + 1]:g}, {pt[m]:g} < pT- < {pt[m + 1]:g} GeV"
        )


@dataclass(frozen=True)
class TemplateBinning:
    """Axes of the histograms of the template fit.

    A muon's region is eta bin x phi sector. The other two axes, and the limits of each muon, are in scaled pT,
    pT mass_reference/m, which does not change under a common momentum scale: the asymmetry
    (pT+ - pT-)/(pT+ + pT-), and half the sum of both. The 4D bin is numbered
    ((region+ n_region + region-) n_asymmetry + a) n_pt + p.

    A cut on pT itself opens with the mass, and a background that is smooth in m is not smooth in a 4D bin on the cut.

    Parameters
    ----------
    eta_edges : (n_eta + 1,), any increasing values.
    asymmetry_edges : (n_asymmetry + 1,), pairs outside are not used.
    pt_edges : (n_pt + 1,), GeV, of the scaled mean pT; pairs outside are not used.
    muon_pt : (low, high), GeV, of the scaled pT of each muon. The sample must reach down to pT = low times
        (lower end of the window)/mass_reference, up to the like, and further by the shifts of the fit (1 %).
    mass_window : (low, high), GeV; mass_bins equal bins.
    mass_reference : mass of the resonance, GeV.
    phi_sectors : equal sectors of -pi <= phi < pi.

    Raises
    ------
    InputError : edges not increasing, a window that does not contain the resonance, too few bins.
    """

    eta_edges: tuple[float, ...]
    asymmetry_edges: tuple[float, ...]
    pt_edges: tuple[float, ...]
    muon_pt: tuple[float, float]
    mass_window: tuple[float, float]
    mass_bins: int
    mass_reference: float
    phi_sectors: int = 1

    def __post_init__(self) -> None:
        for axis in ("eta_edges", "asymmetry_edges", "pt_edges", "muon_pt", "mass_window"):
            object.__setattr__(self, axis, _checked(getattr(self, axis), axis))
        for axis in ("muon_pt", "mass_window"):
            if len(getattr(self, axis)) != 2:
                raise InputError(f"{axis}: need a low and a high value, got {getattr(self, axis)}")
        low, high = self.mass_window
        if not low < self.mass_reference < high:
            raise InputError(f"mass_window: {low} to {high} GeV does not contain {self.mass_reference} GeV")
        if self.mass_bins < 4:
            raise InputError(f"mass_bins: need at least 4, got {self.mass_bins}")
        if self.phi_sectors < 1:
            raise InputError(f"phi_sectors: need at least 1, got {self.phi_sectors}")

    @property
    def n_eta(self) -> int:
        """Number of eta bins."""
        return len(self.eta_edges) - 1

    @property
    def n_region(self) -> int:
        """Number of regions of a muon, eta bin x phi sector."""
        return self.n_eta * self.phi_sectors

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Bins on the axes (region+, region-, asymmetry, mean pT)."""
        return self.n_region, self.n_region, len(self.asymmetry_edges) - 1, len(self.pt_edges) - 1

    @property
    def n_bins(self) -> int:
        """Number of 4D bins, occupied or not."""
        return math.prod(self.shape)

    @property
    def mass_centres(self) -> NDArray[np.float64]:
        """(mass_bins,), GeV."""
        low, high = self.mass_window
        return np.asarray(
            low + (high - low) / self.mass_bins * (np.arange(self.mass_bins) + 0.5), dtype=np.float64
        )

    @property
    def phi_centres(self) -> NDArray[np.float64]:
        """(phi_sectors,), rad."""
        turns = (np.arange(self.phi_sectors) + 0.5) / self.phi_sectors - 0.5
        return np.asarray(2.0 * math.pi * turns, dtype=np.float64)

    def unravel(self, bins: ArrayLike) -> tuple[NDArray[np.int64], ...]:
        """(region of mu+, region of mu-, asymmetry bin, pT bin) of 4D bin numbers."""
        return tuple(np.asarray(x, dtype=np.int64) for x in np.unravel_index(np.asarray(bins), self.shape))

    def without_phi(self, bins: ArrayLike) -> NDArray[np.int64]:
        """The numbers of the same 4D bins with all phi sectors together."""
        plus, minus, a, p = self.unravel(bins)
        shape = (self.n_eta, self.n_eta, *self.shape[2:])
        together = (plus // self.phi_sectors, minus // self.phi_sectors, a, p)
        return np.asarray(np.ravel_multi_index(together, shape), dtype=np.int64)
