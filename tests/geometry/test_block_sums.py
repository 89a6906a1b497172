"""Sums of normal equations: those made by hand, the same bits in any chunks and threads, and merging."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.block_matrix import block_times, dense_matrix, diagonal_blocks
from musclecal.geometry.block_sums import BlockSums, merge_sums, weighted
from musclecal.records import ModuleSums

ROUNDING = 1e-12


def pairs(problems: Any, n_pair: int, n_units: int = 40, n_slots: int = 4, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return problems.pairs(rng.normal(size=(n_units, n_slots)), n_pair, rng)


def in_chunks(chunk: Any, size: int, threads: int, n_units: int = 40, n_parts: int = 16) -> ModuleSums:
    sums = BlockSums(n_units, 4, n_parts)
    for i in range(0, len(chunk.good), size):
        part = slice(i, i + size)
        sums.add(
            chunk.units[part], chunk.matrix[part], chunk.vector[part], chunk.good[part], chunk.chi2[part],
            chunk.ndf[part], threads=threads,
        )  # fmt: skip
    return sums.finish()


def assert_bits(one: ModuleSums, two: ModuleSums) -> None:
    for item in fields(ModuleSums):
        a, b = getattr(one, item.name), getattr(two, item.name)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), item.name


@pytest.mark.parametrize(("n_units", "n_slots"), [(40, 4), (300, 4), (7, 6), (1, 4)])
def test_sums_are_those_made_by_hand(problems: Any, n_units: int, n_slots: int) -> None:
    """Places in any order, units twice, empty places, and nan below the diagonal, which must not be read."""
    chunk = pairs(problems, 400, n_units, n_slots)
    chunk.good[::7] = False
    sums = problems.sums_of(chunk, n_units, n_slots)
    C, g = problems.by_hand(chunk, n_units, n_slots)
    np.testing.assert_allclose(dense_matrix(sums), C, rtol=0, atol=ROUNDING * np.abs(C).max())
    np.testing.assert_allclose(sums.vector, g, rtol=0, atol=ROUNDING * np.abs(g).max())
    np.testing.assert_allclose(
        dense_matrix(sums), dense_matrix(sums).T, rtol=0, atol=ROUNDING * np.abs(C).max()
    )
    assert sums.n_pairs == chunk.good.sum()
    assert sums.chi2 == pytest.approx(chunk.chi2[chunk.good].sum(), rel=1e-13)
    assert sums.ndf == chunk.ndf[chunk.good].sum()
    met = chunk.units[chunk.good]
    np.testing.assert_array_equal(sums.uses, np.bincount(met[met >= 0], minlength=n_units))
    rows = np.repeat(np.arange(n_units), np.diff(sums.first))
    keys = rows * n_units + sums.columns
    assert np.all(np.diff(keys) > 0)
    assert np.all(sums.columns >= rows)


def test_the_same_unit_in_both_tracks() -> None:
    """Of B between two places of one unit, B + B^T belongs to its block on the diagonal."""
    units = np.array([[2, 0, 2]], np.int32)
    matrix = np.random.default_rng(2).normal(size=(1, 12, 12))
    sums = BlockSums(3, 4)
    sums.add(units, matrix, np.arange(12.0)[None], np.array([True]))
    B = matrix[0].reshape(3, 4, 3, 4).transpose(0, 2, 1, 3)
    found = dense_matrix(sums.finish()).reshape(3, 4, 3, 4).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found[2, 2], B[0, 0] + B[2, 2] + B[0, 2] + B[0, 2].T, rtol=1e-15)
    np.testing.assert_allclose(found[0, 0], B[1, 1], rtol=1e-15)
    np.testing.assert_allclose(found[0, 2], B[1, 2] + B[0, 1].T, rtol=1e-15)
    np.testing.assert_allclose(sums.finish().vector[2], np.arange(4) + np.arange(8, 12))
    assert sums.finish().uses.tolist() == [1, 0, 2]


@pytest.mark.parametrize(("size", "threads", "n_parts"), [(1, 1, 16), (7, 2, 16), (100, 3, 16), (250, 2, 5)])
def test_the_same_bits_in_any_chunks_and_threads(
    problems: Any, size: int, threads: int, n_parts: int
) -> None:
    chunk = pairs(problems, 250)
    assert_bits(in_chunks(chunk, size, threads, n_parts=n_parts), in_chunks(chunk, 250, 1))


def test_bad_pairs_may_hold_anything(problems: Any) -> None:
    chunk = pairs(problems, 20)
    chunk.good[3] = False
    before = problems.sums_of(chunk, 40, 4)
    chunk.matrix[3] = np.nan
    chunk.vector[3] = np.inf
    chunk.units[3] = 1000
    chunk.chi2[3] = np.nan
    assert_bits(problems.sums_of(chunk, 40, 4), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.units.__setitem__((2, 0), 40), "unit 40 .* 40 units"),
        (lambda c: c.vector.__setitem__((2, slice(None)), np.nan), "pair 2 .* no number"),
        (lambda c: c.chi2.__setitem__(5, np.inf), "pair 5 .* no number"),
        (lambda c: c.matrix.__setitem__(2, np.nan), "no number"),
    ],
)
def test_good_pairs_may_not(problems: Any, change: Any, message: str) -> None:
    chunk = pairs(problems, 20)
    change(chunk)
    with pytest.raises(InputError, match=message):
        problems.sums_of(chunk, 40, 4)


def test_refused_chunks_leave_the_sums_alone(problems: Any) -> None:
    chunk = pairs(problems, 20)
    sums = BlockSums(40, 4)
    arguments = chunk.units, chunk.matrix, chunk.vector, chunk.good, chunk.chi2
    sums.add(*arguments)
    before = sums.finish()
    with pytest.raises(InputError, match="do not belong"):
        sums.add(chunk.units, chunk.matrix[:, :-1], chunk.vector, chunk.good)
    with pytest.raises(InputError, match="no number"):
        sums.add(*arguments[:4], np.full(20, np.nan))
    assert_bits(sums.finish(), before)


def test_no_pairs_at_all() -> None:
    sums = BlockSums(5, 4).finish(detector="empty")
    assert (sums.n_pairs, len(sums.blocks), sums.first.tolist()) == (0, 0, [0] * 6)
    assert not dense_matrix(sums).any()
    assert not diagonal_blocks(sums).any()
    assert not block_times(sums, np.ones((5, 4, 2))).any()


def test_merged_sums_are_those_of_all_pairs(problems: Any) -> None:
    one, two, both = pairs(problems, 30, seed=1), pairs(problems, 50, seed=2), BlockSums(40, 4)
    for chunk in (one, two, pairs(problems, 0)):
        both.add(chunk.units, chunk.matrix, chunk.vector, chunk.good, chunk.chi2, chunk.ndf)
    parts = [problems.sums_of(chunk, 40, 4) for chunk in (one, two, pairs(problems, 0))]
    merged, expected = merge_sums(*parts), both.finish()
    for item in fields(ModuleSums):
        found, wanted = getattr(merged, item.name), getattr(expected, item.name)
        if item.type == "str" or item.type is str:
            assert found == wanted
        else:
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-11, err_msg=item.name)
    assert merge_sums(parts[0]) is parts[0]


def test_only_sums_of_the_same_problem_can_be_merged(problems: Any) -> None:
    sums = problems.sums_of(pairs(problems, 10), 40, 4, detector="a", cuts="gradient 9", mass="3.0")
    free = replace(sums, mass="")
    assert merge_sums(sums, free).mass == merge_sums(free, sums).mass == "3.0"
    assert merge_sums(sums, free).n_read == 2 * sums.n_read == 20
    assert merge_sums(sums, replace(free, n_events=13)).n_events == 13 + sums.n_events == 23
    moved = sums.values.copy()
    moved[3, 2] = 1e-9
    for other, message in [
        (replace(sums, detector="b"), "detector 'a' .* 'b'"),
        (replace(sums, values=moved), "parameter 2 of unit 3"),
        (replace(sums, cuts="gradient 8"), "other cuts"),
        (replace(sums, mass="3.1"), "other masses"),
        (problems.sums_of(pairs(problems, 10, n_units=41), 41, 4, detector="a"), "cannot be merged"),
    ]:
        with pytest.raises(InputError, match=message):
            merge_sums(sums, other)


def test_a_weight_is_a_number_of_copies(problems: Any) -> None:
    sums = problems.sums_of(pairs(problems, 30), 40, 4)
    thrice, tripled = merge_sums(sums, sums, sums), weighted(sums, 3.0)
    np.testing.assert_allclose(tripled.blocks, thrice.blocks, rtol=1e-14)
    np.testing.assert_allclose(tripled.vector, thrice.vector, rtol=1e-14)
    assert (tripled.chi2, tripled.ndf) == pytest.approx((thrice.chi2, thrice.ndf))
    assert tripled.n_pairs == sums.n_pairs
    for weight in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="must be positive"):
            weighted(sums, weight)


def test_shapes_of_a_record_are_checked(problems: Any) -> None:
    sums = problems.sums_of(pairs(problems, 10), 40, 4)
    with pytest.raises(InputError, match="first"):
        replace(sums, first=sums.first[:-1])


@pytest.mark.parametrize("n_slots", [4, 6])
def test_products_with_vectors(problems: Any, n_slots: int) -> None:
    """Against the dense matrix; the same bits for any threads, and for a column alone."""
    chunk = pairs(problems, 200, 40, n_slots)
    sums = problems.sums_of(chunk, 40, n_slots)
    C, _ = problems.by_hand(chunk, 40, n_slots)
    x = np.random.default_rng(3).normal(size=(40, n_slots, 3))
    x[5:20, :, 0] = 0.0
    x[:8, :, 1] = 0.0
    expected = (C @ x.reshape(-1, 3)).reshape(x.shape)
    found = block_times(sums, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(block_times(sums, x, threads), found)
    for k in range(3):
        np.testing.assert_array_equal(block_times(sums, x[:, :, k : k + 1])[:, :, 0], found[:, :, k])
    blocks = C.reshape(40, n_slots, 40, n_slots)[np.arange(40), :, np.arange(40)]
    np.testing.assert_allclose(diagonal_blocks(sums), blocks, rtol=0, atol=ROUNDING * np.abs(C).max())
