"""The command `musclecal combine`: published combinations, scenarios against the same change by hand, files written."""

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from musclecal.combination_config import CombinationConfig
from musclecal.combination_run import run_combination
from musclecal.records.combination_case import CaseResult

Command = Callable[..., Result]

TABLES = Path(__file__).parent / "fits/combination/tables"
REFERENCE = Path(__file__).parents[1] / "../shared/reference/convino"

ATLAS_NAMES = {"bJES": "bJES", "JESflavres": "gJES", "JESflavcomp": "lJES", "Other": "Extra", "Stat": "stat"}
CMS_NAMES = {"JES5": "bJES", "JES4": "gJES", "JES6": "lJES", "BFRAG": "HADR", "Stat": "stat"}
SCANS = {
    "JES2": (0.0, -0.25, 0.25, 8.4, 7.2), "JES3": (0.5, 0.25, 0.75, 0.8, 0.1), "bJES": (0.85, 0.5, 1.0, 25.9, 5.5),
    "gJES": (0.85, 0.5, 1.0, 1.5, 0.2), "lJES": (0.0, -0.25, 0.25, 0.6, 0.1), "JER": (0.0, -0.25, 0.25, 5.4, 0.7),
    "LES": (0.0, -0.25, 0.25, 2.2, 1.6), "BTAG": (0.5, 0.25, 0.75, 0.8, 1.2), "MET": (0.0, -0.25, 0.25, 0.1, 0.0),
    "PU": (0.85, 0.5, 1.0, 2.0, 0.3), "TRIG": (0.0, -0.25, 0.25, 0.3, 0.0), "MCGEN": (0.5, 0.25, 0.75, 0.3, 4.1),
    "RAD": (0.5, 0.25, 0.75, 6.8, 0.8), "HADR": (-0.5, -0.75, -0.25, 1.3, 0.1), "CR": (0.5, 0.25, 0.75, 3.3, 0.7),
    "UE": (0.5, 0.25, 0.75, 0.9, 0.3), "PDF": (0.85, 0.5, 1.0, 0.6, 0.2), "BKDT": (0.0, -0.25, 0.25, 7.7, 1.7),
    "BKMC": (0.85, 0.5, 1.0, 1.7, 0.0),
}  # fmt: skip
"""Correlation of ATLAS with CMS, its range, dm/2 and dsigma/2 in MeV."""
WITHOUT = (18, 11, -4, 41, 89, -34, -33, 8, -18, 14, 76, 36, 21, -11, -115)
"""MeV, of m_t without each input in turn."""
WEIGHTS = [
    -0.025, 0.075, 0.002, 0.161, 0.172, 0.032, -0.076, -0.015, 0.034, 0.118, 0.343, 0.116, -0.031, 0.009, 0.084
]  # fmt: skip
FROZEN = {"bJES": 0.225, "BTAG": 0.092, "MCGEN": 0.088, "JES1": 0.091}
"""From fits with nuisances, which need correlations that do not contradict each other."""
SPLIT = {"bJES": 0.176, "BTAG": 0.086, "MCGEN": 0.082, "JES1": 0.081, "RAD": 0.056, "HADR": 0.019}


def rows_of(name: str) -> tuple[list[str], dict[str, list[float]]]:
    lines = [line.split() for line in (TABLES / name).read_text().splitlines() if not line.startswith("#")]
    return lines[0][1:], {line[0]: [float(x) for x in line[1:]] for line in lines[1:]}


def measured(
    value: float, stat: float, experiment: str, first: bool, shifts: dict[str, float]
) -> dict[str, Any]:
    return {
        "observable": "m_t",
        "value": value,
        "stat": stat,
        "labels": {"experiment": experiment, "era": "7 TeV" if first else "8 TeV"},
        "uncertainties": {source: shift for source, shift in shifts.items() if shift},
    }


