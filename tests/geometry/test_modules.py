"""The global fit of module parameters: known truth, the formulas written out densely, and what nothing fixes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import chi2 as chi2_distribution

from musclecal.errors import InputError
from musclecal.geometry.block_matrix import dense_matrix
from musclecal.geometry.modes import Modes, no_modes
from musclecal.geometry.module_equations import MOST_DENSE, ModuleEquations
from musclecal.geometry.modules import Solver, solve_modules, variance_of
from musclecal.records import Floats, ModuleSums

N_UNITS, P = 25, 4
KINDS = np.tile(np.array([1, 3, 4, 5], np.int8), (N_UNITS, 1))
KINDS[::3, 1] = 0
"""Every third unit has no second shift."""
USED = KINDS > 0
SOLVERS: tuple[Solver, ...] = ("cg", "direct")


def modes(n_mode: int = 3) -> Modes:
    vectors = np.random.default_rng(8).normal(size=(n_mode, N_UNITS, P))
    vectors[0, :, 1:] = 0.0
    names = ("twist", "curl", "telescope")[:n_mode]
    return Modes(names, csr_array(vectors.reshape(n_mode, -1)), np.array([3.0, 0.5, 1.5])[:n_mode])


def widths(width: float = 0.2) -> Floats:
    sizes = width * np.random.default_rng(9).uniform(0.5, 2.0, (N_UNITS, P))
    return np.where(USED, sizes, 0.0)


def draw(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Parameters (n_units, P) and amplitudes of the prior."""
    amplitudes = rng.normal(size=3) * modes().widths
    coherent = np.einsum("m,mup->up", amplitudes, modes().dense(P))
    return np.where(USED, widths() * rng.normal(size=USED.shape) + coherent, 0.0), amplitudes


def made_sums(
    problems: Any, truth: Floats, rng: np.random.Generator, n_pair: int = 120, **kwargs: Any
) -> ModuleSums:
    chunk = problems.pairs(truth, n_pair, rng, used=USED, **kwargs)
    sums: ModuleSums = problems.sums_of(chunk, N_UNITS, P, values=kwargs.get("point"), detector="made")
    return sums


def written_out(sums: ModuleSums) -> tuple[Floats, Floats, Floats, Floats]:
    """p, its covariance, a and its covariance with x and a as unknowns: [C + D^-1, C S^T; S C, S C S^T + L^-1]."""
    used = USED.ravel()
    C = dense_matrix(sums)[np.ix_(used, used)]
    S = modes().vectors.toarray()[:, used]
    h = sums.vector.ravel()[used] + C @ sums.values.ravel()[used]
    n = len(C)
    D, L = widths().ravel()[used] ** 2, modes().widths ** 2
    both = np.block([[C + np.diag(1 / D), C @ S.T], [S @ C, S @ C @ S.T + np.diag(1 / L)]])
    inverse = np.linalg.inv(both)
    x, a = np.split(inverse @ np.concatenate([h, S @ h]), [n])
    to_p = np.hstack([np.eye(n), S.T])
    out = np.zeros(len(used))
    out[used] = x + S.T @ a
    return out.reshape(N_UNITS, P), to_p @ inverse @ to_p.T, a, inverse[n:, n:]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("with_point", [False, True])
