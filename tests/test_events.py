"""Readers and writers: every format gives the same pairs, in any chunks; every unusable input is named."""

import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pytest
import uproot
from numpy.typing import DTypeLike
from pyarrow import parquet

from musclecal.errors import InputError
from musclecal.events import expand_paths, read_dimuons, row_ranges, write_dimuons
from musclecal.pairs import paired
from musclecal.records import CutFlow, DimuonEvents, Muons

POLAR = {f"{key}{muon}": f"{key}{muon}" for key in ("pt", "eta", "phi") for muon in (1, 2)}
CARTESIAN = {f"p{axis}{muon}": f"p{axis}{muon}" for axis in "xyz" for muon in (1, 2)}
CHARGES = {"charge1": "Q1", "charge2": "Q2"}
IDS = {"run": "Run", "event": "Event"}

# One pair a row: pt1, eta1, phi1, Q1, pt2, eta2, phi2, Q2, Run, Event, iso1, iso2.
ROWS = np.array(
    [
        [5.0, 0.1, 0.2, 1, 6.0, -0.3, 2.0, -1, 7, 11, 0.01, 0.02],
        [7.0, 1.1, -3.0, -1, 8.0, -1.3, 1.0, 1, 7, 12, 0.11, 0.12],
        [9.0, 0.0, 0.0, 1, 9.5, 0.5, 1.5, 1, 7, 13, 0.21, 0.22],
        [np.nan, 0.4, 0.6, 1, 4.5, 0.5, 1.5, -1, 7, 14, 0.31, 0.32],
        [4.0, 0.4, 0.6, 0, 4.5, 0.5, 1.5, -1, 7, 15, 0.41, 0.42],
        [4.0, 0.4, 0.6, -1, 0.0, 0.5, 1.5, 1, 7, 16, 0.51, 0.52],
        [np.inf, 0.4, 0.6, -1, 5.0, 0.5, 1.5, 1, 7, 17, 0.61, 0.62],
        [11.0, -2.1, 3.1, -1, 12.0, 2.2, -3.1, 1, 8, 18, 0.71, 0.72],
    ]
)
NAMES = ("pt1", "eta1", "phi1", "Q1", "pt2", "eta2", "phi2", "Q2", "Run", "Event", "iso1", "iso2")
FLAT_FLOW = CutFlow(("pairs read", "finite momenta", "charge +1 or -1", "opposite sign"), (8, 5, 4, 3))


def flat_table() -> dict[str, np.ndarray]:
    integers = ("Q1", "Q2", "Run", "Event")
    return {
        name: column.astype(np.int64 if name in integers else np.float64)
        for name, column in zip(NAMES, ROWS.T, strict=True)
    }


def write_csv(path: Path, table: dict[str, np.ndarray], header: str | None = None) -> Path:
    lines = [header or ",".join(table)]
    lines += [",".join(str(value) for value in row) for row in zip(*table.values(), strict=True)]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path: Path, table: dict[str, np.ndarray]) -> Path:
    parquet.write_table(pa.table(table), path, row_group_size=3)
    return path


def write_flat_root(path: Path, table: dict[str, np.ndarray], tree: str = "pairs") -> Path:
    with uproot.recreate(path) as file:
        file.mktree(tree, table)
    return path


WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray]], Path]] = {
    "flat.csv": write_csv,
    "flat.csv.gz": write_csv,
    "flat.parquet": write_parquet,
    "flat.root": write_flat_root,
}


