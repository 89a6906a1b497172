"""Settings of a simulated sample, and the JSON files that they name."""

import json
from pathlib import Path

import numpy as np
import pytest

from musclecal.config import SampleConfig
from musclecal.errors import InputError
from musclecal.resonances import resonance
from musclecal.samples import read_resolution, simulation_settings

EDGES = (-2.4, 0.0, 2.4)
RESOLUTION = {"eta_edges": EDGES, "a": [1e-4, 2e-4], "b": [0.0, 1e-5], "c": [1e-8, 2e-8], "d": [370.0, 370.0]}


def written(folder: Path, table: object) -> Path:
    path = folder / "resolution.json"
    path.write_text(json.dumps(table))
    return path


def test_a_resolution_is_read_as_it_is_written(tmp_path: Path) -> None:
    found = read_resolution(written(tmp_path, RESOLUTION))
    for key, values in RESOLUTION.items():
        np.testing.assert_array_equal(getattr(found, key), values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("c", [1e-8], "c: 2 finite numbers"),
        ("a", [-1e-4, 1e-4], "a: must not be negative"),
        ("b", "wide", "b: not a list of numbers"),
        ("eta_edges", [0.0, 0.0, 1.0], "eta_edges: must increase"),
    ],
)
def test_a_wrong_resolution_names_file_and_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = written(tmp_path, RESOLUTION | {key: value})
    with pytest.raises(InputError, match=message) as error:
        read_resolution(path)
    assert str(path) in str(error.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, {key: RESOLUTION[key] for key in ("eta_edges", "a", "b", "c")})
    with pytest.raises(InputError, match="key 'd' is missing"):
        read_resolution(path)


def test_spectrum_and_resolution_of_the_campaign_file_reach_the_simulation(tmp_path: Path) -> None:
    written(tmp_path, RESOLUTION)
    simulate = {
        "events": 10,
        "seed": 1,
        "resolution": "resolution.json",
        "resolution_factor": 2.0,
        "spectrum_p0": 7.0,
        "spectrum_exponent": 3.3,
        "spectrum_y_max": 1.1,
        "polarisation": -0.4,
    }
    sample = SampleConfig.model_validate({"resonance": "Jpsi", "kind": "data", "simulate": simulate})
    assert sample.simulate is not None
    settings = simulation_settings(sample, sample.simulate, resonance("Jpsi"), EDGES, tmp_path)
    np.testing.assert_allclose(settings.resolution.a, [4e-4, 8e-4])
    assert settings.spectrum is not None
    assert (settings.spectrum.p0, settings.spectrum.exponent) == (7.0, 3.3)
    assert (settings.spectrum.y_max, settings.spectrum.polarisation) == (1.1, -0.4)
