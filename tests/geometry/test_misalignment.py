"""True states of a detector: modes by their definition, sizes, signs, parts that do not disturb each other."""

import math

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker
from musclecal.geometry.misalignment import MODES, Misalignment, misaligned, mode_parameters, shift_parameters
from musclecal.records import Floats

CMS, BARREL = cms_tracker(), barrel_tracker()


def place(first: Floats) -> tuple[Floats, Floats, Floats]:
    return np.hypot(first[:, 0], first[:, 1]), np.arctan2(first[:, 1], first[:, 0]), first[:, 2]


FIRST = CMS.side == 0
R, PHI, Z = place(CMS.centre[FIRST])
STEREO = np.bincount(CMS.unit) == 2
PIXEL, IN_BARREL = CMS.measures_v[FIRST], CMS.is_barrel[FIRST]


def test_curl_turns_layers() -> None:
    values = mode_parameters(CMS, "curl")
    np.testing.assert_allclose(values[:, 0], (R / 100.0) ** 2, rtol=1e-12)
    np.testing.assert_allclose(values[STEREO, 1], (R[STEREO] / 100.0) ** 2 * math.cos(0.1), rtol=1e-12)
    np.testing.assert_allclose(values[PIXEL, 1], 0.0, atol=1e-15)
    assert not values[:, 2:].any()


def test_twist_and_sagitta() -> None:
    np.testing.assert_allclose(mode_parameters(CMS, "twist")[:, 0], R * Z / 1e4, rtol=1e-12, atol=1e-15)
    expected = (R / 100.0) ** 2 * np.cos(PHI - 0.7)
    np.testing.assert_allclose(mode_parameters(CMS, "sagitta", 0.7)[:, 0], expected, rtol=1e-10, atol=1e-14)


def test_sagitta_is_a_shift_of_layers_sideways() -> None:
    """All units of a layer move in one direction, at right angles to phi_0."""
    values = mode_parameters(CMS, "sagitta", 0.7, n_slots=6)
    moved = values[:, :1] * CMS.u[FIRST] + values[:, 4:5] * CMS.w[FIRST]
    expected = (R[:, None] / 100.0) ** 2 * [-math.sin(0.7), math.cos(0.7), 0.0]
    np.testing.assert_allclose(moved[IN_BARREL], expected[IN_BARREL], atol=1e-12)


def test_radial_and_elliptical_move_along_the_normal_of_barrels_and_v_of_disks() -> None:
    disk = PIXEL & ~IN_BARREL
    for mode, factor in (("radial", np.ones(len(R))), ("elliptical", np.cos(2.0 * (PHI - 0.3)))):
        values = mode_parameters(CMS, mode, 0.3, n_slots=6)
        np.testing.assert_allclose(values[:, 0], 0.0, atol=1e-14)
        np.testing.assert_allclose(
            values[IN_BARREL, 4], (R / 100.0 * factor)[IN_BARREL], rtol=1e-10, atol=1e-14
        )
        # v is inwards at z > 0, outwards at z < 0
        np.testing.assert_allclose(
            values[disk, 1], (-np.sign(Z) * R / 100.0 * factor)[disk], rtol=1e-10, atol=1e-14
        )


@pytest.mark.parametrize("mode", ["telescope", "skew", "z_expansion"])
def test_modes_along_z(mode: str) -> None:
    expected = {"telescope": R / 100.0, "skew": R / 100.0 * np.cos(PHI), "z_expansion": Z / 100.0}[mode]
    values = mode_parameters(CMS, mode, n_slots=6)
    np.testing.assert_allclose(values[:, 0], 0.0, atol=1e-14)
    along_v = PIXEL & IN_BARREL
    np.testing.assert_allclose(values[along_v, 1], expected[along_v], rtol=1e-12)
    slanted = STEREO & IN_BARREL
    np.testing.assert_allclose(values[slanted, 1], math.sin(0.1) * expected[slanted], rtol=1e-12)
    np.testing.assert_allclose(values[~IN_BARREL, 4], (np.sign(Z) * expected)[~IN_BARREL], rtol=1e-12)


