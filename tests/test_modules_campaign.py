"""The stage modules: whole small campaigns from hits of a barrel, restarts, shared jobs, and bad input."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from pyarrow import compute, parquet

from musclecal import module_config
from musclecal.campaign import Campaign
from musclecal.config import load_campaign
from musclecal.demo import write_demo
from musclecal.events import read_dimuons
from musclecal.geometry.correction_file import read_corrections
from musclecal.geometry.detector import barrel_tracker
from musclecal.geometry.detector_files import write_detector
from musclecal.geometry.field import solenoid_map, write_field_map
from musclecal.geometry.hit_files import write_tracks
from musclecal.geometry.mass_target import log_target
from musclecal.geometry.misalignment import Misalignment, misaligned
from musclecal.geometry.modes import ModeWidths, Widths
from musclecal.geometry.module_fit import pass_cuts
from musclecal.geometry.momentum_bias import MomentumBias
from musclecal.geometry.refit import DEFAULT_CUTS
from musclecal.geometry.simulate import DetectorEffects, simulate_pairs, track_maker
from musclecal.module_report import bias_after_scale
from musclecal.records import DimuonEvents, MassConstraint, ModuleSums, Pairs, ScaleParameters
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings
from musclecal.store import load, save
from musclecal.tasks import Outcome, Task, run_tasks

Command = Callable[..., Result]

HEAD = """\
[campaign]
name = "small"
passes = 1
[binning]
eta_bins = 4
eta_max = 0.8
[resonances.Jpsi]
pt_edges = [4.0, 6.5, 40.0]
"""
MODULES = """\
[modules]
detector = "barrel"
misalignment_seed = 5
"""
GIVEN = "target = 3.0953\nsigma = 0.0155\nrobust = 3.0\npasses = 1\n"
SAMPLES = """
[samples.data]
resonance = "Jpsi"
kind = "data"
simulate_hits = { pairs = 1500, seed = 23 }
[samples.raw]
resonance = "Jpsi"
kind = "data"
module_corrections = false
simulate_hits = { pairs = 1500, seed = 23 }
[samples.mc]
resonance = "Jpsi"
kind = "simulation"
simulate_hits = { pairs = 1500, seed = 24 }
"""
MINE = '[samples.mine]\nresonance = "Jpsi"\nkind = "data"\nfiles = ["none.parquet"]\n'


def run(campaign: Campaign) -> Outcome:
    return run_tasks(campaign.tasks("modules"))


def events_of(path: Path) -> DimuonEvents:
    ((events, _),) = read_dimuons(path)
    return events


def hits(n: int, seed: int, **effects: Any) -> Pairs:
    """J/psi in a barrel that is off by the usual sizes."""
    detector = barrel_tracker()
    settings = SimulationSettings(resonance("Jpsi"), (3.5, 40.0), (-0.8, 0.8), (2.6, 3.5))
    maker = track_maker(detector, solenoid_map(), misaligned(detector, 5), DetectorEffects(**effects))
    (pairs,) = simulate_pairs(maker, settings, n, seed)
    return pairs


@pytest.fixture(scope="module")
def hit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one.parquet and two.parquet, 300 pairs each, and all.parquet with both."""
    folder = tmp_path_factory.mktemp("hits")
    pairs, detector = hits(600, 7), barrel_tracker()
    for name, which in (("one", slice(0, 300)), ("two", slice(300, 600)), ("all", slice(0, 600))):
        tracks = pairs.tracks.select(np.arange(2 * (which.start), 2 * which.stop))
        write_tracks(folder / f"{name}.parquet", [tracks], detector)
    return folder


