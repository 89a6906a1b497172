"""Structure modes: their values on a few sensors that one can follow by hand, and the prior widths."""

from typing import Any

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.modes import (
    Modes,
    ModeWidths,
    Widths,
    independent_widths,
    no_modes,
    parameter_kinds,
    structure_modes,
    sub_detectors,
)
from musclecal.records import PARAMETER_TYPES, Floats

STEREO = 0.1
LAYERS = ("PXB1", "PXB2", "TIB1", "TID-1 ring 1")
Z = np.array([0.0, 0.0, 1.0])


class Made:
    """Two pixel layers, one of strips with a stereo side, and a ring of pixels at z = -80; 6 in phi, 3 in z."""

    def __init__(self) -> None:
        rows: list[tuple[Floats, Floats, int, int, bool, int]] = []
        unit = 0
        for layer, r in enumerate((4.0, 8.0, 25.0)):
            for phi in np.arange(6) * np.pi / 3 + 0.2:
                for z in (-10.0, 0.0, 12.0):
                    out, along = (
                        np.array([np.cos(phi), np.sin(phi), 0.0]),
                        np.array([-np.sin(phi), np.cos(phi), 0.0]),
                    )
                    rows.append((r * out + z * Z, np.stack([along, Z, out]), unit, 0, layer < 2, layer))
                    if layer == 2:
                        c, s = np.cos(STEREO), np.sin(STEREO)
                        turned = np.stack([c * along + s * Z, -s * along + c * Z, out])
                        rows.append((r * out + z * Z, turned, unit, 1, False, layer))
                    unit += 1
        for phi in np.arange(6) * np.pi / 3:
            out, along = np.array([np.cos(phi), np.sin(phi), 0.0]), np.array([-np.sin(phi), np.cos(phi), 0.0])
            rows.append((20.0 * out - 80.0 * Z, np.stack([along, out, -Z]), unit, 0, True, 3))
            unit += 1
        centre, axes, units, side, measures_v, layers = zip(*rows, strict=True)
        self.centre, self.axes = np.array(centre), np.array(axes)
        self.unit, self.side = np.array(units, np.int32), np.array(side, np.int8)
        self.measures_v, self.layer = np.array(measures_v), np.array(layers, np.int32)
        first = self.side == 0
        self.r, self.z = np.hypot(*self.centre[first, :2].T), self.centre[first, 2]
        self.phi = np.arctan2(self.centre[first, 1], self.centre[first, 0])
        self.of, self.disk = self.layer[first], self.layer[first] == 3

    def modes(self, n_slots: int = 6, **kwargs: Any) -> Modes:
        return structure_modes(
            self.centre, self.axes, self.unit, self.side, self.measures_v, self.layer, LAYERS, n_slots=n_slots, **kwargs
        )  # fmt: skip

    def mode(self, name: str, n_slots: int = 6) -> Floats:
        """(n_units, P)."""
        modes = self.modes(n_slots)
        vector: Floats = modes.dense(n_slots)[modes.names.index(name)]
        return vector


MADE = Made()
assert np.allclose(np.cross(MADE.axes[:, 0], MADE.axes[:, 1]), MADE.axes[:, 2])


def moved(d_r: Any, r_dphi: Any, d_z: Any) -> tuple[Floats, Floats, Floats]:
    """Shifts along u, v and w (n_units,) of first sensors that move by these, scaled to a largest motion of 1 cm."""
    d = np.broadcast_arrays(np.zeros(len(MADE.r)), d_r, r_dphi, d_z)[1:]
    largest = np.sqrt(sum(part**2 for part in d)).max()
    barrel = d[1], d[2], d[0]
    disk = d[1], d[0], -d[2]
    u, v, w = (np.where(MADE.disk, b, a) / largest for a, b in zip(barrel, disk, strict=True))
    return u, v, w


