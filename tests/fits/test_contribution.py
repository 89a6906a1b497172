"""What becomes of a resonance before it is combined: halves of a sample, widths, sectors, calibrations, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.fits.contribution import (
    Contribution,
    contribution_name,
    half_cut,
    half_of,
    of_calibration,
    of_information,
)
from musclecal.fits.normal_equations import seen_directions
from musclecal.fits.scale_information import eta_design, solve_information
from musclecal.records import DimuonEvents, Floats, Muons, ScaleCalibration, ScaleInformation, ScaleParameters
from musclecal.selection import Cuts, select

EDGES = np.array([-1.0, 0.0, 1.0])


def information(seed: int = 1, sectors: int = 1) -> ScaleInformation:
    """Any positive normal matrix of 2 eta bins."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(60, 8 * sectors))
    y = rng.normal(size=60)
    mean_k = np.repeat([0.1, 0.2], sectors)
    return ScaleInformation(
        "Z",
        EDGES,
        sectors,
        rows.T @ rows,
        rows.T @ y,
        float(y @ y),
        60,
        mean_k,
        99.0,
        100.0,
        np.zeros((8 * sectors, 8 * sectors)),
    )


def calibration(covariance: Floats) -> ScaleCalibration:
    values = np.array([1e-4, -2e-4]), np.array([1e-3, 2e-3]), np.array([1e-5, 0.0])
    empty = np.empty(0, dtype=np.int64)
    return ScaleCalibration(
        EDGES, *values, covariance, 0.0, 0, 1.0, 6, 1.0, np.empty(0), empty, np.array([0.1, 0.2]), 0.9, 1.0
    )


def chi2(c: Contribution, correction: Floats) -> float:
    """chi2 up to a constant."""
    step = correction - c.applied
    return float(step @ c.normal @ step - 2.0 * c.vector @ step)


class TestInformation:
    def test_widths_are_free(self) -> None:
        """chi2 after elimination is the minimum of chi2 over the widths, computed by brute force."""
        said = information()
        made = of_information(said, None)
        scale, widths = [0, 1, 2, 4, 5, 6], [3, 7]
        rng = np.random.default_rng(2)

        def smallest(correction: Floats) -> float:
            x = np.zeros(8)
            x[scale] = correction
            own = said.normal[np.ix_(widths, widths)]
            x[widths] = np.linalg.solve(
                own, said.vector[widths] - said.normal[np.ix_(widths, scale)] @ correction
            )
            return float(x @ said.normal @ x - 2.0 * said.vector @ x)

        zero = smallest(np.zeros(6))
        for _ in range(5):
            correction = rng.normal(size=6)
            assert chi2(made, correction) == pytest.approx(smallest(correction) - zero, rel=1e-10)

    def test_noise_of_the_derivatives_is_no_information(self) -> None:
        """One sample says what the template fit itself makes of it: x = (F - N)^-1 v, covariance with F inside."""
        said = information()
        rows = 0.02 * np.random.default_rng(5).normal(size=(8, 60))
        noise = rows @ rows.T
        said = replace(said, noise=noise)
        made = of_information(said, None)
        back = np.linalg.inv(said.normal - noise)
        scale = [0, 1, 2, 4, 5, 6]
        np.testing.assert_allclose(
            np.linalg.solve(made.normal, made.vector), (back @ said.vector)[scale], rtol=1e-9
        )
        covariance = (back @ said.normal @ back)[np.ix_(scale, scale)]
        np.testing.assert_allclose(np.linalg.inv(made.normal), covariance, rtol=1e-9, atol=1e-12)
        fit = solve_information(said, eta_design(said, ("A", "e", "M", "width"))).only(scale)
        np.testing.assert_allclose(fit.values, (back @ said.vector)[scale], rtol=1e-9)
        np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-9, atol=1e-12)

    def test_a_width_that_nothing_measures_is_no_obstacle(self) -> None:
        said = information()
        keep = np.ones(8)
        keep[7] = 0.0
        made = of_information(
            replace(said, normal=said.normal * np.outer(keep, keep), vector=said.vector * keep), None
        )
        assert np.all(np.isfinite(made.normal))
        assert len(seen_directions(made.normal)[1]) == 6

    def test_sectors_are_taken_together(self) -> None:
        said = information(sectors=3)
        together = np.zeros((24, 8))
        for region in range(6):
            together[4 * region : 4 * region + 4, 4 * (region // 3) : 4 * (region // 3) + 4] = np.eye(4)
        merged = replace(
            information(), normal=together.T @ said.normal @ together, vector=together.T @ said.vector
        )
        one, other = of_information(said, None), of_information(merged, None)
        np.testing.assert_allclose(one.normal, other.normal, rtol=1e-10)
        np.testing.assert_allclose(one.vector, other.vector, rtol=1e-10)
        np.testing.assert_allclose(one.mean_k, [0.1, 0.2])

    def test_what_was_applied_counts(self) -> None:
        applied = ScaleParameters(EDGES, np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0]))
        made = of_information(information(), applied)
        np.testing.assert_array_equal(made.applied, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0])
        origin = np.arange(6.0)
        moved = replace(made, applied=origin, vector=made.vector_about(origin))
        one, two = np.ones(6), np.linspace(-1.0, 2.0, 6)
        assert chi2(made, one) - chi2(made, two) == pytest.approx(
            chi2(moved, one) - chi2(moved, two), rel=1e-9
        )

    def test_refusals(self) -> None:
        said = information()
        applied = ScaleParameters(EDGES + 0.5, *(np.zeros(2),) * 3)
        with pytest.raises(InputError, match="Z odd: the eta bins differ"):
            of_information(said, applied, part="odd")
        with pytest.raises(InputError, match="Z: the information of the template fit is not finite"):
            of_information(replace(said, vector=said.vector * np.nan), None)
        with pytest.raises(InputError, match=r"Z: the relative mass error must not be negative, got -1"):
            of_information(said, None, mass_error=-1.0)
        with pytest.raises(InputError, match="unknown resonance 'W'"):
            of_information(replace(said, resonance="W"), None)


