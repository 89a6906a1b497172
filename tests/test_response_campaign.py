"""export.response of a small campaign: from the simulated sample to weights, with and without this package."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import musclecal
from musclecal.campaign import Campaign
from musclecal.event_writer import write_dimuons
from musclecal.events import read_dimuons
from musclecal.export import load_response, read_tables
from musclecal.export.manifest import MANIFEST
from musclecal.export.validate import validate_folder
from musclecal.fits.response import fit_response
from musclecal.records import DimuonEvents, Floats, ScaleParameters
from musclecal.samples import write_scale
from musclecal.weights import variation_weights, weight_derivatives

Command = Callable[..., Result]
PAGE = Path(__file__).parents[1] / "docs" / "weights.md"

CAMPAIGN = """\
[campaign]
name = "weights"
passes = 1
[binning]
eta_bins = 4
[resonances.Jpsi]
pt_edges = [4, 6, 40]
[export]
response = "mc_z"
formats = ["npz", "json"]
[samples.data]
resonance = "Jpsi"
kind = "data"
simulate = {events = 40_000, seed = 1, truth = "truth.json"}
[samples.mc]
resonance = "Jpsi"
kind = "simulation"
simulate = {events = 160_000, seed = 2}
[samples.mc_z]
resonance = "Z"
kind = "simulation"
simulate = {events = 120_000, seed = 3}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("response")
    edges, one = np.linspace(-2.4, 2.4, 5), np.ones(4)
    write_scale(folder / "truth.json", ScaleParameters(edges, 1e-3 * one, 3e-3 * one, 2e-5 * one))
    (folder / "campaign.toml").write_text(CAMPAIGN)
    command("export", "--campaign", folder / "campaign.toml")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def changed(folder: Path, old: str, new: str) -> Path:
    path = folder / "campaign.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return path


def redone(result: Result) -> set[str]:
    return {line.split()[0] for line in result.stderr.splitlines() if line.endswith("...")}


def sample(folder: Path) -> DimuonEvents:
    """The events that the response is fitted to, read and selected by hand."""
    path = folder / "out" / "samples" / "mc_z.parquet"
    ((events, _),) = read_dimuons([path], chunk_events=10**7)
    inside = [(m.eta >= -2.4) & (m.eta < 2.4) for m in (events.plus, events.minus)]
    return events.select(inside[0] & inside[1])


def muons(folder: Path, n: int = 3000) -> dict[str, Any]:
    """mu+ and mu- of the first events, and some that get no weight."""
    events = sample(folder)
    assert events.gen_plus is not None
    assert events.gen_minus is not None
    both = ((events.plus, events.gen_plus, 1.0), (events.minus, events.gen_minus, -1.0))
    columns: dict[str, Floats] = {
        "pt": np.concatenate([m.pt[:n] for m, _, _ in both]),
        "eta": np.concatenate([m.eta[:n] for m, _, _ in both]),
        "phi": np.concatenate([m.phi[:n] for m, _, _ in both]),
        "charge": np.repeat([1.0, -1.0], n),
        "gen_pt": np.concatenate([g.pt[:n] for _, g, _ in both]),
    }
    for i, (name, value) in enumerate(
        [
            (name, value)
            for name in ("pt", "eta", "charge", "gen_pt")
            for value in (np.nan, np.inf, -np.inf, 0.0, 500.0)
        ]
    ):
        columns[name][7 * i] = value
    return columns


