r"""Templates of a mass fit to muons of W decays, in charge x eta x pT, with their exact derivatives.

The measured curvature is k (1 + sigma g). Each generated muon enters with its probability to be
measured above an edge E of pT instead of one random measurement,

.. math:: S(E) = \Phi(u), \qquad u = \frac{K(E)/k - 1}{\sigma},

with K(E) the measured curvature that the correction takes to 1/E. The derivatives follow without steps, and migration
over the edges is in them: dS/dtheta = phi(u)/(sigma k) dK/dtheta, with dK/d(A, e, M) = (-K, K^2, -q) at no correction,
and dS/d sigma^2 = -u phi(u)/(2 sigma^2).

d/dm comes from the weights d ln BW/dm of the events (`musclecal.boson_simulation`).

Not for: backgrounds, efficiencies, or a description of data.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from musclecal.binning import bin_of, equal_eta_edges
from musclecal.boson_simulation import DRAWS, MAX_SMEAR, BosonSettings, w_draws
from musclecal.bosons import boson
from musclecal.compiled import in_order, kernel
from musclecal.errors import InputError
from musclecal.records import BosonTemplates, Floats, ScaleParameters
from musclecal.scale import biased_curvature
from musclecal.simulate import ResolutionModel, default_resolution, no_bias
from musclecal.validation.template_sums import (
    EVENTS_PER_NB,
    BlockSum,
    check_increasing,
    equal_edges,
    number_of_blocks,
    threshold_terms,
)

__all__ = ["WBinning", "w_templates"]


@dataclass(frozen=True)
class WBinning:
    """Cells of the W: charge x eta x pT.

    Attributes
    ----------
    eta_edges : (n_eta + 1,). pt_edges : (n_pt + 1,) GeV.

    Raises
    ------
    InputError : edges that do not increase, pT not positive.
    """

    eta_edges: tuple[float, ...] = equal_eta_edges(24, 2.4)
    pt_edges: tuple[float, ...] = equal_edges(26.0, 56.0, 1.0)

    def __post_init__(self) -> None:
        check_increasing(self.eta_edges, "eta_edges")
        check_increasing(self.pt_edges, "pt_edges")
        if self.pt_edges[0] <= 0.0:
            raise InputError(f"pt_edges: must be positive, got {self.pt_edges[0]}")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of bins in eta and in pT, of one charge."""
        return len(self.eta_edges) - 1, len(self.pt_edges) - 1


@kernel
def _add_muon(
    pt: float,
    weight: float,
    i: int,
    curvatures: Floats,
    a: float,
    b: float,
    c: float,
    d: float,
    max_smear: float,
    sums: Floats,
    whole: Floats,
) -> None:
    """Add one muon of eta bin i to ``sums`` (6, n_eta, n_edge): S, weight S, dS/dK, dS/da, dS/db, dS/dc.

    curvatures : (n_eta, n_edge) K(E), decreasing. whole : (2, n_eta, n_edge) counts the last edge that is out
    of reach below the muon; it and all edges before it have S = 1.
    """
    k = 1.0 / pt
    regime = 1.0 / (1.0 + d * k * k)
    square = a + b * regime + c / (k * k)
    n_edge = curvatures.shape[1]
    sigma = math.sqrt(square)
    low, high = k * (1.0 - max_smear * sigma), k * (1.0 + max_smear * sigma)
    if curvatures[i, 0] <= low:
        return
    # Edges with K beyond `high` have S = 1: the last of them is found by halving.
    first, last = 0, n_edge
    while last > first:
        middle = (first + last) // 2
        if curvatures[i, middle] >= high:
            first = middle + 1
        else:
            last = middle
    if first > 0:
        whole[0, i, first - 1] += 1.0
        whole[1, i, first - 1] += weight
    for j in range(first, n_edge):
        threshold = curvatures[i, j]
        if threshold <= low:
            break
        above, density, wider = threshold_terms(threshold, k, square)
        sums[0, i, j] += above
        sums[1, i, j] += weight * above
        sums[2, i, j] += density
        sums[3, i, j] += wider
        sums[4, i, j] += wider * regime
        sums[5, i, j] += wider / (k * k)


@kernel
def _w_sums(
    rows: Floats,
    eta_edges: Floats,
    curvatures: Floats,
    resolution_edges: Floats,
    resolution: Floats,
    max_smear: float,
) -> tuple[Floats, Floats]:
    """`_add_muon` of every row (pT, eta, mass weight, ...) and of its mirror image in eta."""
    n_eta, n_edge = curvatures.shape
    sums, whole = np.zeros((6, n_eta, n_edge)), np.zeros((2, n_eta, n_edge))
    for n in range(len(rows)):
        for side in range(2):
            eta = rows[n, 1] if side == 0 else -rows[n, 1]
            i = bin_of(eta_edges, eta)
            if i < 0:
                continue
            r = bin_of(resolution_edges, eta)
            if r < 0:
                r = 0 if eta < resolution_edges[0] else resolution_edges.size - 2
            _add_muon(
                rows[n, 0], rows[n, 2], i, curvatures, resolution[0, r], resolution[1, r], resolution[2, r],
                resolution[3, r], max_smear, sums, whole,
            )  # fmt: skip
    return sums, whole


