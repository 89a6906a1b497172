"""Sums of parts on other processes: the tree that they are added in, processes that die, parts that fail."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from pyarrow import parquet

from musclecal.cluster import Cluster, PartsFailed, tree_sum
from musclecal.cluster import _Tree as Tree
from musclecal.compiled import source_digest
from musclecal.errors import InputError
from musclecal.event_writer import write_dimuons
from musclecal.export import export_npz
from musclecal.geometry.detector import barrel_tracker
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.hit_files import write_tracks
from musclecal.geometry.misalignment import misaligned
from musclecal.geometry.simulate import simulate_pairs, track_maker
from musclecal.records import CorrectionTables, DimuonEvents, Muons
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings

Command = Callable[..., Result]

JPSI_MASS = 3.0969


def bracketed(one: str, two: str) -> str:
    return f"({one}{two})"


class TestTree:
    @pytest.mark.parametrize(
        ("n", "expected"),
        [(1, "a"), (2, "(ab)"), (3, "((ab)c)"), (5, "(((ab)(cd))e)"), (6, "(((ab)(cd))(ef))"),
         (7, "(((ab)(cd))((ef)g))")],
    )  # fmt: skip
    def test_is_binary_in_the_order_of_the_parts(self, n: int, expected: str) -> None:
        assert tree_sum("abcdefg"[:n], bracketed, str) == expected

    @pytest.mark.parametrize("seed", range(5))
    def test_does_not_depend_on_which_part_comes_first(self, seed: int) -> None:
        parts = "abcdefghijk"
        order = list(range(len(parts)))
        random.Random(seed).shuffle(order)
        tree = Tree[str](len(parts), bracketed)
        for place in order:
            tree.put(place, parts[place])
        assert tree.root == tree_sum(parts, bracketed, str)

    def test_missing_parts_leave_the_others_where_they_are(self) -> None:
        tree = Tree[str](6, bracketed)
        for place, part in enumerate(["a", None, "c", None, None, "f"]):
            tree.put(place, part)
        assert tree.root == "((ac)f)"

    def test_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="nothing to sum"):
            tree_sum("", bracketed, str)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two processes on this machine."""
    pytest.importorskip("distributed", reason="no dask.distributed: pip install 'musclecal[distributed]'")
    with Cluster("local:2", retries=1) as two:
        yield two


# Work is found by name in the processes: these must be functions of a module.


def squares(part: int, folder: str = "") -> str:
    """Says who works on it, and takes long enough to be killed."""
    if folder:
        (Path(folder) / f"{part}-{os.getpid()}").touch()
        time.sleep(0.1)
    return f"{part * part},"


def fails_at_seven(part: int) -> str:
    if part == 7:
        raise InputError("seven.root: cannot be read, is it complete?\nmore words")
    return squares(part)


def fails_once(part: int, folder: str) -> str:
    here = Path(folder) / f"tried-{part}"
    if not here.exists():
        here.touch()
        raise OSError("the network has gone")
    return squares(part)


def joined(one: str, two: str) -> str:
    return one + two