def lhc_file() -> dict[str, Any]:
    """The LHC combination of top-quark masses of Run 1 (arXiv:2402.08713)."""
    inputs: dict[str, Any] = {}
    names, atlas = rows_of("atlas_run1.txt")
    for i, name in enumerate(names):
        row = {ATLAS_NAMES.get(s, s): shifts[i] for s, shifts in atlas.items()}
        inputs[f"ATLAS {name}"] = measured(row.pop("value"), row.pop("stat"), "ATLAS", i < 3, row)
    of_atlas = list(inputs)
    names, cms = rows_of("cms_run1.txt")
    radiation = np.outer(cms["Q"], cms["Q"]) + np.outer(cms["JPS"], cms["JPS"])
    size = np.sqrt(np.diagonal(radiation))
    for i, name in enumerate(names):
        row = {CMS_NAMES.get(s, s): x[i] for s, x in cms.items() if s not in ("Q", "JPS")}
        row["RAD"] = float(size[i])
        inputs[name] = measured(row.pop("value"), row.pop("stat"), "CMS", i < 3, row)
    of_cms = [name for name in inputs if name not in of_atlas]
    correlations: list[dict[str, Any]] = []
    _, given = rows_of("atlas_run1_correlations.txt")
    for source, numbers in given.items():
        rho = np.eye(6)
        for (i, j), x in zip(combinations(range(6), 2), numbers, strict=True):
            rho[i, j] = rho[j, i] = abs(x) if min(atlas[source]) < 0.0 else x
        name = ATLAS_NAMES.get(source, source)
        correlations.append({"sources": [name], "inputs": of_atlas, "matrix": rho.tolist()})
    unlike = ["METH", "Extra", "TRIG", "BKDT"]
    correlations += [
        {"sources": unlike, "inputs": of_cms, "rho": 0.0},
        {"sources": ["JES1"], "inputs": of_cms, "different": ["era"], "rho": 0.0},
        {"sources": ["RAD"], "inputs": of_cms, "matrix": (radiation / np.outer(size, size)).tolist()},
        {"sources": ["PU"], "same": ["era"], "rho": 1.0},
        {"sources": ["PU"], "different": ["era"], "rho": 0.0},
        {"sources": ["JES1", "METH", "Extra"], "different": ["experiment"], "rho": 0.0},
    ]
    for source, (rho_between, low, high, _, _) in SCANS.items():
        rule = {"sources": [source], "different": ["experiment"], "rho": rho_between, "scan": [low, high]}
        correlations.append(rule | ({"same": ["era"]} if source == "PU" else {}))
    return {
        "title": "LHC top-quark mass, Run 1",
        "unit": "GeV",
        "inputs": inputs,
        "correlations": correlations,
    }


@pytest.fixture(scope="module")
def lhc() -> dict[str, Any]:
    return lhc_file()


@pytest.fixture
def lhc_path(tmp_path: Path, lhc: dict[str, Any]) -> Path:
    path = tmp_path / "lhc.json"
    drop = {"drop": {"inputs": [name for name in lhc["inputs"] if not name.startswith("ATLAS")]}}
    path.write_text(json.dumps(lhc | {"scenarios": {"ATLAS alone": drop}}))
    return path


