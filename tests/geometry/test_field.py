"""The field map: interpolation, a solenoid against the law of Biot and Savart, files."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ellipe, ellipk

from musclecal.errors import InputError
from musclecal.geometry.field import (
    SOLENOID,
    field_at,
    read_field_map,
    solenoid_field,
    solenoid_map,
    write_field_map,
)
from musclecal.records import Floats

RADIUS, LENGTH = 300.0, 1250.0


def sheet(r: float, z: float) -> float:
    """B_z of a current sheet as a sum of loops (elliptic integrals), without its scale."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = z - 0.5 * LENGTH * nodes
    outer = (RADIUS + r) ** 2 + x**2
    m = 4.0 * RADIUS * r / outer
    inner = (RADIUS - r) ** 2 + x**2
    loops = (ellipk(m) + (RADIUS**2 - r**2 - x**2) / inner * ellipe(m)) / np.sqrt(outer)
    return float(0.5 * LENGTH * weights @ loops)


@pytest.mark.parametrize(
    ("r", "z"), [(0.0, 280.0), (30.0, 0.0), (60.0, 200.0), (108.0, 0.0), (110.0, -270.0)]
)
def test_solenoid_is_that_of_biot_and_savart(r: float, z: float) -> None:
    """What is left out, of order r^4, is below 1e-4 of the field; the term in r^2 is 8e-3 of it at the far end."""
    expected = 3.8 * sheet(r, z) / sheet(0.0, 0.0)
    assert solenoid_field(np.array(r), np.array(z)) == pytest.approx(expected, rel=3e-4 if r > 60.0 else 3e-5)


def test_solenoid_falls_along_the_axis_and_rises_towards_its_coil() -> None:
    z = np.linspace(0.0, 300.0, 31)
    axis, outside = solenoid_field(np.zeros(31), z), solenoid_field(np.full(31, 100.0), z)
    assert axis[0] == pytest.approx(3.8, rel=1e-12)
    assert np.all(np.diff(axis) < 0.0)
    assert np.all(outside > axis)
    np.testing.assert_allclose(solenoid_field(np.zeros(31), -z), axis, rtol=1e-14)


def interpolated(r: float, z: float, table: Floats) -> float:
    return field_at(r, z, np.array([0.0, 10.0, 40.0]), np.array([-5.0, 5.0, 10.0]), table)


def test_interpolation_is_exact_for_r_times_z() -> None:
    r, z = np.meshgrid([0.0, 10.0, 40.0], [-5.0, 5.0, 10.0], indexing="ij")
    table = 3.0 + 0.1 * r - 0.2 * z + 0.01 * r * z
    for at_r, at_z in ((0.0, -5.0), (3.0, 1.0), (25.0, 7.0), (40.0, 10.0)):
        expected = 3.0 + 0.1 * at_r - 0.2 * at_z + 0.01 * at_r * at_z
        assert interpolated(at_r, at_z, table) == pytest.approx(expected, rel=1e-14)
    assert interpolated(99.0, 2.0, table) == pytest.approx(interpolated(40.0, 2.0, table), rel=1e-14)
    assert interpolated(3.0, -99.0, table) == pytest.approx(interpolated(3.0, -5.0, table), rel=1e-14)


@pytest.mark.parametrize(
    "grid",
    [[0.0, 1.0, 2.0, 3.0, 50.0], [0.0, 46.0, 47.0, 48.0, 50.0], [0.0, 10.0, 20.0, 30.0, 40.0], [0.0, 1.0]],
)
def test_cells_of_uneven_grids_are_found(grid: list[float]) -> None:
    r, z = np.array(grid), np.array([-1.0, 1.0])
    values = np.random.default_rng(1).normal(size=len(grid))
    table = np.stack([values, values], axis=1)
    for at in [-3.0, *np.linspace(0.0, 60.0, 241), *grid]:
        assert field_at(at, 0.0, r, z, table) == pytest.approx(np.interp(at, r, values), abs=1e-14)
        assert field_at(0.0, at, z, r, table.T.copy()) == pytest.approx(np.interp(at, r, values), abs=1e-14)


def test_map_of_the_solenoid() -> None:
    field_map = solenoid_map()
    found = field_at(51.0, 133.0, field_map.r, field_map.z, field_map.table)
    assert found == pytest.approx(float(solenoid_field(np.array(51.0), np.array(133.0))), rel=1e-4)
    assert field_map.id == SOLENOID


def test_file_round_trip(tmp_path: Path) -> None:
    before = solenoid_map(r_max=20.0, z_max=30.0)
    write_field_map(tmp_path / "map.json", before)
    after = read_field_map(tmp_path / "map.json")
    assert after.id == before.id
    for name in ("r", "z", "table"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, "not a field map"),
        ({"version": 2}, "version 2"),
        ({"units": {"length": "mm", "field": "T"}}, "cm"),
        ({"r": [0.0, 0.0]}, "rising"),
        ({"b_z": [[1.0, 2.0]]}, "shape"),
        ({"b_z": [[1.0, 2.0], [1.0]]}, "rows of one length"),
        ({"b_z": [[38000.0, 2.0], [1.0, 2.0]]}, "in T"),
        ({"b_z": [[float("nan"), 2.0], [1.0, 2.0]]}, "not finite"),
    ],
)
def test_bad_files(tmp_path: Path, change: dict[str, object], told: str) -> None:
    good = {
        "format": "musclecal field map", "version": 1, "id": "m", "units": {"length": "cm", "field": "T"},
        "r": [0.0, 1.0], "z": [0.0, 1.0], "b_z": [[3.0, 3.0], [3.0, 3.0]],
    }  # fmt: skip
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(good | change))
    with pytest.raises(InputError, match=told) as refused:
        read_field_map(path)
    assert "bad.json" in str(refused.value)


def test_missing_files_and_keys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json"):
        read_field_map(tmp_path / "no.json")
    write_field_map(tmp_path / "m.json", solenoid_map(20.0, 20.0))
    content = json.loads((tmp_path / "m.json").read_text())
    del content["b_z"]
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no key 'b_z'"):
        read_field_map(tmp_path / "m.json")
