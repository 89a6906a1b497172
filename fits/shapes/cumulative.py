"""The two numerical forms that every signal shape takes, and the background shapes, as cumulative kernels.

``smeared_lines``: a histogram of true masses, each smeared with the same relative resolution.
``standard_shape``: a tabulated cumulative distribution of t = (m/(s m_ref) - 1)/w.

A kernel fills, at all n_mass + 1 edges of the log-uniform mass axis, the cumulative F and its derivatives with respect
to ln(scale) and ln(width). Bin contents are differences of F: bin integrals are exact.
"""

import math
from typing import NamedTuple

import numpy as np

from musclecal.compiled import borrowing
from musclecal.records import Floats
from musclecal.vector_math import expm1

__all__ = [
    "LINES",
    "STANDARD",
    "ShapeAxis",
    "background_cdf",
    "background_curvature",
    "cubic_cells",
    "shape_axis",
    "signal_cdf",
    "signal_curvature",
]

LINES, STANDARD = 0, 1
"""Which form a table is for."""

NO_BACKGROUND, EXPONENTIAL, LINEAR = 0, 1, 2
"""Which background is floated."""


class ShapeAxis(NamedTuple):
    """The mass axis and how tables lie on it: what all evaluations of a model have in common.

    Attributes
    ----------
    form : LINES or STANDARD.
    ratio : m/m_ref at the edges for STANDARD (n_edge,); for LINES low/m_j at all differences of an edge and a line
        (n_edge + n_line - 1,).
    u : (n_edge,) 0 to 1 across the window.
    first_node, spacing : of the nodes in t, for STANDARD.
    """

    form: int
    ratio: Floats
    u: Floats
    first_node: float
    spacing: float


def shape_axis(
    form: int,
    low: float,
    step: float,
    n_mass: int,
    reference: float,
    origin: float,
    spacing: float,
    n_table: int,
) -> ShapeAxis:
    """Edges low exp(step i) in GeV, i = 0 ... n_mass, and tables of ``n_table`` numbers.

    ``origin`` and ``spacing`` describe the table: number of the first line for LINES, first node and distance of
    nodes for STANDARD.
    """
    i = np.arange(n_mass + 1)
    at = i if form == STANDARD else np.arange(n_mass + n_table) - (n_table - 1) - int(origin)
    return ShapeAxis(
        form,
        low / reference * np.exp(step * at),
        np.expm1(step * i) / math.expm1(step * n_mass),
        float(origin),
        float(spacing),
    )


def cubic_cells(tables: Floats, spacing: float) -> Floats:
    """(n_table, 4 n_cell) coefficients of a cubic in x = 0 ... 1 between nodes, from G at the nodes and its density."""
    value, slope = np.split(tables, 2, axis=1)
    slope = slope * spacing
    rise, left, right = np.diff(value, axis=1), slope[:, :-1], slope[:, 1:]
    cells = [value[:, :-1], left, 3.0 * rise - 2.0 * left - right, left + right - 2.0 * rise]
    return np.stack(cells, axis=2).reshape(len(tables), -1)


@borrowing
def _convolve(table: Floats, work: Floats, out: Floats) -> None:
    """out[k, i] = sum_j n_j work[k, i + n_line - 1 - j], k = 0, 1, 2."""
    out[:, :] = 0.0
    n_line, first, second, third = table.size, out[0], out[1], out[2]
    for j in range(n_line):
        n = table[j]
        if n == 0.0:
            continue
        shift = n_line - 1 - j
        for i in range(first.size):
            first[i] += n * work[0, i + shift]
            second[i] += n * work[1, i + shift]
            third[i] += n * work[2, i + shift]


