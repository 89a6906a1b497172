"""Headers of files: what comes back, and a named refusal of what is none."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from musclecal.errors import InputError
from musclecal.geometry.file_headers import centimetres_of, check_format, header_of


def headed(path: Path, header: str | bytes | None) -> Path:
    table = pyarrow.table({"x": [1.0]})
    parquet.write_table(
        table if header is None else table.replace_schema_metadata({"mine": header}), path / "f.parquet"
    )
    return path / "f.parquet"


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    assert header_of(headed(tmp_path, '{"a": [1, "é"]}'), "mine") == {"a": [1, "é"]}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (None, "no header 'mine'"),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (10_000 * "[", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("null", "is not a JSON object"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, header: str | bytes | None, told: str) -> None:
    with pytest.raises(InputError, match=rf"f\.parquet: .*{told}"):
        header_of(headed(tmp_path, header), "mine")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.parquet: cannot be read"):
        header_of(tmp_path / "none.parquet", "mine")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match=r"text\.parquet: cannot be read"):
        header_of(tmp_path / "text.parquet", "mine")


def test_another_format_or_version() -> None:
    check_format("f", {"format": "mine", "version": 1}, "mine", 1)
    for header, told in (({"format": "other", "version": 1}, "not 'other'"), ({"version": 1}, "not None"),
                         ({"format": "mine", "version": 2}, "version 2")):  # fmt: skip
        with pytest.raises(InputError, match=f"f: .*{told}"):
            check_format("f", header, "mine", 1)


def test_units_of_length() -> None:
    assert [centimetres_of("f", {"units": {"length": u}}) for u in ("cm", "mm", "m", "um")] == [
        1.0, 0.1, 100.0, 1e-4,
    ]  # fmt: skip
    wrong: tuple[dict[str, Any], ...] = (
        {}, {"units": None}, {"units": "cm"}, {"units": {}}, {"units": {"length": ["cm"]}},
        {"units": {"length": "inch"}},
    )  # fmt: skip
    for header in wrong:
        with pytest.raises(InputError, match=r"f: units .* length must be one of cm, mm, m, um"):
            centimetres_of("f", header)
