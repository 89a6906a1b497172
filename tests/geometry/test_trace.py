"""Predicted hits and all of their derivatives against finite differences, on a small made-up detector."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from musclecal.constants import MUON_MASS
from musclecal.geometry.helix import BENDING_PER_TESLA
from musclecal.geometry.trace import LOST_TRACK, TRACED, Planes, Trace, new_trace, trace
from musclecal.records import Floats

START = np.array([-1.0 / 5.0, 0.4, 0.3, 0.01, -0.02, 1.5])
"""A negative muon of 5 GeV."""
STEPS = np.array([1e-4, 1e-5, 1e-5, 1e-3, 1e-3, 1e-3])
RADII = (4.0, 10.0, 30.0, 30.2, 60.0, 100.0)


def detector(thin: bool = False) -> Planes:
    """Six tilted planes around the track, the third and fourth are one unit; the first has hits in v."""
    rng = np.random.default_rng(1)
    centres, axes = [], []
    for radius in RADII:
        phi = START[2] + 0.0005 * radius
        centres.append([radius * math.cos(phi), radius * math.sin(phi), 1.0 + radius * math.tan(START[1])])
        w = np.array([math.cos(phi + 0.1), math.sin(phi + 0.1), 0.2])
        w /= np.linalg.norm(w)
        u = np.cross([0.0, 0.1, 1.0], w)
        u /= np.linalg.norm(u)
        axes.append([u, np.cross(w, u), w])
    n = len(RADII)
    r, z = np.linspace(0.0, 120.0, 7), np.linspace(-100.0, 100.0, 9)
    bending = BENDING_PER_TESLA * (3.8 - 1e-5 * r[:, None] ** 2 - 2e-5 * z**2)
    log_p = np.linspace(-2.0, 6.0, 50)
    loss = np.stack([1.5e-3 + 1e-4 * log_p**2, 2e-4 * log_p], axis=1)
    scale = 1e-9 if thin else 1.0
    return Planes(
        np.array(centres), np.array(axes), scale * rng.uniform(0.02, 0.1, n), scale * rng.uniform(1.0, 3.0, n),
        np.array([True, False, False, False, False, False]), np.array([0, 1, 2, 2, 3, 4], np.int32),
        np.array([0, 0, 0, 1, 0, 0], np.int32), r, z, bending, loss, -2.0, 8.0 / 49.0, MUON_MASS,
    )  # fmt: skip


def follow(planes: Planes, start: Floats, values: Floats, with_parameters: bool = True) -> Trace:
    n = len(RADII)
    out = new_trace(n, 6, with_parameters)
    status = trace(start, np.eye(6), np.arange(n, dtype=np.int32), n, planes, values, with_parameters, out)
    assert status == TRACED
    return out


def values(n_slot: int = 6) -> Floats:
    """Parameters away from zero, where derivatives hold as well."""
    rng = np.random.default_rng(2)
    sizes = np.array([2e-3, 2e-3, 1e-3, 0.1, 5e-3, 1e-3])[:n_slot]
    return rng.normal(0.0, sizes, (5, n_slot))


def difference(predict: Callable[[float], Floats], step: float) -> Floats:
    return (predict(step) - predict(-step)) / (2.0 * step)


def test_without_matter_and_field_a_track_is_a_straight_line() -> None:
    planes = detector(thin=True)
    planes = planes._replace(bending=0.0 * planes.bending)
    out = follow(planes, START, np.zeros((5, 4)))
    direction = np.array([math.cos(START[2]), math.sin(START[2]), math.tan(START[1])])
    for i in range(len(RADII)):
        centre, (u, v, w) = planes.centre[i], planes.axes[i]
        s = w @ (centre - START[3:]) / (w @ direction)
        offset = START[3:] + s * direction - centre
        np.testing.assert_allclose(out.predicted[2 * i : 2 * i + 2], [u @ offset, v @ offset], atol=1e-11)


@pytest.mark.parametrize("column", range(6))
def test_derivatives_in_the_start(column: int) -> None:
    planes, at = detector(), values()
    out = follow(planes, START, at)

    def predict(step: float) -> Floats:
        moved = START.copy()
        moved[column] += step
        return follow(planes, moved, at).predicted

    expected = difference(predict, STEPS[column])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.derivative[:, column], expected, atol=1e-3 * scale, rtol=0)


def test_derivatives_in_the_start_without_the_gradient_of_the_field() -> None:
    """Where the field does not change, derivatives are those of what is computed: 1e-6."""
    planes, at = detector(), values()
    planes = planes._replace(bending=np.full_like(planes.bending, 3.8 * BENDING_PER_TESLA))
    out = follow(planes, START, at)
    for column in range(6):

        def predict(step: float, column: int = column) -> Floats:
            moved = START.copy()
            moved[column] += step
            return follow(planes, moved, at).predicted

        expected = difference(predict, STEPS[column])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(out.derivative[:, column], expected, atol=1e-6 * scale, rtol=0)


def parameter_derivative(out: Trace, planes: Planes, unit: int, slot: int, at: Floats) -> Floats:
    """What a fit takes as d predicted/d parameter."""
    n, total = len(RADII), np.zeros(2 * len(RADII))
    for i in np.flatnonzero(planes.unit == unit):
        gamma = at[unit, 5]
        if slot == 2:
            total += out.derivative[:, 6 + 2 * n + 2 * i + 1]
        elif slot == 3:
            total += out.derivative[:, 6 + 2 * n + 2 * i] * out.loss[i]
        elif slot == 4:
            total[2 * i] += out.slope[2 * i] + gamma * out.slope[2 * i + 1]
            total[2 * i + 1] += out.slope[2 * i + 1] - gamma * out.slope[2 * i]
        elif slot == 5:
            total[2 * i] += out.local[i, 1]
            total[2 * i + 1] -= out.local[i, 0]
        else:
            if planes.slot[i] == slot:
                total[2 * i] -= 1.0
            if slot == 1 and planes.measures_v[i]:
                total[2 * i + 1] -= 1.0
    return total


@pytest.mark.parametrize(("slot", "size"), [(0, 1e-3), (1, 1e-3), (2, 1e-3), (3, 1e-3), (4, 1e-3), (5, 1e-4)])
def test_derivatives_in_the_parameters(slot: int, size: float) -> None:
    planes, at = detector(), values()
    out = follow(planes, START, at)
    for unit in range(5):

        def predict(step: float, unit: int = unit) -> Floats:
            moved = at.copy()
            moved[unit, slot] += step
            return follow(planes, START, moved).predicted

        expected = difference(predict, size)
        found = parameter_derivative(out, planes, unit, slot, at)
        # That the energy is then lost a little earlier or later is not in the derivative
        scale = 1.0 if slot == 4 else max(np.abs(expected).max(), 1e-6)
        np.testing.assert_allclose(found, expected, atol=1e-3 * scale, rtol=0, err_msg=f"unit {unit}")


def test_derivatives_in_kicks() -> None:
    """A kick behind plane i is a start there."""
    planes, at = detector(), values()
    n = len(RADII)
    out = follow(planes, START, at)
    i = 2
    part = new_trace(n, 6, False)
    modules = np.arange(n, dtype=np.int32)
    trace(START, np.eye(6), modules, i + 1, planes, at, False, part)
    behind = part.state.copy()
    kicked = new_trace(n, 6, False)
    for column, place in ((6 + 2 * i, 1), (6 + 2 * i + 1, 2), (6 + 2 * n + 2 * i, 0)):
        step = STEPS[place]
        ends = []
        for sign in (1.0, -1.0):
            moved = behind.copy()
            moved[place] += sign * step
            assert trace(moved, np.eye(6), modules[i + 1 :], n - i - 1, planes, at, False, kicked) == TRACED
            ends.append(kicked.predicted[: 2 * (n - i - 1)].copy())
        expected = (ends[0] - ends[1]) / (2.0 * step)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(out.derivative[2 * i + 2 :, column], expected, atol=1e-3 * scale, rtol=0)
        np.testing.assert_array_equal(out.derivative[: 2 * i + 2, column], 0.0)


def test_a_shift_moves_the_hit_the_other_way() -> None:
    planes, at = detector(), np.zeros((5, 4))
    before = follow(planes, START, at).predicted
    at[2, 1] = 0.01
    after = follow(planes, START, at).predicted
    np.testing.assert_allclose(after[6] - before[6], -0.01, rtol=1e-12)
    np.testing.assert_array_equal(np.delete(after, 6), np.delete(before, 6))


def test_variances_are_those_of_highland() -> None:
    planes = detector()
    out = follow(planes, START, np.zeros((5, 4)))
    p = 5.0
    direction = np.array(
        [math.cos(START[2]) * math.cos(START[1]), math.sin(START[2]) * math.cos(START[1]), math.sin(START[1])]
    )
    # The first plane is 4 cm away: the direction there is the one at the start, nearly
    x = planes.radiation_lengths[0] / (planes.axes[0, 2] @ direction)
    theta = 0.0136 * math.hypot(p, MUON_MASS) / p**2 * math.sqrt(x) * (1.0 + 0.038 * math.log(x))
    np.testing.assert_allclose(out.variance[0, 0], theta**2, rtol=2e-3)
    np.testing.assert_allclose(out.variance[0, 1], out.variance[0, 0] / math.cos(START[1]) ** 2, rtol=1e-12)


def test_energy_is_lost() -> None:
    planes = detector()
    out = follow(planes, START, np.zeros((5, 4)))
    assert out.state[0] < START[0]
    total = np.sum(planes.mass_thickness) * 1.8e-3
    lost = math.hypot(5.0, MUON_MASS) - math.hypot(1.0 / out.state[0], MUON_MASS)
    assert 0.8 * total < lost < 2.0 * total


def test_a_track_that_stops_or_misses_is_lost() -> None:
    planes, n = detector(), len(RADII)
    modules, out = np.arange(n, dtype=np.int32), new_trace(n, 6, False)
    slow = START.copy()
    slow[0] = 1.0 / 0.02
    assert trace(slow, np.eye(6), modules, n, planes, np.zeros((5, 4)), False, out) == LOST_TRACK
    curling = START.copy()
    curling[0] = 1.0 / 0.3
    assert trace(curling, np.eye(6), modules, n, planes, np.zeros((5, 4)), False, out) == LOST_TRACK
