r"""Generator template without the noise of the bin: one table of generator-level masses, tilted from bin to bin.

A template made of the few simulated events of one 4D bin fluctuates, and a fit to other events answers by smearing
it more: with 1700 simulated Z in a bin, the fitted w^2 of data came out 30 % too large (that of the same simulation did
not, as its own noise is in its template). Here all bins share one table :math:`t_j`, and

.. math:: t_{bj} \propto t_j \exp\bigl(h_c(x_j) + \alpha_b u_j + \beta_b u_j^2\bigr), \qquad
   x_j = \ln(m_j/m_\mathrm{ref}), \quad u_j = x_j / \max|x|

with :math:`h_c` piecewise linear in x for each unordered pair c of pT bins (final-state radiation moves muons between
them) and the two slopes for each bin, both by maximum likelihood with a weak Gaussian prior around zero.

Not for: pT bins that cut the line shape of a wide resonance (bins in pT alone at the Z, `Binning.pt_scaled`).
"""

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.shapes.cumulative import LINES
from musclecal.fits.shapes.model import SignalModel, on_axis
from musclecal.records import Floats, Ints, MassHistogram

__all__ = ["pooled_template", "tilted"]

_KNOTS = 9
_PRIOR = 1.0
_BLOCK = 256


def tilted(counts: Floats, table: Floats, basis: Floats) -> Floats:
    """(n_row, n_gen) ``table`` times exp(basis c), normalised, c of each row by maximum likelihood and a unit prior.

    counts : (n_row, n_gen). table : (n_row, n_gen) or (n_gen,). basis : (n_gen, n_par).
    """
    table = np.broadcast_to(table, counts.shape)
    events = counts.sum(axis=1)
    seen = counts @ basis
    c = np.zeros((len(counts), basis.shape[1]))
    for _ in range(50):
        p = _normalised(table, basis, c)
        mean = p @ basis
        gradient = seen - events[:, None] * mean - _PRIOR * c
        second = (
            np.einsum("rj,ja,jb->rab", p, basis, basis, optimize=True) - mean[:, :, None] * mean[:, None, :]
        )
        hessian = events[:, None, None] * second + _PRIOR * np.eye(basis.shape[1])
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        c = c + np.clip(step, -1.0, 1.0)
        if np.max(np.abs(step), initial=0.0) < 1e-8:
            break
    return _normalised(table, basis, c)


def _normalised(table: Floats, basis: Floats, c: Floats) -> Floats:
    p = table * np.exp(np.clip(c @ basis.T, -30.0, 30.0))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def _hats(x: Floats) -> Floats:
    """(n_gen, knots) piecewise linear functions."""
    knots = np.linspace(x[0], x[-1], _KNOTS)
    return np.stack([np.interp(x, knots, row) for row in np.eye(_KNOTS)], axis=1)


def pooled_template(simulation: MassHistogram, rows: Ints) -> SignalModel:
    """Model of the bins ``rows`` of the simulation. Raises `InputError` without generator-level masses."""
    if simulation.generator is None:
        raise InputError("model pooled-template: the simulation has no generator-level muons (gen_* columns)")
    counts = np.asarray(simulation.generator[rows], dtype=np.float64)
    pool = counts.sum(axis=0)
    binning = simulation.binning
    x = np.log(binning.generator_masses / binning.mass_reference)
    _, _, one, two = binning.unravel(simulation.bins[rows])
    _, pair = np.unique(np.minimum(one, two) * binning.n_pt + np.maximum(one, two), return_inverse=True)
    of_pair = np.zeros((int(pair.max()) + 1, len(pool)))
    np.add.at(of_pair, pair, counts)
    tables = tilted(of_pair, pool, _hats(x))[pair]
    u = x / np.abs(x).max()
    basis = np.stack([u, u * u], axis=1)
    for first in range(0, len(rows), _BLOCK):
        block = slice(first, first + _BLOCK)
        tables[block] = tilted(counts[block], tables[block], basis)
    table_of = np.arange(len(rows), dtype=np.int64)
    return on_axis("pooled-template", LINES, binning, binning.generator_range[0], 0.0, tables, table_of)
