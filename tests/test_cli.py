"""The command line: what stands on stdout, the exit codes, and no traceback for any wrong input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uproot
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

import musclecal
from musclecal.cli import main
from musclecal.command_line import explained
from musclecal.demo import demo_truth
from musclecal.events import read_dimuons, write_dimuons
from musclecal.export import read_tables
from musclecal.export.folder import export_folder
from musclecal.samples import write_scale

COMMANDS = (
    "simulate", "modules", "fill", "fit", "extract", "closure", "refine", "resolution", "systematics", "propagate",
    "joint", "export", "validate", "apply", "diff", "merge", "combine", "report", "run", "init", "draw",
)  # fmt: skip
CLOSURE_KEYS = {
    "resonance", "part", "engine", "eta_edges", "A", "M", "covariance", "calibration_covariance", "chi2", "ndf",
    "p_value", "s", "s_quoted", "events_fraction", "mean", "mean_error", "fit_chi2", "fit_ndf", "applied",
}  # fmt: skip

CAMPAIGN = """\
[campaign]
name = "small"
[binning]
eta_bins = 6
[resonances.Jpsi]
pt_edges = [4, 6, 40]
model = "generator-template"
[resonances.Y1S]
pt_edges = [4, 6.6, 50]
[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
simulate = {events = 60_000, seed = 1, truth = "truth.json", background = 0.15}
[samples.jpsi_mc]
resonance = "Jpsi"
kind = "simulation"
simulate = {events = 240_000, seed = 2}
[samples.y_data]
resonance = "Y1S"
kind = "data"
simulate = {events = 40_000, seed = 3, truth = "truth.json", background = 0.2}
[samples.y_mc]
resonance = "Y1S"
kind = "simulation"
simulate = {events = 120_000, seed = 4}
"""


def call(*arguments: str | Path, code: int = 0) -> Result:
    """Run a command; it must end with ``code``, and never with an exception that is not an exit."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    told = f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit), told
    assert result.exit_code == code, told
    assert "Traceback" not in result.output
    if code == 2:
        assert not result.stdout, told
        assert result.stderr.strip(), told
    return result


def last_json(result: Result) -> dict[str, Any]:
    """The object on the last line of stdout, on which alone it stands."""
    (line,) = result.stdout.splitlines()
    table = json.loads(line)
    assert isinstance(table, dict)
    return table


def process(arguments: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
    """The command as a process of its own, in ``folder``, whether the package is installed or not."""
    root = Path(musclecal.__file__).parents[1]
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    # A shell that runs the tests in the background hands down a SIGINT that is ignored.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.argv[0] = 'musclecal'; from musclecal.cli import main; main()"
    )
    command = [sys.executable, "-c", program, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign that has been run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "campaign.toml").write_text(CAMPAIGN)
    write_scale(folder / "truth.json", demo_truth(6))
    call("run", folder / "campaign.toml")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


# Help


def test_help_comes_fast_and_says_the_units_and_signs() -> None:
    result = call("--help")
    assert "k_corr = (1 + A - e k) k + q M" in result.stdout
    assert "GeV" in result.stdout
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    assert call(name, "--help").stdout == call(name, "-h").stdout


@pytest.mark.parametrize("name", ["extract", "closure", "resolution", "diff", "draw"])
def test_help_of_commands_with_results_says_the_units(name: str) -> None:
    assert "GeV" in call(name, "--help").stdout


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = "('numpy', 'numba', 'uproot', 'matplotlib')"
    program = f"import sys, musclecal.cli; print([m for m in {heavy} if m in sys.modules])"
    root = str(Path(musclecal.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": root}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# Results


def test_run_reports_and_then_has_nothing_to_do(finished: Path) -> None:
    result = call("run", finished / "campaign.toml")
    assert "0 done" in result.stderr
    for text in ("Campaign small", "result against truth", "Y1S: residual correction", "pT > 4 GeV"):
        assert text in result.stdout
    assert "up to date" not in result.stdout
    assert len(list(finished.rglob("muon_scale.json.gz"))) == 1
    figures = {path.name for path in (finished / "out" / "figures").iterdir()}
    assert {"calibration.png", "mass_Jpsi.png", "closure_Y1S.png", "overview.png"} <= figures


def test_run_as_json_is_one_object(finished: Path) -> None:
    table = last_json(call("run", finished / "campaign.toml", "--json"))
    assert set(table) == {"calibration", "closure"}
    assert set(table["closure"]) == {"Y1S"}
    assert table["calibration"]["passes"] == 2
    assert len(table["calibration"]["covariance"]) == 18


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("simulate", {"files"}),
        ("fill", {"resonance", "data", "simulation"}),
        ("fit", {"resonance", "model", "events_fraction", "converged_fraction", "status", "chi2"}),
        ("extract", {"eta_edges", "A", "e", "M", "covariance", "chi2", "ndf", "rank", "condition"}),
        ("export", {"files"}),
        ("report", {"report", "calibration"}),
    ],
)
def test_every_stage_has_one_object_with_its_keys(finished: Path, command: str, keys: set[str]) -> None:
    result = call(command, "--campaign", finished / "campaign.toml", "--json")
    assert keys <= set(last_json(result))


def test_closure_json_is_that_of_the_issue(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default campaign file, ./campaign.toml."""
    monkeypatch.chdir(finished)
    table = last_json(call("closure", "--resonance", "Y1S", "--json"))
    assert set(table) == CLOSURE_KEYS
    assert table["resonance"] == "Y1S"
    assert len(table["eta_edges"]) == 7
    assert len(table["A"]) == len(table["M"]) == 6
    assert np.shape(table["covariance"]) == (12, 12)
    assert table["s_quoted"] == max(1.0, table["s"])
    assert 0.0 < table["events_fraction"] <= 1.0
    assert 1e-4 < table["p_value"] <= 1.0


def test_the_covariance_of_the_closure_is_in_the_order_of_its_parameters(copy: Path) -> None:
    """Per eta bin A, M; with e fitted A, e, M: the errors tell them apart by their size."""
    path = copy / "campaign.toml"
    path.write_text(
        CAMPAIGN.replace("[resonances.Y1S]", "[resonances.Y1S]\nclosure_parameters = ['A', 'e', 'M']")
    )
    table = last_json(call("closure", "--resonance", "Y1S", "--json", "--campaign", path))
    assert set(table) == CLOSURE_KEYS | {"e"}
    error = np.sqrt(np.diag(table["covariance"])).reshape(6, 3)
    assert np.all(error[:, 1] > error[:, 0])
    assert np.all(error[:, 0] > error[:, 2])


def test_closure_at_the_calibration_resonance_is_one_more_pass(finished: Path) -> None:
    path = finished / "campaign.toml"
    table = last_json(call("closure", "--resonance", "Jpsi", "--json", "--campaign", path))
    assert table["chi2"] < 0.2 * table["ndf"]


def test_the_cut_flow_is_printed(finished: Path) -> None:
    text = call("fill", "--campaign", finished / "campaign.toml").stdout
    for step in ("jpsi_data", "pT > 4 GeV", "pT < 40 GeV", "-2.4 < eta < 2.4", "< m <", "60,000"):
        assert step in text


def test_the_exported_correction_is_applied(finished: Path, tmp_path: Path) -> None:
    """On NanoAOD of the campaign's own data: the mean ratio of pT is that of `musclecal.load`."""
    (sample,) = (finished / "out" / "samples").glob("jpsi_data*.parquet")
    (events, _), *_ = read_dimuons(sample, chunk_events=1000)
    write_dimuons(tmp_path / "nano.root", [events])
    out, folder = tmp_path / "friend.root", finished / "out" / "export"
    table = last_json(call("apply", tmp_path / "nano.root", "--correction", folder, "--out", out, "--json"))
    assert table["friends"][0]["muons"] == table["friends"][0]["corrected"] == 2 * len(events)
    with uproot.open(out) as file:
        found = file["Events/Muon_pt_corr"].array().to_numpy()
    correction = musclecal.load(folder)
    for n, (muon, charge) in enumerate(((events.plus, 1), (events.minus, -1))):
        ratio = found[:, n] / muon.pt
        np.testing.assert_allclose(ratio, correction.scale(muon.pt, muon.eta, muon.phi, charge), rtol=3e-7)
        assert np.std(ratio) > 1e-4


def test_force_redoes_the_stage_and_nothing_before(copy: Path) -> None:
    result = call("fit", "--campaign", copy / "campaign.toml", "--force")
    assert "  1 done, " in result.stderr


def test_a_campaign_may_be_anywhere(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(finished / "campaign.toml", tmp_path)
    assert "0 done" in call("extract", "--campaign", relative).stderr
    assert not list(tmp_path.iterdir())


# Figures of single bins


def test_any_bin_can_be_drawn(finished: Path, tmp_path: Path) -> None:
    path = finished / "campaign.toml"
    listed = call("draw", "--list", "--campaign", path).stdout.splitlines()
    number = listed[1].split()[0]
    out = tmp_path / "bin.png"
    assert call("draw", "--bin", number, "--out", out, "--campaign", path).stdout.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bin", "999999"), "bin 999999 was not fitted"),
        (("--bin", "-1"), "bin -1 was not fitted"),
        (("--pass", "-1"), "--pass"),
        (("--pass", "7"), "--pass 7: "),
        (("--resonance", "Z"), 'no sample of kind "data" for the resonance Z'),
        (("--resonance", "W"), "unknown resonance 'W'"),
        (("--out", "nowhere/a.png"), "nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in call("draw", *options, "--campaign", finished / "campaign.toml", code=2).stderr
    assert not list(tmp_path.iterdir())


# Exports of other campaigns


def test_two_exports_are_compared(finished: Path, tmp_path: Path) -> None:
    """The same twice: nothing differs. Its own JSON file: the same but for the path."""
    export = finished / "out" / "export"
    out = tmp_path / "diff.png"
    result = call("diff", export, export / "calibration.json", "--out", out)
    assert "chi2/ndf = 0.0/18, p = 1" in result.stdout
    assert "nothing else differs" in result.stdout
    assert result.stdout.splitlines()[-1] == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    table = last_json(call("diff", export, export, "--json", "--correlation", "shared"))
    assert (table["ndf"], table["p_value"], table["others"]) == (0, 1.0, [])
    assert table["A"]["sigma"] == [None] * 6


def test_periods_are_merged(finished: Path, tmp_path: Path) -> None:
    tables = read_tables(finished / "out" / "export")
    mass = 2e-5 * np.ones((6, 3, 1)) * [[1.0], [0.0], [0.0]]
    names = (*tables.variation_names, "mass_Z")
    folders = []
    for period in ("2017", "2016"):
        one = replace(
            tables, provenance={**tables.provenance, "period": period}, variation_names=names,
            variations=np.concatenate([tables.variations, mass], axis=2),
        )  # fmt: skip
        folders.append(tmp_path / period)
        export_folder(one, folders[-1])
    both = tmp_path / "both"
    table = last_json(call("merge", *folders, "--out", both, "--json"))
    assert set(table) == {"files", "shared", "own", "notes"}
    assert table["shared"] == ["mass_Z"]
    assert set(table["own"]) == {"2016", "2017"}
    assert "stat0_2016" in table["own"]["2016"]
    assert str(both / "muon_scale.json.gz") in table["files"]
    call("validate", both)
    again = call("merge", *folders, "--out", both, "--share", "mass_Z").stdout
    assert "periods: 2016, 2017\nshared: mass_Z\n" in again
    refused = call("merge", *folders, "--out", both, "--share", "stat0", code=2).stderr
    assert "statistical variations" in refused


# Exit codes


@pytest.mark.parametrize(
    ("gates", "command", "message"),
    [
        ("closure_p_value = 1.0", ("closure", "--resonance", "Y1S"), "closure at Y1S: p-value"),
        ("closure_p_value = 1.0", ("closure", "--resonance", "Y1S", "--json"), "closure at Y1S: p-value"),
        ("closure_p_value = 1.0", ("report",), "closure at Y1S: p-value"),
        ("events_fraction = 1.0", ("extract",), "events fraction"),
        ("events_fraction = 1.0", ("export",), "events fraction"),
    ],
)
def test_a_failed_gate_shows_the_result_and_ends_with_3(
    copy: Path, gates: str, command: tuple[str, ...], message: str
) -> None:
    path = copy / "campaign.toml"
    # So many events are needed in a bin that some bins are not fitted.
    rough = CAMPAIGN.replace('model = "generator', 'min_events = 600\nmodel = "generator')
    path.write_text(f"{rough if 'events' in gates else CAMPAIGN}[gates]\n{gates}\n")
    result = call(*command, "--campaign", path, code=3)
    assert f"quality gate: {message}" in result.stderr
    assert result.stdout
    if "--json" in command:
        assert set(last_json(result)) == CLOSURE_KEYS


def test_gates_that_are_not_asked_for_do_not_fail(copy: Path) -> None:
    (copy / "campaign.toml").write_text(
        f"{CAMPAIGN}[gates]\nclosure_p_value = 1.0\nclosure_resonances = []\n"
    )
    call("closure", "--resonance", "Y1S", "--campaign", copy / "campaign.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "--campaign", "nowhere.toml"), "nowhere.toml: no such campaign file"),
        (("fit",), "campaign.toml: no such campaign file; `musclecal init` writes one"),
        (("run", "folder"), "folder: cannot be read"),
        (("run", "nowhere/campaign.toml"), "no such campaign file"),
        (("run", "--demo", "file"), "file: not a folder"),
        (("run", "--demo", "file/below"), "not a folder"),
        (("init", "nowhere/campaign.toml"), "nowhere does not exist"),
        (("init", "file"), "file: exists already"),
        (("init", "file/below.toml"), "file"),
        (("closure", "--resonance", "W", "--campaign", "good.toml"), "unknown resonance 'W'"),
        (("closure", "--campaign", "good.toml"), "nothing to close on"),
        (("closure", "--json", "--campaign", "three.toml"), "--json gives one closure: choose it with"),
        (("closure", "--engine", "tempalte", "--campaign", "good.toml"), "tempalte"),
        (("extract", "--engine", "scalar", "--campaign", "good.toml"), "scalar"),
        (("resolution", "--campaign", "z.toml"), "resolution: no data with a simulation of their own"),
        (("systematics", "--campaign", "good.toml"), "systematics: no data of any of Y1S, Z to close on"),
        (("propagate", "--campaign", "good.toml"), "systematics: no data of any of Y1S, Z to close on"),
        (("joint", "--campaign", "good.toml"), "joint.use: the campaign has no data of"),
        (("closure", "--resonance", "Z", "--campaign", "good.toml"), "for the resonance Z"),
        (("diff", "nowhere", "folder"), "nowhere: no such file or folder"),
        (("diff", "file", "file"), "file: tables are read from"),
        (("diff", "folder"), "Missing argument 'SECOND'"),
        (("merge", "folder", "--out", "new"), "folder: none of calibration.npz"),
        (("merge", "--out", "new"), "Missing argument"),
        (("combine", "nowhere.toml"), "nowhere.toml: no such file"),
        (("combine", "good.toml"), "good.toml: inputs: Field required"),
        (("combine", "file", "--format", "convino"), "file"),
        (("validate", "folder"), "manifest.json: not a readable manifest"),
        (("frobnicate",), "No such command"),
        (("fit", "--wrong"), "No such option"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "good.toml").write_text(CAMPAIGN.split("[samples.y_data]")[0])
    data = '[samples.z]\nresonance = "Z"\nkind = "data"\nsimulate = {events = 9, seed = 1}\n'
    (tmp_path / "three.toml").write_text(CAMPAIGN + data)
    (tmp_path / "z.toml").write_text(f"{CAMPAIGN.split('[samples.jpsi_data]')[0]}{data}")
    assert message in call(*arguments, code=2).stderr
    assert not list(tmp_path.rglob("*.h5"))


def test_init_writes_a_file_that_asks_for_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "campaign.toml written" in call("init").stdout
    assert "samples.jpsi_data.files: " in call("fill", code=2).stderr


def test_an_output_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text(CAMPAIGN)
    write_scale(tmp_path / "truth.json", demo_truth(6))
    (tmp_path / "out").write_text("in the way")
    result = call("fill", "--campaign", tmp_path / "campaign.toml", code=2)
    assert str(tmp_path / "out") in result.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "out: Read-only file system"),
        (PermissionError(errno.EPERM, "not permitted"), "not permitted"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    error: OSError, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @explained
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"musclecal: {words}\n"


def test_other_errors_of_the_system_are_not_hidden() -> None:
    @explained
    def command() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        command()


# Bad samples


def columns() -> dict[str, Any]:
    """Pairs at the J/psi mass, enough to be filled."""
    rng = np.random.default_rng(1)
    n = 3000
    pt = rng.uniform(4.5, 9.0, n)
    opening = 2.0 * np.arcsinh(0.5 * 3.09 / pt)
    eta = rng.uniform(-2.0, 2.0, n)
    return {
        "pt1": pt, "eta1": eta, "phi1": np.zeros(n), "charge1": np.ones(n, dtype=np.int32),
        "pt2": pt, "eta2": eta, "phi2": opening, "charge2": -np.ones(n, dtype=np.int32),
    }  # fmt: skip


def fill_columns(folder: Path, table: dict[str, Any], *, code: int, suffix: str = "parquet") -> Result:
    """`musclecal fill` of a campaign whose data are ``table`` and whose simulation is good."""
    good, data = folder / "mc.parquet", folder / f"data.{suffix}"
    parquet.write_table(pa.table(columns()), good)
    if suffix == "csv":
        csv.write_csv(pa.table(table), data)
    else:
        parquet.write_table(pa.table(table), data)
    (folder / "campaign.toml").write_text(
        f'campaign = {{name = "bad"}}\nbinning = {{eta_bins = 4}}\n'
        f"[resonances.Jpsi]\npt_edges = [4, 6, 40]\n"
        f'[samples.jpsi]\nresonance = "Jpsi"\nkind = "data"\nfiles = ["data.{suffix}"]\n'
        '[samples.mc]\nresonance = "Jpsi"\nkind = "simulation"\nfiles = ["mc.parquet"]\n'
    )
    return call("fill", "--campaign", folder / "campaign.toml", code=code)


def written(folder: Path) -> list[Path]:
    """What stages wrote, finished or not, beside the pT edges that come first."""
    out = folder / "out"
    return [path for path in out.rglob("*") if path.is_file() and path.parent.name != "binning"]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_good_columns_are_filled(tmp_path: Path, suffix: str) -> None:
    result = fill_columns(tmp_path, columns(), code=0, suffix=suffix)
    assert "3,000" in result.stdout


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("eta2"), "eta2"),
        (lambda t: t.update(pt1=t["pt1"] * 1000.0, pt2=t["pt2"] * 1000.0), "pt1"),
        (lambda t: t.update({key: t[key][:0] for key in t}), "no rows"),
        (lambda t: t.update(phi1=np.full(len(t["phi1"]), "a")), "phi1"),
    ],
)
def test_unusable_columns_are_named_with_their_file_and_nothing_is_written(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], named: str, suffix: str
) -> None:
    table = columns()
    change(table)
    message = fill_columns(tmp_path, table, code=2, suffix=suffix).stderr
    assert named in message
    assert f"data.{suffix}" in message
    assert not written(tmp_path)


def test_nan_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    table = columns()
    table["pt1"] = table["pt1"].copy()
    table["pt1"][:70] = np.nan
    text = fill_columns(tmp_path, table, code=0).stdout
    assert "2,930" in text


def test_a_column_of_nan_leaves_nothing_to_fill(tmp_path: Path) -> None:
    table = columns()
    table["pt1"] = np.full(len(table["pt1"]), np.nan)
    assert "Jpsi data: no event" in fill_columns(tmp_path, table, code=2).stderr
    assert not written(tmp_path)


def test_same_sign_pairs_are_dropped_and_counted(tmp_path: Path) -> None:
    table = columns()
    table["charge2"] = np.where(np.arange(3000) < 100, 1, -1)
    assert "2,900" in fill_columns(tmp_path, table, code=0).stdout


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"\0" * 100])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    fill_columns(tmp_path, columns(), code=0)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "data.parquet").write_bytes(content)
    message = call("fill", "--campaign", tmp_path / "campaign.toml", code=2).stderr
    assert "data.parquet" in message
    assert not written(tmp_path)