class TestProcesses:
    def test_add_up_in_order_and_tell_how_far_they_are(self, cluster: Cluster) -> None:
        told: list[tuple[int, int | None]] = []
        summed = cluster.total(squares, range(20), joined, lambda *where: told.append(where))
        assert summed.total == "".join(f"{n * n}," for n in range(20))
        assert summed.failed == ()
        assert told == [(n, 20) for n in range(1, 21)]

    def test_that_die_are_replaced(self, cluster: Cluster, tmp_path: Path) -> None:
        """One is killed in the middle: nothing is missing in the sum, and nothing is in it twice."""
        killed: list[int] = []

        def kill_one(done: int, _: int | None) -> None:
            if done == 6 and not killed:
                newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
                killed.append(int(newest.name.split("-")[1]))
                os.kill(killed[0], signal.SIGKILL)

        summed = cluster.total(partial(squares, folder=str(tmp_path)), range(24), joined, kill_one)
        assert summed.total == "".join(f"{n * n}," for n in range(24))
        assert summed.failed == ()
        workers = {int(path.name.split("-")[1]) for path in tmp_path.iterdir()}
        assert killed
        assert killed[0] in workers
        assert os.getpid() not in workers
        assert len(workers) >= 3 or len(list(tmp_path.iterdir())) > 24

    def test_try_again_what_failed(self, cluster: Cluster, tmp_path: Path) -> None:
        summed = cluster.total(partial(fails_once, folder=str(tmp_path)), range(5), joined)
        assert summed.total == "0,1,4,9,16,"
        assert summed.failed == ()

    def test_tell_what_fails_again_and_again(self, cluster: Cluster) -> None:
        summed = cluster.total(fails_at_seven, range(9), joined)
        assert summed.total == "0,1,4,9,16,25,36,64,"
        assert summed.failed == ("7: seven.root: cannot be read, is it complete?",)
        with pytest.raises(PartsFailed, match="all 1 parts failed, the first: 7: seven"):
            cluster.total(fails_at_seven, [7], joined)

    def test_a_strict_cluster_ends_at_the_first_failure(self, cluster: Cluster) -> None:
        cluster._strict = True
        try:
            with pytest.raises(PartsFailed, match="7: seven"):
                cluster.total(fails_at_seven, range(9), joined)
        finally:
            cluster._strict = False

    def test_that_are_not_there_are_named(self, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
        assert cluster is not None
        monkeypatch.setattr("musclecal.cluster._PATIENCE", "0.2s")
        for where in ("tcp://127.0.0.1:9", "nowhere.json", "local:0", "nonsense"):
            with pytest.raises(InputError, match=f"--scheduler {where}: "):
                Cluster(where)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ("0123456789abcdef", "has another version"),
            (ModuleNotFoundError("No module"), "cannot import musclecal: No"),
        ],
    )
    def test_without_this_version_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, answer: object, message: str
    ) -> None:
        asked = []

        def run(_: object, function: Callable[[], str], on_error: str) -> dict[str, object]:
            asked.append((function(), on_error))
            return {"tcp://one": source_digest(), "tcp://two": answer}

        address = cluster._client.scheduler.address
        assert set(cluster._client.run(source_digest).values()) == {source_digest()}
        monkeypatch.setattr("distributed.Client.run", run)
        with pytest.raises(InputError, match=f"tcp://two {message}"):
            Cluster(address)
        assert asked == [(source_digest(), "return")]


CAMPAIGN = """\
[campaign]
name = "small"
output = "out"
passes = 1
[binning]
eta_bins = 4
[resonances.Jpsi]
pt_edges = [4.0, 6.5, 40.0]
[samples.later]
resonance = "Jpsi"
kind = "data"
files = ["data_[12].parquet"]
[samples.earlier]
resonance = "Jpsi"
kind = "data"
files = ["data_0.parquet"]
[samples.mc]
resonance = "Jpsi"
kind = "simulation"
simulate = { events = 20_000, seed = 2 }
"""


MODULES = """\
[campaign]
name = "small"
output = "out"
[binning]
eta_bins = 4
eta_max = 0.8
[modules]
detector = "barrel"
hits = ["hits_*.parquet"]
target = 3.0953
sigma = 0.0155
passes = 2
[samples.mine]
resonance = "Jpsi"
kind = "data"
files = ["none.parquet"]
"""


