"""Files of tracks with hits: Parquet (read and written) and ROOT (read).

One row a track: ``event``, ``track`` (its number in the event), ``charge``, and lists along the track: ``module`` (row
number of the detector), ``u``, ``v``, ``sigma_u``, ``sigma_v``. u is nan where a sensor was crossed without a hit; v is
not looked at where it is not measured. Simulation adds ``truth`` (q/p, lambda, phi, x, y, z) and ``is_background``.
Parquet files have a header in their metadata: ``format`` "musclecal hits", ``version`` 1, ``detector`` (name) and
``units`` {"length": "cm"} (mm, m and um are converted). ROOT files have none: they must be in cm.

Not for: descriptions of detectors (`musclecal.geometry.detector_files`).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from musclecal.columnar import Column, Columns, Jagged, open_table
from musclecal.errors import InputError
from musclecal.geometry.file_headers import centimetres_of, check_format, header_of
from musclecal.records import Detector, Floats, Ints, Pairs, Tracks
from musclecal.store import written_atomically

__all__ = ["pairs_of", "read_pairs", "read_tracks", "write_tracks"]

_FORMAT, _VERSION, _KEY = "musclecal hits", 1, "musclecal hits"
_SCALARS: Final = ("event", "charge")
_LISTS: Final = ("module", "u", "v", "sigma_u", "sigma_v")
_STATE = 6
_ENOUGH = 50
_NARROWEST, _WIDEST = 0.1, 1.0
"""Range of the median of |u| over the half width of the sensor: 0.5 where tracks are spread evenly."""
_FINEST, _COARSEST = 0.2, 5.0
"""Range of the median error of a hit over the resolution of the detector."""
_STEP_BACK = 1e-3
"""cm by which a module may be nearer to the beam line and to z = 0 than the one before it."""


def write_tracks(path: str | os.PathLike[str], chunks: Iterable[Tracks | Pairs], detector: Detector) -> int:
    """Write the tracks of all chunks to a Parquet file, whole or not at all; how many tracks. Event numbers are kept.

    Raises
    ------
    InputError : no chunk, no such folder, or another ending than .parquet.
    """
    import pyarrow
    from pyarrow import parquet

    if not str(path).endswith(".parquet"):
        raise InputError(f"{path}: hits are written to .parquet")
    header = {
        "format": _FORMAT, "version": _VERSION, "detector": detector.name, "units": {"length": "cm"}
    }  # fmt: skip
    n, writer = 0, None
    with written_atomically(path) as temporary:
        try:
            for chunk in chunks:
                table = pyarrow.table(_columns_of(chunk)).replace_schema_metadata({_KEY: json.dumps(header)})
                writer = writer or parquet.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
                n += table.num_rows
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise InputError(f"{path}: no tracks to write")
    return n


def _columns_of(chunk: Tracks | Pairs) -> dict[str, Any]:
    import pyarrow

    tracks = chunk.tracks if isinstance(chunk, Pairs) else chunk
    used = tracks.module >= 0
    starts = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    repeated = np.zeros(len(tracks), dtype=np.int32)
    order = np.argsort(tracks.event, kind="stable")
    ordered = tracks.event[order]
    first = np.searchsorted(ordered, ordered)
    repeated[order] = np.arange(len(tracks)) - first
    columns: dict[str, Any] = {"event": tracks.event, "track": repeated, "charge": tracks.charge}
    for name in _LISTS:
        values = getattr(tracks, name)[used]
        columns[name] = pyarrow.ListArray.from_arrays(
            pyarrow.array(starts, pyarrow.int32()), pyarrow.array(values)
        )
    if tracks.truth is not None:
        flat = pyarrow.array(np.ascontiguousarray(tracks.truth).ravel())
        six = pyarrow.array(_STATE * np.arange(len(tracks) + 1), pyarrow.int32())
        columns["truth"] = pyarrow.ListArray.from_arrays(six, flat)
    if isinstance(chunk, Pairs) and chunk.is_background is not None:
        of_track = np.zeros(len(tracks), dtype=np.int8)
        of_track[chunk.pairs] = chunk.is_background[:, None]
        columns["is_background"] = of_track
    return columns


def read_tracks(
    path: str | os.PathLike[str], detector: Detector, *, chunk_tracks: int = 200_000
) -> Iterator[Tracks]:
    """The tracks of a file (``file.root:tree`` chooses a tree), at most ``chunk_tracks`` at a time.

    Raises
    ------
    InputError : the file is missing or damaged; it is for another detector; a column is missing; unknown modules, or
        one twice in a track; lists of different lengths; resolutions that cannot be; charges other than +-1; hits that
        are not on their sensors, as if lengths were in other units.
    """
    for tracks, _ in _read(path, detector, chunk_tracks):
        yield tracks


def read_pairs(
    path: str | os.PathLike[str], detector: Detector, *, chunk_tracks: int = 200_000
) -> Iterator[Pairs]:
    """The same as pairs (`pairs_of`); no event is cut by a chunk.

    Raises
    ------
    InputError : as `read_tracks`; and tracks of one event that do not stand together, at the latest after all pairs.
    """
    held: tuple[Tracks, NDArray[np.bool_] | None] | None = None
    for chunk in _together(path, _read(path, detector, chunk_tracks)):
        if held is None:
            held = chunk
            continue
        last = held[0].event == held[0].event[-1]
        if not np.all(last):
            yield pairs_of(*_select(*held, ~last))
        held = _joined(_select(*held, last), chunk)
    if held is not None:
        yield pairs_of(*held)


def _together(
    path: str | os.PathLike[str], chunks: Iterable[tuple[Tracks, NDArray[np.bool_] | None]]
) -> Iterator[tuple[Tracks, NDArray[np.bool_] | None]]:
    """The same chunks, none of them empty. Raises InputError where an event number comes back after other ones."""
    begun = [np.zeros(0, dtype=np.int64)]
    last: int | None = None
    for chunk in chunks:
        event = chunk[0].event
        begins = np.concatenate([[last is None or event[0] != last], event[1:] != event[:-1]])
        begun.append(event[begins])
        _refuse_repeated(path, begun[-1])
        last = int(event[-1])
        yield chunk
    _refuse_repeated(path, np.concatenate(begun))


def _refuse_repeated(path: str | os.PathLike[str], begun: Ints) -> None:
    """``begun`` (n,): event number of each block of rows."""
    numbers, counts = np.unique(begun, return_counts=True)
    if np.any(counts > 1):
        raise InputError(
            f"{path}: event {numbers[counts > 1][0]} comes back after other events: the rows of an event must stand "
            "together, and no two events of a file may have the same number"
        )


def pairs_of(tracks: Tracks, is_background: NDArray[np.bool_] | None = None) -> Pairs:
    """A pair for each event with exactly two tracks, of opposite charges; ``is_background`` (n_track,)."""
    order = np.argsort(tracks.event, kind="stable")
    numbers, first, counts = np.unique(tracks.event[order], return_index=True, return_counts=True)
    pairs = np.stack([order[first[counts == 2]], order[first[counts == 2] + 1]], axis=1)
    charges = tracks.charge[pairs]
    pairs = np.where(charges[:, :1] > 0, pairs, pairs[:, ::-1])[charges.sum(axis=1) == 0].astype(np.int32)
    background = None if is_background is None else is_background[pairs[:, 0]]
    return Pairs(tracks, pairs, background, len(numbers))


def _select(
    tracks: Tracks, background: NDArray[np.bool_] | None, which: NDArray[np.bool_]
) -> tuple[Tracks, NDArray[np.bool_] | None]:
    return tracks.select(which), None if background is None else background[which]


def _joined(
    one: tuple[Tracks, NDArray[np.bool_] | None], two: tuple[Tracks, NDArray[np.bool_] | None]
) -> tuple[Tracks, NDArray[np.bool_] | None]:
    tracks = [one[0], two[0]]
    width = max(part.module.shape[1] for part in tracks)
    fill = {"module": -1, "u": np.nan, "v": np.nan, "sigma_u": 1.0, "sigma_v": 1.0}
    columns: dict[str, Any] = {
        name: np.concatenate(
            [
                np.pad(
                    getattr(part, name), ((0, 0), (0, width - part.module.shape[1])), constant_values=value
                )
                for part in tracks
            ]
        )
        for name, value in fill.items()
    }
    columns["truth"] = (
        None if tracks[0].truth is None else np.concatenate([np.asarray(t.truth) for t in tracks])
    )
    columns |= {name: np.concatenate([getattr(t, name) for t in tracks]) for name in ("charge", "event")}
    background = None if one[1] is None else np.concatenate([one[1], np.asarray(two[1])])
    return Tracks(**columns), background


def _read(
    path: str | os.PathLike[str], detector: Detector, rows: int
) -> Iterator[tuple[Tracks, NDArray[np.bool_] | None]]:
    with open_table(str(path)) as table:
        missing = [name for name in (*_SCALARS, *_LISTS) if name not in table.names]
        if missing:
            raise InputError(f"{path}: no column {missing[0]!r}; hits are {', '.join((*_SCALARS, *_LISTS))}")
        lengths = _header(path, detector)
        types: dict[str, Any] = dict.fromkeys(_LISTS, "real") | dict.fromkeys(_SCALARS, "integer")
        types["module"] = "integer"
        types |= {name: "real" for name in ("truth", "is_background") if name in table.names}
        for columns in table.chunks(types, rows):
            if len(columns["charge"].values if isinstance(columns["charge"], Jagged) else columns["charge"]):
                yield _tracks_of(path, columns, detector, lengths)


def _header(path: str | os.PathLike[str], detector: Detector) -> float:
    """cm of the file's unit of length."""
    if not str(path).endswith((".parquet", ".pq")):
        return 1.0
    header = header_of(path, _KEY)
    check_format(path, header, _FORMAT, _VERSION)
    if header.get("detector") != detector.name:
        raise InputError(f"{path}: hits of the detector {header.get('detector')!r}, not of {detector.name!r}")
    return centimetres_of(path, header)


