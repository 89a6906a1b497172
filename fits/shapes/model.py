"""What a signal shape is for the likelihood: a form, its tables, and which table each 4D bin uses."""

from dataclasses import dataclass, replace

import numpy as np

from musclecal.binning import Binning
from musclecal.fits.shapes.cumulative import LINES, ShapeAxis, cubic_cells, shape_axis
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
    origin, spacing : of the tables (see `shape_axis`).
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

    @property
    def axis(self) -> ShapeAxis:
        """For kernels."""
        return shape_axis(
            self.form, self.low, self.step, self.n_mass, self.reference, self.origin, self.spacing,
            self.tables.shape[1],
        )  # fmt: skip

    @property
    def kernel_tables(self) -> Floats:
        """(n_table, n) as `signal_cdf` takes them."""
        return self.tables if self.form == LINES else cubic_cells(self.tables, self.spacing)

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
