"""Friends of flat files: row for row what the correction gives to each of the two muons, in the format of the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import uproot
from click.testing import Result

from musclecal.columns import BY_CHARGE, BY_NUMBER
from musclecal.correction import Correction, Reason
from musclecal.errors import InputError
from musclecal.events import read_dimuons
from musclecal.export import export_npz
from musclecal.friends import write_friends
from musclecal.kinematics import pair_masses
from musclecal.records import CorrectionTables

N_ETA = 4
EDGES = np.linspace(-2.4, 2.4, N_ETA + 1)
Columns = dict[str, Any]
Make = Callable[..., CorrectionTables]
NUMBERS = ("run", "lumi", "event")


@pytest.fixture(scope="module")
def correction(friend_tables: Make) -> Correction:
    return Correction(friend_tables())


def pairs(n: int = 300, ends: tuple[str, str] = BY_NUMBER, seed: int = 1, kind: type = np.float32) -> Columns:
    """One pair a row; some muons cannot be corrected. By number, charges are in any order, some of the same sign."""
    rng = np.random.default_rng(seed)
    content: Columns = {}
    for number, end in enumerate(ends):
        pt, eta = rng.uniform(3.0, 120.0, n), rng.uniform(-2.4, 2.4, n)
        pt[3 + number], pt[5 + number], eta[8 + number] = np.nan, 500.0, 2.5
        content |= {f"pt{end}": pt.astype(kind), f"eta{end}": eta.astype(kind)}
        content[f"phi{end}"] = rng.uniform(-3.14, 3.14, n).astype(kind)
        content[f"pt_err{end}"] = (0.01 * pt).astype(kind)
        if ends == BY_NUMBER:
            content[f"charge{end}"] = rng.choice([-1, 1], n).astype(np.int32)
    if ends == BY_NUMBER:
        content["charge2"][12] = 0
    # Beyond 2^63: an event number that is not kept as it is would show.
    event = np.arange(n, dtype=np.uint64) + np.uint64(2**63 + 10 * seed)
    return content | {
        "run": np.full(n, 3, np.uint32), "lumi": rng.integers(1, 9, n).astype(np.uint32), "event": event,
        "weight": rng.uniform(size=n),
    }  # fmt: skip


def write(path: Path, content: Columns, rntuple: bool = False) -> Path:
    if path.suffix == ".root":
        with uproot.recreate(path) as file:
            (file.mkrntuple if rntuple else file.mktree)("pairs", content)
    elif path.suffix == ".csv":
        pa_csv.write_csv(pa.table(content), path)
    else:
        pq.write_table(pa.table(content), path)
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".root":
        with uproot.open(path) as file:
            return {str(name): array for name, array in file["Events"].arrays(library="np").items()}
    return {name: column.to_numpy() for name, column in zip(*named_columns(path), strict=True)}


def named_columns(path: Path) -> tuple[list[str], list[Any]]:
    table = pq.read_table(path)
    return table.column_names, table.columns


def origin(path: Path) -> Any:
    if path.suffix == ".root":
        with uproot.open(path) as file:
            return json.loads(str(file["musclecal"]))
    return json.loads(pq.read_schema(path).metadata[b"musclecal"])


def muons(content: Columns, ends: tuple[str, str]) -> list[Any]:
    """pT, eta, phi, charge of both, in float64."""
    n = len(content["run"])
    return [
        tuple(
            np.asarray(content.get(f"{key}{end}", np.full(n, sign)), dtype=np.float64)
            for key in ("pt", "eta", "phi", "charge")
        )
        for end, sign in zip(ends, (1.0, -1.0), strict=True)
    ]


def assert_same_bits(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert list(one) == list(two)
    for name, column in one.items():
        assert column.dtype == two[name].dtype, name
        assert column.tobytes() == two[name].tobytes(), name


FILES = [("pairs.root", False), ("pairs.root", True), ("pairs.parquet", False), ("pairs.pq", False)]


@pytest.mark.parametrize(("name", "rntuple"), FILES)
@pytest.mark.parametrize("ends", [BY_NUMBER, BY_CHARGE])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_flat_friend_holds_what_the_correction_gives(
    tmp_path: Path, correction: Correction, name: str, rntuple: bool, ends: tuple[str, str], kind: type
) -> None:
    content = pairs(ends=ends, kind=kind)
    source = write(tmp_path / name, content, rntuple)
    out = tmp_path / f"friend{source.suffix}"
    (friend,) = write_friends(
        source, correction, out, variations=["stat1"], smear=True, salt=2, chunk_events=70
    )
    found = read(out)
    whats = ("corr", "corr_stat1_up", "corr_stat1_down", "smeared")
    assert set(found) == {
        *NUMBERS,
        *(f"{column}_{what}" for column in (f"pt{ends[0]}", f"pt{ends[1]}", "mass") for what in whats),
        *(f"pt_err{end}_corr" for end in ends), *(f"scale_reason{end}" for end in ends),
    }  # fmt: skip
    for key in NUMBERS:
        assert found[key].dtype == content[key].dtype
        np.testing.assert_array_equal(found[key], content[key])
    both = muons(content, ends)
    expected: dict[str, list[np.ndarray]] = {what: [] for what in whats}
    for end, (pt, eta, phi, charge) in zip(ends, both, strict=True):
        muon = (pt, eta, phi, charge)
        for what, syst in zip(whats, ("nom", "stat1_up", "stat1_down"), strict=False):
            expected[what].append(pt * correction.scale(*muon, syst=syst))
        run, lumi, event = (content[key] for key in NUMBERS)
        draw = correction.smear(*muon, run=run, lumi=lumi, event=event, salt=2)
        expected["smeared"].append(pt * draw)
        for what in whats:
            assert found[f"pt{end}_{what}"].dtype == kind
            np.testing.assert_array_equal(found[f"pt{end}_{what}"], expected[what][-1].astype(kind))
        error = correction.pt_error(*muon, pt_err=content[f"pt_err{end}"].astype(np.float64))
        np.testing.assert_array_equal(found[f"pt_err{end}_corr"], error.astype(kind))
        reason = found[f"scale_reason{end}"]
        assert reason.dtype == np.int8
        np.testing.assert_array_equal(reason, correction.validity(*muon).reason)
    for what in whats:
        (one, two), (first, second) = expected[what], both
        masses = pair_masses(one, first[1], first[2], two, second[1], second[2])
        assert found[f"mass_{what}"].dtype == np.float64
        np.testing.assert_array_equal(found[f"mass_{what}"], masses)
    reasons = np.concatenate([found[f"scale_reason{end}"] for end in ends])
    assert friend.reasons == tuple(np.bincount(reasons, minlength=len(Reason)))
    assert (friend.n_events, friend.n_muons) == (300, 600)
    assert set(friend.branches) == set(found) - set(NUMBERS)
    assert origin(out) == {"correction": {"period": "test"}, "inputs": [name], "smear": {"salt": 2}}


def test_mass_and_momenta_by_hand(tmp_path: Path, correction: Correction) -> None:
    """With the formula of k for each charge, and m^2 = 2 pT pT (cosh - cos) of muons without mass."""
    content = pairs(ends=BY_CHARGE, kind=np.float64)
    write_friends(write(tmp_path / "pairs.root", content), correction, tmp_path / "friend.root")
    found = read(tmp_path / "friend.root")
    good = (found["scale_reason_plus"] == 0) & (found["scale_reason_minus"] == 0)
    assert 280 < np.sum(good) < 300
    t = correction.tables
    new = []
    for end, q in (("_plus", 1.0), ("_minus", -1.0)):
        pt, eta = content[f"pt{end}"][good], content[f"eta{end}"][good]
        i = np.searchsorted(EDGES, eta, side="right") - 1
        new.append(1.0 / ((1 + t.A[i] - t.e[i] / pt) / pt + q * t.M[i]))
        np.testing.assert_allclose(found[f"pt{end}_corr"][good], new[-1], rtol=1e-13)
        out = found[f"scale_reason{end}"] > 0
        np.testing.assert_array_equal(found[f"pt{end}_corr"][out], content[f"pt{end}"][out])
    d_eta, d_phi = ((content[f"{a}_plus"] - content[f"{a}_minus"])[good] for a in ("eta", "phi"))
    square = 2.0 * new[0] * new[1] * (np.cosh(d_eta) - np.cos(d_phi))
    heavy = square > 400.0
    np.testing.assert_allclose(found["mass_corr"][good][heavy], np.sqrt(square[heavy]), rtol=2e-3)


def test_cartesian_momenta(tmp_path: Path, correction: Correction) -> None:
    """They win over pT, as everywhere."""
    content = pairs(kind=np.float64)
    for n in "12":
        pt, eta, phi = (content[f"{key}{n}"] for key in ("pt", "eta", "phi"))
        content |= {f"px{n}": pt * np.cos(phi), f"py{n}": pt * np.sin(phi), f"pz{n}": pt * np.sinh(eta)}
        content[f"pt{n}"] = np.full(300, 7.0)
    write_friends(write(tmp_path / "pairs.parquet", content), correction, tmp_path / "friend.parquet")
    found, true = read(tmp_path / "friend.parquet"), pairs(kind=np.float64)
    for n, muon in zip("12", muons(true, BY_NUMBER), strict=True):
        inside = np.min(np.abs(muon[1][:, None] - EDGES), axis=1) > 1e-9
        expected = muon[0] * correction.scale(*muon)
        np.testing.assert_allclose(found[f"pt{n}_corr"][inside], expected[inside], rtol=1e-12)


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
@pytest.mark.parametrize("chunk_events", [1, 7, 299, 300, 100_000])
def test_chunks_do_not_show(tmp_path: Path, correction: Correction, suffix: str, chunk_events: int) -> None:
    source = write(tmp_path / f"pairs{suffix}", pairs())
    seen: list[tuple[int, int | None]] = []
    for name, n in (("one", 300), ("other", chunk_events)):
        write_friends(
            source, correction, tmp_path / f"{name}{suffix}", variations=("stat0",), smear=True, chunk_events=n,
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
    assert_same_bits(read(tmp_path / f"one{suffix}"), read(tmp_path / f"other{suffix}"))
    assert seen[0] == seen[-1] == (300, 300)


def test_files_in_a_chain_and_in_a_folder(tmp_path: Path, correction: Correction) -> None:
    """Also of both formats in one folder; NanoAOD and flat files are no chain."""
    sources = [write(tmp_path / f"{n}.parquet", pairs(100 * n, seed=n)) for n in (2, 1)]
    other = write(tmp_path / "3.root", pairs(50, seed=3))
    each = write_friends([*sources, other], correction, tmp_path / "friends")
    write_friends(sources, correction, tmp_path / "chain.parquet", chunk_events=33)
    assert [Path(friend.path).name for friend in each] == ["2.parquet", "1.parquet", "3.root"]
    first, second, chain = (
        read(tmp_path / name) for name in ("friends/2.parquet", "friends/1.parquet", "chain.parquet")
    )
    assert_same_bits(chain, {name: np.concatenate([first[name], second[name]]) for name in chain})
    with pytest.raises(InputError, match=r"3\.root has another format: its friends are \.root files"):
        write_friends([*sources, other], correction, tmp_path / "all.parquet")
    with pytest.raises(InputError, match=r"2\.parquet has another format: its friends are \.parquet files"):
        write_friends([*sources, other], correction, tmp_path / "all.root")


def test_a_friend_of_csv_is_parquet(tmp_path: Path, correction: Correction) -> None:
    content = {name: column.astype(np.float64) for name, column in pairs(kind=np.float64).items()}
    for name in ("run", "lumi"):
        content[name] = content[name].astype(np.int64)
    content["event"] = np.arange(300) + 2**53
    source = write(tmp_path / "pairs.csv", content)
    seen: list[tuple[int, int | None]] = []
    write_friends(
        source,
        correction,
        tmp_path / "out",
        smear=True,
        progress=lambda *done: seen.append(done),
        chunk_events=99,
    )
    found = read(tmp_path / "out" / "pairs.parquet")
    np.testing.assert_array_equal(found["event"], content["event"])
    muon = muons(content, BY_NUMBER)[1]
    np.testing.assert_array_equal(found["pt2_corr"], muon[0] * correction.scale(*muon))
    assert seen[-1] == (300, None)


def test_columns_of_other_names(tmp_path: Path, correction: Correction) -> None:
    content = {f"x_{name}": column for name, column in pairs().items() if name not in NUMBERS}
    source = write(tmp_path / "pairs.root", content | {"entry": np.arange(300.0)})
    keys = [name for name in pairs() if name not in (*NUMBERS, "weight")]
    columns = {key: f"x_{key}" for key in keys} | {"event": "entry"}
    write_friends(source, correction, tmp_path / "friend.root", columns=columns)
    write_friends(write(tmp_path / "plain.root", pairs()), correction, tmp_path / "plain_friend.root")
    found, plain = read(tmp_path / "friend.root"), read(tmp_path / "plain_friend.root")
    assert found.pop("entry").dtype == np.int64
    assert_same_bits(found, {name: column for name, column in plain.items() if name not in NUMBERS})
    with pytest.raises(InputError, match=r"neither NanoAOD .* the file has x_pt1"):
        write_friends(source, correction, tmp_path / "other.root")


def test_a_file_without_errors_and_event_numbers(tmp_path: Path, correction: Correction) -> None:
    content = {key: column for key, column in pairs().items() if key not in NUMBERS and "err" not in key}
    source = write(tmp_path / "pairs.parquet", content)
    write_friends(source, correction, tmp_path / "friend.parquet")
    names = [*(f"{what}{n}{end}" for n in "12" for what, end in (("pt", "_corr"), ("scale_reason", "")))]
    assert set(read(tmp_path / "friend.parquet")) == {*names, "mass_corr"}
    with pytest.raises(InputError, match=r"pairs\.parquet: no column 'run': smearing needs run, lumi, event"):
        write_friends(source, correction, tmp_path / "other.parquet", smear=True)


def test_pairs_named_by_charge_are_read_everywhere(tmp_path: Path) -> None:
    """As by `write_friends` so by a campaign: mu+ is what the file calls so, whatever order."""
    content = pairs(ends=BY_CHARGE, kind=np.float64)
    ((events, _),) = read_dimuons(write(tmp_path / "pairs.parquet", content))
    kept = np.isfinite(content["pt_plus"]) & np.isfinite(content["pt_minus"])
    assert len(events) == np.sum(kept) == 298
    for name, muon in (("plus", events.plus), ("minus", events.minus)):
        np.testing.assert_array_equal(muon.pt, content[f"pt_{name}"][kept])
        np.testing.assert_array_equal(muon.phi, content[f"phi_{name}"][kept])


# What cannot be used


def wrong(content: Columns, change: str) -> Columns:
    """The columns with one thing wrong."""
    if change.startswith("no "):
        del content[change.removeprefix("no ")]
    elif change == "MeV":
        content["pt1"] = content["pt1"] * np.float32(1000.0)
    elif change == "empty":
        content = {name: column[:0] for name, column in content.items()}
    elif change == "real event":
        content["event"] = np.arange(300) + 0.5
    elif change == "lost digits":
        content["event"] = (np.arange(300) + 2**25).astype(np.float32)
    elif change == "text charge":
        content["charge2"] = np.array(["+"] * 300)
    elif change == "list of pt":
        content["pt1"] = pa.array([[1.0]] * 300)
    elif change == "lone pt_err":
        del content["pt_err2"]
    return content


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *((f"no {name}", f"'{name}' is missing") for name in ("pt1", "eta1", "phi2", "charge1", "charge2")),
        *((f"no {name}", f"no column '{name}': smearing needs") for name in NUMBERS),
        ("lone pt_err", "'pt_err2' is missing: both muons or none"),
        ("MeV", "column 'pt1': the median pT is .* looks like MeV"),
        ("empty", "has no rows"),
        ("real event", "column 'event' has empty or fractional values"),
        ("lost digits", "column 'event' has numbers beyond what float32 counts"),
        ("text charge", "column 'charge2' does not hold numbers"),
        ("list of pt", "column 'pt1'"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".root", ".csv"])
def test_unusable_files_are_named_and_leave_nothing(
    tmp_path: Path, correction: Correction, change: str, named: str, suffix: str
) -> None:
    """The second of two files: not even the friend of the first is left half-written."""
    if (change == "text charge" and suffix == ".root") or (
        change in ("list of pt", "lost digits") and suffix != ".parquet"
    ):
        pytest.skip("cannot be written in this format")
    small = {**pairs(), "event": np.arange(300)}
    good = write(tmp_path / f"good{suffix}", small)
    bad = write(tmp_path / f"bad{suffix}", wrong(dict(small), change))
    before = {path.name for path in tmp_path.iterdir()}
    out = tmp_path / ("friend.root" if suffix == ".root" else "friend.parquet")
    if suffix == ".csv" and change == "real event":
        named = "column 'event'"
    with pytest.raises(InputError, match=named) as error:
        write_friends([good, bad], correction, out, smear=True, chunk_events=50)
    assert f"bad{suffix}" in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("muon", "sign"), [("plus", 1), ("minus", -1)])
def test_charges_must_be_those_that_names_say(
    tmp_path: Path, correction: Correction, muon: str, sign: int
) -> None:
    """A charge that is none is a reason, the other muon's a mistake in the file."""
    content = pairs(ends=BY_CHARGE)
    charge = np.full(300, sign)
    charge[7] = 0
    source = write(tmp_path / "pairs.root", {**content, f"charge_{muon}": charge})
    write_friends(source, correction, tmp_path / "friend.root")
    assert read(tmp_path / "friend.root")[f"scale_reason_{muon}"][7] == Reason.CHARGE
    charge[250] = -sign
    write(tmp_path / "pairs.root", {**content, f"charge_{muon}": charge})
    before = (tmp_path / "friend.root").read_bytes()
    with pytest.raises(InputError, match=rf"pairs\.root: column 'charge_{muon}' holds \{'+-'[sign > 0]}1"):
        write_friends(source, correction, tmp_path / "friend.root", chunk_events=100)
    assert (tmp_path / "friend.root").read_bytes() == before


