"""What a friend says of each row of a file: the columns to read, and those that the correction makes of them.

Two layouts: NanoAOD, with a list of muons a row, and flat files, with one pair a row. Row n of the friend belongs to
row n of the file, whatever the muons in it are like: none is dropped.

Not for: the correction itself (`musclecal.correction`), files to write (`musclecal.friend_files`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from musclecal.columnar import Column, Columns, ColumnType, Jagged, Table
from musclecal.columns import BY_CHARGE, EVENT_KEYS, SIGNS, FlatColumns, MuonColumns
from musclecal.correction import Correction
from musclecal.errors import InputError
from musclecal.kinematics import pair_masses
from musclecal.nanoaod import CHARGE, EVENT_BRANCHES, MOMENTUM, PT_ERROR
from musclecal.records import Floats, Ints

__all__ = ["FriendLayout", "FriendRows", "Values", "Wanted", "friend_layout"]

PT = MOMENTUM[0]
MUON_BRANCHES = (*MOMENTUM, CHARGE)

Values = NDArray[np.generic]


@dataclass(frozen=True)
class Wanted:
    """Which columns: ``shifts`` is syst of `Correction.scale` by what is put behind pt_corr."""

    correction: Correction
    shifts: Mapping[str, str]
    smear: bool
    salt: int


@dataclass(frozen=True)
class FriendRows:
    """Rows of a friend.

    Attributes
    ----------
    identifiers : (n_row,) as the file has them. columns : (n_row,) of a flat friend.
    muons : (n_muon,) by the name after ``Muon_``, ``counts`` (n_row,) of them: of a friend of NanoAOD, else None.
    pt : (n_row,) or (n_muon,) GeV, as read: those that a check of the unit looks at.
    reasons : (n_muon,) `musclecal.correction.Reason`.
    """

    identifiers: Mapping[str, Values]
    pt: Floats
    reasons: NDArray[np.int8]
    columns: Mapping[str, Values] = field(default_factory=dict)
    muons: Mapping[str, Values] = field(default_factory=dict)
    counts: Ints | None = None

    @property
    def n_rows(self) -> int:
        """Events or pairs."""
        return len(self.counts if self.counts is not None else next(iter(self.columns.values())))

    @property
    def kinds(self) -> dict[str, np.dtype[Any]]:
        """Type of each column, identifiers last."""
        named = {f"Muon_{name}": column for name, column in self.muons.items()}
        return {name: column.dtype for name, column in {**named, **self.columns, **self.identifiers}.items()}


class FriendLayout(Protocol):
    """What must be read of a file, and the rows that its friend has.

    Attributes
    ----------
    types : the file's columns that must be read. momentum : the one to name when the unit is wrong.
    """

    types: Mapping[str, ColumnType]
    momentum: str

    def rows(self, chunk: Columns, wanted: Wanted) -> FriendRows:
        """Of a chunk of the file."""


def friend_layout(table: Table, columns: FlatColumns | None, smear: bool) -> FriendLayout:
    """The layout of a file: flat if ``columns`` say so, else as its names tell.

    Raises
    ------
    InputError : neither kind of file; a missing column. The message names the file.
    """
    if columns is None and any(name in table.names for name in MUON_BRANCHES):
        return NanoFriend(table, smear)
    return FlatFriend(table, columns or FlatColumns.from_names(table), smear)


# Muons --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Muons:
    """(n_muon,) in float64, and what draws belong to."""

    pt: Floats
    eta: Floats
    phi: Floats
    charge: Floats
    pt_err: Floats | None
    run: Values | None = None
    lumi: Values | None = None
    event: Values | None = None


@dataclass(frozen=True)
class _Corrected:
    """(n_muon,) ``pt`` by what is put behind the name of pT: corr, corr_stat0_up, ..., smeared."""

    pt: Mapping[str, Floats]
    pt_err: Floats | None
    reason: NDArray[np.int8]


def _corrected(muons: _Muons, wanted: Wanted) -> _Corrected:
    correction = wanted.correction
    muon = pt, eta, phi, charge = muons.pt, muons.eta, muons.phi, muons.charge
    result = {"corr": pt * correction.scale(*muon)}
    for name, syst in wanted.shifts.items():
        result[f"corr_{name}"] = pt * correction.scale(*muon, syst=syst)
    if wanted.smear:
        # A scale of data is not for simulation, which is what a smearing is for.
        for_simulation = correction.provenance.get("corrects", "data").startswith("simulation")
        start = result["corr"] if for_simulation else pt
        numbers = muons.run, muons.lumi, muons.event
        result["smeared"] = start * correction.smear(start, eta, phi, charge, *numbers, salt=wanted.salt)
    error = None if muons.pt_err is None else correction.pt_error(*muon, pt_err=muons.pt_err)
    return _Corrected(result, error, correction.validity(*muon).reason)


def _precision(column: Values) -> type[np.floating[Any]]:
    return np.float32 if column.dtype == np.float32 else np.float64


# NanoAOD ------------------------------------------------------------------------------------------------------------


class NanoFriend:
    """Branches ``Muon_`` of NanoAOD; see `FriendLayout`."""

    momentum = PT

    def __init__(self, table: Table, smear: bool) -> None:
        self._path = table.path
        identifiers = tuple(EVENT_BRANCHES.values())
        needed = (*MUON_BRANCHES, *identifiers) if smear else MUON_BRANCHES
        for name in needed:
            if name not in table.names:
                purpose = "smearing needs" if name in identifiers else "friends of NanoAOD need"
                raise InputError(f"{table.path}: no branch {name!r}: {purpose} {', '.join(needed)}")
        # Files without event numbers exist; nothing can be drawn for their muons.
        self._identifiers = tuple(name for name in identifiers if name in table.names)
        optional = (PT_ERROR,) if PT_ERROR in table.names else ()
        self._muons = (*MUON_BRANCHES, *optional)
        self.types: Mapping[str, ColumnType] = dict.fromkeys((*self._muons, *self._identifiers), "any")

    def rows(self, chunk: Columns, wanted: Wanted) -> FriendRows:
        """A list of muons a row."""
        first = chunk[PT]
        counts = first.counts if isinstance(first, Jagged) else np.empty(0, np.int64)
        muons = {name: self._of_muons(name, chunk[name], counts) for name in self._muons}
        identifiers = {name: self._of_events(name, chunk[name]) for name in self._identifiers}
        pt, eta, phi, charge, *error = (np.asarray(column, dtype=np.float64) for column in muons.values())
        numbers = {
            key: np.repeat(identifiers[name], counts)
            for key, name in EVENT_BRANCHES.items()
            if name in identifiers
        }
        done = _corrected(_Muons(pt, eta, phi, charge, error[0] if error else None, **numbers), wanted)
        kind = _precision(muons[PT])
        result: dict[str, Values] = {f"pt_{what}": values.astype(kind) for what, values in done.pt.items()}
        if done.pt_err is not None:
            result["ptErr_corr"] = done.pt_err.astype(_precision(muons[PT_ERROR]))
        result["scale_reason"] = done.reason
        return FriendRows(identifiers, pt, done.reason, muons=result, counts=counts)

    def _of_events(self, name: str, column: Column) -> Values:
        if isinstance(column, Jagged) or column.dtype.kind not in "iu":
            raise InputError(f"{self._path}: branch {name!r} does not hold one whole number an event")
        return column

    def _of_muons(self, name: str, column: Column, counts: Ints) -> Values:
        where = f"{self._path}: branch {name!r}"
        if not isinstance(column, Jagged) or not np.array_equal(column.counts, counts):
            raise InputError(f"{where} does not have one value a muon")
        if column.values.dtype.kind not in "iuf":
            raise InputError(f"{where} does not hold numbers, but {column.values.dtype}")
        return column.values


# Flat files ---------------------------------------------------------------------------------------------------------


class FlatFriend:
    """Columns of one pair a row; see `FriendLayout`. The friend tells the two muons apart as the file does."""

    def __init__(self, table: Table, columns: FlatColumns, smear: bool) -> None:
        self._path, self._columns = table.path, columns
        self.momentum = columns.one.momentum[0]
        ids = columns.identifiers
        if smear and len(ids) < len(EVENT_KEYS):
            missing = next(key for key in EVENT_KEYS if key not in ids)
            raise InputError(f"{table.path}: no column {missing!r}: smearing needs {', '.join(EVENT_KEYS)}")
        self.types: Mapping[str, ColumnType] = {
            **{name: "any" for muon in (columns.one, columns.two) for name in _columns_of(muon)},
            **dict.fromkeys(ids.values(), "whole"),
        }
        for name in self.types:
            if name not in table.names:
                raise InputError(f"{table.path}: no column {name!r}: there are {', '.join(table.names)}")

    def rows(self, chunk: Columns, wanted: Wanted) -> FriendRows:
        """The two muons of each row, one after the other."""
        rows = {name: self._one_a_row(name, column) for name, column in chunk.items()}
        flat = self._columns
        both = (flat.one, flat.two)
        muons = self._muons(rows)
        done = _corrected(muons, wanted)
        half = len(muons.pt) // 2
        parts = (slice(None, half), slice(half, None))
        result: dict[str, Values] = {}
        for muon, end, part in zip(both, flat.ends, parts, strict=True):
            kind = _precision(rows[muon.momentum[0]])
            for what, values in done.pt.items():
                result[f"pt{end}_{what}"] = values[part].astype(kind)
            if done.pt_err is not None and muon.pt_err is not None:
                result[f"pt_err{end}_corr"] = done.pt_err[part].astype(_precision(rows[muon.pt_err]))
            result[f"scale_reason{end}"] = done.reason[part]
        eta, phi = ((angle[parts[0]], angle[parts[1]]) for angle in (muons.eta, muons.phi))
        for what, pt in done.pt.items():
            result[f"mass_{what}"] = pair_masses(pt[parts[0]], eta[0], phi[0], pt[parts[1]], eta[1], phi[1])
        identifiers = {name: rows[name] for name in flat.identifiers.values()}
        return FriendRows(identifiers, muons.pt[parts[0]], done.reason, columns=result)

    def _muons(self, rows: Mapping[str, Values]) -> _Muons:
        """(2 n_row,) all of muon one, then all of muon two."""
        one, two = self._columns.one, self._columns.two
        measured = [muon.measured(rows) for muon in (one, two)]
        pt, eta, phi = (np.concatenate([getattr(m, name) for m in measured]) for name in ("pt", "eta", "phi"))
        errors = [m.pt_err for m in measured if m.pt_err is not None]
        charge = np.concatenate([self._charges(n, rows) for n in (0, 1)])
        numbers = {key: np.tile(rows[name], 2) for key, name in self._columns.identifiers.items()}
        return _Muons(pt, eta, phi, charge, np.concatenate(errors) if errors else None, **numbers)

    def _charges(self, muon: int, rows: Mapping[str, Values]) -> Floats:
        columns = (self._columns.one, self._columns.two)[muon]
        charge = columns.charges(rows)
        if self._columns.ends == BY_CHARGE and np.any(charge == -SIGNS[muon]):
            raise InputError(
                f"{self._path}: column {columns.charge!r} holds {-SIGNS[muon]:+.0f}: that is the other muon's charge"
            )
        return charge

    def _one_a_row(self, name: str, column: Column) -> Values:
        where = f"{self._path}: column {name!r}"
        if isinstance(column, Jagged):
            raise InputError(f"{where} holds a list a row: flat files need one value")
        if column.dtype.kind not in "iuf":
            raise InputError(f"{where} does not hold numbers, but {column.dtype}")
        return column


def _columns_of(muon: MuonColumns) -> tuple[str, ...]:
    return (*muon.measured_columns, *([muon.pt_err] if muon.pt_err else []))
