"""Published combinations as inputs: LHC top-quark masses of Run 1 and of 7 TeV, the ttbar cross section at 8 TeV."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from musclecal.records import CorrelationRange, Floats, Measurements, Source

TABLES = Path(__file__).parent / "tables"

ATLAS_NAMES = {"bJES": "bJES", "JESflavres": "gJES", "JESflavcomp": "lJES", "Other": "Extra"}
CMS_NAMES = {"JES5": "bJES", "JES4": "gJES", "JES6": "lJES", "BFRAG": "HADR"}
BETWEEN = {
    "JES3": 0.5,
    "bJES": 0.85,
    "gJES": 0.85,
    "RAD": 0.5,
    "MCGEN": 0.5,
    "BKMC": 0.85,
    "PDF": 0.85,
    "BTAG": 0.5,
    "UE": 0.5,
    "CR": 0.5,
    "HADR": -0.5,
    "PU": 0.85,
}
"""Correlation of ATLAS with CMS; pileup only at equal collision energy; 0 for all others."""
CMS_ALONE = ("Stat", "BKDT", "TRIG", "Extra", "METH")
CMS_PER_ENERGY = ("JES1", "PU")
CMS_8TEV = ("BFRAG", "TOPPT")
AT_7TEV = np.array([True] * 3 + [False] * 3 + [True] * 3 + [False] * 6)
"""Of the 15 inputs, ATLAS first."""


def table(name: str) -> tuple[list[str], dict[str, Floats]]:
    """Columns and rows of a file."""
    lines = [line.split() for line in (TABLES / name).read_text().splitlines() if not line.startswith("#")]
    return lines[0][1:], {line[0]: np.array(line[1:], dtype=np.float64) for line in lines[1:]}


def measurements(
    names: list[str], values: Floats, sources: dict[str, Source], design: Floats | None = None
) -> Measurements:
    u = np.ones((len(names), 1)) if design is None else design
    return Measurements(values, sources, u, tuple(names), tuple(f"m{a}" for a in range(u.shape[1])))


def atlas_inputs() -> Measurements:
    names, rows = table("atlas_run1.txt")
    _, given = table("atlas_run1_correlations.txt")
    sources = {}
    for name, shifts in rows.items():
        rho = np.eye(6)
        for (i, j), value in zip(combinations(range(6), 2), given.get(name, np.zeros(15)), strict=True):
            rho[i, j] = rho[j, i] = abs(value) if np.any(shifts < 0.0) else value
        if name == "PU":
            rho = (AT_7TEV[:6, None] == AT_7TEV[:6]).astype(np.float64)
        if name != "value":
            sources[ATLAS_NAMES.get(name, name)] = Source(shifts, rho)
    return measurements([f"ATLAS {name}" for name in names], rows["value"], sources)


def cms_correlation(name: str) -> Floats:
    at_7tev = AT_7TEV[6:]
    if name in CMS_ALONE:
        return np.eye(9)
    if name in CMS_PER_ENERGY:
        return np.asarray(at_7tev[:, None] == at_7tev, dtype=np.float64)
    if name in CMS_8TEV:
        return np.maximum(np.eye(9), np.outer(~at_7tev, ~at_7tev))
    return np.ones((9, 9))


def cms_inputs() -> Measurements:
    names, rows = table("cms_run1.txt")
    sources = {
        CMS_NAMES.get(name, name): Source(shifts, cms_correlation(name))
        for name, shifts in rows.items()
        if name not in ("value", "Q", "JPS")
    }
    radiation = np.outer(rows["Q"], rows["Q"]) + np.outer(rows["JPS"], rows["JPS"])
    size = np.sqrt(np.diagonal(radiation))
    sources["RAD"] = Source(size, radiation / np.outer(size, size))
    return measurements(names, rows["value"], sources)


def lhc_inputs() -> Measurements:
    atlas, cms = atlas_inputs(), cms_inputs()
    none = {6: Source(np.zeros(6), np.eye(6)), 9: Source(np.zeros(9), np.eye(9))}
    sources = {}
    for name in dict.fromkeys([*atlas.sources, *cms.sources]):
        a, c = atlas.sources.get(name, none[6]), cms.sources.get(name, none[9])
        between = np.full((6, 9), BETWEEN.get(name, 0.0))
        if name == "PU":
            between *= AT_7TEV[:6, None] == AT_7TEV[6:]
        rho = np.block([[a.correlation, between], [between.T, c.correlation]])
        sources[name] = Source(np.concatenate([a.shifts, c.shifts]), rho)
    values = np.concatenate([atlas.values, cms.values])
    return measurements([*atlas.names, *cms.names], values, sources)


@pytest.fixture
def atlas() -> Measurements:
    """Six top-quark masses, GeV."""
    return atlas_inputs()


@pytest.fixture
def cms() -> Measurements:
    """Nine top-quark masses, GeV."""
    return cms_inputs()


@pytest.fixture
def lhc() -> Measurements:
    """Fifteen top-quark masses with 26 sources, GeV."""
    return lhc_inputs()


@pytest.fixture
def between() -> Callable[..., tuple[CorrelationRange, ...]]:
    """``between("JES2", -0.25, 0.25)``: the correlation of ATLAS with CMS, for pileup at equal energy."""

    def ranges(source: str, low: float, high: float) -> tuple[CorrelationRange, ...]:
        pairs = tuple(
            (i, j) for i in range(6) for j in range(6, 15) if source != "PU" or AT_7TEV[i] == AT_7TEV[j]
        )
        return (CorrelationRange(source, pairs, low, high),)

    return ranges


@pytest.fixture
def lhc_7tev() -> Measurements:
    """Five top-quark masses with one observable, GeV."""
    names, rows = table("lhc_7tev.txt")
    names = names[:5]
    experiment = np.array([name.startswith("ATLAS") for name in names])
    same = experiment[:, None] == experiment
    sources = {}
    for name, row in rows.items():
        rho = np.where(same, row[5], row[6])
        np.fill_diagonal(rho, 1.0)
        if name != "Result":
            sources[name] = Source(row[:5], rho)
    return measurements(names, rows["Result"][:5], sources)


@pytest.fixture
def ttbar() -> Measurements:
    """Two cross sections, pb."""
    names, rows = table("ttbar_8tev.txt")
    sources = {
        name: Source(row[:2], np.array([[1.0, row[2]], [row[2], 1.0]]))
        for name, row in rows.items()
        if name != "Result"
    }
    return measurements(names[:2], rows["Result"][:2], sources)


@pytest.fixture
def random_measurements() -> Callable[..., Measurements]:
    """``random_measurements(seed, n, m, n_source)``: positive semi-definite sources of low rank, then statistics."""

    def make(seed: int, n: int = 7, m: int = 2, n_source: int = 5) -> Measurements:
        rng = np.random.default_rng(seed)
        sources = {}
        for s in range(n_source - 1):
            factor = rng.normal(size=(n, 1 + s % 3))
            factor /= np.linalg.norm(factor, axis=1)[:, None]
            sources[f"source {s}"] = Source(rng.normal(size=n), factor @ factor.T)
        sources["statistics"] = Source(rng.uniform(0.5, 1.5, size=n), np.eye(n))
        design = np.zeros((n, m))
        design[np.arange(n), np.arange(n) % m] = 1.0
        values = design @ np.arange(10.0, 10.0 + m) + rng.normal(size=n)
        return measurements([f"input {i}" for i in range(n)], values, sources, design)

    return make


@pytest.fixture
def with_errors() -> Callable[[Measurements, float], Measurements]:
    """All shifts that are not 0 known to the same error, but those of statistics."""

    def make(given: Measurements, error: float) -> Measurements:
        sources = {
            name: source
            if name.lower().startswith("stat")
            else replace(source, shift_errors=np.where(source.shifts != 0.0, error, 0.0))
            for name, source in given.sources.items()
        }
        return replace(given, sources=sources)

    return make
