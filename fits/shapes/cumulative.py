"""The two numerical forms that every signal shape takes, and the background shapes, as cumulative kernels.

``smeared_lines``: a histogram of true masses, each smeared with the same relative resolution.
``standard_shape``: a tabulated cumulative distribution of t = (m/(s m_ref) - 1)/w.

A kernel fills, at all n_mass + 1 edges of the log-uniform mass axis, the cumulative F and its derivatives with respect
to ln(scale) and ln(width). Bin contents are differences of F: bin integrals are exact.
"""

import math

from musclecal.compiled import kernel
from musclecal.records import Floats

__all__ = ["LINES", "STANDARD", "background_cdf", "signal_cdf"]

LINES, STANDARD = 0, 1
"""Which form a table is for."""

NO_BACKGROUND, EXPONENTIAL, LINEAR = 0, 1, 2
"""Which background is floated."""


@kernel
def _smeared_lines(
    low: float, step: float, reference: float, scale: float, width: float, first: int, table: Floats,
    cdf: Floats, d_scale: Floats, d_width: Floats, work: Floats,
) -> None:  # fmt: skip
    """F(x) = sum_j n_j Phi((x/(s m_j) - 1)/w), with m_j = reference exp(step (first + j)) and edges low exp(step i).

    Both axes are uniform in ln m with the same step, so Phi depends on i - j alone: a discrete convolution.
    """
    n_edge, n_line = cdf.size, table.size
    for d in range(n_edge + n_line - 1):
        ratio = low / (reference * scale) * math.exp(step * (d - (n_line - 1) - first))
        t = (ratio - 1.0) / width
        density = math.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
        work[0, d] = 0.5 * math.erfc(-t / math.sqrt(2.0))
        work[1, d] = -density * ratio / width
        work[2, d] = -density * t
    for i in range(n_edge):
        cdf[i] = d_scale[i] = d_width[i] = 0.0
    for j in range(n_line):
        n = table[j]
        if n == 0.0:
            continue
        shift = n_line - 1 - j
        for i in range(n_edge):
            cdf[i] += n * work[0, i + shift]
            d_scale[i] += n * work[1, i + shift]
            d_width[i] += n * work[2, i + shift]


@kernel
def _standard_shape(
    low: float, step: float, reference: float, scale: float, width: float, t_low: float, t_step: float, table: Floats,
    cdf: Floats, d_scale: Floats, d_width: Floats,
) -> None:  # fmt: skip
    """F(x) = G(t), t = (x/(s m_ref) - 1)/w. ``table`` holds G at uniform nodes, then its density g at the same nodes.

    Cubic Hermite interpolation between nodes; constant density beyond the last node on either side.
    """
    n_node = table.size // 2
    for i in range(cdf.size):
        ratio = low * math.exp(step * i) / (reference * scale)
        t = (ratio - 1.0) / width
        u = (t - t_low) / t_step
        if u <= 0.0:
            density = table[n_node]
            value = table[0] + density * u * t_step
        elif u >= n_node - 1:
            density = table[2 * n_node - 1]
            value = table[n_node - 1] + density * (u - (n_node - 1)) * t_step
        else:
            k = int(u)
            x = u - k
            g0, g1 = table[k], table[k + 1]
            d0, d1 = table[n_node + k] * t_step, table[n_node + k + 1] * t_step
            rise = g1 - g0
            value = g0 + x * (d0 + x * (3.0 * rise - 2.0 * d0 - d1 + x * (d0 + d1 - 2.0 * rise)))
            density = (
                d0 + x * (2.0 * (3.0 * rise - 2.0 * d0 - d1) + 3.0 * x * (d0 + d1 - 2.0 * rise))
            ) / t_step
        cdf[i] = value
        d_scale[i] = -density * ratio / width
        d_width[i] = -density * t


@kernel
def signal_cdf(
    form: int, low: float, step: float, reference: float, scale: float, width: float, origin: float, spacing: float,
    table: Floats, cdf: Floats, d_scale: Floats, d_width: Floats, work: Floats,
) -> None:  # fmt: skip
    """Cumulative signal at the edges, not normalised to the window.

    ``origin`` and ``spacing`` describe the table: number of the first line for LINES, first node and distance of
    nodes for STANDARD.
    """
    if form == 0:
        _smeared_lines(low, step, reference, scale, width, int(origin), table, cdf, d_scale, d_width, work)
    else:
        _standard_shape(low, step, reference, scale, width, origin, spacing, table, cdf, d_scale, d_width)


@kernel
def background_cdf(kind: int, step: float, slope: float, cdf: Floats, d_slope: Floats) -> None:
    """Cumulative background at the edges, normalised to the window; u = 0 ... 1 across the window.

    EXPONENTIAL: density exp(-slope u). LINEAR: density 1 + slope (2 u - 1), |slope| <= 1.
    """
    n = cdf.size - 1
    span = math.expm1(step * n)
    if kind == 2:
        for i in range(n + 1):
            u = math.expm1(step * i) / span
            cdf[i] = u + slope * (u * u - u)
            d_slope[i] = u * u - u
        return
    small = abs(slope) < 1e-3
    total = 1.0 - 0.5 * slope + slope * slope / 6.0 if small else -math.expm1(-slope) / slope
    d_total = -0.5 + slope / 3.0 if small else (math.exp(-slope) - total) / slope
    for i in range(n + 1):
        u = math.expm1(step * i) / span
        if small:
            part = u - 0.5 * slope * u * u + slope * slope * u * u * u / 6.0
            d_part = -0.5 * u * u + slope * u * u * u / 3.0
        else:
            part = -math.expm1(-slope * u) / slope
            d_part = (u * math.exp(-slope * u) - part) / slope
        cdf[i] = part / total
        d_slope[i] = (d_part - part / total * d_total) / total
