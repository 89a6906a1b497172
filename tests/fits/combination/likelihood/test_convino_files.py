"""Text files of Convino: what is read, what comes back after writing, what is refused and how."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination.convino_files import read_convino
from musclecal.fits.combination.convino_measurement import read_convino_measurement
from musclecal.fits.combination.convino_writer import write_convino
from musclecal.fits.combination.likelihood_fit import fit_likelihood
from musclecal.fits.combination.likelihood_input import renamed, with_external
from musclecal.records.combination_likelihood import CorrelationRange, LikelihoodInput, LikelihoodProblem

Make = Callable[..., LikelihoodInput]
Combine = Callable[..., LikelihoodProblem]

MAIN = """text outside blocks, even with = signs, is ignored
[global]
  # a comment
  isDifferential = false
  normalise = true
[end global]
[inputs]
  nFiles = 2
  file0 = one.txt   # a comment behind
  file1 = two.txt
[end inputs]
[observables]
  x = e1 + e2
[end observables]
[correlations]
  a = (0.2 & -0.9 : 0.9) c + (-0.1) d
  #!FILE = more/pairs.txt
  b = (0.5) c
[end correlations]
[uncertainty impacts]
  both = a + c
  statistics = stat
[end uncertainty impacts]
"""
PAIRS = "\n# a file of pairs\n b = (0.05 & 0.4 : -0.4) d\n"
ONE = """[hessian]
[end hessian]
[not fitted]
        a       b        stat
  e1    (+5-3)  6.1e-1   6
  e3    (-3+4)  -1       2
[end not fitted]
[systematics]
  b = relative
[end systematics]
[estimates]
  n_estimates = 2
  name_0 = e1
  value_0 = 810;
  name_1 = e3
  value_1 = 31e1
[end estimates]
"""
TWO = """[correlation matrix]
  c   (0.8)  1
  e2  (2.5)  0.5  1
[end correlation matrix]
[not fitted]
  d
  e2 0.25
[end not fitted]
[nuisance values]
  c = -0.4
[end nuisance values]
[estimates]
  n_estimates = 1
  name_0 = e2
  value_0 = 805
[end estimates]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for name, text in (("main.txt", MAIN), ("one.txt", ONE), ("two.txt", TWO), ("more/pairs.txt", PAIRS)):
        (tmp_path / name).write_text(text)
    return tmp_path / "main.txt"


class TestReading:
    def test_tables(self, files: Path) -> None:
        one = read_convino_measurement(files.parent / "one.txt")
        assert (one.estimates, one.sources) == (("e1", "e3"), ("a", "b"))
        np.testing.assert_array_equal(one.values, [810.0, 310.0])
        np.testing.assert_array_equal(one.up, [[5.0, 0.61], [-3.0, -1.0]])
        np.testing.assert_array_equal(one.down, [[-3.0, -0.61], [4.0, 1.0]])
        np.testing.assert_allclose(one.weight, np.diag([1.0 / 36.0, 0.25]), rtol=1e-14)
        assert one.relative.tolist() == [False, True]
        assert one.asymmetric.tolist() == [True, False]
        assert not np.any(one.profiled)

    def test_correlation_matrix_with_sources_that_were_not_fitted(self, files: Path) -> None:
        """H is the inverse of rho_ij s_i s_j; M, K and D by hand for two parameters."""
        two = read_convino_measurement(files.parent / "two.txt")
        covariance = np.array([[0.64, 0.5 * 0.8 * 2.5], [0.5 * 0.8 * 2.5, 6.25]])
        hessian = np.linalg.inv(covariance)
        response = -hessian[1, 0] / hessian[1, 1]
        assert (two.sources, two.profiled.tolist()) == (("c", "d"), [True, False])
        np.testing.assert_allclose(two.weight, [[hessian[1, 1]]], rtol=1e-12)
        np.testing.assert_allclose(two.up, [[response, 0.25]], rtol=1e-12)
        assert two.constraint[0, 0] == pytest.approx(1.0 / 0.64 - 1.0)
        np.testing.assert_array_equal(two.constraint[1], 0.0)
        np.testing.assert_array_equal(two.fitted, [-0.4, 0.0])

    def test_main_file(self, files: Path) -> None:
        problem = read_convino(files)
        assert problem.observables == (("x", ("e1", "e2")),)
        assert problem.spectators == ("e3",)
        assert problem.normalise
        assert [(c.first, c.second, c.rho) for c in problem.correlations] == [
            ("a", "c", 0.2), ("a", "d", -0.1), ("b", "d", 0.05), ("b", "c", 0.5)
        ]  # fmt: skip
        assert [scan.name for scan in problem.scans] == ["a, c + d", "b, d"]
        assert problem.scans[0].ranges[0] == CorrelationRange("a", "c", 0.2, -0.9, 0.9)
        assert (problem.scans[1].ranges[0].start, problem.scans[1].ranges[0].stop) == (0.4, -0.4)
        assert dict(problem.groups) == {"both": ("a", "c"), "statistics": ("stat",)}
        assert fit_likelihood(problem).status == 0

    def test_free_sources(self, files: Path) -> None:
        path = files.parent / "two.txt"
        path.write_text(TWO + "[systematics]\n c = free\n[end systematics]\n")
        assert read_convino_measurement(path).prior.tolist() == [0.0, 1.0]

    def test_the_example(self, convino_example: Path) -> None:
        problem = read_convino(convino_example)
        assert len(problem.sources) == 12
        assert not problem.spectators
        assert problem.correlations[-1] == CorrelationRange("sys_d2", "sys_c1", 0.9, 0.9, 0.9)


