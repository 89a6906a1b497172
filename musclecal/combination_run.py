"""The base and all scenarios of a combination in one call.

A case with asymmetric shifts goes to the likelihood, any other to the closed form, if the file does not say which. Each
case decides for itself, so that a scenario that drops the asymmetric source is one of the closed form.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from musclecal.combination_config import STATISTICS, CombinationConfig, load_combination
from musclecal.combination_scenarios import combination_cases
from musclecal.errors import InputError
from musclecal.fits.combination.case_closed import closed_result
from musclecal.fits.combination.case_likelihood import likelihood_result, problem_result
from musclecal.fits.combination.case_problem import case_problem
from musclecal.fits.combination.convino_files import read_convino
from musclecal.fits.combination.definiteness import audit
from musclecal.records.combination_case import CaseResult, CombinationCase, CombinationRun
from musclecal.records.combination_likelihood import STATISTICAL

__all__ = ["run_combination", "run_convino", "run_file"]


def run_combination(
    config: CombinationConfig, scenarios: Sequence[str] | None = None, points: int = 20
) -> CombinationRun:
    """All cases of a file, or the base and some ``scenarios``; ``points`` along each scan.

    Raises
    ------
    InputError : naming the scenario, and table and key or the source.
    """
    base, *others = (_result(case, points) for case in combination_cases(config, scenarios))
    return CombinationRun(config.title, config.unit, base, tuple(others))


def run_file(path: str | Path, scenarios: Sequence[str] | None = None, points: int = 20) -> CombinationRun:
    """`run_combination` of a file. Raises `InputError` naming it."""
    config = load_combination(path)
    try:
        return run_combination(config, scenarios, points)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def run_convino(path: str | Path, form: str = "pearson", points: int = 20) -> CombinationRun:
    """The combination of text files of Convino; ``form`` is by default that of the program."""
    problem = read_convino(path)
    if problem.normalise:
        raise InputError(
            f"{path}: [global]: normalise = true is not supported here; musclecal.fits.combination.normalised does it"
        )
    members = {source: (source,) for source in problem.sources}
    groups = {name: sources for name, sources in problem.groups if sources != (STATISTICAL,)}
    try:
        base = problem_result("base", problem, members, problem.sources, groups, {}, form, points)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return CombinationRun(Path(path).name, "", base, ())


def _result(case: CombinationCase, points: int) -> CaseResult:
    likelihood = case.method == "likelihood" or (case.method == "auto" and bool(case.asymmetric))
    try:
        if not likelihood:
            return closed_result(case, points)
        given, found = case_problem(case, STATISTICS), audit(case.measurements)
        result = likelihood_result(case.name, given, case.statistical, case.groups, found, case.form, points)
        return replace(result, measured=case.measured)
    except InputError as error:
        if case.name == "base":
            raise
        raise InputError(f"scenario {case.name}: {error}") from None
