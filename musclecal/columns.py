"""Flat files, one pair a row: which column holds what (the column map), and how the columns make pairs.

Not for: jagged NanoAOD branches (`musclecal.nanoaod`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musclecal.columnar import Column, Columns, ColumnType, Jagged, Table
from musclecal.errors import InputError
from musclecal.kinematics import from_cartesian
from musclecal.pairs import CandidatePairs, LoadedPairs, opposite_sign_events
from musclecal.records import Floats, Muons

__all__ = [
    "BY_CHARGE",
    "BY_NUMBER",
    "COLUMN_KEYS",
    "EVENT_KEYS",
    "SIGNS",
    "FlatColumns",
    "FlatLayout",
    "Layout",
    "MuonColumns",
    "charge_stem",
]

EVENT_KEYS = ("run", "lumi", "event")
POLAR = ("pt", "eta", "phi")
CARTESIAN = ("px", "py", "pz")
GENERATOR = ("gen_pt", "gen_eta", "gen_phi")
COLUMN_KEYS = EVENT_KEYS + tuple(
    f"{key}{muon}" for muon in (1, 2) for key in (*POLAR, *CARTESIAN, "charge", "pt_err", *GENERATOR)
)
"""The keys of a column map."""
BY_NUMBER, BY_CHARGE = ("1", "2"), ("_plus", "_minus")
"""How a file may tell its two muons apart, at the end of each column's name."""
SIGNS = (1.0, -1.0)
"""Of the muons of a file that names them by charge."""

Rows = Mapping[str, NDArray[np.generic]]


class Layout(Protocol):
    """How the columns of one file make muon pairs.

    Attributes
    ----------
    types : the file's columns that must be read. momentum : the column to name when the unit is wrong.
    generator : the same at generator level; None without generator muons.
    """

    types: Mapping[str, ColumnType]
    momentum: str
    generator: str | None

    def load(self, chunk: Columns) -> LoadedPairs:
        """The opposite-sign pairs of a chunk of the file."""


@dataclass(frozen=True)
class MuonColumns:
    """The file's columns of one muon: ``momentum`` is (px, py, pz) if ``cartesian``, else (pt, eta, phi).

    ``charge`` is a column, or the charge itself where names alone say it.
    """

    momentum: tuple[str, str, str]
    cartesian: bool
    charge: str | float
    pt_err: str | None
    generator: tuple[str, str, str] | None

    @classmethod
    def from_map(cls, columns: Mapping[str, str], muon: int, sign: float | None = None) -> "MuonColumns":
        """The columns of muon 1 or 2, and its charge if it has no column. Cartesian momenta win (physics.md 6.9)."""
        cartesian, polar = _triple(columns, CARTESIAN, muon), _triple(columns, POLAR, muon)
        momentum = cartesian or polar
        if momentum is None:
            keys = " or ".join(", ".join(f"{key}{muon}" for key in keys) for keys in (POLAR, CARTESIAN))
            raise InputError(f"columns: muon {muon} has no momentum: {keys} are needed")
        charge = columns.get(f"charge{muon}", sign)
        if charge is None:
            raise InputError(f"columns: 'charge{muon}' is missing")
        return cls(
            momentum,
            cartesian is not None,
            charge,
            columns.get(f"pt_err{muon}"),
            _triple(columns, GENERATOR, muon),
        )

    def measured(self, rows: Rows) -> Muons:
        """The measured muons of a chunk."""
        first, second, third = (_real(rows, name) for name in self.momentum)
        error = None if self.pt_err is None else _real(rows, self.pt_err)
        pt, eta, phi = from_cartesian(first, second, third) if self.cartesian else (first, second, third)
        return Muons(pt, eta, phi, error)

    def charges(self, rows: Rows) -> Floats:
        """Of the muons of a chunk, whatever the file says."""
        if isinstance(self.charge, str):
            return _real(rows, self.charge)
        return np.full(len(rows[self.momentum[0]]), self.charge)

    @property
    def measured_columns(self) -> tuple[str, ...]:
        """All but the error of pT and the generator's."""
        return (*self.momentum, *([self.charge] if isinstance(self.charge, str) else []))

    def generated(self, rows: Rows) -> Muons | None:
        """The generator-level muons of a chunk, if the file has them."""
        return None if self.generator is None else Muons(*(_real(rows, name) for name in self.generator))


