"""Files of hits: round trips through Parquet, ROOT read, pairs across chunks, and named refusals."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.hit_files import pairs_of, read_pairs, read_tracks, write_tracks
from musclecal.geometry.simulate import (
    DetectorEffects,
    flat_muons,
    simulate_pairs,
    simulate_tracks,
    track_maker,
)
from musclecal.records import Pairs, Tracks
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

BARREL = barrel_tracker()
MAKER = track_maker(BARREL, solenoid_map(), None, DetectorEffects(efficiency=0.95))
KEY = b"musclecal hits"


@pytest.fixture(scope="module")
def tracks() -> Tracks:
    return simulate_tracks(MAKER, flat_muons(300, 1, eta=(-0.8, 0.8)), 1)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    settings = SimulationSettings(resonance("Jpsi"), (3.0, 50.0), (-0.9, 0.9), (2.8, 3.4), background=0.2)
    (found,) = simulate_pairs(MAKER, settings, 500, 1)
    return found


def assert_same(found: Tracks, expected: Tracks) -> None:
    width = found.module.shape[1]
    assert np.all(expected.module[:, width:] == -1)
    for name in ("module", "u", "v", "sigma_u", "sigma_v"):
        one, two = getattr(found, name), getattr(expected, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two[:, :width], err_msg=name)
    for name in ("charge", "event", "truth"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_round_trip(tracks: Tracks, tmp_path: Path) -> None:
    parts = [tracks.select(np.arange(100)), tracks.select(np.arange(100, 300))]
    assert write_tracks(tmp_path / "t.parquet", parts, BARREL) == 300
    (found,) = read_tracks(tmp_path / "t.parquet", BARREL)
    assert_same(found, tracks)
    pieces = list(read_tracks(tmp_path / "t.parquet", BARREL, chunk_tracks=70))
    assert [len(piece) for piece in pieces] == [70, 70, 70, 70, 20]


def test_data_without_truth(tracks: Tracks, tmp_path: Path) -> None:
    write_tracks(tmp_path / "t.parquet", [replace(tracks, truth=None)], BARREL)
    (found,) = read_tracks(tmp_path / "t.parquet", BARREL)
    assert found.truth is None


@pytest.mark.parametrize("chunk", [7, 1000])
def test_pairs_survive_chunks(pairs: Pairs, tmp_path: Path, chunk: int) -> None:
    write_tracks(tmp_path / "p.parquet", [pairs], BARREL)
    found = list(read_pairs(tmp_path / "p.parquet", BARREL, chunk_tracks=chunk))
    assert len(found) == -(-1000 // chunk)
    assert sum(len(part) for part in found) == 500
    background = np.concatenate([np.asarray(part.is_background) for part in found])
    np.testing.assert_array_equal(background, pairs.is_background)
    for column, charge in enumerate((1, -1)):
        truth = np.concatenate([np.asarray(part.tracks.truth)[part.pairs[:, column]] for part in found])
        np.testing.assert_array_equal(truth, np.asarray(pairs.tracks.truth)[pairs.pairs[:, column]])
        assert all(np.all(part.tracks.charge[part.pairs[:, column]] == charge) for part in found)
    stored = parquet.read_table(tmp_path / "p.parquet")
    np.testing.assert_array_equal(stored["track"], np.tile([0, 1], 500))


def test_pairs_are_two_tracks_of_opposite_charge(tracks: Tracks) -> None:
    some = tracks.select(np.arange(9))
    some = replace(
        some,
        event=np.array([5, 5, 7, 7, 3, 9, 9, 9, 3]),
        charge=np.array([-1, 1, 1, 1, 1, 1, -1, 1, -1], np.int8),
    )
    found = pairs_of(some)
    np.testing.assert_array_equal(found.pairs, [[4, 8], [1, 0]])
    assert found.n_events == 4


@pytest.mark.parametrize("chunk", [1, 7, 100_000])
def test_events_without_a_pair_are_counted(pairs: Pairs, tmp_path: Path, chunk: int) -> None:
    """Every fifth event has lost a track, every seventh has two of one charge."""
    event = np.asarray(pairs.tracks.event)
    charge = np.where(event % 7 == 3, 1, pairs.tracks.charge).astype(np.int8)
    left = replace(pairs.tracks, charge=charge).select((event % 5 > 0) | (pairs.tracks.charge > 0))
    write_tracks(tmp_path / "p.parquet", [left], BARREL)
    found = list(read_pairs(tmp_path / "p.parquet", BARREL, chunk_tracks=chunk))
    assert sum(part.n_events or 0 for part in found) == 500
    number = np.arange(500)
    assert sum(map(len, found)) == np.count_nonzero((number % 5 > 0) & (number % 7 != 3))


@pytest.mark.parametrize("chunk", [1, 100, 100_000])
@pytest.mark.parametrize("apart", [1, 250, 500])
def test_rows_of_an_event_that_stand_apart_are_refused(
    pairs: Pairs, tmp_path: Path, chunk: int, apart: int
) -> None:
    """First tracks of ``apart`` events, then the second ones of the same: whatever the chunks are."""
    rows = np.arange(1000).reshape(-1, apart, 2).transpose(0, 2, 1).ravel()
    write_tracks(tmp_path / "p.parquet", [pairs.tracks.select(rows)], BARREL)
    reader = read_pairs(tmp_path / "p.parquet", BARREL, chunk_tracks=chunk)
    if apart == 1:
        assert sum(map(len, reader)) == 500
        return
    with pytest.raises(InputError, match=r"p\.parquet: event 0 comes back after other events"):
        list(reader)


def test_an_event_number_may_not_come_back(pairs: Pairs, tmp_path: Path) -> None:
    """As in two files or runs that were put together."""
    event = np.where(pairs.tracks.event == 499, 17, pairs.tracks.event)
    write_tracks(tmp_path / "p.parquet", [replace(pairs.tracks, event=event)], BARREL)
    for chunk in (10, 5000):
        with pytest.raises(InputError, match="event 17 comes back"):
            list(read_pairs(tmp_path / "p.parquet", BARREL, chunk_tracks=chunk))


def test_root(tracks: Tracks, tmp_path: Path) -> None:
    import awkward
    import uproot

    used = tracks.module >= 0
    counts = used.sum(axis=1)
    columns = {
        name: awkward.unflatten(getattr(tracks, name)[used], counts)
        for name in ("module", "u", "v", "sigma_u")
    }
    columns["sigma_v"] = awkward.unflatten(np.nan_to_num(tracks.sigma_v[used], posinf=0.0), counts)
    with uproot.recreate(tmp_path / "t.root") as file:
        file["hits"] = columns | {"event": tracks.event, "charge": tracks.charge}
    (found,) = read_tracks(tmp_path / "t.root", BARREL)
    assert_same(found, replace(tracks, truth=None))


@pytest.fixture
def changed(tracks: Tracks, tmp_path: Path) -> Callable[..., Path]:
    """The tracks in a file after a change of columns (lists of lists) or of the header."""

    def change(how: Callable[[dict[str, list[Any]]], None] | None = None, **header: Any) -> Path:
        path = tmp_path / "changed.parquet"
        write_tracks(path, [tracks], BARREL)
        table = parquet.read_table(path)
        stated = json.loads(table.schema.metadata[KEY]) | header
        columns = table.to_pydict()
        if how is not None:
            how(columns)
        metadata = {KEY: json.dumps(stated)}
        parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), path)
        return path

    return change


def scaled(factor: float, *names: str) -> Callable[[dict[str, list[Any]]], None]:
    """All lengths, or some columns."""

    def change(columns: dict[str, list[Any]]) -> None:
        for name in names or ("u", "v", "sigma_u", "sigma_v"):
            columns[name] = [[factor * x for x in row] for row in columns[name]]

    return change


def setting(name: str, row: int, place: int, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[name][row][place] = value

    return change


def test_stated_millimetres_are_converted(changed: Callable[..., Path], tracks: Tracks) -> None:
    (found,) = read_tracks(changed(scaled(10.0), units={"length": "mm"}), BARREL)
    np.testing.assert_allclose(found.u, tracks.u[:, : found.u.shape[1]], rtol=1e-14)
    assert np.nanmax(found.sigma_u[found.module >= 0]) < 0.01


def shorter(columns: dict[str, list[Any]]) -> None:
    columns["sigma_u"][2].pop()


def charge_two(columns: dict[str, list[Any]]) -> None:
    columns["charge"][3] = 2


def twice(columns: dict[str, list[Any]]) -> None:
    columns["module"][4][1] = columns["module"][4][0]


def backwards(columns: dict[str, list[Any]]) -> None:
    """Outside in: energy would be lost before it is measured."""
    for name in ("module", "u", "v", "sigma_u", "sigma_v"):
        columns[name] = [row[::-1] for row in columns[name]]


def short_truth(columns: dict[str, list[Any]]) -> None:
    columns["truth"][4].pop()


def module_of_numbers(columns: dict[str, list[Any]]) -> None:
    columns["module"] = [row[0] for row in columns["module"]]


def charges_in_lists(columns: dict[str, list[Any]]) -> None:
    columns["charge"] = [[charge] for charge in columns["charge"]]


def first_hit(tracks: Tracks, row: int) -> int:
    return int(np.flatnonzero(np.isfinite(tracks.u[row]))[0])


@pytest.mark.parametrize(
    ("how", "header", "told"),
    [
        (scaled(10.0), {}, "half widths"),
        (scaled(0.1), {}, "half widths"),
        (scaled(10.0, "v"), {}, "v of the typical hit"),
        (scaled(10.0, "sigma_u"), {}, "sigma_u of the typical hit"),
        (scaled(0.1, "sigma_v"), {}, "sigma_v of the typical hit"),
        (backwards, {}, "event 0: module .* in the order of the track"),
        (None, {"units": {"length": "inch"}}, "inch"),
        (None, {"detector": "other"}, "'other'"),
        (None, {"units": "cm"}, "units 'cm'"),
        (None, {"units": {"length": ["cm"]}}, "length must be one of"),
        (None, {"format": "other hits"}, "must be 'musclecal hits', not 'other hits'"),
        (None, {"version": 3}, "version 3"),
        (shorter, {}, "event 2: .* 'sigma_u'"),
        (charge_two, {}, "charge 2"),
        (twice, {}, "event 4: module .* twice"),
        (short_truth, {}, "truth"),
        (setting("module", 5, 2, 544), {}, "event 5: no module 544"),
        (setting("module", 5, 2, -1), {}, "event 5: no module -1"),
        (lambda columns: columns.pop("u"), {}, "no column 'u'; hits are event, charge, module, u, v"),
        (module_of_numbers, {}, "'module' needs a list"),
        (charges_in_lists, {}, "'charge' has lists"),
    ],
)
def test_what_cannot_be(changed: Callable[..., Path], how: Any, header: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as refused:
        list(read_tracks(changed(how, **header), BARREL))
    assert "changed.parquet" in str(refused.value)


def test_resolutions_that_cannot_be(changed: Callable[..., Path], tracks: Tracks) -> None:
    with pytest.raises(InputError, match="event 6: sigma_u 0"):
        list(read_tracks(changed(setting("sigma_u", 6, first_hit(tracks, 6), 0.0)), BARREL))
    with pytest.raises(InputError, match="event 6: u is infinite"):
        list(read_tracks(changed(setting("u", 6, first_hit(tracks, 6), np.inf)), BARREL))


def test_tracks_of_the_whole_tracker_are_in_order(tmp_path: Path) -> None:
    """Also those from far along the beam, which come back towards z = 0 while they go outwards."""
    detector = cms_tracker()
    states = flat_muons(4000, 3, pt=(0.8, 40.0), beam_spot=(0.01, 0.01, 10.0))
    made = simulate_tracks(track_maker(detector, solenoid_map()), states, 4)
    write_tracks(tmp_path / "t.parquet", [made], detector)
    assert sum(len(part) for part in read_tracks(tmp_path / "t.parquet", detector)) == 4000


def test_what_the_page_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Python of docs/detector.md."""
    page = Path(__file__).parents[2] / "docs" / "detector.md"
    if not page.is_file():
        pytest.skip("the documentation is not beside these tests")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(code, {})
    assert (tmp_path / "jpsi.parquet").is_file()