def given_files(folder: Path, files: str, more: str = "", key: str = "hits") -> Path:
    """A campaign that fits the modules to files of hits, or of sums."""
    folder.mkdir(exist_ok=True)
    path = folder / "campaign.toml"
    given = GIVEN if key == "hits" else ""
    path.write_text(f"{HEAD}{MODULES}{given}{key} = {files}\n{more}\n{MINE}")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Three passes with 3000 simulated pairs, and three samples: the loose first one leaves much to the second."""
    path = tmp_path_factory.mktemp("modules") / "campaign.toml"
    fit = (
        "simulate = { pairs = 3000, seed = 21, background = 0.05, efficiency = 0.98, noise = 0.002 }\n"
        "reference = { simulate = { pairs = 2000, seed = 22 } }\nrobust = 3.0\npasses = 3\n"
    )
    path.write_text(HEAD + MODULES + fit + SAMPLES)
    campaign = Campaign(path)
    run(campaign)
    return campaign


# From hits to corrected muons


def test_the_global_fit_finds_what_is_wrong(finished: Campaign) -> None:
    found, truth = finished.module_corrections(), finished.module_truth()
    assert truth is not None
    before, after = finished.pass_summary(0), finished.pass_summary(2)
    assert before.chi2 / before.ndf > 1.2
    assert found.sigma_is == "exact"
    # Masses of the background, 5 % of the pairs, are far from the target: 1.038 with them, 1.014 of the signal alone
    assert 0.97 < found.chi2 / found.ndf < 1.06
    assert after.moved < 1.0 < before.moved
    pixels = (finished.module_model.kinds == 2).any(axis=1) & (found.uses > 50)
    left = (found.values - truth)[pixels, 0]
    assert np.std(left - left.mean()) < 0.5 * np.std(truth[pixels, 0])
    # Residuals of the units, without what moves all together.
    assert np.corrcoef(found.values[pixels, 0], truth[pixels, 0])[0, 1] > 0.8


def test_the_mass_is_that_after_radiation_in_the_window(finished: Campaign) -> None:
    """A little below the resonance, and as wide as its radiation, whatever the resolution is."""
    mass = load(finished.mass_task().output, MassConstraint)
    line = finished.config.resonance("Jpsi")
    assert mass.window == line.mass_window
    assert mass.robust == 3.0
    target = np.exp(log_target(mass, np.array([0.006])))
    assert line.line.mass - 0.010 < target < line.line.mass - 0.0005
    assert 0.005 < mass.sigma < 0.04


def test_the_table_holds_what_the_fit_found(finished: Campaign) -> None:
    folder = finished.output / "modules"
    table, _ = read_corrections(folder / "module_corrections.parquet")
    assert np.array_equal(table.values, finished.module_corrections().values)
    assert parquet.read_table(folder / "module_corrections.parquet").column_names == [
        "module", "type", "value", "sigma", "uses",
    ]  # fmt: skip
    assert (folder / "module_corrections.png").stat().st_size > 10_000


def test_corrected_muons_are_nearer_to_their_truth(finished: Campaign) -> None:
    """The same pairs with and without corrections: the difference is that of the biases of the two fits."""
    off = {}
    for name in ("data", "raw"):
        events = events_of(finished.output / "samples" / f"{name}.parquet")
        assert events.gen_plus is not None
        assert events.plus.pt_err is not None
        assert len(events) == 1500
        off[name] = events.plus.pt / events.gen_plus.pt - 1.0, events.plus.pt_err / events.plus.pt
    (corrected, error), (raw, _) = off["data"], off["raw"]
    assert np.std(raw - corrected) > 1e-3
    assert np.mean((corrected / error) ** 2) < 0.95 * np.mean((raw / error) ** 2)


def test_simulation_stays_as_it_is(finished: Campaign) -> None:
    """It is made in the nominal detector, and not corrected by default."""
    events = events_of(finished.output / "samples" / "mc.parquet")
    assert events.gen_plus is not None
    assert events.plus.pt_err is not None
    pull = (events.plus.pt - events.gen_plus.pt) / events.plus.pt_err
    middle = np.abs(pull) < 4.0
    assert np.std(pull[middle]) == pytest.approx(1.0, abs=0.1)
    assert not finished.config.samples["mc"].is_module_corrected


def test_samples_go_to_fill(finished: Campaign) -> None:
    run_tasks(finished.tasks("fill"))
    data, _ = finished.histograms("Jpsi", 0)
    assert set(data.cut_flows) == {"data", "raw"}
    assert 0 < data.n_events <= 3000


def test_nothing_is_done_twice_and_only_what_changed_again(finished: Campaign) -> None:
    again = Campaign(finished.path)
    assert run(again).done == ()
    (again.output / "modules" / "corrections@1.h5.manifest.json").unlink()
    assert run(again).done == ("modules/corrections@1",)
    (again.output / "samples" / "data.parquet").unlink()
    assert run(again).done == ("samples/data",)


def test_a_killed_run_goes_on_from_its_sums(hit_files: Path, tmp_path: Path) -> None:
    path = given_files(tmp_path, f'["{hit_files}/one.parquet", "{hit_files}/two.parquet"]')
    campaign = Campaign(path)
    run_tasks(campaign.sums_tasks(0)[:1])
    outcome = run(Campaign(path))
    assert "modules/sums_0_one" in outcome.skipped
    assert "modules/sums_0_two" in outcome.done
    path.write_text(path.read_text().replace("[samples", "[modules.widths]\nfield = 1e-3\n[samples"))
    outcome = run(Campaign(path))
    assert outcome.done == ("modules/corrections@0", "modules/module_corrections")


def test_sums_of_several_files_are_those_of_one(hit_files: Path, tmp_path: Path) -> None:
    found = []
    for name, files in (("a", f'["{hit_files}/one.parquet", "{hit_files}/two.parquet"]'),
                        ("b", f'["{hit_files}/all.parquet"]')):  # fmt: skip
        (tmp_path / name).mkdir()
        campaign = Campaign(given_files(tmp_path / name, files))
        run(campaign)
        found.append(campaign.module_corrections())
    assert found[0].n_pairs == found[1].n_pairs > 550
    assert found[0].values == pytest.approx(found[1].values, abs=1e-9)


def test_passes_end_when_nothing_moves(hit_files: Path, tmp_path: Path, command: Command) -> None:
    """The passes that are not needed repeat what was found, without sums; the first one has loose cuts."""
    path = given_files(tmp_path, f'["{hit_files}/all.parquet"]')
    path.write_text(path.read_text().replace("passes = 1\nhits", "passes = 4\nhits"))
    table = json.loads(command("modules", path, "--json").stdout)
    campaign = Campaign(path)
    moved = [campaign.pass_summary(n).moved for n in range(4)]
    last = table["passes"] - 1
    assert 1 <= last < 3
    assert moved[last] < 0.5
    assert all(one > 0.5 for one in moved[1:last])
    assert moved[last:] == [moved[last]] * (4 - last)
    for n in range(4):
        (sums,) = (load(task.output, ModuleSums) for task in campaign.sums_tasks(n))
        assert (sums.n_pairs > 500) == (n <= last)
    np.testing.assert_array_equal(
        campaign.module_corrections().values, campaign.module_corrections(last).values
    )
    first, second = (campaign.sums_tasks(n)[0].options["cuts"] for n in (0, 1))
    assert first == pass_cuts(DEFAULT_CUTS, 0, 4)._asdict() != second
    assert second == DEFAULT_CUTS._asdict()
    assert f"{last + 1} passes, the last one moved" in command("modules", path).stdout


def test_units_without_hits_keep_their_prior_and_are_named(tmp_path: Path, command: Command) -> None:
    pairs = hits(20, 8)
    write_tracks(tmp_path / "few.parquet", [pairs], barrel_tracker())
    path = given_files(tmp_path, '["few.parquet"]', "modes = false")
    result = command("modules", path)
    campaign = Campaign(path)
    found = campaign.module_corrections()
    empty = found.without_hits
    assert len(empty) > 100
    assert np.all(found.values[empty] == 0.0)
    assert np.allclose(found.sigma[empty], campaign.module_model.widths[empty])
    assert f"{len(empty)} units without hits keep their prior: {empty[0]} (" in result.stdout


def test_a_second_sample_without_mass_counts_with_its_weight(hit_files: Path, tmp_path: Path) -> None:
    files = f'["{hit_files}/one.parquet"]'
    free = f'[modules.free]\nhits = ["{hit_files}/two.parquet"]\nweight = %g'
    found = []
    for weight in (1e-9, 1.0, 50.0):
        path = given_files(tmp_path, files, free % weight)
        run(Campaign(path))
        found.append(Campaign(path).module_corrections())
    names = [path.name for path in (tmp_path / "out" / "modules").glob("sums*.h5")]
    assert sorted(names) == ["sums_0_free_two.h5", "sums_0_one.h5"]
    # The sums that other jobs have made count with the same weight
    travelled = tmp_path / "travelled"
    shutil.copytree(tmp_path / "out" / "modules", travelled)
    of_sums = f'[modules.free]\nsums = ["{travelled}/sums_0_free_two.h5"]\nweight = 50.0'
    merging = given_files(tmp_path / "merging", f'["{travelled}/sums_0_one.h5"]', of_sums, "sums")
    run(Campaign(merging))
    np.testing.assert_array_equal(Campaign(merging).module_corrections().values, found[-1].values)
    alone = Campaign(given_files(tmp_path, files))
    run(alone)
    used = alone.module_corrections().uses > 0
    assert found[0].values[used] == pytest.approx(alone.module_corrections().values[used], abs=1e-7)
    sigma = [float(np.mean(c.sigma[used, 0])) for c in found]
    assert sigma[2] < sigma[1] < sigma[0]


def test_the_mass_of_the_second_sample_is_free(hit_files: Path, tmp_path: Path) -> None:
    """Its pairs are used whatever their mass is: here they are the same as in the first sample."""
    file = f'"{hit_files}/one.parquet"'
    shutil.copy(hit_files / "one.parquet", tmp_path / "same.parquet")
    more = 'mass_window = [3.06, 3.13]\n[modules.free]\nhits = ["same.parquet"]'
    campaign = Campaign(given_files(tmp_path, f"[{file}]", more))
    of_mass, free = (load(task.output, ModuleSums) for task in campaign_sums(campaign))
    assert free.n_pairs > 280
    assert 150 < of_mass.n_pairs < 0.95 * free.n_pairs


def campaign_sums(campaign: Campaign) -> tuple[Task, ...]:
    tasks = campaign.sums_tasks(0)
    run_tasks(tasks)
    return tasks


# The command


def test_jobs_share_the_sums(hit_files: Path, tmp_path: Path, command: Command) -> None:
    path = given_files(tmp_path, f'["{hit_files}/one.parquet", "{hit_files}/two.parquet"]')
    made = command("modules", path, "--only-sums", hit_files / "two.parquet", "--json")
    (file,) = json.loads(made.stdout)["sums"]
    assert Path(file).name == "sums_0_two.h5"
    result = command("modules", path, "--json")
    assert "modules/sums_0_two           up to date" in result.stderr
    table = json.loads(result.stdout)
    assert table["pairs"] > 550
    assert table["chi2_after"] < table["chi2_before"]
    assert len(table["modes"]) == 10
    # The sums alone, as made by jobs elsewhere.
    (tmp_path / "else").mkdir()
    other = tmp_path / "else" / "campaign.toml"
    other.write_text(f'{HEAD}{MODULES}sums = ["../out/modules/sums_0_*.h5"]\n{MINE}')
    travelled = json.loads(command("modules", other, "--json").stdout)
    assert travelled["largest"] == table["largest"]
    assert travelled["passes"] == 1
    assert "target 3.0953 sigma 0.0155 GeV" in travelled["mass_of_sums"]
    assert "mass in the sums: target 3.0953" in command("modules", other).stdout


def test_targets_that_differ_by_their_error_alone_are_the_same(hit_files: Path, tmp_path: Path) -> None:
    """What --json tells of a target, given to another job, makes sums that can be merged."""
    for name, more in (("one", ""), ("two", "error = 2e-4")):
        path = given_files(tmp_path / name, f'["{hit_files}/{name}.parquet"]', more)
        run_tasks(Campaign(path).sums_tasks(0))
    both = given_files(tmp_path / "both", '["../*/out/modules/sums_0_*.h5"]', key="sums")
    run(Campaign(both))
    assert Campaign(both).module_corrections().n_pairs > 550


def test_sums_in_another_role_are_refused(hit_files: Path, tmp_path: Path, command: Command) -> None:
    path = given_files(tmp_path / "job", f'["{hit_files}/one.parquet"]')
    run_tasks(Campaign(path).sums_tasks(0))
    sums = '["../job/out/modules/sums_0_one.h5"]'
    without = given_files(tmp_path / "without", sums, "mass = false", "sums")
    refused(command, without.parent, "the mass of its pairs is measured, it should be free", without)
    shutil.copy(tmp_path / "job" / "out" / "modules" / "sums_0_one.h5", tmp_path / "job" / "copy.h5")
    free = given_files(tmp_path / "free", sums, '[modules.free]\nsums = ["../job/copy.h5"]', "sums")
    refused(command, free.parent, "copy.h5: the mass of its pairs is measured, it should be free", free)
    job = given_files(tmp_path / "left", f'["{hit_files}/one.parquet"]', "mass = false")
    run_tasks(Campaign(job).sums_tasks(0))
    with_mass = given_files(tmp_path / "with", '["../left/out/modules/sums_0_one.h5"]', key="sums")
    refused(command, with_mass.parent, "the mass of its pairs is free, it should be measured", with_mass)


def test_a_fit_that_is_far_from_what_is_expected_is_told(
    hit_files: Path, tmp_path: Path, command: Command
) -> None:
    path = given_files(tmp_path, f'["{hit_files}/all.parquet"]')
    path.write_text(path.read_text().replace("target = 3.0953", "target = 3.25"))
    assert re.search(
        r"far from what the prior expects: .*field.* by \d+\.\d widths", command("modules", path).stdout
    )
    path.write_text(path.read_text() + "[gates]\nmodule_chi2_per_ndf = [1.5, 2.0]\n")
    result = command("modules", path, code=3)
    assert "chi2/ndf of the tracks in the fit of modules" in result.stderr


def test_the_summary_says_what_was_found(finished: Campaign, command: Command) -> None:
    text = command("modules", finished.path).stdout
    for words in ("416 of 416 units used", "3 passes", "iterations", "most significant modes", "largest corrections",
                  "all units have hits", "after modules"):  # fmt: skip
        assert words in text
    table = json.loads(command("modules", finished.path, "--json").stdout)
    rms = {name: np.std(of["even"]) + abs(np.mean(of["even"])) for name, of in table["bias"].items()}
    assert rms["after modules"] < rms["before"]
    assert table["samples"]["data"]["corrected"] is True
    assert table["samples"]["mc"]["corrected"] is False


def test_bias_left_after_a_calibration_of_the_muons() -> None:
    """k_corr = (1 + A - e k) k + q M takes off the bias that asks for it: both charges, with the right signs."""
    edges, pt = np.array([-1.0, 0.0, 1.0]), 10.0
    scale = ScaleParameters(edges, np.array([1e-3, -2e-3]), np.array([4e-3, 2e-3]), np.array([3e-5, -1e-5]))
    k = 1.0 / pt
    measured = {}
    for q in (1.0, -1.0):
        wanted = k
        measured[q] = [
            float(np.roots([-e, 1.0 + a, q * m - wanted])[np.argmin(
                np.abs(np.roots([-e, 1.0 + a, q * m - wanted]) - k))].real)
            for a, e, m in zip(scale.A, scale.e, scale.M, strict=True)
        ]  # fmt: skip
    plus, minus = (np.array(measured[q]) / k - 1.0 for q in (1.0, -1.0))
    bias = MomentumBias(pt, np.array([-0.5, 0.5]), 0.5 * (plus + minus), 0.5 * (plus - minus))
    left = bias_after_scale(bias, scale)
    assert np.abs(left.even).max() < 0.01 * np.abs(bias.even).max()
    assert np.abs(left.odd).max() < 0.01 * np.abs(bias.odd).max()


# What the campaign file may say


def test_names_of_the_tables_are_those_of_the_geometry() -> None:
    for known, record in (
        (module_config.WidthName, Widths),
        (module_config.ModeWidthName, ModeWidths),
        (module_config.MisalignmentName, Misalignment),
    ):
        assert set(get_args(known)) == {item.name for item in fields(record)}


def test_the_demonstration_with_modules_can_be_read(tmp_path: Path) -> None:
    config = load_campaign(write_demo(tmp_path, with_modules=True))
    assert config.modules is not None
    assert config.modules.detector == "barrel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": '"toy"'}, "detector: 'toy' is neither cms nor barrel"),
        ({"detector": '"no.parquet"'}, "no.parquet: "),
        ({"field": '"uniform"'}, "field: 'uniform' is neither solenoid"),
        ({"field": '"no.json"'}, "no.json: cannot be read"),
        ({"colour": "1"}, "modules.colour: unknown key"),
        ({"widths": "{ pixels = 1.0 }"}, "modules.widths.pixels"),
        ({"widths": "{ pixel_u = -1.0 }"}, "modules.widths.pixel_u: Input should be greater"),
        ({"mode_widths": "{ twisting = 1.0 }"}, "modules.mode_widths.twisting"),
        ({"misalignment": "{ twisting = 1.0 }"}, "modules.misalignment.twisting"),
        ({"modes": "false", "mode_widths": "{ layer = 1.0 }"}, "mode_widths: there are none"),
        ({"hits": '["nothing_*.parquet"]'}, "modules.hits: "),
        ({"simulate": "{ pairs = 10, seed = 1 }"}, "give one of hits, a simulate table, or sums"),
        ({"target": None}, "target and sigma go together"),
        ({"target": None, "sigma": None}, "the mass needs a reference"),
        ({"mass_window": "[3.2, 2.9]"}, "mass_window: must increase"),
        ({"free": '{ hits = ["gone.parquet"] }'}, "modules.free.hits: "),
        ({"free": '{ sums = ["gone.h5"] }'}, "free: give sums of it if, and only if"),
        ({"hits": None, "sums": '["gone.h5"]', "free": '{ hits = ["gone.parquet"] }', "target": None, "sigma": None,
          "passes": None}, "free: give sums of it if"),
        ({"free": '{ sums = ["gone.h5"], hits = ["gone.parquet"] }'}, "free: give one of hits, simulate, sums"),
        ({"free": '{ hits = ["gone.parquet"], weight = 0.0 }'}, "modules.free.weight"),
        ({"target": None, "sigma": None, "reference": "{ pairs = 3 }"}, "modules.reference.pairs: unknown key"),
        ({"robust": "nan"}, "modules.robust"),
        ({"target": None, "sigma": None, "growth": "[0.1, 5.0]"}, "growth: belongs to target"),
        ({"target": None, "sigma": None, "error": "1e-5"}, "error: belongs to target"),
        ({"hits": None, "sums": '["gone.h5"]'}, "passes: the sums were made with their own"),
        ({"start": '"gone.parquet"'}, "modules.start: "),
        ({"widths": "{ pixel_u = 0, pixel_v = 0, strip_u = 0, field = 0, material = 0 }", "modes": "false"},
         "no parameter is fitted"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named(
    hit_files: Path, tmp_path: Path, command: Command, change: dict[str, str | None], message: str
) -> None:
    keys: dict[str, str | None] = {
        "detector": '"barrel"', "target": "3.0953", "sigma": "0.0155", "passes": "1",
        "hits": f'["{hit_files}/one.parquet"]',
    }  # fmt: skip
    lines = [f"{key} = {value}" for key, value in (keys | change).items() if value is not None]
    path = tmp_path / "campaign.toml"
    path.write_text(HEAD + "[modules]\n" + "\n".join(lines) + "\n" + MINE)
    refused(command, tmp_path, message, path)


def refused(command: Command, folder: Path, message: str, *arguments: Any) -> None:
    """Exit code 2 with one line, and nothing half-written."""
    result = command("modules", *arguments, code=2)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("  ")]
    assert message in line, line
    left = [p.name for p in folder.rglob("*") if p.name.startswith(".") or p.name.startswith("module_corr")]
    assert left == []


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ('hits = ["x.parquet"]\ncolumns = { pt1 = "a" }', "columns: belong to files of muons"),
        ('files = ["x.parquet"]\nhits = ["y.parquet"]', "give one of files, hits"),
        ('files = ["x.parquet"]\nmodule_corrections = true', "only muons from hits can be corrected"),
        ('hits = ["gone.parquet"]', "samples.mine.hits: "),
    ],
)
def test_a_wrong_sample_is_named(
    hit_files: Path, tmp_path: Path, command: Command, samples: str, message: str
) -> None:
    path = given_files(tmp_path, f'["{hit_files}/one.parquet"]')
    path.write_text(path.read_text().replace('files = ["none.parquet"]', samples))
    refused(command, tmp_path, message, path)


def test_a_campaign_without_modules_says_so(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "campaign.toml"
    path.write_text(HEAD + MINE)
    refused(command, tmp_path, "the table [modules] is missing", path)
    path.write_text(HEAD + MINE.replace("files", "hits"))
    refused(command, tmp_path, "samples.mine: hits need a table [modules]", path)


def spoiled_hits(source: Path, target: Path, what: str) -> None:
    """A copy of hits with modules that there are not, lengths in mm, for another detector, or with tracks of an event
    that stand apart or alone."""
    table = parquet.read_table(source)
    metadata = dict(table.schema.metadata)
    if what == "module":
        lists = table["module"].to_pylist()
        lists[4][2] = 99_999
        table = table.set_column(
            table.column_names.index("module"), "module", pa.array(lists, pa.list_(pa.int32()))
        )
    elif what == "mm":
        for name in ("u", "v", "sigma_u", "sigma_v"):
            lists = [[10.0 * x for x in row] for row in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(lists))
    elif what == "other":
        metadata = {b"musclecal hits": metadata[b"musclecal hits"].replace(b"barrel", b"endcap")}
    elif what == "charge":
        flipped = compute.negate(table["charge"])
        table = table.set_column(table.column_names.index("charge"), "charge", flipped)
    elif what == "apart":
        table = table.take([*range(0, len(table), 2), *range(1, len(table), 2)])
    else:
        table = table.filter(compute.equal(table["charge"], 1))
    parquet.write_table(table.replace_schema_metadata(metadata), target)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("module", "no module 99999 in 'barrel'"),
        ("mm", "are lengths in the unit stated"),
        ("other", "hits of the detector 'endcap', not of 'barrel'"),
        ("charge", "bend against the charges of their muons: check the column 'charge'"),
        ("single", "bad.parquet: no event with exactly two tracks of opposite charge, of 300 read"),
        ("apart", "bad.parquet: event 0 comes back after other events"),
    ],
)
def test_wrong_hits_are_refused(
    hit_files: Path, tmp_path: Path, command: Command, what: str, message: str
) -> None:
    spoiled_hits(hit_files / "one.parquet", tmp_path / "bad.parquet", what)
    path = given_files(tmp_path, f'["bad.parquet", "{hit_files}/two.parquet"]')
    refused(command, tmp_path, message, path)
    assert not list(tmp_path.rglob("sums_0_bad*"))


def test_combinations_that_nothing_fixes_are_named(hit_files: Path, tmp_path: Path, command: Command) -> None:
    free = "mass = false\nmodes = false\n[modules.widths]\n" + "".join(
        f"{name} = inf\n" for name in ("pixel_u", "pixel_v", "strip_u", "field")
    )
    path = given_files(tmp_path, f'["{hit_files}/all.parquet"]', free)
    refused(command, tmp_path, "not fixed", path)
    result = command("modules", path, code=2)
    assert re.search(r"[+-]0\.\d\d (u|v|u_stereo|field|material) of module \d+ \([A-Z]+", result.stderr)


def test_a_damaged_file_of_sums_is_refused_and_mended(
    hit_files: Path, tmp_path: Path, command: Command
) -> None:
    path = given_files(tmp_path, f'["{hit_files}/one.parquet"]')
    command("modules", path, "--only-sums", hit_files / "one.parquet")
    file = tmp_path / "out" / "modules" / "sums_0_one.h5"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "sums.h5").write_bytes(content)
    other = tmp_path / "else" / "campaign.toml"
    other.write_text(f'{HEAD}{MODULES}sums = ["sums.h5"]\n{MINE}')
    refused(command, tmp_path / "else", "sums.h5: damaged", other)
    # In the folder of the campaign its manifest tells, and it is made again.
    file.write_bytes(content)
    assert "modules/sums_0_one           ..." in command("modules", path).stderr


def test_sums_of_another_detector_or_point_are_refused(
    hit_files: Path, tmp_path: Path, command: Command
) -> None:
    path = given_files(tmp_path, f'["{hit_files}/one.parquet", "{hit_files}/two.parquet"]')
    command(
        "modules", path, "--only-sums", hit_files / "one.parquet", "--only-sums", hit_files / "two.parquet"
    )
    one, two = (tmp_path / "out" / "modules" / f"sums_0_{name}.h5" for name in ("one", "two"))
    sums = load(two, ModuleSums)
    (tmp_path / "else").mkdir()
    other = tmp_path / "else" / "campaign.toml"
    other.write_text(f'{HEAD}{MODULES}sums = ["{one}", "two.h5"]\n{MINE}')
    save(tmp_path / "else" / "two.h5", replace(sums, values=sums.values + 1e-4))
    refused(command, tmp_path / "else", "fitted at different module parameters", other)
    save(tmp_path / "else" / "two.h5", replace(sums, detector="barrel 0123"))
    refused(command, tmp_path / "else", "two.h5: sums of the detector 'barrel 0123'", other)


def test_sums_that_do_not_belong_together_are_refused(
    hit_files: Path, tmp_path: Path, command: Command
) -> None:
    """Other cuts, another target, another field, the same pairs twice: nothing in the numbers would tell."""
    path = given_files(tmp_path, f'["{hit_files}/one.parquet", "{hit_files}/two.parquet"]')
    run_tasks(Campaign(path).sums_tasks(0))
    one, two = (tmp_path / "out" / "modules" / f"sums_0_{name}.h5" for name in ("one", "two"))
    sums = load(two, ModuleSums)
    assert sums.n_read == 300 > sums.n_pairs
    (tmp_path / "else").mkdir()
    other = tmp_path / "else" / "campaign.toml"
    other.write_text(f'{HEAD}{MODULES}sums = ["{one}", "two.h5"]\n{MINE}')
    for wrong, message in (
        (replace(sums, cuts="gradient 100"), "other cuts"),
        (replace(sums, mass=sums.mass.replace("3.0953", "3.2")), "other masses"),
        (load(one, ModuleSums), "pairs would count twice"),
    ):
        save(tmp_path / "else" / "two.h5", wrong)
        refused(command, tmp_path / "else", message, other)
    field = solenoid_map()
    stronger = replace(field, table=1.01 * field.table)
    write_field_map(tmp_path / "else" / "field.json", stronger)
    save(tmp_path / "else" / "two.h5", sums)
    other.write_text(f'{HEAD}{MODULES}field = "field.json"\nsums = ["{one}", "two.h5"]\n{MINE}')
    refused(command, tmp_path / "else", "sums of the detector", other)


def test_files_that_would_count_twice_are_refused(hit_files: Path, tmp_path: Path, command: Command) -> None:
    one = f'"{hit_files}/one.parquet"'
    path = given_files(tmp_path, f"[{one}]", f"[modules.free]\nhits = [{one}]")
    refused(command, tmp_path, "stands there twice", path)
    path = given_files(tmp_path, f"[{one}]", f"reference = {{ hits = [{one}] }}")
    path.write_text(path.read_text().replace("target = 3.0953\nsigma = 0.0155\n", ""))
    refused(command, tmp_path, "is among the data", path)


def test_jobs_elsewhere_can_sum_again(hit_files: Path, tmp_path: Path, command: Command) -> None:
    """First sums have loose cuts, which is said; those that start at what they gave are as good as a second pass."""
    whole = given_files(tmp_path, f'["{hit_files}/all.parquet"]')
    whole.write_text(whole.read_text().replace("passes = 1\nhits", "passes = 2\nhits"))
    run(Campaign(whole))
    expected = Campaign(whole).module_corrections()
    here = tmp_path / "merged"
    here.mkdir()
    central = here / "campaign.toml"
    central.write_text(f'{HEAD}{MODULES}sums = ["../out/modules/sums_0_all.h5"]\n{MINE}')
    first = command("modules", central)
    assert "not settled" in first.stdout
    job = tmp_path / "job"
    job.mkdir()
    again = given_files(job, f'["{hit_files}/all.parquet"]')
    again.write_text(
        again.read_text().replace(
            "hits =", 'start = "../merged/out/modules/module_corrections.parquet"\nhits ='
        )
    )
    command("modules", again, "--only-sums", hit_files / "all.parquet")
    central.write_text(f'{HEAD}{MODULES}sums = ["../job/out/modules/sums_0_all.h5"]\n{MINE}')
    command("modules", central)
    found = Campaign(central).module_corrections()
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-9)


def test_a_nominal_detector_is_fitted_twice(tmp_path: Path) -> None:
    """The first pass moves little there, but its cuts are loose: in the sums, not only in what is written of them."""
    detector = barrel_tracker()
    settings = SimulationSettings(resonance("Jpsi"), (3.5, 40.0), (-0.8, 0.8), (2.6, 3.5))
    maker = track_maker(detector, solenoid_map(), None, DetectorEffects(noise=0.05))
    write_tracks(tmp_path / "nominal.parquet", simulate_pairs(maker, settings, 400, 3), detector)
    path = given_files(tmp_path, '["nominal.parquet"]', "[modules.widths]\nfield = 0\npixel_u = 1.0")
    text = path.read_text().replace("passes = 1\nhits", "passes = 3\nhits")
    path.write_text(
        text.replace("pixel_u = 1.0", "pixel_u = 1.0\npixel_v = 1.0\nstrip_u = 1.0\nmaterial = 0")
    )
    campaign = Campaign(path)
    run(campaign)
    assert campaign.pass_summary(0).moved < 0.5
    assert campaign.pass_summary(2).passes == 2
    loose, usual = (load(campaign.sums_tasks(n)[0].output, ModuleSums) for n in (0, 1))
    assert loose.n_pairs > usual.n_pairs
    assert loose.chi2 / loose.ndf > 1.2 * usual.chi2 / usual.ndf


def test_few_pairs_of_many_end_with_code_3(hit_files: Path, tmp_path: Path, command: Command) -> None:
    path = given_files(tmp_path, f'["{hit_files}/one.parquet"]', "mass_window = [3.0960, 3.0965]")
    assert "pairs in the fit of modules" in command("modules", path, code=3).stderr


def test_background_of_the_reference_counts(tmp_path: Path) -> None:
    """It is in the data too, and moves the mean mass."""
    found = []
    for background in (0.0, 0.4):
        folder = tmp_path / str(background)
        folder.mkdir()
        path = given_files(
            folder,
            "[]",
            f"reference = {{ simulate = {{ pairs = 2000, seed = 4, background = {background} }} }}",
        )
        text = path.read_text().replace("target = 3.0953\nsigma = 0.0155\nrobust = 3.0\n", "robust = inf\n")
        path.write_text(text.replace("hits = []", "simulate = { pairs = 10, seed = 1 }"))
        campaign = Campaign(path)
        task = campaign.mass_task()
        run_tasks([task])
        found.append(load(task.output, MassConstraint))
    assert found[1].sigma > 1.5 * found[0].sigma
    assert found[0].robust == found[1].robust == np.inf


def test_events_without_a_pair_are_told(hit_files: Path, tmp_path: Path, command: Command) -> None:
    """Every third event of a file has one track."""
    table = parquet.read_table(hit_files / "all.parquet")
    keep = [event % 3 > 0 or charge > 0 for event, charge in zip(
        table["event"].to_pylist(), table["charge"].to_pylist(), strict=True)]  # fmt: skip
    parquet.write_table(table.filter(pa.array(keep)), tmp_path / "some.parquet")
    path = given_files(tmp_path, '["some.parquet"]')
    found = json.loads(command("modules", path, "--json").stdout)
    assert (found["pairs_read"], found["events_read"]) == (400, 600)
    assert f"{found['pairs']} of 400 pairs, of 600 events read" in command("modules", path).stdout


def test_a_fit_starts_at_one_file(hit_files: Path, tmp_path: Path, command: Command) -> None:
    for name in ("start_1.parquet", "start_2.parquet"):
        (tmp_path / name).touch()
    path = given_files(tmp_path, f'["{hit_files}/one.parquet"]', 'start = "start_*.parquet"')
    refused(command, tmp_path, "modules.start: start_*.parquet matches 2 files, it must be one", path)
    (tmp_path / "start_2.parquet").unlink()
    shutil.copy(hit_files / "one.parquet", tmp_path / "start_1.parquet")
    refused(command, tmp_path, "start_1.parquet: no column 'sigma', not a file of module corrections", path)


def test_only_sums_takes_files_of_the_campaign(hit_files: Path, tmp_path: Path, command: Command) -> None:
    path = given_files(tmp_path, f'["{hit_files}/one.parquet"]')
    refused(command, tmp_path, "not one of the files of hits", path, "--only-sums", hit_files / "two.parquet")
    refused(command, tmp_path, "--pass: belongs to --only-sums", path, "--pass", "1")
    one = ("--only-sums", hit_files / "one.parquet")
    refused(command, tmp_path, "has passes 0 to 0", path, *one, "--pass", "1")


def test_a_reference_without_truth_is_refused(hit_files: Path, tmp_path: Path, command: Command) -> None:
    table = parquet.read_table(hit_files / "one.parquet").drop_columns(["truth"])
    parquet.write_table(table, tmp_path / "data.parquet")
    path = given_files(tmp_path, f'["{hit_files}/one.parquet"]', 'reference = { hits = ["data.parquet"] }')
    path.write_text(path.read_text().replace("target = 3.0953\nsigma = 0.0155\n", ""))
    refused(command, tmp_path, "modules.reference: ", path)


def test_a_detector_of_ones_own(hit_files: Path, tmp_path: Path, command: Command) -> None:
    write_detector(tmp_path / "mine.parquet", barrel_tracker())
    path = given_files(tmp_path, f'["{hit_files}/one.parquet"]')
    path.write_text(path.read_text().replace('"barrel"', '"mine.parquet"'))
    assert json.loads(command("modules", path, "--json").stdout)["units"] == 416


@pytest.mark.long
@pytest.mark.slow
def test_the_muons_are_calibrated_after_the_modules(tmp_path: Path, command: Command) -> None:
    """Hits to A, e, M: modules take off most of the bias, the calibration does not make it worse."""
    path = write_demo(tmp_path, with_modules=True)
    text = path.read_text()
    for written, fewer in (("200_000", "40_000"), ("300_000", "60_000"), ("eta_bins = 8", "eta_bins = 4"),
                           ("[4.0, 5.5, 8.5, 40.0]", "[4.0, 7.0, 40.0]")):  # fmt: skip
        assert written in text
        text = text.replace(written, fewer)
    path.write_text(text)
    report = command("run", path).stdout
    lines = [
        line.rsplit(maxsplit=3) for line in report.splitlines() if line.endswith(" e-5") and "  " in line
    ]
    bias = {name.strip(): (float(even), float(odd)) for name, even, odd, _ in lines}
    assert set(bias) == {"before", "after modules", "after A, e, M"}
    assert bias["after modules"][0] < 0.4 * bias["before"][0]
    assert bias["after modules"][1] < 0.5 * bias["before"][1]
    assert bias["after A, e, M"][0] < 0.4 * bias["before"][0]
