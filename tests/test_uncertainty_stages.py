"""Resolution, systematics, propagation and joint fit of one small campaign, through the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from musclecal.campaign import Campaign
from musclecal.covariance import chi2_of
from musclecal.records import ScaleParameters
from musclecal.samples import write_scale
from musclecal.simulate import default_resolution

N_ETA = 6
DRAWS = 100_000
Command = Callable[..., Result]

CAMPAIGN = f"""\
[campaign]
name = "small"
[binning]
eta_bins = 6
[resonances.Jpsi]
pt_edges = [4, 6, 10, 40]
[resonances.Y1S]
pt_edges = [4, 6.6, 50]
[systematics]
toys = 1000
[propagation]
draws = {DRAWS}
[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
simulate = {{events = 60_000, seed = 1, truth = "truth.json", background = 0.15, resolution_factor = 1.15}}
[samples.jpsi_mc]
resonance = "Jpsi"
kind = "simulation"
simulate = {{events = 240_000, seed = 2}}
[samples.y_data]
resonance = "Y1S"
kind = "data"
simulate = {{events = 40_000, seed = 3, truth = "truth.json", background = 0.2, resolution_factor = 1.15}}
[samples.y_mc]
resonance = "Y1S"
kind = "simulation"
simulate = {{events = 120_000, seed = 4}}
[samples.z_data]
resonance = "Z"
kind = "data"
simulate = {{events = 50_000, seed = 5, truth = "truth.json", resolution_factor = 1.15}}
[samples.z_mc]
resonance = "Z"
kind = "simulation"
simulate = {{events = 200_000, seed = 6}}
"""


def truth() -> ScaleParameters:
    """Many times what the samples can see, with both signs."""
    edges = np.linspace(-2.4, 2.4, N_ETA + 1)
    x = 0.5 * (edges[1:] + edges[:-1]) / 2.4
    return ScaleParameters(edges, 2e-3 * np.cos(3 * x), 5e-3 * (1 + 0.4 * x), 1.5e-4 * np.sin(3 * x))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """Folder of a campaign with all stages done."""
    folder = tmp_path_factory.mktemp("uncertainty")
    write_scale(folder / "truth.json", truth())
    (folder / "campaign.toml").write_text(CAMPAIGN)
    for stage in ("resolution", "systematics", "propagate", "joint"):
        command(stage, "--campaign", folder / "campaign.toml")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def table_of(result: Result) -> dict[str, Any]:
    """The JSON object on stdout, alone there."""
    (line,) = result.stdout.splitlines()
    table: dict[str, Any] = json.loads(line)
    return table


def asked(command: Command, folder: Path, stage: str) -> dict[str, Any]:
    return table_of(command(stage, "--json", "--campaign", folder / "campaign.toml"))


def redone(result: Result) -> set[str]:
    """Names of the tasks that were not up to date."""
    return {line.split()[0] for line in result.stderr.splitlines() if line.endswith("...")}


def changed(folder: Path, old: str, new: str) -> Path:
    """The campaign file with ``old`` replaced; it must be there."""
    path = folder / "campaign.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


# Resolution


def test_the_resolution_of_the_simulation_is_that_of_its_generator(finished: Path, command: Command) -> None:
    """sigma_k/k at 6 and 40 GeV within 3 %, in each eta bin; a, c are averages over a bin of the truth."""
    table = asked(command, finished, "resolution")
    assert set(table) == {"eta_edges", "d", "simulation", "data", "difference"}
    assert table["simulation"]["parameter_order"] == "a, c of each eta bin"
    assert np.shape(table["simulation"]["covariance"]) == (2 * N_ETA, 2 * N_ETA)
    model, (a, c) = default_resolution(), (np.array(table["simulation"][name]) for name in ("a", "c"))
    for pt in (6.0, 40.0):
        expected = (model.a + model.c * pt**2).reshape(N_ETA, -1).mean(axis=1)
        np.testing.assert_allclose(a + c * pt**2, expected, rtol=0.06)


def test_data_that_are_wider_need_the_difference(finished: Path, command: Command) -> None:
    """15 % wider: the variance of data over simulation is 1.3225, at the J/psi to a few per cent."""
    table = asked(command, finished, "resolution")
    widths = []
    for kind in ("data", "simulation", "difference"):
        a, c = (np.array(table[kind][name]) for name in ("a", "c"))
        widths.append(a + c * 8.0**2)
    data, simulation, difference = widths
    np.testing.assert_allclose(data, simulation + difference, rtol=1e-9)
    assert np.mean(data / simulation) == pytest.approx(1.3225, abs=0.05)


def test_smeared_widths_close(finished: Path) -> None:
    campaign = Campaign(finished / "campaign.toml")
    assert campaign.width_closures == ("Jpsi", "Z", "Y1S")
    for name in campaign.width_closures:
        before, after = (campaign.width_closure(name, smeared=smeared) for smeared in (False, True))
        assert before.mean == pytest.approx(1.13, abs=0.08)
        assert after.p_value > 1e-3
        assert abs(after.mean - 1.0) < 3.5 * after.mean_error
        assert after.used == (name != "Y1S")


def test_the_resolution_in_words(finished: Path, command: Command) -> None:
    text = command("resolution", "--campaign", finished / "campaign.toml").stdout
    assert "(sigma_k/k)^2 = a + c pT^2" in text
    assert "width ratio data/simulation at Y1S (not used)" in text
    assert text.count("; smeared ") == 3


def test_widths_that_do_not_close_end_with_3(copy: Path, command: Command) -> None:
    path = copy / "campaign.toml"
    path.write_text(CAMPAIGN + "[gates]\nwidth_p_value = 1.0\n")
    result = command("resolution", "--campaign", path, code=3)
    assert "quality gate: width closure at Jpsi: p-value" in result.stderr
    assert result.stdout


# Systematics


def test_nuisances_are_counted_as_documented(finished: Path, command: Command) -> None:
    table = asked(command, finished, "systematics")
    assert set(table) == {"s", "quoted", "factors", "nuisances", "covariance"}
    assert list(table["nuisances"].items()) == [
        ("scale_stat", 3 * N_ETA), ("closure_Z", 2 * N_ETA), ("mass_Z", 1), ("resolution", 3 * N_ETA),
    ]  # fmt: skip
    assert set(table["factors"]) == {"Y1S", "Z", "joint"}
    assert table["quoted"] == "joint"
    assert table["s"] == max(1.0, table["factors"]["joint"]["s"])
    for factor in table["factors"].values():
        low, high = factor["interval_68"]
        assert low <= factor["s"] <= high
        assert 0.0 <= factor["interval_95"][0] <= low


def test_the_scaled_covariance_is_that_of_the_calibration_and_of_its_nuisances(finished: Path) -> None:
    campaign = Campaign(finished / "campaign.toml")
    systematic, (first, second, mass, resolution) = campaign.systematic(), campaign.nuisances().groups
    np.testing.assert_allclose(
        systematic.covariance, systematic.s**2 * campaign.calibration().covariance, rtol=1e-12
    )
    np.testing.assert_allclose(first.covariance, systematic.covariance, rtol=1e-9, atol=1e-20)
    np.testing.assert_allclose(second.covariance, campaign.closure("Z").covariance, rtol=1e-9, atol=1e-20)
    line = campaign.config.resonance("Z").line
    np.testing.assert_allclose(mass.variations, [np.full(N_ETA, line.mass_error / line.mass)], rtol=1e-12)
    assert (first.parameters, second.parameters) == (("A", "e", "M"), ("A", "M"))
    assert resolution.parameters == ("a", "b", "c")


def test_resolution_nuisances_have_each_parameter_in_its_place(finished: Path) -> None:
    """a0, b0, c0, a1, ...: b was not fitted; a and c have their own errors times the inflation."""
    campaign = Campaign(finished / "campaign.toml")
    group = campaign.nuisances().groups[3]
    difference = campaign.resolution().difference
    assert difference.parameter_names == ("a", "c")
    of_fit = np.diag(difference.covariance).reshape(N_ETA, 2)
    of_nuisances = np.diag(group.covariance).reshape(N_ETA, 3)
    factor = campaign.config.systematics.resolution_inflation
    np.testing.assert_allclose(
        of_nuisances[:, 0] / of_fit[:, 0], of_nuisances[:, 2] / of_fit[:, 1], rtol=1e-9
    )
    np.testing.assert_allclose(of_nuisances[:, 1], 0.0, atol=1e-25)
    assert of_nuisances[0, 0] / of_fit[0, 0] == pytest.approx(factor**2)


def test_another_factor_may_be_quoted(copy: Path, command: Command) -> None:
    path = changed(copy, "toys = 1000", 'toys = 1000\nquote = "Z"')
    result = command("systematics", "--json", "--campaign", path)
    assert redone(result) == {"systematics"}
    table = table_of(result)
    assert (table["quoted"], table["s"]) == ("Z", table["factors"]["Z"]["s_quoted"])


# Propagation


def test_masses_move_by_what_is_known(finished: Path, command: Command) -> None:
    """dm_Z/dA = -0.912 MeV per 1e-5; dm_W/dA = -0.78 to -0.86 (few draws: some per cent)."""
    table = asked(command, finished, "propagate")
    assert set(table) == {"W", "Z"}
    campaign = Campaign(finished / "campaign.toml")
    slopes = {i.boson: 1e-5 * i.scale_sensitivity[:, 0].sum() for i in campaign.impacts()}
    assert slopes["Z"] == pytest.approx(-0.912, rel=0.03)
    assert -0.88 < slopes["W"] < -0.76
    for boson, impacts in table.items():
        assert impacts["luminosity"] == 16.8
        assert len(impacts["sources"]) == len(impacts["unprofiled"]) == len(impacts["constrained"]), boson
        assert impacts["unprofiled_total"] == pytest.approx(np.linalg.norm(impacts["unprofiled"]), rel=1e-9)
        assert impacts["constrained_total"] <= impacts["unprofiled_total"] * 1.0001
        assert 0.0 < impacts["statistical"] < impacts["total_error"]


def test_the_j_psi_row_is_the_scaled_calibration(finished: Path) -> None:
    """sqrt(S s^2 V S), by hand."""
    campaign = Campaign(finished / "campaign.toml")
    for impacts in campaign.impacts():
        row = impacts.scale_sensitivity.ravel()
        expected = np.sqrt(row @ campaign.systematic().covariance @ row)
        assert impacts.unprofiled[0] == pytest.approx(expected, rel=1e-6)


def test_another_luminosity_redoes_the_impacts_and_not_the_templates(copy: Path, command: Command) -> None:
    path = changed(copy, f"draws = {DRAWS}", f"draws = {DRAWS}\nluminosity = 1.0")
    before = {i.boson: i for i in Campaign(copy / "campaign.toml").impacts()}
    result = command("propagate", "--campaign", path)
    assert redone(result) == {"propagate/W", "propagate/Z"}
    for after in Campaign(path).impacts():
        old = before[after.boson]
        assert after.statistical == pytest.approx(old.statistical * np.sqrt(16.8), rel=0.02)
        np.testing.assert_allclose(after.unprofiled, old.unprofiled, rtol=1e-6)


def test_the_resolution_is_propagated_as_inflated_as_its_nuisances(copy: Path, command: Command) -> None:
    path = changed(copy, "toys = 1000", "toys = 1000\nresolution_inflation = 5.0")
    before = {i.boson: i for i in Campaign(copy / "campaign.toml").impacts()}
    command("propagate", "--campaign", path)
    for after in Campaign(path).impacts():
        old = before[after.boson]
        row = after.sources.index("resolution")
        assert after.unprofiled[row] == pytest.approx(0.5 * old.unprofiled[row], rel=1e-6)
        assert after.unprofiled[0] == pytest.approx(old.unprofiled[0], rel=1e-9)


# Joint fit


def test_samples_are_fitted_together_and_compared(finished: Path, command: Command) -> None:
    table = asked(command, finished, "joint")
    calibration = table["calibration"]
    assert len(calibration["A"]) == N_ETA
    assert np.shape(calibration["covariance"]) == (3 * N_ETA, 3 * N_ETA)
    text = command("joint", "--campaign", finished / "campaign.toml").stdout
    for line in (
        "joint fit of Jpsi + Y1S + Z even; kept for closure: Z odd",
        "Jpsi against the others",
        "Z odd against the fit",
    ):
        assert line in text


def test_together_they_find_the_truth_and_agree(finished: Path) -> None:
    """All corrections are those of muons as measured: what was applied before a fit and what it found add up.

    Too good an agreement would be wrong as well: samples that say what the calibration said before.
    """
    joint = Campaign(finished / "campaign.toml").joint()
    difference = joint.calibration.parameters - truth().parameters
    assert chi2_of(difference, joint.calibration.covariance).chi2 / len(difference) < 2.4
    assert chi2_of(truth().parameters, joint.calibration.covariance).chi2 / len(difference) > 15.0
    assert 1e-3 < joint.calibration.p_value < 0.999


def test_together_they_know_more_than_the_j_psi(finished: Path, command: Command) -> None:
    """Mean variance of dk/k of an eta bin at 40 GeV."""
    alone = Campaign(finished / "campaign.toml").calibration().covariance
    together = np.array(asked(command, finished, "joint")["calibration"]["covariance"])
    for charge in (1.0, -1.0):
        rows = np.kron(np.eye(N_ETA), [1.0, -1.0 / 40.0, charge * 40.0])
        assert np.trace(rows @ together @ rows.T) < 0.6 * np.trace(rows @ alone @ rows.T)


def test_what_is_used_and_what_is_kept_is_an_option(copy: Path, command: Command) -> None:
    path = changed(copy, "[systematics]", '[joint]\nuse = ["Jpsi", "Z"]\n[systematics]')
    result = command("joint", "--campaign", path)
    assert redone(result) == {"joint@0", "template/Z_joint@0_AM", "template/Y1S_joint@0_AM", "joint@1"}
    assert "joint fit of Jpsi + Z; kept for closure: Y1S" in result.stdout


# All stages


@pytest.mark.parametrize("stage", ["resolution", "systematics", "propagate", "joint"])
def test_a_finished_stage_has_nothing_to_do(finished: Path, command: Command, stage: str) -> None:
    assert "  0 done, " in command(stage, "--campaign", finished / "campaign.toml").stderr


@pytest.mark.parametrize(
    ("old", "new", "stage", "expected"),
    [
        ("toys = 1000", "toys = 1001", "systematics", {"systematics"}),
        ("toys = 1000", "toys = 1000\nresolution_inflation = 5.0", "systematics", {"systematics"}),
        ("[systematics]", "[gates]\nwidth_p_value = 1e-5\n[systematics]", "resolution", set()),
        (
            "[systematics]",
            "[resolution]\nsalt = 7\n[systematics]",
            "resolution",
            {f"{t}_smeared" for r in ("Jpsi", "Z", "Y1S") for t in (f"fill/{r}_simulation", f"resolution/width_{r}")},
        ),
        ("[systematics]", "[closure]\nphi_sectors = 8\n[systematics]", "systematics", set()),
    ],
)  # fmt: skip
def test_an_option_redoes_what_depends_on_it(
    copy: Path, command: Command, old: str, new: str, stage: str, expected: set[str]
) -> None:
    assert redone(command(stage, "--campaign", changed(copy, old, new))) == expected


def test_a_second_coefficient_of_the_resolution_may_be_fitted(copy: Path, command: Command) -> None:
    path = changed(copy, "[systematics]", "[resolution]\nfit_b = true\n[systematics]")
    table = table_of(command("resolution", "--json", "--campaign", path))
    assert table["simulation"]["parameter_order"] == "a, c, b of each eta bin"
    assert np.shape(table["simulation"]["covariance"]) == (3 * N_ETA, 3 * N_ETA)
    text = command("resolution", "--campaign", path).stdout
    assert "b/(1 + d/pT^2)" in text


@pytest.mark.parametrize(
    ("table", "stage", "message"),
    [
        ('[joint]\nuse = ["Jpsi", "Y2S"]\n', "joint", "joint.use: the campaign has no data of Y2S"),
        ('[resolution]\nresonances = ["Y2S"]\n', "resolution", "resolution: no data with a simulation of"),
        ('[systematics]\nresonances = ["Y2S"]\n', "systematics", "systematics: no data of any of Y2S"),
        (
            '[systematics]\nresonances = ["Z"]\nquote = "Y1S"\n',
            "systematics",
            "systematics.quote: 'Y1S' is neither",
        ),
    ],
)
def test_samples_that_are_not_there_are_refused_by_key(
    copy: Path, command: Command, table: str, stage: str, message: str
) -> None:
    path = copy / "campaign.toml"
    path.write_text(table + CAMPAIGN.replace("[systematics]\ntoys = 1000\n", ""))
    assert message in command(stage, "--campaign", path, code=2).stderr


def test_without_a_resolution_the_built_in_one_is_propagated(copy: Path, command: Command) -> None:
    """And its row is missing, as nothing is known about it."""
    path = changed(copy, "[systematics]", '[resolution]\nresonances = ["Y2S"]\n[systematics]')
    table = table_of(command("systematics", "--json", "--campaign", path))
    assert "resolution" not in table["nuisances"]
    impacts = table_of(command("propagate", "--json", "--campaign", path))
    assert not any("resolution" in source.lower() for source in impacts["W"]["sources"])


# Provenance of an export


def provenance(campaign: Campaign) -> dict[str, str]:
    """What an export would say."""
    found = campaign.export_task().options["provenance"]
    assert isinstance(found, dict)
    return found


def test_an_export_names_the_closures_that_set_s(finished: Path) -> None:
    found = provenance(Campaign(finished / "campaign.toml"))
    assert (found["resonances"], found["samples"]) == ("Jpsi", "jpsi_data, jpsi_mc")
    assert (found["closures"], found["closure_samples"]) == ("Y1S, Z", "y_data, y_mc, z_data, z_mc")
    assert "uncertainty" not in found
    assert "response" not in found


def test_only_the_quoted_closure_sets_s(copy: Path) -> None:
    path = changed(copy, "toys = 1000", 'toys = 1000\nquote = "Z"')
    found = provenance(Campaign(path))
    assert (found["closures"], found["closure_samples"]) == ("Z", "z_data, z_mc")


def test_an_export_that_is_not_scaled_names_no_closures(copy: Path) -> None:
    path = changed(copy, "[systematics]", "[export]\nscaled = false\n[systematics]")
    found = provenance(Campaign(path))
    assert "closures" not in found
    assert "closure_samples" not in found
    assert found["uncertainty"] == "not scaled: no closure set s"


def test_an_export_for_simulation_names_no_data(finished: Path) -> None:
    found = provenance(Campaign(finished / "campaign.toml", target="simulation"))
    assert found["corrects"] == "simulation, to its own truth"
    assert found["samples"] == "jpsi_mc"
    assert (found["closures"], found["closure_samples"]) == ("Y1S, Z", "y_mc, z_mc")
