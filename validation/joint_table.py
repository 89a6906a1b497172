"""The joint fit of several resonances as plain numbers and in words, and what it is worth at a momentum."""

import numpy as np

from musclecal.covariance import propagated_variance
from musclecal.records import JointFit, SampleAgainstRest, ScaleCalibration
from musclecal.scale import correction_jacobian

__all__ = ["expected_error", "joint_table", "joint_text"]

_PTS = (6.0, 20.0, 40.0)


def expected_error(calibration: ScaleCalibration, pt: float) -> float:
    """Error of dk/k at ``pt`` (GeV), root of the mean of its variance over eta bins and both charges."""
    n_eta = calibration.n_eta
    rows = np.concatenate([np.kron(np.eye(n_eta), correction_jacobian(pt, charge)) for charge in (1.0, -1.0)])
    return float(np.sqrt(np.mean(propagated_variance(rows, calibration.covariance))))


def _numbers(values: np.ndarray) -> list[float | None]:
    """NaN has no place in JSON."""
    return [float(v) if np.isfinite(v) else None for v in values]


def _row(sample: SampleAgainstRest) -> dict[str, object]:
    return {
        "name": sample.name,
        "used": sample.used,
        "chi2": sample.chi2,
        "ndf": sample.ndf,
        "p_value": sample.p_value,
        "mean_A": _numbers(np.array([sample.mean_A]))[0],
        "mean_A_error": _numbers(np.array([sample.mean_A_error]))[0],
        "A": _numbers(sample.values[:, 0]),
        "M": _numbers(sample.values[:, 1]),
        "pull_A": _numbers(sample.pulls[:, 0]),
        "pull_M": _numbers(sample.pulls[:, 1]),
    }


def joint_table(joint: JointFit) -> dict[str, object]:
    """The joint fit as plain numbers, without the calibration itself."""
    c = joint.calibration
    return {
        "used": list(joint.used),
        "kept": list(joint.kept),
        "chi2": c.chi2,
        "ndf": c.ndf,
        "p_value": c.p_value,
        "masses": {
            name: {"error": float(error), "shift": float(shift), "shift_error": float(left)}
            for name, error, shift, left in zip(
                joint.mass_resonances,
                joint.mass_errors,
                joint.mass_shifts,
                joint.mass_shift_errors,
                strict=True,
            )
        },
        "largest_steps": dict(zip(joint.used, joint.largest_steps.tolist(), strict=True)),
        "expected_error": {f"{pt:g}": expected_error(c, pt) for pt in _PTS},
        "against_the_others": [_row(sample) for sample in joint.table],
    }


def joint_text(joint: JointFit) -> str:
    """The joint fit in words."""
    c = joint.calibration
    kept = f"; kept for closure: {', '.join(joint.kept)}" if joint.kept else ""
    errors = ", ".join(f"{1e5 * expected_error(c, pt):.1f}e-5 at {pt:g} GeV" for pt in _PTS)
    lines = [
        f"joint fit of {' + '.join(joint.used)}{kept}",
        f"the samples agree with chi2 {c.chi2:.0f}/{c.ndf} (p = {c.p_value:.2g})",
        f"expected error of dk/k: {errors}",
    ]
    for n, name in enumerate(joint.mass_resonances):
        lines.append(
            f"mass of {name}: shift {1e5 * joint.mass_shifts[n]:+.2f} +- {1e5 * joint.mass_shift_errors[n]:.2f}e-5, "
            f"known to {1e5 * joint.mass_errors[n]:.2f}e-5"
        )
    steps = ", ".join(
        f"{name} {step:.1g}" for name, step in zip(joint.used, joint.largest_steps, strict=True)
    )
    lines.append(f"largest change of dk/k since the samples were corrected: {steps}")
    for s in joint.table:
        pulls = (
            np.sqrt(np.nanmean(s.pulls**2, axis=0)) if np.any(np.isfinite(s.pulls)) else np.full(2, np.nan)
        )
        against = "the others" if s.used else "the fit"
        lines.append(
            f"{s.name} against {against}: chi2 {s.chi2:.0f}/{s.ndf} (p = {s.p_value:.2g}), mean A "
            f"{1e5 * s.mean_A:+.1f} +- {1e5 * s.mean_A_error:.1f}e-5, rms pull A {pulls[0]:.2f} M {pulls[1]:.2f}"
        )
    return "\n".join(lines)
