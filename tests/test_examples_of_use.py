"""The examples of applying exported tables run, and give what the formula gives."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import correctionlib
import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.binning import equal_eta_edges
from musclecal.export import correction_tables, export_correctionlib, export_header, export_npz, export_root
from musclecal.export.folder import export_folder
from musclecal.export.merge import merge_folders
from musclecal.records import CorrectionTables, NuisanceGroup, ScaleWithCovariance, Smearing
from musclecal.scale import relative_correction
from musclecal.smear import normal_draws

EXAMPLES = Path(__file__).parents[1] / "examples"
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def tables() -> CorrectionTables:
    """24 eta bins, all parameters in each of the first variations; smearing of 1 % everywhere."""
    rng = np.random.default_rng(8)
    edges = np.array(equal_eta_edges(24, 2.4))
    A, e, M = (rng.normal(0.0, size, 24) for size in (3e-4, 2e-3, 3e-5))
    sigma = np.tile([2e-5, 2e-4, 2e-6], 24)
    common = rng.normal(size=(72, 9))
    covariance = (np.eye(72) + common @ common.T) * np.outer(sigma, sigma)
    smearing = Smearing(np.array([-2.4, 2.4]), *(np.array([x]) for x in (1e-4, 0.0, 0.0, 100.0, 0.0)))
    scale = ScaleWithCovariance(edges, A, e, M, covariance)
    return correction_tables(scale, {"period": "2016H"}, s=2.0, smearing=smearing)


@pytest.fixture(scope="module")
def folder(tables: CorrectionTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export_correctionlib(tables, folder / "muon_scale.json.gz")
    export_npz(tables, folder / "muon_scale.npz")
    export_header(tables, folder / "muon_scale.h")
    export_root(tables, folder / "muon_scale.root")
    return folder


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def run(name: str, folder: Path) -> str:
    """What the example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::UserWarning:ROOT", str(EXAMPLES / name), str(folder)],
        env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def factors(
    t: CorrectionTables, pt: Floats, eta: Floats, charge: Floats, shift: Floats | float = 0.0
) -> Floats:
    i = np.searchsorted(t.eta_edges, eta, side="right") - 1
    parameters = t.parameters.reshape(-1, 3) + shift
    inside = (pt >= 2.0) & (pt < 200.0)
    return np.where(inside, 1.0 / (1.0 + relative_correction(pt, charge, *parameters[i].T)), 1.0)


def test_awkward(tables: CorrectionTables, folder: Path) -> None:
    """Jagged in, jagged out; an event number beyond 2^53; a muon beyond the range."""
    ak = pytest.importorskip("awkward")
    code = example("awkward/scale_muons.py")
    toy = code["TOY"]
    events = ak.zip({k: toy[k] for k in ("run", "luminosityBlock", "event")})
    events = ak.with_field(events, ak.Array(toy["Muon"]), "Muon")
    muons = events.Muon
    corrections = correctionlib.CorrectionSet.from_file(str(folder / "muon_scale.json.gz"))
    columns = np.array([27.0, 41.0, 500.0]), np.array([0.3, -1.7, 0.0]), np.array([1.0, -1.0, 1.0])
    for syst, shift in (("nom", 0.0), ("stat0_up", 1.0), ("stat7_down", -1.0)):
        number = int(re.sub(r"\D", "", syst) or 0)
        result = code["scale"](muons, corrections, syst)
        assert ak.num(result).tolist() == [2, 0, 1]
        expected = factors(tables, *columns, shift * tables.variations[:, :, number])
        np.testing.assert_allclose(ak.flatten(result), expected, rtol=1e-12)

    archive = np.load(folder / "muon_scale.npz")
    shifts = code["shifts"](muons, archive)
    assert ak.num(shifts).tolist() == [2, 0, 1]
    shifted = 1.0 / (1.0 / factors(tables, *columns)[:2] + ak.to_numpy(ak.flatten(shifts))[:2, 7])
    np.testing.assert_allclose(shifted, factors(tables, *columns, tables.variations[:, :, 7])[:2], rtol=1e-12)
    assert ak.all(shifts[2] == 0.0)

    draws = normal_draws([1, 1], [7, 7], [101, 101], [0.1, 2.0])
    smeared = ak.flatten(code["smear"](events, corrections))
    np.testing.assert_allclose(smeared, [*(1.0 / (1.0 + 0.01 * draws)), 1.0], rtol=1e-12)
    assert "corrected" in run("awkward/scale_muons.py", folder)


