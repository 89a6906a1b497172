"""Two calibrations compared: values by hand, pulls of toys, and what is no A, e, M."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest

from musclecal.errors import InputError
from musclecal.export import correction_tables
from musclecal.records import CorrectionTables, NuisanceGroup, ScaleWithCovariance, Smearing
from musclecal.scale import relative_correction
from musclecal.validation.calibration_diff import CHARGES, PTS, compare_calibrations
from musclecal.validation.diff_plots import plot_calibration_diff
from musclecal.validation.diff_table import diff_table, diff_text

Floats = NDArray[np.float64]
EDGES = np.array([-2.4, -1.2, 0.0, 1.2, 2.4])
SIGMA = np.tile([2e-5, 2e-4, 2e-6], 4)
TRUTH = np.tile([3e-4, 2e-3, -3e-5], 4)


def information(seed: int, weight: float) -> Floats:
    """Of a sample, with A and e correlated by 0.9 and eta bins by a bit."""
    rng = np.random.default_rng(seed)
    block = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    common = 0.3 * rng.normal(size=(12, 3))
    matrix = np.kron(np.eye(4), block) + common @ common.T
    return weight * inverse(matrix * np.outer(SIGMA, SIGMA))


def inverse(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def tables(
    parameters: Floats, covariance: Floats, edges: Floats = EDGES, *, s: float = 1.0, period: str = "2016",
    others: tuple[NuisanceGroup, ...] = (), smearing: Smearing | None = None,
    pt_range: tuple[float, float] = (2.0, 200.0),
) -> CorrectionTables:  # fmt: skip
    A, e, M = parameters.reshape(-1, 3).T
    scale = ScaleWithCovariance(edges, A, e, M, covariance)
    return correction_tables(
        scale, {"period": period}, s=s, others=others, smearing=smearing, pt_range=pt_range
    )


def drawn(rng: np.random.Generator, covariance: Floats) -> Floats:
    return np.asarray(TRUTH + np.linalg.cholesky(covariance) @ rng.normal(size=12))


def test_values_signs_and_errors_by_hand() -> None:
    """Second minus first; independent errors add in quadrature; dk/k of both charges."""
    one = np.diag(SIGMA**2)
    shift = np.zeros(12)
    shift[3:6] = 4e-5, 1e-3, -4e-6
    diff = compare_calibrations(tables(TRUTH, one), tables(TRUTH + shift, 3.0 * one))
    np.testing.assert_allclose(diff.difference, shift.reshape(4, 3), rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(diff.sigma[1], [1.0, 2.5, -1.0], rtol=1e-9)
    assert np.all(diff.sigma[[0, 2, 3]] == 0.0)
    for i, pt in enumerate(PTS):
        for j, charge in enumerate(CHARGES):
            expected = relative_correction(pt, charge, 4e-5, 1e-3, -4e-6)
            error = 2.0 * np.hypot(np.hypot(2e-5, 2e-4 / pt), 2e-6 * pt)
            assert diff.relative[1, i, j] == pytest.approx(float(expected), rel=1e-9)
            assert diff.relative_errors[1, i, j] == pytest.approx(error, rel=1e-9)
    assert diff.chi2.chi2 == pytest.approx(1.0 + 2.5**2 + 1.0, rel=1e-9)
    assert (diff.chi2.ndf, diff.left_out) == (12, 0)
    assert [o.what for o in diff.others] == ["variations stat"]


def test_a_correlated_shift_of_A_and_e_counts_little_in_dk() -> None:
    """Correlation 0.9: a shift of both by a sigma has 1/1.9 of the chi2 of independent ones, the opposite 1/0.1."""
    block = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    covariance = np.kron(np.eye(4), block) * np.outer(SIGMA, SIGMA)
    along, across = (np.tile([1.0, sign, 0.0], 4) * SIGMA for sign in (1.0, -1.0))
    chi2 = [
        compare_calibrations(tables(TRUTH, covariance), tables(TRUTH + d, covariance)).chi2.chi2
        for d in (along, across)
    ]
    np.testing.assert_allclose(chi2, [4 * 2 / 1.9 / 2, 4 * 2 / 0.1 / 2], rtol=1e-9)


def test_p_values_of_independent_fits_are_uniform() -> None:
    one, two = (inverse(information(seed, weight)) for seed, weight in ((1, 1.0), (2, 3.0)))
    rng = np.random.default_rng(5)
    diffs = [
        compare_calibrations(tables(drawn(rng, one), one), tables(drawn(rng, two), two)) for _ in range(300)
    ]
    assert kstest([d.chi2.p_value for d in diffs], "uniform").pvalue > 0.01
    pulls = np.array([d.relative_sigma for d in diffs])
    assert np.all(np.abs(pulls.std(axis=0) - 1.0) < 4.0 / np.sqrt(600))


@pytest.mark.parametrize("swapped", [False, True])
def test_p_values_of_a_part_and_the_whole_are_uniform(swapped: bool) -> None:
    """Whole = optimal average of the part and an independent rest; with independent errors they are too good."""
    part, rest = information(1, 1.0), information(2, 0.7)
    v_part, v_rest, v_whole = (inverse(i) for i in (part, rest, part + rest))
    rng = np.random.default_rng(6)
    shared, independent, pulls = [], [], []
    for _ in range(300):
        in_part, in_rest = drawn(rng, v_part), drawn(rng, v_rest)
        pair = [tables(in_part, v_part), tables(v_whole @ (part @ in_part + rest @ in_rest), v_whole)]
        if swapped:
            pair.reverse()
        diff = compare_calibrations(pair[0], pair[1], "shared")
        assert (diff.chi2.ndf, diff.contains, diff.not_nested, diff.scaled) == (12, int(not swapped), 0, None)
        shared.append(diff.chi2.p_value)
        pulls.append(diff.relative_sigma)
        independent.append(compare_calibrations(pair[0], pair[1]).chi2.p_value)
    assert kstest(shared, "uniform").pvalue > 0.01
    assert np.all(np.abs(np.std(pulls, axis=0) - 1.0) < 4.0 / np.sqrt(600))
    assert np.mean(independent) > 0.9


def test_directions_in_which_the_rest_knows_nothing_are_left_out() -> None:
    """The rest sees only eta bin 0: ndf 3, the others are exactly as in the part."""
    part = information(1, 1.0)
    rest = np.zeros((12, 12))
    rest[:3, :3] = part[:3, :3]
    v_part, v_whole = inverse(part), inverse(part + rest)
    rng = np.random.default_rng(7)
    values = []
    for _ in range(200):
        in_part = drawn(rng, v_part)
        in_rest = TRUTH[:3] + np.linalg.cholesky(inverse(rest[:3, :3])) @ rng.normal(size=3)
        whole = v_whole @ (part @ in_part + np.concatenate([rest[:3, :3] @ in_rest, np.zeros(9)]))
        diff = compare_calibrations(tables(in_part, v_part), tables(whole, v_whole), "shared")
        assert (diff.chi2.ndf, diff.left_out, diff.not_nested) == (3, 9, 0)
        values.append(diff.chi2.p_value)
    assert kstest(values, "uniform").pvalue > 0.01


def test_samples_that_do_not_contain_each_other_are_told() -> None:
    """More known in some directions, less in others."""
    weights = np.repeat([0.5, 0.5, 0.5, 2.0], 3)
    one = np.diag(SIGMA**2)
    diff = compare_calibrations(tables(TRUTH, one), tables(TRUTH, one * weights), "shared")
    assert (diff.chi2.ndf, diff.left_out, diff.not_nested, diff.contains) == (9, 3, 3, 1)
    assert "does not contain the other" in diff_text(diff)
    assert np.all(np.isnan(diff.sigma[3]))
    with pytest.raises(InputError, match="as uncertain everywhere"):
        compare_calibrations(tables(TRUTH, one), tables(1.1 * TRUTH, one), "shared")


def test_s_is_in_the_second_chi2_alone() -> None:
    one = np.diag(SIGMA**2)
    shift = np.eye(12)[0] * SIGMA
    diff = compare_calibrations(tables(TRUTH, one), tables(TRUTH + shift, one, s=np.sqrt(3.0)))
    assert diff.scaled is not None
    np.testing.assert_allclose([diff.chi2.chi2, diff.scaled.chi2], [0.5, 0.25], rtol=1e-9)
    assert "s" in [o.what for o in diff.others]


def test_other_bins_are_compared_on_all_edges_of_both() -> None:
    """Two against three bins in another range: full rank, each bin with the value around it."""
    coarse, fine = np.array([-2.4, 0.0, 2.4]), np.array([-1.0, 0.0, 0.5, 3.0])
    one, other = np.arange(6.0).reshape(2, 3) * 1e-6, np.arange(9.0).reshape(3, 3) * 1e-6
    a = tables(one.ravel(), np.diag(SIGMA[:6] ** 2), coarse)
    b = tables(other.ravel(), np.diag(SIGMA[:9] ** 2), fine)
    diff = compare_calibrations(a, b)
    np.testing.assert_allclose(diff.eta_edges, [-1.0, 0.0, 0.5, 2.4])
    np.testing.assert_array_equal(diff.bins, [[0, 1, 1], [0, 1, 2]])
    np.testing.assert_allclose(diff.difference, other - one[[0, 1, 1]], atol=1e-18)
    # Bin 1 of the first is in two rows, so their errors are correlated: by hand with its three parameters.
    rows = np.kron([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.eye(3))
    total = np.diag(SIGMA[:9] ** 2) + rows @ np.diag(SIGMA[:6] ** 2) @ rows.T
    d = diff.difference.ravel()
    assert diff.chi2.ndf == 9
    assert diff.chi2.chi2 == pytest.approx(d @ np.linalg.solve(total, d), rel=1e-9)
    assert diff.others[0].what == "eta bins"
    with pytest.raises(InputError, match=r"x has 2 bins from -2\.4 to 2\.4, y 3 bins from -1 to 3"):
        compare_calibrations(a, b, "shared", ("x", "y"))
    far = tables(other.ravel(), np.diag(SIGMA[:9] ** 2), fine + 3.5)
    with pytest.raises(
        InputError, match=r"no eta in common: x has 2 bins from -2\.4 to 2\.4, y 3 bins from 2\.5"
    ):
        compare_calibrations(a, far, names=("x", "y"))


def test_edges_that_differ_by_rounding_are_the_same() -> None:
    one = np.diag(SIGMA**2)
    diff = compare_calibrations(tables(TRUTH, one), tables(TRUTH, one, EDGES * (1 + 1e-14)), "shared")
    assert (len(diff.eta_edges), diff.others) == (5, ())


def test_what_else_differs() -> None:
    """Variations by what they do together: a rotation among them is no difference."""
    one = np.diag(SIGMA**2)
    pair = np.random.default_rng(3).normal(size=(2, 8)) * 1e-6
    c, s = np.cos(0.4), np.sin(0.4)
    groups = [
        NuisanceGroup("closure_Z", EDGES, ("A", "M"), ("closure_Z_0", "closure_Z_1"), rows)
        for rows in (pair, np.array([[c, s], [-s, c]]) @ pair, 2.0 * pair)
    ]
    smearing = Smearing(np.array([-2.4, 2.4]), *(np.array([x]) for x in (1e-4, 0.0, 0.0, 100.0, 0.0)))
    first = tables(TRUTH, one, others=(groups[0],))
    assert compare_calibrations(first, tables(TRUTH, one, others=(groups[1],))).others == ()
    other = tables(TRUTH, one, others=(groups[2],), smearing=smearing, pt_range=(3.0, 150.0), period="2017")
    found = {o.what: (o.first, o.second) for o in compare_calibrations(first, other).others}
    assert list(found) == ["pT range", "variations closure_Z", "smearing", "period"]
    assert found["pT range"] == ("2 to 200 GeV", "3 to 150 GeV")
    assert found["smearing"] == ("none", "sigma_k/k 0.01, 0.01, 0.01 at 6, 20, 45 GeV")
    assert found["period"] == ("2016", "2017")
    again = {o.what for o in compare_calibrations(other, replace(other, smearing=None)).others}
    assert again == {"smearing"}
    split = Smearing(np.array([-2.4, 1.0, 2.4]), *(np.repeat(x, 2) for x in (1e-4, 0.0, 0.0, 100.0, 0.0)))
    assert compare_calibrations(other, replace(other, smearing=split)).others == ()
    none = compare_calibrations(first, tables(TRUTH, one)).others
    assert [(o.what, o.second) for o in none] == [("variations closure_Z", "none")]


def test_names_with_a_period_are_those_without() -> None:
    """As in the arrays of a merged folder."""
    plain = tables(TRUTH, np.diag(SIGMA**2))
    merged = replace(plain, variation_names=tuple(f"{n}_2016" for n in plain.variation_names))
    assert compare_calibrations(plain, merged).others == ()


def test_text_table_and_figure(tmp_path: Path) -> None:
    v_one, v_two = (inverse(information(seed, weight)) for seed, weight in ((1, 1.0), (2, 3.0)))
    rng = np.random.default_rng(9)
    diff = compare_calibrations(
        tables(drawn(rng, v_one), v_one), tables(drawn(rng, v_two), v_two, s=2.0), names=("old", "new")
    )
    text = diff_text(diff)
    for part in (
        "largest of dk/k: ",
        "new minus old, independent",
        "-2.4 to -1.2",
        "45 GeV mu-",
        "chi2/ndf",
        "with errors times s",
    ):
        assert part in text
    table = json.loads(json.dumps(diff_table(diff), allow_nan=False))
    assert table["e"]["difference"] == pytest.approx(diff.difference[:, 1])
    assert table["dk_over_k"]["45-"]["sigma"] == pytest.approx(diff.relative_sigma[:, 2, 1])
    assert (table["ndf"], table["first"], table["scaled"]["ndf"]) == (12, "old", 12)
    plot_calibration_diff(diff, tmp_path / "diff.png")
    assert (tmp_path / "diff.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"\.png"):
        plot_calibration_diff(diff, tmp_path / "diff.svg")
