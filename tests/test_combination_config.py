"""Files of combinations: what is read, and one message with table and key for what cannot be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from musclecal.combination_config import load_combination
from musclecal.combination_scenarios import combination_cases
from musclecal.errors import InputError

GOOD = """
title = "two"
[inputs.a]
observable = "m"
value = 10.0
stat = 0.5
labels = { era = "1", experiment = "A" }
uncertainties = { x = -0.4, y = [0.3, -0.2] }
shift_errors = { x = 0.05 }
[inputs.b]
observable = "m"
value = 11.0
stat = 0.6
labels = { era = "2", experiment = "A" }
uncertainties = { x = 0.2, z = 0.1 }
[sources.x]
group = "jets"
[[correlations]]
sources = ["x"]
pairs = [["a", "b"]]
rho = 0.5
scan = [0.0, 1.0]
[scenarios.less]
drop = { sources = ["y"] }
"""


def written(tmp_path: Path, text: str, name: str = "file.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_shifts_labels_and_correlations(tmp_path: Path) -> None:
    base, less = combination_cases(load_combination(written(tmp_path, GOOD)))
    assert base.names == ("a", "b")
    assert base.observables == ("m",)
    assert tuple(base.sources) == ("stat", "x", "y", "z")
    np.testing.assert_array_equal(base.sources["x"].up, [-0.4, 0.2])
    np.testing.assert_array_equal(base.sources["x"].down, [0.4, -0.2])
    np.testing.assert_array_equal(base.sources["y"].down, [-0.2, 0.0])
    np.testing.assert_array_equal(base.sources["x"].correlation, [[1.0, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(base.sources["x"].shift_errors, [0.05, 0.0])
    np.testing.assert_array_equal(base.sources["stat"].correlation, np.eye(2))
    assert base.asymmetric == ("y",)
    assert base.statistical == ("stat",)
    assert base.groups == {"jets": ("x",)}
    (one,) = base.scans["x"]
    assert (one.pairs, one.low, one.high) == (((0, 1),), 0.0, 1.0)
    assert tuple(less.sources) == ("stat", "x", "z")


def test_json_is_the_same_file(tmp_path: Path) -> None:
    text = (
        '{"inputs": {"a": {"observable": "m", "value": 1.0, "stat": 0.1, "uncertainties": {"x": [1, -2]}}}}'
    )
    toml = '[inputs.a]\nobservable = "m"\nvalue = 1.0\nstat = 0.1\nuncertainties = {x = [1, -2]}\n'
    assert load_combination(written(tmp_path, text, "f.json")) == load_combination(written(tmp_path, toml))


def test_of_several_tables_the_last_one_holds(tmp_path: Path) -> None:
    later = '[[correlations]]\nsources = ["x"]\ndifferent = ["era"]\nsame = ["experiment"]\nrho = -0.2\n'
    (base,) = combination_cases(load_combination(written(tmp_path, GOOD + later)), [])
    assert base.sources["x"].correlation[0, 1] == -0.2
    assert not base.scans


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stat = 0.5", "stats = 0.5", "inputs.a.stats: unknown key"),
        ("stat = 0.5\n", "", "inputs.a.stat: Field required"),
        ("value = 10.0\n", "", "inputs.a.value: Field required"),
        ("value = 10.0", "value = nan", "inputs.a.value: Input should be a finite number"),
        ("x = -0.4", "x = nan", "inputs.a.uncertainties.x: must be finite"),
        ("x = -0.4", "x = [0.1, inf]", "inputs.a.uncertainties.x.1: Input should be a finite number"),
        ("x = -0.4", "x = 1e200", "inputs.a.uncertainties.x.0: Input should be less than"),
        ("x = -0.4", "x = [0.1]", "inputs.a.uncertainties.x: a number, or [up, down], is wanted"),
        ("x = -0.4", 'x = "big"', "inputs.a.uncertainties.x: a number, or [up, down], is wanted"),
        ('observable = "m"\nvalue = 10.0', "value = 10.0", "inputs.a.observable: Field required"),
        ("stat = 0.5", "stat = -0.5", "inputs.a.stat: Input should be greater than 0"),
        ("shift_errors = { x", "shift_errors = { w", "shift_errors.w: the input has no such uncertainty"),
        ("[sources.x]", "[sources.w]", "sources.w: no input has this uncertainty"),
        ("[sources.x]", "[sources.stat]", "sources.stat: no input|sources.stat: is what the key stat"),
        ("rho = 0.5", "rho = 1.5", "correlations.0.rho: Input should be less than or equal to 1"),
        ("rho = 0.5\n", "", "correlations.0: one of rho and matrix is needed"),
        ("scan = [0.0, 1.0]", "scan = [0.0, 1.1]", "correlations.0.scan.1: Input should be less than"),
        ("scan = [0.0, 1.0]", "scan = [1.0, 0.0]", "scan: 1 to 0 is no range"),
        ("scan = [0.0, 1.0]", "scan = [0.6, 1.0]", "correlations.0.scan: rho = 0.5 lies outside"),
        ('sources = ["x"]\n', 'sources = ["w"]\n', "correlations.0.sources: there is no source 'w'"),
        ('sources = ["x"]\n', 'sources = ["z"]\n', "correlations.0.scan: z moves no pair"),
        ('[["a", "b"]]', '[["a", "c"]]', "correlations.0.pairs: there is no input 'c'"),
        ('[["a", "b"]]', '[["a", "a"]]', "correlations.0.pairs: an input with itself"),
        ("pairs = ", 'same = ["particle"]\npairs = ', "correlations.0.same: a has no label 'particle'"),
        ('drop = { sources = ["y"] }', 'drop = { sources = ["w"] }', "scenarios.less.drop.sources: there is no"),
        ('drop = { sources = ["y"] }', 'drop = { inputs = ["a", "b"] }', "less.drop.inputs: no input is left"),
        ('drop = { sources = ["y"] }', "scale = { w = 2.0 }", "scenarios.less.scale: there is no source 'w'"),
        ('drop = { sources = ["y"] }', 'sign = { x = ["c"] }', "scenarios.less.sign.x: there is no input 'c'"),
        ('drop = { sources = ["y"] }', 'rename = { x = "z" }', "scenarios.less.rename: b has both 'x' and 'z'"),
        ('drop = { sources = ["y"] }', 'merge = { x = ["x", "y"] }', "less.merge.x: y has asymmetric shifts"),
        ('drop = { sources = ["y"] }', 'split = { x = "run" }', "split.x: a has no label 'run'"),
        ('drop = { sources = ["y"] }', "split = { x = { p = 0.5 } }", "split.x: squares of the factors"),
        ("[scenarios.less]", "[scenarios.base]", "scenarios.base: this is the name"),
        ('title = "two"', 'observables = ["n"]', "inputs.a.observable: 'm' is not in observables"),
        ('title = "two"', 'title = "two', "not valid TOML"),
        ('title = "two"', 'method = "magic"', "method: Input should be 'auto'"),
        ('title = "two"', 'method = "closed form"', "y has asymmetric shifts, which the closed form"),
        ('title = "two"', "[statistics]\ninputs = ['a']\ncovariance = [[1.0]]", "inputs.a.stat: is in statistics"),
    ],
)  # fmt: skip
def test_bad_files_end_with_one_message(
    tmp_path: Path, command: Callable[..., Result], old: str, new: str, message: str
) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    out = tmp_path / "out"
    told = command("combine", path, "--out", out, code=2).stderr
    assert told.startswith(f"musclecal: {path}: ")
    assert any(part in told for part in message.split("|")), told
    assert len(told.splitlines()) == 1
    assert not out.exists()


def test_bad_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not valid JSON"):
        load_combination(written(tmp_path, "{", "f.json"))
    with pytest.raises(InputError, match="key 'title' is there twice"):
        load_combination(written(tmp_path, '{"title": "a", "title": "b"}', "f.json"))
    with pytest.raises(InputError, match="no such file"):
        load_combination(tmp_path / "nowhere.toml")


def test_wrong_options(tmp_path: Path, command: Callable[..., Result]) -> None:
    path = written(tmp_path, GOOD)
    assert (
        "there is no 'more'; there are less" in command("combine", path, "--scenario", "more", code=2).stderr
    )
    assert "--form" in command("combine", path, "--form", "neyman", code=2).stderr
    told = command("combine", path, "--format", "convino", "--scenario", "less", code=2).stderr
    assert "--scenario: files of Convino have none" in told
    (tmp_path / "file").write_text("in the way")
    assert "file" in command("combine", path, "--out", tmp_path / "file", code=2).stderr
    assert "less" in command("combine", path, "--scenario", "less").stdout
