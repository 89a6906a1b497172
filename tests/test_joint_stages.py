"""A campaign whose calibration is that of several resonances: J/psi and half of the Z, closed on the other half."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from musclecal.binning import equal_eta_edges
from musclecal.campaign import Campaign
from musclecal.covariance import chi2_of
from musclecal.export import load_arrays
from musclecal.records import ScaleParameters, TemplateHistogram
from musclecal.report import report_task
from musclecal.samples import write_scale
from musclecal.store import load
from musclecal.tasks import run_tasks
from musclecal.validation.closure import projection

N_ETA = 4
Command = Callable[..., Result]

CAMPAIGN = """\
[campaign]
name = "small"
engine = "joint"
[joint]
use = ["Jpsi", "Z even"]
[binning]
eta_bins = 4
[resonances.Jpsi]
pt_edges = [4, 6, 40]
[systematics]
toys = 1000
[propagation]
draws = 100_000
[gates]
width_p_value = 0.0
[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
simulate = {events = 40_000, seed = 1, truth = "truth.json", background = 0.15}
[samples.jpsi_mc]
resonance = "Jpsi"
kind = "simulation"
simulate = {events = 160_000, seed = 2}
[samples.z_data]
resonance = "Z"
kind = "data"
simulate = {events = 40_000, seed = 5, truth = "truth.json"}
[samples.z_mc]
resonance = "Z"
kind = "simulation"
simulate = {events = 160_000, seed = 6}
"""


def truth() -> ScaleParameters:
    """Many times what the samples can see, with both signs."""
    edges = np.array(equal_eta_edges(N_ETA, 2.4))
    x = 0.5 * (edges[1:] + edges[:-1]) / 2.4
    return ScaleParameters(edges, 2e-3 * np.cos(3 * x), 5e-3 * (1 + 0.4 * x), 1.5e-4 * np.sin(3 * x))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """Folder of a campaign that was run from events to the report."""
    folder = tmp_path_factory.mktemp("joint")
    write_scale(folder / "truth.json", truth())
    (folder / "campaign.toml").write_text(CAMPAIGN)
    command("run", folder / "campaign.toml")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def changed(folder: Path, old: str, new: str) -> Path:
    """The campaign file with ``old`` replaced; it must be there."""
    path = folder / "campaign.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


# The calibration


def test_the_joint_fit_is_the_calibration_of_all_stages(finished: Path) -> None:
    campaign = Campaign(finished / "campaign.toml")
    joint = campaign.joint()
    assert (joint.used, joint.kept) == (("Jpsi", "Z even"), ("Z odd",))
    exported = load_arrays(finished / "out" / "export" / "calibration.npz")
    np.testing.assert_array_equal(exported.parameters, joint.calibration.parameters)
    np.testing.assert_array_equal(exported.covariance, joint.calibration.covariance)
    np.testing.assert_array_equal(campaign.calibration().parameters, joint.calibration.parameters)
    systematic = campaign.systematic()
    np.testing.assert_allclose(systematic.covariance, systematic.s**2 * exported.covariance, rtol=1e-9)


def test_each_half_has_the_simulation_of_its_own_events(finished: Path) -> None:
    """With one for both its noise would be in the fit and in the closure, and cancel."""
    campaign = Campaign(finished / "campaign.toml")
    tasks = [campaign.template_simulation_task("Z", part=part) for part in ("even", "odd")]
    even, odd = (load(task.output, TemplateHistogram) for task in tasks)
    assert all(60_000 < half.n_events < 80_000 for half in (even, odd))
    assert even.n_events != odd.n_events


def test_it_finds_the_truth_and_knows_more_than_the_j_psi(finished: Path) -> None:
    """Per parameter; the variance is that of dk/k at 40 GeV, summed over eta bins."""
    campaign = Campaign(finished / "campaign.toml")
    together, alone = campaign.calibration(), campaign.calibration("template")
    chi2 = chi2_of(together.parameters - truth().parameters, together.covariance)
    assert chi2.chi2 / chi2.ndf < 2.4
    rows = np.kron(np.eye(N_ETA), [1.0, -1.0 / 40.0, 40.0])
    assert np.trace(rows @ together.covariance @ rows.T) < 0.6 * np.trace(rows @ alone.covariance @ rows.T)


def test_the_second_pass_stands_on_the_first_and_changes_little(finished: Path) -> None:
    """chi2 per parameter: the first was linearised about the J/psi's e and the Z's own A and M."""
    campaign = Campaign(finished / "campaign.toml")
    first, second = campaign.joint(0), campaign.joint(1)
    assert (first.calibration.passes, second.calibration.passes) == (1, 2)
    assert first.calibration.residual_chi2 is None
    change = second.calibration.parameters - first.calibration.parameters
    expected = chi2_of(change, second.calibration.covariance).chi2 / len(change)
    assert second.calibration.residual_chi2 == pytest.approx(expected)
    assert 0.0 < expected < 0.05
    applied = campaign.joint_task(1).after[1]
    assert applied.name == "joint@0"
    assert first.kept == ()


def test_the_export_says_how_it_was_made(finished: Path) -> None:
    provenance = load_arrays(finished / "out" / "export" / "calibration.json").provenance
    assert provenance["engine"] == "joint"
    assert provenance["resonances"] == "Jpsi, Z even"
    assert provenance["samples"] == "jpsi_data, jpsi_mc, z_data, z_mc"
    assert "model" not in provenance
    assert provenance["closures"] == "Z odd"
    assert provenance["closure_samples"] == "z_data, z_mc"


def test_other_engines_say_so_as_well(copy: Path, command: Command) -> None:
    """And their report has the mass fits that it shows."""
    path = changed(copy, 'engine = "joint"', 'engine = "template"')
    assert "extract/calibration@1" in {task.name for task in report_task(Campaign(path)).after}
    command("export", "--campaign", path)
    provenance = load_arrays(copy / "out" / "export" / "calibration.json").provenance
    assert (provenance["engine"], provenance["resonances"]) == ("template", "Jpsi")
    assert provenance["samples"] == "jpsi_data, jpsi_mc"


def test_without_simulation_of_the_j_psi_the_joint_fit_starts_from_mass_fits(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text(
        CAMPAIGN.replace('kind = "data"\n', 'kind = "data"\nreference = "fast"\n', 1)
    )
    campaign = Campaign(tmp_path / "campaign.toml")
    assert campaign.first_engine == "mass-fits"
    names = [task.name for task in campaign.joint_task(0).after]
    assert names == ["extract/calibration@1", "extract/calibration@1", "template/Z_mass-fits_AM_even"]


# Closure on what is kept


def test_the_closure_is_that_of_the_held_out_half(finished: Path) -> None:
    """With events that the fit did not use, and the uncertainty of the joint calibration."""
    campaign = Campaign(finished / "campaign.toml")
    assert campaign.closures == ("Z",)
    closure = campaign.closure("Z")
    assert (closure.name, closure.applied) == ("Z odd", "calibrated")
    assert closure.s is not None
    assert 1e-3 < closure.p_value < 0.999
    fit = campaign.template_task("Z", campaign.calibrated_muons(), part="odd")
    used = campaign.template_fit(fit).information.events_used
    whole = campaign.template_task("Z", campaign.calibrated_muons())
    assert used / campaign.template_fit(whole).information.events_used == pytest.approx(0.5, abs=0.02)
    seen = projection(closure.parameter_names, closure.mean_k)
    line = campaign.config.resonance("Z").line
    mass = np.tile([line.mass_error / line.mass, 0.0], N_ETA)
    np.testing.assert_allclose(
        closure.calibration_covariance,
        seen @ campaign.calibration().covariance @ seen.T + np.outer(mass, mass),
        rtol=1e-9,
        atol=1e-20,
    )


def test_the_half_may_be_named(finished: Path, command: Command) -> None:
    path = finished / "campaign.toml"
    tables = []
    for name in ("Z", "Z odd"):
        result = command("closure", "--resonance", name, "--json", "--campaign", path)
        assert "  0 done, " in result.stderr
        tables.append(json.loads(result.stdout))
    assert tables[0] == tables[1]
    assert (tables[0]["resonance"], tables[0]["part"]) == ("Z", "odd")


@pytest.mark.parametrize(("name", "used"), [("Jpsi", "Jpsi"), ("Jpsi even", "Jpsi"), ("Z even", "Z even")])
def test_what_was_used_is_no_closure(finished: Path, command: Command, name: str, used: str) -> None:
    told = command("closure", "--resonance", name, "--campaign", finished / "campaign.toml", code=2).stderr
    assert told == (
        f"musclecal: closure at {name}: the joint fit used {used}, so this is no closure; "
        "close on what it kept: Z odd\n"
    )


def test_a_used_resonance_may_be_listed_for_the_systematics(copy: Path, command: Command) -> None:
    """As the Upsilon is, by default: what is left of the list sets s."""
    path = changed(copy, "toys = 1000", 'toys = 1000\nresonances = ["Jpsi", "Z"]')
    table = json.loads(command("systematics", "--json", "--campaign", path).stdout)
    assert set(table["factors"]) == {"Z", "joint"}


@pytest.mark.parametrize(
    ("old", "new", "arguments", "message"),
    [
        ('"Z even"', '"Z"', ("closure",), "joint.use leaves no data to close on"),
        ('"Z even"', '"Z"', ("closure", "--resonance", "Z"), "used Z, so this is no closure; it kept nothing"),
        ('"Z even"', '"Z"', ("systematics",), "closure at Z: the joint fit used Z, so this is no closure"),
        ("toys = 1000", 'toys = 1000\nresonances = ["Jpsi", "Z"]\nquote = "Jpsi"', ("systematics",),
         "closure at Jpsi: the joint fit used Jpsi, so this is no closure; close on what it kept: Z odd"),
        ('"Z even"', '"Y1S"', ("export",), "joint.use: the campaign has no data of Y1S: it has Jpsi, Z"),
        ("[systematics]", '[closure]\nengine = "scalar"\n[systematics]', ("closure",),
         "closure at Z odd: only the template engine closes half of a sample"),
        ("[systematics]", "[systematics]", ("closure", "--resonance", "Z third"), "part 'third' of the Z sample"),
    ],
)  # fmt: skip
def test_there_is_no_way_around(
    copy: Path, command: Command, old: str, new: str, arguments: tuple[str, ...], message: str
) -> None:
    path = changed(copy, old, new)
    assert message in command(*arguments, "--campaign", path, code=2).stderr


def test_uncorrected_muons_are_used_by_nothing(finished: Path, command: Command) -> None:
    """Any sample may be looked at, all of it."""
    options = ("--uncorrected", "--resonance", "Z", "--json", "--campaign", finished / "campaign.toml")
    assert json.loads(command("closure", *options).stdout)["part"] == "all"


# The report


def test_the_report_says_what_was_fitted_together(finished: Path) -> None:
    report = (finished / "out" / "report.txt").read_text()
    for line in (
        "joint fit of Jpsi + Z even; kept for closure: Z odd",
        "Z odd against the fit",
        "Z odd: residual correction",
        "factor on the calibration's uncertainty",
        "uncertainties of m_W and m_Z",
    ):
        assert line in report
    figures = {path.name for path in (finished / "out" / "figures").glob("*.png")}
    assert {"calibration.png", "closure_Z.png", "mass_Z.png", "overview.png"} <= figures


def test_the_export_of_the_campaign_itself_is_no_way_around(copy: Path) -> None:
    """Given as somebody's calibration it is still made from these events: no s. The half it kept has one."""
    campaign = Campaign(copy / "campaign.toml")
    applied = campaign.given_correction(copy / "out" / "export")
    for name, own in (("Jpsi", True), ("Z even", True), ("Z", True), ("Z odd", False)):
        run_tasks([campaign.closure_task(name, applied=applied)])
        closure = campaign.closure(name, applied=applied)
        assert (closure.s is None) == own, name
        assert (closure.applied == "own events") == own, name
