"""Figures of calibrations, mass fits, closures and covariances: records in, a PNG (and a PDF by option) out.

Every function takes records, refits nothing, and writes its files atomically, in the style of
`musclecal.validation.plot_style`.

Not for: numbers. Whatever stands in a text box comes from a record or from `musclecal.covariance`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musclecal.covariance import (
    Chi2,
    checked_covariance,
    chi2_of,
    correlation,
    propagated_variance,
    scale_parameter_names,
)
from musclecal.errors import InputError
from musclecal.fits.likelihood import FitStatus, expected_counts
from musclecal.fits.shapes import SignalModel
from musclecal.records import BinFits, Closure, Floats, ScaleCalibration, ScaleParameters
from musclecal.resonances import resonance
from musclecal.scale import correction_jacobian, relative_correction
from musclecal.validation.closure import projection
from musclecal.validation.plot_style import (
    BACKGROUND,
    BAND,
    DATA,
    ETA_LABEL,
    FIT,
    LABELS,
    MASS_LABEL,
    MINUS,
    PAST,
    TRUTH,
    UNITS,
    bin_centres,
    chi2_text,
    draw_counts,
    draw_points,
    eta_axis,
    figure_file,
    legend_in_order,
    probability_text,
    set_range,
    text_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MassSpectrum",
    "plot_calibration",
    "plot_closure",
    "plot_covariance",
    "plot_mass_fit",
    "plot_overview",
    "plot_pulls",
    "plot_scale_at",
    "spectrum_of_bin",
    "sum_of_bins",
]

_DOTS = (0, (1.2, 1.0))

_SIGMA = "calibration ±1σ"
_COMPACT = {"fontsize": 10.5, "columnspacing": 0.9, "handlelength": 1.2, "handletextpad": 0.5}


@dataclass(frozen=True)
class MassSpectrum:
    """A mass distribution with its fit, of one 4D bin or of many together.

    Attributes
    ----------
    counts, expected, background : (n_mass,) events, fitted total, fitted background of it; the last two nan
        where a fit has no result.
    edges : (n_mass + 1,) GeV.
    text_lines : what the text box says.
    label : of the points in the legend.
    """

    counts: Floats
    expected: Floats
    background: Floats
    edges: Floats
    text_lines: tuple[str, ...] = ()
    label: str = "Data"

    @property
    def pulls(self) -> Floats:
        """(n_mass,) (counts - expected)/sqrt(expected), the terms of Pearson's chi2; nan if none expected."""
        sigma = np.sqrt(np.where(self.expected > 0.0, self.expected, np.nan))
        return np.asarray((self.counts - self.expected) / sigma)


def spectrum_of_bin(
    counts: ArrayLike, fits: BinFits, model: SignalModel, background: str, row: int, *, label: str = "Data"
) -> MassSpectrum:
    """The masses of one 4D bin and its fit.

    Parameters
    ----------
    counts : (n_bin, n_mass), the rows that were fitted. row : which of them.
    fits, model, background : as given to and by `musclecal.fits.likelihood.fit_bins`.
    """
    table = _checked_counts(counts, fits, model)
    if not -len(table) <= row < len(table):
        raise InputError(f"row {row}: there are {len(table)} fitted bins")
    total, part = _expected(fits, model, background, row)
    return MassSpectrum(table[row], total, part, _mass_edges(model), _bin_text(fits, row), label)