class TestTopMass:
    def test_numbers(self, command: Command, lhc_path: Path) -> None:
        found = json.loads(command("combine", lhc_path, "--json").stdout)
        mass = found["observables"]["m_t"]
        assert mass["value"] == pytest.approx(172.515, abs=0.0005)
        assert mass["stat"] == pytest.approx(0.142, abs=0.0005)
        assert mass["syst"] == pytest.approx(0.297, abs=0.0005)
        assert mass["up"] == mass["down"] == pytest.approx(0.329, abs=0.0005)
        assert found["chi2"] == pytest.approx(7.55, abs=0.005)
        assert found["ndf"] == 14
        assert found["p_value"] == pytest.approx(0.911, abs=0.0005)
        np.testing.assert_allclose(list(found["weights"]["m_t"].values()), WEIGHTS, atol=0.00051)
        without = [1e3 * one["shift"]["m_t"] for one in found["leave_one_out"].values()]
        np.testing.assert_allclose(without, WITHOUT, atol=0.6)
        for kind, expected, tolerance in (("split", SPLIT, 0.00051), ("frozen", FROZEN, 0.0015)):
            for source, number in expected.items():
                assert found["impacts"][kind][source]["m_t"] == pytest.approx(number, abs=tolerance), source
        assert found["correlation"] == [[pytest.approx(1.0)]]

    def test_all_scans(self, command: Command, lhc_path: Path) -> None:
        found = json.loads(command("combine", lhc_path, "--json").stdout)["scans"]
        assert set(found) == set(SCANS)
        for name, (_, low, high, value, error) in SCANS.items():
            scan = found[name]
            assert (scan["low"], scan["high"]) == (low, high)
            assert 1e3 * scan["half_range_value"]["m_t"] == pytest.approx(value, abs=0.051), name
            assert 1e3 * scan["half_range_error"]["m_t"] == pytest.approx(error, abs=0.051), name

    def test_a_scenario_is_the_combination_of_one_experiment(self, command: Command, lhc_path: Path) -> None:
        found = json.loads(command("combine", lhc_path, "--json").stdout)["scenarios"]["ATLAS alone"]
        mass = found["observables"]["m_t"]
        assert mass["value"] == pytest.approx(172.706, abs=0.0005)
        assert mass["stat"] == pytest.approx(0.249, abs=0.0005)
        assert mass["syst"] == pytest.approx(0.413, abs=0.0005)
        assert (found["chi2"], found["ndf"]) == (pytest.approx(3.31, abs=0.005), 5)
        assert not found["scans"]

    def test_text(self, command: Command, lhc_path: Path) -> None:
        text = command("combine", lhc_path).stdout
        for part in ("172.515", "chi2/ndf = 7.55/14, p = 0.911", "ATLAS alone", "172.706", "bJES"):
            assert part in text
        scans = text[text.index("scan [GeV]") :].splitlines()
        assert [line.split()[0] for line in scans[1:4]] == ["bJES", "JES2", "BKDT"]
        assert max(map(len, text.splitlines())) < 130
        assert "PDF: smallest eigenvalue -2.5" in text

    def test_files(self, command: Command, lhc_path: Path, tmp_path: Path) -> None:
        out = tmp_path / "new" / "folder"
        table = json.loads(command("combine", lhc_path, "--json", "--out", out).stdout)
        figures = ("correlations", "impacts", "inputs", "scans")
        assert sorted(path.name for path in out.iterdir()) == sorted([
            "combination.json", "combination.npz", "combination.tex",
            *(f"combination_{name}.{kind}" for name in figures for kind in ("pdf", "png")),
        ])  # fmt: skip
        assert sorted(table["files"]) == sorted(str(path) for path in out.iterdir())
        assert json.loads((out / "combination.json").read_text())["observables"] == table["observables"]
        with np.load(out / "combination.npz") as arrays:
            assert list(arrays["cases"]) == ["base", "ATLAS alone"]
            assert arrays["0/values"][0] == table["observables"]["m_t"]["value"]
            assert arrays["0/scan_values"].shape == (19, 20, 1)
        latex = (out / "combination.tex").read_text()
        assert r"base & m\_t & $172.515 \pm 0.329$ & 0.142 & 0.297 & 7.55/14 & 0.911 \\" in latex