def test_random_parts_have_their_sizes() -> None:
    only = Misalignment.none(pixel_u=0.001, pixel_v=0.002, strip_u=0.003, unit_w=0.004, unit_gamma=1e-4)
    values = misaligned(CMS, 3, only, n_slots=6)
    for found, size in (
        (values[PIXEL, 0], 0.001), (values[PIXEL, 1], 0.002), (values[~PIXEL, 0], 0.003), (values[:, 4], 0.004),
        (values[:, 5], 1e-4),
    ):  # fmt: skip
        assert np.std(found) == pytest.approx(size, rel=4.0 / math.sqrt(2.0 * len(found)))
    single = ~PIXEL & ~STEREO
    assert not values[single, 1].any()
    assert not values[:, 2:4].any()
    np.testing.assert_allclose(values[STEREO, 1], values[STEREO, 0] * math.cos(0.1), rtol=1e-12)


def test_layers_move_as_a_whole() -> None:
    values = misaligned(CMS, 3, Misalignment.none(layer_rotation=0.002))
    of_layer = CMS.layer[FIRST]
    means = np.array([values[of_layer == layer, 0].mean() for layer in range(CMS.n_layers)])
    np.testing.assert_allclose(values[:, 0], means[of_layer], rtol=1e-10)
    assert np.std(means) == pytest.approx(0.002, rel=0.25)
    shifted = misaligned(CMS, 3, Misalignment.none(layer_shift=0.002))
    third = of_layer == 2
    design = np.stack([-np.sin(PHI), np.cos(PHI)], axis=1)[third]
    fitted = np.linalg.lstsq(design, shifted[third, 0], rcond=None)[0]
    np.testing.assert_allclose(shifted[third, 0], design @ fitted, atol=1e-14)


def test_field_and_matter() -> None:
    field = misaligned(CMS, 3, Misalignment.none(field=1e-3))[:, 2]
    assert np.all(np.abs(field) == 1e-3)
    assert np.ptp(field) == 0.0
    smooth = misaligned(CMS, 3, Misalignment.none(field_polynomial=1e-3))[:, 2]
    z, r2 = Z / 280.0, (R / 110.0) ** 2
    design = np.stack([z, z**2, r2, z * r2, z**4], axis=1)
    coefficients = np.linalg.lstsq(design, smooth, rcond=None)[0]
    np.testing.assert_allclose(design @ coefficients, smooth, atol=1e-12)
    assert np.all(coefficients != 0.0)
    matter = misaligned(CMS, 3, Misalignment.none(matter_layer=0.05))[:, 3]
    assert len(np.unique(matter)) == CMS.n_layers
    assert np.all(misaligned(CMS, 3, Misalignment.none(matter_unit=3.0))[:, 3] >= -0.9)


def test_parts_add_up_and_do_not_disturb_each_other() -> None:
    sizes = dict.fromkeys(("strip_u", "pixel_u", "layer_shift", "layer_rotation", *MODES), 0.002)
    together = misaligned(CMS, 5, Misalignment.none(**sizes), n_slots=6)
    alone = sum(misaligned(CMS, 5, Misalignment.none(**{name: 0.002}), n_slots=6) for name in sizes)
    np.testing.assert_allclose(together, alone, atol=1e-15)


def test_seeds_and_defaults() -> None:
    one, again, other = (misaligned(BARREL, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == (416, 4)
    assert 5e-4 < np.std(one[:, 0]) < 1e-2
    np.testing.assert_array_equal(misaligned(BARREL, 1, n_slots=6)[:, :4], one)


def test_a_shift_in_space() -> None:
    moved = np.tile([0.0, 0.0, 0.01], (BARREL.n_units, 1))
    values = shift_parameters(BARREL, moved)
    np.testing.assert_allclose(values[:, 0], 0.0, atol=1e-15)
    np.testing.assert_allclose(values[BARREL.measures_v[BARREL.side == 0], 1], 0.01)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="n_slots"):
        misaligned(BARREL, 1, n_slots=5)
    with pytest.raises(InputError, match="bowing"):
        mode_parameters(BARREL, "bowing")
    with pytest.raises(InputError, match="telescop"):
        Misalignment.none(telescop=1.0)