def sum_of_bins(
    counts: ArrayLike,
    fits: BinFits,
    model: SignalModel,
    background: str,
    usable: NDArray[np.bool_] | None = None,
    *,
    label: str = "Data",
) -> MassSpectrum:
    """The masses of all usable 4D bins and their fits, each summed.

    Parameters
    ----------
    counts : (n_bin, n_mass), the rows that were fitted.
    usable : (n_bin,) `MassFits.usable`; by default the converged rows of ``fits``.

    Raises
    ------
    InputError : shapes that do not go together, no usable bin.
    """
    table = _checked_counts(counts, fits, model)
    which = fits.converged if usable is None else np.asarray(usable, dtype=np.bool_)
    if which.shape != (len(table),):
        raise InputError(f"usable: shape {which.shape} for {len(table)} fitted bins")
    rows = np.flatnonzero(which & fits.converged)
    if not len(rows):
        raise InputError("no usable 4D bin to sum")
    fitted = [_expected(fits, model, background, int(row)) for row in rows]
    total, part = (np.sum(column, axis=0) for column in zip(*fitted, strict=True))
    summed = MassSpectrum(table[rows].sum(axis=0), total, part, _mass_edges(model), label=label)
    text = (
        f"{len(rows):,} fits,",
        f"{summed.counts.sum():,.0f} events",
        f"width {100.0 * np.median(fits.width[rows]):.2f} % (median)",
        rf"$\chi^2$/bins = {np.nansum(summed.pulls**2):.1f}/{len(summed.counts)}",
    )
    return replace(summed, text_lines=text)


def plot_calibration(
    calibration: ScaleCalibration,
    path: str | os.PathLike[str],
    truth: ScaleParameters | None = None,
    *,
    pdf: bool = False,
) -> None:
    """A, e and M against eta with their errors; with ``truth`` also its steps and the pulls.

    The title compares with the truth by the full covariance: A and e of an eta bin correlate by more than
    0.9, so that the pulls below the panels are not independent.
    """
    _check_calibration(calibration, truth)
    title = chi2_text("fit of the 4D bins", calibration.chi2, calibration.ndf, calibration.p_value)
    if truth is not None:
        test = _against_truth(calibration, truth)
        title += "\n" + chi2_text("result against truth", test.chi2, test.ndf, test.p_value)
    with figure_file(path, 7.5, 6.8 if truth is None else 8.8, pdf) as figure:
        main, below = _panels(figure, with_pulls=truth is not None)
        for axis, name in zip(main, UNITS, strict=True):
            _draw_parameter(axis, calibration, truth, name)
        if truth is not None:
            for axis, name in zip(below, UNITS, strict=True):
                pulls = (getattr(calibration, name) - getattr(truth, name)) / _errors(calibration, name)
                _draw_pulls(axis, np.asarray(calibration.eta_edges), pulls)
            legend_in_order(main[0], ["calibration", "truth"], loc="upper left", ncols=2)
        main[0].set_title(title)
        _stack([*main, *below], calibration.eta_edges, lowest=(below or main)[-1])


def plot_scale_at(
    calibration: ScaleCalibration,
    path: str | os.PathLike[str],
    pts: Sequence[float] = (6.0, 10.0, 40.0),
    truth: ScaleParameters | None = None,
    *,
    pdf: bool = False,
) -> None:
    """dk/k of mu+ and mu- against eta at the transverse momenta ``pts`` (GeV), with its error (J C J^T)."""
    _check_calibration(calibration, truth)
    if not len(pts) or not all(0.0 < pt < np.inf for pt in pts):
        raise InputError(f"pts: need positive transverse momenta in GeV, got {list(pts)}")
    edges = np.asarray(calibration.eta_edges)
    with figure_file(path, 7.5, 1.4 + 2.3 * len(pts), pdf) as figure:
        axes = figure.subplots(len(pts), 1, sharex=True, squeeze=False)[:, 0]
        for axis, pt in zip(axes, pts, strict=True):
            drawn: list[Floats] = []
            for charge, colour in ((+1, FIT), (-1, MINUS)):
                value, error = _scale_at(calibration, pt, charge)
                axis.stairs(
                    value + error, edges, baseline=value - error, fill=True, color=colour, alpha=0.3, lw=0
                )
                axis.stairs(value, edges, baseline=None, color=colour, lw=1.6)
                drawn += [value - error, value + error]
                if truth is not None:
                    true = _relative(truth, pt, charge) / 1e-4
                    axis.stairs(true, edges, baseline=None, color=colour, ls=_DOTS, lw=2.4)
                    drawn.append(true)
            axis.axhline(0.0, color=PAST, lw=0.8, zorder=0)
            axis.set_ylabel(r"$\delta k/k$  [$10^{-4}$]")
            axis.annotate(rf"$p_T$ = {pt:g} GeV", (0.02, 0.95), xycoords="axes fraction", va="top")
            set_range(axis, np.concatenate(drawn), above=0.22)
        _scale_legend(axes[0], truth is not None)
        axes[0].set_title(r"Correction $\delta k/k = A - e\,k + q\,M/k$")
        eta_axis(axes[-1], edges)