R, PHI, ZZ = MADE.r, MADE.phi, MADE.z
NINE = {
    "radial": (R, 0.0, 0.0),
    "bowing": (80.0**2 - ZZ**2, 0.0, 0.0),
    "elliptical cos": (R * np.cos(2 * PHI), 0.0, 0.0),
    "elliptical sin": (R * np.sin(2 * PHI), 0.0, 0.0),
    "curl": (0.0, R * R, 0.0),
    "twist": (0.0, R * ZZ, 0.0),
    "sagitta cos": (0.0, R * np.cos(PHI), 0.0),
    "sagitta sin": (0.0, R * np.sin(PHI), 0.0),
    "telescope": (0.0, 0.0, R),
    "z expansion": (0.0, 0.0, ZZ),
    "skew cos": (0.0, 0.0, R * np.cos(PHI)),
    "skew sin": (0.0, 0.0, R * np.sin(PHI)),
}


@pytest.mark.parametrize("name", NINE)
def test_the_weak_modes_of_the_literature(name: str) -> None:
    """dr, r dphi and dz of each, on sensors whose axes point along phi, z or r, and out."""
    u, v, w = moved(*NINE[name])
    found = MADE.mode(name)
    np.testing.assert_allclose(found[:, 0], u, atol=1e-12)
    np.testing.assert_allclose(found[MADE.of != 2, 1], v[MADE.of != 2], atol=1e-12)
    np.testing.assert_allclose(found[:, 4], w, atol=1e-12)
    stereo = MADE.of == 2
    np.testing.assert_allclose(
        found[stereo, 1], np.cos(STEREO) * u[stereo] + np.sin(STEREO) * v[stereo], atol=1e-12
    )
    assert not found[:, 2:4].any()


def test_layers_turn_and_shift() -> None:
    here = MADE.of == 2
    turned, x, y = (MADE.mode(f"{what} TIB1", 4) for what in ("rotation", "x shift", "y shift"))
    np.testing.assert_allclose(turned[here, 0], 1.0)
    np.testing.assert_allclose(turned[here, 1], np.cos(STEREO))
    np.testing.assert_allclose(x[here, 0], -np.sin(PHI[here]))
    np.testing.assert_allclose(y[here, 0], np.cos(PHI[here]))
    for vector in (turned, x, y):
        assert not vector[~here].any()
        assert not vector[:, 2:].any()
    disk = MADE.mode("x shift TID-1 ring 1", 4)[MADE.disk]
    np.testing.assert_allclose(disk[:, 0], -np.sin(PHI[MADE.disk]), atol=1e-12)
    np.testing.assert_allclose(disk[:, 1], np.cos(PHI[MADE.disk]), atol=1e-12)
    np.testing.assert_array_equal(MADE.mode("v shift PXB2", 4)[MADE.of == 1], [[0.0, 1.0, 0.0, 0.0]] * 18)
    assert "v shift TIB1" not in MADE.modes().names


def test_sensors_turn_with_what_they_stand_on() -> None:
    """A ring whose normals point to -z turns by -1 about them when it turns by +1 about z; a cylinder does not turn."""
    ring = MADE.mode("rotation TID-1 ring 1")
    np.testing.assert_allclose(ring[MADE.disk, 0], 1.0)
    np.testing.assert_allclose(ring[MADE.disk, 5], -1.0 / 20.0, rtol=1e-6)
    assert np.abs(MADE.mode("rotation PXB1")[:, 5]).max() < 1e-9
    twist = MADE.mode("twist")
    c = 1.0 / np.abs(R * ZZ).max()
    np.testing.assert_allclose(twist[MADE.of == 1, 5], -0.5 * c * 8.0, rtol=1e-6)


def test_sub_detectors_move_alone() -> None:
    assert sub_detectors(LAYERS) == ("PXB", "PXB", "TIB", "TID-")
    assert sub_detectors(("PXF+2", "TEC-9 ring 7", "1")) == ("PXF+", "TEC-", "1")
    twist = MADE.mode("twist PXB", 4)
    here = MADE.of < 2
    np.testing.assert_allclose(twist[here, 0], (R * ZZ)[here] / 96.0)
    assert not twist[~here].any()
    assert "twist" in MADE.modes(groups=("one",) * 4).names
    assert "twist one" not in MADE.modes(groups=("one",) * 4).names


