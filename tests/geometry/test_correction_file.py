"""The table of module corrections: what was written comes back, and what is wrong in it is named."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from musclecal.errors import InputError
from musclecal.geometry.correction_file import read_corrections, start_values, write_corrections
from musclecal.records import ModuleCorrections

RNG = np.random.default_rng(4)
KINDS = np.array([[1, 2, 4, 5, 6, 7], [1, 3, 4, 5, 0, 0], [1, 0, 4, 5, 6, 0]], np.int8)
IDS = np.array([302, 17, 9_000_000_000])
CORRECTIONS = ModuleCorrections(
    np.where(KINDS > 0, RNG.normal(size=KINDS.shape), 0.0), np.where(KINDS > 0, RNG.random(KINDS.shape), 0.0), KINDS,
    np.array([7, 0, 2**40]), "exact", ("twist", "skew é"), RNG.normal(size=2), RNG.random(2), 10.1, 9.0, 1 / 3, 12, 17,
    1e-9, "barrel 1",
)  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "module_corrections.parquet"
    write_corrections(path, CORRECTIONS, IDS)
    return path


@pytest.mark.parametrize("n_slots", [4, 6])
def test_what_was_written_comes_back(tmp_path: Path, n_slots: int) -> None:
    some = replace(
        CORRECTIONS,
        values=CORRECTIONS.values[:, :n_slots],
        sigma=CORRECTIONS.sigma[:, :n_slots],
        kinds=KINDS[:, :n_slots],
    )
    write_corrections(tmp_path / "c.parquet", some, IDS)
    found, ids = read_corrections(tmp_path / "c.parquet")
    np.testing.assert_array_equal(ids, IDS)
    for item in fields(ModuleCorrections):
        one, two = getattr(found, item.name), getattr(some, item.name)
        assert type(one) is type(two), item.name
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes(), item.name


def test_other_programs_can_read_it(written: Path) -> None:
    table = parquet.read_table(written)
    assert table.column_names == ["module", "type", "value", "sigma", "uses"]
    rows = table.to_pylist()
    assert len(rows) == np.count_nonzero(KINDS)
    assert [row["type"] for row in rows if row["module"] == 17] == ["u", "u_stereo", "field", "material"]
    assert [row["type"] for row in rows if row["module"] == 302] == [
        "u",
        "v",
        "field",
        "material",
        "w",
        "gamma",
    ]
    of_field = next(row for row in rows if (row["module"], row["type"]) == (9_000_000_000, "field"))
    assert (of_field["value"], of_field["sigma"]) == (CORRECTIONS.values[2, 2], CORRECTIONS.sigma[2, 2])
    assert of_field["uses"] == 2**40
    units = json.loads(table.schema.metadata[b"units"])
    assert (units["u"], units["gamma"], units["field"]) == ("cm", "rad", "1")


def test_modules_are_called_by_number_where_nothing_else_is_said(tmp_path: Path) -> None:
    write_corrections(tmp_path / "c.parquet", CORRECTIONS)
    assert read_corrections(tmp_path / "c.parquet")[1].tolist() == [0, 1, 2]
    for ids in (IDS[:2], np.array([1, 1, 2])):
        with pytest.raises(InputError, match="module ids"):
            write_corrections(tmp_path / "d.parquet", CORRECTIONS, ids)
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"]


def test_a_failed_write_keeps_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written.read_bytes()

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(parquet, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_corrections(written, replace(CORRECTIONS, chi2=0.0))
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]
    with pytest.raises(InputError, match="does not exist"):
        write_corrections(written.parent / "none" / "c.parquet", CORRECTIONS)


def _changed(path: Path, **columns: Any) -> Path:
    table = parquet.read_table(path)
    for name, change in columns.items():
        values = change(table[name].to_pylist())
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    parquet.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"module": lambda v: [18, *v[1:]]}, "module 18 is not one"),
        ({"module": lambda v: [10**11, *v[1:]]}, "module 100000000000 is not one"),
        ({"type": lambda v: ["x", *v[1:]]}, "type 'x', known are u, v"),
        ({"type": lambda v: ["u", "u", *v[2:]]}, "stands there twice"),
        ({"type": lambda v: [None, "x", *v[2:]]}, "type None"),
        ({"module": lambda v: [str(x) for x in v]}, "column 'module'"),
        ({"value": lambda v: [str(x) for x in v]}, "corrections.parquet: value '.*' of module 302: must be"),
        ({"value": lambda v: [*v[:-1], float("nan")]}, "corrections.parquet: value nan of module 9000000000"),
        ({"value": lambda v: [*v[:-1], None]}, "value None of module 9000000000"),
        ({"sigma": lambda v: [float("inf"), *v[1:]]}, "sigma inf of module 302"),
    ],
)
def test_wrong_rows_are_named(written: Path, columns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_corrections(_changed(written, **columns))


def test_other_files_are_refused(written: Path, tmp_path: Path) -> None:
    table = parquet.read_table(written)
    bad = tmp_path / "bad.parquet"
    with pytest.raises(InputError, match="cannot be read"):
        read_corrections(bad)
    bad.write_text("hello")
    with pytest.raises(InputError, match=r"bad\.parquet: cannot be read"):
        read_corrections(bad)
    parquet.write_table(table.drop_columns(["sigma"]), bad)
    with pytest.raises(InputError, match="no column 'sigma'"):
        read_corrections(bad)
    parquet.write_table(table.replace_schema_metadata({}), bad)
    with pytest.raises(InputError, match="no header 'musclecal'"):
        read_corrections(bad)
    for header in ("no JSON", "[1]"):
        parquet.write_table(table.replace_schema_metadata({"musclecal": header}), bad)
        with pytest.raises(InputError, match=r"bad\.parquet: the header 'musclecal' in the metadata is not"):
            read_corrections(bad)
    parquet.write_table(table.replace_schema_metadata({"musclecal": '{"format": 2}'}), bad)
    with pytest.raises(InputError, match="format 2"):
        read_corrections(bad)


def _headed(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The file after a change of its header."""
    table = parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"musclecal"])
    change(about)
    parquet.write_table(table.replace_schema_metadata({"musclecal": json.dumps(about)}), path)
    return path