class Nano:
    """Events with 0, 1, 2, 3, 4 muons; each muon is (pt, eta, phi, charge)."""

    muons: tuple[list[tuple[float, float, float, int]], ...] = (
        [],
        [(5.0, 0.1, 0.2, 1)],
        [(6.0, -0.5, 1.0, -1), (7.0, 0.5, -1.0, 1)],
        [(8.0, 0.1, 0.1, 1), (9.0, 0.2, 0.2, 1), (10.0, 0.3, 0.3, -1)],
        [(11.0, 1.1, 0.1, -1), (12.0, 1.2, 0.2, 1), (13.0, 1.3, 0.3, -1), (14.0, 1.4, 0.4, 1)],
        [(15.0, 0.1, 0.1, -1), (16.0, 0.2, 0.2, -1)],
    )
    # pT of mu+ and mu-, event, by hand
    expected = (
        (7.0, 6.0, 102),
        (8.0, 10.0, 103),
        (9.0, 10.0, 103),
        (12.0, 11.0, 104),
        (14.0, 11.0, 104),
        (12.0, 13.0, 104),
        (14.0, 13.0, 104),
    )
    flow = CutFlow(FLAT_FLOW.names, (1 + 3 + 6 + 1, 11, 11, 7))

    def branches(self) -> dict[str, ak.Array]:
        fields = {}
        for number, (name, kind) in enumerate(
            (("pt", np.float32), ("eta", np.float32), ("phi", np.float32), ("charge", np.int32))
        ):
            fields[f"Muon_{name}"] = jagged([[muon[number] for muon in event] for event in self.muons], kind)
        fields["Muon_tightId"] = jagged([[muon[0] > 6.5 for muon in event] for event in self.muons], np.bool_)
        fields["Muon_ptErr"] = fields["Muon_pt"] * np.float32(0.01)
        fields["run"] = np.full(6, 1, dtype=np.uint32)
        fields["luminosityBlock"] = np.full(6, 2, dtype=np.uint32)
        fields["event"] = np.arange(100, 106, dtype=np.uint64)
        fields["PV_npvs"] = np.arange(6, dtype=np.int32)
        return fields

    def generated(self) -> dict[str, ak.Array]:
        """Every muon has its own particle, 1 % softer; in event 103 the matches are wrong or missing."""
        particles = [
            [(0.99 * pt, eta, phi, -13 * charge) for pt, eta, phi, charge in event] for event in self.muons
        ]
        index = [list(range(len(event))) for event in self.muons]
        index[3] = [0, -1, 2]
        particles[3][0] = (*particles[3][0][:3], 211)
        fields = {"Muon_genPartIdx": jagged(index, np.int32)}
        for number, name in enumerate(("pt", "eta", "phi")):
            fields[f"GenPart_{name}"] = jagged(
                [[p[number] for p in event] for event in particles], np.float32
            )
        fields["GenPart_pdgId"] = jagged([[p[3] for p in event] for event in particles], np.int32)
        return fields


def jagged(lists: Sequence[Sequence[float]], kind: DTypeLike) -> ak.Array:
    counts = [len(entries) for entries in lists]
    return ak.unflatten(np.array([x for entries in lists for x in entries], dtype=kind), counts)


def write_ttree(path: Path, branches: dict[str, ak.Array]) -> Path:
    with uproot.recreate(path) as file:
        file.mktree("Events", branches)
    return path


def write_rntuple(path: Path, branches: dict[str, ak.Array]) -> Path:
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", branches)
    return path


NANO_WRITERS = {"tree.root": write_ttree, "rntuple.root": write_rntuple}


def gather(chunks: Iterator[tuple[DimuonEvents, CutFlow]]) -> tuple[dict[str, np.ndarray], CutFlow]:
    """All columns of all chunks, by name, and the sum of the flows."""
    columns: dict[str, list[np.ndarray]] = {}
    flow = CutFlow()
    for events, part in chunks:
        flow = flow + part
        for name, column in named_columns(events).items():
            columns.setdefault(name, []).append(column)
    return {name: np.concatenate(parts) for name, parts in columns.items()}, flow


def named_columns(events: DimuonEvents) -> dict[str, np.ndarray]:
    columns = dict(events.extra)
    for which in ("plus", "minus", "gen_plus", "gen_minus"):
        if (muons := getattr(events, which)) is not None:
            columns |= {f"{which}.{name}": getattr(muons, name) for name in ("pt", "eta", "phi")}
            if muons.pt_err is not None:
                columns[f"{which}.pt_err"] = muons.pt_err
    return columns | {
        key: ids for key in ("run", "lumi", "event") if (ids := getattr(events, key)) is not None
    }