def test_field_and_material() -> None:
    for name, change in {
        "field": np.ones_like(R), "field z": ZZ / 80.0, "field z2": (ZZ / 80.0) ** 2, "field r": R / 25.0,
        "field r2": (R / 25.0) ** 2, "field z3": (ZZ / 80.0) ** 3, "field r4": (R / 25.0) ** 4,
        "field z r2": ZZ * R**2 / np.abs(ZZ * R**2).max(),
    }.items():  # fmt: skip
        found = MADE.mode(name, 4)
        np.testing.assert_allclose(found[:, 2], change, rtol=1e-12, err_msg=name)
        assert not np.delete(found, 2, axis=1).any()
    cos = MADE.mode("field cos", 4)[:, 2]
    np.testing.assert_allclose(cos, np.cos(PHI) / np.abs(np.cos(PHI)).max(), rtol=1e-12)
    np.testing.assert_array_equal(MADE.mode("material", 4), [[0.0, 0.0, 0.0, 1.0]] * len(R))
    np.testing.assert_array_equal(MADE.mode("material PXB", 4)[:, 3], MADE.of < 2)
    np.testing.assert_array_equal(MADE.mode("material PXB2", 4)[:, 3], MADE.of == 1)


def test_modes_that_change_nothing_are_left_out() -> None:
    """Without slots for w a barrel of strips does not see its radius; with them it does."""
    made = MADE.modes(4)
    assert "radial TIB" not in made.names
    assert "radial TIB" in MADE.modes(6).names
    assert "radial" in made.names
    assert len(set(made.names)) == len(made.names)
    assert np.all(np.abs(made.dense(4)).max(axis=(1, 2)) > 0)
    assert np.all(np.abs(made.dense(4)).max(axis=(1, 2)) <= 1.0 + 1e-12)


def test_widths_of_modes() -> None:
    widths = ModeWidths(0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, layer_material=0.0)
    made = MADE.modes(4, widths=widths)
    found = dict(zip(made.names, made.widths, strict=True))
    expected = {
        "rotation PXB1": 0.1, "v shift PXB1": 0.2, "twist": 0.3, "twist PXB": 0.4, "field": 0.5, "field z": 0.55,
        "field cos": 0.55, "material": 0.6,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert "material PXB1" not in found
    assert found["material PXB"] == 0.6
    for width in (-1.0, np.inf, np.nan):
        with pytest.raises(InputError, match=r"field.*is not one"):
            MADE.modes(4, widths=ModeWidths(field=width))
    empty = MADE.modes(4, widths=ModeWidths(0, 0, 0, 0, 0, 0, 0, 0))
    assert empty.dense(4).shape == no_modes(len(R), 4).dense(4).shape == (0, len(R), 4)


def test_some_modes() -> None:
    some = MADE.modes(4).only(("twist", "curl"))
    assert some.names == ("twist", "curl")
    np.testing.assert_array_equal(some.dense(4)[1], MADE.mode("curl", 4))
    with pytest.raises(InputError, match="no mode 'twitst'"):
        MADE.modes(4).only(("twitst",))


def test_kinds_and_widths_of_parameters() -> None:
    kinds = parameter_kinds(MADE.unit, MADE.side, MADE.measures_v, 6)
    words = np.array(PARAMETER_TYPES)[kinds]
    assert words[0].tolist() == ["u", "v", "field", "material", "w", "gamma"]
    assert words[-7].tolist() == ["u", "u_stereo", "field", "material", "w", "gamma"]
    widths = independent_widths(kinds, Widths(1.0, 2.0, 3.0, 4.0, 5.0, 0.0, np.inf))
    assert widths[0].tolist() == [1.0, 2.0, 4.0, 5.0, 0.0, np.inf]
    assert widths[-7].tolist() == [3.0, 3.0, 4.0, 5.0, 0.0, np.inf]
    single = parameter_kinds(np.array([0], np.int32), np.array([0], np.int8), np.array([False]), 4)
    assert independent_widths(single)[0, 1] == 0.0
    assert PARAMETER_TYPES[single[0, 1]] == "unused"
    for wrong in (-1.0, np.nan):
        with pytest.raises(InputError, match="prior width of strip_u"):
            independent_widths(kinds, Widths(strip_u=wrong))
    with pytest.raises(InputError, match="5 parameters"):
        parameter_kinds(MADE.unit, MADE.side, MADE.measures_v, 5)
    with pytest.raises(InputError, match="unit 1 has no sensor"):
        parameter_kinds(np.array([0, 1], np.int32), np.array([0, 1], np.int8), np.array([False] * 2), 4)
