"""Generator template: generator-level masses (after FSR) of the 4D bin, smeared: sum_j n_j N(m; s m_j, w m_j).

The events of a template are assigned to the 4D bin by their measured momenta, so migration across pT edges is in it.
Absolute scale: biased (+16e-5 at the J/psi, physics.md section 2); use the ratio of data to simulation.
"""

import numpy as np

from musclecal.errors import InputError
from musclecal.fits.shapes.cumulative import LINES
from musclecal.fits.shapes.model import SignalModel, on_axis
from musclecal.records import Ints, MassHistogram

__all__ = ["generator_template"]


def generator_template(simulation: MassHistogram, rows: Ints) -> SignalModel:
    """Model of the bins ``rows`` of the simulation. Raises `InputError` without generator-level masses."""
    if simulation.generator is None:
        raise InputError(
            "model generator-template: the simulation has no generator-level muons (gen_* columns)"
        )
    tables = np.asarray(simulation.generator[rows], dtype=np.float64)
    tables = tables / np.maximum(tables.sum(axis=1, keepdims=True), 1.0)
    binning = simulation.binning
    table_of = np.arange(len(rows), dtype=np.int64)
    return on_axis("generator-template", LINES, binning, binning.generator_range[0], 0.0, tables, table_of)