def assert_same_bits(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for name, column in one.items():
        assert column.dtype == two[name].dtype, name
        assert column.tobytes() == two[name].tobytes(), name


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("chunk_events", [1, 3, 1000])
def test_flat_formats_give_the_same_pairs_in_any_chunks(tmp_path: Path, name: str, chunk_events: int) -> None:
    path = WRITERS[name](tmp_path / name, flat_table())
    columns, flow = gather(
        read_dimuons([path], POLAR | CHARGES | IDS, extra=("iso1", "iso2"), chunk_events=chunk_events)
    )
    assert flow == FLAT_FLOW
    rows = np.array([0, 1, 7])
    swapped = np.array([False, True, True])
    for number, key in enumerate(("pt", "eta", "phi")):
        one, two = ROWS[rows, number], ROWS[rows, 4 + number]
        np.testing.assert_array_equal(columns[f"plus.{key}"], np.where(swapped, two, one))
        np.testing.assert_array_equal(columns[f"minus.{key}"], np.where(swapped, one, two))
    assert columns["event"].tolist() == [11, 12, 18]
    assert columns["run"].dtype == np.int64
    assert columns["iso1"].tolist() == [0.01, 0.11, 0.71]
    assert columns["iso_plus"].tolist() == [0.01, 0.12, 0.72]
    assert columns["iso_minus"].tolist() == [0.02, 0.11, 0.71]


@pytest.mark.parametrize("name", NANO_WRITERS)
@pytest.mark.parametrize("chunk_events", [1, 3, 1000])
def test_nanoaod_gives_all_opposite_sign_pairs(tmp_path: Path, name: str, chunk_events: int) -> None:
    path = NANO_WRITERS[name](tmp_path / name, Nano().branches())
    extra = ("Muon_tightId", "PV_npvs")
    columns, flow = gather(read_dimuons([path], extra=extra, chunk_events=chunk_events))
    assert flow == Nano.flow
    found = zip(columns["plus.pt"], columns["minus.pt"], columns["event"], strict=True)
    assert tuple(found) == Nano.expected
    assert columns["lumi"].tolist() == [2] * 7
    assert columns["Muon_tightId_minus"].tolist() == [False] + 6 * [True]
    assert columns["PV_npvs"].tolist() == [2, 3, 3, 4, 4, 4, 4]
    np.testing.assert_allclose(columns["plus.pt_err"], 0.01 * columns["plus.pt"], rtol=1e-6)
    assert all(column.flags.writeable for column in columns.values())


@pytest.mark.parametrize("name", NANO_WRITERS)
@pytest.mark.parametrize("chunk_events", [1, 1000])
def test_generator_muons_follow_their_match(tmp_path: Path, name: str, chunk_events: int) -> None:
    path = NANO_WRITERS[name](tmp_path / name, Nano().branches() | Nano().generated())
    columns, flow = gather(read_dimuons(path, chunk_events=chunk_events))
    assert flow == CutFlow((*Nano.flow.names, "generator match"), (*Nano.flow.counts, 5))
    assert 103 not in columns["event"]
    np.testing.assert_allclose(columns["gen_plus.pt"], 0.99 * columns["plus.pt"], rtol=1e-6)
    np.testing.assert_allclose(columns["gen_minus.pt"], 0.99 * columns["minus.pt"], rtol=1e-6)
    np.testing.assert_array_equal(columns["gen_minus.eta"], columns["minus.eta"])
    without, flow = gather(read_dimuons(path, generator=False))
    assert flow == Nano.flow
    assert "gen_plus.pt" not in without


@pytest.mark.parametrize("name", [*WRITERS, *NANO_WRITERS])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_pieces_of_a_file_are_the_file(tmp_path: Path, name: str, rows: int) -> None:
    """Each row in one piece, pieces in their order, also where a Parquet file has groups of rows of its own."""
    nano = name in NANO_WRITERS
    path = (
        NANO_WRITERS[name](tmp_path / name, Nano().branches())
        if nano
        else WRITERS[name](tmp_path / name, flat_table())
    )
    if name.endswith(".parquet"):
        parquet.write_table(parquet.read_table(path), path, row_group_size=3)
    columns = None if nano else POLAR | CHARGES | IDS
    pieces = row_ranges(str(path), rows)
    whole, flow = gather(read_dimuons([path], columns))
    total, parts = CutFlow(), []
    for piece in pieces:
        part, seen = gather(read_dimuons([path], columns, rows=piece, chunk_events=2))
        parts.append(part)
        total += seen
    assert total == flow
    np.testing.assert_array_equal(np.concatenate([part["plus.pt"] for part in parts]), whole["plus.pt"])
    np.testing.assert_array_equal(np.concatenate([part["event"] for part in parts]), whole["event"])
    sizes = [piece[1] - piece[0] for piece in pieces if piece is not None]
    assert all(0 < size <= rows for size in sizes)
    assert (pieces == (None,)) == (rows == 100 or ".csv" in name)


def test_a_file_that_cannot_be_read_is_one_piece(tmp_path: Path) -> None:
    (tmp_path / "bad.root").write_bytes(b"nothing")
    assert row_ranges(str(tmp_path / "bad.root"), 10) == (None,)


@pytest.mark.parametrize("simulated", [False, True])
def test_pairs_against_a_double_loop(simulated: bool) -> None:
    """Muons that lack one thing or another, and the number of pairs after each step."""
    rng = np.random.default_rng(1)
    counts = np.concatenate([[0, 3, 1, 2, 5, 0, 4, 3], rng.integers(0, 6, 300)])
    n = int(counts.sum())
    charge = rng.choice([-1.0, 1.0, 0.0, 2.0, np.nan], n, p=(0.45, 0.45, 0.04, 0.03, 0.03))
    pt, gen_pt = (rng.choice([5.0, 0.0, np.nan, np.inf], n, p=(0.85, 0.05, 0.05, 0.05)) for _ in range(2))
    eta = rng.choice([0.5, -np.inf], n, p=(0.95, 0.05))
    momenta, generated = (pt, eta, np.zeros(n)), Muons(gen_pt, np.zeros(n), np.zeros(n))
    event, plus, minus, flow = paired(counts, momenta, charge, generated if simulated else None)
    expected, passed = [], np.zeros(5, dtype=int)
    physical, matched = (pt == 5.0) & (eta == 0.5), (gen_pt == 5.0) | (not simulated)
    first = 0
    for number, count in enumerate(counts):
        for i in range(first, first + count):
            for j in range(i + 1, first + count):
                steps = [
                    True, physical[i] and physical[j], abs(charge[i]) == 1 and abs(charge[j]) == 1,
                    charge[i] == -charge[j], matched[i] and matched[j],
                ]  # fmt: skip
                passed += np.cumprod(steps)
                if all(steps):
                    expected.append((number, i, j) if charge[i] > 0 else (number, j, i))
        first += count
    assert list(zip(event, plus, minus, strict=True)) == expected
    assert len(expected) > 100
    names = ("pairs read", "finite momenta", "charge +1 or -1", "opposite sign", "generator match")
    used = 5 if simulated else 4
    assert flow == CutFlow(names[:used], tuple(int(x) for x in passed[:used]))


def test_cartesian_momenta_win(tmp_path: Path) -> None:
    table = flat_table()
    rows = [0, 1, 7]
    table = {name: column[rows] for name, column in table.items()}
    for muon in (1, 2):
        pt, eta, phi = (table[f"{key}{muon}"] for key in ("pt", "eta", "phi"))
        table |= {
            f"px{muon}": pt * np.cos(phi),
            f"py{muon}": pt * np.sin(phi),
            f"pz{muon}": pt * np.sinh(eta),
        }
    truth, _ = gather(read_dimuons(write_csv(tmp_path / "good.csv", table), POLAR | CHARGES))
    spoilt = table | {"pt1": 3.0 * table["pt1"], "eta2": table["eta2"] + 1.0}
    path = write_csv(tmp_path / "spoilt.csv", spoilt)
    columns, _ = gather(read_dimuons(path, POLAR | CARTESIAN | CHARGES))
    for name, column in truth.items():
        np.testing.assert_allclose(columns[name], column, rtol=1e-12)


def test_blanks_in_a_csv_header_and_late_floats(tmp_path: Path) -> None:
    table = {name: column[[0, 1, 7]] for name, column in flat_table().items()}
    n = 2000
    table = {name: np.resize(column, n) for name, column in table.items()}
    whole_first = [str(int(x)) for x in table["pt1"][:-1]] + ["7.25"]
    table["pt1"] = np.array(whole_first)
    path = write_csv(tmp_path / "blanks.csv", table, header=", ".join(f"{name} " for name in table))
    columns, flow = gather(read_dimuons(path, POLAR | CHARGES | IDS, chunk_events=10))
    assert flow.counts[0] == n
    assert 7.25 in (columns["plus.pt"][-1], columns["minus.pt"][-1])


def test_text_columns_for_cuts(tmp_path: Path) -> None:
    table = flat_table() | {"type1": np.array(list("GGGGGGGT")), "type2": np.array(list("TGGGGGGG"))}
    for name, write in WRITERS.items():
        path = write(tmp_path / name, table)
        columns, _ = gather(read_dimuons(path, POLAR | CHARGES, extra=("type_plus",), chunk_events=3))
        assert columns["type_plus"].tolist() == ["G", "G", "G"]
        assert columns["type_minus"].tolist() == ["T", "G", "T"]


def test_all_rows_dropped_is_an_empty_chunk(tmp_path: Path) -> None:
    table = {name: column[[2, 3]] for name, column in flat_table().items()}
    path = write_parquet(tmp_path / "none.parquet", table)
    ((events, flow),) = read_dimuons(path, POLAR | CHARGES)
    assert len(events) == 0
    assert flow.counts == (2, 1, 1, 0)
    assert len(events.mass) == 0


def test_progress_counts_rows(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    one = write_parquet(tmp_path / "1.parquet", flat_table())
    two = write_csv(tmp_path / "2.csv", flat_table())
    gather(
        read_dimuons([one, one], POLAR | CHARGES, chunk_events=3, progress=lambda *done: calls.append(done))
    )
    assert calls == [(3, 8), (6, 8), (8, 8)]
    calls.clear()
    gather(read_dimuons([one, two], POLAR | CHARGES, progress=lambda *done: calls.append(done)))
    assert calls[-1] == (16, None)


def test_several_formats_are_one_sample(tmp_path: Path) -> None:
    files = [write(tmp_path / name, flat_table()) for name, write in WRITERS.items()]
    columns, flow = gather(read_dimuons(files, POLAR | CHARGES))
    assert flow.counts == tuple(4 * count for count in FLAT_FLOW.counts)
    assert columns["plus.pt"].tolist() == [5.0, 8.0, 12.0] * 4


# paths


def test_expand_paths(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c[1].csv", "t.root"):
        (tmp_path / name).touch()
    a, b = f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"
    assert expand_paths([f"{tmp_path}/[ab].csv"]) == [a, b]
    assert expand_paths([b, f"{tmp_path}/[ab].csv"]) == [b, a]
    assert expand_paths(tmp_path / "c[1].csv") == [f"{tmp_path}/c[1].csv"]
    assert expand_paths([f"{tmp_path}/*.root:mu/pairs"]) == [f"{tmp_path}/t.root:mu/pairs"]
    remote = ["root://eos.cern.ch//store/*.root", "https://x.org/a.root:Events", "s3://bucket/a.root"]
    assert expand_paths(remote) == remote
    with pytest.raises(InputError, match=r"nothing-\*\.csv: no file of this name"):
        expand_paths([a, f"{tmp_path}/nothing-*.csv"])
    with pytest.raises(InputError, match="no files"):
        expand_paths([])


def test_choice_of_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        file.mktree("first", flat_table())
        file.mktree("dir/second", {name: column[:2] for name, column in flat_table().items()})
    _, flow = gather(read_dimuons(f"{path}:dir/second", POLAR | CHARGES))
    assert flow.counts[0] == 2
    with pytest.raises(InputError, match=r"several trees, choose one as path:tree: first, dir/second"):
        next(read_dimuons(path, POLAR | CHARGES))
    with pytest.raises(InputError, match=r"no tree 'third': there are first, dir/second"):
        next(read_dimuons(f"{path}:third", POLAR | CHARGES))
    with uproot.recreate(path) as file:
        file["note"] = "no tree here"
    with pytest.raises(InputError, match="holds no TTree or RNTuple"):
        next(read_dimuons(path, POLAR | CHARGES))


# unusable input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pT1": "pt1"}, "unknown key 'pT1': known are run, lumi, event, pt1"),
        ({"px1": "px1", "py1": "py1"}, "'pz1' is missing: px1, py1, pz1 go together"),
        ({"eta2": None}, "'eta2' is missing: pt2, eta2, phi2 go together"),
        (
            {"pt2": None, "eta2": None, "phi2": None},
            "muon 2 has no momentum: pt2, eta2, phi2 or px2, py2, pz2",
        ),
        ({"charge1": None}, "'charge1' is missing"),
        ({"pt_err1": "e"}, "'pt_err2' is missing: both muons"),
        ({"gen_pt1": "a", "gen_eta1": "b", "gen_phi1": "c"}, "'gen_pt2' is missing: both muons"),
        ({"gen_pt1": "a"}, "'gen_eta1' is missing"),
        ({"run": ""}, "'run' must be the name of a column"),
    ],
)
def test_bad_column_maps(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    columns = {key: name for key, name in (POLAR | CHARGES | change).items() if name is not None}
    with pytest.raises(InputError, match=message):
        read_dimuons(tmp_path / "never-opened.csv", columns)


@pytest.mark.parametrize("name", WRITERS)
def test_missing_columns_are_named(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, flat_table())
    with pytest.raises(InputError, match=rf"{name}: no column 'LS': there are pt1, eta1"):
        next(read_dimuons(path, POLAR | CHARGES | {"lumi": "LS"}))
    with pytest.raises(InputError, match=rf"{name}: no column 'chi2': there are"):
        next(read_dimuons(path, POLAR | CHARGES, extra=("chi2",)))
    with pytest.raises(InputError, match=rf"{name}: no column 'chi2_plus' nor chi21 and chi22"):
        next(read_dimuons(path, POLAR | CHARGES, extra=("chi2_plus",)))
    with pytest.raises(InputError, match=rf"{name}: neither NanoAOD .*'charge1' is missing"):
        next(read_dimuons(path))


def test_missing_branches_are_named(tmp_path: Path) -> None:
    branches = Nano().branches()
    del branches["Muon_charge"]
    path = write_ttree(tmp_path / "nano.root", branches)
    with pytest.raises(InputError, match=r"nano\.root: no branch 'Muon_charge'"):
        next(read_dimuons(path))
    with pytest.raises(InputError, match=r"nano\.root: no branch 'Muon_softId'"):
        next(read_dimuons(path, extra=("Muon_softId",)))


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    branches = Nano().branches() | {"Jet_pt": jagged([[1.0]] * 6, np.float32)}
    path = write_ttree(tmp_path / "nano.root", branches)
    with pytest.raises(InputError, match=r"nano\.root: branch 'Jet_pt' does not have one value a muon"):
        next(read_dimuons(path, extra=("Jet_pt",)))
    columns = dict.fromkeys(POLAR, "Muon_pt") | {"charge1": "run", "charge2": "run"}
    with pytest.raises(InputError, match=r"nano\.root: column 'Muon_pt' holds a list a row"):
        next(read_dimuons(path, columns))


@pytest.mark.parametrize("name", WRITERS)
def test_empty_files_are_named(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, {key: column[:0] for key, column in flat_table().items()})
    with pytest.raises(InputError, match=f"{name}: has no rows"):
        next(read_dimuons(path, POLAR | CHARGES))
    path.write_bytes(b"")
    with pytest.raises(InputError, match=name):
        next(read_dimuons(path, POLAR | CHARGES))


@pytest.mark.parametrize("name", [*WRITERS, *NANO_WRITERS])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    table = {key: np.resize(column[:3], 5000) for key, column in flat_table().items()}
    if name in WRITERS:
        path, columns = WRITERS[name](tmp_path / name, table), POLAR | CHARGES
    else:
        branches = {key: ak.concatenate([column] * 500) for key, column in Nano().branches().items()}
        path, columns = NANO_WRITERS[name](tmp_path / name, branches), None
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3] + (b",oops" if name == "flat.csv" else b""))
    with pytest.raises(InputError, match=name):
        gather(read_dimuons(path, columns))
    if name != "flat.csv":
        path.write_bytes(b"this is not the file you are looking for" * 50)
        with pytest.raises(InputError, match=f"{name}: .*"):
            gather(read_dimuons(path, columns))


