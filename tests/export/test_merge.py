"""Merged periods, evaluated with correctionlib, against the export of each period alone."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import correctionlib
import numpy as np
import pytest
from numpy.typing import NDArray

import musclecal
from musclecal.errors import InputError
from musclecal.export.correctionlib_json import export_correctionlib
from musclecal.export.folder import export_folder
from musclecal.export.manifest import content_hash
from musclecal.export.merge import merge_folders
from musclecal.export.validate import validate_folder
from musclecal.records import CorrectionTables, NuisanceGroup

Floats = NDArray[np.float64]
Make = Callable[..., CorrectionTables]
N_ETA = {"2016H": 3, "2017": 4}
"""Other bins in each period."""


def of_period(full_tables: Make, period: str, **options: Any) -> CorrectionTables:
    """With statistics, four variations of a closure, and the mass of the Z."""
    plain = full_tables(N_ETA[period])
    mass = NuisanceGroup("mass_Z", plain.eta_edges, ("A",), ("mass_Z",), np.full((1, plain.n_eta), 2e-5))
    rng = np.random.default_rng(4)
    closure = NuisanceGroup(
        "closure_Z",
        plain.eta_edges,
        ("A",),
        ("closure_Z_0", "closure_Z_1"),
        rng.normal(0, 1e-5, (2, plain.n_eta)),
    )
    tables = full_tables(N_ETA[period], others=[closure, mass], **options)
    return replace(tables, provenance={**tables.provenance, "period": period})


@pytest.fixture
def folders(full_tables: Make, tmp_path: Path) -> list[Path]:
    result = [tmp_path / period for period in N_ETA]
    for folder in result:
        tables = of_period(full_tables, folder.name)
        export_folder(tables, folder, ("npz",))
        export_correctionlib(tables, folder / "muon_scale.json.gz")
    return result


def muons(n: int) -> tuple[Floats, Floats, Floats]:
    """Some outside of the ranges."""
    rng = np.random.default_rng(3)
    return rng.uniform(1.0, 210.0, n), rng.uniform(-2.5, 2.5, n), rng.choice([-1.0, 1.0], n)


def corrections(path: Path) -> Any:
    return correctionlib.CorrectionSet.from_file(str(path / "muon_scale.json.gz"))


def test_every_period_is_its_own_export(folders: list[Path], tmp_path: Path) -> None:
    """Nominal and own variations as alone; nominal for those of others; smearing and tables too."""
    done = merge_folders(folders, tmp_path / "all")
    merged = corrections(tmp_path / "all")
    assert done.periods == ("2016H", "2017")
    assert done.shared == ("mass_Z",)
    inputs, phi = muons(300), np.linspace(-3.0, 3.0, 300)
    numbers = np.arange(1, 301)
    every = [name for names in done.own.values() for name in names]
    assert len(every) == 3 * 3 + 2 + 3 * 4 + 2
    for folder in folders:
        alone, period = corrections(folder), folder.name
        nominal = alone["muon_pt_scale"].evaluate(*inputs, "nom")
        found = merged["muon_pt_scale"].evaluate(period, *inputs, "nom")
        np.testing.assert_allclose(found, nominal, rtol=1e-12)
        for name in (*every, "mass_Z"):
            for side in ("up", "down"):
                single = name.removesuffix(f"_{period}")
                own = name in done.own[period] or name == "mass_Z"
                expected = alone["muon_pt_scale"].evaluate(*inputs, f"{single}_{side}") if own else nominal
                found = merged["muon_pt_scale"].evaluate(period, *inputs, f"{name}_{side}")
                np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=f"{period} {name}_{side}")
                assert not own or np.any(found != nominal)
        event = (numbers, numbers, numbers, 0)
        np.testing.assert_array_equal(
            merged["muon_pt_smear"].evaluate(period, *inputs[:2], phi, *event),
            alone["muon_pt_smear"].evaluate(*inputs[:2], phi, *event),
        )
        for letter in "AeM":
            np.testing.assert_array_equal(
                merged[f"muon_{letter}"].evaluate(period, inputs[1]),
                alone[f"muon_{letter}"].evaluate(inputs[1]),
            )
        compound = merged.compound["muon_pt_scale_smear"]
        both = compound.evaluate(period, *inputs[:2], phi, inputs[2], *event, "mass_Z_up")
        one = alone.compound["muon_pt_scale_smear"].evaluate(*inputs[:2], phi, inputs[2], *event, "mass_Z_up")
        np.testing.assert_allclose(both, one, rtol=1e-12)


def test_numbers_of_variations_go_through_all_periods(folders: list[Path], tmp_path: Path) -> None:
    """ivar counts in the order of periods; that of a shared one is the same for all."""
    merge_folders(folders, tmp_path / "all")
    merged, inputs = corrections(tmp_path / "all"), muons(50)
    first = list(musclecal.load(tmp_path / "all" / "calibration_2016H.npz").variation_names)
    second = list(musclecal.load(tmp_path / "all" / "calibration_2017.npz").variation_names)
    names = first + [name for name in second if name not in first]
    for name in ("stat1_2016H", "mass_Z", "stat2_2017"):
        for period in N_ETA:
            np.testing.assert_allclose(
                merged["muon_pt_scale_var"].evaluate(period, *inputs, names.index(name), -1.0),
                merged["muon_pt_scale"].evaluate(period, *inputs, f"{name}_down"),
                rtol=1e-12,
            )


def test_unknown_periods_and_variations_raise(folders: list[Path], tmp_path: Path) -> None:
    merge_folders(folders, tmp_path / "all")
    merged = corrections(tmp_path / "all")["muon_pt_scale"]
    with pytest.raises(IndexError):
        merged.evaluate("2018", 20.0, 0.5, 1.0, "nom")
    for name in ("stat0_up", "mass_Z_2017_up", "stat9_2016H_up"):
        with pytest.raises(IndexError):
            merged.evaluate("2016H", 20.0, 0.5, 1.0, name)


def test_the_arrays_beside_have_the_names_of_the_merged_file(folders: list[Path], tmp_path: Path) -> None:
    merge_folders(folders, tmp_path / "all", ["mass_", "closure_Z"])
    merged, inputs = corrections(tmp_path / "all")["muon_pt_scale"], muons(200)
    for period in N_ETA:
        for end in ("npz", "json"):
            correction = musclecal.load(tmp_path / "all" / f"calibration_{period}.{end}")
            assert {"closure_Z_0", "mass_Z", f"stat0_{period}"} <= set(correction.variation_names)
            table = correction.variations(inputs[0], inputs[1], 0.0, inputs[2])
            for i, name in enumerate(correction.variation_names):
                expected = merged.evaluate(period, *inputs, f"{name}_up")
                np.testing.assert_allclose(table[:, i], expected, rtol=1e-11)


def test_same_bytes_in_any_order(folders: list[Path], tmp_path: Path) -> None:
    written = []
    for out, given in (("a", folders), ("b", folders[::-1]), ("a", folders)):
        files = merge_folders(given, tmp_path / out).files
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1] == written[2]
    assert {"muon_scale.json.gz", "manifest.json", "calibration_2017.json", "reference_2016H.parquet"} <= set(
        written[0]
    )


def test_a_merged_folder_is_validated_in_every_period(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all"
    merge_folders(folders, out)
    lines = validate_folder(out)
    assert sum("reference muons by correctionlib" in line for line in lines) == 2
    other = of_period_file(out / "calibration_2017.npz", out / "calibration_2016H.npz")
    with pytest.raises(InputError, match="changed after the export"):
        validate_folder(out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"][other.name] = content_hash(other)
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"calibration_2017\.json"):
        validate_folder(out)


def test_a_merged_manifest_that_says_something_else_of_a_period(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all"
    merge_folders(folders, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["periods"]["2017"]["s"] = 9.0
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="another s than the tables"):
        validate_folder(out)


def of_period_file(target: Path, source: Path) -> Path:
    """Overwrite one file with another."""
    target.write_bytes(source.read_bytes())
    return target


def test_a_period_without_smearing_is_told(full_tables: Make, folders: list[Path], tmp_path: Path) -> None:
    export_folder(of_period(full_tables, "2017", smearing=None), tmp_path / "plain", ("npz",))
    done = merge_folders([folders[0], tmp_path / "plain"], tmp_path / "all")
    assert done.notes == ("no smearing in the merged correctionlib file: 2017 has none",)
    assert "muon_pt_smear" not in list(corrections(tmp_path / "all"))
    validate_folder(tmp_path / "all")


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (["stat"], "statistical variations are those of different fits"),
        (["stat3"], "statistical variations"),
        (["s"], "statistical variations"),
        (["closure_Y"], "'closure_Y': no period has"),
        ([""], "no period has a variation"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    folders: list[Path], tmp_path: Path, share: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        merge_folders(folders, tmp_path / "all", share)
    assert not (tmp_path / "all").exists()


def test_periods_must_be_told_and_differ(full_tables: Make, folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all"
    with pytest.raises(InputError, match="period 2016H is that of"):
        merge_folders([*folders, folders[0]], out)
    with pytest.raises(InputError, match="two periods or more, got 2017"):
        merge_folders(folders[1:], out)
    plain = of_period(full_tables, "2017")
    for name, message in (("", "does not say its period"), ("2017 B/C", "letters, digits")):
        export_folder(replace(plain, provenance={"period": name}), tmp_path / "odd", ("npz",))
        with pytest.raises(InputError, match=message):
            merge_folders([folders[0], tmp_path / "odd"], out)
    with pytest.raises(InputError, match="holds an export already"):
        merge_folders(folders, folders[0])
    with pytest.raises(InputError, match="no such file"):
        merge_folders([*folders, tmp_path / "nowhere"], out)
    assert not out.exists()


def test_names_that_would_collide_are_refused(full_tables: Make, tmp_path: Path) -> None:
    """x_b of period c and x of period b_c are both x_b_c."""
    plain = of_period(full_tables, "2017")
    for period, name in (("c", "x_b"), ("b_c", "x")):
        names = tuple(name if n == "closure_Z_0" else n for n in plain.variation_names)
        tables = replace(plain, variation_names=names, provenance={"period": period})
        export_folder(tables, tmp_path / period, ("npz",))
    with pytest.raises(InputError, match="period c: its variation x_b_c has the name"):
        merge_folders([tmp_path / "c", tmp_path / "b_c"], tmp_path / "all")


def test_a_merged_file_is_not_read_as_one_period(folders: list[Path], tmp_path: Path) -> None:
    """Nor where nothing is beside it."""
    merge_folders(folders, tmp_path / "all")
    alone = (tmp_path / "all" / "muon_scale.json.gz").rename(tmp_path / "mine.json.gz")
    with pytest.raises(InputError, match=r"several periods \(2016H, 2017\): load the calibration_<period>"):
        musclecal.load(alone)


@pytest.mark.parametrize("other", ["2016-H", "2016_H", "2016..H"])
def test_periods_of_one_namespace_are_refused(full_tables: Make, tmp_path: Path, other: str) -> None:
    """Their headers would define everything twice in one program."""
    plain = of_period(full_tables, "2017")
    for period in ("2016.H", other, "2016H"):
        tables = replace(plain, provenance={**plain.provenance, "period": period})
        export_folder(tables, tmp_path / period, ("npz",))
    message = rf"periods 2016\.H and {re.escape(other)} have the same C\+\+ namespace muon_scale_2016_H"
    with pytest.raises(InputError, match=message):
        merge_folders([tmp_path / "2016.H", tmp_path / other], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    merge_folders([tmp_path / "2016.H", tmp_path / "2016H"], tmp_path / "all")