def _tracks_of(
    path: str | os.PathLike[str], columns: Columns, detector: Detector, lengths: float
) -> tuple[Tracks, NDArray[np.bool_] | None]:
    charge, event = _one_a_row(path, columns, "charge"), _one_a_row(path, columns, "event")
    if not np.all(np.abs(charge) == 1):
        raise InputError(f"{path}: charge {charge[np.abs(charge) != 1][0]:g}: must be +1 or -1")
    lists = {name: _list(path, name, columns[name]) for name in _LISTS}
    counts = lists["module"].counts
    for name, column in lists.items():
        wrong = column.counts != counts
        if np.any(wrong):
            at = int(np.argmax(wrong))
            raise InputError(
                f"{path}: event {event[at]:g}: {column.counts[at]} values of {name!r}, {counts[at]} of 'module'"
            )
    module = np.asarray(lists["module"].values, dtype=np.int64)
    values: dict[str, Floats] = {
        name: lengths * np.asarray(lists[name].values, dtype=np.float64)
        for name in _LISTS
        if name != "module"
    }
    of_event = np.repeat(event, counts)
    _check_modules(path, module, np.repeat(np.arange(len(counts)), counts), of_event, detector)
    _check_hits(path, module, values, of_event, detector)
    measured_v = detector.measures_v[module] & np.isfinite(values["u"])
    values["v"] = np.where(measured_v, values["v"], np.nan)
    values["sigma_v"] = np.where(detector.measures_v[module], values["sigma_v"], np.inf)

    inside = np.arange(max(1, counts.max(initial=1))) < counts[:, None]
    padded = {name: np.full(inside.shape, fill) for name, fill in (("u", np.nan), ("v", np.nan))}
    padded |= {name: np.ones(inside.shape) for name in ("sigma_u", "sigma_v")}
    for name, array in padded.items():
        array[inside] = values[name]
    modules = np.full(inside.shape, -1, dtype=np.int32)
    modules[inside] = module
    truth = _truth(path, columns["truth"]) if "truth" in columns else None
    tracks = Tracks(
        charge.astype(np.int8), modules, padded["u"], padded["v"], padded["sigma_u"], padded["sigma_v"],
        event.astype(np.int64), truth,
    )  # fmt: skip
    background = _one_a_row(path, columns, "is_background") > 0.5 if "is_background" in columns else None
    return tracks, background


