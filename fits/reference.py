r"""The one-bin oracle: the likelihood of `musclecal.fits.likelihood` written again, for iminuit or zfit.

==================  ====================================================  ===============
function            probabilities from                                    cost of one fit
==================  ====================================================  ===============
`fit_with_iminuit`  numpy, scipy: ``ndtr`` line by line, Hermite splines  10-50 ms
`fit_with_zfit`     TensorFlow: quadrature of densities, Hermite basis    1-3 s
==================  ====================================================  ===============

Nothing numerical is shared with the kernels: bin contents are summed directly over the template lines, the
background is integrated by quadrature of its density, derivatives are those of the minimiser. So a mistake
in a kernel shows. What is minimised is
:math:`\sum_i n_i \ln(n_i/(N p_i)) + \tfrac12(\tau/\sigma_\tau)^2`, which is :math:`-\ln L` less a constant.

Not for: many bins (`fit_bins` is a thousand times faster). iminuit and zfit are imported when they are used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicHermiteSpline
from scipy.special import ndtr, xlogy

from musclecal.errors import InputError
from musclecal.fits.shapes import SignalModel
from musclecal.fits.shapes.cumulative import LINES
from musclecal.records import Floats

__all__ = ["ReferenceFit", "bin_probabilities", "fit_with_iminuit", "fit_with_zfit"]

_NAMES = ("scale", "width", "background_fraction", "background_slope")
_FRACTION, _SLOPE = 2, 3
_MAX_FRACTION = 0.995
_SLOPE_LIMIT = {"exponential": 30.0, "linear": 1.0}
_FLOOR = 1e-12
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class ReferenceFit:
    """The fit of one bin. A parameter that is not fitted, or ends at a bound, has error and covariance zero.

    Attributes
    ----------
    parameter_names : scale, width (both relative), background_fraction, background_slope (per window width).
    values, errors : (4,); errors from HESSE, symmetric.
    minos : (4, 2) lower (negative) and upper MINOS errors, nan where MINOS failed; None if not asked for.
    covariance : (4, 4).
    at_bound : (4,) parameters held at a bound; the slope is held at zero when the fraction is zero.
    edm : estimated distance to the minimum, in units of -ln L.
    valid : the minimiser says so.
    nll : -ln L, the sum of -n ln p and the slope prior.
    """

    parameter_names: tuple[str, ...]
    values: Floats
    errors: Floats
    minos: Floats | None
    covariance: Floats
    at_bound: NDArray[np.bool_]
    edm: float
    valid: bool
    nll: float


def _mass_edges(model: SignalModel) -> Floats:
    """(n_mass + 1,) GeV."""
    return np.asarray(model.low * np.exp(model.step * np.arange(model.n_mass + 1)))


def _line_masses(model: SignalModel, table: Floats) -> Floats:
    """(n_line,) GeV, of the lines of a template."""
    return np.asarray(model.reference * np.exp(model.step * (model.origin + np.arange(len(table)))))


def _nodes(model: SignalModel, table: Floats) -> tuple[Floats, Floats, Floats]:
    """(t, cumulative, density) at the nodes of a standard shape, (n_node,) each."""
    n_node = len(table) // 2
    t = model.origin + model.spacing * np.arange(n_node)
    return np.asarray(t), table[:n_node], table[n_node:]


def _cumulative_lines(model: SignalModel, table: Floats, scale: float, width: float) -> Floats:
    """(n_mass + 1,) sum_j n_j Phi((x/(s m_j) - 1)/w), line by line."""
    used = table != 0.0
    masses = scale * _line_masses(model, table)[used]
    t = (_mass_edges(model)[:, None] / masses - 1.0) / width
    return np.asarray(ndtr(t) @ table[used])


def _cumulative_standard(model: SignalModel, table: Floats, scale: float, width: float) -> Floats:
    """(n_mass + 1,) G(t), t = (x/(s m_ref) - 1)/w, by scipy; constant density outside the nodes."""
    nodes, cumulative, density = _nodes(model, table)
    t = (_mass_edges(model) / (scale * model.reference) - 1.0) / width
    inside = np.clip(t, nodes[0], nodes[-1])
    spline = CubicHermiteSpline(nodes, cumulative, density)
    beyond = np.where(t > nodes[-1], density[-1], density[0]) * (t - inside)
    return np.asarray(spline(inside) + beyond)


def _signal_contents(model: SignalModel, row: int, scale: float, width: float) -> Floats:
    """(n_mass,) signal in each mass bin, normalised to the window."""
    cumulative = _cumulative_lines if model.form == LINES else _cumulative_standard
    contents = np.diff(cumulative(model, model.tables[model.table_of[row]], scale, width))
    return np.asarray(contents / max(contents.sum(), _FLOOR))


def _window_positions(model: SignalModel) -> tuple[Floats, Floats]:
    """Quadrature points u = 0 ... 1 across the window, (n_mass, 16), and their weights."""
    edges = _mass_edges(model)
    u = (edges - edges[0]) / (edges[-1] - edges[0])
    half = 0.5 * np.diff(u)[:, None]
    return u[:-1, None] + half * (1.0 + _NODES), half * _NODE_WEIGHTS


def _background_contents(model: SignalModel, background: str, slope: float) -> Floats:
    """(n_mass,) background in each mass bin, normalised to the window: its density integrated numerically."""
    u, weights = _window_positions(model)
    density = np.exp(-slope * u) if background == "exponential" else 1.0 + slope * (2.0 * u - 1.0)
    contents = np.sum(density * weights, axis=1)
    return np.asarray(contents / contents.sum())


def bin_probabilities(model: SignalModel, background: str, row: int, parameters: ArrayLike) -> Floats:
    """p_i (n_mass,) of bin ``row`` at (scale, width, background fraction, slope), without any kernel."""
    scale, width, fraction, slope = (float(x) for x in np.asarray(parameters, dtype=np.float64))
    signal = _signal_contents(model, row, scale, width)
    if background == "none":
        return signal
    return np.asarray((1.0 - fraction) * signal + fraction * _background_contents(model, background, slope))


@dataclass(frozen=True)
class _Priors:
    """Gaussian priors: ``slope`` is a standard deviation, ``width`` a centre and a relative one."""

    slope: float
    width: tuple[float, float] | None = None

    def cost(self, parameters: Floats) -> float:
        """Their part of -ln L."""
        cost = 0.5 * (parameters[_SLOPE] / self.slope) ** 2
        if self.width is not None:
            centre, relative = self.width
            cost += 0.5 * (np.log(parameters[1] / centre) / relative) ** 2
        return float(cost)


def _deviance_function(
    counts: Floats, model: SignalModel, background: str, row: int, priors: _Priors
) -> Callable[[Floats], float]:
    """-ln L up to a constant that makes it small, so that differences are not lost in rounding."""

    def deviance(parameters: Floats) -> float:
        p = np.maximum(bin_probabilities(model, background, row, parameters), _FLOOR)
        ratio = counts / (counts.sum() * p)
        return float(np.sum(xlogy(counts, ratio))) + priors.cost(parameters)

    return deviance


def _nll(
    counts: Floats, model: SignalModel, background: str, row: int, priors: _Priors, parameters: Floats
) -> float:
    p = np.maximum(bin_probabilities(model, background, row, parameters), _FLOOR)
    return float(-np.sum(xlogy(counts, p))) + priors.cost(parameters)


def _checked(counts: ArrayLike, model: SignalModel, background: str, row: int) -> Floats:
    """(n_mass,) counts of ``row``."""
    if background not in ("none", *_SLOPE_LIMIT):
        raise InputError(f"background: unknown {background!r}; known are none, exponential, linear")
    one: Floats = np.asarray(counts, dtype=np.float64)[row]
    if one.shape != (model.n_mass,):
        raise InputError(f"counts: bin {row} has shape {one.shape}, the model has {model.n_mass} mass bins")
    if not one.sum() > 0.0:
        raise InputError(f"counts: bin {row} is empty")
    return one


def _start(model: SignalModel, background: str, start: ArrayLike | None) -> Floats:
    """(4,) starting point; without background its two parameters are zero."""
    values = np.array([1.0, model.start_width, 0.1, 0.0] if start is None else start, dtype=np.float64)
    if background == "none":
        values[_FRACTION:] = 0.0
    return values


def _limits(background: str) -> list[tuple[float, float]]:
    slope = _SLOPE_LIMIT.get(background, 0.0)
    return [(0.9, 1.1), (1e-4, 0.3), (0.0, _MAX_FRACTION), (-slope, slope)]


def _minuit(
    deviance: Callable[[Floats], float],
    start: Floats,
    events: float,
    background: str,
    fixed: tuple[int, ...] = (),
) -> Any:
    """A `Minuit` that has run MIGRAD within the limits, ``fixed`` parameters where they start."""
    from iminuit import Minuit

    minuit = Minuit(deviance, start, name=_NAMES)
    minuit.errordef, minuit.tol = Minuit.LIKELIHOOD, 1e-4
    minuit.errors = [start[1] / np.sqrt(events), start[1] / np.sqrt(2.0 * events), 0.02, 0.3]
    minuit.limits = _limits(background)
    for p in fixed:
        minuit.fixed[p] = True
    return minuit.migrad(ncall=5000)


def _lowest(deviance: Callable[[Floats], float], start: Floats, events: float, background: str) -> Any:
    """The lowest minimum within the limits.

    Near a fraction of zero there can be several: the slope is then fixed by its prior alone, and a fraction
    of zero is compared with small fractions of either slope.
    """
    if background == "none":
        return _minuit(deviance, start, events, background, (_FRACTION, _SLOPE))
    first = _minuit(deviance, start, events, background)
    if first.values[_FRACTION] > 0.05:
        return first
    scale, width = first.values[0], first.values[1]
    slope = 0.5 * min(_SLOPE_LIMIT[background], 4.0)
    starts = [np.array([scale, width, 0.01, slope * sign]) for sign in (-1.0, 1.0)]
    none = _minuit(deviance, np.array([scale, width, 0.0, 0.0]), events, background, (_FRACTION, _SLOPE))
    others = [_minuit(deviance, one, events, background) for one in starts]
    best = min((first, *others), key=lambda minuit: minuit.fval)
    return none if none.fval <= best.fval + 1e-6 else best


def _held_at_bounds(minuit: Any, deviance: Callable[[Floats], float], events: float, background: str) -> Any:
    """The same minimum with the parameters that have run into a bound fixed there."""
    fixed, values = list(minuit.fixed), np.array(minuit.values)
    for p in (_FRACTION, _SLOPE):
        for bound in _limits(background)[p]:
            if not fixed[p] and abs(values[p] - bound) < 1e-4 * (abs(bound) + 0.1):
                values[p], fixed[p] = bound, True
    held = _minuit(deviance, values, events, background, tuple(np.flatnonzero(fixed)))
    return held if held.fval < minuit.fval + 1e-6 else minuit


def _minuit_at_minimum(
    deviance: Callable[[Floats], float], start: Floats, events: float, background: str
) -> Any:
    """A `Minuit` at the lowest minimum, with a HESSE covariance that no limit has distorted."""
    lowest = _lowest(deviance, start, events, background)
    minuit = _held_at_bounds(lowest, deviance, events, background)
    minuit.limits = [(None, None)] * len(_NAMES)
    minuit.hesse()
    return minuit


def _minos_errors(minuit: Any, background: str) -> Floats:
    """(4, 2); zero for fixed parameters, nan where MINOS failed."""
    errors = np.zeros((len(_NAMES), 2))
    minuit.limits = _limits(background)
    minuit.minos()
    for name, merror in minuit.merrors.items():
        good = (merror.lower_valid, merror.upper_valid)
        errors[_NAMES.index(name)] = np.where(good, (merror.lower, merror.upper), np.nan)
    return errors


def fit_with_iminuit(
    counts: ArrayLike,
    model: SignalModel,
    background: str,
    row: int,
    *,
    minos: bool = False,
    slope_prior: float = 2.0,
    width_prior: tuple[float, float] | None = None,
    start: ArrayLike | None = None,
) -> ReferenceFit:
    """Fit bin ``row`` with MIGRAD and HESSE, numerical derivatives, probabilities from numpy and scipy.

    Parameters
    ----------
    counts : (n_bin, n_mass) events, as for `fit_bins`.
    model, background : as for `fit_bins`.
    minos : also run MINOS.
    slope_prior : standard deviation of the Gaussian prior on the slope.
    width_prior : centre and relative standard deviation of a Gaussian prior on ln(width), or None.
    start : (4,) scale, width, background fraction, slope.

    Raises
    ------
    InputError : an empty bin, counts of another mass axis, an unknown background.
    """
    one = _checked(counts, model, background, row)
    priors = _Priors(slope_prior, width_prior)
    deviance = _deviance_function(one, model, background, row, priors)
    minuit = _minuit_at_minimum(deviance, _start(model, background, start), one.sum(), background)
    values, fixed = np.array(minuit.values), np.array(minuit.fixed)
    covariance = np.zeros((4, 4)) if minuit.covariance is None else np.array(minuit.covariance)
    covariance[fixed] = covariance[:, fixed] = 0.0
    valid, edm = bool(minuit.valid and minuit.accurate), float(minuit.fmin.edm)
    return ReferenceFit(
        parameter_names=_NAMES,
        values=values,
        errors=np.sqrt(np.diagonal(covariance)),
        minos=_minos_errors(minuit, background) if minos else None,
        covariance=covariance,
        at_bound=fixed & (background != "none"),
        edm=edm,
        valid=valid,
        nll=_nll(one, model, background, row, priors, values),
    )


def _tensorflow_signal(model: SignalModel, row: int) -> Callable[[Any, Any], Any]:
    """Bin contents (n_mass,) of the signal as a TensorFlow function of scale and width, not normalised."""
    table = model.tables[model.table_of[row]]
    return _tensorflow_lines(model, table) if model.form == LINES else _tensorflow_standard(model, table)


def _tensorflow_lines(model: SignalModel, table: Floats) -> Callable[[Any, Any], Any]:
    """The density sum_j n_j N(m; s m_j, w s m_j), by quadrature over each mass bin."""
    import tensorflow as tf

    edges, used = _mass_edges(model), table != 0.0
    half = 0.5 * np.diff(edges)[:, None]
    mass = (edges[:-1, None] + half * (1.0 + _NODES))[:, :, None]
    lines, content = _line_masses(model, table)[used], table[used]

    def contents(scale: Any, width: Any) -> Any:
        peak = scale * lines
        density = tf.exp(-0.5 * ((mass - peak) / (width * peak)) ** 2) / (width * peak) * content
        return tf.reduce_sum(tf.reduce_sum(density, axis=2) * half * _NODE_WEIGHTS, axis=1)

    return contents


def _tensorflow_standard(model: SignalModel, table: Floats) -> Callable[[Any, Any], Any]:
    """Differences of G(t), interpolated with the four Hermite basis functions."""
    import tensorflow as tf

    nodes, cumulative, density = _nodes(model, table)
    edges = _mass_edges(model)

    def contents(scale: Any, width: Any) -> Any:
        t = (edges / (scale * model.reference) - 1.0) / width
        inside = tf.clip_by_value(t, nodes[0], nodes[-1])
        left = tf.clip_by_value(tf.searchsorted(nodes, inside, side="right") - 1, 0, len(nodes) - 2)
        x = (inside - tf.gather(nodes, left)) / model.spacing
        value = (
            tf.gather(cumulative, left) * (1.0 + 2.0 * x) * (1.0 - x) ** 2
            + tf.gather(cumulative, left + 1) * x**2 * (3.0 - 2.0 * x)
            + model.spacing * tf.gather(density, left) * x * (1.0 - x) ** 2
            - model.spacing * tf.gather(density, left + 1) * x**2 * (1.0 - x)
        )
        slope = tf.where(t > nodes[-1], density[-1], density[0])
        value += slope * (t - inside)
        return value[1:] - value[:-1]

    return contents


def _tensorflow_background(model: SignalModel, background: str) -> Callable[[Any], Any]:
    """Bin contents (n_mass,) of the background as a TensorFlow function of its slope, not normalised."""
    import tensorflow as tf

    u, weights = _window_positions(model)

    def contents(slope: Any) -> Any:
        density = tf.exp(-slope * u) if background == "exponential" else 1.0 + slope * (2.0 * u - 1.0)
        return tf.reduce_sum(density * weights, axis=1)

    return contents


def _binned_pdf(space: Any, contents: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """A binned zfit pdf whose relative counts are ``contents(*parameters)``, normalised to the window."""
    import tensorflow as tf
    import zfit
    from zfit.core.binnedpdf import BaseBinnedPDF

    class Contents(BaseBinnedPDF):  # type: ignore[misc]
        @zfit.supports(norm="space")  # type: ignore[untyped-decorator]
        def _rel_counts(self, x: Any, norm: Any) -> Any:
            del x, norm
            values = contents(*(self.params[name] for name in parameters))
            return values / tf.reduce_sum(values)

    return Contents(obs=space, params=parameters)


def _zfit_loss(
    counts: Floats, model: SignalModel, background: str, row: int, slope_prior: float, start: Floats
) -> tuple[Any, list[Any]]:
    """A `zfit.loss.BinnedNLL` and its parameters."""
    import zfit

    edges = _mass_edges(model)
    space = zfit.Space("mass", binning=zfit.binned.VariableBinning(edges, name="mass"))
    limits = _limits(background)
    n = 2 if background == "none" else 4
    floating = [
        zfit.Parameter(_NAMES[p], start[p], *limits[p], stepsize=1e-3 if p < 2 else 0.02) for p in range(n)
    ]
    pdf = _binned_pdf(space, _tensorflow_signal(model, row), dict(zip(_NAMES[:2], floating[:2], strict=True)))
    constraints = []
    if background != "none":
        other = _binned_pdf(
            space, _tensorflow_background(model, background), {_NAMES[_SLOPE]: floating[_SLOPE]}
        )
        pdf = zfit.pdf.BinnedSumPDF([other, pdf], fracs=floating[_FRACTION], obs=space)
        constraints = [zfit.constraint.GaussianConstraint(floating[_SLOPE], 0.0, sigma=slope_prior)]
    data = zfit.data.BinnedData.from_tensor(space, counts)
    return zfit.loss.BinnedNLL(pdf, data, constraints=constraints), floating


def fit_with_zfit(
    counts: ArrayLike,
    model: SignalModel,
    background: str,
    row: int,
    *,
    slope_prior: float = 2.0,
    start: ArrayLike | None = None,
) -> ReferenceFit:
    """Fit bin ``row`` with zfit: binned pdfs in TensorFlow, `zfit.loss.BinnedNLL`, automatic gradients.

    Arguments and errors as in `fit_with_iminuit`, without MINOS and the prior on the width. Needs the extra
    ``likelihood``; the first call imports TensorFlow (10 s, 1 GB). A parameter near a bound is left there,
    with zfit's error.
    """
    import zfit

    one = _checked(counts, model, background, row)
    values = _start(model, background, start)
    loss, floating = _zfit_loss(one, model, background, row, slope_prior, values)
    result = zfit.minimize.Minuit(tol=1e-5).minimize(loss)
    result.hesse()
    n = len(floating)
    covariance = np.zeros((4, 4))
    covariance[:n, :n] = result.covariance(floating)
    values[:n] = [result.params[parameter]["value"] for parameter in floating]
    return ReferenceFit(
        parameter_names=_NAMES,
        values=values,
        errors=np.sqrt(np.diagonal(covariance)),
        minos=None,
        covariance=covariance,
        at_bound=np.zeros(4, dtype=np.bool_),
        edm=float(result.edm),
        valid=bool(result.valid),
        nll=_nll(one, model, background, row, _Priors(slope_prior), values),
    )
