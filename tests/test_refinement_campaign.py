"""Campaigns with a refinement, and with the simulation as target, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from musclecal.binning import equal_eta_edges
from musclecal.campaign import Campaign
from musclecal.cli import main
from musclecal.errors import InputError
from musclecal.export import load_refinement
from musclecal.records import RunRefinement, ScaleParameters
from musclecal.samples import write_scale
from musclecal.tasks import run_tasks

N_ETA = 4
EDGES = np.array(equal_eta_edges(N_ETA, 2.4))


def call(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    told = f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit), told
    assert result.exit_code == code, told
    return result


def scale(a: float, m: float = 0.0) -> ScaleParameters:
    return ScaleParameters(EDGES, np.full(N_ETA, a), np.zeros(N_ETA), np.full(N_ETA, m))


Z_CAMPAIGN = """\
[campaign]
name = "refined"
[binning]
eta_bins = 4
[closure]
phi_sectors = 8
harmonics = [1, 2]
run_edges = [10, 20]
[samples.early]
resonance = "Z"
kind = "data"
simulate = {events = 60_000, seed = 1, truth = "early.json", run = 5, phi_amplitude = 2e-3, phi_harmonic = 2}
[samples.late]
resonance = "Z"
kind = "data"
simulate = {events = 60_000, seed = 2, truth = "late.json", run = 10, phi_amplitude = 2e-3, phi_harmonic = 2}
[samples.mc]
resonance = "Z"
kind = "simulation"
simulate = {events = 240_000, seed = 3}
"""


@pytest.fixture(scope="module")
def z_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refine")
    (folder / "campaign.toml").write_text(Z_CAMPAIGN)
    write_scale(folder / "early.json", scale(2e-3, 2e-5))
    write_scale(folder / "late.json", scale(-1e-3))
    return folder


def refined(folder: Path, *options: str) -> dict[str, object]:
    path = folder / "campaign.toml"
    result = call("refine", "--uncorrected", *options, "--json", "--campaign", path)
    table = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(table, dict)
    return table


def p_values(table: dict[str, object], name: str) -> tuple[float, float]:
    tests = table["tests"]
    assert isinstance(tests, list)
    (test,) = (test for test in tests if test["name"] == name)
    return test["p_before"], test["p_after"]


def test_run_ranges(z_folder: Path) -> None:
    table = refined(z_folder, "--in", "runs")
    values, errors = (np.array(table[key]) for key in ("A", "A_error"))
    pulls = (values - np.array([[2e-3, -1e-3]])) / errors
    print(values, pulls)
    assert np.abs(pulls).max() < 3.5
    m_pulls = (np.array(table["M"]) - np.array([[2e-5, 0.0]])) / np.array(table["M_error"])
    assert np.abs(m_pulls).max() < 3.5
    before, after = p_values(table, "run ranges")
    assert before < 1e-6
    assert after > 0.5
    assert table["terms"] == ["runs 0 to 9", "runs 10 to 19"]
    files = table["files"]
    assert isinstance(files, list)
    one, two = (load_refinement(Path(file)) for file in files)
    assert isinstance(one, RunRefinement)
    assert one.run_edges == (0, 10, 20)
    np.testing.assert_array_equal(one.A, two.A)
    np.testing.assert_array_equal(one.A.T, values)


def test_waves_in_phi(z_folder: Path) -> None:
    table = refined(z_folder, "--in", "phi", "--harmonics", "2")
    values, errors = (np.array(table[key]) for key in ("A", "A_error"))
    assert table["terms"] == ["1", "cos(2 phi)", "sin(2 phi)"]
    pulls = (values[:, 1:] - np.array([2e-3, 0.0])) / errors[:, 1:]
    print(1e5 * values, pulls)
    assert np.abs(pulls).max() < 3.5
    before, after = p_values(table, "phi harmonic 2")
    assert before < 1e-4
    assert after > 0.5
    assert p_values(table, "phi harmonic 1")[1] > 1e-3
    assert table["passes"] in (2, 3, 4)  # converged before the limit of 5


def test_sectors_in_words(z_folder: Path) -> None:
    path = z_folder / "campaign.toml"
    text = call("refine", "--uncorrected", "--in", "sectors", "--campaign", path).stdout
    assert "phi sectors" in text
    assert "fitted: no test any more" in text
    assert "no independent closure" in text
    again = call("refine", "--uncorrected", "--in", "sectors", "--campaign", path)
    assert again.stdout == text
    assert "0 done" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--in", "runs", "--harmonics", "1"), "--harmonics belongs to --in phi"),
        (("--in", "phi", "--harmonics", "4"), "harmonic 4 needs more than 8 phi sectors"),
        (("--in", "phi", "--harmonics", "1,1"), "each one once"),
        (("--in", "phi", "--harmonics", "one"), "numbers as 1,2"),
        (("--in", "phi", "--uncorrected", "--resonance", "Y1S"), "Y1S"),
        (("--in", "phi", "--uncorrected", "--calibration", "x"), "exclude each other"),
    ],
)
def test_wrong_choices_are_named(z_folder: Path, options: tuple[str, ...], message: str) -> None:
    result = call("refine", *options, "--campaign", z_folder / "campaign.toml", code=2)
    assert message in result.stderr


def test_run_ranges_need_edges(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text(Z_CAMPAIGN.replace("run_edges = [10, 20]\n", ""))
    with pytest.raises(InputError, match=r"closure\.run_edges"):
        Campaign(tmp_path / "campaign.toml").refining("runs")


JPSI = """\
[campaign]
name = "own truth"
[binning]
eta_bins = 4
[resonances.Jpsi]
pt_edges = [4, 6, 40]
model = "generator-template"
[samples.mc]
resonance = "Jpsi"
kind = "simulation"
simulate = {events = 100_000, seed = 11, truth = "truth.json"}
[samples.mc_z]
resonance = "Z"
kind = "simulation"
simulate = {events = 60_000, seed = 12, truth = "truth.json"}
[samples.data]
resonance = "Jpsi"
kind = "data"
simulate = {events = 20_000, seed = 13}
"""


@pytest.mark.slow
def test_simulation_is_calibrated_to_its_own_truth(tmp_path: Path) -> None:
    a, m = np.array([1e-3, -5e-4, 0.0, 8e-4]), np.array([3e-5, 0.0, -2e-5, 1e-5])
    truth = ScaleParameters(EDGES, a, np.full(4, 4e-3), m)
    write_scale(tmp_path / "truth.json", truth)
    path = tmp_path / "campaign.toml"
    path.write_text(JPSI)
    call("extract", "--target", "simulation", "--campaign", path)
    campaign = Campaign(path, target="simulation")
    found = campaign.calibration()
    rest = found.parameters - truth.parameters
    chi2 = float(rest @ np.linalg.solve(found.covariance, rest))
    print(f"chi2 {chi2:.1f}/12")
    assert chi2 < 26.2
    known = campaign.truth()
    assert known is not None
    np.testing.assert_array_equal(known.parameters, truth.parameters)
    assert (tmp_path / "out/simulation_target/extract").is_dir()
    assert not (tmp_path / "out/extract").exists()
    assert (tmp_path / "out/samples/mc.parquet").is_file()
    assert not (tmp_path / "out/samples/data.parquet").exists()
    closed = json.loads(
        call("closure", "--target", "simulation", "--resonance", "Z", "--json", "--campaign", path).stdout
    )
    print(f"closure p {closed['p_value']:.3f}")
    assert closed["p_value"] > 1e-3
    assert np.abs(closed["A"]).max() < 6e-4


def test_the_file_can_choose_the_target(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text(
        JPSI.replace('name = "own truth"', 'name = "x"\ntarget = "simulation"')
    )
    assert Campaign(tmp_path / "campaign.toml").output.name == "simulation_target"
    assert Campaign(tmp_path / "campaign.toml", target="data").output.name == "out"
    assert Campaign(tmp_path / "campaign.toml").closures == ("Z",)


def test_generator_level_momenta_are_needed(tmp_path: Path) -> None:
    write_scale(tmp_path / "truth.json", scale(1e-3))
    (tmp_path / "campaign.toml").write_text(JPSI)
    run_tasks(Campaign(tmp_path / "campaign.toml").simulate_tasks[2:])
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "out/samples/data.parquet")
    measured = table.select([name for name in table.column_names if not name.startswith("gen_")])
    parquet.write_table(measured, tmp_path / "measured.parquet")
    text = JPSI.split("[samples.mc]")[0] + '[samples.mc]\nresonance = "Jpsi"\nkind = "simulation"\n'
    (tmp_path / "campaign.toml").write_text(f'{text}files = ["measured.parquet"]\n')
    result = call("extract", "--target", "simulation", "--campaign", tmp_path / "campaign.toml", code=2)
    assert "target = simulation: Jpsi" in result.stderr
    assert "generator-level" in result.stderr