def _one_a_row(path: str | os.PathLike[str], columns: Columns, name: str) -> NDArray[Any]:
    column = columns[name]
    if isinstance(column, Jagged):
        raise InputError(f"{path}: column {name!r} has lists, it needs one value a track")
    return column


def _list(path: str | os.PathLike[str], name: str, column: Column) -> Jagged:
    if not isinstance(column, Jagged):
        raise InputError(f"{path}: column {name!r} needs a list a track")
    return column


def _truth(path: str | os.PathLike[str], column: Column) -> Floats:
    states = _list(path, "truth", column)
    if np.any(states.counts != _STATE):
        raise InputError(f"{path}: column 'truth' must have {_STATE} values a track")
    return np.asarray(states.values, dtype=np.float64).reshape(-1, _STATE)


def _check_modules(
    path: str | os.PathLike[str], module: Ints, track: Ints, of_event: Ints, detector: Detector
) -> None:
    unknown = (module < 0) | (module >= len(detector))
    if np.any(unknown):
        at = int(np.argmax(unknown))
        raise InputError(
            f"{path}: event {of_event[at]:g}: no module {module[at]} in {detector.name!r}, which has "
            f"0 to {len(detector) - 1}"
        )
    key = np.sort(track * len(detector) + module)
    twice = np.flatnonzero(np.diff(key) == 0)
    if len(twice):
        where, which = divmod(int(key[twice[0]]), len(detector))
        raise InputError(
            f"{path}: event {of_event[np.argmax(track == where)]:g}: module {which} twice in a track"
        )
    x, y, z = detector.centre[module].T
    inwards = (np.diff(np.hypot(x, y)) < -_STEP_BACK) & (np.diff(np.abs(z)) < -_STEP_BACK)
    inwards &= np.diff(track) == 0
    if np.any(inwards):
        at = int(np.argmax(inwards))
        raise InputError(
            f"{path}: event {of_event[at]:g}: module {module[at + 1]} behind {module[at]}, but nearer to the beam line "
            "and to z = 0: modules must stand in the order of the track"
        )


