"""Every row of the benchmarks can be made, small, and one that does not agree is an exit code."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numba
import pytest

from benchmarks import __main__ as command
from benchmarks.peers.all_works import WORKS
from benchmarks.peers.rows import Difference, Effort, Peer, Row, Timed, Work, rows_of

SMALL = Effort(scale=0.001, rounds=1, seconds=0.1)
PEERS = {
    "fit": {"iminuit", "scipy"},
    "fit template": {"iminuit"},
    "fill": {"numpy+boost-histogram", "histogramdd"},
    "chi2": {"iminuit", "iminuit g2"},
    "read": {"uproot"},
    "apply": {"correctionlib", "numpy"},
}
"""Without those that the package does not depend on; `benchmarks.refit` is a long compilation."""

compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="minutes without compiled kernels")
ROW = Row("fill", "somebody", "pairs", 20.0, 2.0, (Difference("counts", 0.0, 0.0),), 1, 0.5, 0.25, 8.0)


@compiled
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # minimisers of peers try what overflows
@pytest.mark.parametrize("name", PEERS)
def test_rows_of_peers_of_the_package_agree(name: str) -> None:
    rows = list(WORKS[name](SMALL, False))
    assert {row.peer for row in rows} >= PEERS[name] - {"iminuit g2"}
    for row in rows:
        assert row.agrees, row.differences
        assert row.ratio is not None
        assert row.ratio > 0.0
        assert row.work == name
        json.dumps(row.as_json())


class TestRow:
    def test_has_the_ratio_of_rates(self) -> None:
        assert ROW.ratio == 10.0
        assert ROW.as_json()["agreement"] == {"counts": 0.0}

    @pytest.mark.parametrize("value", [1.0, math.nan])
    def test_that_does_not_agree_has_no_ratio(self, value: float) -> None:
        row = replace(ROW, differences=(Difference("counts", value, 0.5),))
        assert row.as_json()["ratio"] is None

    def test_a_difference_without_limit_is_only_told(self) -> None:
        row = replace(ROW, differences=(Difference("fits", 30.0),))
        assert row.ratio == 10.0
        assert row.as_json()["limits"] == {}


def test_a_peer_that_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def absent() -> Peer:
        raise ImportError("no module of that name")

    one = Timed(lambda: None, 1.0)
    work = Work("fill", "pairs", one, None, {"here": lambda: Peer(one, ())}, {"elsewhere": absent})
    assert [row.peer for row in rows_of(work, SMALL, others=True)] == ["here"]
    assert "elsewhere is not installed (no module of that name)" in capsys.readouterr().err


class TestCommand:
    @staticmethod
    def with_row(monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
        def rows(_: Effort, __: bool) -> Iterator[Row]:
            yield row

        monkeypatch.setitem(WORKS, "fill", rows)

    def test_a_line_of_json_a_row(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.with_row(monkeypatch, ROW)
        assert command.main(["--json", "--works", "fill"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line)["ratio"] == 10.0

    def test_disagreement_is_exit_code_1(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.with_row(monkeypatch, replace(ROW, differences=(Difference("counts", 1.0, 0.0),)))
        assert command.main(["--works", "fill"]) == 1
        told = capsys.readouterr()
        assert "does not agree" in told.out
        assert "results of somebody and ours do not agree" in told.err

    def test_writes_a_table_and_a_figure(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.with_row(monkeypatch, ROW)
        assert command.main(["--works", "fill", "--out", str(tmp_path)]) == 0
        assert (
            "| fill | somebody | 20 | 2 | pairs/s | 10 | 8 | 0.25 | counts 0 |"
            in (tmp_path / "speed.md").read_text()
        )
        assert (tmp_path / "speed.png").stat().st_size > 10_000

    def test_an_unknown_work_is_named(self) -> None:
        with pytest.raises(SystemExit, match="unknown 'flil'"):
            command.main(["--works", "flil"])
