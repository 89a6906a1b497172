"""Templates of a mass fit to pairs of Z decays, in mass x signed eta of the muon with the larger abs(eta).

Pairs are measured once, and moved by a small step of each parameter both ways; the cuts on pT move along. d/dm comes
from the weights d ln BW/dm of the events (`musclecal.boson_simulation`).

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
from musclecal.scale import corrected_curvature
from musclecal.simulate import ResolutionModel, default_resolution, stream_of
from musclecal.validation.template_sums import (
    EVENTS_PER_NB,
    BlockSum,
    check_increasing,
    equal_edges,
    number_of_blocks,
)

__all__ = ["ZBinning", "ZSteps", "z_templates"]

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
def _z_cell(
    eta_plus: float,
    eta_minus: float,
    pt_plus: float,
    pt_minus: float,
    mass: float,
    acceptance: Floats,
    region_edges: Floats,
    mass_edges: Floats,
) -> int:
    """The cell of a pair, -1 outside. ``acceptance``: lowest and highest pT."""
    if not (acceptance[0] <= pt_plus < acceptance[1] and acceptance[0] <= pt_minus < acceptance[1]):
        return -1
    region = bin_of(region_edges, eta_plus if abs(eta_plus) > abs(eta_minus) else eta_minus)
    j = bin_of(mass_edges, mass)
    if region < 0 or j < 0:
        return -1
    return region * (mass_edges.size - 1) + j


@kernel
def _smeared(k: float, g: float, a: float, b: float, c: float, d: float) -> float:
    return k * (1.0 + g * math.sqrt(max(a + b / (1.0 + d * k * k) + c / (k * k), 0.0)))


@kernel
def _moved_curvature(
    measured: float,
    k: float,
    g: float,
    charge: float,
    parameter: int,
    step: float,
    table: Floats,
) -> float:
    """Measured curvature after parameter 0 to 5 (A, e, M, a, b, c) has moved by ``step``. ``table``: a, b, c, d."""
    if parameter < 3:
        return corrected_curvature(
            measured,
            charge,
            step if parameter == 0 else 0.0,
            step if parameter == 1 else 0.0,
            step if parameter == 2 else 0.0,
        )
    a, b, c = table[0], table[1], table[2]
    if parameter == 3:
        a += step
    elif parameter == 4:
        b += step
    else:
        c += step
    return _smeared(k, g, a, b, c, table[3])


@kernel
def _z_sums(
    rows: Floats,
    smears: Floats,
    eta_edges: Floats,
    acceptance: Floats,
    region_edges: Floats,
    mass_edges: Floats,
    resolution_edges: Floats,
    resolution: Floats,
    steps: Floats,
    mu: float,
) -> tuple[Floats, Floats]:
    """(2, n_cell) counts and sums of mass weights; (6, n_eta, n_cell) central differences over twice the steps.

    rows : (n, 8) as of `z_draws`; smears : (n / 2, 2) unit Gaussians, one for the two masses of a draw. A moved pair's
    mass is the unmoved one times sqrt(k+ k-/(k+' k-')), which leaves out 5e-6 of a shift (mass of the muon).
    """
    n_eta, n_cell = eta_edges.size - 1, (region_edges.size - 1) * (mass_edges.size - 1)
    sums, moved = np.zeros((2, n_cell)), np.zeros((6, n_eta, n_cell))
    k, measured, bins = np.empty(2), np.empty(2), np.empty(2, np.int64)
    tables = np.empty((2, 4))
    for n in range(len(rows)):
        row = rows[n]
        bins[0], bins[1] = bin_of(eta_edges, row[1]), bin_of(eta_edges, row[4])
        if bins[0] < 0 or bins[1] < 0 or min(row[0], row[3]) < 0.8 * acceptance[0]:
            continue
        for i in range(2):
            r = bin_of(resolution_edges, row[3 * i + 1])
            if r < 0:
                r = 0 if row[3 * i + 1] < resolution_edges[0] else resolution_edges.size - 2
            tables[i] = resolution[:, r]
            k[i] = 1.0 / row[3 * i]
            measured[i] = _smeared(
                k[i], smears[n // 2, i], tables[i, 0], tables[i, 1], tables[i, 2], tables[i, 3]
            )
        if measured[0] <= 0.0 or measured[1] <= 0.0:
            continue
        mass = pair_mass(1.0 / measured[0], row[1], row[2], 1.0 / measured[1], row[4], row[5], mu)
        if not (0.97 * mass_edges[0] < mass < 1.03 * mass_edges[-1]):
            continue
        cell = _z_cell(
            row[1], row[4], 1.0 / measured[0], 1.0 / measured[1], mass, acceptance, region_edges, mass_edges
        )
        if cell >= 0:
            sums[0, cell] += 1.0
            sums[1, cell] += row[6]
        for i in range(2):
            if i == 1 and bins[1] == bins[0]:
                break
            for parameter in range(6):
                for direction in (1.0, -1.0):
                    step = direction * steps[parameter]
                    plus, minus = measured[0], measured[1]
                    if bins[0] == bins[i]:
                        plus = _moved_curvature(
                            measured[0], k[0], smears[n // 2, 0], 1.0, parameter, step, tables[0]
                        )
                    if bins[1] == bins[i]:
                        minus = _moved_curvature(
                            measured[1], k[1], smears[n // 2, 1], -1.0, parameter, step, tables[1]
                        )
                    shifted = mass * math.sqrt(measured[0] * measured[1] / (plus * minus))
                    cell = _z_cell(
                        row[1], row[4], 1.0 / plus, 1.0 / minus, shifted, acceptance, region_edges, mass_edges
                    )
                    if cell >= 0:
                        moved[parameter, bins[i], cell] += 0.5 * direction / steps[parameter]
    return sums, moved


@dataclass(frozen=True)
class ZSteps:
    """Half the distance over which a pair is moved for each derivative: 1e-3 of the curvature at 45 GeV, and alike.

    Attributes
    ----------
    scale : A (1), e (GeV), M (1/GeV). resolution : a (1), b (1), c (1/GeV^2).
    """

    scale: tuple[float, float, float] = (1e-3, 0.045, 2.2e-5)
    resolution: tuple[float, float, float] = (1e-5, 1.2e-5, 5e-9)


def z_templates(
    binning: ZBinning | None = None,
    *,
    resolution: ResolutionModel | None = None,
    settings: BosonSettings | None = None,
    n_draws: float = 1e7,
    seed: int = 1,
    steps: ZSteps | None = None,
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
    binning, steps = binning or ZBinning(), steps or ZSteps()
    settings = settings or BosonSettings(boson("Z"), resolution or default_resolution())
    r = settings.resolution
    n_eta, n_blocks = len(binning.eta_edges) - 1, number_of_blocks(n_draws)
    arguments = (
        np.array(binning.eta_edges), np.array(binning.muon_pt), np.array(binning.region_edges),
        np.array(binning.mass_edges), np.array(r.eta_edges), np.array([r.a, r.b, r.c, r.d]),
        np.array([*steps.scale, *steps.resolution]), MUON_MASS,
    )  # fmt: skip

    def work(block: int) -> tuple[Floats, Floats]:
        smears = np.clip(stream_of(seed, _SMEAR_STREAM, block).normal(size=(DRAWS, 2)), -MAX_SMEAR, MAX_SMEAR)
        sums: tuple[Floats, Floats] = _z_sums(z_draws(settings, seed, block), smears, *arguments)
        return sums

    counts, moved = BlockSum(), np.zeros((6, n_eta, binning.shape[0] * binning.shape[1]))
    for sums, more in in_order(work, range(n_blocks), threads):
        counts.add(sums, sums[1])
        moved += more
    assert counts.total is not None
    # Two masses of each draw.
    unit = settings.boson.cross_section * EVENTS_PER_NB / (2.0 * DRAWS * n_blocks)
    moved = unit * moved.transpose(2, 1, 0)
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