def _check_hits(
    path: str | os.PathLike[str],
    module: Ints,
    values: Mapping[str, Floats],
    of_event: Ints,
    detector: Detector,
) -> None:
    for axis, measured in (("u", np.ones(len(module), np.bool_)), ("v", detector.measures_v[module])):
        infinite = measured & np.isinf(values[axis])
        if np.any(infinite):
            at = int(np.argmax(infinite))
            raise InputError(
                f"{path}: event {of_event[at]:g}: {axis} is infinite; nan says that there is no hit"
            )
    hit = np.isfinite(values["u"])
    for name, needed in (
        ("sigma_u", hit),
        ("sigma_v", hit & detector.measures_v[module] & np.isfinite(values["v"])),
    ):
        wrong = needed & ~((values[name] > 0.0) & np.isfinite(values[name]))
        if np.any(wrong):
            at = int(np.argmax(wrong))
            raise InputError(
                f"{path}: event {of_event[at]:g}: {name} {values[name][at]:g} of a hit: must be positive"
            )
    for axis, here in (("u", hit), ("v", hit & detector.measures_v[module] & np.isfinite(values["v"]))):
        if np.sum(here) < _ENOUGH:
            continue
        half, sigma = (getattr(detector, f"{name}_{axis}")[module[here]] for name in ("half", "sigma"))
        typical = float(np.median(np.abs(values[axis][here]) / half))
        if not _NARROWEST < typical < _WIDEST:
            raise InputError(
                f"{path}: {axis} of the typical hit is {typical:.3g} half widths from the middle of its sensor: are "
                "lengths in the unit stated (cm where none is)?"
            )
        error = float(np.median(values[f"sigma_{axis}"][here] / sigma))
        if not _FINEST < error < _COARSEST:
            raise InputError(
                f"{path}: sigma_{axis} of the typical hit is {error:.3g} times the resolution of the detector: are "
                "lengths in the unit stated (cm where none is)?"
            )