def test_without_noise_and_prior_the_truth_comes_back(problems: Any, solver: Any, with_point: bool) -> None:
    rng = np.random.default_rng(1)
    truth, point = draw(rng)[0], draw(rng)[0] if with_point else None
    sums = made_sums(problems, truth, rng, noise=0.0, point=point)
    equations = ModuleEquations(sums, np.where(USED, np.inf, 0.0), no_modes(N_UNITS, P))
    found = solve_modules(equations, KINDS, solver=solver, tolerance=1e-13)
    np.testing.assert_allclose(found.values, truth, rtol=0, atol=1e-10)
    assert abs(found.chi2) < 1e-9 * sums.chi2
    assert found.prior_chi2 == 0.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_formulas_written_out(problems: Any, solver: Any) -> None:
    """Values, errors, amplitudes and their errors against the dense equations with amplitudes as unknowns."""
    rng = np.random.default_rng(2)
    sums = made_sums(problems, draw(rng)[0], rng, n_pair=25)
    equations = ModuleEquations(sums, widths(), modes())
    found = solve_modules(equations, KINDS, solver=solver, tolerance=1e-13)
    p, covariance, a, amplitude_covariance = written_out(sums)
    sigma = np.sqrt(np.diagonal(covariance))
    assert np.abs((found.values - p)[USED] / sigma).max() < 1e-9
    np.testing.assert_allclose(found.sigma[USED], sigma, rtol=1e-9)
    np.testing.assert_allclose(found.amplitudes, a, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.amplitude_sigma, np.sqrt(np.diagonal(amplitude_covariance)), rtol=1e-9)
    assert (found.sigma_is, found.detector, found.mode_names) == ("exact", "made", modes().names)
    assert not found.values[~USED].any()
    assert not found.sigma[~USED].any()
    assert (found.n_pairs, found.ndf) == (25, sums.ndf)
    D = np.diag(widths()[USED] ** 2)
    S = modes().vectors.toarray()[:, USED.ravel()]
    prior = np.linalg.inv(D + S.T @ np.diag(modes().widths ** 2) @ S)
    assert found.prior_chi2 == pytest.approx(p[USED] @ prior @ p[USED], rel=1e-8)


def test_the_prior_is_on_the_whole_not_on_the_change(problems: Any) -> None:
    """Tracks fitted at other parameters give the same answer: the prior pulls to 0, not to where one was."""
    truth = draw(np.random.default_rng(3))[0]
    found = []
    for point in (None, truth, -3.0 * truth):
        sums = made_sums(problems, truth, np.random.default_rng(4), point=point, n_pair=30)
        found.append(solve_modules(ModuleEquations(sums, widths(), modes()), KINDS, solver="direct"))
    for other in found[1:]:
        np.testing.assert_allclose(other.values, found[0].values, rtol=0, atol=1e-10)
        np.testing.assert_allclose(other.amplitudes, found[0].amplitudes, rtol=0, atol=1e-10)
        assert other.prior_chi2 == pytest.approx(found[0].prior_chi2, rel=1e-9)
        assert other.chi2 == pytest.approx(found[0].chi2, rel=1e-9)


def test_the_score_at_the_truth_is_normal(problems: Any) -> None:
    """g/sqrt(C_ii) of tracks fitted at the true parameters: N(0, 1), slot by slot; chi2 as many as ndf."""
    scores, values, ndf = [], 0.0, 0.0
    for seed in range(40):
        rng = np.random.default_rng(100 + seed)
        truth = draw(rng)[0]
        sums = made_sums(problems, truth, rng, point=truth)
        scores.append(sums.vector.ravel() / np.sqrt(np.maximum(np.diagonal(dense_matrix(sums)), 1e-300)))
        values, ndf = values + sums.chi2, ndf + sums.ndf
    score = np.array(scores).reshape(-1, N_UNITS, P)
    for slot in range(P):
        of_slot = score[:, USED[:, slot], slot].ravel()
        assert abs(of_slot.mean()) * np.sqrt(of_slot.size) < 4.0
        assert abs(of_slot.std() - 1.0) * np.sqrt(2.0 * of_slot.size) < 4.0
    assert abs(values - ndf) < 4.0 * np.sqrt(2.0 * ndf)


def test_pulls_with_the_prior(problems: Any) -> None:
    """Truth from the prior, noise of unit size: pulls of parameters and amplitudes N(0, 1); chi2 of the whole."""
    pulls, amplitude_pulls, together = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(200 + seed)
        truth, amplitudes = draw(rng)
        sums = made_sums(problems, truth, rng, n_pair=20)
        found = solve_modules(ModuleEquations(sums, widths(), modes()), KINDS, solver="direct")
        pulls.append((found.values - truth)[USED] / found.sigma[USED])
        amplitude_pulls.append((found.amplitudes - amplitudes) / found.amplitude_sigma)
        together.append(chi2_distribution.cdf(found.chi2 + found.prior_chi2, sums.ndf))
    for pull, most in ((np.array(pulls), 0.05), (np.array(amplitude_pulls), 0.2)):
        assert abs(pull.mean()) < 3.0 / np.sqrt(60.0)
        assert abs(pull.std() - 1.0) < most
    assert 0.25 < np.mean(together) < 0.75