@borrowing
def _smeared_lines(
    axis: ShapeAxis, scale: float, width: float, table: Floats, out: Floats, work: Floats
) -> None:
    """F(x) = sum_j n_j Phi((x/(s m_j) - 1)/w), with m_j = reference exp(step (first + j)) and edges low exp(step i).

    Both axes are uniform in ln m with the same step, so Phi depends on i - j alone: a discrete convolution.
    """
    for d in range(axis.ratio.size):
        r = axis.ratio[d] / (scale * width)
        t = r - 1.0 / width
        density = math.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
        work[0, d] = 0.5 * math.erfc(-t / math.sqrt(2.0))
        work[1, d] = -density * r
        work[2, d] = -density * t
    _convolve(table, work, out)


@borrowing
def _curvature_of_lines(
    axis: ShapeAxis, scale: float, width: float, table: Floats, out: Floats, work: Floats
) -> None:
    for d in range(axis.ratio.size):
        r = axis.ratio[d] / (scale * width)
        t = r - 1.0 / width
        density = math.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
        work[0, d] = density * r * (1.0 - t * r)
        work[1, d] = density * r * (1.0 - t * t)
        work[2, d] = density * t * (1.0 - t * t)
    _convolve(table, work, out)


@borrowing
def _place(axis: ShapeAxis, scale: float, width: float, cells: Floats, work: Floats) -> None:
    """Rows of ``work`` at each edge: r = x/(s m_ref w), u in nodes, x in the cell, its coefficients.

    Three loops: the compiler vectorises the first and those of the callers, not one that looks up the cell as well.
    """
    n_cell = cells.size // 4
    per_width, first, per_node = 1.0 / (scale * width), 1.0 / width + axis.first_node, 1.0 / axis.spacing
    for i in range(axis.ratio.size):
        r = axis.ratio[i] * per_width
        u = (r - first) * per_node
        inside = u if u > 0.0 else 0.0  # nan is in the first cell, and out[.] is nan for it
        inside = inside if inside < n_cell else float(n_cell)
        cell = min(float(np.int32(inside)), float(n_cell - 1))
        work[0, i] = r
        work[1, i] = u - inside
        work[2, i] = inside - cell
        work[3, i] = cell
    for i in range(axis.ratio.size):
        k = 4 * int(work[3, i])
        work[3, i], work[4, i], work[5, i], work[6, i] = cells[k], cells[k + 1], cells[k + 2], cells[k + 3]


@borrowing
def _standard_shape(
    axis: ShapeAxis, scale: float, width: float, cells: Floats, out: Floats, work: Floats
) -> None:
    """F(x) = G(t), t = (x/(s m_ref) - 1)/w; constant density beyond the last node on either side.

    ``cells`` as of `cubic_cells`.
    """
    _place(axis, scale, width, cells, work)
    per_node, per_width = 1.0 / axis.spacing, 1.0 / width
    for i in range(axis.ratio.size):
        x, c1, c2, c3 = work[2, i], work[4, i], work[5, i], work[6, i]
        slope = c1 + x * (2.0 * c2 + 3.0 * x * c3)
        density = slope * per_node
        out[0, i] = work[3, i] + x * (c1 + x * (c2 + x * c3)) + slope * work[1, i]
        out[1, i] = -density * work[0, i]
        out[2, i] = -density * (work[0, i] - per_width)


@borrowing
def _curvature_of_standard(
    axis: ShapeAxis, scale: float, width: float, cells: Floats, out: Floats, work: Floats
) -> None:
    _place(axis, scale, width, cells, work)
    per_node, per_width = 1.0 / axis.spacing, 1.0 / width
    for i in range(axis.ratio.size):
        x, c1, c2, c3 = work[2, i], work[4, i], work[5, i], work[6, i]
        density = (c1 + x * (2.0 * c2 + 3.0 * x * c3)) * per_node
        rise = (2.0 * c2 + 6.0 * x * c3) * per_node * per_node if work[1, i] == 0.0 else 0.0
        r = work[0, i]
        t = r - per_width
        out[0, i] = r * (density + rise * r)
        out[1, i] = r * (density + rise * t)
        out[2, i] = t * (density + rise * t)


