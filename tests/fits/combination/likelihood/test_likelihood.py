"""The chi2 written out, its derivatives, its minimum against closed forms."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize

from musclecal.errors import InputError
from musclecal.fits.combination.joined_inputs import likelihood_of
from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_input import from_hessian, from_table, renamed, with_external
from musclecal.fits.combination.newton import minimise
from musclecal.fits.combination.prior import prior_correlations
from musclecal.records import Floats
from musclecal.records.combination_likelihood import (
    CONVERGED,
    CorrelationRange,
    LikelihoodFit,
    LikelihoodInput,
    LikelihoodProblem,
)

Make = Callable[..., LikelihoodInput]
Combine = Callable[..., LikelihoodProblem]

KINDS = {
    "absolute": {},
    "relative": {"relative": 2},
    "asymmetric": {"asymmetric": 2},
    "both": {"relative": 3, "asymmetric": 3},
}


@pytest.fixture
def mixed(
    make_profiled: Make, make_tabulated: Make, make_combined: Combine
) -> Callable[[str], LikelihoodProblem]:
    """A fit and a table with sources of one kind; in "both", one source is relative and asymmetric."""

    def make(kind: str) -> LikelihoodProblem:
        fitted = make_profiled("fit", 3, 4, seed=1, relative=2 if kind in ("relative", "both") else 0)
        return make_combined((fitted, make_tabulated("table", 3, 5, seed=2, **KINDS[kind])))

    return make


def _written_out(problem: LikelihoodProblem, parameters: Floats, pearson: bool) -> float:
    """Sections of the paper one after the other, with loops."""
    sources = problem.sources
    value = dict(zip(sources, parameters[: len(sources)], strict=True))
    x = {e: parameters[len(sources) + n] for n, (_, names) in enumerate(problem.observables) for e in names}
    c = np.eye(len(sources))
    for pair in problem.correlations:
        i, j = sources.index(pair.first), sources.index(pair.second)
        c[i, j] = c[j, i] = pair.rho
    total = float(parameters[: len(sources)] @ np.linalg.inv(c) @ parameters[: len(sources)])
    for one in problem.inputs:
        delta = np.array([value[s] for s in one.sources]) - one.fitted
        expected = np.zeros(len(one.values))
        for m, estimate in enumerate(one.estimates):
            k = [one.up[m, i] * d if d >= 0 else one.down[m, i] * abs(d) for i, d in enumerate(delta)]
            t = x[estimate]
            for i in range(len(k)):
                t *= 1.0 - k[i] / one.values[m] if one.relative[i] else 1.0
            expected[m] = t - sum(k[i] for i in range(len(k)) if not one.relative[i])
        r = one.values - expected
        size = np.sqrt(np.abs(one.values / expected)) if pearson else np.ones(len(r))
        total += float((r * size) @ one.weight @ (r * size) + delta @ one.constraint @ delta)
        pull = one.prior * one.fitted
        total += float(-2.0 * delta @ pull)
        if np.any(pull):
            total += float(
                pull @ np.linalg.solve(one.constraint[:4, :4], pull[:4]) if len(pull) == 4 else 0.0
            )
    return total


@pytest.mark.parametrize("form", ["neyman", "pearson"])
@pytest.mark.parametrize("kind", list(KINDS))
class TestDerivatives:
    def point(self, problem: LikelihoodProblem, seed: int = 5) -> Floats:
        rng = np.random.default_rng(seed)
        sources = rng.normal(0.0, 0.8, len(problem.sources))
        return np.concatenate([sources, rng.normal(172.0, 2.0, len(problem.observables))])

    def test_chi2_is_the_sum_written_out(
        self, mixed: Callable[[str], LikelihoodProblem], kind: str, form: str
    ) -> None:
        problem = mixed(kind)
        for seed in range(5):
            at = self.point(problem, seed)
            expected = _written_out(problem, at, form == "pearson")
            assert likelihood_of(problem, form).chi2(at) == pytest.approx(expected, rel=1e-11)

    def test_gradient(self, mixed: Callable[[str], LikelihoodProblem], kind: str, form: str) -> None:
        problem = mixed(kind)
        likelihood, at = likelihood_of(problem, form), self.point(problem)
        step = 1e-4 * np.eye(len(at))
        numerical = [(likelihood.chi2(at + s) - likelihood.chi2(at - s)) / 2e-4 for s in step]
        np.testing.assert_allclose(likelihood.gradient(at), numerical, rtol=1e-6, atol=1e-5)

    def test_hessian(self, mixed: Callable[[str], LikelihoodProblem], kind: str, form: str) -> None:
        problem = mixed(kind)
        likelihood, at = likelihood_of(problem, form), self.point(problem)
        step = 1e-5 * np.eye(len(at))
        numerical = [(likelihood.gradient(at + s) - likelihood.gradient(at - s)) / 2e-5 for s in step]
        np.testing.assert_allclose(likelihood.hessian(at), numerical, rtol=1e-6, atol=1e-5)

    def test_gradient_on_a_kink_is_that_of_its_side(
        self, mixed: Callable[[str], LikelihoodProblem], kind: str, form: str
    ) -> None:
        problem = mixed(kind)
        likelihood, at = likelihood_of(problem, form), self.point(problem)
        at[len(problem.sources) - 1] = 0.0
        for side in (1.0, -1.0):
            beside = at.copy()
            beside[len(problem.sources) - 1] = side * 1e-9
            sides = likelihood.sides(beside)
            np.testing.assert_allclose(
                likelihood.gradient(at, sides), likelihood.gradient(beside), rtol=1e-6, atol=1e-5
            )

    def test_minimum_is_that_of_another_minimiser(
        self, mixed: Callable[[str], LikelihoodProblem], kind: str, form: str
    ) -> None:
        problem = mixed(kind)
        likelihood, fit = likelihood_of(problem, form), fit_likelihood(problem, form, minos=False)
        assert fit.status == CONVERGED
        other = minimize(
            likelihood.chi2, fit.parameters + 0.05, method="Powell", options={"xtol": 1e-9, "ftol": 1e-14}
        )
        np.testing.assert_allclose(fit.parameters, other.x, rtol=0.0, atol=2e-3)
        assert fit.chi2 <= other.fun + 1e-9


def _closed_form(problem: LikelihoodProblem) -> tuple[Floats, Floats, float]:
    """Values, covariance, chi2 of BLUE with V = stat + K C K^T, from tables."""
    sources = problem.sources
    c = prior_correlations(problem)
    values = np.concatenate([one.values for one in problem.inputs])
    k = np.zeros((len(values), len(sources)))
    v = np.zeros((len(values), len(values)))
    design = np.zeros((len(values), len(problem.observables)))
    row = 0
    for one in problem.inputs:
        rows = slice(row, row + len(one.values))
        k[rows, [sources.index(s) for s in one.sources]] = one.up
        v[rows, rows] = np.linalg.inv(one.weight)
        for m, estimate in enumerate(one.estimates):
            for n, (_, names) in enumerate(problem.observables):
                design[row + m, n] = estimate in names
        row += len(one.values)
    inverse = np.linalg.inv(v + k @ c @ k.T)
    covariance = np.asarray(np.linalg.inv(design.T @ inverse @ design), dtype=np.float64)
    x = covariance @ design.T @ inverse @ values
    rest = values - design @ x
    return x, covariance, float(rest @ inverse @ rest)


class TestQuadratic:
    def tables(self, make_tabulated: Make, make_combined: Combine) -> LikelihoodProblem:
        first, second = make_tabulated("first", 4, 5, seed=3), make_tabulated("second", 3, 6, seed=4)
        return make_combined((first, renamed(second, {"second_s5": "first_s4"})))

    @pytest.mark.parametrize("newton", [False, True])
    def test_is_blue(self, make_tabulated: Make, make_combined: Combine, newton: bool) -> None:
        """One linear system, Newton, and the closed form with sources put into the covariance; one source is shared."""
        problem = self.tables(make_tabulated, make_combined)
        fit = fit_likelihood(problem, newton=newton)
        values, covariance, chi2 = _closed_form(problem)
        np.testing.assert_allclose(fit.values, values, rtol=1e-12)
        np.testing.assert_allclose(fit.value_covariance, covariance, rtol=1e-10)
        assert fit.chi2 == pytest.approx(chi2, rel=1e-10)
        assert (fit.ndf, fit.quadratic) == (5, True)

    def test_intervals_are_those_of_the_covariance(
        self, make_tabulated: Make, make_combined: Combine
    ) -> None:
        fit = fit_likelihood(self.tables(make_tabulated, make_combined), newton=True)
        np.testing.assert_allclose([fit.up, fit.down], [fit.errors] * 2, rtol=1e-7)

    def test_parabola_and_newton_agree_with_profiled_inputs(
        self, make_profiled: Make, make_combined: Combine
    ) -> None:
        problem = make_combined((make_profiled("a", 3, 6, seed=5), make_profiled("b", 2, 7, seed=6)))
        fast, slow = fit_likelihood(problem), fit_likelihood(problem, newton=True)
        np.testing.assert_allclose(fast.parameters, slow.parameters, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(fast.covariance, slow.covariance, rtol=1e-7, atol=1e-10)
        assert fast.chi2 == pytest.approx(slow.chi2, rel=1e-9)

    def test_a_spectator_takes_part_through_its_sources(self, make_tabulated: Make) -> None:
        """It has a value of its own: alone it changes nothing, with a fit that pulled a common source it does."""
        one, other = make_tabulated("one", 2, 2, seed=7), make_tabulated("other", 1, 2, seed=8)
        observables = (("x", one.estimates),)
        alone = fit_likelihood(LikelihoodProblem((one,), observables))
        shared = renamed(other, {"other_s0": "one_s0"})
        both = fit_likelihood(LikelihoodProblem((one, shared), observables))
        assert both.observables == ("x", "other_e0")
        assert both.n_spectator == 1
        np.testing.assert_allclose(both.values[0], alone.values[0], rtol=1e-12)
        np.testing.assert_allclose(both.errors[0], alone.errors[0], rtol=1e-10)
        assert both.ndf == alone.ndf == 1


class TestProfiledInputs:
    @pytest.mark.parametrize("form", ["neyman", "pearson"])
    @pytest.mark.parametrize("relative", [0, 2])
    def test_a_single_input_returns_itself(
        self, make_profiled: Make, make_combined: Combine, form: str, relative: int
    ) -> None:
        """Values, fitted sources and covariance of the sources; of the values too, unless t is a product."""
        one = make_profiled("fit", 2, 5, seed=9, relative=relative)
        fit = fit_likelihood(make_combined((one,)), form)
        np.testing.assert_allclose(fit.values, one.values, rtol=1e-10)
        np.testing.assert_allclose(fit.pulls, one.fitted, atol=1e-8)
        k, m = one.up, one.weight
        hessian = np.block([[one.constraint + np.eye(5) + k.T @ m @ k, -k.T @ m], [-m @ k, m]])
        if form == "neyman" and not relative:
            np.testing.assert_allclose(fit.covariance, np.linalg.inv(hessian), rtol=1e-9)
        else:
            np.testing.assert_allclose(fit.errors, np.sqrt(np.diag(np.linalg.inv(hessian))[5:]), rtol=5e-2)

    def test_chi2_of_a_single_input_is_what_it_paid_to_its_prior(
        self, make_profiled: Make, make_combined: Combine
    ) -> None:
        one = make_profiled("fit", 2, 5, seed=9)
        fit = fit_likelihood(make_combined((one,)))
        paid = one.fitted @ one.fitted + one.fitted @ np.linalg.solve(one.constraint, one.fitted)
        assert fit.chi2 == pytest.approx(paid, rel=1e-9)
        assert fit.ndf == 5

    def test_dropped_values_leave_the_sources_at_zero(
        self, make_profiled: Make, make_combined: Combine
    ) -> None:
        one = make_profiled("fit", 2, 5, seed=9)
        kept, dropped = (fit_likelihood(make_combined((one,)), fitted_values=f) for f in (True, False))
        np.testing.assert_allclose(dropped.pulls, 0.0, atol=1e-10)
        np.testing.assert_allclose(dropped.covariance, kept.covariance, rtol=1e-10)
        assert dropped.ndf == 0
        assert dropped.chi2 == pytest.approx(0.0, abs=1e-9)

    def test_a_free_source_has_no_prior(self) -> None:
        """A fit without a prior on its source, and with an infinite one, are the same."""
        response, data = np.array([[0.5], [0.3]]), 4.0
        weight = np.eye(2)
        kappa = -weight @ response
        inside = response.T @ weight @ response + data
        estimates = {"e0": 10.0, "e1": 11.0}
        hessian = np.block([[inside, kappa.T], [kappa, weight]])
        free = from_hessian("free", ["s", "e0", "e1"], hessian, estimates, fitted={"s": 3.0}, free=["s"])
        fit = fit_likelihood(LikelihoodProblem((free,), (("x", ("e0",)), ("y", ("e1",)))))
        np.testing.assert_allclose(fit.values, [10.0, 11.0], rtol=1e-12)
        assert fit.pulls[0] == pytest.approx(3.0)
        np.testing.assert_allclose(fit.covariance, np.linalg.inv(hessian), rtol=1e-10)

    def test_two_fits_of_one_source_are_the_joint_fit(self) -> None:
        """Data of two experiments, linear in x and a source, fitted apart and combined, and fitted together."""
        rng = np.random.default_rng(11)
        inputs, normal, vector = [], np.diag([1.0, 0.0]), np.zeros(2)
        for n in range(2):
            design = rng.normal(size=(6, 2))
            data = design @ [0.7, 5.0] + rng.normal(size=6)
            own = design.T @ design + np.diag([1.0, 0.0])
            source, value = np.linalg.solve(own, design.T @ data)
            inputs.append(from_hessian(f"in{n}", ["s", f"e{n}"], own, {f"e{n}": value}, fitted={"s": source}))
            normal, vector = normal + design.T @ design, vector + design.T @ data
        fit = fit_likelihood(LikelihoodProblem(tuple(inputs), (("x", ("e0", "e1")),)))
        np.testing.assert_allclose(fit.parameters, np.linalg.solve(normal, vector), rtol=1e-10)
        np.testing.assert_allclose(fit.covariance, np.linalg.inv(normal), rtol=1e-10)

    def test_external_sources_on_top_of_a_fit(self, make_profiled: Make, make_combined: Combine) -> None:
        """They widen the covariance of a single input by their shifts."""
        one = make_profiled("fit", 2, 5, seed=9)
        shifts = np.array([[0.5, 0.1], [-0.2, 0.7]])
        before, after = (
            fit_likelihood(make_combined((i,))) for i in (one, with_external(one, ["x0", "x1"], shifts))
        )
        np.testing.assert_allclose(
            after.value_covariance, before.value_covariance + shifts @ shifts.T, rtol=1e-9
        )


class TestKinks:
    def one_sided(self, up: float, down: float) -> LikelihoodProblem:
        """Two measurements that disagree, the first with a source that shifts it the same way on both sides."""
        first = from_table("first", {"a": 10.0}, [[1.0]], ["s"], [[up]], [[down]])
        return LikelihoodProblem(
            (first, from_table("second", {"b": 14.0}, [[1.0]], [], np.zeros((1, 0)))), (("x", ("a", "b")),)
        )

    def test_a_source_that_can_only_make_it_worse_stays_on_its_kink(self) -> None:
        """The value is too low, and the source could only say that it should be lower still."""
        worse = self.one_sided(-2.0, -2.0)
        fit = fit_likelihood(worse)
        likelihood = likelihood_of(worse)
        around = [likelihood.chi2(fit.parameters + [d, 0.0]) for d in (-1e-3, 1e-3)]
        assert min(around) > fit.chi2
        assert fit.status == CONVERGED
        assert fit.held.tolist() == [True]
        assert fit.values[0] == pytest.approx(12.0)
        assert fit.pulls[0] == 0.0

    def test_a_source_that_helps_leaves_its_kink(self) -> None:
        fit = fit_likelihood(self.one_sided(2.0, 2.0))
        assert fit.status == CONVERGED
        assert not np.any(fit.held)
        assert abs(fit.pulls[0]) > 0.5

    def test_intervals_are_those_of_a_brute_force_profile(self) -> None:
        problem = self.one_sided(1.5, -0.4)
        likelihood, fit = likelihood_of(problem), fit_likelihood(problem)
        sources = np.linspace(-6.0, 6.0, 240001)

        def profile(x: float) -> float:
            k = np.where(sources >= 0.0, 1.5 * sources, -0.4 * np.abs(sources))
            return float(np.min((10.0 - x + k) ** 2 + sources**2)) + (14.0 - x) ** 2

        for end in (fit.values[0] + fit.up[0], fit.values[0] - fit.down[0]):
            assert profile(end) - likelihood.chi2(fit.parameters) == pytest.approx(1.0, abs=1e-6)

    @pytest.mark.parametrize("seed", range(30))
    def test_of_several_minima_the_lowest_is_found(self, seed: int) -> None:
        """Against starts in all 32 corners; Newton from 0 alone misses one in ten of these."""
        rng = np.random.default_rng(seed)
        up = rng.normal(0.0, 0.6, (5, 5))
        estimates = {f"e{n}": 172.0 + 1.2 * rng.normal() for n in range(5)}
        one = from_table(
            "t",
            estimates,
            np.diag(rng.uniform(0.2, 0.6, 5) ** 2),
            list("abcde"),
            up,
            -up * rng.uniform(0.2, 1.8, (5, 5)),
        )
        problem = LikelihoodProblem((one,), (("x", tuple(estimates)),))
        likelihood, fit = likelihood_of(problem), fit_likelihood(problem, minos=False)
        corners = np.array(list(product((-0.7, 0.7), repeat=5)))
        others = [minimise(likelihood, np.concatenate([corner, fit.values])).chi2 for corner in corners]
        assert fit.chi2 < min(others) + 1e-7


class TestRefusals:
    def table(self, name: str, sources: tuple[str, ...]) -> LikelihoodInput:
        return from_table(name, {f"{name}_e": 10.0}, [[1.0]], sources, np.full((1, len(sources)), 0.5))

    def problem(self, *entries: tuple[str, str, float]) -> LikelihoodProblem:
        one, two = self.table("one", ("a", "b", "c", "d")), self.table("two", ("e", "f", "g", "h"))
        ranges = tuple(CorrelationRange(*entry, entry[2], entry[2]) for entry in entries)
        return LikelihoodProblem((one, two), (("x", ("one_e", "two_e")),), ranges)

    def test_correlations_near_one_are_set_as_the_program_does(self) -> None:
        c = prior_correlations(self.problem(("a", "e", 1.0), ("b", "f", -0.9995), ("c", "g", 0.99)))
        assert (c[0, 4], c[1, 5], c[2, 6]) == (0.999, -0.999, 0.99)

    def test_indefinite_correlations_are_refused_with_the_pair_that_breaks_them(self) -> None:
        """Of a cycle the largest of those that pull down the eigenvalue; d-h is harmless."""
        entries = (("a", "e", 0.5), ("e", "b", 0.5), ("a", "b", -0.9), ("d", "h", 0.3))
        smallest = 0.55 - np.sqrt(0.45**2 + 2.0 * 0.5**2)
        with pytest.raises(
            InputError, match=rf"smallest eigenvalue {smallest:.4g}, 1 not positive.*'a' and 'b'.*-0\.9"
        ):
            fit_likelihood(self.problem(*entries))

    def test_two_negative_eigenvalues_have_a_positive_determinant_and_are_refused(self) -> None:
        cycle = [
            ("a", "b", 0.9),
            ("b", "e", 0.9),
            ("a", "e", -0.9),
            ("c", "d", 0.9),
            ("d", "f", 0.9),
            ("c", "f", -0.9),
        ]
        matrix = np.eye(8)
        names = ["a", "b", "c", "d", "e", "f", "g", "h"]
        for first, second, rho in cycle:
            i, j = names.index(first), names.index(second)
            matrix[i, j] = matrix[j, i] = rho
        assert np.linalg.det(matrix) > 0.0
        with pytest.raises(InputError, match=r"smallest eigenvalue -0\.8, 2 not positive"):
            fit_likelihood(self.problem(*cycle))

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (("a", "nobody", 0.5), "no source 'nobody'"),
            (("a", "a", 0.5), "'a' with itself"),
            (("a", "e", 1.2), r"1.2 is not in \[-1, 1\]"),
            (("a", "e", float("nan")), "nan is not in"),
        ],
    )
    def test_correlations(self, entry: tuple[str, str, float], message: str) -> None:
        with pytest.raises(InputError, match=message):
            fit_likelihood(self.problem(entry))

    def test_observables(self) -> None:
        problem = self.problem()
        for observables, message in (
            ((("x", ("nobody",)),), "no estimate 'nobody'"),
            ((("x", ("one_e",)), ("y", ("one_e",))), "measures two observables"),
            ((("x", ()),), "has no estimate"),
            ((), "no observable"),
        ):
            with pytest.raises(InputError, match=message):
                fit_likelihood(replace(problem, observables=observables))
        with pytest.raises(InputError, match="'one_e' is there twice"):
            fit_likelihood(replace(problem, inputs=(problem.inputs[0],) * 2))
        with pytest.raises(InputError, match="form of the chi2: 'gauss'"):
            fit_likelihood(problem, "gauss")

    def test_values_of_zero(self) -> None:
        zero = from_table("zero", {"e": 0.0}, [[1.0]], ["s"], [[0.5]], relative=["s"])
        problem = LikelihoodProblem((zero,), (("x", ("e",)),))
        with pytest.raises(InputError, match="'e' is 0: no use for a relative source"):
            fit_likelihood(problem)
        absolute = replace(zero, relative=np.array([False]))
        with pytest.raises(InputError, match="'e' is 0: no use for the Pearson form"):
            fit_likelihood(replace(problem, inputs=(absolute,)), "pearson")
        assert fit_likelihood(replace(problem, inputs=(absolute,))).values[0] == 0.0

    def test_a_direction_that_nothing_fixes(self) -> None:
        """A free source in a table: its shift cannot be told from the value."""
        one = replace(self.table("one", ("a",)), prior=np.array([0.0]))
        with pytest.raises(InputError, match="do not fix a combination of"):
            fit_likelihood(LikelihoodProblem((one,), (("x", ("one_e",)),)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hessian": [[1.0, 2.0], [2.0, 1.0]]}, "not positive definite, smallest eigenvalue -1"),
            ({"hessian": [[1.0, np.nan], [0.0, 1.0]]}, "not finite"),
            ({"hessian": [[1.0]]}, "does not go with 2 names"),
            ({"hessian": [[-1.0, 0.0], [0.0, 1.0]]}, "-1 on the diagonal of s"),
            ({"estimates": {"f": 1.0}}, "estimate 'f' is not in the matrix"),
            ({"estimates": {"e": np.inf}}, "finite values"),
            ({"fitted": {"t": 1.0}}, "fitted value of 't'"),
            ({"free": ["t"]}, "'t' is said to be free"),
            ({"relative": ["t"]}, "'t' is said to be relative"),
        ],
    )
    def test_inputs(self, change: dict[str, object], message: str) -> None:
        given: dict[str, object] = {"hessian": [[2.0, 0.0], [0.0, 1.0]], "estimates": {"e": 1.0}, **change}
        with pytest.raises(InputError, match=message):
            from_hessian("bad", ["s", "e"], **given)  # type: ignore[arg-type]


def test_a_fit_tells_whether_it_used_fitted_values(make_profiled: Make, make_combined: Combine) -> None:
    fit: LikelihoodFit = fit_likelihood(
        make_combined((make_profiled("fit", 2, 3, seed=1),)), fitted_values=False
    )
    assert not fit.fitted_values
