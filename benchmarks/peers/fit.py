"""Batched mass fits beside one fit at a time: Gaussian + exponential in 100 bins, and smeared generator templates.

``fit``: histograms of 200 to 20,000 entries (log-uniform), Gaussian + exponential drawn from a truth of their own.
All peers get the same bins (uniform in ln m: for them, bins of unequal width) and minimise the same function: bin
integrals (but for "roofit", which takes the density at bin centres), free yields, and a Gaussian prior of 2 on the
slope across the window, which is in our likelihood and so in theirs. All start from the same point (but for the
slope, 0 for ours and 0.1 for theirs) and give a
covariance from second derivatives at the minimum. Making histograms into the peers' own objects is not on the clock.

What is not alike: ours fits a fraction of background for a given total where iminuit, RooFit and zfit have two yields
(one parameter more, the same minimum); ours scores with the expected information and analytic derivatives, theirs
take numerical ones but for scipy and zfit; our Gaussian is interpolated in a table of its cumulative. All of theirs
are generic minimisers, called in a loop in Python; ours is a loop in a kernel.

``fit template``: 2,000 entries in each bin, a template of 8,000 simulated masses of its own; the peer is
`musclecal.fits.reference.fit_with_iminuit`, a second implementation for tests, in numpy: iminuit with a compiled
convolution would be some times faster.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from benchmarks.peers.rows import Difference, Effort, Peer, Timed, Work, need
from musclecal.binning import Binning
from musclecal.fits.likelihood import fit_bins
from musclecal.fits.reference import fit_with_iminuit
from musclecal.fits.shapes import SignalModel, gaussian, generator_template
from musclecal.records import BinFits, Floats, MassHistogram
from musclecal.resonances import resonance
from musclecal.simulate import lineshape

BINS = 100
SLOPE_PRIOR = 2.0
START_WIDTH = 0.012
AIMS = {"iminuit": 100.0, "roofit": 40.0}
TEMPLATE_AIMS = {"iminuit": 50.0}


@dataclass(frozen=True)
class Masses:
    """Histograms (n, BINS) on the mass axis of ``binning``."""

    binning: Binning
    counts: Floats

    @property
    def edges(self) -> Floats:
        """(BINS + 1,) GeV."""
        return self.binning.mass_edges

    @property
    def window(self) -> float:
        """GeV."""
        return float(self.edges[-1] - self.edges[0])


@dataclass(frozen=True)
class Found:
    """Results of fits (n,) in GeV. ``valid``: the minimiser says so."""

    mean: Floats
    error: Floats
    sigma: Floats
    valid: NDArray[np.bool_]


def axes(eta_edges: tuple[float, ...] = (-2.4, 2.4), pt_edges: tuple[float, ...] = (4.0, 40.0)) -> Binning:
    """`BINS` masses in the window of the J/psi."""
    jpsi = resonance("Jpsi")
    return Binning(eta_edges, pt_edges, jpsi.mass_window, BINS, jpsi.line.mass)


def drawn(n: int, seed: int = 1) -> Masses:
    """Histograms of a truth each."""
    rng, binning = np.random.default_rng(seed), axes()
    edges = binning.mass_edges
    mean = binning.mass_reference * (1.0 + rng.normal(0.0, 1e-3, n))
    sigma = mean * rng.uniform(0.008, 0.018, n)
    fraction, slope = rng.uniform(0.05, 0.3, n), rng.uniform(0.3, 2.0, n)
    signal = np.diff(ndtr((edges - mean[:, None]) / sigma[:, None]), axis=1)
    u = (edges - edges[0]) / (edges[-1] - edges[0])
    background = np.diff(np.expm1(-slope[:, None] * u) / np.expm1(-slope[:, None]), axis=1)
    p = (1.0 - fraction[:, None]) * signal / signal.sum(axis=1, keepdims=True) + fraction[
        :, None
    ] * background
    entries = np.exp(rng.uniform(np.log(200.0), np.log(20_000.0), n)).astype(int)
    return Masses(binning, rng.multinomial(entries, p).astype(np.float64))


def in_gev(fits: BinFits, reference: float) -> Found:
    """Ours as theirs."""
    mean = fits.scale * reference
    error = np.sqrt(fits.covariance[:, 0, 0]) * reference
    return Found(mean, error, fits.width * mean, fits.converged)


def compared(ours: Found, theirs: Found) -> tuple[Difference, ...]:
    """Medians over the fits that both call good."""
    n = len(theirs.mean)
    good = ours.valid[:n] & theirs.valid
    mean, error, sigma = ours.mean[:n][good], ours.error[:n][good], ours.sigma[:n][good]
    return (
        Difference("means, median/sigma", float(np.median(np.abs(theirs.mean[good] - mean) / error)), 0.005),
        Difference("errors, median", float(np.median(np.abs(theirs.error[good] / error - 1.0))), 0.01),
        Difference("widths, median", float(np.median(np.abs(theirs.sigma[good] / sigma - 1.0)))),
        Difference("ours not converged", float(np.count_nonzero(~ours.valid)), 0.0),
        Difference("theirs not converged", float(np.count_nonzero(~theirs.valid))),
        Difference("fits compared", float(n)),
    )


def one_by_one(fit: Callable[[int], tuple[float, float, float, bool]], n: int) -> Found:
    """``fit`` gives mean, error, sigma, validity of a histogram."""
    columns = [np.array(column) for column in zip(*(fit(row) for row in range(n)), strict=True)]
    return Found(*columns)


def peer(ours: Found, fit: Callable[[int], tuple[float, float, float, bool]], n: int) -> Peer:
    """One that fits ``n`` histograms one by one."""
    return Peer(Timed(lambda: one_by_one(fit, n), n), compared(ours, one_by_one(fit, n)))


def _yield_cdf() -> Callable[..., Floats]:
    """Cumulative of signal and background at edges, times yields: numba_stats where it is there, else scipy."""
    try:
        import numba
        from numba_stats import norm, truncexpon
    except ImportError:

        def with_scipy(
            x: Floats, n_signal: float, n_background: float, mean: float, sigma: float, slope: float
        ) -> Floats:
            u = (x - x[0]) / (x[-1] - x[0])
            below = np.expm1(-slope * u) / np.expm1(-slope)
            return np.asarray(n_signal * ndtr((x - mean) / sigma) + n_background * below)

        return with_scipy

    @numba.njit(cache=False, error_model="numpy")  # type: ignore[untyped-decorator]
    def with_numba_stats(
        x: Floats, n_signal: float, n_background: float, mean: float, sigma: float, slope: float
    ) -> Floats:
        low, high = x[0], x[-1]
        scale = (high - low) / (slope if abs(slope) > 1e-6 else 1e-6)
        total: Floats = n_signal * norm.cdf(x, mean, sigma) + n_background * truncexpon.cdf(
            x, low, high, low, scale
        )
        return total

    compiled: Callable[..., Floats] = with_numba_stats
    return compiled


def with_iminuit(masses: Masses) -> Callable[[int], tuple[float, float, float, bool]]:
    """MIGRAD with strategy 0, then HESSE: with strategy 1 MIGRAD calls HESSE itself, at no gain."""
    from iminuit import Minuit
    from iminuit.cost import ExtendedBinnedNLL, NormalConstraint

    cdf, edges, reference = _yield_cdf(), masses.edges, masses.binning.mass_reference

    def fit(row: int) -> tuple[float, float, float, bool]:
        counts = masses.counts[row]
        total = counts.sum()
        cost = ExtendedBinnedNLL(counts, edges, cdf) + NormalConstraint("slope", 0.0, SLOPE_PRIOR)
        start = (0.9 * total, 0.1 * total, reference, START_WIDTH * reference, 0.1)
        minuit = Minuit(
            cost, **dict(zip(("n_signal", "n_background", "mean", "sigma", "slope"), start, strict=True))
        )
        minuit.limits["n_signal", "n_background"] = (0.0, None)
        minuit.limits["sigma"] = (1e-4 * reference, 0.3 * reference)
        minuit.limits["slope"] = (-30.0, 30.0)
        minuit.strategy = 0
        minuit.migrad()
        minuit.hesse()
        return minuit.values["mean"], minuit.errors["mean"], minuit.values["sigma"], bool(minuit.valid)

    return fit


def with_scipy(masses: Masses) -> Callable[[int], tuple[float, float, float, bool]]:
    """L-BFGS-B with the analytic gradient; the Hessian by central differences of it."""
    from scipy.optimize import minimize

    edges, reference = masses.edges, masses.binning.mass_reference
    u = (edges - edges[0]) / masses.window
    unit = np.array([1e-3 * reference, 0.1, 0.1, 1.0])
    start = np.array([reference, np.log(START_WIDTH * reference), 0.1, 0.1])
    bounds = [(0.9 * reference, 1.1 * reference), (np.log(1e-3), 0.0), (0.0, 0.995), (-30.0, 30.0)]
    scaled_bounds = [(low / s, high / s) for (low, high), s in zip(bounds, unit, strict=True)]

    def cost(scaled: Floats, counts: Floats) -> tuple[float, Floats]:
        mean, log_sigma, fraction, slope = scaled * unit
        sigma = np.exp(log_sigma)
        t = (edges - mean) / sigma
        density = np.exp(-0.5 * t * t) / np.sqrt(2.0 * np.pi)
        signal, d_mean, d_sigma = np.diff(ndtr(t)), np.diff(-density / sigma), np.diff(-density * t)
        total = signal.sum()
        d_mean = (d_mean - signal * d_mean.sum() / total) / total
        d_sigma = (d_sigma - signal * d_sigma.sum() / total) / total
        signal = signal / total
        below, norm = -np.expm1(-slope * u), -np.expm1(-slope)
        background = np.diff(below) / norm
        d_slope = (np.diff(u * np.exp(-slope * u)) - background * np.exp(-slope)) / norm
        p = np.maximum((1.0 - fraction) * signal + fraction * background, 1e-12)
        r = counts / p
        gradient = np.array([
            -(1.0 - fraction) * (r @ d_mean), -(1.0 - fraction) * (r @ d_sigma), -(r @ (background - signal)),
            -fraction * (r @ d_slope) + slope / SLOPE_PRIOR**2,
        ])  # fmt: skip
        return float(-(counts @ np.log(p)) + 0.5 * (slope / SLOPE_PRIOR) ** 2), gradient * unit

    def hessian(scaled: Floats, counts: Floats) -> Floats:
        steps = 1e-3 * np.eye(4)
        rows = [(cost(scaled + h, counts)[1] - cost(scaled - h, counts)[1]) / 2e-3 for h in steps]
        return 0.5 * (np.array(rows) + np.array(rows).T)

    def fit(row: int) -> tuple[float, float, float, bool]:
        counts = masses.counts[row]
        result = minimize(
            cost, start / unit, (counts,), method="L-BFGS-B", jac=True, bounds=scaled_bounds,
            options={"ftol": 1e-12, "gtol": 1e-4},
        )  # fmt: skip
        free = result.x > [low for low, _ in scaled_bounds]
        variance = np.zeros(4)
        try:
            inverse = np.linalg.inv(hessian(result.x, counts)[np.ix_(free, free)])
        except np.linalg.LinAlgError:
            return result.x[0] * unit[0], np.nan, np.exp(result.x[1] * unit[1]), False
        variance[free] = np.diagonal(inverse)
        good = bool(result.success and variance[0] > 0.0)
        error = unit[0] * np.sqrt(max(variance[0], 0.0))
        return float(result.x[0] * unit[0]), float(error), float(np.exp(result.x[1] * unit[1])), good

    return fit


class RooFit:
    """RooGaussian + RooExponential, extended; one likelihood that is given one histogram after the other.

    This, with the vectorised backend and strategy 0, was the fastest of what was tried: twice as fast as `fitTo`
    of each. With RooMinimizer's own tolerance (1) means end 0.002 of an error away, with 0.1 half of that, at no cost.
    """

    def __init__(self, masses: Masses, n: int, integrated: bool) -> None:
        need("ROOT")
        import ROOT

        ROOT.gROOT.SetBatch(True)
        ROOT.RooMsgService.instance().setGlobalKillBelow(ROOT.RooFit.ERROR)
        self.root, self.masses = ROOT, masses
        reference, edges = masses.binning.mass_reference, masses.edges
        self.mass = ROOT.RooRealVar("mass", "", edges[0], edges[-1])
        self.mass.setBinning(ROOT.RooBinning(BINS, edges))
        self.mean = ROOT.RooRealVar("mean", "", reference, 0.9 * reference, 1.1 * reference)
        self.sigma = ROOT.RooRealVar("sigma", "", START_WIDTH * reference, 1e-4 * reference, 0.3 * reference)
        self.slope = ROOT.RooRealVar(
            "slope", "", -0.1 / masses.window, -30.0 / masses.window, 30.0 / masses.window
        )
        self.signal = ROOT.RooRealVar("n_signal", "", 100.0, 0.0, 1e6)
        self.background = ROOT.RooRealVar("n_background", "", 10.0, 0.0, 1e6)
        self.parts = (
            ROOT.RooGaussian("gaussian", "", self.mass, self.mean, self.sigma),
            ROOT.RooExponential("exponential", "", self.mass, self.slope),
        )
        self.model = ROOT.RooAddPdf(
            "model", "", ROOT.RooArgList(*self.parts), ROOT.RooArgList(self.signal, self.background)
        )
        prior = ROOT.RooFit.RooConst(0.0), ROOT.RooFit.RooConst(SLOPE_PRIOR / masses.window)
        self.prior = ROOT.RooGaussian("prior", "", self.slope, *prior)
        self.data = [self.histogram(row) for row in range(n)]
        options = {"IntegrateBins": 1e-6} if integrated else {}
        self.likelihood = self.model.createNLL(
            self.data[0],
            Extended=True,
            ExternalConstraints=ROOT.RooArgSet(self.prior),
            EvalBackend="cpu",
            **options,
        )
        self.minimizer = ROOT.RooMinimizer(self.likelihood)
        self.minimizer.setPrintLevel(-1)
        self.minimizer.setPrintEvalErrors(-1)
        self.minimizer.setStrategy(0)
        self.minimizer.setEps(0.1)

    def histogram(self, row: int) -> Any:
        """A RooDataHist."""
        root = self.root.TH1D(f"h{row}", "", BINS, self.masses.edges)
        root.SetDirectory(self.root.nullptr)
        for i, count in enumerate(self.masses.counts[row]):
            root.SetBinContent(i + 1, count)
        return self.root.RooDataHist(f"d{row}", "", self.root.RooArgList(self.mass), root)

    def start(self, total: float) -> None:
        """The start of all fits."""
        reference = self.masses.binning.mass_reference
        values = (reference, START_WIDTH * reference, -0.1 / self.masses.window, 0.9 * total, 0.1 * total)
        for parameter, value in zip(
            (self.mean, self.sigma, self.slope, self.signal, self.background), values, strict=True
        ):
            parameter.setVal(value)
            parameter.setError(0.0)

    def __call__(self, row: int) -> tuple[float, float, float, bool]:
        total = self.masses.counts[row].sum()
        self.start(total)
        self.likelihood.setData(self.data[row], False)
        status = self.minimizer.minimize("Minuit2", "migrad")
        self.minimizer.hesse()
        return self.mean.getVal(), self.mean.getError(), self.sigma.getVal(), status == 0


class Zfit:
    """zfit's Gauss + Exponential, binned by zfit, extended; gradients by TensorFlow, minimised with Minuit."""

    def __init__(self, masses: Masses) -> None:
        need("zfit")
        import zfit

        self.zfit, self.masses = zfit, masses
        reference, edges = masses.binning.mass_reference, masses.edges
        binned = zfit.Space("mass", binning=zfit.binned.VariableBinning(edges, name="mass"))
        obs = zfit.Space("mass", limits=(edges[0], edges[-1]))
        self.binned = binned
        self.parameters = [
            zfit.Parameter("mean", reference, 0.9 * reference, 1.1 * reference, stepsize=1e-3),
            zfit.Parameter(
                "sigma", START_WIDTH * reference, 1e-4 * reference, 0.3 * reference, stepsize=1e-3
            ),
            zfit.Parameter("slope", -0.1 / masses.window, -30.0 / masses.window, 30.0 / masses.window),
            zfit.Parameter("n_signal", 900.0, 0.0, 1e6, stepsize=10.0),
            zfit.Parameter("n_background", 100.0, 0.0, 1e6, stepsize=10.0),
        ]
        mean, sigma, slope, n_signal, n_background = self.parameters
        signal = zfit.pdf.Gauss(mean, sigma, obs=obs, extended=n_signal)
        background = zfit.pdf.Exponential(slope, obs=obs, extended=n_background)
        self.model = zfit.pdf.SumPDF([signal, background]).to_binned(binned)
        self.prior = zfit.constraint.GaussianConstraint(slope, 0.0, sigma=SLOPE_PRIOR / masses.window)

    def __call__(self, row: int) -> tuple[float, float, float, bool]:
        counts, reference = self.masses.counts[row], self.masses.binning.mass_reference
        total = counts.sum()
        start = (reference, START_WIDTH * reference, -0.1 / self.masses.window, 0.9 * total, 0.1 * total)
        for parameter, value in zip(self.parameters, start, strict=True):
            parameter.set_value(value)
        data = self.zfit.data.BinnedData.from_tensor(self.binned, counts)
        loss = self.zfit.loss.ExtendedBinnedNLL(self.model, data, constraints=self.prior)
        result = self.zfit.minimize.Minuit(tol=1e-3).minimize(loss)
        errors = result.hesse(params=self.parameters)
        mean, sigma = self.parameters[:2]
        return (
            float(result.params[mean]["value"]), float(errors[mean]["error"]), float(result.params[sigma]["value"]),
            bool(result.valid),
        )  # fmt: skip