@borrowing
def signal_cdf(axis: ShapeAxis, scale: float, width: float, table: Floats, out: Floats, work: Floats) -> None:
    """F, dF/d ln(scale), dF/d ln(width) of the signal at the edges into ``out`` (3, n_edge); not normalised.

    ``table`` : contents of lines, or `cubic_cells`. ``work`` (7, axis.ratio.size) is room.
    """
    if axis.form == 0:
        _smeared_lines(axis, scale, width, table, out, work)
    else:
        _standard_shape(axis, scale, width, table, out, work)


@borrowing
def signal_curvature(
    axis: ShapeAxis, scale: float, width: float, table: Floats, out: Floats, work: Floats
) -> None:
    """Second derivatives of F into ``out`` (3, n_edge): by ln(scale) twice, by each, by ln(width) twice."""
    if axis.form == 0:
        _curvature_of_lines(axis, scale, width, table, out, work)
    else:
        _curvature_of_standard(axis, scale, width, table, out, work)


@borrowing
def background_cdf(kind: int, u: Floats, slope: float, out: Floats) -> None:
    """Cumulative background at the edges and its derivative by the slope, into the first rows of ``out`` (3, n_edge).

    Normalised to the window, ``u`` = 0 ... 1 across it. EXPONENTIAL: density exp(-slope u), abs(slope) <= 30. LINEAR:
    density 1 + slope (2 u - 1), abs(slope) <= 1.
    """
    value, first = out[0], out[1]
    if kind == 2:
        for i in range(u.size):
            first[i] = u[i] * u[i] - u[i]
            value[i] = u[i] + slope * first[i]
        return
    # Below: the integral from 0 to u, not normalised
    if abs(slope) < 1e-3:
        for i in range(u.size):
            square = u[i] * u[i]
            cube = square * u[i]
            value[i] = u[i] - 0.5 * slope * square + slope * slope * cube / 6.0
            first[i] = -0.5 * square + slope * cube / 3.0 - 0.125 * slope * slope * square * square
    else:
        inverse = 1.0 / slope
        for i in range(u.size):
            half = expm1(-0.5 * slope * u[i])
            fall = half * (2.0 + half)
            value[i] = -fall * inverse
            first[i] = (u[i] * (1.0 + fall) - value[i]) * inverse
    last = u.size - 1
    inverse = 1.0 / value[last]
    a = first[last] * inverse
    for i in range(u.size):
        value[i] *= inverse
        first[i] = first[i] * inverse - a * value[i]


@borrowing
def background_curvature(kind: int, u: Floats, slope: float, out: Floats) -> None:
    """Second derivative by the slope into the last row of ``out``, behind what `background_cdf` has put there.

    With G = P/T, P the integral to u and T that of the window, P' = -int u e^(-slope u): T G'' = P'' - 2 T' G' - T'' G.
    """
    value, first, second = out[0], out[1], out[2]
    if kind == 2:
        second[:] = 0.0
        return
    if abs(slope) < 1e-3:
        total, d_total = 1.0 - 0.5 * slope + slope * slope / 6.0, -0.5 + slope / 3.0 - 0.125 * slope * slope
        for i in range(u.size):
            second[i] = u[i] * u[i] * u[i] * (1.0 / 3.0 - 0.25 * slope * u[i])
    else:
        total = -math.expm1(-slope) / slope
        d_total = (math.exp(-slope) - total) / slope
        for i in range(u.size):
            # P'' = -(u^2 e^(-slope u) + 2 P')/slope, with what is there: G = P/T, G' = (P' - T' G)/T
            part = value[i] * total
            d_part = first[i] * total + d_total * value[i]
            second[i] = -(u[i] * u[i] * (1.0 - slope * part) + 2.0 * d_part) / slope
    d2_total = second[u.size - 1]
    for i in range(u.size):
        second[i] = (second[i] - 2.0 * d_total * first[i] - d2_total * value[i]) / total
