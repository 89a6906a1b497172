"""A combination and its scenarios in words, as JSON, npz and LaTeX. Takes records, computes nothing anew."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from musclecal.fits.combination.definiteness import in_words
from musclecal.records import Floats
from musclecal.records.combination_case import CaseResult, CaseScan, CombinationRun
from musclecal.store import written_atomically
from musclecal.validation.plot_style import decimals

__all__ = ["combination_latex", "combination_table", "combination_text", "write_combination"]

_IMPACTS = 10
"""As many of the largest are printed; files have all."""


def combination_table(run: CombinationRun) -> dict[str, object]:
    """One JSON object: the base, and under ``scenarios`` the same of each scenario. What is not known is null."""
    scenarios = {result.name: _case_table(result) for result in run.scenarios}
    return {"title": run.title, "unit": run.unit, **_case_table(run.base), "scenarios": scenarios}


def _case_table(result: CaseResult) -> dict[str, object]:
    names = result.observables
    keys = ("value", "up", "down", "stat", "syst")
    columns = zip(result.values, result.up, result.down, result.stat, result.syst, strict=True)
    return {
        "method": result.method,
        "observables": {
            name: dict(zip(keys, _numbers(np.array(row)), strict=True))
            for name, row in zip(names, columns, strict=True)
        },
        "correlation": [_numbers(row) for row in result.correlation],
        "breakdown": result.breakdown,
        "chi2": float(result.chi2),
        "ndf": int(result.ndf),
        "p_value": float(result.p_value),
        "weights": {
            name: dict(zip(result.inputs, _numbers(row), strict=True))
            for name, row in zip(names, result.weights, strict=True)
        },
        "pulls": dict(zip(result.inputs, _numbers(result.pulls), strict=False)),
        "leave_one_out": _without_table(result),
        "impacts": {
            "split": _by_observable(result.split, names),
            "frozen": _by_observable(result.frozen, names),
            "groups_split": _by_observable(result.groups_split, names),
            "groups_frozen": _by_observable(result.groups_frozen, names),
            "nuisances": _by_observable(result.nuisances, names),
        },
        "scans": {scan.name: _scan_table(scan, names) for scan in result.scans},
        "not_definite": {found.name: in_words(found) for found in result.broken},
    }


def _without_table(result: CaseResult) -> dict[str, object]:
    """By input: how far it is from all others, in its errors, and how much each value moves without it."""
    if result.without is None:
        return {}
    shifts = result.without.values - result.values
    return {
        name: {"compatibility": far, "shift": dict(zip(result.observables, _numbers(row), strict=True))}
        for name, far, row in zip(result.inputs, _numbers(result.without.compatibility), shifts, strict=True)
    }


def _scan_table(scan: CaseScan, names: tuple[str, ...]) -> dict[str, object]:
    per_observable = {
        "half_range_value": scan.half_range_values,
        "half_range_error": scan.half_range_errors,
        "value_derivative": scan.value_derivative,
        "error_derivative": scan.error_derivative,
    }
    return {
        "low": scan.low,
        "high": scan.high,
        "points": len(scan.chi2),
        "points_impossible": scan.n_impossible,
        **{key: dict(zip(names, _numbers(row), strict=True)) for key, row in per_observable.items()},
    }


def _by_observable(parts: Mapping[str, Floats], names: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    return {source: dict(zip(names, _numbers(row), strict=True)) for source, row in parts.items()}


def _numbers(values: Floats) -> list[float | None]:
    """NaN has no place in JSON."""
    return [float(value) if np.isfinite(value) else None for value in values]


def combination_text(run: CombinationRun) -> str:
    """Values, weights, largest impacts, scans by size, correlations that cannot be, scenarios side by side."""
    base = run.base
    unit = f" [{run.unit}]" if run.unit else ""
    title = f"{run.title or 'combination'}: {len(base.inputs)} inputs, {base.method}, stat and syst: {base.breakdown}"
    parts = [[title], _value_lines(base, unit), _weight_lines(base), _impact_lines(base, unit)]
    parts += [_scan_lines(base, unit), _audit_lines(base), _scenario_lines(run, unit)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _width(names: tuple[str, ...] | list[str]) -> int:
    return max([12, *(len(name) for name in names)])


def _value_lines(result: CaseResult, unit: str) -> list[str]:
    width = _width(result.observables)
    heads = "".join(f"{head:>12}" for head in ("value", "up", "down", "stat", "syst"))
    lines = [f"{f'observable{unit}':<{width + 4}}{heads}"]
    for a, name in enumerate(result.observables):
        digits = decimals(result.errors[a])
        row = (result.values[a], result.up[a], -result.down[a], result.stat[a], result.syst[a])
        signs = ("", "+", "+", "", "")
        cells = "".join(f"{x:>{s}12.{digits}f}" for x, s in zip(row, signs, strict=True))
        lines.append(f"{name:<{width + 4}}{cells}")
    lines.append(f"chi2/ndf = {result.chi2:.2f}/{result.ndf}, p = {result.p_value:.3f}")
    for a in range(len(result.observables)):
        for b in range(a):
            names = f"{result.observables[b]}, {result.observables[a]}"
            lines.append(f"correlation of {names}: {result.correlation[a, b]:.3f}")
    return lines


def _weight_lines(result: CaseResult) -> list[str]:
    width = _width(result.inputs)
    pulls = result.pulls if len(result.pulls) else np.full(len(result.inputs), np.nan)
    heads = "".join(f"{name:>14}" for name in result.observables)
    if result.without is not None:
        heads += "".join(f"{f'{name} without it':>22}" for name in result.observables)
    lines = [f"{'weight of':<{width}}{heads}{'pull':>8}"]
    for i, name in enumerate(result.inputs):
        cells = "".join(f"{weight:>+14.3f}" for weight in result.weights[:, i])
        if result.without is not None:
            for a, error in enumerate(result.errors):
                cells += _cell(result.without.values[i, a] - result.values[a], 22, decimals(error))
        lines.append(f"{name:<{width}}{cells}{_cell(pulls[i], 8, 2)}")
    return lines


def _cell(value: float, width: int, digits: int) -> str:
    # Adding 0 makes a rounded -0 a 0.
    return f"{round(value, digits) + 0.0:>{width}.{digits}f}" if np.isfinite(value) else f"{'-':>{width}}"


def _impact_lines(result: CaseResult, unit: str) -> list[str]:
    """Of sources, or of nuisances; with a split, both numbers stand side by side."""
    shown = result.split or result.frozen
    groups = result.groups_split or result.groups_frozen
    if not shown:
        return []
    order = sorted(shown, key=lambda name: -float(np.max(np.nan_to_num(shown[name]) / result.errors)))
    kinds = [("split", result.split), ("frozen", result.frozen)] if result.split else [("frozen", shown)]
    heads = "".join(f"{f'{name}, {kind}':>22}" for name in result.observables for kind, _ in kinds)
    width = _width([*order[:_IMPACTS], *groups])
    lines = [f"{f'impact{unit}':<{width}}{heads}"]
    for name in order[:_IMPACTS]:
        lines.append(f"{name:<{width}}{_impact_cells(result, [parts[name] for _, parts in kinds])}")
    if len(order) > _IMPACTS:
        lines.append(f"and {len(order) - _IMPACTS} smaller ones")
    if groups:
        lines.append("groups")
    group_kinds = [result.groups_split, result.groups_frozen] if result.split else [result.groups_frozen]
    for name in groups:
        lines.append(f"{name:<{width}}{_impact_cells(result, [parts[name] for parts in group_kinds])}")
    return lines


def _impact_cells(result: CaseResult, rows: list[Floats]) -> str:
    return "".join(
        _cell(row[a], 22, decimals(result.errors[a])) for a in range(len(result.observables)) for row in rows
    )


def _scan_lines(result: CaseResult, unit: str) -> list[str]:
    """By the largest change of a value, in its errors; last those of which no point is possible."""
    if not result.scans:
        return []
    size = {scan.name: float(np.max(scan.half_range_values / result.errors)) for scan in result.scans}
    order = sorted(
        result.scans, key=lambda scan: -size[scan.name] if np.isfinite(size[scan.name]) else np.inf
    )
    width = _width([scan.name for scan in order])
    heads = "".join(f"{f'{name} dx/2':>18}{'dsigma/2':>12}" for name in result.observables)
    lines = [f"{f'scan{unit}':<{width}}{'rho':>16}{heads}"]
    for scan in order:
        cells = "".join(
            _cell(scan.half_range_values[a], 18, decimals(result.errors[a]) + 1)
            + _cell(scan.half_range_errors[a], 12, decimals(result.errors[a]) + 1)
            for a in range(len(result.observables))
        )
        mark = f"  {len(scan.chi2) - scan.n_impossible} of {len(scan.chi2)}" if scan.n_impossible else ""
        lines.append(f"{scan.name:<{width}}{f'{scan.low:g} to {scan.high:g}':>16}{cells}{mark}")
    if any(scan.n_impossible for scan in order):
        lines.append(
            "n of N: points of the scan at which the correlations do not contradict each other; of these"
        )
    return lines


def _audit_lines(result: CaseResult) -> list[str]:
    """In one line each; the JSON has the group and what would be allowed."""
    if not result.broken:
        return []
    lines = [
        "correlations that contradict each other, by source (published ones often do; only the total must not):"
    ]
    for found in result.broken:
        pair = (
            ""
            if found.pair is None
            else f", look at {found.pair[0]} and {found.pair[1]}, rho = {found.rho:.3g}"
        )
        lines.append(f"  {found.name}: smallest eigenvalue {found.smallest_eigenvalue:.2g}{pair}")
    return lines


def _scenario_lines(run: CombinationRun, unit: str) -> list[str]:
    if not run.scenarios:
        return []
    width = _width([result.name for result in run.results])
    wide = _width(run.base.observables)
    heads = "".join(f"{head:>12}" for head in ("value", "to base", "up", "down", "stat", "syst"))
    lines = [f"{f'scenario{unit}':<{width}}  {'':<{wide}}{heads}{'chi2/ndf':>14}{'p':>8}"]
    for result in run.results:
        for a, name in enumerate(result.observables):
            digits = decimals(result.errors[a])
            shift = _shift(run.base, result, name)
            row = (result.values[a], shift, result.up[a], result.down[a], result.stat[a], result.syst[a])
            cells = "".join(_cell(x, 12, digits) for x in row)
            chi2 = f"{result.chi2:.2f}/{result.ndf}"
            lines.append(f"{result.name:<{width}}  {name:<{wide}}{cells}{chi2:>14}{result.p_value:>8.3f}")
    return lines


def _shift(base: CaseResult, result: CaseResult, name: str) -> float:
    there = float(result.values[result.observables.index(name)])
    return there - float(base.values[base.observables.index(name)]) if name in base.observables else np.nan


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def combination_latex(run: CombinationRun) -> str:
    """Two tables: values of all cases, and impacts of the base by source."""
    unit = f" [{_escaped(run.unit)}]" if run.unit else ""
    rows = [
        " & ".join([_escaped(result.name), _escaped(name), *_latex_cells(result, a)])
        for result in run.results
        for a, name in enumerate(result.observables)
    ]
    values = _tabular("llrrrrl", f"case & observable & value{unit} & stat & syst & $\\chi^2$/ndf & $p$", rows)
    base, shown = run.base, run.base.split or run.base.frozen
    kind = "part of the uncertainty" if base.split else "uncertainty without the source, in quadrature"
    heads = " & ".join([f"source, {kind}{unit}", *(_escaped(name) for name in base.observables)])
    impacts = [
        " & ".join(
            [_escaped(name), *(_cell(x, 0, decimals(e)) for x, e in zip(row, base.errors, strict=True))]
        )
        for name, row in sorted(shown.items(), key=lambda item: -float(np.max(np.nan_to_num(item[1]))))
    ]
    return values + "\n" + _tabular("l" + "r" * len(base.observables), heads, impacts)


def _latex_cells(result: CaseResult, a: int) -> list[str]:
    digits = decimals(result.errors[a])
    up, down = f"{result.up[a]:.{digits}f}", f"{result.down[a]:.{digits}f}"
    error = f"\\pm {up}" if up == down else f"^{{+{up}}}_{{-{down}}}"
    return [
        f"${result.values[a]:.{digits}f} {error}$",
        f"{result.stat[a]:.{digits}f}",
        f"{result.syst[a]:.{digits}f}",
        f"{result.chi2:.2f}/{result.ndf}",
        f"{result.p_value:.3f}",
    ]


def _tabular(columns: str, heads: str, rows: list[str]) -> str:
    body = "".join(f"{row} \\\\\n" for row in rows)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{heads} \\\\\n\\hline\n{body}\\hline\n\\end{{tabular}}\n"
    )


def write_combination(run: CombinationRun, folder: Path) -> tuple[Path, ...]:
    """combination.json, .npz and .tex in ``folder``, which is made; each whole or not at all."""
    texts = {
        "combination.json": json.dumps(combination_table(run), allow_nan=False, indent=1) + "\n",
        "combination.tex": combination_latex(run),
    }
    arrays = _arrays(run)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with written_atomically(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with written_atomically(folder / "combination.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return tuple(folder / name for name in (*texts, "combination.npz"))


def _arrays(run: CombinationRun) -> dict[str, Floats]:
    """``0/values``, ... of the base and 1, 2, ... of scenarios, whose names are ``cases``."""
    arrays = {"cases": np.array([result.name for result in run.results])}
    for number, result in enumerate(run.results):
        fields = {
            "observables": np.array(result.observables),
            "inputs": np.array(result.inputs),
            **{
                key: getattr(result, key)
                for key in ("values", "up", "down", "stat", "syst", "covariance", "weights")
            },
            "sources": np.array([*result.frozen]),
            "frozen": np.array([*result.frozen.values()]),
            "split": np.array([*result.split.values()]),
            "scans": np.array([scan.name for scan in result.scans]),
            "scan_ranges": np.array([(scan.low, scan.high) for scan in result.scans]),
            "scan_values": np.array([scan.values for scan in result.scans]),
            "scan_errors": np.array([scan.errors for scan in result.scans]),
        }
        arrays |= {f"{number}/{key}": array for key, array in fields.items()}
    return arrays
