"""Figures of the scaled systematic: residuals on the scaled band, pulls, p-values of many tests, s from toys.

In the style of `musclecal.validation.plots`: records and finished numbers in, a PNG (and a PDF by option) out.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from musclecal.covariance import correlation
from musclecal.errors import InputError
from musclecal.records import Closure, Floats, ScaleCalibration, ScaleFactor, ScaleSystematic
from musclecal.validation.plot_style import (
    BAND,
    DATA,
    FIT,
    LABELS,
    PAST,
    TRUTH,
    chi2_text,
    draw_points,
    eta_axis,
    figure_file,
    legend_in_order,
    probability_text,
    set_range,
    text_box,
)
from musclecal.validation.plots import (
    _check_closure,
    _closure_points,
    _draw_pulls,
    _label,
    _projected_errors,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["independent_pulls", "plot_p_values", "plot_residual_pulls", "plot_s_toys", "plot_scaled_closure"]

_SMALLEST_P = 1e-16


def plot_scaled_closure(
    closure: Closure,
    calibration: ScaleCalibration,
    systematic: ScaleSystematic,
    path: str | os.PathLike[str],
    *,
    pdf: bool = False,
) -> None:
    """Residual A and M against eta on the calibration's uncertainty, scaled by the quoted s (band) and not (lines).

    The form in which CMS showed its Z closure. Points have the errors of the closure alone; the band is what the
    closure sees of the calibration.
    """
    _check_closure(closure)
    sigma, s = _projected_errors(calibration, closure), systematic.s
    names, edges = closure.parameter_names, np.asarray(closure.eta_edges)
    band = f"calibration, ±s σ with s = {s:.2f}"
    with figure_file(path, 7.5, 1.2 + 2.7 * len(names), pdf) as figure:
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            value, error = _closure_points(closure, name)
            wide = s * sigma[name]
            axis.stairs(wide, edges, baseline=-wide, fill=True, color=BAND, lw=0, label=band, zorder=0)
            for sign in (1.0, -1.0):
                axis.stairs(
                    sign * sigma[name], edges, baseline=None, color=FIT, lw=1.2, label="±1σ", zorder=1
                )
            draw_points(axis, edges, value, error, f"{_label(closure)} closure")
            axis.axhline(0.0, color=PAST, lw=0.8, zorder=0.5)
            axis.set_ylabel("residual " + LABELS[name])
            drawn = np.concatenate([value - error, value + error, wide])
            set_range(axis, drawn, symmetric=True, above=0.3 if axis is axes[0] else 0.05)
        legend_in_order(
            axes[0], [f"{_label(closure)} closure", band, "±1σ"], loc="upper left", ncols=3, fontsize=11
        )
        axes[0].set_title(_closure_title(closure, systematic))
        eta_axis(axes[-1], edges)
        figure.align_ylabels(axes)


def _closure_title(closure: Closure, systematic: ScaleSystematic) -> str:
    names = {factor.name for factor in systematic.factors}
    if closure.resonance not in names:
        raise InputError(f"closure at {closure.resonance}: the systematic knows {', '.join(sorted(names))}")
    factor = systematic.factor(closure.resonance)
    first = chi2_text(f"Closure at the {_label(closure)}, s = 1", factor.chi2, factor.ndf, factor.p_value)
    return f"{first}\n{_factor_text(factor)}; quoted: {systematic.quoted}, {systematic.s:.2f}"


def _factor_text(factor: ScaleFactor) -> str:
    low, high = factor.interval_68
    return f"s = {factor.s:.2f}, 68 %: {low:.2f} to {high:.2f}"


def independent_pulls(closure: Closure) -> Floats:
    """(n,) R^-1/2 p, with p the residuals over their whole errors and R the correlation matrix of these.

    Independent unit Gaussians if the stated uncertainties are right, each as close as can be to the pull of its own
    parameter; their squares add up to chi2.
    """
    total = closure.covariance + closure.calibration_covariance
    eigenvalues, vectors = np.linalg.eigh(correlation(total))
    pulls = closure.values.ravel() / np.sqrt(np.diagonal(total))
    return np.asarray(vectors @ ((vectors.T @ pulls) / np.sqrt(eigenvalues)))


def plot_residual_pulls(closure: Closure, path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """Residuals over their whole errors against eta, and the independent pulls with a unit Gaussian."""
    _check_closure(closure)
    names, edges = closure.parameter_names, np.asarray(closure.eta_edges)
    error = np.sqrt(np.diagonal(closure.covariance + closure.calibration_covariance))
    pulls = (closure.values.ravel() / error).reshape(-1, len(names))
    with figure_file(path, 11.0, 1.0 + 1.9 * len(names), pdf) as figure:
        left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1.5, 1.0]))
        axes = left.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name, row in zip(axes, names, pulls.T, strict=True):
            _draw_pulls(axis, edges, row)
            axis.set_ylabel(f"pull of ${name}$")
        axes[0].set_title(
            chi2_text(f"Closure at the {_label(closure)}", closure.chi2, closure.ndf, closure.p_value)
        )
        eta_axis(axes[-1], edges)
        _draw_independent(right.subplots(), independent_pulls(closure))


def _draw_independent(axis: "Axes", pulls: Floats) -> None:
    limit = max(4.0, np.ceil(np.abs(pulls).max()))
    edges = np.linspace(-limit, limit, int(4 * limit) + 1 if limit <= 6.0 else 33)
    x = np.linspace(-limit, limit, 301)
    axis.stairs(np.histogram(pulls, edges)[0], edges, fill=True, lw=0, color=BAND, label="residuals")
    axis.plot(x, len(pulls) * (edges[1] - edges[0]) * norm.pdf(x), color=FIT, lw=1.8, label="unit Gaussian")
    n = len(pulls)
    axis.set_xlim(-limit, limit)
    axis.set_ylim(0.0, 1.35 * axis.get_ylim()[1])
    axis.set_xlabel("independent pull")
    text_box(axis, [f"mean {pulls.mean():+.2f} ± {n**-0.5:.2f}", f"rms {np.sqrt(np.mean(pulls**2)):.2f}"])
    legend_in_order(axis, ["residuals", "unit Gaussian"], loc="upper right", fontsize=10.5)


def plot_p_values(p_values: Mapping[str, float], path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """The p-values of many tests on a logarithmic axis, and how probable the smallest is among so many.

    Smaller ones than 1e-16 stand at the edge as arrows.
    """
    wrong = [name for name, p in p_values.items() if not 0.0 <= p <= 1.0]
    if not p_values or wrong:
        raise InputError(f"p-values: need some between 0 and 1, wrong: {', '.join(wrong) or 'none given'}")
    names, values = list(p_values), np.array(list(p_values.values()))
    shown = np.maximum(values, _SMALLEST_P)
    least = min(10.0 ** np.floor(np.log10(shown.min()) - 0.3), 1e-4)
    smallest = float(values.min())
    with figure_file(path, 8.0, 1.6 + 0.34 * len(names), pdf) as figure:
        axis = figure.subplots()
        row = np.arange(len(names))
        axis.set_xscale("log")
        axis.set_xlim(least, 2.0)
        axis.set_ylim(len(names) - 0.4, -1.4)
        for sigma in (2, 3, 5):
            p = 2.0 * norm.sf(sigma)
            if p > least:
                axis.axvline(p, color=PAST, lw=1.0, ls="--", zorder=0)
                axis.annotate(f" {sigma}σ", (p, -0.85), color=PAST, fontsize=11, va="center")
        axis.hlines(row, shown, 1.0, color=BAND, lw=5.0, zorder=0.5)
        small = values < _SMALLEST_P
        axis.plot(shown[~small], row[~small], "o", color=DATA, markersize=6)
        axis.plot(shown[small], row[small], "<", color=TRUTH, markersize=8)
        axis.set_yticks(row, names, fontsize=11.5)
        axis.tick_params(axis="y", which="both", left=False, right=False)
        axis.tick_params(axis="y", which="minor", length=0)
        axis.set_xlabel("p-value")
        among = float(-np.expm1(len(values) * np.log1p(-min(smallest, 1.0 - 1e-16))))
        axis.set_title(
            f"Smallest of {len(values)}: p = {probability_text(smallest)}; among so many: {probability_text(among)}"
        )


def plot_s_toys(
    factor: ScaleFactor,
    unbiased: Floats,
    path: str | os.PathLike[str],
    at_s: Floats | None = None,
    *,
    pdf: bool = False,
) -> None:
    """The observed s with its interval, on toys with the stated uncertainty and, by option, with s times it.

    Parameters
    ----------
    unbiased, at_s : (n_toys,) as of `musclecal.validation.scale_factor.toy_factors` at 1 and at s.
    """
    samples = [np.asarray(x)[np.isfinite(x)] for x in (unbiased, at_s) if x is not None]
    if any(not len(x) for x in samples):
        raise InputError("s from toys: no finite toy")
    top = 1.05 * max(factor.s, factor.s_ml, *(float(np.quantile(x, 0.999)) for x in samples))
    edges = np.linspace(0.0, top, 71)
    low, high = factor.interval_68
    labels = ["toys, s = 1", f"toys, s = {factor.s:.2f}", _factor_text(factor)]
    labels.append(f"likelihood: {factor.s_ml:.2f}")
    with figure_file(path, 7.5, 5.0, pdf) as figure:
        axis = figure.subplots()
        heights = [np.histogram(x, edges)[0] / (len(x) * (edges[1] - edges[0])) for x in samples]
        axis.stairs(heights[0], edges, label=labels[0], fill=True, color=BAND, lw=0, zorder=1)
        for height in heights[1:]:
            axis.stairs(height, edges, label=labels[1], baseline=None, color=FIT, lw=1.6, zorder=1)
        axis.axvspan(low, min(high, top), ymax=0.03, color=DATA, alpha=0.35, lw=0, zorder=2)
        axis.axvline(factor.s, ymax=0.68, color=DATA, lw=2.0, label=labels[2], zorder=3)
        axis.axvline(factor.s_ml, ymax=0.68, color=TRUTH, lw=1.8, ls=":", label=labels[3], zorder=3)
        axis.set_xlim(0.0, top)
        axis.set_ylim(0.0, 1.45 * max(float(height.max()) for height in heights))
        axis.set_xlabel("factor s on the uncertainty of the calibration")
        axis.set_ylabel("probability density")
        beyond, n_toys = int(np.count_nonzero(np.asarray(unbiased) >= factor.s)), len(unbiased)
        axis.set_title(f"{factor.name}: {beyond:,} of {n_toys:,} toys with s = 1 find as much or more")
        legend_in_order(axis, labels, loc="upper right", ncols=2)