def test_a_bad_cell_is_named(tmp_path: Path) -> None:
    table = flat_table()
    path = write_csv(tmp_path / "word.csv", table | {"eta2": np.array([*"123456", "up", "8"])})
    with pytest.raises(InputError, match=r"word\.csv: column 'eta2': .*invalid value 'up'"):
        next(read_dimuons(path, POLAR | CHARGES))
    path = write_csv(tmp_path / "gap.csv", table | {"Run": np.array([*"1234567", ""])})
    with pytest.raises(InputError, match=r"gap\.csv: column 'Run' has empty or fractional values"):
        next(read_dimuons(path, POLAR | CHARGES | IDS))
    path = write_parquet(tmp_path / "text.parquet", table | {"pt1": np.array([*"12345678"])})
    with pytest.raises(InputError, match=r"text\.parquet: column 'pt1' does not hold numbers"):
        next(read_dimuons(path, POLAR | CHARGES))
    path = write_csv(tmp_path / "twice.csv", table, header=",".join([*NAMES[:-1], "pt1 "]))
    with pytest.raises(InputError, match=r"twice\.csv: several columns are called 'pt1'"):
        next(read_dimuons(path, POLAR | CHARGES))


@pytest.mark.parametrize("chunk_events", [1, 1000])
@pytest.mark.parametrize(
    ("factor", "message"), [(1e3, "like MeV: .*divide by 1000"), (1e-3, "like TeV: .*multiply by 1000")]
)
def test_wrong_units_are_named(tmp_path: Path, factor: float, message: str, chunk_events: int) -> None:
    table = flat_table()
    path = write_parquet(tmp_path / "unit.parquet", table | {"pt1": factor * table["pt1"]})
    with pytest.raises(InputError, match=rf"unit\.parquet: column 'pt1': the median pT is .*{message}"):
        gather(read_dimuons(path, POLAR | CHARGES, chunk_events=chunk_events))


