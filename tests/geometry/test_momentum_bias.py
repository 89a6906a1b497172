"""Bias of the momentum scale: signs worked out by hand, and its derivatives in the modules."""

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.geometry.detector import barrel_tracker, cms_tracker
from musclecal.geometry.field import solenoid_map
from musclecal.geometry.misalignment import misaligned, mode_parameters
from musclecal.geometry.momentum_bias import MomentumBias, bias_combinations, momentum_bias, probe_tracks
from musclecal.records import Floats

FIELD, BARREL = solenoid_map(), barrel_tracker()
ETA = np.array([-0.7, -0.2, 0.3, 0.8])
NOMINAL = np.zeros((BARREL.n_units, 4))


def bias(truth: Floats, assumed: Floats = NOMINAL, pt: float = 10.0) -> MomentumBias:
    return momentum_bias(BARREL, FIELD, truth, assumed, pt, ETA, 16)


def test_nothing_is_wrong_with_the_truth() -> None:
    truth = misaligned(BARREL, 4)
    found = bias(truth, truth)
    np.testing.assert_allclose(found.even, 0.0, atol=1e-9)
    np.testing.assert_allclose(found.odd, 0.0, atol=1e-9)


@pytest.mark.parametrize("pt", [3.0, 10.0, 40.0])
def test_a_stronger_field_than_assumed_makes_the_curvature_larger(pt: float) -> None:
    """Tracks bend as k (1 + b): a fit with b = 0 takes that for k. Both charges alike, whatever their momentum."""
    truth = NOMINAL.copy()
    truth[:, 2] = 1e-3
    found = bias(truth, pt=pt)
    # What is lost in matter is the same: dk/k = b (1 - loss/E) at the vertex
    np.testing.assert_allclose(found.even, 1e-3, rtol=0.02)
    np.testing.assert_allclose(found.odd, 0.0, atol=1e-6)
    assert found.even_rms == pytest.approx(1e-3, rel=0.02)
    other = bias(NOMINAL, truth, pt)
    np.testing.assert_allclose(other.even, -found.even, rtol=5e-3)


def test_matter_that_is_not_known_about_costs_slow_muons_more() -> None:
    """More matter, less momentum on the way, more bending: dk/k > 0, and as 1/p."""
    truth = NOMINAL.copy()
    truth[:, 3] = 0.2
    slow, fast = bias(truth, pt=3.0), bias(truth, pt=30.0)
    assert np.all(slow.even > 1e-4)
    np.testing.assert_allclose(fast.even / slow.even, 0.1, rtol=0.25)
    np.testing.assert_allclose(slow.odd, 0.0, atol=0.01 * slow.even.max())


def test_turned_layers_bias_the_charges_against_each_other() -> None:
    r"""Modules moved by :math:`r\Delta\varphi = A \rho^2`: hits seem to be moved by -A r^2/(1 m)^2.

    A track of q > 0 in B > 0 turns to smaller phi: :math:`\varphi = \varphi_0 - \kappa r/2`, with
    :math:`\kappa = a B q/p_T`. Hits that are too far back make it bend more: :math:`\Delta\kappa = 2 A/(1 m)^2`, so
    odd = 2 A/(1 m)^2 pT/(a B), which grows with pT.
    """
    amplitude = 2e-3
    truth = amplitude * mode_parameters(BARREL, "curl")
    central = np.array([-0.3, 0.3])
    per_gev = 2.0 * amplitude / 1e4 / (0.00299792458 * 3.8)
    for pt in (10.0, 40.0):
        found = momentum_bias(BARREL, FIELD, truth, NOMINAL, pt, central, 16)
        np.testing.assert_allclose(found.odd, per_gev * pt, rtol=0.05)
        np.testing.assert_allclose(found.even, 0.0, atol=0.02 * per_gev * pt)


def test_sagitta_averages_out_over_phi() -> None:
    found = bias(2e-3 * mode_parameters(BARREL, "sagitta"))
    turned = bias(2e-3 * mode_parameters(BARREL, "curl"))
    assert found.odd_rms < 0.15 * turned.odd_rms


@pytest.mark.parametrize("n_slots", [4, 6])
def test_derivatives_times_the_change_are_the_bias(n_slots: int) -> None:
    """To second order: half the change leaves a quarter of the difference."""
    even, odd = bias_combinations(BARREL, FIELD, 10.0, ETA, n_slots, 16)
    assert even.shape == odd.shape == (len(ETA), BARREL.n_units, n_slots)
    truth = misaligned(BARREL, 4, n_slots=n_slots)
    left = []
    for part in (0.5, 1.0):
        found = momentum_bias(BARREL, FIELD, part * truth, np.zeros_like(truth), 10.0, ETA, 16)
        off = []
        for derivative, true in ((even, found.even), (odd, found.odd)):
            linear = np.einsum("eup,up->e", derivative, part * truth)
            assert np.abs(true).max() > 1e-4 * part
            off.append(np.abs(linear - true).max())
        left.append(max(off))
    assert left[1] < 0.02 * max(np.abs(found.even).max(), np.abs(found.odd).max())
    # The gradient of the field along a step is not in the derivatives: a small part stays of first order
    assert left[0] < 0.6 * left[1]


def test_probes() -> None:
    tracks = probe_tracks(BARREL, FIELD, NOMINAL, 5.0, ETA, 8)
    truth = np.asarray(tracks.truth)
    assert len(tracks) == len(ETA) * 2 * 8
    np.testing.assert_allclose(np.cos(truth[:, 1]) / np.abs(truth[:, 0]), 5.0)
    np.testing.assert_array_equal(tracks.charge.reshape(len(ETA), 2, 8)[:, 0], 1)
    np.testing.assert_array_equal(tracks.charge.reshape(len(ETA), 2, 8)[:, 1], -1)
    np.testing.assert_allclose(np.arcsinh(np.tan(truth[:, 1])).reshape(len(ETA), -1).T, np.tile(ETA, (16, 1)))


def test_in_the_whole_tracker() -> None:
    """Up to |eta| = 2.4 every probe has a fit, and the field is found again."""
    detector, eta = cms_tracker(), np.array([-2.3, -1.5, 0.0, 1.0, 2.0, 2.4])
    truth = np.zeros((detector.n_units, 4))
    truth[:, 2] = -5e-4
    found = momentum_bias(detector, FIELD, truth, 0.0 * truth, 10.0, eta, 12)
    np.testing.assert_allclose(found.even, -5e-4, rtol=0.03)


def test_where_there_is_no_detector() -> None:
    for function in (lambda eta: momentum_bias(BARREL, FIELD, NOMINAL, NOMINAL, 10.0, eta, 8),
                     lambda eta: bias_combinations(BARREL, FIELD, 10.0, eta, n_phi=8)):  # fmt: skip
        with pytest.raises(InputError, match=r"eta 3: no track of pT 10 GeV has a fit"):
            function(np.array([0.0, 3.0]))