def _triple(columns: Mapping[str, str], keys: tuple[str, ...], muon: int) -> tuple[str, str, str] | None:
    wanted = [f"{key}{muon}" for key in keys]
    missing = [key for key in wanted if key not in columns]
    if len(missing) == len(wanted):
        return None
    if missing:
        raise InputError(f"columns: {missing[0]!r} is missing: {', '.join(wanted)} go together")
    x, y, z = (columns[key] for key in wanted)
    return x, y, z


@dataclass(frozen=True)
class FlatColumns:
    """A checked column map: columns of muon ``one`` and ``two`` (any order of charge) and of the event.

    ``ends`` are `BY_CHARGE` for a file that names its muons so, else `BY_NUMBER`.
    """

    one: MuonColumns
    two: MuonColumns
    identifiers: Mapping[str, str]
    ends: tuple[str, str] = BY_NUMBER

    @classmethod
    def from_map(cls, columns: Mapping[str, str], ends: tuple[str, str] = BY_NUMBER) -> "FlatColumns":
        """Check a column map: key (`COLUMN_KEYS`) -> the file's column. Charges need none with ``ends`` `BY_CHARGE`.

        Raises
        ------
        InputError : unknown key, incomplete momentum, a column for one muon only.
        """
        for key, name in columns.items():
            if key not in COLUMN_KEYS:
                raise InputError(f"columns: unknown key {key!r}: known are {', '.join(COLUMN_KEYS)}")
            if not isinstance(name, str) or not name:
                raise InputError(f"columns: {key!r} must be the name of a column, got {name!r}")
        signs = SIGNS if ends == BY_CHARGE else (None, None)
        one, two = (
            MuonColumns.from_map(columns, muon, sign) for muon, sign in zip((1, 2), signs, strict=True)
        )
        for key, first, second in (
            ("pt_err", one.pt_err, two.pt_err),
            ("gen_pt", one.generator, two.generator),
        ):
            if (first is None) != (second is None):
                missing = f"{key}1" if first is None else f"{key}2"
                raise InputError(f"columns: {missing!r} is missing: both muons or none must have it")
        return cls(one, two, {key: columns[key] for key in EVENT_KEYS if key in columns}, ends)

    @classmethod
    def from_names(cls, table: Table) -> "FlatColumns":
        """The columns of a file that calls them as `write_dimuons` does, pt1, pt2, ..., or pt_plus, pt_minus, ..."""
        ends = _ends(table.names)
        found = {key: name for key in COLUMN_KEYS if (name := _named(key, ends)) in table.names}
        for muon in (1, 2):
            cartesian = [f"{key}{muon}" for key in CARTESIAN]
            if not all(key in found for key in cartesian):
                found = {key: name for key, name in found.items() if key not in cartesian}
        try:
            return cls.from_map(found, ends)
        except InputError as error:
            raise InputError(
                f"{table.path}: neither NanoAOD (no 'Muon_pt') nor named as musclecal names columns: "
                f"say which is which with `columns` (apply: --column) ({_spoken(error, ends)}); "
                f"the file has {', '.join(table.names)}"
            ) from error