def test_one_hard_muon_is_no_wrong_unit(tmp_path: Path) -> None:
    table = flat_table()
    table["pt1"][0] = 1500.0
    columns, _ = gather(
        read_dimuons(write_csv(tmp_path / "hard.csv", table), POLAR | CHARGES, chunk_events=1)
    )
    assert columns["plus.pt"][0] == 1500.0


def test_generator_unit_is_checked(tmp_path: Path) -> None:
    events = simulated(4)
    softened = Muons(events.plus.pt * 1e3, events.plus.eta, events.plus.phi)
    path = tmp_path / "mev.parquet"
    write_dimuons(path, [DimuonEvents(events.plus, events.minus, softened, events.gen_minus)])
    with pytest.raises(InputError, match=r"column 'gen_pt1'.*MeV"):
        gather(read_dimuons(path))
    gather(read_dimuons(path, generator=False))


def test_files_of_different_content_are_no_sample(tmp_path: Path) -> None:
    one = write_ttree(tmp_path / "sim.root", Nano().branches() | Nano().generated())
    two = write_ttree(tmp_path / "data.root", Nano().branches())
    with pytest.raises(
        InputError, match=r"data\.root: has momenta, .* but .*sim\.root has .*generator muons"
    ):
        gather(read_dimuons([one, two]))
    gather(read_dimuons([one, two], generator=False))