@pytest.mark.parametrize(
    "key", ["n_slots", "n_rows", "uses", "modes", "detector", "module_ids", "chi2", "iterations", "sigma_is"]
)
def test_keys_that_are_missing_are_named(written: Path, key: str) -> None:
    with pytest.raises(InputError, match=rf"corrections\.parquet: the header's key '{key}' is missing"):
        read_corrections(_headed(written, lambda about: about.pop(key)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_slots", "six", "'n_slots' .* one integer"),
        ("n_slots", 5, "n_slots 5"),
        ("n_slots", True, "'n_slots' .* one integer"),
        ("uses", 3, "'uses' .* a list of integers"),
        ("uses", [7, 0], "3 module_ids, which must differ, and 2 uses"),
        ("uses", [7, 0, 2**70], "'uses' .* a list of integers"),
        ("module_ids", [302, 17.5, 3], "'module_ids' .* a list of integers"),
        ("module_ids", [302, 17, 17], "3 module_ids, which must differ"),
        ("module_ids", [], "0 module_ids"),
        ("modes", ["twist"], "'modes' .* one object"),
        ("modes", {"name": ["a"], "sigma": [1.0]}, "'modes.amplitude' is missing"),
        ("modes", {"name": ["a"], "sigma": [1.0], "amplitude": []}, "modes of different lengths"),
        (
            "modes",
            {"name": ["a"], "sigma": [1.0], "amplitude": ["b"]},
            "'modes.amplitude' .* list of numbers",
        ),
        ("detector", 3, "'detector' .* one text"),
        ("chi2", "large", "'chi2' .* one number"),
    ],
)
def test_keys_that_cannot_be_are_named(written: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_corrections(_headed(written, lambda about: about.update({key: value})))


def test_missing_rows_are_counted(written: Path) -> None:
    table = parquet.read_table(written)
    parquet.write_table(table.slice(0, 3), written)
    n = np.count_nonzero(KINDS)
    with pytest.raises(InputError, match=rf"corrections\.parquet: 3 rows, but {n} .* {n - 3} are missing"):
        read_corrections(written)
    parquet.write_table(pa.concat_tables([table, table.slice(0, 1)]), written)
    with pytest.raises(InputError, match=rf"{n + 1} rows, but {n}"):
        read_corrections(written)


def test_a_fit_starts_at_corrections_of_its_own_detector(written: Path) -> None:
    np.testing.assert_array_equal(start_values(written, "barrel 1", (3, 6)), CORRECTIONS.values)
    for fingerprint, shape in (("barrel 2", (3, 6)), ("barrel 1", (3, 4)), ("barrel 1", (4, 6))):
        with pytest.raises(
            InputError, match=r"corrections\.parquet: \(3, 6\) corrections of 'barrel 1', not"
        ):
            start_values(written, fingerprint, shape)