def test_the_example_of_the_documentation_runs(command: Command, tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs/combination.md"
    if not page.is_file():
        pytest.skip("the documentation is not beside these tests")
    path = tmp_path / "example.toml"
    path.write_text(page.read_text().split("```toml\n")[1].split("```")[0])
    found = json.loads(command("combine", path, "--json").stdout)
    assert list(found["scans"]) == ["JES", "b-JES"]
    assert list(found["scenarios"]) == ["ATLAS alone", "b-JES half as large"]
    jets = found["impacts"]["groups_split"]["jets"]["m_t"]
    split = found["impacts"]["split"]
    assert jets == pytest.approx(np.hypot(split["JES"]["m_t"], split["b-JES"]["m_t"]))


# Scenarios: the change by the file is the change by hand.

LABELS = {"a": {"era": "1"}, "b": {"era": "1"}, "c": {"era": "2"}}


def small(**changes: Any) -> dict[str, Any]:
    """Three inputs, three sources."""
    inputs = {
        "a": (10.0, 0.5, {"x": 0.4, "y": -0.3, "z": 0.2}),
        "b": (10.8, 0.6, {"x": 0.2, "y": 0.5}),
        "c": (9.6, 0.4, {"x": -0.3, "z": 0.6}),
    }
    return {
        "inputs": {
            name: {
                "observable": "m",
                "value": value,
                "stat": stat,
                "uncertainties": u,
                "labels": LABELS[name],
            }
            for name, (value, stat, u) in inputs.items()
        },
        "correlations": [{"sources": ["x"], "rho": 0.3, "scan": [0.0, 0.5]}],
        **changes,
    }


def ran(table: dict[str, Any]) -> CaseResult:
    return run_combination(CombinationConfig.model_validate(table)).base


def scenario(change: dict[str, Any]) -> CaseResult:
    (found,) = run_combination(CombinationConfig.model_validate(small(scenarios={"s": change}))).scenarios
    return found


def by_hand(change: Callable[[dict[str, Any]], None]) -> CaseResult:
    table = small()
    change(table)
    return ran(table)


def same(found: CaseResult, expected: CaseResult) -> None:
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-12)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-10, atol=1e-12)
    assert found.chi2 == pytest.approx(expected.chi2, rel=1e-10)
    assert found.ndf == expected.ndf
    assert set(found.split) == set(expected.split)
    assert [scan.name for scan in found.scans] == [scan.name for scan in expected.scans]
    for one, other in zip(found.scans, expected.scans, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-12)
    for name, part in expected.split.items():
        np.testing.assert_allclose(found.split[name], part, rtol=1e-10, atol=1e-12)


def uncertainties(table: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: one["uncertainties"] for name, one in table["inputs"].items()}


def test_drop_an_input() -> None:
    same(scenario({"drop": {"inputs": ["b"]}}), by_hand(lambda t: t["inputs"].pop("b")))


def test_drop_a_source() -> None:
    def change(table: dict[str, Any]) -> None:
        for one in uncertainties(table).values():
            one.pop("x", None)
        table["correlations"] = []

    found = scenario({"drop": {"sources": ["x"]}})
    same(found, by_hand(change))
    base = ran(small())
    np.testing.assert_allclose(base.frozen["x"] ** 2, base.up**2 - found.up**2, rtol=1e-10)


def test_scale() -> None:
    def change(table: dict[str, Any]) -> None:
        for one in uncertainties(table).values():
            one["x"] *= 2.5

    same(scenario({"scale": {"x": 2.5}}), by_hand(change))


def test_sign() -> None:
    def change(table: dict[str, Any]) -> None:
        uncertainties(table)["a"]["x"] *= -1.0

    same(scenario({"sign": {"x": ["a"]}}), by_hand(change))


def test_rename() -> None:
    def change(table: dict[str, Any]) -> None:
        for one in uncertainties(table).values():
            one["new"] = one.pop("x")
        table["correlations"][0]["sources"] = ["new"]

    found = scenario({"rename": {"x": "new"}})
    expected = by_hand(change)
    same(found, expected)


def test_rename_to_a_name_that_is_there_shares_the_source() -> None:
    def before(table: dict[str, Any]) -> None:
        uncertainties(table)["b"]["w"] = 0.4

    table = small()
    before(table)
    shared = {**table, "scenarios": {"s": {"rename": {"w": "z"}}}}
    (found,) = run_combination(CombinationConfig.model_validate(shared)).scenarios
    uncertainties(table)["b"]["z"] = uncertainties(table)["b"].pop("w")
    same(found, ran(table))