def test_names_of_the_file_stand_in_errors(tmp_path: Path, correction: Correction) -> None:
    source = write(tmp_path / "pairs.root", wrong(pairs(ends=BY_CHARGE), "no eta_minus"))
    with pytest.raises(
        InputError, match=r"neither NanoAOD .*'eta_minus' is missing: pt_minus, eta_minus, phi_minus"
    ):
        write_friends(source, correction, tmp_path / "friend.root")
    neither = write(tmp_path / "jets.root", {"Jet_pt": np.ones(3)})
    with pytest.raises(InputError, match=r"jets\.root: neither NanoAOD .* the file has Jet_pt"):
        write_friends(neither, correction, tmp_path / "friend.root")


@pytest.mark.parametrize("difference", ["precision", "ends", "pt_err"])
def test_files_that_do_not_fit_into_one_friend(
    tmp_path: Path, correction: Correction, difference: str
) -> None:
    other = {
        "precision": pairs(kind=np.float64),
        "ends": pairs(ends=BY_CHARGE),
        "pt_err": {name: column for name, column in pairs().items() if "err" not in name},
    }[difference]
    sources = [write(tmp_path / "one.parquet", pairs()), write(tmp_path / "two.parquet", other)]
    with pytest.raises(InputError, match=r"two\.parquet: would have "):
        write_friends(sources, correction, tmp_path / "friend.parquet")
    assert not (tmp_path / "friend.parquet").exists()
    assert len(write_friends(sources, correction, tmp_path / "friends")) == 2


