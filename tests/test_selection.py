"""Cuts, cut flows, and expressions that users write."""

from typing import Any

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.expressions import Condition
from musclecal.records import CutFlow, DimuonEvents, Muons
from musclecal.selection import Cuts, format_cut_flow, names_needed, select


@pytest.fixture
def events() -> DimuonEvents:
    """Five back-to-back pairs of mass 2 pT (plus the muon mass), at phi 0 and pi."""
    pt = np.array([3.0, 4.0, 10.0, 45.0, 60.0])
    eta_plus = np.array([0.0, 0.5, -1.0, 2.4, 1.0])
    plus = Muons(pt, eta_plus, np.zeros(5))
    minus = Muons(pt, eta_plus, np.full(5, np.pi))
    extra = {
        "iso_plus": np.array([0.1, 0.2, np.nan, 0.4, 0.5]),
        "flags": np.array([0, 1, 2, 3, 4]),
        "tight": np.array([True, False, True, False, True]),
        "type_plus": np.array(["G", "T", "G", "G", "T"]),
    }
    return DimuonEvents(plus, minus, run=np.array([1, 1, 2, 2, 3]), extra=extra)


def passing(events: DimuonEvents, *expressions: str) -> list[float]:
    chosen, _ = select(events, Cuts(expressions=expressions))
    return [float(pt) for pt in chosen.plus.pt]


def test_no_cuts_keep_everything(events: DimuonEvents) -> None:
    chosen, flow = select(events, Cuts())
    assert chosen is events
    assert flow == CutFlow(("pairs",), (5,))


def test_named_cuts_in_order(events: DimuonEvents) -> None:
    cuts = Cuts(4.0, 60.0, -2.4, 2.4, (8.0, 100.0), ("run == 2",))
    chosen, flow = select(events, cuts)
    assert flow.names == (
        "pairs",
        "pT > 4 GeV",
        "pT < 60 GeV",
        "-2.4 < eta < 2.4",
        "8 < m < 100 GeV",
        "run == 2",
    )
    assert flow.counts == (5, 4, 3, 2, 2, 1)
    assert chosen.plus.pt.tolist() == [10.0]
    assert chosen.extra["flags"].tolist() == [2]


def test_cuts_are_half_open_for_each_muon() -> None:
    low = Muons(np.array([4.0, 4.0]), np.array([-2.4, 2.4]), np.zeros(2))
    high = Muons(np.array([5.0, 5.0]), np.zeros(2), np.ones(2))
    for events in (DimuonEvents(low, high), DimuonEvents(high, low)):
        assert len(select(events, Cuts(muon_pt_min=4.0))[0]) == 2
        assert len(select(events, Cuts(muon_pt_max=5.0))[0]) == 0
        assert len(select(events, Cuts(eta_min=-2.4, eta_max=2.4))[0]) == 1
        assert select(events, Cuts(eta_min=-2.0))[1] == CutFlow(("pairs", "-2 < eta"), (2, 1))