def test_other_refusals(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"a\.txt: unknown format"):
        next(read_dimuons(tmp_path / "a.txt", POLAR | CHARGES))
    with pytest.raises(InputError, match="chunk_events: must be at least 1, got 0"):
        read_dimuons(tmp_path / "a.txt", chunk_events=0)


# writing


def simulated(n_event: int, generator: bool = True) -> DimuonEvents:
    generate = np.random.default_rng(5)

    def muons(errors: bool) -> Muons:
        pt = 4.0 + generate.exponential(5.0, n_event)
        eta, phi = generate.uniform(-2.4, 2.4, n_event), generate.uniform(-3.14, 3.14, n_event)
        return Muons(pt, eta, phi, 0.01 * pt if errors else None)

    number = np.arange(n_event)
    tight = {f"Muon_tightId_{charge}": generate.random(n_event) > 0.5 for charge in ("plus", "minus")}
    return DimuonEvents(
        muons(True),
        muons(True),
        muons(False) if generator else None,
        muons(False) if generator else None,
        run=np.full(n_event, 3),
        lumi=number // 7,
        event=number + 2**40,
        extra=tight | {"PV_npvs": number},
    )


def slices(events: DimuonEvents, size: int) -> Iterator[DimuonEvents]:
    for start in range(0, len(events), size):
        yield events.select(np.arange(start, min(start + size, len(events))))


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_round_trip(tmp_path: Path, suffix: str, generator: bool) -> None:
    events = simulated(100, generator)
    path = tmp_path / f"pairs{suffix}"
    assert write_dimuons(path, slices(events, 30)) == 100
    columns, flow = gather(read_dimuons(path, extra=tuple(events.extra), chunk_events=17))
    assert set(flow.counts) == {100}
    written = named_columns(events)
    assert columns.keys() == written.keys()
    for name, column in written.items():
        in_double = "." not in name or (suffix == ".parquet" and name.endswith(("pt", "pt_err")))
        expected = column if in_double else column.astype(np.float32)
        np.testing.assert_array_equal(columns[name], expected, err_msg=name)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_written_root_looks_like_nanoaod(tmp_path: Path) -> None:
    write_dimuons(tmp_path / "pairs.root", [simulated(3)])
    with uproot.open({tmp_path / "pairs.root": "Events"}) as tree:
        names = tree.typenames()
        pdg_id = tree["GenPart_pdgId"].array().tolist()
        index = tree["Muon_genPartIdx"].array().tolist()
        charge = tree["Muon_charge"].array().tolist()
    assert names["Muon_pt"] == "float[]"
    assert names["Muon_charge"] == "int32_t[]"
    assert (names["run"], names["luminosityBlock"], names["event"]) == ("uint32_t", "uint32_t", "uint64_t")
    assert {"nMuon", "nGenPart", "GenPart_mass", "GenPart_status", "Muon_tightId", "PV_npvs"} <= set(names)
    assert (charge, pdg_id, index) == ([[1, -1]] * 3, [[-13, 13]] * 3, [[0, 1]] * 3)


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_nothing_half_written_is_left(tmp_path: Path, suffix: str) -> None:
    def failing() -> Iterator[DimuonEvents]:
        yield simulated(5)
        raise RuntimeError("disk on fire")

    path = tmp_path / f"pairs{suffix}"
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_dimuons(path, failing())
    assert list(tmp_path.iterdir()) == []
    write_dimuons(path, [simulated(2)])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_dimuons(path, failing())
    assert path.read_bytes() == before


