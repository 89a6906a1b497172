r"""Corrections for analyses: `musclecal.load` a file or folder of tables, and ask for factors, variations, draws.

Every method is a function of its arguments alone: no state, no order, no chunks. A muon outside the ranges of validity
has the factor 1 and a reason (`Reason`), never an exception and never a silent nan. With k = 1/pT the factor is

.. math:: \frac{p_T^\mathrm{corr}}{p_T} = \frac{1}{1 + A - e\,k + q\,M/k} = \frac{p_T}{(1+A)\,p_T - e + q\,M\,p_T^2}

(`musclecal.scale`), the right-hand side with one division.

Arrays may be numpy of any shape, scalars, or awkward; what comes back has the same structure. The arithmetic is that of
float64 whatever comes in, but a float32 eta that was rounded over a bin edge stays in the next bin.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musclecal.array_structure import flattened
from musclecal.binning import SearchAxis, search_axis
from musclecal.compiled import in_order
from musclecal.correction_kernels import (
    EtaGrid,
    all_variations,
    error_factors,
    factors,
    factors_on_grid,
    reasons,
)
from musclecal.errors import InputError
from musclecal.records import CorrectionTables, Floats, Response
from musclecal.smear import smeared_factors
from musclecal.weights import variation_weights

__all__ = ["NO_SMEARING", "Correction", "Reason", "Validity"]

NO_SMEARING = "smear: these tables hold no smearing: it needs widths of two resonances, and tables for data"
"""Why there may be none."""
_NO_RESPONSE = (
    "weights: no response.npz beside these tables: export them with export.response in the campaign file"
)
_BLOCK = 1 << 17
"""Muons a thread takes at a time."""
_MOST_BINS = 50_000
"""Of the narrowest kind on an eta axis."""
_REAL = ("real", "real", "real", "real")


class Reason(IntEnum):
    """Why a muon is not corrected; the first that applies."""

    VALID = 0
    NOT_FINITE = 1
    PT_BELOW = 2
    PT_ABOVE = 3
    ETA_OUTSIDE = 4
    CHARGE = 5
    FLIPPED = 6


class Validity(NamedTuple):
    """``valid`` (n,) booleans and ``reason`` (n,) int8 of `Reason`."""

    valid: Any
    reason: Any


@dataclass(frozen=True)
class Correction:
    """The tables of an export, ready to be applied, and the response for weights; made by `musclecal.load`.

    In all methods pt (GeV), eta, phi (rad) and charge (+1 or -1) are arrays of one structure, or broadcast to one.
    ``phi`` is there for corrections that depend on it; those of A, e, M do not.
    """

    tables: CorrectionTables
    response: Response | None = None

    @cached_property
    def _axis(self) -> SearchAxis:
        edges = self.tables.eta_edges
        narrowest, span = float(np.diff(edges).min()), float(edges[-1] - edges[0])
        if span > _MOST_BINS * narrowest:
            raise InputError(f"eta_edges: bins from {narrowest:g} to {span:g} wide are not one axis")
        return search_axis(edges)

    @cached_property
    def _grid(self) -> EtaGrid | None:
        return EtaGrid.of(self.tables.eta_edges)

    @cached_property
    def _nominal(self) -> Floats:
        t = self.tables
        return np.ascontiguousarray(np.stack([1.0 + t.A, t.e, t.M], axis=1))

    # What is asked for

    @property
    def covariance(self) -> Floats:
        """(3 n_eta, 3 n_eta) of A0, e0, M0, A1, ... by all variations: statistics times s, closures, masses."""
        return self.tables.scaled_covariance

    @property
    def provenance(self) -> Mapping[str, str]:
        """Where the numbers come from."""
        return self.tables.provenance

    @property
    def variation_names(self) -> tuple[str, ...]:
        """(n_var,) columns of `variations`; with _up or _down, values of ``syst``."""
        return self.tables.variation_names

    def scale(
        self, pt: Any, eta: Any, phi: Any, charge: Any, syst: str = "nom", *, out: Floats | None = None
    ) -> Any:  # fmt: skip
        """The factor on pT.

        Parameters
        ----------
        syst : ``nom``, or the name of a variation with ``_up`` or ``_down``.
        out : (n,) float64 to write to, and to return: new memory costs as much as the factors of large arrays.

        Raises
        ------
        InputError : another ``syst``; arrays that do not fit, or are no numbers; an ``out`` that does not.
        """
        flat, rebuild = flattened((pt, eta, charge, phi), _REAL)
        table, grid = self._table(syst), self._grid
        values = _room(out, len(flat[0]))
        if grid is None:
            self._run(factors, flat, table, values)
        else:
            of_cells, edges = grid.table(table), self.tables.eta_edges
            axis = (grid.cells, grid.first, edges[0], edges[-1], of_cells, *self.tables.pt_range)
            p, h, q = flat[:3]
            _in_blocks(
                lambda part: factors_on_grid(p[part], h[part], q[part], *axis, values[part]), len(values)
            )
        return rebuild(values) if out is None else out

    def variations(
        self, pt: Any, eta: Any, phi: Any, charge: Any, *, nsigma: float = 1.0
    ) -> Any:  # fmt: skip
        """(..., n_var) the factor on pT with each variation shifted by ``nsigma`` standard deviations.

        Give muons in pieces if there are many: a million and 144 variations are 1.2 GB.

        Raises
        ------
        InputError : arrays that do not fit, or are no numbers; ``nsigma`` is not finite.
        """
        if not np.isfinite(nsigma):
            raise InputError(f"nsigma: must be finite, got {nsigma}")
        flat, rebuild = flattened((pt, eta, charge, phi), _REAL)
        t, axis = self.tables, self._axis
        out = np.empty((len(flat[0]), t.n_variations))
        shifts = np.ascontiguousarray(nsigma * t.variations)

        def block(part: slice) -> None:
            all_variations(
                flat[0][part], flat[1][part], flat[2][part], axis, self._nominal,
                shifts, *t.pt_range, out[part],
            )  # fmt: skip

        _in_blocks(block, len(out))
        return rebuild(out)

    def pt_error(
        self, pt: Any, eta: Any, phi: Any, charge: Any, pt_err: Any, syst: str = "nom"
    ) -> Any:  # fmt: skip
        """The error of the corrected pT, GeV: ``pt_err`` times d(corrected pT)/d(pT)."""
        flat, rebuild = flattened((pt, eta, charge, phi, pt_err), (*_REAL, "real"))
        slopes = np.empty(len(flat[0]))
        self._run(error_factors, flat, self._table(syst), slopes)
        return rebuild(flat[4] * slopes)

    def smear(
        self, pt: Any, eta: Any, phi: Any, charge: Any, run: Any, lumi: Any, event: Any,
        salt: int = 0,
    ) -> Any:  # fmt: skip
        """The factor on pT that gives a simulated muon the resolution of the data: 1/(1 + sigma g).

        g is a unit Gaussian, a pure function of (run, lumi, event, phi, salt) (`musclecal.smear`). 1 outside the
        ranges, and for a phi that is no angle. Simulation is not scaled with tables that correct data.

        Raises
        ------
        InputError : the tables hold no smearing; run, lumi or event are no integers.
        """
        smearing = self.tables.smearing
        if smearing is None:
            raise InputError(NO_SMEARING)
        values = (pt, eta, charge, phi, run, lumi, event)
        flat, rebuild = flattened(values, (*_REAL, "integer", "integer", "integer"))
        out = np.empty(len(flat[0]))

        def block(part: slice) -> None:
            p, h, _, f, r, b, number = (column[part] for column in flat)
            out[part] = smeared_factors(p, h, f, r, b, number, salt, smearing, self.tables.pt_range)

        _in_blocks(block, len(out))
        return rebuild(out)

    def weights(
        self, pt: Any, eta: Any, phi: Any, charge: Any, gen_pt: Any, names: Sequence[str] | None = None
    ) -> Any:  # fmt: skip
        """(..., n_var) d ln w/d theta of simulated muons by variations, for the weight 1 + theta d ln w/d theta.

        theta = 1 is a shift of +1 sigma; signs, and which muons get 0, are those of `musclecal.weights`.

        Parameters
        ----------
        pt, eta, charge : as measured in the simulation, before any smearing.
        gen_pt : GeV, of the matched generator-level muon after radiation; nan or <= 0 without a match.
        names : which variations, of `variation_names`; None for all.

        Raises
        ------
        InputError : the export has no response; an unknown name; arrays that do not fit, or are no numbers.
        """
        if self.response is None:
            raise InputError(_NO_RESPONSE)
        response, tables = self.response, self.tables if names is None else self._only(names)
        flat, rebuild = flattened((pt, eta, charge, phi, gen_pt), (*_REAL, "real"))
        out = np.empty((len(flat[0]), tables.n_variations))

        def block(part: slice) -> None:
            p, h, q, _, true = (column[part] for column in flat)
            out[part] = variation_weights(response, tables, p, h, q, true)

        _in_blocks(block, len(out))
        return rebuild(out)

    def validity(self, pt: Any, eta: Any, phi: Any, charge: Any) -> Validity:
        """Whether each muon is corrected, and if not why (`Reason`)."""
        flat, rebuild = flattened((pt, eta, charge, phi), _REAL)
        found = np.empty(len(flat[0]), np.int8)
        self._run(reasons, flat, self._nominal, found)
        reason = rebuild(found)
        return Validity(reason == 0, reason)

    # How it is done

    def _table(self, syst: str) -> Floats:
        """(n_eta, 3) 1 + A, e, M of a variation."""
        if syst == "nom":
            return self._nominal
        name, _, side = str(syst).rpartition("_")
        sign = {"up": 1.0, "down": -1.0}.get(side)
        if sign is None or name not in self.tables.variation_names:
            names = self.tables.variation_names
            known = ", ".join(names if len(names) < 4 else (*names[:2], "...", names[-1]))
            raise InputError(f"syst: {syst!r} is neither nom nor one of {known} with _up or _down")
        shift = self.tables.variations[:, :, self.tables.variation_names.index(name)]
        return np.ascontiguousarray(self._nominal + sign * shift)

    def _only(self, names: Sequence[str]) -> CorrectionTables:
        """The tables with some of their variations."""
        wanted, known = (names,) if isinstance(names, str) else tuple(names), self.variation_names
        for name in wanted:
            if name not in known:
                raise InputError(f"names: {name!r} is none of {', '.join(known[:2])}, ..., {known[-1]}")
        columns = np.ascontiguousarray(self.tables.variations[:, :, [known.index(name) for name in wanted]])
        return replace(self.tables, variation_names=wanted, variations=columns)

    def _run(
        self, run: Callable[..., None], flat: Sequence[NDArray[Any]], table: Floats, out: NDArray[Any]
    ) -> None:  # fmt: skip
        """A kernel on the (n,) columns pt, eta, charge."""
        axis = self._axis
        constants = (axis, table, *self.tables.pt_range)
        _in_blocks(lambda part: run(*(x[part] for x in flat[:3]), *constants, out[part]), len(out))


def _room(out: Floats | None, n: int) -> Floats:
    """What is written to."""
    if out is None:
        return np.empty(n)
    if not (isinstance(out, np.ndarray) and out.shape == (n,) and out.dtype == np.float64):
        raise InputError(f"out: a float64 array of the shape ({n},) is wanted")
    return out


def _in_blocks(block: Callable[[slice], None], n: int) -> None:
    """Large arrays on all threads, small ones here."""
    parts = [slice(first, first + _BLOCK) for first in range(0, n, _BLOCK)]
    for _ in in_order(block, parts, 1 if n <= _BLOCK else None):
        pass
