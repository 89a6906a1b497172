"""Which mis-models of the detector which test finds: a table of injected model against test.

A closure in (pT, eta) bins averages a phi modulation out, an error of e hides at the Z: every test is blind to some.
A mis-model that no test of the table finds is a blind spot of the calibration as a whole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from musclecal.errors import InputError

__all__ = ["FOUND", "Check", "blind_spot_table", "blind_spots"]

FOUND = 1e-3
"""A test with a smaller p-value has found the mis-model."""


@dataclass(frozen=True)
class Check:
    """What one test said of one sample.

    Attributes
    ----------
    model : what was injected. test : what was looked at.
    p_value : of the test's chi2. s : factor on the calibration's uncertainty, where the test gives one.
    """

    model: str
    test: str
    p_value: float
    s: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.p_value <= 1.0:
            raise InputError(f"{self.model}, {self.test}: p-value {self.p_value} is not between 0 and 1")


def blind_spot_table(checks: Sequence[Check], found: float = FOUND) -> str:
    """A Markdown table, one row a model and one column a test: p-value (bold below ``found``) and s.

    The last column counts the tests that find the model. Raises `InputError` for the same cell twice.
    """
    cells = {(check.model, check.test): check for check in checks}
    if len(cells) < len(checks):
        raise InputError("blind spots: the same model and test twice")
    models, tests = _in_order(model for model, _ in cells), _in_order(test for _, test in cells)
    rows = [["injected", *tests, "found by"], ["---"] * (len(tests) + 2)]
    for model in models:
        row = [cells.get((model, test)) for test in tests]
        seen = sum(check is not None and check.p_value < found for check in row)
        rows.append(
            [model, *(_cell(check, found) for check in row), f"{seen} of {len(tests) - row.count(None)}"]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def blind_spots(checks: Sequence[Check], found: float = FOUND) -> tuple[str, ...]:
    """The models that no test finds, in the order of their first check."""
    seen = {check.model for check in checks if check.p_value < found}
    return tuple(model for model in _in_order(check.model for check in checks) if model not in seen)


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _cell(check: Check | None, found: float) -> str:
    if check is None:
        return ""
    p = f"{check.p_value:.2g}"
    return (f"**{p}**" if check.p_value < found else p) + ("" if check.s is None else f", s = {check.s:.2f}")