def test_dask(tables: CorrectionTables, folder: Path) -> None:
    """The same for any blocks."""
    dask = pytest.importorskip("dask")
    da = pytest.importorskip("dask.array")
    code = example("dask/scale_muons.py")
    path = str(folder / "muon_scale.json.gz")
    rng = np.random.default_rng(2)
    pt, eta, charge = rng.uniform(1.0, 250.0, 1000), rng.uniform(-2.4, 2.4, 1000), rng.choice([-1, 1], 1000)
    expected = pt * factors(tables, pt, eta, charge)
    for chunk in (1000, 77):
        lazy = code["with_blocks"](*(da.from_array(x, chunks=chunk) for x in (pt, eta, charge)), path)
        np.testing.assert_allclose(lazy.compute(scheduler="threads"), expected, rtol=1e-12)
    chunks = [(pt[part], eta[part], charge[part]) for part in (slice(0, 300), slice(300, None))]
    parts = dask.compute(*code["with_delayed"](chunks, path), scheduler="synchronous")
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-12)
    assert "mean pT, corrected" in run("dask/scale_muons.py", folder)


@pytest.mark.filterwarnings(
    "ignore:Missing cross-reference:RuntimeWarning"
)  # of jets, which these files lack
def test_coffea(tables: CorrectionTables, folder: Path, tmp_path: Path) -> None:
    """The histogram of a processor, over two files in several chunks, is that of the formula."""
    pytest.importorskip("coffea")
    ak, uproot = pytest.importorskip("awkward"), pytest.importorskip("uproot")
    from musclecal.kinematics import pair_masses

    rng = np.random.default_rng(5)
    n, files, masses = 3000, [], []
    shifts: dict[str, Floats | float] = {
        "nom": 0.0,
        "stat0_up": tables.variations[:, :, 0],
        "stat3_down": -tables.variations[:, :, 3],
    }
    outside = 0
    for number in range(2):
        pt, eta = rng.uniform(20.0, 60.0, (n, 2)), rng.uniform(-2.7, 2.7, (n, 2))
        phi, charge = rng.uniform(-3.1, 3.1, (n, 2)), rng.choice([-1, 1], (n, 2))
        columns = {"pt": pt, "eta": eta, "phi": phi, "mass": np.full((n, 2), 0.1056583755), "charge": charge}
        types = {"charge": np.int32}
        muons = ak.zip({k: ak.from_regular(v.astype(types.get(k, np.float64))) for k, v in columns.items()})
        files.append(str(tmp_path / f"nano{number}.root"))
        with uproot.recreate(files[-1]) as file:
            identifiers = {name: np.arange(n) for name in ("run", "luminosityBlock", "event")}
            file.mktree("Events", {"Muon": muons} | identifiers)
        inside = (eta >= -2.4) & (eta < 2.4)
        outside += int(np.sum(~inside))
        for syst, shift in shifts.items():
            corrected = pt.copy()
            corrected[inside] *= factors(tables, pt[inside], eta[inside], charge[inside], shift)
            mass = pair_masses(*(column[:, i] for i in (0, 1) for column in (corrected, eta, phi)))
            masses.append((syst, mass[charge[:, 0] != charge[:, 1]]))
    result = example("coffea/z_mass.py")["run"](str(folder), files, ("stat0_up", "stat3_down"))
    assert result["uncorrected muons"] == outside
    for syst in shifts:
        expected = np.concatenate([mass for name, mass in masses if name == syst])
        counts, _ = np.histogram(expected, 60, (60.0, 120.0))
        np.testing.assert_array_equal(result["mass"][syst, :].values(), counts)


COLUMNS = """
#define MUON_SCALE muon_scale_2016H
#include "muon_scale.h"
#include "muon_columns.h"
#include <cstdio>
#include <vector>
int main() {
  const std::vector<double> pt{27.0, 41.0, 500.0}, eta{0.3, -1.7, 0.0}, phi{0.1, 2.0, -3.0};
  const std::vector<int> charge{1, -1, 1};
  for (const auto& column : {muon_columns::scaled_pt(pt, eta, charge),
                             muon_columns::shifted_pt(pt, eta, charge, 7, -1.0),
                             muon_columns::smeared_pt(pt, eta, phi, 1, 7, 101)})
    for (double x : column) std::printf("%.17g ", x);
}
"""