def test_mass_window_against_the_formula(events: DimuonEvents) -> None:
    energy = np.sqrt(events.plus.pt[0] ** 2 + 0.1056583755**2)  # at eta = 0
    window = (2.0 * energy - 1e-9, 2.0 * energy + 1e-9)
    assert len(select(events, Cuts(mass_window=window))[0]) == 1


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("pt_plus > 4", [10.0, 45.0, 60.0]),
        ("4 <= pt_plus < 45", [4.0, 10.0]),
        ("abs(eta_plus) < 1 or run == 3", [3.0, 4.0, 60.0]),
        ("(pt_plus > 4) & ~(run == 2)", [60.0]),
        ("(pt_plus > 50) | (pt_plus < 3.5)", [3.0, 60.0]),
        ("not tight", [4.0, 45.0]),
        ("tight and not run == 1", [10.0, 60.0]),
        ("iso_plus < 1", [3.0, 4.0, 45.0, 60.0]),
        ("sqrt(-pt_plus) > 0", []),
        ("1 / (pt_plus - 3) > 1e-9", [3.0, 4.0, 10.0, 45.0, 60.0]),
        ("flags & 2 == 2", [10.0, 45.0]),
        ("flags % 2 == 1", [4.0, 45.0]),
        ("hypot(pt_plus, pt_minus) > 1.4 * max(pt_plus, 20, 1)", [45.0, 60.0]),
        ("min(pt_plus, 2 ** 3) == 8 and cos(phi_plus) > -sin(1)", [10.0, 45.0, 60.0]),
        ("mass / 2 - +pt_plus < 1e-2 and pt_plus == 3", [3.0]),
        ("10 ** -3 < pt_plus * 1e-3 + 0", [3.0, 4.0, 10.0, 45.0, 60.0]),
        ("type_plus == 'T'", [4.0, 60.0]),
        ("1 < 2", [3.0, 4.0, 10.0, 45.0, 60.0]),
        ("  tight  ", [3.0, 10.0, 60.0]),
    ],
)
def test_expressions(events: DimuonEvents, expression: str, expected: list[float]) -> None:
    assert passing(events, expression) == expected


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("__import__('os').system('true')", "__import__.* is not allowed"),
        ("pt_plus.max() > 3", "pt_plus.max"),
        ("exp(pt_plus) > 3", "exp"),
        ("[x for x in run]", "x for x in run"),
        ("(lambda: 1)() > 0", "lambda"),
        ("pt_plus[0] > 3", r"pt_plus\[0\]"),
        ("run in (1, 2)", "run in"),
        ("tight is True", "tight is True"),
        ("pt_plus > True", "True"),
        ("pt_plus // 2 > 3", "pt_plus // 2"),
        ("pt_plus if tight else 1", "if tight"),
        ("'G'", "'G'"),
        ("type_plus < 'G'", "'G'"),
        ("pt_plus > 3j", "3j"),
        ("min(pt_plus) > 3", r"min\(pt_plus\)' needs 2 argument"),
        ("abs(pt_plus, 1) > 3", "needs 1 argument"),
        ("abs(x=pt_plus) > 3", "abs"),
        ("(a := 3) > 2", "a := 3"),
        ("pt_plus > 1e400", "usable number"),
        ("pt_plus > 99999999999999999999", "usable number"),
        ("pt_plus >", "not understood"),
        ("", "not understood"),
        ("a = 3", "not understood"),
        ("a; b", "not understood"),
        ("pt_plus > 0\x00", "not understood"),
        ("-" * 3000 + "1 > 0", "deep|not understood"),
    ],
)
def test_what_expressions_may_not_hold(expression: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as refusal:
        Cuts(expressions=(expression,))
    assert repr(expression) in str(refusal.value)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("pt_pluss > 3", "unknown column 'pt_pluss': known are iso_plus, flags, .*pt_plus, .*mass"),
        ("lumi > 3", "unknown column 'lumi'"),
        ("abs > 3", "unknown column 'abs'"),
        ("pt_plus", "no condition"),
        ("pt_plus + 1", "no condition"),
        ("pt_plus and tight", "'pt_plus' is neither true nor false"),
        ("not flags", "'flags' is neither true nor false"),
        ("~flags == 1", "'flags' is neither true nor false"),
        ("pt_plus > 4 & eta_plus < 2", "'4 & eta_plus' joins numbers: put comparisons into parentheses"),
        ("type_plus > 3", "cannot be computed"),
        ("tight - tight > 0", "'tight - tight' cannot be computed"),
    ],
)
def test_expressions_that_do_not_fit_the_columns(events: DimuonEvents, expression: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(events, Cuts(expressions=(expression,)))


def test_names_needed() -> None:
    expressions = (
        "abs(eta_plus) < 1 and iso_plus < 0.1",
        "max(chi2, mass) < 5",
        "Muon_tightId_minus",
        "event > 0",
    )
    assert names_needed(expressions) == ("Muon_tightId_minus", "chi2", "iso_plus")
    assert names_needed(()) == ()
    assert Condition("b > a > b").names == ("a", "b")


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ({"muon_pt_min": 5.0, "muon_pt_max": 5.0}, "muon_pt: the lower limit 5 is not below the upper one 5"),
        ({"eta_min": 1.0, "eta_max": -1.0}, "eta: the lower limit 1 is not below"),
        ({"mass_window": (3.2, 2.8)}, "mass_window: the lower limit 3.2"),
        ({"muon_pt_max": float("nan")}, "muon_pt: limits must be finite, got nan"),
        ({"expressions": "pt_plus > 3"}, "must be a list of expressions"),
    ],
)
def test_cuts_that_leave_nothing_are_refused(cuts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cuts(**cuts)


def test_an_empty_chunk_keeps_its_steps(events: DimuonEvents) -> None:
    cuts = Cuts(4.0, None, -2.4, 2.4, (8.0, 100.0), ("run == 2",))
    _, flow = select(events, cuts)
    none, empty = select(events.select(np.zeros(5, dtype=np.bool_)), cuts)
    assert len(none) == 0
    assert flow + empty == flow


def test_flows_follow_each_other() -> None:
    reader = CutFlow(("pairs read", "opposite sign"), (10, 5))
    selection = CutFlow(("pairs", "pT > 4 GeV"), (5, 4))
    assert reader.then(selection) == CutFlow(("pairs read", "opposite sign", "pT > 4 GeV"), (10, 5, 4))
    assert CutFlow().then(selection) == selection
    assert reader.then(CutFlow()) == reader
    with pytest.raises(ValueError, match="leaves 5 cannot go on with 10"):
        reader.then(reader)


def test_cut_flow_table() -> None:
    table = format_cut_flow(
        CutFlow(("pairs read", "opposite sign", "pT > 4 GeV", "none"), (20000, 15000, 5000, 0))
    )
    assert table.splitlines() == [
        "step            pairs  of previous  of first",
        "pairs read     20,000     100.00 %  100.00 %",
        "opposite sign  15,000      75.00 %   75.00 %",
        "pT > 4 GeV      5,000      33.33 %   25.00 %",
        "none                0       0.00 %    0.00 %",
    ]
    assert format_cut_flow(CutFlow(("pairs",), (0,))).splitlines()[1].split() == ["pairs", "0", "-", "-"]
    assert format_cut_flow(CutFlow()).split() == ["step", "pairs", "of", "previous", "of", "first"]