def _thresholds(
    binning: WBinning, charge: int, correction: ScaleParameters
) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
    """K (n_eta, n_edge), the measured curvature that the correction takes to 1/E, and dK/d(A, e, M)."""
    k = 1.0 / np.array(binning.pt_edges)
    table = np.array(
        [
            [biased_curvature(x, float(charge), a, e, m) for x in k]
            for a, e, m in zip(correction.A, correction.e, correction.M, strict=True)
        ]
    )
    if np.any(~np.isfinite(table)) or np.any(table <= 0.0):
        raise InputError("correction: too large, no measured curvature is taken to some edge of pT")
    slope = 1.0 + correction.A[:, None] - 2.0 * correction.e[:, None] * table
    return table, (-table / slope, table**2 / slope, -charge / slope)


def _summed(sums: Floats, whole: Floats) -> Floats:
    """(6, n_eta, n_edge) with the edges out of reach below every muon."""
    total = sums.copy()
    total[:2] += np.cumsum(whole[..., ::-1], axis=-1)[..., ::-1]
    return total


def _per_bin(at_edges: Floats) -> Floats:
    """Between neighbouring edges (last axis), of what is above an edge."""
    return np.asarray(at_edges[..., :-1] - at_edges[..., 1:])


def _one_charge(
    settings: BosonSettings, binning: WBinning, n_blocks: int, seed: int, correction: ScaleParameters,
    threads: int | None,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """For 1/fb: counts and mass derivative (2, n_eta, n_pt), variance of the latter, A, e, M, a, b, c (6, ...)."""
    eta_edges = np.array(binning.eta_edges)
    r = settings.resolution
    curvatures, slopes = _thresholds(binning, settings.boson.charge, correction)
    table = np.array([r.a, r.b, r.c, r.d])

    def work(block: int) -> Floats:
        rows = w_draws(settings, seed, block)
        return _summed(*_w_sums(rows, eta_edges, curvatures, np.array(r.eta_edges), table, MAX_SMEAR))

    blocks = BlockSum()
    for sums in in_order(work, range(n_blocks), threads):
        blocks.add(sums, _per_bin(sums[1]))
    total = blocks.total
    assert total is not None
    # Two masses and two mirror images of each draw.
    unit = settings.boson.cross_section * EVENTS_PER_NB / (4.0 * DRAWS * n_blocks)
    moved = np.stack([total[2] * slope for slope in slopes])
    return (
        unit * _per_bin(total[:2]),
        unit**2 * blocks.variance(),
        unit * _per_bin(np.concatenate([moved, total[3:6]])),
    )


def w_templates(
    binning: WBinning | None = None,
    *,
    resolution: ResolutionModel | None = None,
    plus: BosonSettings | None = None,
    minus: BosonSettings | None = None,
    n_draws: float = 1e7,
    seed: int = 1,
    correction: ScaleParameters | None = None,
    threads: int | None = None,
) -> BosonTemplates:
    """Templates of W+ and W- with a yield per charge and eta bin.

    Parameters
    ----------
    binning : `WBinning()` by default. resolution : of the detector, in place of that of the default settings.
    plus, minus : what is produced, `BosonSettings(boson("W+"))` and ``"W-"`` by default.
    n_draws : decays per charge, rounded up to blocks; each is used with two masses and both signs of eta.
    correction : applied to the muons before they are counted, exactly; none by default. Its eta bins are the binning's.

    Returns
    -------
    Cells in the order charge (mu+ first), eta, pT.

    Raises
    ------
    InputError : other eta bins, too few draws, a correction that cannot be inverted.
    """
    binning = binning or WBinning()
    resolution = resolution or default_resolution()
    plus = plus or BosonSettings(boson("W+"), resolution)
    minus = minus or BosonSettings(boson("W-"), resolution)
    if (plus.boson.charge, minus.boson.charge) != (1, -1):
        raise InputError(f"plus, minus: need W+ and W-, got {plus.boson.name} and {minus.boson.name}")
    eta_edges = np.array(binning.eta_edges)
    correction = correction or no_bias(eta_edges)
    if not np.array_equal(correction.eta_edges, eta_edges):
        raise InputError("correction: its eta bins are not those of the binning")
    n_blocks = number_of_blocks(n_draws)
    parts = [_one_charge(s, binning, n_blocks, seed, correction, threads) for s in (plus, minus)]
    n_eta, n_pt = binning.shape
    groups = np.repeat(np.arange(2 * n_eta, dtype=np.int64), n_pt)
    derivatives = np.stack([part[2] for part in parts])  # charge, parameter, eta, pT
    dense = np.zeros((2, n_eta, n_pt, n_eta, 6))
    for i in range(n_eta):
        dense[:, i, :, i, :] = derivatives[:, :, i, :].transpose(0, 2, 1)
    cells = dense.reshape(2 * n_eta * n_pt, n_eta, 6)
    return BosonTemplates(
        boson="W",
        eta_edges=eta_edges,
        groups=groups,
        group_names=tuple(
            f"mu{sign}, {a:g} < eta < {b:g}" for sign in "+-" for a, b in pairwise(eta_edges)
        ),
        counts=np.concatenate([part[0][0].ravel() for part in parts]),
        mass_derivative=np.concatenate([part[0][1].ravel() for part in parts]),
        mass_noise=np.concatenate([part[1].ravel() for part in parts]),
        scale_derivative=cells[:, :, :3].reshape(len(cells), 3 * n_eta),
        resolution_derivative=cells[:, :, 3:].reshape(len(cells), 3 * n_eta),
        n_draws=n_blocks * DRAWS,
    )  # fmt: skip