# Damaged output


@pytest.mark.parametrize(
    "name", ["fill/Jpsi_data@0.h5", "fit/Jpsi@1.h5", "samples/jpsi_data.parquet", "binning/Jpsi.json"]
)
def test_damaged_output_is_made_again(copy: Path, name: str) -> None:
    """Its content is not what the manifest says: it does not count as done."""
    damaged = copy / "out" / name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    result = call("extract", "--campaign", copy / "campaign.toml")
    assert "1 done" in result.stderr
    assert damaged.read_bytes() == whole


def test_a_deleted_table_is_exported_again(copy: Path) -> None:
    (copy / "out" / "export" / "calibration.npz").unlink()
    assert "1 done" in call("export", "--campaign", copy / "campaign.toml").stderr
    assert (copy / "out" / "export" / "calibration.npz").exists()


# Processes


def test_a_process_ends_with_the_code_and_keeps_stdout_clean(finished: Path) -> None:
    good = process(["closure", "--resonance", "Y1S", "--json"], finished)
    bad = process(["fit", "--campaign", "nowhere.toml"], finished)
    out, err = good.communicate(timeout=120)
    assert good.returncode == 0, err
    assert set(json.loads(out)) == CLOSURE_KEYS
    assert "up to date" in err
    assert "\x1b" not in out + err
    out, err = bad.communicate(timeout=120)
    assert (bad.returncode, out) == (2, "")
    assert err == "musclecal: nowhere.toml: no such campaign file; `musclecal init` writes one\n"


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_leave_whole_files_and_go_on(copy: Path, by: signal.Signals) -> None:
    shutil.rmtree(copy / "out")
    running = process(["export"], copy)
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline and not list(copy.glob("out/samples/jpsi_data*.json")):
        time.sleep(0.02)
    running.send_signal(by)
    _, err = running.communicate(timeout=60)
    assert "Traceback" not in err
    assert running.returncode != 0
    left = [path for path in (copy / "out").rglob(".*") if path.is_file()]
    assert not left
    result = call("export", "--campaign", copy / "campaign.toml")
    assert "simulate/jpsi_data           up to date" in result.stderr


def test_two_runs_at_once_end_well(copy: Path, finished: Path) -> None:
    shutil.rmtree(copy / "out")
    runs = [process(["export"], copy) for _ in range(2)]
    for one in runs:
        _, err = one.communicate(timeout=120)
        assert one.returncode == 0, err
    exported = Path("out/export/muon_scale.json.gz")
    assert (copy / exported).read_bytes() == (finished / exported).read_bytes()
