"""The table of injected mis-models against tests."""

import pytest

from musclecal.errors import InputError
from musclecal.validation.blind_spots import Check, blind_spot_table, blind_spots

CHECKS = (
    Check("phi modulation", "Z", 0.41, 0.9),
    Check("phi modulation", "Z in phi", 2.2e-11),
    Check("e sign", "Z", 0.2, 1.1),
    Check("pT^2", "Z", 0.0, 4.321),
)


def test_the_table_shows_who_finds_what() -> None:
    assert blind_spot_table(CHECKS).splitlines() == [
        "| injected | Z | Z in phi | found by |",
        "| --- | --- | --- | --- |",
        "| phi modulation | 0.41, s = 0.90 | **2.2e-11** | 1 of 2 |",
        "| e sign | 0.2, s = 1.10 |  | 0 of 1 |",
        "| pT^2 | **0**, s = 4.32 |  | 1 of 1 |",
    ]


def test_blind_spots_are_what_nobody_finds() -> None:
    assert blind_spots(CHECKS) == ("e sign",)
    assert blind_spots(CHECKS, found=0.3) == ()
    assert blind_spots(CHECKS, found=1e-20) == ("phi modulation", "e sign")


def test_wrong_checks_are_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        blind_spot_table((CHECKS[0], CHECKS[0]))
    with pytest.raises(InputError, match="e sign, Z: p-value"):
        Check("e sign", "Z", 1.2)
    with pytest.raises(InputError, match="p-value nan"):
        Check("e sign", "Z", float("nan"))
