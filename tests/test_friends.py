"""Friend trees: event for event what the correction gives, whole or absent, and clear about what cannot be used."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from click.testing import Result

from musclecal.correction import Correction, Reason
from musclecal.errors import InputError
from musclecal.export import export_npz
from musclecal.friends import Friend, write_friends
from musclecal.records import CorrectionTables

N_ETA = 4
EDGES = np.linspace(-2.4, 2.4, N_ETA + 1)
IDENTIFIERS = ("run", "luminosityBlock", "event")
Branches = dict[str, Any]
Make = Callable[..., CorrectionTables]


@pytest.fixture(scope="module")
def correction(friend_tables: Make) -> Correction:
    return Correction(friend_tables())


def jagged(values: np.ndarray, counts: np.ndarray) -> ak.Array:
    return ak.unflatten(values, counts)


def branches(n_events: int = 300, seed: int = 1, kind: type = np.float32) -> Branches:
    """Events with 0 to 4 muons; a tenth of the muons cannot be corrected, each for another reason."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, n_events)
    n = int(counts.sum())
    pt, eta = rng.uniform(3.0, 120.0, n), rng.uniform(-2.4, 2.4, n)
    charge = rng.choice([-1, 1], n)
    pt[5], pt[6], pt[7], pt[8] = np.nan, 1.0, 500.0, np.inf
    eta[9], eta[10], charge[11] = 2.5, np.nan, 0
    return {
        "Muon_pt": jagged(pt.astype(kind), counts),
        "Muon_eta": jagged(eta.astype(kind), counts),
        "Muon_phi": jagged(rng.uniform(-3.14, 3.14, n).astype(kind), counts),
        "Muon_charge": jagged(charge.astype(np.int32), counts),
        "Muon_ptErr": jagged((0.01 * pt).astype(kind), counts),
        "run": np.full(n_events, 3, dtype=np.uint32),
        "luminosityBlock": rng.integers(1, 9, n_events).astype(np.uint32),
        # Beyond 2^63: an event number that is not kept as it is would show.
        "event": np.arange(n_events, dtype=np.uint64) + np.uint64(2**63 + 10 * seed),
        "PV_npvs": np.arange(n_events, dtype=np.int32),
    }


def write(path: Path, content: Branches, rntuple: bool = False, name: str = "Events") -> Path:
    with uproot.recreate(path) as file:
        (file.mkrntuple if rntuple else file.mktree)(name, content)
    return path


def read(path: Path) -> ak.Array:
    with uproot.open(path) as file:
        return file["Events"].arrays()


def assert_same_bits(one: ak.Array, two: ak.Array) -> None:
    assert one.fields == two.fields
    for name in one.fields:
        first, second = (ak.to_numpy(ak.flatten(part[name], axis=None)) for part in (one, two))
        assert first.dtype == second.dtype, name
        assert first.tobytes() == second.tobytes(), name


def expected(correction: Correction, content: Branches, name: str = "nom") -> np.ndarray:
    """Corrected pT by the correction on arrays of float64, in the precision of the file."""
    pt, eta, phi, charge = (
        ak.to_numpy(ak.flatten(content[f"Muon_{key}"])) for key in ("pt", "eta", "phi", "charge")
    )
    wide = pt.astype(np.float64)
    return np.asarray(wide * correction.scale(wide, eta, phi, charge, name), dtype=pt.dtype)