class TestCalibration:
    def test_it_is_its_values_and_the_inverse_of_its_covariance(self) -> None:
        unit = np.array([1e-5, 1e-3, 1e-6, 2e-5, 2e-3, 2e-6])
        root = np.random.default_rng(3).normal(size=(6, 12)) * unit[:, None]
        made = of_calibration("Jpsi", calibration(root @ root.T))
        np.testing.assert_allclose(made.normal @ (root @ root.T), np.eye(6), atol=1e-7)
        np.testing.assert_array_equal(made.applied, [1e-4, 1e-3, 1e-5, -2e-4, 2e-3, 0.0])
        np.testing.assert_array_equal(made.vector, np.zeros(6))
        assert made.events_fraction == 0.9

    def test_a_parameter_that_was_held_is_named(self) -> None:
        with pytest.raises(
            InputError, match="Jpsi: the covariance of the calibration is singular: e1 has no variance"
        ):
            of_calibration("Jpsi", calibration(np.diag([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])))
        with pytest.raises(InputError, match=r"Jpsi: the covariance of the calibration is singular$"):
            of_calibration("Jpsi", calibration(np.ones((6, 6))))


class TestHalves:
    events = DimuonEvents(
        Muons(np.full(9, 30.0), np.zeros(9), np.zeros(9)),
        Muons(np.full(9, 30.0), np.zeros(9), np.ones(9)),
        event=np.array([4, 7, 1_234_567_890_123, 0, 2, 9, 9, 12, 5]),
    )

    def test_each_event_is_in_one_half(self) -> None:
        even, odd = half_of(self.events, "even"), half_of(self.events, "odd")
        assert even.event is not None
        assert odd.event is not None
        np.testing.assert_array_equal(even.event, [4, 0, 2, 12])
        np.testing.assert_array_equal(odd.event, [7, 1_234_567_890_123, 9, 9, 5])
        assert half_of(self.events, "all") is self.events

    @pytest.mark.parametrize("part", ["all", "even", "odd"])
    def test_the_cut_does_the_same(self, part: str) -> None:
        chosen, _ = select(self.events, Cuts(expressions=half_cut(part)))
        expected = half_of(self.events, part)
        assert chosen.event is not None
        assert expected.event is not None
        np.testing.assert_array_equal(chosen.event, expected.event)

    def test_refusals(self) -> None:
        with pytest.raises(InputError, match="part 'odd': the sample has no event numbers"):
            half_of(replace(self.events, event=None), "odd")
        with pytest.raises(InputError, match="known are all, even, odd"):
            half_of(self.events, "first")
        assert contribution_name("Z", "all") == "Z"
        assert contribution_name("Z", "odd") == "Z odd"
