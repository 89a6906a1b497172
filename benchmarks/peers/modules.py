"""Tracks and pairs refitted for the corrections of modules: what `benchmarks.refit` measures, as rows.

"fixed loop" is the unit of `benchmarks.refit` (18 products of 6 x 6 matrices and six sines and cosines), to compare
machines: its ratio is no speed against somebody. "acts" is ACTS' Kalman filter on its own detector;
`benchmarks.refit` says what is not alike, which is nearly everything, so no aim is set.
"""

import os
from collections.abc import Iterator

from benchmarks.peers.rows import Difference, Effort, Row, need, tell

NAME = "modules"


def _differences(row: dict[str, float]) -> tuple[Difference, ...]:
    return (
        Difference("pull width of q/p, from 1", abs(row["pull width of q/p"] - 1.0), 0.1),
        Difference("chi2/ndf of tracks, from 1", abs(row["chi2/ndf of tracks"] - 1.0), 0.1),
        Difference("chi2/ndf of pairs, from 1", abs(row["chi2/ndf of pairs"] - 1.0), 0.1),
        Difference("tracks not fitted", 1.0 - row["fitted tracks"], 0.01),
    )


def rows(effort: Effort, others: bool) -> Iterator[Row]:
    """A row for the fixed loop, and one for ACTS where it is installed and asked for."""
    from benchmarks.refit import measure

    acts = others
    if others:
        try:
            need("acts")
        except ImportError as error:
            tell(f"{NAME}: acts is not installed ({error})")
            acts = False
    tell(f"{NAME}: fixed loop{', acts' if acts else ''}")
    found = measure(effort.of(2e4, 500), effort.of(5e3, 200), acts)
    for what, number in (("tracks", "tracks"), ("pairs", "contributions")):
        yield Row(
            NAME, f"fixed loop, {what}", what, found[f"{number} per second"], found["reference per second"],
            _differences(found), 1, os.getloadavg()[0],
        )  # fmt: skip
    if acts:
        yield Row(
            NAME, "acts", "tracks", found["tracks per second"], found["acts per second"], _differences(found), 1,
            os.getloadavg()[0],
        )  # fmt: skip