@pytest.mark.parametrize("rntuple", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_friend_holds_what_the_correction_gives(
    tmp_path: Path, correction: Correction, rntuple: bool, kind: type
) -> None:
    content = branches(kind=kind)
    source = write(tmp_path / "nano.root", content, rntuple)
    out = tmp_path / "friend.root"
    (friend,) = write_friends([source], correction, out, variations=["stat1", "stat4"], chunk_events=70)
    found = read(out)
    assert set(found.fields) == {
        "nMuon", *IDENTIFIERS, "Muon_pt_corr", "Muon_ptErr_corr", "Muon_scale_reason",
        *(f"Muon_pt_corr_{name}_{side}" for name in ("stat1", "stat4") for side in ("up", "down")),
    }  # fmt: skip
    for name in IDENTIFIERS:
        assert found[name].to_numpy().dtype == content[name].dtype
        np.testing.assert_array_equal(found[name], content[name])
    np.testing.assert_array_equal(found["nMuon"], ak.num(content["Muon_pt"]))
    for column, syst in [("", "nom")] + [(f"_{s}", s) for s in ("stat1_up", "stat1_down", "stat4_down")]:
        np.testing.assert_array_equal(ak.num(found[f"Muon_pt_corr{column}"]), found["nMuon"])
        values = ak.to_numpy(ak.flatten(found[f"Muon_pt_corr{column}"]))
        assert values.dtype == kind
        np.testing.assert_array_equal(values, expected(correction, content, syst))
    pt, eta, phi, charge, pt_err = (
        ak.flatten(content[f"Muon_{key}"]).to_numpy() for key in ("pt", "eta", "phi", "charge", "ptErr")
    )
    error = correction.pt_error(pt, eta, phi, charge, pt_err.astype(np.float64))
    np.testing.assert_array_equal(ak.flatten(found["Muon_ptErr_corr"]), error.astype(kind))
    reason = ak.flatten(found["Muon_scale_reason"]).to_numpy()
    assert reason.dtype == np.int8
    np.testing.assert_array_equal(reason, correction.validity(pt, eta, phi, charge).reason)
    assert friend == Friend(
        str(out), (str(source),), friend.branches, 300, tuple(np.bincount(reason, minlength=len(Reason)))
    )
    assert set(friend.branches) == set(found.fields) - {"nMuon", *IDENTIFIERS}


def test_the_correction_moves_muons_and_keeps_those_out_of_range(
    tmp_path: Path, correction: Correction
) -> None:
    """By hand, with the formula of k."""
    content = branches(kind=np.float64)
    write_friends(write(tmp_path / "nano.root", content), correction, tmp_path / "friend.root")
    found = read(tmp_path / "friend.root")
    pt, eta, q, new, reason = (
        ak.flatten(part).to_numpy()
        for part in (
            content["Muon_pt"], content["Muon_eta"], content["Muon_charge"],
            found["Muon_pt_corr"], found["Muon_scale_reason"],
        )
    )  # fmt: skip
    assert set(reason) == {0, 1, 2, 3, 4, 5}
    np.testing.assert_array_equal(new[reason > 0], pt[reason > 0])
    pt, eta, q, new = (column[reason == 0] for column in (pt, eta, q, new))
    t, i = correction.tables, np.searchsorted(EDGES, eta, side="right") - 1
    k = (1 + t.A[i] - t.e[i] / pt) / pt + q * t.M[i]
    np.testing.assert_allclose(new, 1 / k, rtol=1e-13)
    assert np.all(np.abs(new / pt - 1) > 1e-9)


@pytest.mark.parametrize("corrects", ["data", "simulation, to its own truth"])
def test_the_smeared_muon_belongs_to_its_event(tmp_path: Path, correction: Correction, corrects: str) -> None:
    """Scaled before only by tables for simulation: those of data are not for the muons that need smearing."""
    provenance = {**correction.provenance, "corrects": corrects}
    correction = Correction(replace(correction.tables, provenance=provenance))
    content = branches()
    source = write(tmp_path / "nano.root", content)
    friends = {}
    for salt in (0, 1):
        out = tmp_path / f"friend{salt}.root"
        write_friends(source, correction, out, smear=True, salt=salt, chunk_events=41)
        friends[salt] = read(out)
    pt, eta, phi, q = (
        ak.flatten(content[f"Muon_{key}"]).to_numpy() for key in ("pt", "eta", "phi", "charge")
    )
    run, lumi, event = (np.repeat(content[name], ak.num(content["Muon_pt"])) for name in IDENTIFIERS)
    start = pt.astype(np.float64)
    if corrects != "data":
        start = start * correction.scale(pt, eta, phi, q)
    for salt, friend in friends.items():
        smeared = start * correction.smear(start, eta, phi, q, run, lumi, event, salt)
        values = ak.flatten(friend["Muon_pt_smeared"]).to_numpy()
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, smeared.astype(np.float32))
        valid = (friend["Muon_scale_reason"] == 0) & np.isfinite(friend["Muon_pt_corr"])
        width = ak.std(friend["Muon_pt_smeared"][valid] / friend["Muon_pt_corr"][valid])
        assert 0.008 < width < 0.018
    assert ak.mean(friends[0]["Muon_pt_smeared"] == friends[1]["Muon_pt_smeared"]) < 0.05