def plot_mass_fit(
    spectrum: MassSpectrum, path: str | os.PathLike[str], *, title: str = "", pdf: bool = False
) -> None:
    """Masses with Poisson errors, fitted total and background, pulls beneath."""
    _check_spectrum(spectrum)
    with figure_file(path, 7.5, 6.2, pdf) as figure:
        main, pulls = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
        _draw_spectrum(main, spectrum)
        _draw_pulls(pulls, spectrum.edges, spectrum.pulls)
        main.set_title(_wrapped(title))
        pulls.set_xlabel(MASS_LABEL)
        figure.align_ylabels([main, pulls])


def plot_closure(
    closure: Closure,
    path: str | os.PathLike[str],
    calibration: ScaleCalibration | None = None,
    *,
    pdf: bool = False,
) -> None:
    """Residual correction against eta, on a band of the ``calibration``'s uncertainty, plain and times s.

    The band is what the closure can see of it: A - e <k_C> and M where e is not fitted (physics.md section
    4). Points have the errors of the closure alone; chi2 and p-value in the title account for both.
    """
    _check_closure(closure)
    bands = {} if calibration is None else _projected_errors(calibration, closure)
    with figure_file(path, 7.5, 1.2 + 2.7 * len(closure.parameter_names), pdf) as figure:
        axes = figure.subplots(len(closure.parameter_names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, closure.parameter_names, strict=True):
            value, error = _closure_points(closure, name)
            drawn = [value - error, value + error]
            if calibration is not None:
                drawn += _draw_band(axis, closure, bands[name])
            draw_points(axis, closure.eta_edges, value, error, "residual")
            axis.axhline(0.0, color=PAST, lw=0.8, zorder=0.5)
            axis.set_ylabel("residual " + LABELS[name])
            set_range(axis, np.concatenate(drawn), symmetric=True, above=0.3 if axis is axes[0] else 0.05)
        legend_in_order(axes[0], ["residual", _SIGMA, _scaled(closure)], loc="upper left", ncols=3)
        used = f"{closure.engine} fit, {100.0 * closure.events_fraction:.0f} % of the events used"
        axes[0].set_title(
            f"Closure at the {_label(closure)} ({used})\n"
            + chi2_text("residuals against zero", closure.chi2, closure.ndf, closure.p_value)
            + ("" if closure.s is None else f", s = {closure.s:.2f}")
        )
        eta_axis(axes[-1], closure.eta_edges)
        figure.align_ylabels(axes)


def plot_pulls(calibration: ScaleCalibration, path: str | os.PathLike[str], *, pdf: bool = False) -> None:
    """Pulls of the 4D bins in the A, e, M fit, with a unit Gaussian of the same number of entries."""
    pulls = np.asarray(calibration.pulls, dtype=np.float64)
    if pulls.ndim != 1 or len(pulls) < 2 or not np.all(np.isfinite(pulls)):
        raise InputError(f"pulls: need two or more finite numbers, got an array of shape {pulls.shape}")
    edges = np.linspace(-5.0, 5.0, 41)
    counts = np.histogram(pulls, edges)[0].astype(np.float64)
    x = np.linspace(-5.0, 5.0, 401)
    gauss = len(pulls) * (edges[1] - edges[0]) * np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)
    mean, width, n = pulls.mean(), pulls.std(ddof=1), len(pulls)
    beyond = int(np.count_nonzero(np.abs(pulls) > 5.0))
    lines = (
        f"{n:,} bins" + (f", {beyond} beyond 5" if beyond else ""),
        f"mean {mean:+.3f} ± {width / np.sqrt(n):.3f}",
        f"width {width:.3f} ± {width / np.sqrt(2.0 * n):.3f}",
        rf"$\chi^2$/ndf = {calibration.chi2:.1f}/{calibration.ndf}",
        f"p = {probability_text(calibration.p_value)}",
    )
    with figure_file(path, 7.0, 5.0, pdf) as figure:
        axis = figure.subplots()
        draw_counts(axis, counts, edges, "4D bins")
        axis.plot(x, gauss, color=FIT, label="unit Gaussian", zorder=1)
        axis.set_xlim(-5.0, 5.0)
        axis.set_ylim(0.0, 1.2 * max((counts + np.sqrt(counts)).max(), gauss.max()))
        axis.set_xlabel(r"pull of $s_b^2$ in the $A$, $e$, $M$ fit")
        axis.set_ylabel(f"4D bins / {edges[1] - edges[0]:g}")
        legend_in_order(axis, ["4D bins", "unit Gaussian"], loc="upper right")
        text_box(axis, lines)