def test_other_files(tracks: Tracks, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.parquet"):
        list(read_tracks(tmp_path / "none.parquet", BARREL))
    with pytest.raises(InputError, match=r"\.parquet"):
        write_tracks(tmp_path / "t.csv", [tracks], BARREL)
    with pytest.raises(InputError, match="no tracks"):
        write_tracks(tmp_path / "t.parquet", [], BARREL)
    assert not list(tmp_path.iterdir())
    write_tracks(tmp_path / "t.parquet", [tracks], BARREL)
    parquet.write_table(
        parquet.read_table(tmp_path / "t.parquet").replace_schema_metadata({}), tmp_path / "t.parquet"
    )
    with pytest.raises(InputError, match="no header"):
        list(read_tracks(tmp_path / "t.parquet", BARREL))


@pytest.mark.parametrize("header", ["no JSON", "[1, 2]", '"musclecal hits"', "\xff"])
def test_headers_that_are_none(tracks: Tracks, tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.parquet"
    write_tracks(path, [tracks], BARREL)
    metadata = {KEY: header.encode("latin-1")}
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match=r"t\.parquet: the header 'musclecal hits' in the metadata is not"):
        list(read_tracks(path, BARREL))


def test_a_column_of_track_numbers_is_not_needed(changed: Callable[..., Path]) -> None:
    def without(columns: dict[str, list[Any]]) -> None:
        del columns["track"]

    assert sum(map(len, read_tracks(changed(without), BARREL))) == 300