class TestWriting:
    def same(self, before: LikelihoodProblem, after: LikelihoodProblem, rtol: float = 1e-12) -> None:
        assert (after.observables, after.groups, after.normalise) == (
            before.observables,
            before.groups,
            before.normalise,
        )
        assert {(c.first, c.second, c.rho) for c in after.correlations} == {
            (c.first, c.second, c.rho) for c in before.correlations
        }
        assert [scan.ranges for scan in after.scans] == [scan.ranges for scan in before.scans]
        for one, other in zip(before.inputs, after.inputs, strict=True):
            assert (one.estimates, one.sources) == (other.estimates, other.sources)
            for field in ("values", "weight", "up", "down", "fitted", "prior", "relative", "profiled"):
                np.testing.assert_allclose(getattr(other, field), getattr(one, field), rtol=rtol, atol=1e-14)
            np.testing.assert_allclose(other.constraint, one.constraint, rtol=rtol, atol=1e-10)

    def test_round_trip_of_every_kind(
        self, tmp_path: Path, make_profiled: Make, make_tabulated: Make, make_combined: Combine
    ) -> None:
        external = with_external(
            make_profiled("fit", 2, 3, seed=1, relative=1), ["out"], [[1.5], [-2e-17]], [[0.3], [1.0 / 3.0]]
        )
        free = replace(
            external,
            prior=np.array([1.0, 0.0, 1.0, 1.0]),
            constraint=external.constraint + np.diag([0, 1, 0, 0]),
        )
        problem = make_combined((external, make_tabulated("t", 3, 4, seed=2, relative=1, asymmetric=2)))
        for one in (external, free):
            before = replace(
                problem,
                inputs=(one, problem.inputs[1]),
                correlations=problem.correlations[::2],
                scans=problem.scans[::2],
                groups=(("g", ("out", "t_s0")), ("statistics", ("stat",))),
                normalise=True,
            )
            write_convino(before, tmp_path / "out.txt")
            after = read_convino(tmp_path / "out.txt")
            self.same(before, after)
            np.testing.assert_allclose(
                fit_likelihood(after).values, fit_likelihood(before).values, rtol=0.0, atol=1e-10
            )

    def test_round_trip_of_the_example(self, convino_example: Path, tmp_path: Path) -> None:
        before = read_convino(convino_example)
        write_convino(before, tmp_path / "out.txt")
        after = read_convino(tmp_path / "out.txt")
        assert fit_likelihood(after, "pearson").chi2 == pytest.approx(
            fit_likelihood(before, "pearson").chi2, abs=1e-9
        )

    def test_shared_sources_get_two_names_and_a_correlation(
        self, tmp_path: Path, make_tabulated: Make, make_combined: Combine
    ) -> None:
        one, two = make_tabulated("one", 2, 3, seed=1), make_tabulated("two", 2, 3, seed=2)
        before = make_combined((one, two))
        before = replace(
            before,
            inputs=(one, renamed(two, {"two_s2": "one_s2"})),
            correlations=(CorrelationRange("one_s2", "one_s1", 0.3, 0.3, 0.3),),
            scans=(),
            groups=(("g", ("one_s2",)),),
        )
        write_convino(before, tmp_path / "out.txt")
        after = read_convino(tmp_path / "out.txt")
        assert after.sources == ("one_s0", "one_s1", "one_s2_0", "two_s0", "two_s1", "one_s2_1")
        assert dict(after.groups)["g"] == ("one_s2_0", "one_s2_1")
        assert {(c.first, c.second, c.rho) for c in after.correlations} == {
            ("one_s2_0", "one_s2_1", 1.0), ("one_s2_0", "one_s1", 0.3), ("one_s2_1", "one_s1", 0.3)
        }  # fmt: skip
        np.testing.assert_allclose(fit_likelihood(after).values, fit_likelihood(before).values, rtol=1e-4)

    def test_names_that_the_format_cannot_hold(
        self, tmp_path: Path, make_tabulated: Make, make_combined: Combine
    ) -> None:
        one = renamed(make_tabulated("one", 2, 2, seed=1), {"one_s0": "b tagging"})
        with pytest.raises(InputError, match="'b tagging' is no name for its files"):
            write_convino(make_combined((one,)), tmp_path / "out.txt")


