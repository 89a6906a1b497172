"""The ROOT file, read back by this package and by the rules of those who read its layout."""

from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uproot
import uproot.writing._cascade as cascade

from musclecal.errors import InputError
from musclecal.export import export_root, load_root
from musclecal.export.root_file import _content_in
from musclecal.records import CorrectionTables, Smearing

Make = Callable[..., CorrectionTables]


def equal(one: Any, other: Any) -> bool:
    """Bit by bit, in records, mappings and arrays."""
    if isinstance(one, (CorrectionTables, Smearing)):
        return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "muon_scale.root"


@pytest.mark.parametrize(
    "options", [{}, {"smearing": None, "closures": (), "others": (), "s": 1.0}], ids=["full", "bare"]
)
def test_tables_come_back_to_the_last_bit(full_tables: Make, path: Path, options: dict[str, Any]) -> None:
    tables = full_tables(24, **options)
    export_root(tables, path)
    assert equal(load_root(path), tables)


def test_same_tables_are_the_same_bytes(
    full_tables: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year later, under another name."""

    later = SimpleNamespace(now=lambda: datetime.now() + timedelta(days=366))
    other = path.with_name("other.root")
    export_root(full_tables(24), path)
    monkeypatch.setattr(cascade, "datetime", SimpleNamespace(datetime=later))
    export_root(full_tables(24), other)
    assert path.read_bytes() == other.read_bytes()


def test_layout_that_template_fits_read(full_tables: Make, path: Path) -> None:
    """Equal axes of A, e, M; variances on the diagonal of a matrix whose parameter index runs fastest."""
    tables = full_tables(6)
    export_root(tables, path)
    with uproot.open(path) as file:
        curves = [file[name].to_hist() for name in "AeM"]
        matrix = file["covariance_matrix"].to_hist().values()
        residuals = [file[name].to_hist() for name in ("AZ", "MZ")]
        eigenvectors = file["eigenvectors"].values()
    assert curves[0].axes == curves[1].axes == curves[2].axes == residuals[0].axes == residuals[1].axes
    np.testing.assert_array_equal(curves[0].axes[0].edges, tables.eta_edges)
    np.testing.assert_array_equal([h.values() for h in curves], [tables.A, tables.e, tables.M])
    variances = np.stack([h.variances() for h in curves], axis=-1)
    np.testing.assert_allclose(variances, np.diag(matrix).reshape(6, 3), rtol=1e-14)
    np.testing.assert_allclose(matrix, 2.1**2 * tables.covariance, rtol=1e-14)
    assert matrix[0, 5] == pytest.approx(2.1**2 * tables.covariance[0, 5])
    np.testing.assert_allclose(
        eigenvectors @ eigenvectors.T, tables.scaled_covariance, rtol=1e-12, atol=1e-30
    )
    assert np.all(np.linalg.eigvalsh(matrix) > 0.0)


def test_names_on_the_axes_and_in_titles(full_tables: Make, path: Path) -> None:
    export_root(full_tables(6), path)
    with uproot.open(path) as file:
        assert file["e"].title == "e (GeV), error: statistical times s = 2.1"
        assert file["covariance_matrix"].title.startswith("statistical, times s^2 = 4.41; A0, e0, M0")
        assert file["A"].axis().all_members["fTitle"] == "eta"
        assert file["AY1S"].to_hist().axes[0].edges.tolist() == [0.0, 1.0, 2.0]
        assert file["A"].values(flow=True)[[0, -1]].tolist() == [0.0, 0.0]
        assert file["a"].values().tolist() == [2e-5] * 4
        assert '"period": "2016H"' in str(file["content"])


def test_a_file_of_which_one_matrix_was_edited_is_refused(full_tables: Make, path: Path) -> None:
    export_root(full_tables(6), path)

    class Edited:
        def __init__(self, values: Any) -> None:
            self.values = lambda: values

    with uproot.open(path) as file:
        objects = {name.split(";")[0]: file[name] for name in file.keys()}  # noqa: SIM118
        for name in ("covariance_matrix", "statistical_covariance"):
            with pytest.raises(InputError, match="covariance_matrix is not s"):
                _content_in(objects | {name: Edited(1.0001 * objects[name].values())})


def test_other_files_are_refused(full_tables: Make, path: Path) -> None:
    with pytest.raises(InputError, match="not a readable ROOT file"):
        load_root(path)
    path.write_bytes(b"no ROOT file")
    with pytest.raises(InputError, match="not a readable ROOT file"):
        load_root(path)
    with uproot.recreate(path) as file:
        file["A"] = np.histogram([1.0])
    with pytest.raises(InputError, match="is missing"):
        load_root(path)
    export_root(full_tables(6), path)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(InputError, match="ROOT file of musclecal"):
        load_root(path)