@pytest.mark.parametrize("chunk_events", [1, 7, 299, 300, 100_000])
def test_chunks_do_not_show(tmp_path: Path, correction: Correction, chunk_events: int) -> None:
    source = write(tmp_path / "nano.root", branches())
    seen: list[tuple[int, int | None]] = []
    for out, n in (("one.root", 300), ("other.root", chunk_events)):
        write_friends(
            source, correction, tmp_path / out, variations=("stat0",), smear=True, chunk_events=n,
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
    assert_same_bits(read(tmp_path / "one.root"), read(tmp_path / "other.root"))
    assert seen[0] == seen[-1] == (300, 300)


def test_threads_do_not_show(tmp_path: Path, correction: Correction, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "nano.root", branches(150_000))
    for threads in ("1", "3"):
        monkeypatch.setenv("MUSCLECAL_THREADS", threads)
        write_friends(source, correction, tmp_path / f"{threads}.root", smear=True, chunk_events=150_000)
    assert_same_bits(read(tmp_path / "1.root"), read(tmp_path / "3.root"))


def test_files_in_a_chain_and_in_a_folder(tmp_path: Path, correction: Correction) -> None:
    """The chained friend is the friends of the files one after the other, in the order they were named."""
    sources = [
        write(tmp_path / f"{name}.root", branches(100 * seed, seed)) for seed, name in ((1, "b"), (2, "a"))
    ]
    folder = tmp_path / "friends"
    each = write_friends(sources, correction, folder)
    (chained,) = write_friends(sources, correction, tmp_path / "friend.root", chunk_events=33)
    assert sorted(path.name for path in folder.iterdir()) == ["a.root", "b.root"]
    assert [friend.n_events for friend in (*each, chained)] == [100, 200, 300]
    assert chained.sources == tuple(map(str, sources))
    parts = ak.concatenate([read(folder / "b.root"), read(folder / "a.root")])
    assert_same_bits(read(tmp_path / "friend.root"), parts)


def test_a_file_without_errors_of_pt_has_none_in_its_friend(tmp_path: Path, correction: Correction) -> None:
    content = branches()
    del content["Muon_ptErr"]
    write_friends(write(tmp_path / "nano.root", content), correction, tmp_path / "friend.root")
    assert "Muon_ptErr_corr" not in read(tmp_path / "friend.root").fields


def test_a_file_without_event_numbers_has_a_friend_that_is_not_smeared(
    tmp_path: Path, correction: Correction
) -> None:
    content = {name: column for name, column in branches().items() if name not in IDENTIFIERS}
    source = write(tmp_path / "nano.root", content)
    write_friends(source, correction, tmp_path / "friend.root")
    found = read(tmp_path / "friend.root")
    assert set(found.fields) == {"nMuon", "Muon_pt_corr", "Muon_ptErr_corr", "Muon_scale_reason"}
    np.testing.assert_array_equal(ak.flatten(found["Muon_pt_corr"]), expected(correction, content))
    with pytest.raises(InputError, match="no branch 'run': smearing needs"):
        write_friends(source, correction, tmp_path / "friend.root", smear=True)


@pytest.mark.real_data
def test_files_of_an_experiment(shared_data: Path, tmp_path: Path, correction: Correction) -> None:
    """NanoAOD of CMS as TTree, and a reduced one as RNTuple without event numbers."""
    sources = sorted((shared_data / "nano").glob("*.root"))
    if not sources:
        pytest.skip("no NanoAOD files")
    for source, friend in zip(sources, write_friends(sources, correction, tmp_path / "out"), strict=True):
        found, content = read(Path(friend.path)), read(source)
        assert len(found) == len(content) == friend.n_events
        np.testing.assert_array_equal(ak.num(found["Muon_pt_corr"]), ak.num(content["Muon_pt"]))
        wanted = expected(correction, {name: content[name] for name in content.fields})
        np.testing.assert_array_equal(ak.flatten(found["Muon_pt_corr"]), wanted)
        assert all(np.array_equal(found[name], content[name]) for name in IDENTIFIERS if name in found.fields)


def test_events_without_any_muon(tmp_path: Path, correction: Correction) -> None:
    """Whole chunks of them too."""
    content = branches(20)
    content |= {name: column[:, :0] for name, column in content.items() if name.startswith("Muon_")}
    (friend,) = write_friends(
        write(tmp_path / "nano.root", content), correction, tmp_path / "friend.root", smear=True, chunk_events=6
    )  # fmt: skip
    assert (friend.n_events, friend.n_muons) == (20, 0)
    assert ak.num(read(tmp_path / "friend.root")["Muon_pt_corr"]).tolist() == 20 * [0]


def test_the_origin_stands_beside_the_tree(tmp_path: Path, correction: Correction) -> None:
    write_friends(
        write(tmp_path / "nano.root", branches()), correction, tmp_path / "f.root", smear=True, salt=4
    )
    with uproot.open(tmp_path / "f.root") as file:
        origin = json.loads(str(file["musclecal"]))
    assert origin == {"correction": {"period": "test"}, "inputs": ["nano.root"], "smear": {"salt": 4}}


@pytest.mark.parametrize("library", ["uproot", "ROOT"])
def test_the_documented_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, correction: Correction, library: str
) -> None:
    """The Python of docs/apply.md, in the folder of the files."""
    page = Path(__file__).parents[1] / "docs" / "apply.md"
    if not page.exists():
        pytest.skip("the documentation is not beside these tests")
    pytest.importorskip(library)
    (code,) = re.findall(rf"```python\n([^`]*import {library}\n.*?)```", page.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    content = branches()
    write_friends(write(Path("nano.root"), content), correction, "friend.root")
    names: dict[str, Any] = {}
    exec(code, names)
    wanted = expected(correction, content)
    if library == "uproot":
        np.testing.assert_array_equal(ak.flatten(names["muons"].Muon_pt), wanted)
    else:
        found = names["frame"].AsNumpy(["good_pt"])["good_pt"]
        assert sum(len(muons) for muons in found) == len(wanted) - 7


# What cannot be used


def wrong(content: Branches, change: str) -> Branches:
    """The branches with one thing wrong."""
    if change.startswith("no "):
        del content[change.removeprefix("no ")]
    elif change == "MeV":
        content["Muon_pt"] = content["Muon_pt"] * np.float32(1000.0)
    elif change == "empty":
        content = {name: column[:0] for name, column in content.items()}
    elif change == "flat eta":
        content["Muon_eta"] = np.zeros(300)
    elif change == "jagged run":
        content["run"] = content["Muon_charge"]
    elif change == "real event":
        content["event"] = content["event"].astype(np.float64)
    elif change == "fewer phi":
        content["Muon_phi"] = content["Muon_phi"][:, 1:]
    return content


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *(
            (f"no {name}", f"no branch '{name}'")
            for name in ("Muon_pt", "Muon_eta", "Muon_phi", "Muon_charge")
        ),
        *((f"no {name}", f"no branch '{name}'") for name in IDENTIFIERS),
        ("MeV", "column 'Muon_pt': the median pT is"),
        ("empty", "has no rows"),
        ("flat eta", "branch 'Muon_eta' does not have one value a muon"),
        ("fewer phi", "branch 'Muon_phi' does not have one value a muon"),
        ("jagged run", "branch 'run' does not hold one whole number an event"),
        ("real event", "branch 'event' does not hold one whole number an event"),
    ],
)
def test_unusable_files_are_named_and_leave_nothing(
    tmp_path: Path, correction: Correction, change: str, named: str
) -> None:
    """The second of two files: not even the friend of the first is left half-written."""
    good = write(tmp_path / "good.root", branches())
    bad = write(tmp_path / "bad.root", wrong(branches(), change), rntuple=change == "fewer phi")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=named) as error:
        write_friends([good, bad], correction, tmp_path / "friend.root", smear=True, chunk_events=50)
    assert "bad.root" in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("difference", ["precision", "ptErr"])