BAD_MEASUREMENTS = [
    (ONE.replace("[not fitted]", "[not fited]", 1), r"one.txt, line 3: unknown block \[not fited\]"),
    (ONE.replace("[end not fitted]\n", ""), r"line 7: \[systematics\] inside \[not fitted\], which starts in line 3"),
    (ONE.removesuffix("[end estimates]\n"), r"line 11: block \[estimates\] has no \[end estimates\]"),
    (ONE + "[systematics]\n[end systematics]\n", r"line 18: block \[systematics\] is there twice"),
    (ONE.replace("6.1e-1", "6,1"), r"line 5: 'b' of 'e1': '6,1' is no number"),
    (ONE.replace("6.1e-1", "nan"), r"line 5: 'b' of 'e1': 'nan' is no number"),
    (ONE.replace("(+5-3)", "(+5)"), r"line 5: 'a' of 'e1': '\(\+5\)' is not of the form"),
    (ONE.replace("-1       2", "-1"), r"line 6: \[not fitted\]: 3 columns, but 2 numbers for 'e3'"),
    (ONE.replace("  e3    (-3+4)", "  e1    (-3+4)"), r"line 6: \[not fitted\]: estimate 'e1' is there twice"),
    (ONE.replace("  e3    (-3+4)", "  e9    (-3+4)"), r"\[not fitted\] has a row 'e9', which is no estimate"),
    (ONE.replace("a       b ", "b       b "), r"line 4: \[not fitted\]: 'b' is there twice"),
    (ONE.replace("stat", "stats"), r"needs a positive 'stat'"),
    (ONE.replace("0.61   6", "0.61   0").replace("6.1e-1   6", "6.1e-1   0"), r"needs a positive 'stat'"),
    (ONE.replace("b = relative", "q = relative"), r"line 9: \[systematics\]: no source 'q' in this file"),
    (ONE.replace("b = relative", "b = relativ"), r"line 9: \[systematics\]: 'b' is 'relativ', none of"),
    (ONE.replace("b = relative", "b = lognormal"), r"line 9: \[systematics\]: 'b' is log-normal"),
    (ONE.replace("b = relative", "b = free"), r"'b' is free, but was not fitted"),
    (ONE.replace("b = relative", "b relative"), r"line 9: expected 'name = value', got 'b relative'"),
    (ONE.replace("n_estimates = 2", "n_estimates = 3"), r"line 12: .* n_estimates = 3, but there is no 'name_2'"),
    (ONE.replace("n_estimates = 2", "n_estimates = 1"), r"line 15: \[estimates\]: unknown key 'name_1'"),
    (ONE.replace("  n_estimates = 2\n", ""), r"one.txt: \[estimates\] does not say 'n_estimates'"),
    (ONE.replace("value_0 = 810;", "value_0 = many"), r"line 14: value of 'e1': 'many' is no number"),
    (ONE.replace("name_1 = e3", "name_1 = e1"), r"line 15: \[estimates\]: 'e1' is there twice"),
    (TWO.replace("(0.8)", ""), r"line 2: \[correlation matrix\]: 'c' needs a positive \(constraint\)"),
    (TWO.replace("(0.8)", "(-0.8)"), r"line 2: \[correlation matrix\]: 'c' needs a positive \(constraint\)"),
    (TWO.replace("0.5  1", "0.5  2"), r"line 3: \[correlation matrix\]: 'e2' has 2 on the diagonal"),
    (TWO.replace("0.5  1", "1"), r"line 3: .*: 'e2' is row 2 of a lower triangle, but has 1 num"),
    (TWO.replace("0.5  1", "1.5  1"), r"correlation matrix: not positive definite"),
    (TWO.replace("c = -0.4", "d = -0.4"), r"line 10: \[nuisance values\]: 'd' is no fitted source"),
    (TWO.replace("d\n  e2 0.25", "c\n  e2 0.25"), r"source 'c' is there twice"),
    ("[estimates]\n n_estimates = 1\n name_0 = e\n value_0 = 1\n[end estimates]\n", r"none of \[hessian\]"),
    (ONE.replace("[hessian]\n", "[hessian]\n s 1\n") + TWO.split("[not fitted]")[0], r"both \[hessian\] and \[corr"),
    ("[hessian]\n s 1\n e 0 x\n[end hessian]\n" + ONE.split("[end systematics]\n")[1], r"line 3: 'e' with 'e': 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_MEASUREMENTS)
def test_bad_measurements(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "one.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_convino_measurement(path)


BAD_MAINS = [
    (MAIN.replace("file1 = two.txt", "file1 = three.txt"), r"three.txt: cannot be read: No such file"),
    (MAIN.replace("nFiles = 2", "nFiles = two"), r"line 8: \[inputs\]: nFiles = 'two' is no count"),
    (MAIN.replace("file1 = two.txt", "file1 = one.txt"), r"'e1' is also in .*one.txt: names must be unique"),
    (MAIN.replace("x = e1 + e2", "x = e1 + e9"), r"main.txt, line 13: \[observables\]: 'x' has 'e9'"),
    (MAIN.replace("(-0.1) d", "(-0.1) q"), r"main.txt, line 16: \[correlations\]: no source 'q'"),
    (MAIN.replace("(0.2 & -0.9 : 0.9) c", "0.2 c"), r"line 16: \[correlations\]: '0.2 c' is not of the form"),
    (MAIN.replace("(0.2 & -0.9 : 0.9) c", "(0.2 & -0.9) c"), r"line 16: .* is not of the form"),
    (MAIN.replace("(0.2 & -0.9 : 0.9) c", "(0.2 & -1.9 : 0.9) c"), r"line 16: .* leaves \[-1, 1\]"),
    (MAIN.replace("more/pairs.txt", "pairs.txt"), r"pairs.txt: cannot be read"),
    (MAIN.replace("both = a + c", "both = a + q"), r"line 21: \[uncertainty impacts\]: 'both' has 'q'"),
    (
        MAIN.replace("statistics = stat", "both = stat"),
        r"line 22: \[uncertainty impacts\]: 'both' is there twice",
    ),
    (
        MAIN.replace("normalise = true", "normalise = yes"),
        r"line 5: \[global\]: normalise = 'yes' is neither",
    ),
    (MAIN.replace("normalise = true", "normalize = true"), r"\[global\]: 'normalize' is not supported"),
]


@pytest.mark.parametrize(("text", "message"), BAD_MAINS)
def test_bad_main_files(files: Path, text: str, message: str) -> None:
    files.write_text(text)
    with pytest.raises(InputError, match=message):
        read_convino(files)


def test_an_included_file_is_named_with_its_own_line(files: Path) -> None:
    (files.parent / "more" / "pairs.txt").write_text("\n\n b = (0.1) q\n")
    with pytest.raises(InputError, match=r"pairs.txt, line 3: \[correlations\]: no source 'q'"):
        read_convino(files)
    (files.parent / "more" / "pairs.txt").write_text("#!FILE = pairs.txt\n")
    with pytest.raises(InputError, match=r"pairs.txt: includes itself"):
        read_convino(files)


def test_a_file_that_is_no_text(files: Path) -> None:
    files.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_convino(files)