def plot_covariance(
    calibration: ScaleCalibration, path: str | os.PathLike[str], *, pdf: bool = False
) -> None:
    """Correlations of the calibration, all A first, then all e, then all M, each in order of eta."""
    _check_calibration(calibration, None)
    n = calibration.n_eta
    order = np.arange(3 * n).reshape(n, 3).T.ravel()
    matrix = correlation(calibration.covariance)[np.ix_(order, order)]
    eta = np.asarray(calibration.eta_edges)
    inner = [n // 4, n // 2, 3 * n // 4] if n >= 4 else []
    ticks = [group * n + edge for group in range(3) for edge in inner]
    names = [f"{eta[edge]:g}".replace("-", "−") for _ in range(3) for edge in inner]
    with figure_file(path, 7.6, 5.9, pdf) as figure:
        figure.set_layout_engine("compressed")
        axis = figure.subplots()
        mesh = axis.pcolormesh(
            np.arange(3 * n + 1), np.arange(3 * n + 1), matrix, cmap="RdBu_r", vmin=-1.0, vmax=1.0
        )
        mesh.set_rasterized(True)
        axis.set_aspect("equal")
        axis.invert_yaxis()
        axis.tick_params(which="both", direction="out", top=False, right=False)
        axis.minorticks_off()
        axis.set_xticks(ticks, names, fontsize=11)
        axis.set_yticks(ticks, names, fontsize=11)
        for group, name in enumerate(UNITS):
            middle = (group + 0.5) / 3.0
            axis.annotate(f"${name}$", (middle, 1.015), xycoords="axes fraction", ha="center", fontsize=17)
            axis.annotate(
                f"${name}$", (1.02, 1.0 - middle), xycoords="axes fraction", va="center", fontsize=17
            )
            for line in (axis.axhline, axis.axvline):
                line(group * n, color="black", lw=1.0)
        axis.set_xlabel(ETA_LABEL)
        axis.set_ylabel(ETA_LABEL)
        figure.colorbar(mesh, ax=axis, label="correlation", fraction=0.045, pad=0.08, aspect=22)


def plot_overview(
    calibration: ScaleCalibration,
    spectrum: MassSpectrum,
    closures: Sequence[Closure],
    path: str | os.PathLike[str],
    truth: ScaleParameters | None = None,
    *,
    before: Sequence[Closure] = (),
    title: str = "",
    pdf: bool = False,
) -> None:
    """One figure of 1600 x 900 pixels: mass fit, A, e, M, and the residual scale at other resonances.

    Parameters
    ----------
    spectrum : `sum_of_bins` of the fits.
    closures : one to three, after the calibration.
    before : the same without it, found by the resonance's name.
    title : of the mass panel.
    """
    _check_calibration(calibration, truth)
    _check_spectrum(spectrum)
    if not 1 <= len(closures) <= 3:
        raise InputError(f"closures: the overview shows one to three, got {len(closures)}")
    for closure in (*closures, *before):
        _check_closure(closure)
        if "A" not in closure.parameter_names:
            raise InputError(f"closure at {closure.resonance}: the overview shows A, which was not fitted")
    with figure_file(path, 40.0 / 3.0, 7.5, pdf, dpi=120) as figure:
        left, middle, right = np.asarray(figure.subfigures(1, 3, width_ratios=[1.1, 1.0, 1.0]))
        main, pulls = left.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
        _draw_spectrum(main, spectrum)
        _draw_pulls(pulls, spectrum.edges, spectrum.pulls)
        pulls.set_xlabel(MASS_LABEL)
        main.set_title(title or "Masses in all 4D bins", fontsize=11.5)
        left.align_ylabels([main, pulls])
        panels = middle.subplots(3, 1, sharex=True)
        for axis, name in zip(panels, UNITS, strict=True):
            _draw_parameter(axis, calibration, truth, name)
        panels[0].set_title(
            "Calibration" if truth is None else _truth_title(calibration, truth), fontsize=11.5
        )
        if truth is not None:
            legend_in_order(panels[0], ["calibration", "truth"], loc="upper left", ncols=2)
        _stack(panels, calibration.eta_edges, lowest=panels[-1])
        panels = right.subplots(len(closures), 1, sharex=True, squeeze=False)[:, 0]
        for axis, closure in zip(panels, closures, strict=True):
            earlier = [other for other in before if other.resonance == closure.resonance]
            _draw_before_after(axis, calibration, closure, earlier)
        _stack(panels, closures[-1].eta_edges, lowest=panels[-1])


def _mass_edges(model: SignalModel) -> Floats:
    return np.asarray(model.low * np.exp(model.step * np.arange(model.n_mass + 1)))


def _expected(fits: BinFits, model: SignalModel, background: str, row: int) -> tuple[Floats, Floats]:
    """As `expected_counts`; nan for a row that has no parameters."""
    if not np.all(np.isfinite(fits.parameters[row])):
        return np.full(model.n_mass, np.nan), np.full(model.n_mass, np.nan)
    return expected_counts(fits, model, background, row)


def _bin_text(fits: BinFits, row: int) -> tuple[str, ...]:
    events = f"{fits.n_events[row]:,.0f} events"
    if fits.status[row] != FitStatus.GOOD:
        return events, f"fit: {FitStatus(int(fits.status[row])).name.lower().replace('_', ' ')}"
    error = np.sqrt(np.diagonal(fits.covariance[row]))
    scale, width = fits.parameters[row, :2]
    return (
        events,
        rf"scale - 1 = ({1e4 * (scale - 1.0):.1f} ± {1e4 * error[0]:.1f}) $\times 10^{{-4}}$",
        f"width = ({100.0 * width:.2f} ± {100.0 * error[1]:.2f}) %",
        rf"$\chi^2$/ndf = {fits.chi2[row]:.1f}/{fits.ndf[row]}",
    )


def _label(closure: Closure) -> str:
    return resonance(closure.resonance).label + closure.name.removeprefix(closure.resonance)


def _against_truth(calibration: ScaleCalibration, truth: ScaleParameters) -> Chi2:
    names = scale_parameter_names(calibration.n_eta)
    return chi2_of(calibration.parameters - truth.parameters, calibration.covariance, names)


def _errors(calibration: ScaleCalibration, name: str) -> Floats:
    """(n_eta,) standard deviations of A, e or M."""
    return np.asarray(np.sqrt(np.diagonal(calibration.covariance))[list(UNITS).index(name) :: 3])


def _relative(scale: ScaleParameters, pt: float, charge: int) -> Floats:
    return relative_correction(pt, charge, scale.A, scale.e, scale.M)


def _scale_at(calibration: ScaleCalibration, pt: float, charge: int) -> tuple[Floats, Floats]:
    """(n_eta,) dk/k of every eta bin and its error, in 1e-4."""
    jacobian = np.kron(np.eye(calibration.n_eta), correction_jacobian(pt, charge))
    error = np.sqrt(propagated_variance(jacobian, calibration.covariance))
    return _relative(calibration, pt, charge) / 1e-4, error / 1e-4


def _closure_points(closure: Closure, name: str) -> tuple[Floats, Floats]:
    """(n_eta,) residuals and their errors, in the unit of the figure."""
    names = closure.parameter_names
    column = names.index(name)
    error = np.sqrt(np.diagonal(closure.covariance))[column :: len(names)]
    return closure.values[:, column] / UNITS[name], error / UNITS[name]


def _projected_errors(calibration: ScaleCalibration, closure: Closure) -> dict[str, Floats]:
    """(n_eta,) by name: errors of the calibration on what the closure sees, in the unit of the figure."""
    _check_calibration(calibration, None)
    if not np.array_equal(calibration.eta_edges, closure.eta_edges):
        raise InputError(f"closure at {closure.resonance}: its eta bins are not those of the calibration")
    names = closure.parameter_names
    seen = projection(names, closure.mean_k)
    error = np.sqrt(propagated_variance(seen, calibration.covariance)).reshape(-1, len(names))
    return {name: error[:, column] / UNITS[name] for column, name in enumerate(names)}


def _draw_parameter(
    axis: "Axes", calibration: ScaleCalibration, truth: ScaleParameters | None, name: str
) -> None:
    """A, e or M with errors against eta, over the steps of the truth."""
    unit = UNITS[name]
    value, error = getattr(calibration, name) / unit, _errors(calibration, name) / unit
    usual = np.minimum(error, 4.0 * np.median(error))  # one empty-handed forward bin must not set the range
    drawn = [value - usual, value + usual]
    if truth is not None:
        true = getattr(truth, name) / unit
        axis.stairs(
            true, np.asarray(truth.eta_edges), baseline=None, color=TRUTH, lw=1.8, label="truth", zorder=2
        )
        drawn.append(true)
    draw_points(axis, calibration.eta_edges, value, error, "calibration")
    axis.axhline(0.0, color=PAST, lw=0.8, zorder=0.5)
    axis.set_ylabel(LABELS[name])
    set_range(axis, np.concatenate(drawn), above=0.3 if name == "A" and truth is not None else 0.08)


def _draw_pulls(axis: "Axes", edges: Floats, pulls: Floats) -> None:
    """Points over a band of one sigma."""
    known = np.abs(pulls[np.isfinite(pulls)])
    limit = max(3.6, 1.15 * known.max()) if len(known) else 3.6
    axis.axhspan(-1.0, 1.0, color=BAND, alpha=0.6, lw=0)
    axis.axhline(0.0, color=PAST, lw=0.8)
    axis.plot(bin_centres(edges), pulls, "o", color=DATA, markersize=3.5)
    axis.set_ylim(-limit, limit)
    if limit < 6.0:
        axis.set_yticks([-2.0, 0.0, 2.0])
    axis.set_ylabel("pull")


def _draw_band(axis: "Axes", closure: Closure, sigma: Floats, *, scaled: bool = True) -> list[Floats]:
    """The uncertainty of the calibration about zero, and s times it if s > 1. Gives what is drawn."""
    edges, s = np.asarray(closure.eta_edges), closure.s_quoted
    axis.stairs(sigma, edges, baseline=-sigma, fill=True, color=BAND, lw=0, label=_SIGMA, zorder=0)
    if not scaled or s is None or s < 1.005:
        return [sigma, -sigma]
    outline: dict[str, Any] = {"baseline": None, "color": FIT, "lw": 1.2, "ls": "--", "zorder": 1}
    axis.stairs(s * sigma, edges, label=_scaled(closure), **outline)
    axis.stairs(-s * sigma, edges, **outline)
    return [s * sigma, -s * sigma]


def _scaled(closure: Closure) -> str:
    return "" if closure.s is None else f"±s σ, s = {closure.s_quoted:.2f}"


def _draw_spectrum(axis: "Axes", spectrum: MassSpectrum) -> None:
    centres = bin_centres(spectrum.edges)
    low, high = float(spectrum.edges[0]), float(spectrum.edges[-1])
    draw_counts(axis, spectrum.counts, spectrum.edges, spectrum.label)
    axis.plot(centres, spectrum.expected, color=FIT, lw=2.2, label="fit", zorder=2)
    if np.nansum(spectrum.background) > 0.0:
        axis.plot(
            centres, spectrum.background, color=BACKGROUND, lw=2.0, ls="--", label="background", zorder=2
        )
    top = max((spectrum.counts + np.sqrt(spectrum.counts)).max(), np.nan_to_num(spectrum.expected).max(), 1.0)
    axis.set_xlim(low, high)
    axis.set_ylim(0.0, 1.25 * top)
    if top >= 1e5:
        axis.ticklabel_format(axis="y", style="sci", scilimits=(3, 3), useMathText=True)
    step = 100.0 * np.log(high / low) / len(spectrum.counts)
    axis.set_ylabel(rf"Events / ({step:.2g} % of $m_{{\mu\mu}}$)")
    legend_in_order(axis, [spectrum.label, "fit", "background"], loc="upper right")
    text_box(axis, spectrum.text_lines)


def _wrapped(title: str) -> str:
    """Two lines, broken at the middle comma, if one would be too long."""
    parts = title.split(", ")
    half = (len(parts) + 1) // 2
    if len(title) <= 64 or len(parts) == 1:
        return title
    return ", ".join(parts[:half]) + ",\n" + ", ".join(parts[half:])


def _draw_before_after(
    axis: "Axes", calibration: ScaleCalibration, closure: Closure, before: Sequence[Closure]
) -> None:
    """Residual A of one resonance, without and with the calibration, on the band of its uncertainty."""
    sigma = _projected_errors(calibration, closure)["A"]
    drawn = _draw_band(axis, closure, sigma, scaled=False)
    for other in before:
        value, error = _closure_points(other, "A")
        beside = bin_centres(other.eta_edges) - 0.2 * np.diff(other.eta_edges)
        axis.errorbar(
            beside, value, error, fmt="o", color=PAST, label="before", zorder=2.5, markersize=4.5,
            markerfacecolor="white", elinewidth=1.1,
        )  # fmt: skip
        drawn += [value - error, value + error]
    value, error = _closure_points(closure, "A")
    draw_points(axis, closure.eta_edges, value, error, "after")
    axis.axhline(0.0, color=PAST, lw=0.8, zorder=0.5)
    axis.set_title(
        rf"{_label(closure)}: $\chi^2$/ndf = {closure.chi2:.1f}/{closure.ndf}, "
        f"p = {probability_text(closure.p_value)}",
        fontsize=11.5,
    )
    axis.set_ylabel("residual " + LABELS["A"])
    legend_in_order(axis, ["before", "after", _SIGMA], loc="upper left", ncols=3, **_COMPACT)
    set_range(axis, np.concatenate([*drawn, value - error, value + error]), symmetric=True, above=0.2)


def _truth_title(calibration: ScaleCalibration, truth: ScaleParameters) -> str:
    test = _against_truth(calibration, truth)
    return chi2_text("Against truth", test.chi2, test.ndf, test.p_value)


def _scale_legend(axis: "Axes", with_truth: bool) -> None:
    """A line on its band for each charge, and one neutral entry for the dotted truth of both."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        (Patch(color=colour, alpha=0.3, lw=0), Line2D([], [], color=colour, lw=1.6))
        for colour in (FIT, MINUS)
    ]
    names = [r"$\mu^+$ ±1σ", r"$\mu^-$ ±1σ"]
    if with_truth:
        handles.append(Line2D([], [], color="black", ls=_DOTS, lw=2.4))
        names.append("truth")
    axis.legend(handles, names, loc="upper right", ncols=3)


def _panels(figure: "Figure", *, with_pulls: bool) -> "tuple[list[Axes], list[Axes]]":
    """Three panels on top of each other, each with a lower one for pulls close to it if asked for."""
    if not with_pulls:
        return list(figure.subplots(3, 1, sharex=True)), []
    grid = figure.add_gridspec(8, 1, height_ratios=[2.6, 1.0, 0.12, 2.6, 1.0, 0.12, 2.6, 1.0])
    axes = [figure.add_subplot(grid[row]) for row in (0, 1, 3, 4, 6, 7)]
    return axes[::2], axes[1::2]


def _stack(axes: "Sequence[Axes]", edges: Floats, lowest: "Axes") -> None:
    """A column of panels over one eta axis, labelled at the lowest."""
    for axis in axes:
        axis.set_xlim(float(edges[0]), float(edges[-1]))
        axis.tick_params(labelbottom=axis is lowest)
    lowest.set_xlabel(ETA_LABEL)
    lowest.get_figure(root=True).align_ylabels(axes)  # type: ignore[union-attr]


def _check_scale(scale: ScaleParameters, what: str) -> None:
    n = len(scale.eta_edges) - 1
    if n < 1 or np.any(np.diff(scale.eta_edges) <= 0.0):
        raise InputError(f"{what}: eta_edges must increase, got {list(scale.eta_edges)}")
    for name in UNITS:
        values = np.asarray(getattr(scale, name))
        if values.shape != (n,) or not np.all(np.isfinite(values)):
            raise InputError(
                f"{what}: {name} of shape {values.shape} must be {n} finite numbers, one per eta bin"
            )


def _check_calibration(calibration: ScaleCalibration, truth: ScaleParameters | None) -> None:
    _check_scale(calibration, "calibration")
    n = calibration.n_eta
    checked_covariance(calibration.covariance, scale_parameter_names(n))
    if truth is None:
        return
    _check_scale(truth, "truth")
    if not np.array_equal(truth.eta_edges, calibration.eta_edges):
        raise InputError(f"truth: its {truth.n_eta} eta bins are not the {n} of the calibration")


def _check_closure(closure: Closure) -> None:
    n, names = len(closure.eta_edges) - 1, closure.parameter_names
    if not names or any(name not in UNITS for name in names):
        raise InputError(f"closure at {closure.resonance}: unknown parameters {names}, known are A, e, M")
    if closure.values.shape != (n, len(names)):
        raise InputError(
            f"closure at {closure.resonance}: values of shape {closure.values.shape}, not {(n, len(names))}"
        )
    if np.shape(closure.mean_k) != (n,):
        raise InputError(
            f"closure at {closure.resonance}: mean_k of shape {np.shape(closure.mean_k)}, not {(n,)}"
        )
    checked_covariance(closure.covariance, [f"{name}{i}" for i in range(n) for name in names])


def _check_spectrum(spectrum: MassSpectrum) -> None:
    n = len(spectrum.counts)
    for name, length in (("counts", n), ("expected", n), ("background", n), ("edges", n + 1)):
        shape = np.shape(getattr(spectrum, name))
        if shape != (length,):
            raise InputError(f"mass spectrum: {name} of shape {shape}, expected ({length},)")


def _checked_counts(counts: ArrayLike, fits: BinFits, model: SignalModel) -> Floats:
    table = np.asarray(counts, dtype=np.float64)
    expected = (len(fits.status), model.n_mass)
    if table.shape != expected or len(model.table_of) != expected[0]:
        raise InputError(
            f"counts of shape {table.shape} and a model of {len(model.table_of)} bins for "
            f"{expected[0]} fits of {expected[1]} mass bins: give the rows that were fitted"
        )
    return table
