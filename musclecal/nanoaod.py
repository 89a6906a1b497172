"""NanoAOD files, TTree or RNTuple: jagged ``Muon_`` branches, any number of muons an event, all their pairs.

Generator muons: ``Muon_genPartIdx`` points to the status-1 particle that the muon was matched to. NanoAOD
keeps status-1 muons as they leave the generator, that is after final-state radiation, which is what the mass
models need. A match that is not a muon (|pdgId| 13) is no generator muon: its pair is dropped and counted.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from musclecal.columnar import Columns, ColumnType, Jagged, Table
from musclecal.columns import charge_stem
from musclecal.errors import InputError
from musclecal.pairs import LoadedPairs, paired
from musclecal.records import DimuonEvents, Floats, Ints, Muons

__all__ = ["EVENT_BRANCHES", "NanoLayout", "is_nanoaod"]

MOMENTUM = ("Muon_pt", "Muon_eta", "Muon_phi")
CHARGE = "Muon_charge"
PT_ERROR = "Muon_ptErr"
MATCH = "Muon_genPartIdx"
PARTICLE = ("GenPart_pt", "GenPart_eta", "GenPart_phi")
PARTICLE_ID = "GenPart_pdgId"
EVENT_BRANCHES = {"run": "run", "lumi": "luminosityBlock", "event": "event"}
MUON_PDG_ID = 13


def is_nanoaod(table: Table) -> bool:
    """Whether the file has NanoAOD's muons."""
    return MOMENTUM[0] in table.names


class NanoLayout:
    """Pairs of a NanoAOD file; see `musclecal.columns.Layout`."""

    momentum = MOMENTUM[0]

    def __init__(self, table: Table, extra: Sequence[str] = (), generator: bool = True) -> None:
        self._path = table.path
        simulated = {MATCH, PARTICLE_ID, *PARTICLE} <= set(table.names)
        self.generator = PARTICLE[0] if generator and simulated else None
        self._has_error = PT_ERROR in table.names
        self._identifiers = {key: name for key, name in EVENT_BRANCHES.items() if name in table.names}
        self._extra = tuple(dict.fromkeys(_branch(table, name) for name in extra))
        self.types: Mapping[str, ColumnType] = self._needed()
        for name in self.types:
            if name not in table.names:
                needed = ", ".join((*MOMENTUM, CHARGE))
                raise InputError(f"{table.path}: no branch {name!r}: NanoAOD muons need {needed}")

    def _needed(self) -> dict[str, ColumnType]:
        types: dict[str, ColumnType] = dict.fromkeys(self._extra, "any")
        types |= dict.fromkeys((*MOMENTUM, CHARGE), "number")
        types |= dict.fromkeys(self._identifiers.values(), "whole")
        if self._has_error:
            types[PT_ERROR] = "number"
        if self.generator:
            types |= dict.fromkeys(PARTICLE, "real")
            types |= dict.fromkeys((MATCH, PARTICLE_ID), "integer")
        return types

    def load(self, chunk: Columns) -> LoadedPairs:
        """All pairs of the muons of each event."""
        counts = self._jagged(chunk, MOMENTUM[0]).counts
        names = (*MOMENTUM, PT_ERROR) if self._has_error else MOMENTUM
        momenta = [self._of_muons(chunk, name, counts) for name in names]
        charge = self._of_muons(chunk, CHARGE, counts)
        generated = self._generated(chunk, counts) if self.generator else None
        event, plus, minus, flow = paired(counts, momenta[:3], charge, generated)
        extra: dict[str, NDArray[np.generic]] = {}
        for name in self._extra:
            if isinstance(chunk[name], Jagged):
                column = self._of_muons(chunk, name, counts)
                extra[f"{name}_plus"], extra[f"{name}_minus"] = column[plus], column[minus]
            else:
                extra[name] = self._of_events(chunk, name)[event]
        events = DimuonEvents(
            Muons(*(column[plus].astype(np.float64) for column in momenta)),
            Muons(*(column[minus].astype(np.float64) for column in momenta)),
            None if generated is None else generated.select(plus),
            None if generated is None else generated.select(minus),
            **{
                key: self._of_events(chunk, name)[event].astype(np.int64)
                for key, name in self._identifiers.items()
            },
            extra=extra,
        )
        return LoadedPairs(events, flow, momenta[0], None if generated is None else generated.pt)

    def _generated(self, chunk: Columns, counts: Ints) -> Muons:
        """Generator muon of each measured one, nan where the match is not a muon."""
        match = self._of_muons(chunk, MATCH, counts).astype(np.int64)
        identity = self._jagged(chunk, PARTICLE_ID)
        first = np.repeat(np.cumsum(identity.counts) - identity.counts, counts)
        matched = (match >= 0) & (match < np.repeat(identity.counts, counts))
        where = (first + match)[matched]
        is_muon = np.abs(identity.values[where].astype(np.int64)) == MUON_PDG_ID
        pt, eta, phi = (
            _placed(self._jagged(chunk, name).values[where[is_muon]], matched, is_muon) for name in PARTICLE
        )
        return Muons(pt, eta, phi)

    def _jagged(self, chunk: Columns, name: str) -> Jagged:
        column = chunk[name]
        if not isinstance(column, Jagged):
            raise InputError(f"{self._path}: branch {name!r} holds one value an event, not one a muon")
        return column

    def _of_muons(self, chunk: Columns, name: str, counts: Ints) -> NDArray[np.generic]:
        column = self._jagged(chunk, name)
        if not np.array_equal(column.counts, counts):
            raise InputError(f"{self._path}: branch {name!r} does not have one value a muon")
        return column.values

    def _of_events(self, chunk: Columns, name: str) -> NDArray[np.generic]:
        column = chunk[name]
        if isinstance(column, Jagged):
            raise InputError(f"{self._path}: branch {name!r} does not have one value an event")
        return column


def _branch(table: Table, name: str) -> str:
    """The branch of the extra column ``name``, which may be asked for as ``name_plus`` or ``name_minus``."""
    for candidate in (name, charge_stem(name)):
        if candidate in table.names:
            return str(candidate)
    raise InputError(f"{table.path}: no branch {name!r}: check its spelling with a ROOT browser")


def _placed(values: NDArray[np.generic], matched: NDArray[np.bool_], is_muon: NDArray[np.bool_]) -> Floats:
    column = np.full(matched.size, np.nan)
    column[np.flatnonzero(matched)[is_muon]] = values
    return column