def work(effort: Effort) -> Work:
    """``fit``."""
    masses = drawn(effort.of(2_000, 20))
    n, few, very_few = len(masses.counts), min(effort.of(100, 20), len(masses.counts)), effort.of(4, 2)
    model = gaussian(masses.binning, n)

    def run() -> BinFits:
        return fit_bins(masses.counts, model, "exponential", slope_prior=SLOPE_PRIOR, threads=1)

    ours = in_gev(run(), masses.binning.mass_reference)
    return Work(
        "fit",
        "fits",
        Timed(run, n),
        None,
        {
            "iminuit": lambda: peer(ours, with_iminuit(masses), few),
            "scipy": lambda: peer(ours, with_scipy(masses), few),
        },
        {
            "roofit": lambda: peer(ours, RooFit(masses, few, False), few),
            "roofit integrated": lambda: peer(ours, RooFit(masses, few, True), few),
            "zfit": lambda: peer(ours, Zfit(masses), very_few),
        },
        AIMS,
    )


def templates(n: int, entries: int = 2_000, seed: int = 2) -> tuple[Floats, SignalModel]:
    """Counts (n, BINS) with 10 % of background, and a model with a template of 4 ``entries`` masses for each."""
    rng = np.random.default_rng(seed)
    binning = axes(tuple(np.linspace(-2.4, 2.4, 41)), (4.0, 4.9, 6.4, 9.5, 40.0))
    first, last = binning.generator_range
    generator_edges = binning.mass_reference * np.exp(binning.log_step * (np.arange(first, last + 2) - 0.5))
    shape, _ = np.histogram(lineshape(resonance("Jpsi"), 400_000, seed), generator_edges)
    lines = rng.multinomial(4 * entries, shape / shape.sum(), n)
    scale, width = 1.0 + rng.normal(0.0, 1e-3, n), rng.uniform(0.008, 0.018, n)
    u = np.diff(
        (binning.mass_edges - binning.mass_edges[0]) / (binning.mass_edges[-1] - binning.mass_edges[0])
    )
    counts = np.empty((n, BINS))
    for row in range(n):
        below = ndtr(
            (binning.mass_edges / (scale[row] * binning.generator_masses[:, None]) - 1.0) / width[row]
        )
        signal = shape @ np.diff(below, axis=1)
        counts[row] = rng.multinomial(entries, 0.9 * signal / signal.sum() + 0.1 * u)
    rows = np.arange(n)
    nothing = np.ones((n, 2))
    return counts, generator_template(
        MassHistogram(binning, rows, counts, nothing, nothing, nothing, generator=lines), rows
    )


def template_work(effort: Effort) -> Work:
    """``fit template``."""
    counts, model = templates(effort.of(25_000, 20))
    n, few = len(counts), min(effort.of(40, 8), len(counts))
    reference = model.reference

    def run() -> BinFits:
        return fit_bins(counts, model, "exponential", slope_prior=SLOPE_PRIOR, threads=1)

    def fit(row: int) -> tuple[float, float, float, bool]:
        one = fit_with_iminuit(counts, model, "exponential", row, slope_prior=SLOPE_PRIOR)
        mean = one.values[0] * reference
        return mean, one.errors[0] * reference, one.values[1] * mean, one.valid

    ours = in_gev(run(), reference)
    return Work(
        "fit template",
        "fits",
        Timed(run, n),
        None,
        {"iminuit": lambda: peer(ours, fit, few)},
        {},
        TEMPLATE_AIMS,
    )