def test_conjugate_gradients_and_cholesky_agree(problems: Any) -> None:
    rng = np.random.default_rng(5)
    sums = made_sums(problems, draw(rng)[0], rng)
    equations = ModuleEquations(sums, widths(), modes())
    one, two = (solve_modules(equations, KINDS, solver=solver, tolerance=1e-13) for solver in SOLVERS)
    assert np.abs((one.values - two.values)[USED] / two.sigma[USED]).max() < 1e-9
    assert 0 < one.iterations < 100
    assert one.residual < 1e-11
    assert two.iterations == 0


def test_the_same_bits_for_any_threads(problems: Any) -> None:
    rng = np.random.default_rng(6)
    sums = made_sums(problems, draw(rng)[0], rng)
    found = [
        solve_modules(ModuleEquations(sums, widths(), modes(), threads=threads), KINDS)
        for threads in (1, 2, 3)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.values, found[0].values)
        np.testing.assert_array_equal(other.sigma, found[0].sigma)


@pytest.mark.parametrize("solver", SOLVERS)
def test_variance_of_combinations(problems: Any, solver: Any) -> None:
    rng = np.random.default_rng(7)
    sums = made_sums(problems, draw(rng)[0], rng, n_pair=30)
    equations = ModuleEquations(sums, widths(), modes())
    combinations = rng.normal(size=(20, N_UNITS, P))
    _, covariance, _, _ = written_out(sums)
    expected = combinations[:, USED] @ covariance @ combinations[:, USED].T
    found = variance_of(equations, combinations, solver=solver, tolerance=1e-12)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_array_equal(found, found.T)
    with pytest.raises(InputError, match="combinations"):
        variance_of(equations, combinations[:, :-1])


