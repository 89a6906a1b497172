"""A, e, M of 48 eta bins (144 parameters) from the mass scales of 200,000 4D bins, with injected truth and noise.

All minimise the same chi2 of s^2 and give values and covariance; "theirs" is handed the arrays that `fit_scale` makes
from its record (bin numbers, weights) outside of the clock. What is not alike: ours solves linear equations
(Gauss-Newton, three times, with sparse matrices) and reports rank and condition; iminuit (MIGRAD, strategy 0)
minimises a function of 144 parameters with its analytic gradient in numpy, in units of the size of an error and with
e about the mean curvature and is spared HESSE, which takes 11,000 calls: its covariance is the inverse of the normal
matrix, by scipy. "iminuit g2" is also handed the diagonal of the Hessian in units in which it is one: nearly the
solution, and more than a user has who does not solve the linear problem. TensorFlow takes Newton's steps with the
Hessian of automatic differentiation, compiled before the clock starts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import numpy as np
from scipy.sparse import csr_array

from benchmarks.peers.rows import Difference, Effort, Peer, Timed, Work, largest, need
from musclecal.binning import Binning, equal_eta_edges
from musclecal.fits.likelihood import PARAMETER_NAMES
from musclecal.fits.scale_fit import ScaleSolution, fit_scale
from musclecal.records import BinFits, Floats, Ints, MassFits
from musclecal.resonances import resonance

N_ETA = 48
SIZE = np.array([3e-4, 2e-3, 2e-5])
"""Of injected A (1), e (GeV) and M (1/GeV)."""
AIMS = {"iminuit": 10.0, "tensorflow": 10.0}

Values = tuple[Floats, Floats]
"""(n_eta 3,) values and errors."""


def _fits(scale: Floats, error: Floats) -> BinFits:
    n = len(scale)
    covariance = np.zeros((n, 4, 4))
    covariance[:, 0, 0] = error**2
    zero, many = np.zeros(n, dtype=np.int64), np.full(n, 1000.0)
    parameters = np.column_stack([scale, np.full(n, 0.01), np.zeros((n, 2))])
    return BinFits(
        PARAMETER_NAMES, parameters, covariance, zero, np.zeros(n), many, zero + 97, many, many, zero
    )


def mass_fits(n: int, n_eta: int = N_ETA, seed: int = 1) -> MassFits:
    """``n`` mass scales of a random truth, with noise of their errors."""
    rng, jpsi = np.random.default_rng(seed), resonance("Jpsi")
    n_pt = max(4, int(np.ceil(np.sqrt(n / n_eta**2))))
    axes = Binning(
        equal_eta_edges(n_eta, 2.4),
        tuple(np.geomspace(4.0, 40.0, n_pt + 1)),
        jpsi.mass_window,
        100,
        jpsi.line.mass,
    )
    bins = np.sort(rng.choice(axes.n_bins, min(n, axes.n_bins), replace=False)).astype(np.int64)
    i, j, k, m = axes.unravel(bins)
    edges = np.array(axes.pt_edges)
    pt = np.stack([rng.uniform(edges[b], edges[b + 1]) for b in (k, m)], axis=1)
    f = rng.uniform(0.97, 0.9975, pt.shape)
    truth = rng.normal(size=(n_eta, 3)) * SIZE
    square = np.ones(len(bins))
    for muon, (eta_bin, charge) in enumerate(((i, 1), (j, -1))):
        a, e, sagitta = truth[eta_bin].T
        square *= 1.0 + f[:, muon] * (a - e / pt[:, muon] + charge * sagitta * pt[:, muon])
    error = rng.uniform(2e-4, 8e-4, len(bins))
    scale = np.sqrt(square) * (1.0 + 1.05 * error * rng.normal(size=len(bins)))
    one, small = np.ones(len(bins)), 0.3 * error
    return MassFits(
        axes, "Jpsi", "gaussian", "none", bins, _fits(scale, error), _fits(one, small), _fits(one, small),
        1.0 / pt, pt, f, 2000.0 * len(bins), 1000.0 * len(bins), 50,
    )  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """s^2 = (1 + x_plus) (1 + x_minus) with weights, as arrays (n,); columns (n, 3) of A, e about k0, M."""

    i: Ints
    j: Ints
    plus: Floats
    minus: Floats
    square: Floats
    weight: Floats
    k0: Floats
    unit: Floats

    @property
    def n_parameters(self) -> int:
        """3 n_eta."""
        return 3 * len(self.k0)

    def back(self, values: Floats, covariance: Floats) -> Values:
        """Values and errors of A, e, M."""
        n = len(self.k0)
        jacobian = np.diag(self.unit.ravel())
        for eta_bin in range(n):
            jacobian[3 * eta_bin, 3 * eta_bin + 1] = self.k0[eta_bin] * self.unit[eta_bin, 1]
        return jacobian @ values, np.sqrt(np.diagonal(jacobian @ covariance @ jacobian.T))


def problem(fits: MassFits, solution: ScaleSolution) -> Problem:
    """In units of the errors about k0."""
    i, j, _, _ = fits.binning.unravel(fits.bins)
    k, pt, f, k0 = fits.mean_k, fits.mean_pt, fits.mean_f, solution.mean_k
    square = fits.scale**2
    weight = 1.0 / (4.0 * square * fits.scale_variance)
    columns = [
        f[:, c, None] * np.stack([np.ones(len(i)), -(k[:, c] - k0[b]), q * pt[:, c]], axis=1)
        for c, (b, q) in enumerate(((i, 1.0), (j, -1.0)))
    ]
    diagonal = np.zeros((len(k0), 3))
    for b, column in zip((i, j), columns, strict=True):
        np.add.at(diagonal, b, weight[:, None] * column**2)
    unit = 1.0 / np.sqrt(diagonal)
    return Problem(i, j, columns[0] * unit[i], columns[1] * unit[j], square, weight, k0, unit)


def with_iminuit(p: Problem, second: bool = False) -> Callable[[], Values]:
    """MIGRAD with the gradient; with the diagonal of the Hessian, too, if ``second``."""
    from iminuit import Minuit

    n_eta = len(p.k0)

    def terms(x: Floats) -> tuple[Floats, Floats, Floats]:
        t = np.asarray(x).reshape(n_eta, 3)
        a = 1.0 + np.einsum("ij,ij->i", p.plus, t[p.i])
        b = 1.0 + np.einsum("ij,ij->i", p.minus, t[p.j])
        return a, b, p.weight * (p.square - a * b)

    def chi2(x: Floats) -> float:
        a, b, weighted = terms(x)
        return float(weighted @ (p.square - a * b))

    def gradient(x: Floats) -> Floats:
        a, b, weighted = terms(x)
        out = np.empty((n_eta, 3))
        for c in range(3):
            out[:, c] = np.bincount(p.i, weighted * b * p.plus[:, c], n_eta)
            out[:, c] += np.bincount(p.j, weighted * a * p.minus[:, c], n_eta)
        return -2.0 * out.ravel()

    def covariance(x: Floats) -> Floats:
        a, b, _ = terms(x)
        rows, three = np.arange(len(p.i))[:, None], np.arange(3)
        values = np.stack([b[:, None] * p.plus, a[:, None] * p.minus])
        columns = np.stack([3 * p.i[:, None] + three, 3 * p.j[:, None] + three])
        where = (np.broadcast_to(rows, values.shape).ravel(), columns.ravel())
        design = csr_array((values.ravel(), where), shape=(len(p.i), p.n_parameters))
        return np.linalg.inv((design.T @ design.multiply(p.weight[:, None])).toarray())

    def curvature(x: Floats) -> Floats:
        return np.full(len(x), 2.0)  # the unit of a parameter is its error

    if second and "g2" not in signature(Minuit.__init__).parameters:
        raise ImportError("this iminuit takes no g2")
    more = {"g2": curvature} if second else {}

    def run() -> Values:
        minuit = Minuit(chi2, np.zeros(p.n_parameters), grad=gradient, **more)
        minuit.errordef, minuit.strategy, minuit.errors = Minuit.LEAST_SQUARES, 0, 1.0
        minuit.migrad(ncall=100_000)
        x = np.array(minuit.values)
        return p.back(x, covariance(x))

    return run


def with_tensorflow(p: Problem) -> Callable[[], Values]:
    """Newton: gradient and Hessian by automatic differentiation, in one compiled function."""
    need("tensorflow")
    import tensorflow as tf

    i, j, plus, minus, square, weight = (
        tf.constant(a) for a in (p.i, p.j, p.plus, p.minus, p.square, p.weight)
    )

    @tf.function
    def derivatives(x):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                t = tf.reshape(x, (-1, 3))
                a = 1.0 + tf.reduce_sum(plus * tf.gather(t, i), axis=1)
                b = 1.0 + tf.reduce_sum(minus * tf.gather(t, j), axis=1)
                chi2 = tf.reduce_sum(weight * (square - a * b) ** 2)
            gradient = tf.convert_to_tensor(inner.gradient(chi2, x))
        return gradient, outer.jacobian(gradient, x, experimental_use_pfor=False)

    def run() -> Values:
        x = np.zeros(p.n_parameters)
        for _ in range(10):
            gradient, hessian = (d.numpy() for d in derivatives(tf.constant(x)))
            step = np.linalg.solve(hessian, gradient)
            if gradient @ step < 1e-6:
                break
            x = x - step
        return p.back(x, 2.0 * np.linalg.inv(hessian))

    return run


def peer(solution: ScaleSolution, run: Callable[[], Values]) -> Peer:
    """Values and errors against ours."""
    values, errors = run()
    ours = np.sqrt(np.diagonal(solution.covariance))
    return Peer(
        Timed(run, 1),
        (
            Difference("parameters, largest/sigma", largest((values - solution.values.ravel()) / ours), 0.01),
            Difference("errors, largest", largest(errors / ours - 1.0), 0.01),
        ),
    )


def work(effort: Effort) -> Work:
    """``chi2``."""
    fits = mass_fits(effort.of(200_000, 8_000))
    solution = fit_scale(fits)
    given = problem(fits, solution)
    return Work(
        "chi2",
        "fits",
        Timed(lambda: fit_scale(fits), 1),
        None,
        {
            "iminuit": lambda: peer(solution, with_iminuit(given)),
            "iminuit g2": lambda: peer(solution, with_iminuit(given, second=True)),
        },
        {"tensorflow": lambda: peer(solution, with_tensorflow(given))},
        AIMS,
    )
