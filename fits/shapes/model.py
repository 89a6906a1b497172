"""What a signal shape is for the likelihood: a form, its tables, and which table each 4D bin uses."""

from dataclasses import dataclass, replace

import numpy as np

from musclecal.binning import Binning
from musclecal.records import Floats, Ints

__all__ = ["SignalModel", "standard_table"]


@dataclass(frozen=True)
class SignalModel:
    """A signal shape on the mass axis of a binning.

    Attributes
    ----------
    name : as in a campaign file.
    form : LINES or STANDARD of `musclecal.fits.shapes.cumulative`.
    low, step, n_mass : first edge (GeV) and step in ln m of the mass axis, number of mass bins.
    reference : mass in GeV at which scale = 1.
    origin, spacing : of the tables (see `signal_cdf`).
    tables : (n_table, n_node). table_of : (n_bin,) row of ``tables`` for each fitted bin.
    start_width : relative width to start a fit from.
    """

    name: str
    form: int
    low: float
    step: float
    n_mass: int
    reference: float
    origin: float
    spacing: float
    tables: Floats
    table_of: Ints
    start_width: float = 0.012

    def rows(self, which: Ints) -> "SignalModel":
        """The model of some of the bins."""
        return replace(self, table_of=self.table_of[which])


def on_axis(
    name: str, form: int, binning: Binning, origin: float, spacing: float, tables: Floats, table_of: Ints
) -> SignalModel:
    """A model on the mass axis of ``binning``."""
    return SignalModel(
        name=name,
        form=form,
        low=binning.mass_window[0],
        step=binning.log_step,
        n_mass=binning.mass_bins,
        reference=binning.mass_reference,
        origin=float(origin),
        spacing=float(spacing),
        tables=np.ascontiguousarray(tables, dtype=np.float64),
        table_of=np.asarray(table_of, dtype=np.int64),
    )


def standard_table(cdf: Floats, density: Floats) -> Floats:
    """(1, 2 n_node) table of a standard shape from its cumulative and density at the nodes."""
    return np.concatenate([cdf, density])[None, :]