@pytest.mark.parametrize("suffix", [".parquet", ".root"])
def test_an_input_is_never_overwritten(tmp_path: Path, correction: Correction, suffix: str) -> None:
    source = write(tmp_path / f"pairs{suffix}", pairs())
    before = source.read_bytes()
    for out in (source, tmp_path):
        with pytest.raises(InputError, match="is an input"):
            write_friends(source, correction, out)
    assert source.read_bytes() == before
    table = write(tmp_path / "pairs.csv", pairs())
    parquet = write(tmp_path / "pairs.parquet", pairs())
    with pytest.raises(InputError, match="have one name"):
        write_friends([table, parquet], correction, tmp_path / "out")


# The command


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, friend_tables: Make) -> Path:
    """A folder with tables and pairs, which the command runs in."""
    monkeypatch.chdir(tmp_path)
    export_npz(friend_tables(), tmp_path / "calibration.npz")
    write(tmp_path / "pairs.parquet", pairs())
    return tmp_path


def test_the_command_writes_what_the_function_does(
    work: Path, correction: Correction, command: Callable[..., Result]
) -> None:
    arguments = ("apply", "pairs.parquet", "--correction", "calibration.npz", "--out", "friend.parquet")
    result = command(*arguments, "--smear", "--variation", "stat2", "--period", "test", "--json")
    (table,) = json.loads(result.stdout)["friends"]
    assert (table["events"], table["muons"]) == (300, 600)
    write_friends("pairs.parquet", correction, "same.parquet", variations=("stat2",), smear=True)
    assert_same_bits(read(work / "friend.parquet"), read(work / "same.parquet"))
    keys = [f"{key}{n}" for n in "12" for key in ("pt", "eta", "phi", "charge")]
    named = [part for key in keys for part in ("--column", f"{key}={key}")]
    command(*arguments[:-1], "named.parquet", *named)
    np.testing.assert_array_equal(
        read(work / "named.parquet")["mass_corr"], read(work / "same.parquet")["mass_corr"]
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--out", "friend.root"), "its friends are .parquet files"),
        (("--out", "pairs.parquet"), "is an input"),
        (("--out", "f.parquet", "--column", "pt1"), "--column pt1: KEY=NAME"),
        (("--out", "f.parquet", "--column", "pt3=x"), "unknown key 'pt3'"),
        (("--out", "f.parquet", "--column", "pt1=x"), "'eta1' is missing"),
        (("--out", "f.parquet", "--period", "2017"), "is of period 'test', not of '2017'"),
        (("--out", "f.parquet", "--variation", "x"), "variation 'x'"),
    ],
)
def test_wrong_arguments_of_the_command(
    work: Path, command: Callable[..., Result], options: tuple[str, ...], named: str
) -> None:
    (line,) = command(
        "apply", "pairs.parquet", "--correction", "calibration.npz", *options, code=2
    ).stderr.splitlines()
    assert named in line
    assert sorted(path.name for path in work.iterdir()) == ["calibration.npz", "pairs.parquet"]