def test_files_that_do_not_fit_into_one_friend(
    tmp_path: Path, correction: Correction, difference: str
) -> None:
    other = branches(kind=np.float64) if difference == "precision" else wrong(branches(), "no Muon_ptErr")
    sources = [write(tmp_path / "one.root", branches()), write(tmp_path / "two.root", other)]
    with pytest.raises(InputError, match=r"two\.root: would have Muon_pt"):
        write_friends(sources, correction, tmp_path / "friend.root")
    assert not (tmp_path / "friend.root").exists()
    assert len(write_friends(sources, correction, tmp_path / "friends")) == 2


def test_an_input_is_never_overwritten(tmp_path: Path, correction: Correction) -> None:
    source = write(tmp_path / "nano.root", branches())
    before = source.read_bytes()
    for out in (source, tmp_path, tmp_path / "." / "nano.root"):
        with pytest.raises(InputError, match="is an input"):
            write_friends(source, correction, out)
    assert source.read_bytes() == before


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path: Path, correction: Correction) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name / "nano.root", branches())
    with pytest.raises(InputError, match="have one name"):
        write_friends(tmp_path / "*" / "nano.root", correction, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variations": ["stat0_up"]}, "variation 'stat0_up': there are stat0, "),
        ({"variations": ["stat99"]}, "variation 'stat99'"),
        ({"chunk_events": 0}, "chunk_events"),
        ({"out": "friend.parquet"}, r"friends are \.root files"),
        ({"out": "nowhere/friend.root"}, "nowhere"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, correction: Correction, options: dict[str, Any], named: str
) -> None:
    source = write(tmp_path / "nano.root", branches())
    out = tmp_path / options.pop("out", "friend.root")
    with pytest.raises(InputError, match=named):
        write_friends(source, correction, out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["nano.root"]


def test_tables_without_smearing_do_not_smear(tmp_path: Path, friend_tables: Make) -> None:
    source = write(tmp_path / "nano.root", branches())
    with pytest.raises(InputError, match="hold no smearing"):
        write_friends(source, Correction(friend_tables(smearing=False)), tmp_path / "friend.root", smear=True)


# The command


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, friend_tables: Make) -> Path:
    """A folder with tables and a file of muons, which the command runs in."""
    monkeypatch.chdir(tmp_path)
    export_npz(friend_tables(), tmp_path / "calibration.npz")
    write(tmp_path / "nano.root", branches())
    return tmp_path


def test_the_command_writes_what_the_function_does(
    work: Path, correction: Correction, command: Callable[..., Result]
) -> None:
    arguments = ("apply", "nano.root", "--correction", "calibration.npz", "--out", "friend.root")
    result = command(
        *arguments, "--smear", "--salt", "3", "--variation", "stat2", "--variation", "stat0", "--json"
    )
    (line,) = result.stdout.splitlines()
    (table,) = json.loads(line)["friends"]
    assert "friend.root" in result.stderr
    assert (table["file"], table["inputs"], table["events"]) == ("friend.root", ["nano.root"], 300)
    assert table["muons"] == table["corrected"] + sum(table["not_corrected"].values())
    assert table["not_corrected"] == {
        "not finite": 3, "pt below": 1, "pt above": 1, "eta outside": 1, "charge": 1
    }  # fmt: skip
    write_friends("nano.root", correction, "same.root", variations=("stat2", "stat0"), smear=True, salt=3)
    assert_same_bits(read(work / "friend.root"), read(work / "same.root"))


def test_all_variations_by_one_option(work: Path, command: Callable[..., Result]) -> None:
    result = command(
        "apply", "nano.root", "--correction", "calibration.npz", "--out", "friends", "--all-variations",
        "--chunk-events", "9",
    )  # fmt: skip
    assert "friends/nano.root: 300 events" in result.stdout
    assert "pt above" in result.stdout
    shifted = [
        name for name in read(work / "friends" / "nano.root").fields if name.endswith(("_up", "_down"))
    ]
    assert len(shifted) == 2 * 3 * N_ETA


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("none.root", "--correction", "calibration.npz", "--out", "f.root"), "none.root"),
        (("nano.root", "--correction", "none.npz", "--out", "f.root"), "none.npz"),
        (("nano.root", "--out", "f.root"), "--correction"),
        (("nano.root", "--correction", "calibration.npz"), "--out"),
        (("nano.root", "--correction", "calibration.npz", "--out", "calibration.npz"), "calibration.npz"),
        (("--correction", "calibration.npz", "--out", "f.root"), "FILES"),
        (
            ("nano.root", "--correction", "calibration.npz", "--out", "f.root", "--variation", "x"),
            "variation 'x'",
        ),
    ],
)
def test_wrong_arguments_of_the_command(
    work: Path, command: Callable[..., Result], options: tuple[str, ...], named: str
) -> None:
    assert named in command("apply", *options, code=2).stderr
    assert sorted(path.name for path in work.iterdir()) == ["calibration.npz", "nano.root"]