class FlatLayout:
    """Pairs of a flat file; see `Layout`."""

    def __init__(
        self, table: Table, columns: FlatColumns, extra: Sequence[str] = (), generator: bool = True
    ) -> None:
        self.columns = columns
        self._path = table.path
        self.momentum = columns.one.momentum[0]
        self.generator = columns.one.generator[0] if generator and columns.one.generator else None
        self._event_extra, self._muon_extra = _resolve_extra(table, extra)
        self.types: Mapping[str, ColumnType] = self._needed()
        for name in self.types:
            if name not in table.names:
                raise InputError(f"{table.path}: no column {name!r}: there are {', '.join(table.names)}")

    def _needed(self) -> dict[str, ColumnType]:
        types: dict[str, ColumnType] = dict.fromkeys(self._event_extra, "any")
        for stem in self._muon_extra:
            types |= {f"{stem}1": "any", f"{stem}2": "any"}
        types |= dict.fromkeys(self.columns.identifiers.values(), "integer")
        for muon in (self.columns.one, self.columns.two):
            types |= dict.fromkeys(muon.measured_columns, "real")
            types |= {muon.pt_err: "real"} if muon.pt_err else {}
            types |= dict.fromkeys(muon.generator, "real") if muon.generator and self.generator else {}
        return types

    def load(self, chunk: Columns) -> LoadedPairs:
        """One pair a row."""
        pairs = self._candidates(chunk)
        events, flow = opposite_sign_events(pairs)
        return LoadedPairs(events, flow, pairs.one.pt, None if pairs.gen_one is None else pairs.gen_one.pt)

    def _candidates(self, chunk: Columns) -> CandidatePairs:
        rows = {name: self._one_a_row(chunk[name], name) for name in self.types}
        one, two = self.columns.one, self.columns.two
        return CandidatePairs(
            one.measured(rows),
            two.measured(rows),
            one.charges(rows),
            two.charges(rows),
            one.generated(rows) if self.generator else None,
            two.generated(rows) if self.generator else None,
            **{key: np.asarray(rows[name], dtype=np.int64) for key, name in self.columns.identifiers.items()},
            extra={name: rows[name] for name in self._event_extra},
            muon_extra={stem: (rows[f"{stem}1"], rows[f"{stem}2"]) for stem in self._muon_extra},
        )

    def _one_a_row(self, column: Column, name: str) -> NDArray[np.generic]:
        if isinstance(column, Jagged):
            raise InputError(f"{self._path}: column {name!r} holds a list a row: flat files need one value")
        return column


def _ends(names: Sequence[str]) -> tuple[str, str]:
    """Numbers win: pt_plus is a column of the pair where there is a pt1."""
    by_number, by_charge = (
        any(f"{key}{end}" in names for key in ("pt", "px") for end in ends) for ends in (BY_NUMBER, BY_CHARGE)
    )
    return BY_CHARGE if by_charge and not by_number else BY_NUMBER


def _named(key: str, ends: tuple[str, str]) -> str:
    """pt1 with the end of its muon."""
    return key if key in EVENT_KEYS else key[:-1] + ends[int(key[-1]) - 1]


def _spoken(error: InputError, ends: tuple[str, str]) -> str:
    """The words of a column map with the names of the file."""
    return re.sub(r"\b[a-z_]+[12]\b", lambda key: _named(key[0], ends), str(error))


def charge_stem(name: str) -> str | None:
    """``x`` of ``x_plus`` and ``x_minus``; None for other names."""
    return next((name.removesuffix(end) for end in ("_plus", "_minus") if name.endswith(end)), None)


def _resolve_extra(table: Table, extra: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Extra columns as they are in the file, and stems x of columns x1, x2 to be given as x_plus, x_minus."""
    as_named = tuple(dict.fromkeys(name for name in extra if name in table.names))
    stems = {name[:-1] for name in as_named if name.endswith("1") and f"{name[:-1]}2" in as_named}
    for name in extra:
        stem = charge_stem(name)
        if name in table.names:
            continue
        if stem is None or not {f"{stem}1", f"{stem}2"} <= set(table.names):
            pair = "" if stem is None else f" nor {stem}1 and {stem}2"
            raise InputError(f"{table.path}: no column {name!r}{pair}: there are {', '.join(table.names)}")
        stems.add(stem)
    return as_named, tuple(sorted(stems))


def _real(rows: Rows, name: str) -> Floats:
    return np.asarray(rows[name], dtype=np.float64)