def test_cheap_errors_are_lower_bounds(problems: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    sums = made_sums(problems, draw(rng)[0], rng, n_pair=25)
    equations = ModuleEquations(sums, widths(), modes())
    exact = solve_modules(equations, KINDS, solver="direct")
    monkeypatch.setattr("musclecal.geometry.modules._EXACT", 0)
    bound = solve_modules(equations, KINDS)
    assert bound.sigma_is == "lower bound"
    assert np.all(bound.sigma <= exact.sigma * (1 + 1e-9))
    assert np.all(bound.amplitude_sigma <= exact.amplitude_sigma * (1 + 1e-9))
    assert np.median(bound.sigma[USED] / exact.sigma[USED]) > 0.5


def test_a_unit_without_hits_keeps_its_prior(problems: Any) -> None:
    """It is listed, and follows the modes that its neighbours show."""
    rng = np.random.default_rng(11)
    truth = 5.0 * modes().dense(P)[0] * USED
    chunk = problems.pairs(truth, 200, rng, used=USED)
    chunk.units[chunk.units == 4] = -1
    sums = problems.sums_of(chunk, N_UNITS, P)
    for solver in SOLVERS:
        found = solve_modules(ModuleEquations(sums, widths(), modes()), KINDS, solver=solver, tolerance=1e-12)
        assert found.without_hits.tolist() == [4]
        np.testing.assert_allclose(found.values[4], truth[4], atol=4 * found.sigma[4].max())
        coherent = found.amplitudes @ modes().vectors.toarray()
        np.testing.assert_allclose(
            found.values[4], np.where(USED[4], coherent.reshape(N_UNITS, P)[4], 0.0), atol=1e-9
        )
        assert abs(found.values[4, 0]) > 0.1
        assert np.all(found.sigma[4][USED[4]] >= widths()[4][USED[4]])
        alone = solve_modules(ModuleEquations(sums, widths(), no_modes(N_UNITS, P)), KINDS, solver=solver)
        np.testing.assert_array_equal(alone.values[4], 0.0)
        np.testing.assert_allclose(alone.sigma[4], widths()[4])


def test_no_tracks_give_the_prior() -> None:
    from musclecal.geometry.block_sums import BlockSums

    sums = BlockSums(N_UNITS, P).finish()
    prior = widths() ** 2 + np.einsum("m,mup->up", modes().widths ** 2, modes().dense(P) ** 2)
    for solver in SOLVERS:
        found = solve_modules(ModuleEquations(sums, widths(), modes()), KINDS, solver=solver)
        assert not found.values.any()
        np.testing.assert_allclose(found.sigma[USED], np.sqrt(prior[USED]), rtol=1e-9)
        np.testing.assert_allclose(found.amplitude_sigma, modes().widths, rtol=1e-9)


def test_known_parameters_stay_where_they_are(problems: Any) -> None:
    """A width of 0 fixes a parameter at the value the tracks were fitted at."""
    rng = np.random.default_rng(12)
    truth = draw(rng)[0]
    sums = made_sums(problems, truth, rng, noise=0.0, point=np.where(np.arange(P) == 2, truth, 0.0))
    free = np.where(USED & (np.arange(P) != 2), np.inf, 0.0)
    for solver in SOLVERS:
        found = solve_modules(ModuleEquations(sums, free, modes()), KINDS, solver=solver, tolerance=1e-13)
        np.testing.assert_allclose(found.values, truth, atol=1e-10)
        assert not found.sigma[:, 2].any()
        assert not found.kinds[:, 2].any()


def unfixed(problems: Any, unseen: Floats, prior: Floats, known: Modes, solver: Any) -> str:
    """What is said of tracks that do not see a direction."""
    rng = np.random.default_rng(13)
    sums = made_sums(problems, draw(rng)[0], rng, unseen=unseen)
    with pytest.raises(InputError) as error:
        solve_modules(ModuleEquations(sums, prior, known), KINDS, solver=solver)
    return str(error.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_nothing_fixes_is_named(problems: Any, solver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By conjugate gradients too, without a look at the dense matrix."""
    monkeypatch.setattr("musclecal.geometry.modules._EXACT", 0)
    free = np.where(USED, np.inf, 0.0)
    twist = modes().dense(P)[0] * USED
    assert "1.00 twist" in unfixed(problems, twist, free, modes(), solver)
    pair = np.zeros((N_UNITS, P))
    pair[3, 0], pair[7, 2] = 1.0, -1.0
    message = unfixed(problems, pair, free, no_modes(N_UNITS, P), solver)
    assert "not fixed" in message
    assert "parameter 0 of unit 3" in message
    assert "parameter 2 of unit 7" in message
    one = np.zeros((N_UNITS, P))
    one[5, 3] = 1.0
    message = unfixed(problems, one, np.where(np.arange(P) == 3, free, widths()), modes(), solver)
    assert "parameter 3 of unit 5" in message


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_prior_fixes_what_tracks_do_not_see(problems: Any, solver: Any) -> None:
    """The amplitude of an unseen mode keeps its width."""
    rng = np.random.default_rng(14)
    twist = modes().dense(P)[0] * USED
    sums = made_sums(problems, draw(rng)[0], rng, unseen=twist)
    found = solve_modules(ModuleEquations(sums, widths(0.01), modes()), KINDS, solver=solver, tolerance=1e-12)
    assert abs(found.amplitudes[0]) < 0.5
    assert found.amplitude_sigma[0] == pytest.approx(3.0, rel=0.01)
    assert found.amplitude_sigma[1] < 0.2


def test_no_convergence_is_an_error(problems: Any) -> None:
    rng = np.random.default_rng(15)
    sums = made_sums(problems, draw(rng)[0], rng)
    with pytest.raises(InputError, match=r"not solved after 2 iterations .* parameter"):
        solve_modules(ModuleEquations(sums, widths(), modes()), KINDS, most_iterations=2)


def test_the_preconditioner(problems: Any) -> None:
    """Symmetric and positive, the inverse of K on the modes, and near it elsewhere."""
    rng = np.random.default_rng(19)
    sums = made_sums(problems, draw(rng)[0], rng)
    equations = ModuleEquations(sums, widths(), modes())
    used = USED.ravel()
    inverse = equations.precondition(np.diag(used.astype(float)))
    scale = np.abs(inverse).max()
    assert not inverse[~used].any()
    np.testing.assert_allclose(inverse, inverse.T, rtol=0, atol=1e-12 * scale)
    assert np.linalg.eigvalsh(inverse[np.ix_(used, used)]).min() > 0.0
    coherent = modes().vectors.toarray().T * used[:, None]
    again = equations.precondition(equations.times(coherent))
    np.testing.assert_allclose(again, coherent, rtol=0, atol=1e-9 * np.abs(coherent).max())
    np.testing.assert_allclose(
        equations.times(np.diag(used.astype(float)))[np.ix_(used, used)],
        equations.dense,
        rtol=1e-9,
        atol=1e-9,
    )


def test_modes_speed_up_the_solution(problems: Any) -> None:
    """What tracks hardly see and the prior hardly holds costs iterations, unless it is one of the modes."""
    rng = np.random.default_rng(16)
    sums = made_sums(problems, draw(rng)[0], rng, unseen=modes().dense(P)[0] * USED)
    flat = np.where(USED, 1e3, 0.0)
    needed = [
        solve_modules(
            ModuleEquations(sums, flat, known), KINDS, most_iterations=1000, tolerance=1e-12
        ).iterations
        for known in (modes(1), no_modes(N_UNITS, P))
    ]
    assert needed[0] < needed[1]


def test_dependent_modes_do_no_harm(problems: Any) -> None:
    """The same mode twice, and one of parameters that are not in use."""
    rng = np.random.default_rng(17)
    sums = made_sums(problems, draw(rng)[0], rng)
    vectors = modes().dense(P)
    vectors[1] = 2.0 * vectors[0]
    vectors[2] = ~USED
    twice = Modes(("one", "two", "none"), csr_array(vectors.reshape(3, -1)), np.array([1.0, 0.5, 1.0]))
    equations = ModuleEquations(sums, widths(), twice)
    one, two = (solve_modules(equations, KINDS, solver=solver, tolerance=1e-12) for solver in SOLVERS)
    np.testing.assert_allclose(one.values, two.values, rtol=0, atol=1e-9)
    assert one.amplitudes[0] == pytest.approx(2.0 * one.amplitudes[1], rel=1e-6)
    assert one.amplitudes[2] == 0.0
    assert one.amplitude_sigma[2] == pytest.approx(1.0)


def test_bad_input_is_refused(problems: Any) -> None:
    rng = np.random.default_rng(18)
    sums = made_sums(problems, draw(rng)[0], rng, n_pair=5)
    prior = widths()
    for arguments, message in [
        ((sums, prior[:-1], modes()), "do not belong"),
        ((sums, -prior, modes()), "negative"),
        ((sums, prior, no_modes(N_UNITS + 1, P)), "modes of 104 parameters"),
        ((sums, prior, replace(modes(), widths=np.array([1.0, np.inf, 1.0]))), "leave the mode out"),
    ]:
        with pytest.raises(InputError, match=message):
            ModuleEquations(*arguments)
    with pytest.raises(InputError, match="kinds"):
        solve_modules(ModuleEquations(sums, prior, modes()), KINDS[:-1])
    n = MOST_DENSE // P + 1
    from musclecal.geometry.block_sums import BlockSums

    large = ModuleEquations(BlockSums(n, P).finish(), np.ones((n, P)), no_modes(n, P))
    with pytest.raises(InputError, match="too many for the direct solver"):
        solve_modules(large, np.ones((n, P), np.int8), solver="direct")
