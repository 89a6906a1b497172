"""The helix against closed forms, itself and finite differences. Tolerances are rounding unless said."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from musclecal.geometry.helix import (
    BENDING_PER_TESLA,
    CROSSED,
    LOST,
    cross_planes,
    propagate,
    sinc,
    sinc_slope,
)

Floats = NDArray[np.float64]

FIELD = 3.8
"""T"""
RADIUS = 1.0 / (BENDING_PER_TESLA * FIELD)
"""cm, of pT = 1 GeV"""
STEPS = np.array([1e-5, 1e-4, 1e-4, 1e-2, 1e-2, 1e-2])
"""Of finite differences: 1/GeV, rad, rad, cm, cm, cm"""


def state(pt: float, eta: float, phi: float, charge: float, at: ArrayLike = (0.0, 0.0, 0.0)) -> Floats:
    position = np.asarray(at, dtype=np.float64)
    return np.array([charge / (pt * math.cosh(eta)), math.atan(math.sinh(eta)), phi, *position])


def tracks(n: int = 12, seed: int = 3) -> Floats:
    rng = np.random.default_rng(seed)
    return np.array(
        [
            state(
                pt=np.exp(rng.uniform(0.0, 4.0)),
                eta=rng.uniform(-2.4, 2.4),
                phi=rng.uniform(-np.pi, np.pi),
                charge=rng.choice([-1.0, 1.0]),
                at=rng.normal(0.0, [0.1, 0.1, 5.0]),
            )
            for _ in range(n)
        ]
    )


def modules(start: Floats, s: float, seed: int = 4) -> tuple[Floats, Floats]:
    """A plane for each track near its arc length ``s``, turned by up to 20 degrees and tilted by up to 6."""
    rng = np.random.default_rng(seed)
    there = propagate(start, s, FIELD).states
    azimuth = there[:, 2] + rng.uniform(-0.35, 0.35, len(start))
    normal = np.stack([np.cos(azimuth), np.sin(azimuth), rng.uniform(-0.1, 0.1, len(start))], axis=1)
    return there[:, 3:] + rng.uniform(-2.0, 2.0, (len(start), 3)), normal


def slopes(function: Callable[[Floats], Floats], at: Floats, steps: Floats) -> Floats:
    """d function/d at, (..., n_out, n_in), by central differences of fourth order."""
    columns = []
    for n, size in enumerate(steps):
        step = np.zeros(len(steps))
        step[n] = size
        one = function(at + step) - function(at - step)
        two = function(at + 2.0 * step) - function(at - 2.0 * step)
        columns.append((8.0 * one - two) / (12.0 * size))
    return np.stack(columns, axis=-1)


def assert_same_slopes(analytic: Floats, numeric: Floats) -> None:
    """Relative 1e-7; the absolute part is rounding in the differences, 1e-13 cm over the smallest step."""
    np.testing.assert_allclose(analytic, numeric, rtol=1e-7, atol=1e-8)


def test_radius_of_one_gev_in_3_8_tesla() -> None:
    assert pytest.approx(87.78, abs=0.005) == RADIUS


@pytest.mark.parametrize("charge", [-1.0, 1.0])
@pytest.mark.parametrize("field", [-3.8, 3.8])
def test_circle(charge: float, field: float) -> None:
    """q > 0 in B > 0 turns towards smaller phi: the centre of the circle lies to the right of the track."""
    pt, phi = 2.0, 0.7
    side = np.sign(charge * field)
    centre = side * pt * RADIUS * np.array([math.sin(phi), -math.cos(phi)])
    s = np.linspace(-900.0, 900.0, 19)
    ends = propagate(state(pt, 0.4, phi, charge), s, field).states
    np.testing.assert_allclose(np.hypot(*(ends[:, 3:5] - centre).T), pt * RADIUS, rtol=1e-13)
    np.testing.assert_allclose(ends[:, 2], phi - side * s / (pt * RADIUS), rtol=1e-12)
    np.testing.assert_allclose(ends[:, 5], s * math.sinh(0.4), rtol=1e-12)


def test_full_turn_comes_back() -> None:
    end = propagate(state(1.0, 0.0, 0.3, 1.0), 2.0 * math.pi * RADIUS, FIELD).states
    np.testing.assert_allclose(end[3:], 0.0, atol=1e-12)


def test_two_steps_are_one() -> None:
    start = tracks()
    once = propagate(start, 97.0, FIELD, b=1e-3).states
    twice = propagate(propagate(start, 31.0, FIELD, b=1e-3).states, 66.0, FIELD, b=1e-3).states
    np.testing.assert_allclose(twice, once, rtol=1e-12, atol=1e-12)


def test_jacobians_of_two_steps_multiply() -> None:
    first = propagate(tracks(), 31.0, FIELD)
    second = propagate(first.states, 66.0, FIELD)
    once = propagate(tracks(), 97.0, FIELD)
    np.testing.assert_allclose(second.jacobian @ first.jacobian, once.jacobian, rtol=1e-11, atol=1e-10)


def test_back_and_forth() -> None:
    start = tracks()
    there = propagate(start, 110.0, FIELD).states
    np.testing.assert_allclose(propagate(there, -110.0, FIELD).states, start, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("q_over_p", [0.0, 1e-300, 1e-18, 1e-12, 1e-9])
def test_straight_line_is_the_limit(q_over_p: float) -> None:
    s, phi, lam = 100.0, 0.6, 0.5
    start = np.array([q_over_p, lam, phi, 1.0, 2.0, 3.0])
    line = np.array([1.0, 2.0, 3.0]) + s * np.array([math.cos(phi), math.sin(phi), math.tan(lam)])
    result = propagate(start, s, FIELD)
    half_turn = -0.5 * BENDING_PER_TESLA * FIELD * q_over_p / math.cos(lam) * s
    aside = s * half_turn * np.array([-math.sin(phi), math.cos(phi), 0.0])
    np.testing.assert_allclose(result.states[3:], line + aside, rtol=1e-14)
    d_sideways = -math.sin(phi) * result.jacobian[3, 0] + math.cos(phi) * result.jacobian[4, 0]
    assert d_sideways == pytest.approx(-0.5 * s * s * BENDING_PER_TESLA * FIELD / math.cos(lam), rel=1e-12)


@pytest.mark.parametrize(("field", "b"), [(0.0, 0.0), (3.8, -1.0)])
def test_no_field_no_turn(field: float, b: float) -> None:
    start = tracks()
    assert np.array_equal(propagate(start, 50.0, field, b).states[:, :3], start[:, :3])


def test_momentum_is_kept_and_along_the_path() -> None:
    """|p| and pz stay, and dx/ds has the direction (cos phi, sin phi, tan lambda) of the momentum."""
    start = tracks()
    result = propagate(start, 80.0, FIELD)
    assert np.array_equal(result.states[:, :2], start[:, :2])
    velocity = slopes(lambda s: propagate(start, 80.0 + s[0], FIELD).states, np.zeros(1), np.array([1e-2]))
    phi, lam = result.states[:, 2], start[:, 1]
    direction = np.stack([np.cos(phi), np.sin(phi), np.tan(lam)], axis=1)
    np.testing.assert_allclose(velocity[:, 3:, 0], direction, atol=1e-10)


def test_charges_are_mirror_images() -> None:
    """Reflection y -> -y with q -> -q."""
    mirror = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    start = tracks()
    image = propagate(mirror * start, 90.0, FIELD).states
    assert np.array_equal(image, mirror * propagate(start, 90.0, FIELD).states)


def test_sagitta_at_40_gev() -> None:
    """0.3 B L^2/(8 pT) = 4 mm for L = 1.05 m, middle of the arc to its chord; 1 % for 0.3 and chord = arc."""
    arc = propagate(state(40.0, 0.0, 0.2, 1.0), [52.5, 105.0], FIELD).states[:, 3:5]
    chord = arc[1] / np.hypot(*arc[1])
    sagitta = abs(chord[0] * arc[0][1] - chord[1] * arc[0][0])
    assert sagitta == pytest.approx(100.0 * 0.3 * FIELD * 1.05**2 / (8.0 * 40.0), rel=0.01)
    assert sagitta == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("s", [-40.0, 1e-3, 4.4, 110.0, 600.0])
def test_transport_derivatives(s: float) -> None:
    start = tracks()
    b = 2e-3
    result = propagate(start, s, FIELD, b)
    assert_same_slopes(result.jacobian, slopes(lambda x: propagate(x, s, FIELD, b).states, start, STEPS))
    by_s = slopes(lambda x: propagate(start, x[0], FIELD, b).states, np.array([s]), np.array([1e-2]))
    assert_same_slopes(result.d_s, by_s[:, :, 0])
    by_b = slopes(lambda x: propagate(start, s, FIELD, x[0]).states, np.array([b]), np.array([1e-4]))
    assert_same_slopes(result.d_b, by_b[:, :, 0])


@pytest.mark.parametrize("s", [4.4, 33.9, 108.0])
def test_crossing_is_on_the_helix_and_on_the_plane(s: float) -> None:
    start = tracks(200)
    centre, normal = modules(start, s)
    found = cross_planes(start, centre, normal, FIELD, s_guess=0.9 * s)
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    assert np.all(found.status == CROSSED)
    assert np.max(np.abs(np.sum(unit * (found.states[:, 3:] - centre), axis=1))) < 1e-10
    assert np.array_equal(found.states, propagate(start, found.s, FIELD).states)


def test_disk_needs_no_guess() -> None:
    start = tracks()
    z = 124.0 * np.sign(start[:, 1])
    found = cross_planes(start, np.stack([0.0 * z, 0.0 * z, z], axis=1), [0.0, 0.0, 1.0], FIELD)
    np.testing.assert_allclose(found.s, (z - start[:, 5]) / np.tan(start[:, 1]), rtol=1e-12)


@pytest.mark.parametrize("s", [4.4, 108.0])
def test_derivatives_on_the_plane(s: float) -> None:
    start = tracks()
    b = 2e-3
    centre, normal = modules(start, s)
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)

    def on_plane(x: Floats, b: float = b, offset: float = 0.0) -> Floats:
        return cross_planes(x, centre + offset * unit, normal, FIELD, b, s_guess=s).states

    found = cross_planes(start, centre, normal, FIELD, b, s_guess=s)
    assert_same_slopes(found.jacobian, slopes(on_plane, start, STEPS))
    by_b = slopes(lambda x: on_plane(start, x[0]), np.array([b]), np.array([1e-4]))
    assert_same_slopes(found.d_b, by_b[:, :, 0])
    by_offset = slopes(lambda x: on_plane(start, offset=x[0]), np.zeros(1), np.array([1e-2]))
    assert_same_slopes(found.d_offset, by_offset[:, :, 0])


def test_missed_planes_are_data() -> None:
    """Too soft to get there, good, running along the plane: only the second has numbers."""
    starts = np.array([state(0.2, 0.0, 0.0, 1.0), state(9.0, 0.0, 0.0, 1.0), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    centre = [[60.0, 0.0, 0.0], [60.0, 0.0, 0.0], [0.0, 5.0, 0.0]]
    normal = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    found = cross_planes(starts, centre, normal, FIELD)
    assert found.status.tolist() == [LOST, CROSSED, LOST]
    for numbers in (found.states, found.s, found.jacobian, found.d_b, found.d_offset):
        missing = np.isnan(numbers).reshape(3, -1)
        assert missing.all(axis=1).tolist() == [True, False, True]
        assert not missing[1].any()


def test_shapes_follow_the_arguments() -> None:
    start = tracks(6).reshape(2, 3, 6)
    result = propagate(start, np.array([1.0, 2.0, 3.0]), FIELD)
    assert result.states.shape == (2, 3, 6)
    assert result.jacobian.shape == (2, 3, 6, 6)
    assert propagate(start[0, 0], 1.0, FIELD).states.shape == (6,)
    assert propagate(start[:0], 1.0, FIELD).states.shape == (0, 3, 6)
    one = cross_planes(start[0, 0], [0.0, 0.0, 9.0], [0.0, 0.0, 1.0], FIELD)
    assert one.s.shape == one.status.shape == ()
    assert cross_planes(start, np.zeros((3, 3)), [0.0, 0.0, 1.0], FIELD).jacobian.shape == (2, 3, 6, 6)


def test_arguments_stay_as_they_were() -> None:
    start, guess = tracks(3), np.full(3, 4.0)
    kept = start.copy()
    cross_planes(start, [0.0, 0.0, 9.0], [0.0, 0.0, 1.0], FIELD, s_guess=guess)
    propagate(start, 3.0, FIELD)
    assert np.array_equal(start, kept)
    assert np.all(guess == 4.0)


def test_bad_arguments_are_named() -> None:
    start = tracks(3)
    broken = start.copy()
    broken[1, 3] = np.nan
    steep = start.copy()
    steep[2, 1] = 1.6
    with pytest.raises(ValueError, match=r"states: not finite at index \(1,\)"):
        propagate(broken, 1.0, FIELD)
    with pytest.raises(ValueError, match=r"states: need shape \(\.\.\., 6\), got \(3, 5\)"):
        propagate(start[:, :5], 1.0, FIELD)
    with pytest.raises(ValueError, match=r"lambda.*index \(2,\)"):
        propagate(steep, 1.0, FIELD)
    with pytest.raises(ValueError, match=r"s: not finite at index \(2,\)"):
        propagate(start, [1.0, 2.0, np.inf], FIELD)
    with pytest.raises(ValueError, match="field: must be finite, got nan T"):
        propagate(start, 1.0, math.nan)
    with pytest.raises(ValueError, match=r"normal: zero vector at index \(0,\)"):
        cross_planes(start, [0.0, 0.0, 9.0], [0.0, 0.0, 0.0], FIELD)
    with pytest.raises(ValueError, match=r"centre: need shape \(\.\.\., 3\), got \(2,\)"):
        cross_planes(start, [0.0, 9.0], [0.0, 0.0, 1.0], FIELD)


@pytest.mark.parametrize("h", [0.0, 1e-300, 1e-9, 1e-3, 0.1, 0.49, 0.5, 0.51, 3.0])
def test_sinc_and_its_slope(h: float) -> None:
    """Against the power series sum (-1)^n h^2n/(2n+1)!, relative 4e-15 also where the two forms meet."""
    terms = [(-1.0) ** n / math.factorial(2 * n + 1) for n in range(20)]
    for x in (h, -h):
        value = math.fsum(c * x ** (2 * n) for n, c in enumerate(terms))
        slope = math.fsum(c * 2 * n * x ** (2 * n - 1) for n, c in enumerate(terms) if n > 0)
        assert sinc(x) == pytest.approx(value, rel=4e-15)
        assert sinc_slope(x) == pytest.approx(slope, rel=4e-15, abs=0.0)


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="this is the run without compilation")
def test_kernels_as_plain_python() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