def test_writing_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.h5: unknown format to write"):
        write_dimuons(tmp_path / "a.h5", [simulated(1)])
    with pytest.raises(InputError, match="there is no folder"):
        write_dimuons(tmp_path / "nowhere" / "a.root", [simulated(1)])
    with pytest.raises(InputError, match="no events to write"):
        write_dimuons(tmp_path / "a.parquet", [])
    events = simulated(1)
    with pytest.raises(InputError, match="branch 'run': -1 to -1 do not fit uint32"):
        write_dimuons(tmp_path / "a.root", [DimuonEvents(events.plus, events.minus, run=np.array([-1]))])
    text = {f"Muon_kind_{charge}": np.array(["G"]) for charge in ("plus", "minus")}
    with pytest.raises(InputError, match="branch 'Muon_kind': only numbers"):
        write_dimuons(tmp_path / "a.root", [DimuonEvents(events.plus, events.minus, extra=text)])
    assert list(tmp_path.iterdir()) == []


# real data

REAL = CHARGES | IDS
# file, column map, pairs in the file, of opposite sign, mass window (GeV), of these inside, sum of Event;
# counted with a loop over csv.DictReader rows / muons that does not use musclecal.
REAL_FILES = [
    ("cms2011A/Jpsimumu.csv.gz", POLAR | CARTESIAN | REAL, 20000, 20000, (2.85, 3.25), 10978, 6190930049071),
    ("cms2011A/Ymumu.csv.gz", POLAR | CARTESIAN | REAL, 20000, 20000, (8.9, 9.8), 5744, 5621679248949),
    ("cms2011A/Zmumu_even_event.csv.gz", POLAR | REAL, 5108, 4912, (75.0, 107.0), 4422, 1989861201110),
    ("cms2010/2kdimuon-Jpsi.csv.gz", POLAR | CARTESIAN | REAL, 2000, 1496, (2.85, 3.25), 342, 1505036114519),
    ("cms2010/uproot-Zmumu.root", POLAR | CARTESIAN | REAL, 2304, 2147, (75.0, 107.0), 1871, None),
    ("nano/Run2012BC_*.root", None, 2283, 1263, (75.0, 107.0), 117, None),
    ("nano/nano_dimuon.root", None, 66, 38, (75.0, 107.0), 5, None),
    ("nano/nano_dy.root", None, 6, 6, (75.0, 107.0), 5, None),
]