def test_rho_by_pair_and_by_rule() -> None:
    pair = {"sources": ["y"], "pairs": [["a", "b"]], "rho": -0.5}
    rule = {"sources": ["x"], "different": ["era"], "rho": 0.1}
    same(scenario({"rho": [pair, rule]}), by_hand(lambda t: t["correlations"].extend([pair, rule])))


def test_split_by_label_is_no_correlation_between_its_values() -> None:
    found = scenario({"split": {"x": "era"}})
    rule = {"sources": ["x"], "different": ["era"], "rho": 0.0}
    expected = by_hand(lambda t: t["correlations"].append(rule))
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-12)
    parts = np.hypot(found.split["x 1"], found.split["x 2"])
    np.testing.assert_allclose(parts, expected.split["x"], rtol=1e-12)


def test_split_in_factors_changes_nothing_but_the_names() -> None:
    found, base = scenario({"split": {"z": {"z1": 0.6, "z2": 0.8}}}), ran(small())
    np.testing.assert_allclose(found.covariance, base.covariance, rtol=1e-12)
    np.testing.assert_allclose(found.split["z1"], 0.6 * base.split["z"], rtol=1e-12)


def test_merge_adds_covariances_and_keeps_signs() -> None:
    found, base = scenario({"merge": {"yz": ["y", "z"]}}), ran(small())
    np.testing.assert_allclose(found.values, base.values, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, base.covariance, rtol=1e-12)
    part = np.sum([W**2 for W in (base.split["y"], base.split["z"])], axis=0)
    np.testing.assert_allclose(found.split["yz"] ** 2, part, rtol=1e-12)

    def change(table: dict[str, Any]) -> None:
        sizes = {"a": -np.hypot(0.3, 0.2), "b": 0.5, "c": 0.6}
        for name, one in uncertainties(table).items():
            one.pop("y", None), one.pop("z", None)
            one["yz"] = float(sizes[name])

    alike = scenario({"merge": {"yz": ["y", "z"]}, "rho": [{"sources": ["yz"], "rho": 1.0}]})
    same(alike, by_hand(change))


def test_a_scan_into_contradictions_is_of_the_points_that_are_possible() -> None:
    table = small(correlations=[{"sources": ["x"], "pairs": [["a", "b"]], "rho": 1.0, "scan": [-1.0, 1.0]}])
    for one in table["inputs"].values():
        one["uncertainties"] = {"x": 3.0}
    (scan,) = ran(table).scans
    assert 0 < scan.n_impossible < 20
    possible = np.isfinite(scan.chi2)
    assert scan.half_range_values[0] == pytest.approx(0.5 * np.ptp(scan.values[possible, 0]))


# Likelihood


def test_symmetric_shifts_give_the_same_by_both_methods() -> None:
    closed, likelihood = ran(small(method="closed form")), ran(small(method="likelihood"))
    assert likelihood.method == "likelihood (neyman)"
    for key in ("values", "up", "weights"):
        np.testing.assert_allclose(getattr(likelihood, key), getattr(closed, key), rtol=1e-9, err_msg=key)
    assert likelihood.chi2 == pytest.approx(closed.chi2, rel=1e-9)
    assert likelihood.ndf == closed.ndf
    for name, part in likelihood.frozen.items():
        np.testing.assert_allclose(part, closed.frozen[name], rtol=1e-7, err_msg=name)
    (one,), (other,) = likelihood.scans, closed.scans
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9)
    np.testing.assert_allclose(one.errors, other.errors, rtol=1e-9)
    np.testing.assert_allclose(one.value_derivative, other.value_derivative, rtol=1e-7)
    assert (closed.breakdown, likelihood.breakdown) == ("split", "frozen")
    np.testing.assert_allclose(
        likelihood.stat, np.sum([1.0 / s**2 for s in (0.5, 0.6, 0.4)]) ** -0.5, rtol=1e-9
    )
    np.testing.assert_allclose(np.hypot(likelihood.stat, likelihood.syst), closed.up, rtol=1e-9)


