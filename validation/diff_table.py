"""The difference of two calibrations as plain numbers and in words."""

import numpy as np

from musclecal.covariance import Chi2
from musclecal.records import Floats
from musclecal.validation.calibration_diff import CHARGES, PTS, CalibrationDiff

__all__ = ["diff_table", "diff_text"]

_UNITS = (("A", 1e-5, "1e-5"), ("e", 1e-3, "MeV"), ("M", 1e-6, "1e-6/GeV"))


def diff_table(diff: CalibrationDiff) -> dict[str, object]:
    """Everything in `CalibrationDiff`; null where there is no error. e in GeV, M in 1/GeV."""
    keys = [f"{pt:g}{'+' if charge > 0 else '-'}" for pt in PTS for charge in CHARGES]
    relative, errors, sigma = (
        x.reshape(len(x), -1).T for x in (diff.relative, diff.relative_errors, diff.relative_sigma)
    )
    return {
        "first": diff.names[0],
        "second": diff.names[1],
        "correlation": diff.correlation,
        "contains": None if diff.contains < 0 else diff.names[diff.contains],
        "eta_edges": diff.eta_edges.tolist(),
        "bins": diff.bins.tolist(),
        **{
            name: {
                "first": diff.values[0, :, j].tolist(),
                "second": diff.values[1, :, j].tolist(),
                "first_error": diff.errors[0, :, j].tolist(),
                "second_error": diff.errors[1, :, j].tolist(),
                "difference": diff.difference[:, j].tolist(),
                "error": _numbers(diff.difference_errors[:, j]),
                "sigma": _numbers(diff.sigma[:, j]),
            }
            for j, name in enumerate("AeM")
        },
        "dk_over_k": {
            key: {
                "difference": relative[i].tolist(), "error": _numbers(errors[i]), "sigma": _numbers(sigma[i])
            }
            for i, key in enumerate(keys)
        },
        **_probability(diff.chi2),
        "scaled": None if diff.scaled is None else _probability(diff.scaled),
        "left_out": diff.left_out,
        "not_nested": diff.not_nested,
        "others": [{"what": o.what, "first": o.first, "second": o.second} for o in diff.others],
    }  # fmt: skip


def diff_text(diff: CalibrationDiff) -> str:
    """A table per eta bin of the parameters, one of dk/k, the chi2, and what else differs."""
    lines = [
        f"{diff.names[1]} minus {diff.names[0]}, {diff.correlation}; in brackets sigma, of the statistics without s",
        "",
        "".join([f"{'eta':>15}", *(f"{f'{name} [{unit}]':>20}" for name, _, unit in _UNITS)]),
    ]
    for i in range(len(diff.difference)):
        cells = [
            _cell(diff.difference[i, j] / unit, diff.sigma[i, j], 20) for j, (_, unit, _) in enumerate(_UNITS)
        ]
        lines.append(_eta(diff, i) + "".join(cells))
    heads = (f"{f'{pt:g} GeV mu{sign}':>17}" for pt in PTS for sign in "+-")
    lines += ["", f"{'dk/k [1e-5]':>15}{''.join(heads)}"]
    for i in range(len(diff.difference)):
        pairs = zip(diff.relative[i].ravel() / 1e-5, diff.relative_sigma[i].ravel(), strict=True)
        lines.append(_eta(diff, i) + "".join(_cell(value, sigma, 17) for value, sigma in pairs))
    return "\n".join([*lines, "", *_verdict(diff), *_other_lines(diff)])


def _verdict(diff: CalibrationDiff) -> list[str]:
    lines = [*_largest(diff), f"all parameters, full covariance: {_chi2_text(diff.chi2)}"]
    if diff.scaled is not None:
        lines.append(f"with errors times s of each:     {_chi2_text(diff.scaled)}")
    if diff.contains >= 0:
        lines.append(f"the larger sample: {diff.names[diff.contains]}")
    if diff.left_out:
        lines.append(
            f"{diff.left_out} of {3 * len(diff.difference)} directions have no error of their own: left out"
        )
    if diff.not_nested:
        lines.append(
            f"in {diff.not_nested} directions the larger sample knows less: it does not contain the other, or fits it "
            "in another way, and this chi2 is not to be trusted"
        )
    return lines


def _largest(diff: CalibrationDiff) -> list[str]:
    """The muons for which the difference is most significant."""
    if not np.any(np.isfinite(diff.relative_sigma)):
        return []
    i, j, k = np.unravel_index(int(np.nanargmax(np.abs(diff.relative_sigma))), diff.relative.shape)
    low, high = diff.eta_edges[i : i + 2]
    return [
        f"largest of dk/k: {diff.relative_sigma[i, j, k]:+.1f} sigma, {diff.relative[i, j, k]:+.2g}, "
        f"for mu{'+' if CHARGES[k] > 0 else '-'} of {PTS[j]:g} GeV at eta {low:.3g} to {high:.3g}"
    ]


def _other_lines(diff: CalibrationDiff) -> list[str]:
    if not diff.others:
        return ["", "nothing else differs"]
    width = max(len(o.what) for o in diff.others)
    return ["", "also different:", *(f"  {o.what:<{width}}  {o.first}  |  {o.second}" for o in diff.others)]


def _eta(diff: CalibrationDiff, i: int) -> str:
    low, high = diff.eta_edges[i : i + 2]
    return f"{f'{low:.3g} to {high:.3g}':>15}"


def _cell(value: float, sigma: float, width: int) -> str:
    within = f"({sigma:+.1f})" if np.isfinite(sigma) else "(-)"
    return f"{f'{value:+.2f} {within:>7}':>{width}}"


def _chi2_text(result: Chi2) -> str:
    return f"chi2/ndf = {result.chi2:.1f}/{result.ndf}, p = {result.p_value:.3g}"


def _probability(result: Chi2) -> dict[str, object]:
    return {"chi2": result.chi2, "ndf": result.ndf, "p_value": result.p_value}


def _numbers(values: Floats) -> list[float | None]:
    """NaN has no place in JSON, and an error of zero says nothing."""
    return [float(v) if np.isfinite(v) else None for v in values]