@pytest.mark.real_data
@pytest.mark.parametrize("entry", REAL_FILES, ids=lambda entry: str(entry[0]))
@pytest.mark.parametrize("chunk_events", [100, 500_000])
def test_real_files(shared_data: Path, entry: tuple[Any, ...], chunk_events: int) -> None:
    name, columns, n_pairs, n_opposite, (low, high), n_window, event_sum = entry
    n_inside, events_in_sum, total = 0, 0, CutFlow()
    for events, flow in read_dimuons(shared_data / name, columns, chunk_events=chunk_events):
        total = total + flow
        n_inside += int(np.count_nonzero((events.mass >= low) & (events.mass < high)))
        events_in_sum += 0 if events.event is None else int(events.event.sum())
    assert (total.counts[0], total.counts[3]) == (n_pairs, n_opposite)
    assert n_inside == n_window
    assert event_sum is None or events_in_sum == event_sum


@pytest.mark.real_data
def test_cartesian_momenta_of_real_events_stay_in_their_window(shared_data: Path) -> None:
    path = shared_data / "cms2011A" / "Jpsimumu.csv.gz"
    columns, _ = gather(read_dimuons(path, POLAR | CARTESIAN | CHARGES))
    other, _ = gather(read_dimuons(path, POLAR | CHARGES))
    assert np.count_nonzero(np.abs(columns["plus.pt"] / other["plus.pt"] - 1.0) > 1e-3) > 50
    ((events, _),) = read_dimuons(path, POLAR | CARTESIAN | CHARGES)
    assert events.mass.min() > 2.0
    assert events.mass.max() < 5.0


@pytest.mark.real_data
def test_real_simulation_has_generator_muons(shared_data: Path) -> None:
    ((events, flow),) = read_dimuons(shared_data / "nano" / "nano_dy.root", extra=("Muon_tightId",))
    assert flow.names[-1] == "generator match"
    assert events.gen_plus is not None
    assert np.abs(events.plus.pt / events.gen_plus.pt - 1.0).max() < 0.2
    assert events.plus.pt_err is not None
    assert events.extra["Muon_tightId_plus"].dtype == np.bool_
