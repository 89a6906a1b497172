"""The file of a combination: one TOML or JSON file with inputs, sources, correlations and scenarios.

    observables = ["m_t"]

    [inputs."ATLAS dilepton"]
    observable = "m_t"
    value = 172.99
    stat = 0.41
    labels = { experiment = "ATLAS", era = "8 TeV" }
    uncertainties = { JES = -0.35, hadronisation = [0.25, -0.20] }

    [[correlations]]
    sources = ["JES"]
    different = ["experiment"]
    rho = 0.0
    scan = [-0.25, 0.25]

    [scenarios."no hadronisation"]
    drop = { sources = ["hadronisation"] }

Every key is checked; a wrong one is an `InputError` that names the file, the table and the key. How correlations are
resolved: `musclecal.combination_rules`; scenarios: `musclecal.combination_scenarios`.
"""

import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from musclecal.config_table import Table, input_error
from musclecal.errors import InputError

__all__ = [
    "STATISTICS",
    "CombinationConfig",
    "CorrelationTable",
    "ScenarioTable",
    "load_combination",
]

STATISTICS = "stat"
"""Name of the source made of the statistical errors."""

ROUNDING = 1e-9
"""Of correlations that were computed from covariances."""


def _both_ways(value: Any) -> Any:
    """A number is up, and its opposite is down."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"must be finite, got {value}")
        return (float(value), -float(value))
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"a number, or [up, down], is wanted, got {value!r}")
    return value


Number = Annotated[float, Field(gt=-1e100, lt=1e100)]
"""Squares of it are numbers as well."""
Error = Annotated[float, Field(gt=1e-100, lt=1e100)]
Shift = Annotated[tuple[Number, Number], BeforeValidator(_both_ways)]
"""Signed: up, down."""
NotNegative = Annotated[float, Field(ge=0.0, lt=1e100)]
Rho = Annotated[float, Field(ge=-1.0, le=1.0)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]
Matrix = tuple[tuple[Number, ...], ...]


class InputTable(Table):
    """[inputs.NAME]: one measured value."""

    observable: Name
    value: Number
    stat: Error | None = None
    """Statistical error; without it the value must be in [statistics]."""
    uncertainties: dict[Name, Shift] = Field(default_factory=dict)
    """By source: a signed shift, or [up, down]."""
    shift_errors: dict[Name, NotNegative] = Field(default_factory=dict)
    """Statistical errors of shifts."""
    labels: dict[Name, str] = Field(default_factory=dict)
    """What rules look at: experiment, era, particle, ..."""

    @model_validator(mode="after")
    def _consistent(self) -> "InputTable":
        if STATISTICS in self.uncertainties:
            raise ValueError(f"uncertainties.{STATISTICS}: this is the key {STATISTICS} of the input")
        for source in self.shift_errors:
            if source not in self.uncertainties:
                raise ValueError(f"shift_errors.{source}: the input has no such uncertainty")
        return self


class SourceTable(Table):
    """[sources.NAME]: what is not said by the inputs."""

    kind: Literal["absolute", "relative"] = "absolute"
    """relative: the shifts scale with the combined value."""
    statistical: bool = False
    group: str = ""


class StatisticsTable(Table):
    """[statistics]: statistical errors that are correlated."""

    inputs: Names
    covariance: Matrix

    @model_validator(mode="after")
    def _square(self) -> "StatisticsTable":
        _check_square(self.covariance, self.inputs, "covariance")
        return self


class CorrelationTable(Table):
    """[[correlations]]: rho of some pairs of inputs in some sources; of several for one pair the last one holds."""

    sources: Names
    pairs: tuple[tuple[Name, Name], ...] | None = None
    """These pairs; without pairs and rules all."""
    same: tuple[Name, ...] = ()
    """Only pairs that agree in these labels."""
    different: tuple[Name, ...] = ()
    """Only pairs that differ in each of these labels."""
    inputs: Names | None = None
    """Only pairs among these; in this order they are rows and columns of matrix."""
    matrix: Matrix | None = None
    """Correlations of ``inputs``, instead of rho."""
    rho: Rho | None = None
    scan: tuple[Rho, Rho] | None = None
    """Range over which the correlation is scanned, all pairs together."""
    scan_name: Name | None = None
    """Scans of one name move together; without it each source has its own."""

    @model_validator(mode="after")
    def _one_way(self) -> "CorrelationTable":
        if (self.rho is None) == (self.matrix is None):
            raise ValueError("one of rho and matrix is needed")
        if self.matrix is not None:
            if self.inputs is None:
                raise ValueError("matrix: needs inputs, the names of its rows")
            if self.scan is not None or self.pairs is not None or self.same or self.different:
                raise ValueError("matrix: excludes scan, pairs, same and different")
            _check_square(self.matrix, self.inputs, "matrix")
            for i, row in enumerate(self.matrix):
                for rho in row:
                    if abs(rho) > 1.0 + ROUNDING:
                        raise ValueError(f"matrix: {rho:g} is no correlation")
                if abs(row[i] - 1.0) > ROUNDING:
                    raise ValueError(f"matrix: {row[i]:g} for {self.inputs[i]} with itself")
        if self.scan is not None and not self.scan[0] < self.scan[1]:
            raise ValueError(f"scan: {self.scan[0]:g} to {self.scan[1]:g} is no range")
        if self.scan_name is not None and self.scan is None:
            raise ValueError("scan_name: without scan")
        return self


class DropTable(Table):
    """drop of a scenario."""

    inputs: tuple[Name, ...] = ()
    sources: tuple[Name, ...] = ()


class ScenarioTable(Table):
    """[scenarios.NAME]: changes of the base, made in the order of these keys."""

    rename: dict[Name, Name] = Field(default_factory=dict)
    """old = "new"; a new name that is there already makes one shared source, if no input has both."""
    split: dict[Name, Name | dict[Name, float]] = Field(default_factory=dict)
    """By a label: one source for each of its values, uncorrelated; or { part = factor }, squares adding up to 1."""
    merge: dict[Name, Names] = Field(default_factory=dict)
    """new = ["a", "b"]: covariances are added; the sign of a shift is that of the largest member."""
    drop: DropTable = DropTable()
    scale: dict[Name, NotNegative] = Field(default_factory=dict)
    """Factor on all shifts of a source."""
    sign: dict[Name, Names] = Field(default_factory=dict)
    """source = ["input"]: the shift of the source in these inputs is turned round."""
    rho: tuple[CorrelationTable, ...] = ()
    """As [[correlations]], after all others."""

    @model_validator(mode="after")
    def _squares(self) -> "ScenarioTable":
        for name, parts in self.split.items():
            total = 1.0 if isinstance(parts, str) else sum(f * f for f in parts.values())
            if abs(total - 1.0) > 1e-6:
                raise ValueError(f"split.{name}: squares of the factors add up to {total:g}, not 1")
        return self


class CombinationConfig(Table):
    """The whole file."""

    title: str = ""
    unit: str = ""
    observables: tuple[Name, ...] | None = None
    """Their order; without it that of the inputs."""
    method: Literal["auto", "closed form", "likelihood"] = "auto"
    """auto: the closed form, and the likelihood if a shift is asymmetric."""
    form: Literal["neyman", "pearson"] = "neyman"
    """Of the likelihood; pearson is for counts."""
    inputs: Annotated[dict[Name, InputTable], Field(min_length=1)]
    sources: dict[Name, SourceTable] = Field(default_factory=dict)
    statistics: StatisticsTable | None = None
    correlations: tuple[CorrelationTable, ...] = ()
    scenarios: dict[Name, ScenarioTable] = Field(default_factory=dict)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Statistics first, then in order of appearance."""
        own = (source for one in self.inputs.values() for source in one.uncertainties)
        return tuple(dict.fromkeys([STATISTICS, *own]))

    @property
    def observable_names(self) -> tuple[str, ...]:
        """As given, or in order of appearance."""
        return self.observables or tuple(dict.fromkeys(one.observable for one in self.inputs.values()))

    @model_validator(mode="after")
    def _names_are_known(self) -> "CombinationConfig":
        observables = self.observable_names
        if len(set(observables)) < len(observables):
            raise ValueError(f"observables: one is there twice: {', '.join(observables)}")
        for name, one in self.inputs.items():
            if one.observable not in observables:
                raise ValueError(f"inputs.{name}.observable: {one.observable!r} is not in observables")
        for observable in observables:
            if all(one.observable != observable for one in self.inputs.values()):
                raise ValueError(f"observables: no input measures {observable!r}")
        for source in self.sources:
            if source not in self.source_names:
                raise ValueError(f"sources.{source}: no input has this uncertainty")
        if STATISTICS in self.sources:
            raise ValueError(f"sources.{STATISTICS}: is what the key {STATISTICS} of the inputs says")
        if "base" in self.scenarios:
            raise ValueError("scenarios.base: this is the name of the combination without changes")
        self._check_statistics()
        return self

    def _check_statistics(self) -> None:
        given = () if self.statistics is None else self.statistics.inputs
        for name in given:
            if name not in self.inputs:
                raise ValueError(f"statistics.inputs: there is no input {name!r}")
        for name, one in self.inputs.items():
            if one.stat is not None and name in given:
                raise ValueError(f"inputs.{name}.stat: is in statistics.covariance already")
            if one.stat is None and name not in given:
                raise ValueError(f"inputs.{name}.stat: Field required, or the input in statistics.covariance")


def _check_square(matrix: Matrix, inputs: tuple[str, ...], what: str) -> None:
    n = len(inputs)
    if len(set(inputs)) < n:
        raise ValueError(f"inputs: one is there twice: {', '.join(inputs)}")
    if len(matrix) != n or any(len(row) != n for row in matrix):
        raise ValueError(f"{what}: {n} rows of {n} numbers are needed")
    for i in range(n):
        for j in range(i):
            if abs(matrix[i][j] - matrix[j][i]) > 1e-10 * max(abs(matrix[i][i]), abs(matrix[j][j])):
                raise ValueError(f"{what}: not symmetric for {inputs[j]} and {inputs[i]}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without a key that is there twice, of which one would be lost."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return table


def load_combination(path: str | Path) -> CombinationConfig:
    """Read and check a file, JSON if its name ends so, else TOML. Raises `InputError` naming file, table and key."""
    path = Path(path)
    as_json = path.suffix.lower() == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text, object_pairs_hook=_once) if as_json else tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; docs/combination.md says how to write one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid {'JSON' if as_json else 'TOML'}: {error}") from None
    try:
        return CombinationConfig.model_validate(table)
    except ValidationError as error:
        raise input_error(path, error) from None
