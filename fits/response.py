r"""The response of simulated muons: the density of k_measured/k_true, for weights (`musclecal.weights`).

In each eta bin ln of the density of t = (k/k_true - 1 - location)/width is a smooth spline, common to all momenta and
both charges; location (by charge) and width are linear in ln pT between the edges of the cells. Shape, and location
and width, are fitted in turn until nothing changes; the last are the solutions of

.. math:: \sum_n h_j g'(t_n)/\sigma_n = 0, \qquad \sum_n h_j (1 + t_n g'(t_n)) = 0

at each edge j, the sums over muons, h_j the share of the edge in the muon's location and width. These are the
likelihood equations and, at the same time, what makes the mean weight 1 at every momentum: weights from a response
change no yield of the sample that it was fitted to, not even by a fluctuation. Fit it to the sample that is weighted.

Cells are in the true pT, as in `musclecal.fits.residuals`. Edges 10 to 30 % apart are enough for a location and a width
that change smoothly. The resolution should be about constant inside an eta bin.

Not for: the resolution as a number (`musclecal.fits.resolution`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.fits.residuals import fill_residuals_by_charge
from musclecal.fits.shapes.log_spline import SplineAxis
from musclecal.records import DimuonEvents, Floats, Ints, MuonResiduals, Response

__all__ = ["fit_response", "response_of"]

_AXIS = SplineAxis(-8.0, 8.0, 321, knot_distance=0.4)
_PENALTY = 30.0
_PARTS = 2
"""Parts of a cell in pT, inside which all muons are taken to have their average pT."""
_FEWEST = 50
_ITERATIONS = 200
_ROUNDS, _SETTLED = 30, 1e-3
_STEPS, _SOLVED = 60, 1e-8
"""Shape and the rest are fitted in turn until the rest moves by less than 1e-3 of a width, then the rest is solved."""


@kernel
def _shape_counts(
    counts: Ints, place: Floats, width: Floats, reach: float, first: float, spacing: float, found: Floats,
    exposure: Floats,
) -> None:  # fmt: skip
    """Counts (charge, pT, residual) into ``found`` intervals of t, each residual bin spread evenly."""
    n_residual, n_interval = counts.shape[2], found.size
    step = 2.0 * reach / n_residual
    for q in range(counts.shape[0]):
        for s in range(counts.shape[1]):
            total = 0
            for b in range(n_residual):
                total += counts[q, s, b]
            if total == 0:
                continue
            scale = 1.0 / (width[q, s] * spacing)
            for b in range(n_residual):
                low = ((-reach + b * step - place[q, s]) / width[q, s] - first) / spacing
                high = low + step * scale
                for n in range(max(0, int(np.floor(low))), min(n_interval, int(np.ceil(high)))):
                    overlap = min(high, n + 1.0) - max(low, float(n))
                    found[n] += counts[q, s, b] * overlap / (high - low)
                    exposure[n] += total * overlap * spacing


@kernel
def _score_sums(
    counts: Ints, place: Floats, width: Floats, reach: float, nodes: Floats, slope: Floats, sums: Floats
) -> None:  # fmt: skip
    """(charge, pT, 5) sums of u, v, u^2, u v, v^2 with u = g'(t), v = 1 + t g'(t); t ends with the nodes."""
    n_residual = counts.shape[2]
    step, spacing = 2.0 * reach / n_residual, nodes[1] - nodes[0]
    for q in range(counts.shape[0]):
        for s in range(counts.shape[1]):
            for b in range(n_residual):
                n = counts[q, s, b]
                if n == 0:
                    continue
                t = (-reach + (b + 0.5) * step - place[q, s]) / width[q, s]
                t = min(max(t, nodes[0]), nodes[-1])
                i = min(int((t - nodes[0]) / spacing), nodes.size - 2)
                u = slope[i] + (t - nodes[i]) / spacing * (slope[i + 1] - slope[i])
                v = 1.0 + t * u
                sums[q, s, 0] += n * u
                sums[q, s, 1] += n * v
                sums[q, s, 2] += n * u * u
                sums[q, s, 3] += n * u * v
                sums[q, s, 4] += n * v * v


def _shares(log_pt: Floats, log_edges: Floats) -> Floats:
    """(..., n_edge) share of each edge in a quantity that is linear in ln pT between them."""
    return np.stack([np.interp(log_pt, log_edges, row) for row in np.eye(len(log_edges))], axis=-1)


def _start(counts: Ints, reach: float) -> tuple[Floats, Floats]:
    """Median (2, n_edge) and half the central 68 % (n_edge,) of the cells beside an edge; ``counts`` (2, n_pt, n)."""
    axis = np.linspace(-reach, reach, counts.shape[2] + 1)

    def quantile(of: Ints, share: float) -> float:
        cumulative = np.concatenate([[0.0], np.cumsum(of)])
        return float(np.interp(share * cumulative[-1], cumulative, axis))

    n_pt = counts.shape[1]
    beside = [slice(max(0, j - 1), min(n_pt, j + 1)) for j in range(n_pt + 1)]
    place = np.array([[quantile(of[j].sum(axis=0), 0.5) for j in beside] for of in counts])
    both = counts.sum(axis=0)
    wide = [
        0.5 * (quantile(both[j].sum(axis=0), 0.841345) - quantile(both[j].sum(axis=0), 0.158655))
        for j in beside
    ]
    return place, np.array(wide)


def _step(shares: Floats, width: Floats, sums: Floats) -> tuple[Floats, Floats]:
    """Step of the locations (2, n_edge) and of ln width (n_edge,) at the edges towards the likelihood equations.

    The matrix is that of the squared scores, whose expectation is the derivative of the equations.
    """
    n_edge = shares.shape[2]
    matrix, score = np.zeros((3, n_edge, 3, n_edge)), np.zeros((3, n_edge))
    for q in range(2):
        h = shares[q]
        u, v, uu, uv, vv = sums[q].T
        score[q] -= h.T @ (u / width[q])
        score[2] -= h.T @ v
        matrix[q, :, q] += h.T @ (h * (uu / width[q] ** 2)[:, None])
        cross = h.T @ (h * (uv / width[q])[:, None])
        matrix[q, :, 2] += cross
        matrix[2, :, q] += cross.T
        matrix[2, :, 2] += h.T @ (h * vv[:, None])
    step = np.linalg.solve(matrix.reshape(3 * n_edge, -1), score.ravel()).reshape(3, n_edge)
    return np.asarray(step[:2]), np.asarray(step[2])


@dataclass
class _EtaBin:
    """The fit of one eta bin.

    Attributes
    ----------
    counts : (2, n_part, n_residual). shares : (2, n_part, n_edge), see `_shares`. reach : of the residuals.
    location : (2, n_edge). width : (n_edge,).
    """

    counts: Ints
    shares: Floats
    reach: float
    location: Floats
    width: Floats

    def in_parts(self) -> tuple[Floats, Floats]:
        """Location (2, n_part) and width (2, n_part) in the parts of the cells."""
        return np.asarray(np.einsum("qsj,qj->qs", self.shares, self.location)), self.shares @ self.width

    def shape(self, start: Floats | None) -> Floats:
        """Coefficients of ln of the density of t, with location and width as they are; ``start``: those before."""
        found, exposure = np.zeros(_AXIS.n_node - 1), np.zeros(_AXIS.n_node - 1)
        _shape_counts(self.counts, *self.in_parts(), self.reach, _AXIS.low, _AXIS.spacing, found, exposure)
        return _AXIS.log_density(found, exposure, _PENALTY, start, _ITERATIONS)

    def move(self, slope: Floats) -> float:
        """One step of location and width with the shape as it is; the largest part of it in widths."""
        place, wide = self.in_parts()
        sums = np.zeros((*self.counts.shape[:2], 5))
        _score_sums(self.counts, place, wide, self.reach, _AXIS.nodes, slope, sums)
        by, wider = _step(self.shares, wide, sums)
        size = max(np.abs(by / self.width).max(), np.abs(wider).max())
        self.location = self.location + by
        self.width = self.width * np.exp(np.clip(wider, -0.3, 0.3))
        return float(size)


def _one_eta(
    counts: Ints, log_pt: Floats, log_edges: Floats, reach: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """Location (2, n_edge), width (n_edge,), ln density and its slope (n_node,); ``counts`` (2, n_part, n_residual)."""
    start = _start(counts.reshape(2, -1, _PARTS, counts.shape[2]).sum(axis=2), reach)
    fit = _EtaBin(counts, _shares(log_pt, log_edges), reach, *start)
    coefficients: Floats | None = None
    for _ in range(_ROUNDS):
        coefficients = fit.shape(coefficients)
        slope = _AXIS.slope(_AXIS.nodes, coefficients)
        if fit.move(slope) < _SETTLED:
            break
    if not any(fit.move(slope) < _SOLVED for _ in range(_STEPS)):
        raise InputError("the response does not settle: more simulation, wider cells, or a larger reach")
    assert coefficients is not None
    return fit.location, fit.width, _AXIS.basis(_AXIS.nodes) @ coefficients, slope


def _checked_edges(eta_edges: Floats, pt_edges: Floats) -> tuple[Floats, Floats]:
    for name, edges in (("eta_edges", eta_edges), ("pt_edges", pt_edges)):
        values = np.asarray(edges, dtype=np.float64)
        if values.ndim != 1 or values.size < 2 or not np.all(np.diff(values) > 0.0) or np.isinf(values).any():
            raise InputError(
                f"response: {name} must be finite and increasing, got {np.asarray(edges).tolist()}"
            )
    if not pt_edges[0] > 0.0:
        raise InputError(f"response: pt_edges must be positive, got {pt_edges[0]} GeV")
    return np.array(eta_edges, dtype=np.float64), np.array(pt_edges, dtype=np.float64)


def fit_response(
    chunks: Iterable[DimuonEvents],
    eta_edges: Floats,
    pt_edges: Floats,
    *,
    reach: float = 0.25,
    bins: int = 2000,
    threads: int | None = None,
) -> Response:
    """The response of both muons of simulated pairs; the same for any chunks and threads.

    Parameters
    ----------
    chunks : events with generator-level muons after radiation, without cuts on the measured momentum near the cells.
    eta_edges : (n_eta + 1,) those of the correction, or finer ones where the resolution changes inside its bins.
    pt_edges : (n_pt + 1,) GeV, of the true pT, 10 to 30 % apart; further out than the templates by some resolutions.
    reach, bins : of the axis of k/k_true - 1. Take ``reach`` 8 widths or more, a bin a tenth of the narrowest width.

    Raises
    ------
    InputError : no generator-level muons, fewer than 50 of a charge in a cell, edges that do not increase, a fit that
        does not settle.
    """
    eta_edges, pt_edges = _checked_edges(eta_edges, pt_edges)
    inside = [np.linspace(a, b, _PARTS + 1)[:-1] for a, b in pairwise(pt_edges)]
    parts = np.append(np.concatenate(inside), pt_edges[-1])
    return response_of(
        *fill_residuals_by_charge(chunks, eta_edges, parts, reach=reach, bins=bins, threads=threads)
    )


def response_of(plus: MuonResiduals, minus: MuonResiduals) -> Response:
    """The response from residuals of mu+ and of mu-, in half cells of pT as `fit_response` fills them."""
    eta_edges, pt_edges = plus.eta_edges, plus.pt_edges[::_PARTS]
    counts = np.stack([plus.counts, minus.counts])
    mean_pt = np.stack([plus.mean_pt, minus.mean_pt])
    n_eta, n_pt = len(eta_edges) - 1, len(pt_edges) - 1
    n_muons = counts.sum(axis=3).reshape(2, n_eta, n_pt, _PARTS).sum(axis=3)
    if n_muons.min() < _FEWEST:
        q, i, j = np.unravel_index(np.argmin(n_muons), n_muons.shape)
        raise InputError(
            f"response: {n_muons[q, i, j]} mu{'+-'[q]} in eta bin {i} ({eta_edges[i]:g} to {eta_edges[i + 1]:g}), true "
            f"pT {pt_edges[j]:g} to {pt_edges[j + 1]:g} GeV; need {_FEWEST}: wider cells, or more simulation"
        )
    middles = np.log(0.5 * (plus.pt_edges[1:] + plus.pt_edges[:-1]))
    log_pt = np.where(mean_pt > 0.0, np.log(np.maximum(mean_pt, 1e-9)), middles)
    fits = [
        _one_eta(np.ascontiguousarray(counts[:, i]), log_pt[:, i], np.log(pt_edges), plus.reach)
        for i in range(n_eta)
    ]
    location, width, log_density, slope = (np.stack(part) for part in zip(*fits, strict=True))
    return Response(
        eta_edges, pt_edges, np.ascontiguousarray(location.transpose(1, 0, 2)), width, _AXIS.nodes.copy(),
        log_density, slope, n_muons, plus.n_beyond + minus.n_beyond,
    )  # fmt: skip
