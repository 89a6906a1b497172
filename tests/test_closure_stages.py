"""The template closure, its splits, given corrections and the template extraction in small campaigns of known truth."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from pyarrow import parquet

from musclecal.apply import correct
from musclecal.binning import equal_eta_edges
from musclecal.campaign import UNCORRECTED, Campaign
from musclecal.covariance import chi2_of
from musclecal.events import read_dimuons
from musclecal.records import Closure, ScaleCalibration, ScaleParameters
from musclecal.samples import write_scale
from musclecal.tasks import run_tasks
from musclecal.validation.closure import mean_residual, projection

N_ETA = 6
Command = Callable[..., Result]

SAMPLES = """\
[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
simulate = {events = 60_000, seed = 1, truth = "truth.json", background = 0.15}
[samples.jpsi_mc]
resonance = "Jpsi"
kind = "simulation"
simulate = {events = 240_000, seed = 2}
[samples.z_data]
resonance = "Z"
kind = "data"
simulate = {events = 50_000, seed = 5, truth = "truth.json"}
[samples.z_mc]
resonance = "Z"
kind = "simulation"
simulate = {events = 200_000, seed = 6}
"""
HEAD = """\
[campaign]
name = "small"
[binning]
eta_bins = 6
[resonances.Jpsi]
pt_edges = [4, 6, 40]
"""


def truth() -> ScaleParameters:
    """Many times what the samples can see, with both signs."""
    edges = np.array(equal_eta_edges(N_ETA, 2.4))
    x = 0.5 * (edges[1:] + edges[:-1]) / 2.4
    return ScaleParameters(edges, 2e-3 * np.cos(3 * x), 5e-3 * (1 + 0.4 * x), 1.5e-4 * np.sin(3 * x))


def campaign_in(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_scale(folder / "truth.json", truth())
    (folder / "campaign.toml").write_text(text)
    return folder


def table_of(result: Result) -> dict[str, Any]:
    """The JSON object on stdout, alone there."""
    (line,) = result.stdout.splitlines()
    table: dict[str, Any] = json.loads(line)
    return table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """Folder of a campaign on J/psi and Z, closed and exported."""
    folder = campaign_in(tmp_path_factory.mktemp("closures"), HEAD + SAMPLES)
    command("closure", "--splits", "--campaign", folder / "campaign.toml")
    command("export", "--campaign", folder / "campaign.toml")
    return folder


@pytest.fixture(scope="module")
def z_alone(finished: Path) -> Path:
    """Folder of a campaign with the same Z samples, as files, and nothing else."""
    (finished / "z").mkdir()
    text = "[campaign]\nname = 'z'\n[binning]\neta_bins = 6\n"
    for kind, name in (("data", "z_data"), ("simulation", "z_mc")):
        text += (
            f'[samples.{name}]\nresonance = "Z"\nkind = "{kind}"\nfiles = ["../out/samples/{name}.parquet"]\n'
        )
    return campaign_in(finished / "z", text)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("z")))


def seen_at(closure: Closure, scale: ScaleParameters) -> np.ndarray:
    """What a closure sees of A, e, M: A - e <k>, M per eta bin."""
    return np.asarray(projection(closure.parameter_names, closure.mean_k) @ scale.parameters)


def chi2_about(closure: Closure, expected: np.ndarray) -> float:
    """Per degree of freedom, with the closure sample's own covariance."""
    return chi2_of(closure.values.ravel() - expected, closure.covariance).chi2 / closure.ndf


# What is left


def test_calibrated_muons_need_nothing_more(finished: Path) -> None:
    closure = Campaign(finished / "campaign.toml").closure("Z")
    assert (closure.engine, closure.ndf) == ("template", 2 * N_ETA)
    assert 1e-3 < closure.p_value < 0.999
    assert closure.events_fraction > 0.999
    assert 0.85 < closure.fit_chi2 / closure.fit_ndf < 1.15
    mean, _, error = mean_residual(closure)
    assert abs(mean) < 3.0 * error


def test_as_measured_they_need_the_truth(finished: Path) -> None:
    """With its sign: the correction that undoes the bias, not the bias."""
    campaign = Campaign(finished / "campaign.toml")
    run_tasks([campaign.closure_task("Z", applied=UNCORRECTED)])
    closure = campaign.closure("Z", applied=UNCORRECTED)
    expected = seen_at(closure, truth())
    assert chi2_about(closure, expected) < 2.2
    assert chi2_about(closure, 0.0 * expected) > 15.0
    assert chi2_about(closure, -expected) > 50.0
    assert closure.s is None


def test_the_calibration_states_its_uncertainty(finished: Path) -> None:
    """V_Jpsi, projected on what the Z sees, and the mass of the Z: no more and no less."""
    campaign = Campaign(finished / "campaign.toml")
    closure, calibration = campaign.closure("Z"), campaign.calibration()
    seen = projection(closure.parameter_names, closure.mean_k)
    line = campaign.config.resonance("Z").line
    mass = np.zeros(2 * N_ETA)
    mass[0::2] = line.mass_error / line.mass
    expected = seen @ calibration.covariance @ seen.T + np.outer(mass, mass)
    np.testing.assert_allclose(closure.calibration_covariance, expected, rtol=1e-9, atol=1e-20)
    assert closure.s is not None


def test_both_engines_see_the_same(finished: Path, command: Command) -> None:
    """On the same events; the scalar one is biased by up to 1e-4, and uniform M is its weakest direction."""
    path = finished / "campaign.toml"
    tables = {
        engine: table_of(
            command("closure", "--engine", engine, "--uncorrected", "--resonance", "Z", "--json",
                    "--campaign", path)
        )
        for engine in ("template", "scalar")
    }  # fmt: skip
    assert tables["scalar"]["engine"] == "scalar"
    assert tables["template"]["engine"] == "template"
    template, scalar = (np.array([t["A"], t["M"]]).T.ravel() for t in tables.values())
    difference = chi2_of(template - scalar, np.array(tables["scalar"]["covariance"]))
    assert 0.0 < difference.chi2 / difference.ndf < 1.5
    closure = Campaign(path).closure("Z", applied=UNCORRECTED, engine="scalar")
    assert chi2_about(closure, seen_at(closure, truth())) < 2.4


def test_a_closure_on_the_calibration_resonance_is_one_more_pass(finished: Path, command: Command) -> None:
    command("closure", "--resonance", "Jpsi", "--campaign", finished / "campaign.toml")
    closure = Campaign(finished / "campaign.toml").closure("Jpsi")
    assert closure.engine == "template"
    assert chi2_about(closure, np.zeros(2 * N_ETA)) < 0.7


def test_the_closure_does_not_fit_e_at_the_z(copy: Path, command: Command) -> None:
    (copy / "campaign.toml").write_text(
        HEAD + "[resonances.Z]\nclosure_parameters = ['A', 'e', 'M']\n" + SAMPLES
    )
    told = command("closure", "--campaign", copy / "campaign.toml", code=2).stderr
    assert "resonances.Z.closure_parameters: e is not measured at the Z" in told


def test_a_width_of_every_bin_is_an_option_that_redoes_the_fit_alone(copy: Path, command: Command) -> None:
    (copy / "campaign.toml").write_text(
        HEAD + "[resonances.Z.template]\nwidths = 'bin'\nmass_bins = 24\n" + SAMPLES
    )
    result = command("closure", "--json", "--campaign", copy / "campaign.toml")
    changed = {line.split()[0] for line in result.stderr.splitlines() if line.endswith("...")}
    assert changed == {"template/Z_simulation", "template/Z_calibrated_AM", "closure/Z_template"}
    before = Campaign(copy / "campaign.toml").closure("Z")
    assert 0.8 < before.fit_chi2 / before.fit_ndf < 1.2


def test_muons_of_the_splits_are_those_of_the_fit(finished: Path) -> None:
    """Corrected with the calibration, then with what the fit found."""
    campaign = Campaign(finished / "campaign.toml")
    applied = campaign.calibrated_muons()
    fit = campaign.template_fit(campaign.template_task("Z", applied))
    assert np.any(fit.point.A != 0.0)
    events = next(read_dimuons(finished / "out" / "samples" / "z_data.parquet"))[0]
    found = events
    for correction in campaign.corrections_at(applied, fit):
        found = correction(found)
    expected = correct(correct(events, campaign.calibration()), fit.point)
    np.testing.assert_array_equal(found.plus.pt, expected.plus.pt)
    np.testing.assert_array_equal(found.minus.pt, expected.minus.pt)


# Nothing but a closure resonance


def test_z_samples_alone_close_as_they_are(finished: Path, z_alone: Path, command: Command) -> None:
    table = table_of(command("closure", "--uncorrected", "--json", "--campaign", z_alone / "campaign.toml"))
    whole = Campaign(finished / "campaign.toml")
    run_tasks([whole.closure_task("Z", applied=UNCORRECTED)])
    np.testing.assert_array_equal(
        np.array([table["A"], table["M"]]).T, whole.closure("Z", applied=UNCORRECTED).values
    )
    assert table["s"] is None
    assert table["s_quoted"] is None


@pytest.mark.parametrize(
    "given", ["", "calibration.json", "calibration.npz", "muon_scale.json.gz", "muon_scale.root"]
)
def test_z_samples_alone_close_an_export(finished: Path, z_alone: Path, command: Command, given: str) -> None:
    """As the campaign that made it does; with s, as every file states the covariance."""
    export = finished / "out" / "export" / given
    path = z_alone / "campaign.toml"
    table = table_of(command("closure", "--calibration", export, "--json", "--campaign", path))
    expected = Campaign(finished / "campaign.toml").closure("Z")
    found = np.array([table["A"], table["M"]]).T
    np.testing.assert_allclose(found, expected.values, rtol=0.0, atol=1e-9)
    assert table["chi2"] == pytest.approx(expected.chi2, rel=1e-6)
    assert table["s"] == pytest.approx(expected.s, abs=1e-4)


def test_somebody_elses_table_in_other_bins_is_closed(
    z_alone: Path, command: Command, tmp_path: Path
) -> None:
    """The truth itself, every bin split in two: nothing is left."""
    t = truth()
    finer = np.sort(np.concatenate([t.eta_edges, 0.5 * (t.eta_edges[1:] + t.eta_edges[:-1])]))
    twice = (np.repeat(getattr(t, name), 2) for name in ("A", "e", "M"))
    write_scale(tmp_path / "theirs.json", ScaleParameters(finer, *twice))
    path = z_alone / "campaign.toml"
    options = ("--calibration", tmp_path / "theirs.json", "--campaign", path)
    table = table_of(command("closure", *options, "--json"))
    assert table["chi2"] / table["ndf"] < 2.2
    assert table["s"] is None
    # The truth the wrong way round is twice the bias.
    opposite = (-np.repeat(getattr(t, name), 2) for name in ("A", "e", "M"))
    write_scale(tmp_path / "theirs.json", ScaleParameters(finer, *opposite))
    again = table_of(command("closure", *options, "--json"))
    assert again["chi2"] / again["ndf"] > 50.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (),
            '"data" for the resonance Jpsi, which is calibrated on: add one, or close with --uncorrected or',
        ),
        (("--splits",), "--uncorrected or --calibration"),
        (("--uncorrected", "--calibration", "theirs"), "--uncorrected and --calibration exclude each other"),
        (("--calibration", "nowhere"), "nowhere: no such file or folder"),
        (("--calibration", "empty"), "empty: not an export folder: give the correction file itself"),
        (("--calibration", "campaign.toml"), "campaign.toml: not a JSON file"),
        (("--calibration", "truth.json", "--engine", "scalar"), "only the template engine closes a given"),
        (("--resonance", "Y1S", "--uncorrected"), 'no sample of kind "data" for the resonance Y1S'),
        (("--resonance", "W", "--uncorrected"), "unknown resonance 'W'"),
    ],
)
def test_what_is_missing_is_named(
    z_alone: Path, command: Command, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(z_alone)
    (z_alone / "empty").mkdir(exist_ok=True)
    assert message in command("closure", *options, code=2).stderr


def test_data_without_their_own_simulation_have_the_scalar_engine_only(
    tmp_path: Path, command: Command
) -> None:
    data = SAMPLES.split("[samples.z_mc]")[0].replace(
        'kind = "data"\n', 'kind = "data"\nreference = "fast"\n'
    )
    path = campaign_in(tmp_path, HEAD + data) / "campaign.toml"
    message = command("closure", "--engine", "template", "--uncorrected", "--campaign", path, code=2).stderr
    assert "--engine template: the resonance Z has no simulation of its own" in message


# Parts of the sample


def test_a_clean_sample_has_like_parts(finished: Path) -> None:
    splits = Campaign(finished / "campaign.toml").splits("Z")
    assert [test.name for test in splits.tests] == [
        "phi harmonic 1", "phi harmonic 2", "phi harmonic 3", "phi sectors", "charge order", "pT asymmetry",
    ]  # fmt: skip
    assert splits.p_value > 1e-3


def test_splits_are_part_of_the_object(finished: Path, command: Command) -> None:
    path = finished / "campaign.toml"
    table = table_of(command("closure", "--splits", "--json", "--campaign", path))
    splits = table["splits"]
    assert len(splits["tests"]) == 6
    assert splits["p_value"] == pytest.approx(
        1.0 - (1.0 - min(test["p_value"] for test in splits["tests"])) ** 6, rel=1e-9
    )
    text = command("closure", "--splits", "--campaign", path).stdout
    assert "Z: are parts of the sample alike?" in text
    assert "smallest p-value" in text


WAVE = """\
[samples.z_early]
resonance = "Z"
kind = "data"
simulate = {events = 25_000, seed = 8, run = 3, phi_amplitude = 3e-3, phi_harmonic = 2}
[samples.z_late]
resonance = "Z"
kind = "data"
simulate = {events = 25_000, seed = 9, run = 70, phi_amplitude = 3e-3, phi_harmonic = 2, truth = "late.json"}
[samples.z_mc]
resonance = "Z"
kind = "simulation"
files = ["MC"]
[closure]
phi_sectors = 8
run_edges = [50, 100]
"""


@pytest.fixture(scope="module")
def modulated(finished: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> dict[str, Any]:
    """Split tests by name: a wave cos(2 phi) in all runs, and a bias that begins with run 50."""
    mc = str(finished / "out" / "samples" / "z_mc.parquet")
    text = "[campaign]\nname = 'z'\n[binning]\neta_bins = 6\n" + WAVE.replace("MC", mc)
    path = campaign_in(tmp_path_factory.mktemp("wave"), text) / "campaign.toml"
    zero = np.zeros(N_ETA)
    write_scale(path.with_name("late.json"), ScaleParameters(truth().eta_edges, zero + 2e-3, zero, zero))
    table = table_of(command("closure", "--uncorrected", "--splits", "--json", "--campaign", path))
    return {test["name"]: test for test in table["splits"]["tests"]}


def test_a_wave_in_phi_is_found_in_its_harmonic_with_its_sign(modulated: dict[str, Any]) -> None:
    """The closure in eta bins is blind to it. The amplitude is the correction that is still needed."""
    wave = modulated["phi harmonic 2"]
    found, error = wave["values"][0][0], wave["errors"][0][0]
    assert wave["parts"] == ["cos", "sin"]
    assert wave["parameters"] == ["A", "M"]
    assert found == pytest.approx(3e-3, abs=4.0 * error)
    assert found > 8.0 * error
    assert abs(wave["values"][1][0]) < 4.0 * wave["errors"][1][0]
    assert modulated["phi sectors"]["p_value"] < 1e-10
    for harmonic in (1, 3):
        assert modulated[f"phi harmonic {harmonic}"]["p_value"] > 1e-4


def test_a_change_with_time_is_found_in_the_runs(modulated: dict[str, Any]) -> None:
    runs = modulated["run ranges"]
    assert runs["parts"] == ["runs 0 to 49", "runs 50 to 99"]
    assert runs["p_value"] < 1e-4
    assert runs["ndf"] == 2 * N_ETA
    early, late = np.array(runs["values"])
    errors = np.array(runs["errors"])
    # Parts are compared about the fit of the whole sample, which takes the average of both.
    assert late[0] - early[0] == pytest.approx(2e-3, abs=4.0 * np.hypot(*errors[:, 0]))
    assert abs(late[0] + early[0]) < 4.0 * np.hypot(*errors[:, 0])


def test_what_cannot_be_split_is_refused_by_its_key(
    finished: Path, z_alone: Path, command: Command, tmp_path: Path
) -> None:
    rows = parquet.read_table(finished / "out" / "samples" / "z_data.parquet")
    parquet.write_table(pa.table(rows.drop_columns(["run"])), tmp_path / "z_data.parquet")
    text = (z_alone / "campaign.toml").read_text()
    for old, new in (("../out/samples/z_data", "z_data"), ("../out", str(finished / "out"))):
        text = text.replace(old, new)
    # Only the data without run numbers: their simulation needs none.
    campaign_in(tmp_path, text + "[closure]\nrun_edges = [1, 5]\n")
    options = ("closure", "--uncorrected", "--splits", "--campaign", tmp_path / "campaign.toml")
    assert "run_edges are given, but a data file has no run numbers" in command(*options, code=2).stderr
    axes = "[resonances.Z.template]\nasymmetry_edges = [-1.0, -0.1, 0.1, 1.0]\n"
    campaign_in(tmp_path, text + axes)
    assert "asymmetry_edges: an edge at 0 and at least four bins" in command(*options, code=2).stderr


# Extraction by the template engine


@pytest.fixture(scope="module")
def by_templates(finished: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A copy whose campaign file says engine = "template", exported and closed."""
    folder = tmp_path_factory.mktemp("templates") / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("z"))
    text = (HEAD + SAMPLES).replace('name = "small"', 'name = "small"\nengine = "template"')
    (folder / "campaign.toml").write_text(text)
    command("export", "--campaign", folder / "campaign.toml")
    command("closure", "--campaign", folder / "campaign.toml")
    return folder


def chi2_of_truth(calibration: ScaleCalibration) -> float:
    difference = calibration.parameters - truth().parameters
    return chi2_of(difference, calibration.covariance).chi2 / len(difference)


def test_the_template_fit_extracts_the_truth(by_templates: Path, finished: Path) -> None:
    templates = Campaign(by_templates / "campaign.toml").calibration()
    mass_fits = Campaign(finished / "campaign.toml").calibration()
    assert templates.converged_fraction == 1.0
    assert chi2_of_truth(templates) < 2.4
    assert chi2_of_truth(mass_fits) < 2.4
    error = np.sqrt(np.diag(mass_fits.covariance))
    assert 0.0 < np.max(np.abs(templates.parameters - mass_fits.parameters) / error) < 3.0


def test_the_engine_of_the_file_is_that_of_all_stages(by_templates: Path, finished: Path) -> None:
    """Export and closure follow the template fit, not the mass fits that lie beside it."""
    campaign = Campaign(by_templates / "campaign.toml")
    exported = json.loads((by_templates / "out" / "export" / "calibration.json").read_text())
    np.testing.assert_array_equal(exported["A"], campaign.calibration("template").A)
    assert exported["A"] != Campaign(finished / "campaign.toml").calibration("mass-fits").A.tolist()
    closure, other = campaign.closure("Z"), Campaign(finished / "campaign.toml").closure("Z")
    assert not np.array_equal(closure.values, other.values)
    assert closure.p_value > 1e-3


def test_an_engine_may_be_looked_at_without_being_used(
    finished: Path, by_templates: Path, command: Command
) -> None:
    path = finished / "campaign.toml"
    table = table_of(command("extract", "--engine", "template", "--json", "--campaign", path))
    np.testing.assert_array_equal(
        table["A"], Campaign(by_templates / "campaign.toml").calibration("template").A
    )
    assert "0 done" in command("export", "--campaign", path).stderr