def test_columns_of_rdataframe_without_root(tables: CorrectionTables, folder: Path, tmp_path: Path) -> None:
    """The C++ of the example with vectors in the place of RVec."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    (tmp_path / "main.cpp").write_text(COLUMNS)
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{folder}",
        f"-I{EXAMPLES / 'rdataframe'}",
    ]
    made = subprocess.run(
        [*command, "main.cpp", "-o", "main"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    columns = np.array(subprocess.check_output([tmp_path / "main"]).split(), dtype=np.float64).reshape(3, 3)
    pt, eta, charge = np.array([27.0, 41.0, 500.0]), np.array([0.3, -1.7, 0.0]), np.array([1.0, -1.0, 1.0])
    draws = normal_draws([1, 1], [7, 7], [101, 101], [0.1, 2.0])
    expected = [
        pt * factors(tables, pt, eta, charge),
        pt * factors(tables, pt, eta, charge, -tables.variations[:, :, 7]),
        pt / [*(1.0 + 0.01 * draws), 1.0],
    ]
    np.testing.assert_allclose(columns, expected, rtol=1e-12)


def test_rdataframe(tables: CorrectionTables, folder: Path) -> None:
    pytest.importorskip("ROOT", reason="no ROOT")
    code = example("rdataframe/scale_muons.py")
    code["declare"](folder)
    frame = code["with_smeared_muons"](code["with_corrected_muons"](code["toy"]()))
    columns = frame.AsNumpy(["Muon_pt", "Muon_scaled_pt"])
    for pt, scaled in zip(columns["Muon_pt"], columns["Muon_scaled_pt"], strict=True):
        measured = np.array(pt, dtype=np.float64)
        eta = np.array([0.3, -1.7, 0.0], dtype=np.float32).astype(np.float64)
        expected = measured * factors(tables, measured, eta, np.array([1.0, -1.0, 1.0]))
        np.testing.assert_allclose(np.array(scaled), expected, rtol=2e-7)
    assert "Muon_scaled_pt" in run("rdataframe/scale_muons.py", folder)


def names_after(page: str) -> dict[str, Any]:
    """What the Python of a page of the documentation leaves, run here."""
    path = EXAMPLES.parent / "docs" / page
    if not path.is_file():
        pytest.skip("the documentation is not beside these tests")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        exec(block, names)
    return names


def test_recipes_of_template_fits(
    tables: CorrectionTables, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of docs/wremnants.md, in the folder of the file."""
    monkeypatch.chdir(folder)
    names = names_after("wremnants.md")
    np.testing.assert_array_equal(names["shifts"], tables.variations)
    assert tuple(names["names"]) == tables.variation_names
    np.testing.assert_allclose(names["matrix"], 4.0 * tables.covariance, rtol=1e-12)


def test_page_of_the_tables(
    tables: CorrectionTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of docs/tables.md, in an export folder with the merged one in it."""
    ak = pytest.importorskip("awkward")
    mass = NuisanceGroup("mass_Z", tables.eta_edges, ("A",), ("mass_Z",), np.full((1, 24), 2e-5))
    periods = {
        period: correction_tables(tables, {"period": period}, s=s, others=[mass], smearing=tables.smearing)
        for period, s in (("2016H", 2.0), ("2017", 1.0))
    }
    for period, one in periods.items():
        export_folder(one, tmp_path / period)
    here = tmp_path / "2016H"
    merge_folders([here, tmp_path / "2017"], here / "all")
    monkeypatch.chdir(here)
    found = names_after("tables.md")
    now, later = periods.values()
    pt, eta, charge = (found[name] for name in ("pt", "eta", "charge"))
    nominal = pt * factors(now, pt, eta, charge)
    for name in ("corrected", "fast"):
        np.testing.assert_allclose(found[name], nominal, rtol=1e-12)
    for name in ("shifted", "up"):
        expected = pt * factors(now, pt, eta, charge, now.variations[:, :, 0])
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    assert ak.num(found["jagged"]).tolist() == [2, 0, 1]
    np.testing.assert_allclose(ak.flatten(found["jagged"]), nominal, rtol=1e-12)
    exact = found["every"] / factors(now, pt, eta, charge)[:, None] - 1.0
    np.testing.assert_allclose(exact[:2], -found["shifts"][:2], atol=1e-5)
    np.testing.assert_allclose(found["total"], np.sqrt(np.sum(found["shifts"] ** 2, axis=1)))
    assert found["valid"].tolist() == [True, True, False]
    assert found["reason"].tolist() == [0, 0, 3]
    draws = normal_draws([1, 1], [7, 7], [101, 101], [0.1, 2.0])
    np.testing.assert_allclose(found["smeared"], pt / [*(1.0 + 0.01 * draws), 1.0], rtol=1e-12)
    varied = pt * factors(later, pt, eta, charge, later.variations[:, :, -1])
    np.testing.assert_allclose(found["of_2017"], varied, rtol=1e-12)
    np.testing.assert_allclose(found["not_varied"], pt * factors(later, pt, eta, charge), rtol=1e-12)
    assert found["arrays"].variation_names == (*(f"stat{i}_2017" for i in range(72)), "mass_Z")
