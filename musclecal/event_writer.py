"""Muon pairs to NanoAOD-like ROOT or to flat Parquet, chunk by chunk, so that `read_dimuons` reads them back.

Not for: histograms and results of stages (`musclecal.store`).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musclecal.columns import EVENT_KEYS, charge_stem
from musclecal.constants import MUON_MASS
from musclecal.errors import InputError
from musclecal.nanoaod import EVENT_BRANCHES
from musclecal.records import DimuonEvents, Muons

__all__ = ["write_dimuons"]


class _Writer(Protocol):
    def write(self, events: DimuonEvents) -> None: ...

    def close(self) -> None: ...


def write_dimuons(path: str | Path, chunks: Iterable[DimuonEvents]) -> int:
    """Write pairs; the suffix chooses the format. The file appears once it is complete, or not at all.

    ``.root``: TTree ``Events`` with jagged ``Muon_`` branches (mu+ first; float32, as NanoAOD), ``run``,
    ``luminosityBlock``, ``event``, and ``GenPart_`` with ``Muon_genPartIdx`` where there are generator muons.
    ``.parquet``: columns named as the keys of a column map, muon 1 is mu+; pT in float64, angles in float32.

    Parameters
    ----------
    path : file to write; one of that name is replaced.
    chunks : of one sample: all have the same optional columns.

    Returns
    -------
    Number of pairs written.

    Raises
    ------
    InputError : unknown suffix, missing folder, no chunk at all, values that do not fit NanoAOD's types.
    """
    path = Path(path)
    writers: dict[str, Callable[[Path], _Writer]] = {".root": _RootWriter, ".parquet": _ParquetWriter}
    if path.suffix not in writers:
        raise InputError(f"{path}: unknown format to write: known are {', '.join(writers)}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    n_pairs, n_chunks = 0, 0
    with _complete_or_absent(path) as temporary, _closing(writers[path.suffix](temporary)) as writer:
        for events in chunks:
            writer.write(events)
            n_pairs += len(events)
            n_chunks += 1
        if n_chunks == 0:
            raise InputError(f"{path}: no events to write")
    return n_pairs


@contextmanager
def _complete_or_absent(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name if all goes well, and goes if not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _closing(writer: _Writer) -> Iterator[_Writer]:
    try:
        yield writer
    finally:
        writer.close()


class _ParquetWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def write(self, events: DimuonEvents) -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table(flat_columns(events))
        if self._file is None:
            options = {"compression": "lz4", "use_dictionary": False}
            self._file = parquet.ParquetWriter(self._path, table.schema, **options)
        self._file.write_table(table)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def flat_columns(events: DimuonEvents) -> dict[str, NDArray[np.generic]]:
    """Columns (n_event,) by the keys of a column map; muon 1 is mu+. pT is float64, angles are float32."""
    columns: dict[str, NDArray[np.generic]] = {}
    measured, generated = (events.plus, events.minus), (events.gen_plus, events.gen_minus)
    for number, muon, partner, charge in zip((1, 2), measured, generated, (1, -1), strict=True):
        columns |= _flat_muon(muon, "", number)
        columns[f"charge{number}"] = np.full(len(events), charge, dtype=np.int8)
        if muon.pt_err is not None:
            columns[f"pt_err{number}"] = muon.pt_err
        if partner is not None:
            columns |= _flat_muon(partner, "gen_", number)
    identifiers = {key: getattr(events, key) for key in EVENT_KEYS}
    columns |= {key: ids for key, ids in identifiers.items() if ids is not None}
    return dict(events.extra) | columns


def _flat_muon(muon: Muons, prefix: str, number: int) -> dict[str, NDArray[np.generic]]:
    return {
        f"{prefix}pt{number}": muon.pt,
        f"{prefix}eta{number}": muon.eta.astype(np.float32),
        f"{prefix}phi{number}": muon.phi.astype(np.float32),
    }


class _RootWriter:
    def __init__(self, path: Path) -> None:
        import uproot

        self._file = uproot.recreate(path, compression=uproot.LZ4(1))
        self._tree: Any = None

    def write(self, events: DimuonEvents) -> None:
        branches = nano_branches(events)
        if self._tree is None:
            self._tree = self._file.mktree("Events", branches)
        else:
            self._tree.extend(branches)

    def close(self) -> None:
        self._file.close()


def nano_branches(events: DimuonEvents) -> dict[str, Any]:
    """NanoAOD-like collections of two muons an event, mu+ first, as awkward arrays (n_event,)."""
    extra, muon_extra = _split_extra(events.extra)
    plus, minus = events.plus, events.minus
    muon = _kinematics(plus, minus)
    muon["charge"] = _both(_same(events, 1), _same(events, -1), np.int32)
    if plus.pt_err is not None and minus.pt_err is not None:
        muon["ptErr"] = _both(plus.pt_err, minus.pt_err, np.float32)
    muon |= {name: np.stack(pair, axis=1) for name, pair in muon_extra.items()}
    branches: dict[str, Any] = dict(extra)
    if events.gen_plus is not None and events.gen_minus is not None:
        muon["genPartIdx"] = _both(_same(events, 0), _same(events, 1), np.int32)
        particle = _kinematics(events.gen_plus, events.gen_minus)
        particle["mass"] = _both(_same(events, MUON_MASS), _same(events, MUON_MASS), np.float32)
        particle["pdgId"] = _both(_same(events, -13), _same(events, 13), np.int32)
        particle["status"] = _both(_same(events, 1), _same(events, 1), np.int32)
        branches["GenPart"] = _collection(particle)
    branches["Muon"] = _collection(muon)
    for key, kind in zip(EVENT_KEYS, ("uint32", "uint32", "uint64"), strict=True):
        if (ids := getattr(events, key)) is not None:
            branches[EVENT_BRANCHES[key]] = _unsigned(ids, kind, EVENT_BRANCHES[key])
    return branches


def _split_extra(
    extra: Mapping[str, NDArray[np.generic]],
) -> tuple[dict[str, NDArray[np.generic]], dict[str, tuple[NDArray[np.generic], NDArray[np.generic]]]]:
    """Columns of the event, and those of the muons: ``Muon_x_plus`` and ``Muon_x_minus`` as ``x``."""
    stems = {stem for name in extra if (stem := charge_stem(name)) and stem.startswith("Muon_")}
    pairs = {stem for stem in stems if {f"{stem}_plus", f"{stem}_minus"} <= set(extra)}
    for stem in sorted(pairs):
        if extra[f"{stem}_plus"].dtype.kind not in "biuf":
            raise InputError(f"branch {stem!r}: only numbers can be written per muon; Parquet takes the rest")
    of_muons = {
        stem.removeprefix("Muon_"): (extra[f"{stem}_plus"], extra[f"{stem}_minus"]) for stem in sorted(pairs)
    }
    return {name: column for name, column in extra.items() if charge_stem(name) not in pairs}, of_muons


def _kinematics(one: Muons, two: Muons) -> dict[str, NDArray[np.generic]]:
    return {name: _both(getattr(one, name), getattr(two, name), np.float32) for name in ("pt", "eta", "phi")}


def _both(one: ArrayLike, two: ArrayLike, kind: type[np.generic]) -> NDArray[np.generic]:
    """(n_event, 2)."""
    return np.stack([one, two], axis=1).astype(kind)


def _same(events: DimuonEvents, value: float) -> NDArray[np.float64]:
    return np.full(len(events), value)


def _collection(fields: Mapping[str, NDArray[np.generic]]) -> Any:
    """Jagged records of two entries an event, from columns (n_event, 2)."""
    import awkward

    return awkward.zip({name: awkward.from_regular(both, axis=1) for name, both in fields.items()})


def _unsigned(ids: NDArray[np.int64], kind: str, name: str) -> NDArray[np.generic]:
    if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(kind).max):
        raise InputError(f"branch {name!r}: {ids.min()} to {ids.max()} do not fit {kind}")
    return ids.astype(kind)
