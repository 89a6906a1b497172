"""The two detectors: counts, axes, coverage, matter, and what kernels get of them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker, planes_of
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.helix import BENDING_PER_TESLA
from musclecal.records import Detector, Floats, Ints

DETECTORS = {"cms": cms_tracker(), "barrel": barrel_tracker()}


@pytest.fixture(params=DETECTORS)
def detector(request: pytest.FixtureRequest) -> Detector:
    return DETECTORS[request.param]


def met(d: Detector, eta: float, phi: float, z0: float = 0.0) -> tuple[Ints, Floats]:
    """Sensors that a straight line meets, and the cosine of its angle to their normals."""
    direction = np.array([math.cos(phi), math.sin(phi), math.sinh(eta)])
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.sum(d.w * (d.centre - [0.0, 0.0, z0]), axis=1) / (d.w @ direction)
        offset = s[:, None] * direction + [0.0, 0.0, z0] - d.centre
        u, v = np.sum(offset * d.u, axis=1), np.sum(offset * d.v, axis=1)
        inside = (s > 0.0) & (np.abs(u) < d.half_u) & (np.abs(v) < d.half_v)
    which = np.flatnonzero(inside)
    return which, np.abs(d.w[which] @ direction) / np.linalg.norm(direction)


def test_numbers_of_cms() -> None:
    d = DETECTORS["cms"]
    assert (int(np.sum(d.measures_v)), int(np.sum(~d.measures_v)), d.n_units) == (1440, 15148, 13300)
    stereo = np.bincount(d.unit) == 2
    assert np.sum(stereo) == 3288
    assert np.sum(~stereo) == 1440 + 8572
    by_name = {
        name: sum(d.layer_names[layer].startswith(name) for layer in d.layer)
        for name in ("PXB", "PXF", "TIB", "TID", "TOB", "TEC")
    }
    assert by_name == {"PXB": 768, "PXF": 672, "TIB": 2724, "TID": 816, "TOB": 5208, "TEC": 6400}


def test_numbers_of_the_barrel() -> None:
    d = DETECTORS["barrel"]
    assert (len(d), d.n_units, d.n_layers, int(np.sum(d.measures_v))) == (544, 416, 7, 144)


def test_axes(detector: Detector) -> None:
    d = detector
    axes = np.stack([d.u, d.v, d.w], axis=1)
    np.testing.assert_allclose(
        axes @ axes.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (len(d), 3, 3)), atol=1e-14
    )
    np.testing.assert_allclose(np.cross(d.u, d.v), d.w, atol=1e-14)
    outwards = np.where(d.is_barrel[:, None], d.centre * [1.0, 1.0, 0.0], d.centre * [0.0, 0.0, 1.0])
    assert np.all(np.sum(d.w * outwards, axis=1) > 0.0)
    rising_phi = np.stack([-d.centre[:, 1], d.centre[:, 0], np.zeros(len(d))], axis=1)
    rising_phi /= np.linalg.norm(rising_phi, axis=1)[:, None]
    along = np.sum(d.u * rising_phi, axis=1)
    np.testing.assert_allclose(along, np.where(d.side == 1, math.cos(0.1), 1.0), atol=1e-12)


def test_the_second_sensor_is_turned_about_the_normal(detector: Detector) -> None:
    d = detector
    second = np.flatnonzero(d.side == 1)
    first = second - 1
    np.testing.assert_array_equal(d.unit[first], d.unit[second])
    np.testing.assert_array_equal(d.layer[first], d.layer[second])
    np.testing.assert_allclose(np.sum(d.u[first] * d.u[second], axis=1), math.cos(0.1), rtol=1e-12)
    np.testing.assert_allclose(np.sum(d.v[first] * d.u[second], axis=1), math.sin(0.1), rtol=1e-12)
    gap = d.centre[second] - d.centre[first]
    np.testing.assert_allclose(gap, 0.03 * d.w[first], atol=1e-12)


def test_units_and_resolutions(detector: Detector) -> None:
    d = detector
    np.testing.assert_array_equal(np.unique(d.unit), np.arange(d.n_units))
    assert np.all(np.isinf(d.sigma_v) == ~d.measures_v)
    assert np.all((d.sigma_u >= 9e-4) & (d.sigma_u <= 53e-4))
    np.testing.assert_allclose(d.mass_thickness, 21.82 * d.radiation_lengths)


@pytest.mark.parametrize("z0", [0.0, -9.0, 9.0])
def test_no_track_goes_between_modules(z0: float) -> None:
    """Layers that end beyond |eta| 2.4, and the barrel layers at |eta| < 0.8."""
    rng = np.random.default_rng(1)
    cms, barrel = DETECTORS["cms"], DETECTORS["barrel"]
    for _ in range(400):
        eta, phi = rng.uniform(-0.75, 0.75), rng.uniform(-math.pi, math.pi)
        assert set(cms.layer[met(cms, eta, phi, z0)[0]]) == set(range(13))
        assert set(barrel.layer[met(barrel, eta, phi, z0)[0]]) == set(range(7))
    pieces = ("PXF+1", "PXF+2", "TEC+1 ", "TEC+3")
    for _ in range(400):
        eta, phi = rng.uniform(1.95, 2.2), rng.uniform(-math.pi, math.pi)
        names = {cms.layer_names[layer] for layer in cms.layer[met(cms, eta, phi, 0.3 * z0)[0]]}
        for piece in pieces:
            assert any(name.startswith(piece) for name in names), (piece, eta, phi)


def test_matter_and_hits_against_eta() -> None:
    """Radiation lengths roughly as in CMS (JINST 3 (2008) S08004, fig. 3.3): 0.4, 1.8 at eta 1.5, then 1.2."""
    d = DETECTORS["cms"]

    def average(eta: float) -> tuple[float, float]:
        """Radiation lengths and hits, one unit a layer."""
        x0, hits = [], []
        for i in range(20):
            which, cosine = met(d, eta + 0.003 * i, 0.1 + 0.3 * i)
            once = np.unique(2 * d.layer[which] + d.side[which], return_index=True)[1]
            x0.append(np.sum((d.radiation_lengths[which] / cosine)[once]))
            hits.append(len(once))
        return float(np.mean(x0)), float(np.mean(hits))

    assert average(0.0)[0] == pytest.approx(0.42, abs=0.06)
    assert average(1.0)[0] == pytest.approx(1.0, abs=0.2)
    assert average(1.5)[0] == pytest.approx(1.8, abs=0.15)
    assert average(2.3)[0] == pytest.approx(1.35, abs=0.2)
    assert np.mean([average(eta)[1] for eta in np.arange(-2.3, 2.31, 0.2)]) == pytest.approx(18.0, abs=1.5)


def test_planes(detector: Detector) -> None:
    field_map = solenoid_map()
    planes = planes_of(detector, field_map)
    np.testing.assert_array_equal(planes.axes[:, 0], detector.u)
    np.testing.assert_array_equal(planes.axes[:, 2], detector.w)
    np.testing.assert_array_equal(planes.slot, detector.side)
    assert planes.bending[0, planes.z.size // 2] == pytest.approx(3.8 * BENDING_PER_TESLA)
    with pytest.raises(InputError, match="another map"):
        planes_of(replace(detector, field_map="another map"), field_map)
