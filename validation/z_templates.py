r"""Templates of a mass fit to pairs of Z decays, in mass x signed eta of the muon with the larger abs(eta).

Each pair is integrated over the measurement of one muon, with one random measurement of the other, and the other way
round; what is varied is always the muon that is integrated over. Its measured curvature K that puts the pair on an edge
E of the mass moves as in `musclecal.validation.w_templates`, as do the cuts on its pT. d/dm comes from the weights
d ln BW/dm of the events (`musclecal.boson_simulation`).

A mass goes as 1/sqrt(k+ k-) here, which leaves out 5e-6 of a shift (mass of the muon).

Not for: backgrounds, efficiencies, or a description of data.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from musclecal.binning import bin_of, equal_eta_edges
from musclecal.boson_simulation import DRAWS, MAX_SMEAR, BosonSettings, z_draws
from musclecal.bosons import boson
from musclecal.compiled import in_order, kernel
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.kinematics import pair_mass
from musclecal.records import BosonTemplates, Floats
from musclecal.simulate import ResolutionModel, default_resolution, stream_of
from musclecal.validation.template_sums import (
    EVENTS_PER_NB,
    BlockSum,
    check_increasing,
    equal_edges,
    number_of_blocks,
    threshold_terms,
)

__all__ = ["ZBinning", "z_templates"]

_SMEAR_STREAM = 10


@dataclass(frozen=True)
class ZBinning:
    """Cells of the Z: signed eta of the muon with the larger abs(eta) x mass.

    Attributes
    ----------
    eta_edges : (n_eta + 1,) of the calibration's parameters.
    region_edges : (n_region + 1,) of the signed eta: a choice by the leading pT would depend on the residual.
    mass_edges : (n_mass + 1,) GeV.
    muon_pt : (low, high) GeV, measured, both muons.

    Raises
    ------
    InputError : edges that do not increase, pT not positive, regions beyond the eta bins.
    """

    eta_edges: tuple[float, ...] = equal_eta_edges(24, 2.4)
    region_edges: tuple[float, ...] = equal_edges(-2.4, 2.4, 4.8 / 14.0)
    mass_edges: tuple[float, ...] = equal_edges(76.0, 106.0, 1.0)
    muon_pt: tuple[float, float] = (26.0, 60.0)

    def __post_init__(self) -> None:
        check_increasing(self.eta_edges, "eta_edges")
        check_increasing(self.region_edges, "region_edges")
        check_increasing(self.mass_edges, "mass_edges")
        check_increasing(self.muon_pt, "muon_pt")
        if self.muon_pt[0] <= 0.0:
            raise InputError(f"muon_pt: must be positive, got {self.muon_pt[0]}")
        if self.region_edges[0] < self.eta_edges[0] or self.region_edges[-1] > self.eta_edges[-1]:
            raise InputError(
                f"region_edges: reach beyond eta_edges {self.eta_edges[0]} to {self.eta_edges[-1]}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of regions and of mass bins."""
        return len(self.region_edges) - 1, len(self.mass_edges) - 1


@kernel
def _add_pair(
    mass: float,
    k: float,
    measured: float,
    charge: float,
    weight: float,
    first_cell: int,
    edges: Floats,
    limits: Floats,
    table: Floats,
    max_smear: float,
    sums: Floats,
    moved: Floats,
) -> None:
    """Add a pair to the cells of its region, integrated over the measurement of one muon; that of the other is given.

    mass : measured, GeV, with the measured curvature ``measured`` of this muon.
    limits : lowest and highest measured curvature of this muon. table : a, b, c, d of its resolution.
    sums : (2, n_cell) counts, mass weights. moved : (6, n_cell) derivatives by A, e, M, a, b, c of this muon.

    The mass is above E where the muon's curvature is below mass^2 measured/E^2, within ``limits``.
    """
    regime = 1.0 / (1.0 + table[3] * k * k)
    square = table[0] + table[1] * regime + table[2] / (k * k)
    sigma = math.sqrt(square)
    low, high = max(limits[0], k * (1.0 - max_smear * sigma)), min(limits[1], k * (1.0 + max_smear * sigma))
    if not low < high:
        return
    scale = mass * mass * measured
    n_mass = edges.size - 1
    first, last = bin_of(edges, math.sqrt(scale / high)), bin_of(edges, math.sqrt(scale / low))
    if first < 0:
        if scale / high >= edges[-1] ** 2:
            return
        first = 0
    if last < 0:
        if scale / low < edges[0] ** 2:
            return
        last = n_mass - 1
    upper = min(max(scale / edges[first] ** 2, limits[0]), limits[1])
    above, density, wider = threshold_terms(upper, k, square)
    for j in range(first, last + 1):
        lower = min(max(scale / edges[j + 1] ** 2, limits[0]), limits[1])
        above_next, density_next, wider_next = threshold_terms(lower, k, square)
        cell = first_cell + j
        inside, broadened = above - above_next, wider - wider_next
        sums[0, cell] += 0.5 * inside
        sums[1, cell] += 0.5 * weight * inside
        moved[0, cell] += lower * density_next - upper * density
        moved[1, cell] += upper * upper * density - lower * lower * density_next
        moved[2, cell] += charge * (density_next - density)
        moved[3, cell] += broadened
        moved[4, cell] += broadened * regime
        moved[5, cell] += broadened / (k * k)
        upper, above, density, wider = lower, above_next, density_next, wider_next


