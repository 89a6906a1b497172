r"""Weights that stand for a change of the momentum scale, so that no muon moves over the edge of a template's bin.

A simulated muon of true curvature k_true is measured at k with the density p(rho)/k_true, rho = k/k_true
(`Response`). A correction shifted by theta moves it to k + theta Delta,

.. math:: \Delta(k) = a\,k - e\,k^2 + q\,m ,

with (a, e, m) the shifts of A, e, M (`musclecal.scale`). Among the muons that are found at k after the move there are
1 + theta d ln w/d theta times as many as before, to first order (the continuity equation of densities):

.. math:: \frac{d\ln w}{d\theta} = -\Bigl(\frac{d\Delta}{dk} + \Delta\,\frac{d\ln p}{dk}\Bigr), \qquad
   \frac{d\ln p}{dk} = \frac{g'(\rho)}{k_\mathrm{true}}, \quad g = \ln p ,

which is, for the parameters one by one,

.. math:: \frac{d\ln w}{d(A, e, M)} = \Bigl(-(1 + \rho g'),\; 2k + k\rho g',\; -q\,g'/k_\mathrm{true}\Bigr).

What moves: the muons whose momenta are given, as if k were corrected with the shifted parameters. When the
correction is that of the DATA and the simulation is weighted in their place, data that still need +theta Delta look
like simulation moved by -theta Delta: take 1 - theta d ln w/d theta.

Use 1 + theta d ln w/d theta, not exp(theta d ln w/d theta): its mean is 1, and a template changes by exactly what is of
first order. The exponential adds theta^2 (d ln w/d theta)^2/2 to every bin, about (shift/resolution)^2/2 of it.

Not for: shifts that are no longer small against the resolution of a muon; changes of the resolution.
"""

import numpy as np
from numpy.typing import ArrayLike

from musclecal.binning import bin_of
from musclecal.compiled import kernel
from musclecal.errors import InputError
from musclecal.records import CorrectionTables, Floats, Response

__all__ = ["variation_weights", "weight_derivatives"]


@kernel
def response_slope(
    rho: float, x: float, side: int, i: int, j: int, log_pt: Floats, location: Floats, width: Floats, nodes: Floats,
    slope: Floats,
) -> tuple[float, float]:  # fmt: skip
    """(rho, g'(rho)) of a muon in cell (i, j), ``x`` = ln of its true pT, side 0 for mu+ and 1 for mu-.

    Beyond the nodes both are those at the last node, so that no muon in the tails gets an unlimited weight.
    """
    part = (x - log_pt[j]) / (log_pt[j + 1] - log_pt[j])
    place = 1.0 + location[side, i, j] + part * (location[side, i, j + 1] - location[side, i, j])
    wide = width[i, j] + part * (width[i, j + 1] - width[i, j])
    t = min(max((rho - place) / wide, nodes[0]), nodes[-1])
    position = (t - nodes[0]) / (nodes[1] - nodes[0])
    n = min(int(position), nodes.size - 2)
    at_t = slope[i, n] + (position - n) * (slope[i, n + 1] - slope[i, n])
    return place + wide * t, at_t / wide


@kernel
def gradient_of_weight(rho: float, slope: float, k_true: float, charge: float) -> tuple[float, float, float]:
    """d ln w/d(A, e, M) of a muon measured at ``rho`` k_true, ``slope`` = g'(rho)."""
    k = rho * k_true
    return -(1.0 + rho * slope), 2.0 * k + k * rho * slope, -charge * slope / k_true


