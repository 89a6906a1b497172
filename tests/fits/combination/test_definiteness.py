"""Which correlations are possible: closed forms of three inputs, and scans of the smallest eigenvalue."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.combination import (
    allowed_correlation,
    allowed_group,
    audit,
    audit_correlation,
    checked_correlation,
    combine,
    repair_correlation,
    repair_source,
)
from musclecal.records import Floats, Measurements

Make = Callable[..., Measurements]
NAMES = ("a", "b", "c", "d")


def three(ab: float, ac: float, bc: float) -> Floats:
    return np.array([[1.0, ab, ac], [ab, 1.0, bc], [ac, bc, 1.0]])


def contradiction() -> Floats:
    """b and c are both 0.9 correlated with a, but not with each other; d has nothing to do with it."""
    matrix = np.eye(4)
    matrix[:3, :3] = three(0.9, 0.9, 0.0)
    return matrix


class TestAllowedCorrelation:
    @pytest.mark.parametrize(("ab", "ac"), [(0.9, 0.9), (0.5, -0.3), (0.0, 0.0), (1.0, 0.4)])
    def test_three_inputs(self, ab: float, ac: float) -> None:
        room = np.sqrt((1.0 - ab**2) * (1.0 - ac**2))
        low, high = allowed_correlation(three(ab, ac, 0.123), 1, 2)
        assert low == pytest.approx(ab * ac - room, abs=1e-12)
        assert high == pytest.approx(ab * ac + room, abs=1e-12)

    def test_two_inputs(self) -> None:
        assert allowed_correlation(np.eye(2), 0, 1) == (-1.0, 1.0)

    @pytest.mark.parametrize("seed", range(5))
    def test_ends_are_where_an_eigenvalue_vanishes(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(6, 8))
        root /= np.linalg.norm(root, axis=1)[:, None]
        matrix = root @ root.T
        for end in allowed_correlation(matrix, 1, 4):
            matrix[1, 4] = matrix[4, 1] = end
            assert np.linalg.eigvalsh(matrix)[0] == pytest.approx(0.0, abs=1e-12)

    def test_singular_others(self) -> None:
        """Inputs of one nuisance: the last correlation is 1 as well."""
        assert allowed_correlation(np.ones((4, 4)), 0, 1) == pytest.approx((1.0, 1.0), abs=1e-7)

    def test_no_value_will_do(self) -> None:
        matrix = np.eye(5)
        matrix[:3, :3] = three(0.9, 0.9, 0.0)
        assert np.all(np.isnan(allowed_correlation(matrix, 3, 4)))


class TestAllowedGroup:
    def test_all_pairs_of_equal_inputs(self) -> None:
        """A common correlation of n inputs lies between -1/(n - 1) and 1."""
        pairs = [(i, j) for i in range(5) for j in range(i)]
        assert allowed_group(np.eye(5), pairs) == pytest.approx((-0.25, 1.0), abs=1e-8)

    def test_a_group_of_one_is_a_pair(self) -> None:
        matrix = three(0.5, -0.3, 0.0)
        assert allowed_group(matrix, [(1, 2)]) == pytest.approx(allowed_correlation(matrix, 1, 2), abs=1e-8)

    def test_two_experiments(self) -> None:
        """Full correlation inside both: any between them. None inside: 1/sqrt(n_1 n_2)."""
        between = [(i, j) for i in range(2) for j in range(2, 5)]
        full = np.block([[np.ones((2, 2)), np.zeros((2, 3))], [np.zeros((3, 2)), np.ones((3, 3))]])
        assert allowed_group(full, between) == pytest.approx((-1.0, 1.0), abs=1e-8)
        root = 1.0 / np.sqrt(6.0)
        assert allowed_group(np.eye(5), between) == pytest.approx((-root, root), abs=1e-8)

    def test_no_value_will_do(self) -> None:
        matrix = np.eye(5)
        matrix[:3, :3] = three(0.9, 0.9, 0.0)
        assert np.all(np.isnan(allowed_group(matrix, [(0, 3), (1, 4)])))


class TestAudit:
    def test_the_pair_that_breaks_it_is_named(self) -> None:
        found = audit_correlation(contradiction(), NAMES, "jets")
        assert not found.definite
        assert found.smallest_eigenvalue == pytest.approx(1.0 - 0.9 * np.sqrt(2.0), rel=1e-12)
        assert found.n_negative == 1
        assert set(found.group) == {"a", "b", "c"}
        assert found.pair is not None
        i, j = (NAMES.index(name) for name in found.pair)
        mended = contradiction()
        nearest = min(found.allowed, key=lambda end: abs(end - found.rho))
        mended[i, j] = mended[j, i] = nearest
        assert np.linalg.eigvalsh(mended)[0] == pytest.approx(0.0, abs=1e-12)

    @pytest.mark.parametrize("rho", [(0.95, 0.95, 0.5), (0.8, 0.95, 0.1), (0.1, 0.8, 0.95), (-0.9, 0.9, 0.9)])
    def test_the_smallest_change_is_chosen(self, rho: tuple[float, float, float]) -> None:
        """Of the three pairs, that whose correlation has to move least, found by trying all."""
        matrix = three(*rho)
        needs = {}
        for i, j in ((0, 1), (0, 2), (1, 2)):
            low, high = allowed_correlation(matrix, i, j)
            needs[i, j] = max(low - matrix[i, j], matrix[i, j] - high)
        found = audit_correlation(matrix, NAMES[:3])
        assert found.pair is not None
        i, j = (NAMES.index(name) for name in found.pair)
        assert needs[i, j] == pytest.approx(min(needs.values()), abs=1e-12)
        assert found.rho == matrix[i, j]

    def test_what_no_single_correlation_mends(self) -> None:
        matrix = np.eye(8)
        matrix[:4, :4] = contradiction()
        matrix[4:, 4:] = contradiction()
        found = audit_correlation(matrix, [f"input {i}" for i in range(8)])
        assert found.n_negative == 2
        assert found.pair is not None
        assert np.all(np.isnan(found.allowed))

    def test_sources_and_total(self, random_measurements: Make) -> None:
        given = random_measurements(1)
        found = audit(given)
        assert list(found) == [*given.sources, "total"]
        assert all(one.definite and one.pair is None for one in found.values())
        covariance = combine(given).input_covariance
        sigma = np.sqrt(np.diagonal(covariance))
        smallest = np.linalg.eigvalsh(covariance / np.outer(sigma, sigma))[0]
        assert found["total"].smallest_eigenvalue == pytest.approx(smallest, rel=1e-10)

    def test_a_source_that_breaks_the_total_nowhere(self, random_measurements: Make) -> None:
        """Hidden by other sources: the combination works, the audit tells."""
        given = random_measurements(2, n=4, m=1)
        source = replace(given.sources["source 0"], correlation=contradiction(), shifts=np.full(4, 0.1))
        given = replace(given, sources={**given.sources, "source 0": source})
        combine(given)
        found = audit(given)
        assert not found["source 0"].definite
        assert found["total"].definite

    def test_inputs_that_a_source_does_not_affect_do_not_count(self, random_measurements: Make) -> None:
        given = random_measurements(2, n=4, m=1)
        shifts = np.array([0.1, 0.1, 0.0, 0.1])
        source = replace(given.sources["source 0"], correlation=contradiction(), shifts=shifts)
        assert audit(replace(given, sources={"source 0": source}))["source 0"].definite

    def test_published_inputs(self, lhc: Measurements) -> None:
        """Four sources of the LHC top mass contradict themselves, which the total hides; the mass hardly moves."""
        found, nominal = audit(lhc), combine(lhc)
        assert found["total"].definite
        broken = [name for name, one in found.items() if one.smallest_eigenvalue < -1e-3]
        assert broken == ["BKMC", "BTAG", "PDF", "RAD"]
        pairs = [(i, j) for i in range(6) for j in range(6, 15)]
        assert allowed_group(lhc.sources["PDF"].correlation, pairs)[1] == pytest.approx(0.241, abs=0.001)
        for name in broken:
            mended, _ = repair_source(lhc, name)
            assert abs(combine(mended).values[0] - nominal.values[0]) < 0.003
            assert abs(combine(mended).errors[0] - nominal.errors[0]) < 0.002

    def test_a_matrix_that_cannot_be_is_refused_in_words(self) -> None:
        with pytest.raises(InputError, match=r"jets: 1 negative eigenvalues, .*rho = .* must lie between"):
            checked_correlation(contradiction(), NAMES, "jets")

    def test_two_negative_eigenvalues_are_refused(self) -> None:
        matrix = np.eye(8)
        matrix[:4, :4] = matrix[4:, 4:] = contradiction()
        assert np.linalg.det(matrix) > 0.0
        with pytest.raises(InputError, match=r"2 negative eigenvalues.*no change of a single"):
            checked_correlation(matrix, [f"input {i}" for i in range(8)])

    def test_a_diagonal_that_is_not_one(self) -> None:
        with pytest.raises(InputError, match="b with itself is not 1"):
            checked_correlation(np.diag([1.0, 2.0]), ("a", "b"))

    def test_good_ones_pass(self) -> None:
        matrix = three(0.5, 0.2, 0.1)
        np.testing.assert_array_equal(checked_correlation(matrix, NAMES[:3]), matrix)


class TestRepair:
    @pytest.mark.parametrize("method", ["shift", "clip", "nearest"])
    def test_gives_a_correlation_matrix(self, method: str) -> None:
        found = repair_correlation(contradiction(), method)
        assert found.smallest_before == pytest.approx(1.0 - 0.9 * np.sqrt(2.0), rel=1e-12)
        assert found.smallest_after == pytest.approx(0.0, abs=1e-10)
        np.testing.assert_array_equal(np.diagonal(found.correlation), 1.0)
        change = found.correlation - contradiction()
        assert found.distance == pytest.approx(np.linalg.norm(change), rel=1e-12)
        assert abs(found.largest_change) == pytest.approx(np.abs(change).max(), rel=1e-12)
        assert change[found.pair] == pytest.approx(found.largest_change, abs=1e-15)

    def test_shift_shrinks_all_by_one_factor(self) -> None:
        factor = 1.0 / (0.9 * np.sqrt(2.0))
        expected = contradiction() * factor + (1.0 - factor) * np.eye(4)
        np.testing.assert_allclose(
            repair_correlation(contradiction(), "shift").correlation, expected, atol=1e-14
        )

    def test_the_nearest_matrix_of_higham(self) -> None:
        """The example of the paper's documentation: 1 1 0 / 1 1 1 / 0 1 1 -> 0.7607 and 0.1573."""
        found = repair_correlation(three(1.0, 0.0, 1.0), "nearest").correlation
        np.testing.assert_allclose(
            [found[0, 1], found[0, 2], found[1, 2]], [0.7607, 0.1573, 0.7607], atol=5e-5
        )

    def test_nearest_is_nearer_than_others(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(5):
            matrix = rng.uniform(-1.0, 1.0, size=(6, 6))
            matrix = 0.5 * (matrix + matrix.T)
            np.fill_diagonal(matrix, 1.0)
            distance = {m: repair_correlation(matrix, m).distance for m in ("shift", "clip", "nearest")}
            assert distance["nearest"] <= min(distance["shift"], distance["clip"]) + 1e-9

    def test_a_good_matrix_stays(self) -> None:
        matrix = three(0.5, 0.2, 0.1)
        found = repair_correlation(matrix)
        np.testing.assert_array_equal(found.correlation, matrix)
        assert found.distance == 0.0

    def test_a_source(self, random_measurements: Make) -> None:
        given = random_measurements(2, n=5, m=1)
        correlation = np.full((5, 5), 0.3)
        affected = [0, 1, 3, 4]
        correlation[np.ix_(affected, affected)] = contradiction()
        shifts = np.array([0.1, 0.2, 0.0, 0.2, 0.3])
        broken = replace(given.sources["source 0"], correlation=correlation, shifts=shifts)
        given = replace(given, sources={**given.sources, "source 0": broken})
        mended, effect = repair_source(given, "source 0")
        assert audit(mended)["source 0"].definite
        assert 2 not in effect.pair
        np.testing.assert_array_equal(mended.sources["source 0"].correlation[2], correlation[2])
        assert combine(mended).by_source["source 0"][0, 0] >= 0.0
        assert mended.sources["source 1"] is given.sources["source 1"]

    @pytest.mark.parametrize(
        ("matrix", "method", "message"),
        [
            (np.eye(2), "magic", "no method 'magic', but shift, clip, nearest"),
            (np.diag([1.0, 2.0]), "clip", "ones on its diagonal"),
            (np.array([[1.0, 0.5], [0.4, 1.0]]), "clip", "not symmetric"),
            (np.ones((2, 3)), "clip", "shape"),
            (np.full((2, 2), np.nan), "clip", "nan between"),
        ],
    )
    def test_what_cannot_be_repaired(self, matrix: Floats, method: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            repair_correlation(matrix, method)

    def test_no_such_source(self, random_measurements: Make) -> None:
        given = random_measurements(1)
        with pytest.raises(InputError, match="no source 'jets'"):
            repair_source(given, "jets")
        silent = replace(given.sources["source 0"], shifts=np.zeros(7))
        with pytest.raises(InputError, match="affects no input"):
            repair_source(replace(given, sources={"jets": silent}), "jets")