@kernel
def _z_sums(
    rows: Floats,
    smears: Floats,
    eta_edges: Floats,
    limits: Floats,
    region_edges: Floats,
    mass_edges: Floats,
    resolution_edges: Floats,
    resolution: Floats,
    mu: float,
    max_smear: float,
) -> tuple[Floats, Floats]:
    """`_add_pair` of every row, once for each muon: (2, n_cell), (n_eta, 6, n_cell).

    rows : (n, 8) as of `z_draws`; smears : (n / 2, 2) unit Gaussians, one for the two masses of a draw.
    limits : lowest and highest curvature of both muons.
    """
    n_eta, n_mass = eta_edges.size - 1, mass_edges.size - 1
    n_cell = (region_edges.size - 1) * n_mass
    sums, moved = np.zeros((2, n_cell)), np.zeros((n_eta, 6, n_cell))
    k, measured, tables = np.empty(2), np.empty(2), np.empty((2, 4))
    for n in range(len(rows)):
        row = rows[n]
        region = bin_of(region_edges, row[1] if abs(row[1]) > abs(row[4]) else row[4])
        bins = bin_of(eta_edges, row[1]), bin_of(eta_edges, row[4])
        if region < 0 or bins[0] < 0 or bins[1] < 0 or min(row[0], row[3]) * limits[1] < 0.8:
            continue
        for i in range(2):
            eta = row[3 * i + 1]
            r = bin_of(resolution_edges, eta)
            if r < 0:
                r = 0 if eta < resolution_edges[0] else resolution_edges.size - 2
            tables[i] = resolution[:, r]
            k[i] = 1.0 / row[3 * i]
            a, b, c, d = tables[i, 0], tables[i, 1], tables[i, 2], tables[i, 3]
            square = a + b / (1.0 + d * k[i] * k[i]) + c / (k[i] * k[i])
            measured[i] = k[i] * (1.0 + smears[n // 2, i] * math.sqrt(square))
        if measured[0] <= 0.0 or measured[1] <= 0.0:
            continue
        mass = pair_mass(1.0 / measured[0], row[1], row[2], 1.0 / measured[1], row[4], row[5], mu)
        for i in range(2):
            if limits[0] < measured[1 - i] <= limits[1]:
                _add_pair(
                    mass, k[i], measured[i], 1.0 - 2.0 * i, row[6], region * n_mass, mass_edges, limits,
                    tables[i], max_smear, sums, moved[bins[i]],
                )  # fmt: skip
    return sums, moved


def z_templates(
    binning: ZBinning | None = None,
    *,
    resolution: ResolutionModel | None = None,
    settings: BosonSettings | None = None,
    n_draws: float = 1e7,
    seed: int = 1,
    threads: int | None = None,
) -> BosonTemplates:
    """Templates of Z decays with a yield per region. Arguments as of `w_templates`.

    Returns
    -------
    Cells in the order region, mass.

    Raises
    ------
    InputError : a boson that is no Z, too few draws.
    """
    binning = binning or ZBinning()
    settings = settings or BosonSettings(boson("Z"), resolution or default_resolution())
    r = settings.resolution
    table = np.array([r.a, r.b, r.c, r.d])
    if np.any(table[:3].sum(axis=0) <= 0.0):
        raise InputError("resolution: some eta bin has none, and a step in mass has no derivative")
    n_eta, n_blocks = len(binning.eta_edges) - 1, number_of_blocks(n_draws)
    arguments = (
        np.array(binning.eta_edges),
        1.0 / np.array(binning.muon_pt[::-1]),
        np.array(binning.region_edges),
        np.array(binning.mass_edges),
        np.array(r.eta_edges),
        table,
        MUON_MASS,
        MAX_SMEAR,
    )

    def work(block: int) -> tuple[Floats, Floats]:
        smears = np.clip(stream_of(seed, _SMEAR_STREAM, block).normal(size=(DRAWS, 2)), -MAX_SMEAR, MAX_SMEAR)
        sums: tuple[Floats, Floats] = _z_sums(z_draws(settings, seed, block), smears, *arguments)
        return sums

    counts, moved = BlockSum(), np.zeros((n_eta, 6, binning.shape[0] * binning.shape[1]))
    for sums, more in in_order(work, range(n_blocks), threads):
        counts.add(sums, sums[1])
        moved += more
    assert counts.total is not None
    # Two masses of each draw.
    unit = settings.boson.cross_section * EVENTS_PER_NB / (2.0 * DRAWS * n_blocks)
    moved = unit * moved.transpose(2, 0, 1)
    region = np.array(binning.region_edges)
    return BosonTemplates(
        boson="Z",
        eta_edges=np.array(binning.eta_edges),
        groups=np.repeat(np.arange(binning.shape[0], dtype=np.int64), binning.shape[1]),
        group_names=tuple(f"{a:.2f} < eta < {b:.2f}" for a, b in pairwise(region)),
        counts=unit * counts.total[0],
        mass_derivative=unit * counts.total[1],
        mass_noise=unit**2 * counts.variance(),
        scale_derivative=moved[:, :, :3].reshape(len(moved), 3 * n_eta),
        resolution_derivative=moved[:, :, 3:].reshape(len(moved), 3 * n_eta),
        n_draws=n_blocks * DRAWS,
    )
