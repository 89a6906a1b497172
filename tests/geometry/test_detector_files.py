"""Descriptions of detectors in files: exact round trips, other units, and a named refusal of what cannot be."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker
from musclecal.geometry.detector_files import COLUMNS, read_detector, write_detector
from musclecal.records import Detector

BARREL = barrel_tracker()
LENGTHS = ("x", "y", "z", "half_u", "half_v", "sigma_u", "sigma_v")


def assert_same(found: Detector, expected: Detector, rtol: float = 0.0) -> None:
    for item in fields(Detector):
        one, two = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(two, np.ndarray):
            assert one.dtype == two.dtype, item.name
            np.testing.assert_allclose(one, two, rtol=rtol, atol=0.0, err_msg=item.name)
        else:
            assert one == two


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_round_trip(tmp_path: Path, ending: str) -> None:
    write_detector(tmp_path / f"d.{ending}", BARREL)
    assert_same(read_detector(tmp_path / f"d.{ending}"), BARREL)


def test_round_trip_of_the_large_one(tmp_path: Path) -> None:
    write_detector(tmp_path / "d.parquet", cms_tracker())
    assert_same(read_detector(tmp_path / "d.parquet"), cms_tracker())


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The barrel as JSON after a change."""

    def change(how: Callable[[dict[str, Any]], None]) -> Path:
        path = tmp_path / "changed.json"
        write_detector(path, BARREL)
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))
        return path

    return change


def in_millimetres(content: dict[str, Any]) -> None:
    for name in LENGTHS:
        content["sensors"][name] = [None if x is None else 10.0 * x for x in content["sensors"][name]]


def test_stated_millimetres_are_converted(changed: Callable[..., Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        in_millimetres(content)
        content["units"]["length"] = "mm"

    assert_same(read_detector(changed(change)), BARREL, rtol=1e-14)


def test_rows_in_any_order(changed: Callable[..., Path]) -> None:
    def reverse(content: dict[str, Any]) -> None:
        for values in content["sensors"].values():
            values.reverse()

    assert_same(read_detector(changed(reverse)), BARREL)


def setting(column: str, row: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["sensors"][column][row] = value

    return change


def heading(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[key] = value

    return change


def without_last_unit_but_one(content: dict[str, Any]) -> None:
    last = max(content["sensors"]["unit"])
    content["sensors"]["unit"] = [last + 1 if unit == last else unit for unit in content["sensors"]["unit"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (in_millimetres, "are lengths in cm"),
        (heading("units", {"length": "inch", "mass_thickness": "g/cm2"}), "inch"),
        (heading("units", {"length": "cm"}), "mass_thickness"),
        (heading("units", {"length": ["cm"], "mass_thickness": "g/cm2"}), "length must be one of"),
        (heading("units", "cm"), "units 'cm'"),
        (heading("format", "other"), "must be 'musclecal detector', not 'other'"),
        (heading("version", 7), "version 7"),
        (heading("layers", []), "layers"),
        (lambda content: content.pop("field_map"), "'field_map'"),
        (lambda content: content.pop("sensors"), "'sensors'"),
        (lambda content: content["sensors"].pop("wz"), "no column 'wz'"),
        (lambda content: content["sensors"]["x"].pop(), "column 'x'"),
        (setting("module", 3, 4), "4 is there twice"),
        (setting("module", 543, 4000), "4000 stands where 543"),
        (setting("unit", 0, -1), "unit -1"),
        (setting("unit", 7, None), "column 'unit' must hold whole numbers, nan stands in row 7"),
        (setting("measures_v", 7, None), "column 'measures_v' must hold whole numbers, nan stands in row 7"),
        (setting("layer", 7, 0.5), "column 'layer' must hold whole numbers, 0.5"),
        (setting("unit", 7, 2.0**32), "column 'unit' must hold whole numbers, 4.29497e"),
        (without_last_unit_but_one, "no unit 415"),
        (setting("side", 0, 1), "unit 0 must have one sensor"),
        (setting("layer", 0, 70), "layer of module 0"),
        (setting("layer", 145, 0), "unit 144 stands in two layers"),
        (setting("ux", 5, 0.5), "axes u, v, w of module 5"),
        (setting("half_u", 2, 0.0), "half_u of module 2"),
        (setting("sigma_u", 2, None), "sigma_u of module 2"),
        (setting("sigma_v", 2, None), "sigma_v of module 2"),
        (setting("radiation_lengths", 2, -0.1), "radiation_lengths of module 2"),
        (setting("x", 2, None), "centre of module 2"),
        (setting("x", 2, "wide"), "numbers"),
    ],
)
def test_what_cannot_be(
    changed: Callable[..., Path], change: Callable[[dict[str, Any]], None], told: str
) -> None:
    with pytest.raises(InputError, match=told) as refused:
        read_detector(changed(change))
    assert "changed.json" in str(refused.value)


def test_mirrored_axes(changed: Callable[..., Path]) -> None:
    def mirror(content: dict[str, Any]) -> None:
        for c in "xyz":
            content["sensors"][f"u{c}"] = [-x for x in content["sensors"][f"u{c}"]]

    with pytest.raises(InputError, match="right-handed"):
        read_detector(changed(mirror))


def test_files_of_another_kind(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    with pytest.raises(InputError, match=r"none\.parquet"):
        read_detector(tmp_path / "none.parquet")
    with pytest.raises(InputError, match=r"none\.json"):
        read_detector(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"parquet or \.json"):
        read_detector(tmp_path / "d.root")
    with pytest.raises(InputError, match=r"parquet or \.json"):
        write_detector(tmp_path / "d.root", BARREL)
    (tmp_path / "text.json").write_text("x")
    with pytest.raises(InputError, match="not JSON"):
        read_detector(tmp_path / "text.json")
    table = pyarrow.table({name: np.zeros(2) for name in COLUMNS})
    parquet.write_table(table, tmp_path / "bare.parquet")
    with pytest.raises(InputError, match="no header"):
        read_detector(tmp_path / "bare.parquet")
    parquet.write_table(table.drop_columns(["layer"]), tmp_path / "less.parquet")
    with pytest.raises(InputError, match="no column 'layer'"):
        read_detector(tmp_path / "less.parquet")


@pytest.mark.parametrize("header", ["no JSON", "[1, 2]", "3"])
def test_headers_that_are_none(tmp_path: Path, header: str) -> None:
    from pyarrow import parquet

    path = tmp_path / "d.parquet"
    write_detector(path, BARREL)
    metadata = {"musclecal detector": header}
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(
        InputError, match=r"d\.parquet: the header 'musclecal detector' in the metadata is not"
    ):
        read_detector(path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([None] + 543 * [0], "column 'unit' must hold whole numbers, nan stands in row 0"),
        ([[0]] * 544, "column 'unit' has lists"),
    ],
)
def test_columns_of_parquet_that_cannot_be(tmp_path: Path, values: list[Any], told: str) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "d.parquet"
    write_detector(path, BARREL)
    table = parquet.read_table(path)
    place = table.column_names.index("unit")
    parquet.write_table(table.set_column(place, "unit", pyarrow.array(values)), path)
    with pytest.raises(InputError, match=told):
        read_detector(path)


def test_a_detector_without_sensors(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = tmp_path / "d.parquet"
    write_detector(path, BARREL)
    parquet.write_table(parquet.read_table(path).slice(0, 0), path)
    with pytest.raises(InputError, match="no sensors"):
        read_detector(path)