def test_the_exported_response_is_that_of_the_library(finished: Path) -> None:
    found = load_response(finished / "out" / "export" / "response.npz")
    np.testing.assert_allclose(found.eta_edges, np.linspace(-2.4, 2.4, 13), atol=1e-14)
    ratio = found.pt_edges[1:] / found.pt_edges[:-1]
    assert 1.09 < ratio.min() <= ratio.max() < 1.3
    assert found.n_muons.min() >= 200
    expected = fit_response([sample(finished)], found.eta_edges, found.pt_edges)
    for name in ("location", "width", "log_density", "slope", "n_muons"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    # The cells stay away from where the muons were cut.
    low = min(sample(finished).plus.pt.min(), sample(finished).minus.pt.min())
    assert 1.1 * low <= found.pt_edges[0] < 1.3 * low


def test_the_folder_with_it_is_valid_and_says_so(finished: Path, command: Command) -> None:
    folder = finished / "out" / "export"
    assert validate_folder(folder)[-1].startswith("response.npz: 12 eta x ")
    assert "response.npz: " in command("validate", folder).stdout
    manifest = json.loads((folder / MANIFEST).read_text())
    assert "response.npz" in manifest["files"]
    assert manifest["provenance"]["response"] == "mc_z"
    table = json.loads(command("export", "--json", "--campaign", finished / "campaign.toml").stdout)
    assert str(folder / "response.npz") in table["files"]


def test_loaded_weights_are_those_of_the_library(finished: Path) -> None:
    folder, columns = finished / "out" / "export", muons(finished)
    correction = musclecal.load(folder)
    found = correction.weights(**columns)
    of_library = {name: column for name, column in columns.items() if name != "phi"}
    response = load_response(folder / "response.npz")
    expected = variation_weights(response, read_tables(folder), **of_library)
    np.testing.assert_array_equal(found, expected)
    assert np.all(np.isfinite(found))
    assert np.mean(np.any(found != 0.0, axis=1)) > 0.5
    last = correction.variation_names[-1]
    np.testing.assert_array_equal(correction.weights(**columns, names=[last]), expected[:, -1:])


def test_weights_change_no_yield_of_the_sample(finished: Path) -> None:
    """Muons of all momenta; the mean of d ln w/dA is 0 up to what has no weight beyond the last cells."""
    response, events = load_response(finished / "out" / "export" / "response.npz"), sample(finished)
    for m, g, q in ((events.plus, events.gen_plus, 1), (events.minus, events.gen_minus, -1)):
        assert g is not None
        derivative = weight_derivatives(response, m.pt, g.eta, q, g.pt)
        assert abs(derivative[:, 0].mean()) < 0.02 * derivative[:, 0].std()
        assert derivative[:, 0].std() > 50.0


def test_the_page_of_the_weights(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of docs/weights.md in an export folder: the archives alone give the same to 1e-12."""
    if not PAGE.is_file():
        pytest.skip("the documentation is not beside these tests")
    folder = Path(shutil.copytree(finished / "out" / "export", tmp_path / "export"))
    write_dimuons(folder / "sample.parquet", [sample(finished)])
    monkeypatch.chdir(folder)
    names: dict[str, Any] = muons(finished)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, names)
    expected = names["dlnw"]
    assert expected.shape == (6000, 12)
    scale = np.abs(expected).max(axis=0)
    assert np.all(scale > 0.0)
    np.testing.assert_allclose(names["by_hand"] / scale, expected / scale, rtol=0.0, atol=1e-12)
    np.testing.assert_array_equal(names["by_hand"] == 0.0, expected == 0.0)
    np.testing.assert_array_equal(names["some"], expected[:, :2])
    np.testing.assert_allclose(names["dlnw_library"], expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(names["up"] + names["down"], np.full((6000, 12), 2.0) + 0.0 * expected)


def test_a_finished_response_is_not_fitted_again(finished: Path, copy: Path, command: Command) -> None:
    assert redone(command("export", "--campaign", finished / "campaign.toml")) == set()
    path = changed(copy, 'formats = ["npz", "json"]', 'formats = ["npz"]')
    assert redone(command("export", "--campaign", path)) == {"export"}


def test_cells_may_be_chosen(copy: Path, command: Command) -> None:
    """Either alone redoes the fit."""
    for keys in ("response_eta_edges = [-2.4, -1, 1, 2.4]", "response_pt_edges = [26, 32, 40, 50]"):
        path = changed(copy, 'response = "mc_z"', f'response = "mc_z"\n{keys}')
        assert redone(command("export", "--campaign", path)) == {"response/mc_z", "export"}, keys
    found = load_response(copy / "out" / "export" / "response.npz")
    assert found.eta_edges.tolist() == [-2.4, -1.0, 1.0, 2.4]
    assert found.pt_edges.tolist() == [26.0, 32.0, 40.0, 50.0]


def test_a_resonance_means_its_simulated_samples(copy: Path) -> None:
    campaign = Campaign(changed(copy, 'response = "mc_z"', 'response = "Jpsi"'))
    assert list(campaign.config.response_samples()) == ["mc"]
    task = campaign.response_task()
    assert (task.name, [before.name for before in task.after]) == ("response/Jpsi", ["simulate/mc"])
    assert campaign.export_task().options["provenance"]["response"] == "mc"  # type: ignore[index]


def test_without_the_key_the_response_goes(copy: Path, command: Command) -> None:
    path = changed(copy, 'response = "mc_z"\n', "")
    assert redone(command("export", "--campaign", path)) == {"export"}
    assert not (copy / "out" / "export" / "response.npz").exists()
    assert musclecal.load(copy / "out" / "export").response is None
    validate_folder(copy / "out" / "export")


def test_simulation_without_generator_muons_is_refused_with_its_name(copy: Path, command: Command) -> None:
    events = sample(copy)
    write_dimuons(copy / "bare.parquet", [DimuonEvents(events.plus, events.minus)])
    text = '[samples.bare]\nresonance = "Z"\nkind = "simulation"\nfiles = ["bare.parquet"]\n[samples.data]'
    path = changed(copy, "[samples.data]", text)
    changed(copy, 'response = "mc_z"', 'response = "bare"')
    refused = command("export", "--campaign", path, code=2).stderr
    assert "export.response: bare: the sample bare has no generator-level muons" in refused
    assert not (copy / "out" / "response" / "bare.h5").exists()
    changed(copy, 'response = "bare"', 'response = "Z"')
    assert (
        "the sample bare has no generator-level muons" in command("export", "--campaign", path, code=2).stderr
    )


def test_too_small_a_sample_is_refused_with_the_key(copy: Path, command: Command) -> None:
    path = changed(copy, "events = 120_000", "events = 1_000")
    refused = command("export", "--campaign", path, code=2).stderr
    assert "export.response: mc_z: response: nowhere in true pT 200 muons of each charge" in refused


def test_data_are_no_simulated_sample(copy: Path, command: Command) -> None:
    path = changed(copy, 'response = "mc_z"', 'response = "data"')
    refused = command("export", "--campaign", path, code=2).stderr
    assert (
        "export.response: 'data' is no simulated sample, nor a resonance with one; simulated are mc, mc_z"
        in refused
    )
