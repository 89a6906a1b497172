"""Refinements as files: all digits back, the same bytes again, and a named refusal of what is not one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.export import export_refinement, load_refinement
from musclecal.records import PhiRefinement, RunRefinement

RNG = np.random.default_rng(3)
EDGES = np.array([-2.4, 0.1, 2.4])


def covariance(n: int) -> np.typing.NDArray[np.float64]:
    root = RNG.normal(size=(n, 2 * n))
    matrix = 1e-10 * root @ root.T
    return 0.5 * (matrix + matrix.T)


def example(kind: str) -> PhiRefinement | RunRefinement:
    fit = (101.5, 96, 0.33, 2, 0.0012)
    if kind == "runs":
        return RunRefinement(
            "Z", EDGES, (0, 7, 2**33), RNG.normal(size=(2, 2)), RNG.normal(size=(2, 2)), covariance(8), *fit
        )
    harmonics = (1, 3) if kind == "harmonics" else ()
    shape = (2, 5) if harmonics else (2, 8)
    a, m = RNG.normal(size=shape), RNG.normal(size=shape)
    return PhiRefinement("Z", EDGES, harmonics, 8, a, m, covariance(2 * a.size), *fit)


@pytest.mark.parametrize("kind", ["harmonics", "sectors", "runs"])
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_round_trip(tmp_path: Path, kind: str, suffix: str) -> None:
    record = example(kind)
    export_refinement(record, tmp_path, "z", {"campaign": "test"})
    back = load_refinement(tmp_path / f"z{suffix}")
    for item in dataclasses.fields(record):
        np.testing.assert_array_equal(getattr(back, item.name), getattr(record, item.name))
    first = (tmp_path / f"z{suffix}").read_bytes()
    export_refinement(record, tmp_path, "z", {"campaign": "test"})
    assert (tmp_path / f"z{suffix}").read_bytes() == first
    content = json.loads((tmp_path / "z.json").read_text())
    assert content["units"]["M"] == "1/GeV"
    assert "no independent closure" in content["note"]
    assert content["kind"] == kind
    assert len(content["terms"]) == (2 if kind == "runs" else record.A.shape[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other 2"}, "format 'other 2'"),
        ({"A": [[1.0]]}, "parameters wanted"),
        ({"terms": None}, "not a readable refinement"),
        ({"covariance": "x"}, "not a readable refinement"),
    ],
)
def test_what_is_not_one_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    export_refinement(example("harmonics"), tmp_path, "z", {})
    path = tmp_path / "z.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as error:
        load_refinement(path)
    assert "z.json" in str(error.value)
    path.write_text("{}")
    with pytest.raises(InputError, match="'format' is missing"):
        load_refinement(path)
