"""kappa and lambda: exact at one pT, off by what the file says elsewhere."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.export import export_rochester
from musclecal.export.rochester import load_kappa_and_lambda
from musclecal.records import CorrectionTables
from musclecal.scale import corrected_curvature

Make = Callable[..., CorrectionTables]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "muon_scale.txt"


@pytest.mark.parametrize("pt", [45.0, 10.0])
@pytest.mark.parametrize("charge", [-1.0, 1.0])
def test_exact_at_the_reference_pt(full_tables: Make, path: Path, pt: float, charge: float) -> None:
    tables = full_tables(24)
    export_rochester(tables, path, pt)
    edges, table = load_kappa_and_lambda(path)
    np.testing.assert_array_equal(edges, tables.eta_edges)
    rochester = table[:, 0] / pt + charge * table[:, 1]
    exact = [corrected_curvature(1.0 / pt, charge, *row) for row in tables.parameters.reshape(-1, 3)]
    np.testing.assert_allclose(rochester, exact, rtol=4e-16, atol=0.0)


def test_without_energy_loss_exact_at_every_pt(full_tables: Make, path: Path) -> None:
    tables = replace(full_tables(4), e=np.zeros(4))
    export_rochester(tables, path)
    _, table = load_kappa_and_lambda(path)
    for pt in (3.0, 20.0, 150.0):
        exact = [corrected_curvature(1.0 / pt, -1.0, *row) for row in tables.parameters.reshape(-1, 3)]
        np.testing.assert_allclose(table[:, 0] / pt - table[:, 1], exact, rtol=4e-16, atol=0.0)


def test_comments_say_how_far_off(full_tables: Make, path: Path) -> None:
    """Measured with the formula that the comments give; 5 MeV at 10 GeV are 5e-4 minus 1.1e-4."""
    tables = full_tables(24)
    export_rochester(tables, path)
    text = path.read_text()
    _, table = load_kappa_and_lambda(path)
    said = {float(pt): float(off) for pt, off in re.findall(r"(\d+) GeV: (\d[\d.e+-]*\d|\d)", text)}
    assert set(said) == {5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 100.0}
    for pt, off in said.items():
        k = 1.0 / pt
        exact = np.array([corrected_curvature(k, 1.0, *row) for row in tables.parameters.reshape(-1, 3)])
        measured = np.max(np.abs((table[:, 0] * k + table[:, 1]) - exact) / k)
        assert off == pytest.approx(measured, rel=0.06)
    assert "1/pT_corrected = kappa/pT + q lambda" in text
    assert "period: 2016H" in text


@pytest.mark.parametrize("pt", [1.0, 200.0, float("nan"), -45.0])
def test_reference_pt_out_of_range(full_tables: Make, path: Path, pt: float) -> None:
    with pytest.raises(InputError, match="outside of the range 2 to 200 GeV"):
        export_rochester(full_tables(2), path, pt)


def test_other_files_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match="not a table"):
        load_kappa_and_lambda(path)
    path.write_text("0 1 1.0 0.0\n1.5 2 1.0 0.0\n")
    with pytest.raises(InputError, match="without gaps"):
        load_kappa_and_lambda(path)