def test_asymmetric_shifts_go_to_the_likelihood() -> None:
    table = small(scenarios={"symmetric": {"drop": {"sources": ["y"]}}})
    table["inputs"]["a"]["uncertainties"]["y"] = [-0.3, 0.5]
    run = run_combination(CombinationConfig.model_validate(table))
    assert run.base.method == "likelihood (neyman)"
    assert run.base.up[0] != run.base.down[0]
    assert run.base.weights.sum() == pytest.approx(1.0, abs=1e-6)
    assert run.scenarios[0].method == "closed form"


def test_one_input_with_an_asymmetric_shift_has_the_interval_of_the_profile() -> None:
    up_down = {"observable": "m", "value": 5.0, "stat": 1.0, "uncertainties": {"x": [0.5, -0.2]}}
    found = ran({"inputs": {"a": up_down}})
    assert found.values[0] == pytest.approx(5.0)
    # As far as the value would move with the source.
    assert found.up[0] == pytest.approx(np.hypot(1.0, 0.5), rel=1e-6)
    assert found.down[0] == pytest.approx(np.hypot(1.0, 0.2), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_both_methods_with_every_kind_of_correlation(seed: int) -> None:
    """A singular matrix, one nuisance for all, a scan between blocks, two observables."""
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c", "d", "e", "f"]
    factor = rng.normal(size=(6, 2))
    factor /= np.linalg.norm(factor, axis=1)[:, None]
    table = {
        "inputs": {
            name: {
                "observable": "xy"[i % 2],
                "value": float(rng.normal(10.0 + i % 2, 1.0)),
                "stat": float(rng.uniform(0.5, 1.0)),
                "labels": {"block": str(i // 3)},
                "uncertainties": {
                    source: float(rng.normal(0.0, 0.7)) for source in ("low", "whole", "blocks")
                },
            }
            for i, name in enumerate(names)
        },
        "correlations": [
            {"sources": ["low"], "inputs": names, "matrix": (factor @ factor.T).tolist()},
            {"sources": ["blocks"], "different": ["block"], "rho": 0.4, "scan": [-0.1, 0.7]},
        ],
    }
    closed, likelihood = (ran({**table, "method": method}) for method in ("closed form", "likelihood"))
    for key in ("values", "covariance", "weights"):
        np.testing.assert_allclose(
            getattr(likelihood, key), getattr(closed, key), rtol=1e-8, atol=1e-9, err_msg=key
        )
    assert likelihood.chi2 == pytest.approx(closed.chi2, rel=1e-8)
    for name, part in likelihood.frozen.items():
        np.testing.assert_allclose(part, closed.frozen[name], rtol=1e-6, atol=1e-8, err_msg=name)
    (one,), (other,) = likelihood.scans, closed.scans
    for key in ("values", "errors", "chi2", "value_derivative", "error_derivative"):
        np.testing.assert_allclose(getattr(one, key), getattr(other, key), rtol=1e-6, atol=1e-8, err_msg=key)


def test_a_nuisance_that_acts_the_other_way_round() -> None:
    """rho = -1 is the shift the other way round, up for down."""
    table = small(correlations=[{"sources": ["y"], "pairs": [["a", "b"]], "rho": -1.0}])
    table["inputs"]["a"]["uncertainties"]["y"] = [0.5, -0.2]
    turned = small(correlations=[])
    turned["inputs"]["a"]["uncertainties"]["y"] = [-0.2, 0.5]
    found, expected = ran(table), ran(turned)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
    np.testing.assert_allclose([found.up, found.down], [expected.up, expected.down], rtol=1e-6)


def test_the_likelihood_refuses_correlations_that_contradict_each_other(
    command: Command, tmp_path: Path, lhc: dict[str, Any]
) -> None:
    path = tmp_path / "lhc.json"
    path.write_text(json.dumps(lhc | {"method": "likelihood"}))
    told = command("combine", path, code=2).stderr
    assert "negative eigenvalues" in told


@pytest.mark.parametrize("form", ["neyman", "pearson"])
def test_weights_of_the_likelihood_are_changes_of_the_value(form: str) -> None:
    """Of two observables, one source relative, one asymmetric, against combinations of moved inputs."""

    def moved(name: str | None, step: float) -> CaseResult:
        table = small(sources={"x": {"kind": "relative"}}, form=form, method="likelihood")
        table["inputs"]["c"]["observable"] = "other"
        table["inputs"]["c"]["uncertainties"]["z"] = [0.6, -0.4]
        if name is not None:
            table["inputs"][name]["value"] += step
        return ran(table)

    weights = moved(None, 0.0).weights
    for i, name in enumerate(LABELS):
        change = (moved(name, 1e-3).values - moved(name, -1e-3).values) / 2e-3
        np.testing.assert_allclose(weights[:, i], change, atol=1e-6, err_msg=name)


def test_relative_sources_are_of_the_combined_value() -> None:
    table = {
        "inputs": {
            "a": {"observable": "m", "value": 10.0, "stat": 0.1, "uncertainties": {"x": 1.0}},
            "b": {"observable": "m", "value": 8.0, "stat": 0.1, "uncertainties": {"x": 0.8}},
        },
        "sources": {"x": {"kind": "relative"}},
    }
    found = ran(table)
    assert found.values[0] == pytest.approx(9.0)
    assert found.split["x"][0] == pytest.approx(0.9)


def test_statistical_covariance() -> None:
    table = small(statistics={"inputs": ["a", "b"], "covariance": [[0.25, 0.15], [0.15, 0.36]]})
    for name in "ab":
        table["inputs"][name].pop("stat")
    rho = {"sources": ["stat"], "pairs": [["a", "b"]], "rho": 0.5}
    same(ran(table), by_hand(lambda t: t["correlations"].append(rho)))


# Convino


@pytest.mark.parametrize(
    ("form", "chi2", "value"), [("pearson", 4.11332, 798.690), ("neyman", 4.15062, 798.670)]
)
def test_files_of_convino(command: Command, tmp_path: Path, form: str, chi2: float, value: float) -> None:
    if not REFERENCE.is_dir():
        pytest.skip(f"no inputs of Convino's example: {REFERENCE} is not there")
    shutil.copytree(REFERENCE.resolve(), tmp_path / "convino")
    (tmp_path / "convino" / "extra_correlations.txt").write_text("\n\nsys_d2 = (0.9) sys_c1\n")
    path = tmp_path / "convino" / "exampleconfig.txt"
    found = json.loads(command("combine", path, "--format", "convino", "--form", form, "--json").stdout)
    assert found["chi2"] == pytest.approx(chi2, abs=1e-5)
    assert found["ndf"] == 4
    a, _ = found["observables"].values()
    assert a["value"] == pytest.approx(value, abs=5e-3)
    assert a["up"] == pytest.approx(7.626 if form == "pearson" else 7.615, abs=2e-3)
    assert a["down"] == pytest.approx(7.581 if form == "pearson" else 7.583, abs=2e-3)
    assert set(found["impacts"]["groups_frozen"]) >= {"a_unc", "b_unc"}
    assert [scan["points_impossible"] for scan in found["scans"].values()] == [2, 6]
    assert all(scan["half_range_value"]["combined_a"] > 0.0 for scan in found["scans"].values())
    assert np.sum([*found["weights"]["combined_a"].values()]) == pytest.approx(1.0, abs=0.1)
    assert "combined_a" in command("combine", path, "--format", "convino").stdout