@kernel
def _weight_derivatives(
    pt: Floats, eta: Floats, charge: Floats, gen_pt: Floats, eta_edges: Floats, pt_edges: Floats, log_pt: Floats,
    location: Floats, width: Floats, nodes: Floats, slope: Floats, out: Floats,
) -> None:  # fmt: skip
    for n in range(pt.size):
        out[n, 0] = out[n, 1] = out[n, 2] = 0.0
        i, j = bin_of(eta_edges, eta[n]), bin_of(pt_edges, gen_pt[n])
        if i < 0 or j < 0 or not 0.0 < pt[n] < np.inf or abs(charge[n]) != 1.0:
            continue
        k_true = 1.0 / gen_pt[n]
        rho, steep = response_slope(
            gen_pt[n] / pt[n], np.log(gen_pt[n]), 0 if charge[n] > 0.0 else 1, i, j, log_pt, location, width,
            nodes, slope,
        )  # fmt: skip
        out[n, 0], out[n, 1], out[n, 2] = gradient_of_weight(rho, steep, k_true, charge[n])


@kernel
def _variations(
    derivatives: Floats, pt: Floats, eta: Floats, edges: Floats, shifts: Floats, low: float, high: float, out: Floats
) -> None:  # fmt: skip
    n_variations = shifts.shape[2]
    for n in range(pt.size):
        i = bin_of(edges, eta[n])
        if i < 0 or not low <= pt[n] < high:
            out[n, :] = 0.0
            continue
        a, e, m = derivatives[n, 0], derivatives[n, 1], derivatives[n, 2]
        for v in range(n_variations):
            out[n, v] = a * shifts[i, 0, v] + e * shifts[i, 1, v] + m * shifts[i, 2, v]


def _columns(**columns: ArrayLike) -> tuple[Floats, ...]:
    """The columns as (n,) float64; single numbers are repeated."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns.values()]
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        shape = (0, 0)
    if len(shape) > 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in zip(columns, arrays, strict=True))
        raise InputError(f"weights: the columns of muons must be arrays of one length, got {found}")
    whole = shape or (1,)
    return tuple(np.ascontiguousarray(np.broadcast_to(array, whole)) for array in arrays)


def weight_derivatives(
    response: Response, pt: ArrayLike, eta: ArrayLike, charge: ArrayLike, gen_pt: ArrayLike
) -> Floats:
    """(n, 3) d ln w/d(A, e, M) of simulated muons: 1, 1/GeV, GeV.

    Parameters
    ----------
    pt, eta, charge : (n,) as measured, pT in GeV, charge +1 or -1 (or one number for all).
    gen_pt : (n,) GeV, of the matched generator-level muon after radiation; NaN or <= 0 without a match.

    Returns
    -------
    0 for muons outside the eta or true pT of the response, without match, or with anything not finite. A muon beyond
    the shape's last node (`Response.nodes`, in widths) gets the derivatives of a muon at that node.

    Raises
    ------
    InputError : columns of different lengths.
    """
    pt, eta, charge, gen_pt = _columns(pt=pt, eta=eta, charge=charge, gen_pt=gen_pt)
    out = np.empty((len(pt), 3))
    _weight_derivatives(
        pt, eta, charge, gen_pt, response.eta_edges, response.pt_edges, np.log(response.pt_edges),
        response.location, response.width, response.nodes, response.slope, out,
    )  # fmt: skip
    return out


def variation_weights(
    response: Response, tables: CorrectionTables, pt: ArrayLike, eta: ArrayLike, charge: ArrayLike, gen_pt: ArrayLike
) -> Floats:  # fmt: skip
    """(n, n_var) d ln w/d theta of every variation of a correction, theta = 1 its full shift of +1 sigma.

    Arguments as of `weight_derivatives`. 0 also outside the eta and pT range of the tables, where a correction does
    nothing, shifted or not.
    """
    pt, eta, charge, gen_pt = _columns(pt=pt, eta=eta, charge=charge, gen_pt=gen_pt)
    derivatives = weight_derivatives(response, pt, eta, charge, gen_pt)
    out = np.empty((len(pt), tables.n_variations))
    low, high = tables.pt_range
    _variations(
        derivatives, pt, eta, np.ascontiguousarray(tables.eta_edges), tables.variations, low, high, out
    )
    return out