def pairs(n: int, seed: int) -> DimuonEvents:
    """Of about the mass of the J/psi."""
    rng = np.random.default_rng(seed)
    pt, eta, phi = rng.uniform(4.0, 20.0, (2, n)), rng.uniform(-2.0, 2.0, n), rng.uniform(-3.0, 3.0, n)
    distance = JPSI_MASS * np.exp(rng.normal(0.0, 0.01, n)) / np.sqrt(pt[0] * pt[1])
    return DimuonEvents(
        Muons(pt[0], eta, phi), Muons(pt[1], eta, (phi + distance + np.pi) % (2.0 * np.pi) - np.pi)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A campaign with three files of data."""
    (tmp_path / "campaign.toml").write_text(CAMPAIGN)
    for number in range(3):
        write_dimuons(tmp_path / f"data_{number}.parquet", [pairs(3000, number)])
    return tmp_path


def histogram(folder: Path) -> str:
    return sha256((folder / "out" / "fill" / "Jpsi_data@0.h5").read_bytes()).hexdigest()


class TestCommands:
    @pytest.fixture(autouse=True)
    def _needs_dask(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        """Commands use the processes that there are: starting them takes seconds."""

        def joined_in(self: Cluster, scheduler: str, *, retries: int, strict: bool, rows: int) -> None:
            assert scheduler == "local:2"
            vars(self).update(vars(cluster), _retries=retries, _strict=strict, rows=rows)

        monkeypatch.setattr(Cluster, "__init__", joined_in)
        monkeypatch.setattr(Cluster, "__exit__", lambda *_: None)

    def test_fill_is_the_same_to_the_bit(self, folder: Path, command: Command) -> None:
        at = ("--campaign", folder / "campaign.toml")
        command("fill", *at)
        here = histogram(folder)
        result = command("fill", *at, "--force", "--scheduler", "local:2", "--rows", "700")
        assert histogram(folder) == here
        assert "9,000" in result.stdout
        assert "fill/Jpsi_data@0             up to date" in command("fill", *at).stderr

    def test_a_damaged_file_does_not_stop_the_others(self, folder: Path, command: Command) -> None:
        at = ("--campaign", folder / "campaign.toml")
        command("fill", *at)
        whole, good = histogram(folder), (folder / "data_1.parquet").read_bytes()
        (folder / "data_1.parquet").write_bytes(good[:5000])
        result = command("fill", *at, "--scheduler", "local:2", "--json", code=3)
        assert "data_1.parquet: cannot be read, is it complete?" in result.stderr
        assert "1 parts of the input are missing in fill/Jpsi_data@0" in result.stderr
        table = json.loads(result.stdout.splitlines()[-1])
        assert "6000" in json.dumps(table)
        command("fill", *at, "--scheduler", "local:2", "--strict", code=2)
        command("fill", *at, code=2)
        # What is not whole is made again once it can be
        (folder / "data_1.parquet").write_bytes(good)
        command("fill", *at, "--scheduler", "local:2")
        assert histogram(folder) == whole

    @pytest.mark.slow
    def test_sums_of_modules_are_the_same_to_the_bit(self, tmp_path: Path, command: Command) -> None:
        detector = barrel_tracker()
        settings = SimulationSettings(resonance("Jpsi"), (3.5, 40.0), (-0.8, 0.8), (2.6, 3.5))
        maker = track_maker(detector, solenoid_map(), misaligned(detector, 5))
        for number in range(3):
            write_tracks(
                tmp_path / f"hits_{number}.parquet", simulate_pairs(maker, settings, 60, number), detector
            )
        path = tmp_path / "campaign.toml"
        path.write_text(MODULES)
        command("modules", path)
        table = tmp_path / "out" / "modules" / "module_corrections.parquet"
        here = parquet.read_table(table)
        result = command("modules", path, "--scheduler", "local:2")
        assert "modules/sums_1_all           ..." in result.stderr
        assert parquet.read_table(table).equals(here)
        (tmp_path / "hits_3.parquet").write_bytes(b"no Parquet")
        result = command("modules", path, "--scheduler", "local:2", code=3)
        assert "modules/sums_0_all: missing:" in result.stderr
        assert "hits_3.parquet: cannot be read" in result.stderr
        assert parquet.read_table(table).equals(here)

    def test_friends_are_the_same_as_here(
        self, folder: Path, command: Command, friend_tables: Callable[..., CorrectionTables]
    ) -> None:
        export_npz(friend_tables(), folder / "tables.npz")
        (folder / "data_1.parquet").write_bytes(b"")
        options = ("--correction", folder / "tables.npz", "--all-variations", "--json")
        good = [folder / "data_0.parquet", folder / "data_2.parquet"]
        here = command("apply", *good, *options, "--out", folder / "here")
        there = ("--scheduler", "local:2", "--out", folder / "there")
        result = command("apply", *good, folder / "data_1.parquet", *options, *there, code=3)
        assert "data_1.parquet: cannot be read" in result.stderr
        made, expected = (json.loads(r.stdout.splitlines()[-1])["friends"] for r in (result, here))
        for one, other in zip(made, expected, strict=True):
            assert one["muons"] == other["muons"] == 6000
            assert parquet.read_table(one["file"]).equals(parquet.read_table(other["file"]))
        assert not (folder / "there" / "data_1.parquet").exists()
        single = ("--scheduler", "local:2", "--out", folder / "one.parquet")
        result = command("apply", *good, *options, *single, code=2)
        assert "give a folder as --out" in result.stderr
