"""The joint fit against stacked least squares, injected truth over many seeds, closed forms, the template engine."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.stats import kstest

from musclecal.apply import correct
from musclecal.binning import TemplateBinning
from musclecal.covariance import chi2_of
from musclecal.errors import InputError
from musclecal.fits.contribution import Contribution, of_calibration, of_information, sample_and_part
from musclecal.fits.joint_fit import joint_fit, refuse_if_used
from musclecal.fits.scale_information import scale_information
from musclecal.fits.template_closure import bin_information, log_derivatives
from musclecal.fits.templates import fill_templates
from musclecal.records import Floats, Ints, JointFit, ScaleCalibration, ScaleInformation, ScaleParameters
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, simulate

N_ETA = 4
EDGES = np.array([-2.4, -1.0, 0.0, 1.0, 2.4])
SIZE = np.tile([3e-4, 2e-3, 2e-5], N_ETA)
"""Usual A (1), e (GeV), M (1/GeV)."""

PT_CLASSES = {"Jpsi": (4.5, 6.0, 9.0, 18.0), "Y1S": (4.5, 5.5, 7.0, 11.0), "Z": (34.0, 38.0, 43.0, 48.0)}
ERRORS = {"Jpsi": 6e-5, "Y1S": 12e-5, "Z": 6e-5}
"""Of the mass scale of one 4D bin."""


@dataclass(frozen=True)
class FisherModel:
    """rows : (n_row, 3 n_eta) of A, e, M; widths : (n_row, n_eta); mass : (n_row,); all over the error of the row."""

    resonance: str
    rows: Floats
    widths: Floats
    mass: Floats
    mean_k: Floats

    def information(
        self, measured: Floats, applied: ScaleParameters | None = None, phi_sectors: int = 1
    ) -> ScaleInformation:
        """What is left to be said after ``applied``; region = eta bin x sector, everything in sector 0."""
        left = measured - (0.0 if applied is None else self.rows @ applied.parameters)
        n_eta = self.widths.shape[1]
        design = np.zeros((len(left), n_eta, phi_sectors, 4))
        design[:, :, 0, :3] = self.rows.reshape(-1, n_eta, 3)
        design[:, :, 0, 3] = self.widths
        flat = design.reshape(len(left), -1)
        return ScaleInformation(
            self.resonance, EDGES, phi_sectors, flat.T @ flat, flat.T @ left, float(left @ left), len(left),
            np.repeat(self.mean_k, phi_sectors), 990.0, 1000.0, np.zeros((flat.shape[1], flat.shape[1])),
        )  # fmt: skip

    def without(self, eta_bin: int) -> "FisherModel":
        """The same without muons in one eta bin."""
        keep = ~np.any(self.rows.reshape(len(self.rows), -1, 3)[:, eta_bin] != 0.0, axis=1)
        keep &= self.widths[:, eta_bin] == 0.0
        return replace(self, rows=self.rows[keep], widths=self.widths[keep], mass=self.mass[keep])


def _muon(bins: Ints, charge: int, k: Floats, f: Floats) -> Floats:
    """(n_bin, 3 n_eta): d ln m by A, e, M of one muon."""
    out = np.zeros((len(bins), N_ETA, 3))
    out[np.arange(len(bins)), bins] = 0.5 * f[:, None] * np.stack([np.ones_like(k), -k, charge / k], axis=1)
    return out.reshape(len(bins), -1)


def fisher_model(name: str, seed: int = 0) -> FisherModel:
    """All pairs of eta bins and pT classes."""
    rng = np.random.default_rng([seed, sum(map(ord, name))])
    pt = np.array(PT_CLASSES[name])
    shape = (N_ETA, N_ETA, len(pt), len(pt))
    i, j, a, b = (x.ravel() for x in np.indices(shape))
    k_plus, k_minus = (1.0 / (pt[c] * rng.uniform(0.93, 1.07, len(i))) for c in (a, b))
    # As far as a mass shift is concerned f is one; it is, but at the J/psi.
    f_plus, f_minus = rng.uniform(0.98, 0.9975, (2, len(i))) if name == "Jpsi" else np.ones((2, len(i)))
    scale = _muon(i, +1, k_plus, f_plus) + _muon(j, -1, k_minus, f_minus)
    width = np.eye(N_ETA)[i] + np.eye(N_ETA)[j]
    error = ERRORS[name] * rng.uniform(0.7, 1.4, len(i))[:, None]
    width_error = 5e-6 * rng.uniform(0.7, 1.4, len(i))[:, None]
    pulled = rng.uniform(2.0, 6.0, len(i))[:, None]
    return FisherModel(
        resonance=name,
        rows=np.concatenate([scale / error, np.zeros_like(scale)]),
        widths=np.concatenate([pulled * width / error, width / width_error]),
        mass=np.concatenate([1.0 / error[:, 0], np.zeros(len(i))]),
        mean_k=np.full(N_ETA, float(np.mean(1.0 / pt))),
    )


def measurement(
    model: FisherModel,
    truth: Floats,
    *,
    widths: Floats | None = None,
    mass_shift: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Floats:
    """(n_row,) in units of their errors; with noise of ``rng``."""
    expected = model.rows @ truth + model.mass * mass_shift
    if widths is not None:
        expected = expected + model.widths @ widths
    return np.asarray(expected if rng is None else expected + rng.normal(size=len(expected)))


def scale_of(parameters: Floats) -> ScaleParameters:
    """A correction from its (3 n_eta,) parameters."""
    a, e, m = parameters.reshape(-1, 3).T
    return ScaleParameters(EDGES, a.copy(), e.copy(), m.copy())


NAMES = ("Jpsi", "Y1S", "Z")
MODELS = {name: fisher_model(name) for name in NAMES}
MASS_ERRORS = {"Jpsi": 0.0, "Y1S": 4e-5, "Z": 8e-5}
"""Larger than in truth, to be of the size of the statistical errors."""


def random_scale(seed: int, size: float = 1.0) -> Floats:
    """(3 n_eta,) a random correction of the usual size."""
    return np.asarray(size * SIZE * np.random.default_rng(seed).normal(size=len(SIZE)))


def contributions(
    truth: Floats, rng: np.random.Generator | None = None, masses: dict[str, float] | None = None, n: int = 3
) -> list[Contribution]:
    """The three resonances, each corrected with something else before, each with other widths."""
    made = []
    for number, name in enumerate(NAMES[:n]):
        widths = 1e-5 * np.random.default_rng([number, 5]).normal(size=N_ETA)
        shift = 0.0 if masses is None else masses[name]
        measured = measurement(MODELS[name], truth, widths=widths, mass_shift=shift, rng=rng)
        applied = scale_of(random_scale(100 + number)) if number else None
        information = MODELS[name].information(measured, applied, phi_sectors=1 + number)
        made.append(of_information(information, applied, mass_error=MASS_ERRORS[name]))
    return made


class TestNoiseless:
    def test_the_truth_comes_back_from_three_samples_corrected_with_three_different_things(self) -> None:
        truth = random_scale(1)
        joint = joint_fit(contributions(truth))
        np.testing.assert_allclose(joint.calibration.parameters / SIZE, truth / SIZE, atol=1e-9)
        assert joint.calibration.chi2 < 1e-8
        assert joint.calibration.ndf == 2 * len(SIZE)
        assert joint.used == NAMES
        assert joint.kept == ()
        np.testing.assert_allclose(joint.mass_shifts, 0.0, atol=1e-12)
        for row in joint.table:
            assert row.used
            assert row.chi2 < 1e-8
            assert row.ndf == len(SIZE)
            np.testing.assert_allclose(row.values / SIZE.reshape(-1, 3)[:, [0, 2]], 0.0, atol=1e-8)
            assert abs(row.mean_A) < 1e-12

    @pytest.mark.parametrize("name", ["Jpsi", "Y1S"])
    def test_each_parameter_alone_from_one_sample(self, name: str) -> None:
        for p in range(len(SIZE)):
            truth = SIZE * (np.arange(len(SIZE)) == p)
            made = of_information(MODELS[name].information(measurement(MODELS[name], truth)), None)
            found = joint_fit([made])
            np.testing.assert_allclose(found.calibration.parameters / SIZE, truth / SIZE, atol=1e-9)
            assert found.calibration.chi2 < 1e-9
            assert (found.calibration.ndf, found.calibration.p_value) == (0, 1.0)
            assert found.table == ()

    def test_a_calibration_is_as_good_as_the_information_that_it_was_made_from(self) -> None:
        made = contributions(random_scale(2), np.random.default_rng(3))
        alone = joint_fit([made[0]]).calibration
        with_values = joint_fit([of_calibration("Jpsi", alone, mass_error=0.0), *made[1:]])
        direct = joint_fit(made)
        np.testing.assert_allclose(
            with_values.calibration.parameters / SIZE, direct.calibration.parameters / SIZE, atol=1e-8
        )
        assert with_values.calibration.chi2 == pytest.approx(direct.calibration.chi2, rel=1e-6)
        np.testing.assert_allclose(
            with_values.calibration.covariance / np.outer(SIZE, SIZE),
            direct.calibration.covariance / np.outer(SIZE, SIZE),
            rtol=1e-6,
            atol=1e-12,
        )

    def test_the_change_since_the_last_correction_is_stated(self) -> None:
        truth = random_scale(4)
        made = contributions(truth)
        joint = joint_fit(made)
        assert joint.calibration.residual_chi2 is None
        for c, step in zip(made, joint.largest_steps, strict=True):
            a, e, m = (truth - c.applied).reshape(-1, 3).T
            k = c.mean_k
            expected = max(np.max(np.abs(a - e * k + m / k)), np.max(np.abs(a - e * k - m / k)))
            assert step == pytest.approx(expected)
        applied = scale_of(truth + 0.1 * SIZE)
        again = [
            of_information(MODELS[n].information(measurement(MODELS[n], truth), applied), applied)
            for n in NAMES
        ]
        second = joint_fit(again, passes=2).calibration
        assert second.passes == 2
        assert second.residual_chi2 == pytest.approx(chi2_of(0.1 * SIZE, second.covariance).chi2 / len(SIZE))


def stacked(measured: dict[str, Floats], names: tuple[str, ...]) -> tuple[Floats, Floats, float]:
    """Values, covariance and chi2 of one least-squares problem: A, e, M; all widths; all masses with their priors."""
    rows = np.concatenate([MODELS[n].rows for n in names])
    widths = block_diag(*(MODELS[n].widths for n in names))
    masses = block_diag(*(MASS_ERRORS[n] * MODELS[n].mass[:, None] for n in names))
    top = np.concatenate([rows, widths, masses], axis=1)
    prior = np.concatenate([np.zeros((len(names), top.shape[1] - len(names))), np.eye(len(names))], axis=1)
    design = np.concatenate([top, prior])
    y = np.concatenate([*(measured[n] for n in names), np.zeros(len(names))])
    unit = np.linalg.norm(design, axis=0)
    values = np.linalg.lstsq(design / unit, y, rcond=None)[0] / unit
    covariance = np.linalg.inv((design / unit).T @ (design / unit)) / np.outer(unit, unit)
    return values, covariance, float(np.sum((y - design @ values) ** 2))


class TestAgainstStackedLeastSquares:
    @pytest.fixture
    def noisy(self) -> tuple[dict[str, Floats], list[Contribution]]:
        rng = np.random.default_rng(7)
        measured = {n: measurement(MODELS[n], random_scale(5), rng=rng) for n in NAMES}
        applied = scale_of(random_scale(6))
        made = [
            of_information(MODELS[n].information(measured[n], applied), applied, mass_error=MASS_ERRORS[n])
            for n in NAMES
        ]
        return measured, made

    def test_values_covariance_masses(self, noisy: tuple[dict[str, Floats], list[Contribution]]) -> None:
        measured, made = noisy
        joint = joint_fit(made)
        values, covariance, _ = stacked(measured, NAMES)
        n = len(SIZE)
        np.testing.assert_allclose(joint.calibration.parameters / SIZE, values[:n] / SIZE, atol=1e-8)
        units = np.outer(SIZE, SIZE)
        np.testing.assert_allclose(
            joint.calibration.covariance / units, covariance[:n, :n] / units, atol=1e-10
        )
        errors = np.array([MASS_ERRORS[name] for name in NAMES])
        np.testing.assert_allclose(joint.mass_shifts, errors * values[-3:], atol=1e-12)
        np.testing.assert_allclose(
            joint.mass_shift_errors, errors * np.sqrt(np.diag(covariance)[-3:]), atol=1e-12
        )

    def test_chi2_of_the_agreement(self, noisy: tuple[dict[str, Floats], list[Contribution]]) -> None:
        measured, made = noisy
        joint = joint_fit(made)
        alone = {name: stacked(measured, (name,))[2] for name in NAMES}
        together = stacked(measured, NAMES)[2]
        assert joint.calibration.chi2 == pytest.approx(together - sum(alone.values()), rel=1e-7)
        assert joint.calibration.ndf == 2 * len(SIZE)
        for row in joint.table:
            others = tuple(name for name in NAMES if name != row.name)
            assert row.chi2 == pytest.approx(
                together - alone[row.name] - stacked(measured, others)[2], rel=1e-7
            )
            assert row.ndf == len(SIZE)

    @pytest.mark.parametrize("own", NAMES)
    def test_what_a_sample_wants_beyond_the_others(
        self, own: str, noisy: tuple[dict[str, Floats], list[Contribution]]
    ) -> None:
        measured, made = noisy
        row = next(r for r in joint_fit(made).table if r.name == own)
        per_eta = np.delete(np.eye(len(SIZE)), np.s_[1::3], axis=1)
        common = np.tile([1.0, 0.0, 0.0], N_ETA)[:, None]
        values, errors = self._with_own(measured, own, per_eta)
        np.testing.assert_allclose(row.values.ravel(), values, rtol=1e-6)
        np.testing.assert_allclose(row.errors.ravel(), errors, rtol=1e-6)
        np.testing.assert_allclose(row.pulls.ravel(), values / errors, rtol=1e-6)
        values, errors = self._with_own(measured, own, common)
        assert (row.mean_A, row.mean_A_error) == pytest.approx((values[0], errors[0]), rel=1e-6)

    @staticmethod
    def _with_own(measured: dict[str, Floats], own: str, columns: Floats) -> tuple[Floats, Floats]:
        """The columns are added to the stacked problem in the rows of one sample."""
        rows = [
            np.concatenate([MODELS[n].rows, MODELS[n].rows @ columns * (n == own)], axis=1) for n in NAMES
        ]
        widths = block_diag(*(MODELS[n].widths for n in NAMES))
        masses = block_diag(*(MASS_ERRORS[n] * MODELS[n].mass[:, None] for n in NAMES))
        top = np.concatenate([np.concatenate(rows), widths, masses], axis=1)
        prior = np.eye(top.shape[1])[-3:]
        design = np.concatenate([top, prior])
        y = np.concatenate([*(measured[n] for n in NAMES), np.zeros(3)])
        unit = np.linalg.norm(design, axis=0)
        unit[unit == 0.0] = 1.0
        values = np.linalg.lstsq(design / unit, y, rcond=None)[0] / unit
        errors = np.sqrt(np.diag(np.linalg.pinv((design / unit).T @ (design / unit)))) / unit
        here = slice(len(SIZE), len(SIZE) + columns.shape[1])
        return values[here], errors[here]


@pytest.fixture(scope="module")
def toys() -> list[tuple[Floats, JointFit]]:
    """300 experiments, with masses that are off by their uncertainty at random."""
    made = []
    for seed in range(300):
        rng = np.random.default_rng([seed, 8])
        masses = {name: MASS_ERRORS[name] * rng.normal() for name in NAMES}
        truth = random_scale(seed + 1000)
        made.append((truth, joint_fit(contributions(truth, rng, masses))))
    return made


class TestStatistics:
    def test_pulls_are_unit(self, toys: list[tuple[Floats, JointFit]]) -> None:
        pulls = np.array(
            [(j.calibration.parameters - t) / np.sqrt(np.diag(j.calibration.covariance)) for t, j in toys]
        )
        # 300 toys: 0.058 is one standard error of a mean; neighbouring parameters are correlated.
        assert np.max(np.abs(pulls.mean(axis=0))) < 0.25
        assert np.sqrt(np.mean(pulls**2)) == pytest.approx(1.0, abs=0.04)
        for p in range(3):
            assert np.sqrt(np.mean(pulls[:, p::3] ** 2)) == pytest.approx(1.0, abs=0.06)

    def test_chi2_against_the_truth(self, toys: list[tuple[Floats, JointFit]]) -> None:
        p = [chi2_of(j.calibration.parameters - t, j.calibration.covariance).p_value for t, j in toys]
        assert kstest(p, "uniform").pvalue > 0.01

    def test_p_values_of_the_agreement_are_p_values(self, toys: list[tuple[Floats, JointFit]]) -> None:
        assert kstest([j.calibration.p_value for _, j in toys], "uniform").pvalue > 0.01
        for row in range(3):
            assert kstest([j.table[row].p_value for _, j in toys], "uniform").pvalue > 0.01

    def test_pulls_of_a_sample_against_the_others_are_unit(self, toys: list[tuple[Floats, JointFit]]) -> None:
        for row in range(3):
            mean = np.array([j.table[row].mean_A / j.table[row].mean_A_error for _, j in toys])
            assert mean.std() == pytest.approx(1.0, abs=0.13)
            pulls = np.array([j.table[row].pulls for _, j in toys])
            assert np.sqrt(np.mean(pulls**2)) == pytest.approx(1.0, abs=0.06)


def one_bin(values: Floats, errors: Floats) -> ScaleCalibration:
    """A calibration of one eta bin with independent A, e, M."""
    a, e, m = values[:, None]
    return ScaleCalibration(
        np.array([-1.0, 1.0]), a, e, m, np.diag(errors**2), 0.0, 0, 1.0, 3, 1.0,
        np.empty(0), np.empty(0, dtype=np.int64), np.array([0.1]), 1.0, 1.0,
    )  # fmt: skip


class TestMass:
    """One eta bin, A alone differs: everything has a closed form."""

    first, second, sigma = 3e-5, 5e-5, 8e-5

    def joint(self, shift: float, mass_error: float) -> JointFit:
        errors = np.array([1.0, 1e-3, 1e-5])
        one = one_bin(np.zeros(3), errors * [self.first, 1.0, 1.0])
        two = one_bin(np.array([shift, 0.0, 0.0]), errors * [self.second, 1.0, 1.0])
        return joint_fit(
            [of_calibration("Jpsi", one, mass_error=0.0), of_calibration("Y1S", two, mass_error=mass_error)]
        )

    def test_one_sigma_of_the_mass_goes_where_its_error_is(self) -> None:
        joint = self.joint(self.sigma, self.sigma)
        v1, v2, vm = self.first**2, self.second**2, self.sigma**2
        assert joint.calibration.A[0] == pytest.approx(self.sigma * v1 / (v1 + v2 + vm))
        assert joint.mass_shifts[1] == pytest.approx(self.sigma * vm / (v1 + v2 + vm))
        assert joint.calibration.covariance[0, 0] == pytest.approx(1.0 / (1.0 / v1 + 1.0 / (v2 + vm)))
        assert joint.calibration.chi2 == pytest.approx(vm / (v1 + v2 + vm))
        assert joint.calibration.ndf == 3
        against = joint.table[1]
        assert against.mean_A == pytest.approx(self.sigma)
        assert against.mean_A_error == pytest.approx(np.sqrt(v1 + v2 + vm))

    def test_a_mass_that_is_known_is_not_moved(self) -> None:
        joint = self.joint(self.sigma, 0.0)
        v1, v2 = self.first**2, self.second**2
        assert joint.calibration.A[0] == pytest.approx(self.sigma * v1 / (v1 + v2))
        assert joint.mass_shifts[1] == 0.0
        assert joint.mass_shift_errors[1] == 0.0

    def test_a_mass_that_nobody_knows_leaves_A_to_the_others(self) -> None:
        joint = self.joint(1e-3, 1.0)
        assert joint.calibration.A[0] == pytest.approx(0.0, abs=1e-9)
        assert joint.mass_shifts[1] == pytest.approx(1e-3, rel=1e-4)
        assert joint.calibration.chi2 < 1e-4

    def test_the_default_is_the_uncertainty_of_the_particle_data_group(self) -> None:
        made = of_information(MODELS["Z"].information(measurement(MODELS["Z"], SIZE)), None)
        line = resonance("Z").line
        assert made.mass_error == line.mass_error / line.mass
        assert 1e-5 < made.mass_error < 4e-5

    def test_two_halves_of_a_resonance_share_its_mass(self) -> None:
        """A wrong mass is in both halves: one closes on the other, but not on the J/psi."""
        made = []
        for part in ("even", "odd"):
            information = MODELS["Z"].information(
                measurement(MODELS["Z"], np.zeros(len(SIZE)), mass_shift=1e-3)
            )
            made.append(of_information(information, None, part=part, mass_error=1e-4))
        jpsi = contributions(np.zeros(len(SIZE)), n=1)[0]
        row = joint_fit([jpsi, *made], ["Jpsi", "Z even"]).table[2]
        assert (row.name, row.used) == ("Z odd", False)
        assert row.mean_A == pytest.approx(0.0, abs=0.5 * row.mean_A_error)
        assert row.mean_A_error < 3e-5
        alone = joint_fit([jpsi, made[0]], ["Jpsi"]).table[1]
        assert alone.mean_A == pytest.approx(1e-3, rel=1e-3)
        assert alone.mean_A_error > 1e-4


class TestWhatIsFixed:
    def test_the_z_breaks_the_degeneracy_of_the_jpsi(self) -> None:
        made = [replace(c, mass_error=0.0) for c in contributions(random_scale(9))]
        alone, joint = joint_fit(made[:1]).calibration, joint_fit([made[0], made[2]]).calibration

        def tied(c: ScaleCalibration) -> Floats:
            sigma = np.sqrt(np.diag(c.covariance))
            return np.asarray((np.diag(c.covariance, 1) / sigma[:-1] / sigma[1:])[0::3])

        def error_at_40(c: ScaleCalibration) -> float:
            return float(np.sqrt(np.array([1.0, -1.0 / 40.0]) @ c.covariance[:2, :2] @ [1.0, -1.0 / 40.0]))

        assert np.all(tied(alone) > 0.9)
        assert np.all(tied(joint) < np.minimum(tied(alone), 0.9))
        assert error_at_40(joint) < 0.5 * error_at_40(alone)

    def test_the_z_alone_does_not_fix_e(self) -> None:
        with pytest.raises(
            InputError, match=r"joint fit of Z: e\[.*\] is not fixed, its correlation with A\[.* is 0.99"
        ):
            joint_fit(contributions(random_scale(10))[2:])

    def test_but_its_agreement_with_the_jpsi_is_known(self) -> None:
        """Leaving the J/psi out leaves a fit that says nothing about e; the comparison does not need it."""
        rng = np.random.default_rng(11)
        made = contributions(random_scale(12), rng)
        joint = joint_fit([made[0], made[2]])
        for row in joint.table:
            assert row.ndf == len(SIZE)
            assert row.chi2 == pytest.approx(joint.calibration.chi2, rel=1e-6)
            assert np.all(np.isfinite(row.pulls))

    def test_an_eta_bin_that_only_one_sample_sees(self) -> None:
        truth = random_scale(13)
        jpsi = contributions(truth)[0]
        model = MODELS["Z"].without(3)
        z = of_information(model.information(measurement(model, truth)), None, mass_error=0.0)
        joint = joint_fit([jpsi, z])
        np.testing.assert_allclose(joint.calibration.parameters / SIZE, truth / SIZE, atol=1e-9)
        assert joint.calibration.ndf == 9
        for row in joint.table:
            assert row.ndf == 9
            np.testing.assert_array_equal(np.isnan(row.values[:, 0]), [False, False, False, True])
            np.testing.assert_array_equal(np.isnan(row.errors), np.isnan(row.values))
            assert np.isfinite(row.mean_A)

    def test_an_eta_bin_that_nobody_sees_is_named(self) -> None:
        models = [MODELS[n].without(3) for n in ("Jpsi", "Z")]
        made = [of_information(m.information(measurement(m, random_scale(14))), None) for m in models]
        with pytest.raises(InputError, match=r"Jpsi \+ Z: 3 combinations .* not fixed, first: .*\[1, 2.4\]"):
            joint_fit(made)

    def test_samples_without_anything_in_common_are_not_compared(self) -> None:
        left, right = MODELS["Jpsi"].without(2).without(3), MODELS["Y1S"].without(0).without(1)
        made = [
            of_information(m.information(measurement(m, random_scale(15))), None, mass_error=0.0)
            for m in (left, right)
        ]
        joint = joint_fit(made)
        assert joint.calibration.ndf == 0
        for row in joint.table:
            assert (row.ndf, row.p_value) == (0, 1.0)
            assert np.all(np.isnan(row.values))
            assert np.isnan(row.mean_A)


class TestChoice:
    def test_what_goes_into_the_record(self) -> None:
        """Curvatures are averaged with the weights on A, and the events used are those of the worst sample."""
        made = contributions(random_scale(22), n=2)
        weights = [np.diagonal(c.normal)[::3] for c in made]
        made[1] = replace(made[1], events_fraction=0.5)
        found = joint_fit(made).calibration
        expected = (weights[0] * made[0].mean_k + weights[1] * made[1].mean_k) / (weights[0] + weights[1])
        np.testing.assert_allclose(found.mean_k, expected)
        assert found.mean_k[0] != pytest.approx(0.5 * (made[0].mean_k[0] + made[1].mean_k[0]), rel=1e-3)
        assert (found.events_fraction, found.converged_fraction) == (0.5, 0.5)
        assert (found.rank, found.pulls.shape, found.bins.shape) == (12, (0,), (0,))

    def test_what_is_kept_does_not_move_the_fit(self) -> None:
        made = contributions(random_scale(16), np.random.default_rng(17))
        joint, alone = joint_fit(made, ["Jpsi", "Z"]), joint_fit([made[0], made[2]])
        assert joint.used == ("Jpsi", "Z")
        assert joint.kept == ("Y1S",)
        assert joint.mass_resonances == ("Jpsi", "Z")
        np.testing.assert_array_equal(joint.calibration.parameters, alone.calibration.parameters)
        np.testing.assert_array_equal(joint.calibration.covariance, alone.calibration.covariance)
        kept = joint.table[1]
        assert (kept.name, kept.used) == ("Y1S", False)
        left_out = next(row for row in joint_fit(made).table if row.name == "Y1S")
        assert kept.chi2 == pytest.approx(left_out.chi2)
        assert kept.mean_A == pytest.approx(left_out.mean_A)

    def test_a_bias_of_one_sample_stands_out(self) -> None:
        made = contributions(
            random_scale(18), np.random.default_rng(19), {"Jpsi": 0.0, "Y1S": 0.0, "Z": 8e-4}
        )
        joint = joint_fit(made)
        assert joint.calibration.p_value < 1e-6
        rows = {row.name: row for row in joint.table}
        assert rows["Z"].mean_A == pytest.approx(8e-4, abs=4.0 * rows["Z"].mean_A_error)
        assert rows["Z"].p_value < 1e-6

    @pytest.mark.parametrize(
        ("use", "resonance_name", "part", "refused"),
        [
            (("Jpsi", "Z"), "Z", "all", "Z"),
            (("Jpsi", "Z"), "Z", "odd", "Z odd"),
            (("Jpsi", "Z"), "Y1S", "all", None),
            (("Jpsi", "Z even"), "Z", "odd", None),
            (("Jpsi", "Z even"), "Z", "even", "Z even"),
            (("Jpsi", "Z even"), "Z", "all", "Z"),
        ],
    )
    def test_no_closure_on_what_was_used(
        self, use: tuple[str, ...], resonance_name: str, part: str, refused: str | None
    ) -> None:
        if refused is None:
            refuse_if_used(use, ["Y1S"], resonance_name, part)
            return
        words = f"closure at {refused}: the joint fit used Z.*no closure"
        with pytest.raises(InputError, match=f"{words}; close on what it kept: Y1S, psi2S"):
            refuse_if_used(use, ["Y1S", "psi2S"], resonance_name, part)
        with pytest.raises(InputError, match=f"{words}; it kept nothing to close on"):
            refuse_if_used(use, [], resonance_name, part)

    def test_bad_input_is_named(self) -> None:
        made = contributions(random_scale(21))
        z = made[2]
        half = replace(z, part="even")
        moved = replace(made[1], eta_edges=EDGES + 0.1)
        for samples, use, words in (
            ([], None, "no sample"),
            (made, ["psi2S"], "no sample 'psi2S' to use: there are Jpsi, Y1S, Z"),
            (made, [], "no sample is used"),
            ([made[0], moved], None, "the eta bins of Y1S differ from those of Jpsi"),
            ([z, half], None, "Z and Z even share events"),
            ([half, half], None, "Z even and Z even share events"),
            (
                [half, replace(z, part="odd", mass_error=1e-3)],
                None,
                "Z even and Z odd have different mass errors",
            ),
        ):
            with pytest.raises(InputError, match=words):
                joint_fit(samples, use)
        with pytest.raises(InputError, match="part 'first' of the Z sample"):
            refuse_if_used(["Z"], [], "Z", "first")
        with pytest.raises(InputError, match="part 'first' of the Z sample"):
            sample_and_part("Z first")


class TestOnTemplates:
    """Signs end to end: simulated events with a large injected truth and another mass, by the template engine."""

    edges = (-2.4, 0.0, 2.4)
    truth = ScaleParameters(
        np.array(edges), np.array([8e-4, -6e-4]), np.array([-5e-3, 6e-3]), np.array([8e-5, -5e-5])
    )

    def contribution(
        self, name: str, n: int, *, mass_shift: float = 0.0, mass_error: float = 0.0
    ) -> Contribution:
        r = resonance(name)
        line = replace(r.line, mass=r.line.mass * (1.0 + mass_shift))
        low, high = {"Jpsi": (4.0, 50.0), "Z": (25.0, 100.0)}[name]
        wide = tuple(f * m for f, m in zip((0.96, 1.04), r.mass_window, strict=True))
        settings = SimulationSettings(
            r, (0.95 * low, 1.05 * high), (-2.4, 2.4), (wide[0], wide[1]), fsr=False
        )
        pt = (4.0, 6.0, 9.0, 60.0) if name == "Jpsi" else (10.0, 200.0)
        asymmetry = (-1.0, -0.3, 0.0, 0.3, 1.0) if name == "Jpsi" else (-1.0, -0.1, 0.1, 1.0)
        axes = TemplateBinning(self.edges, asymmetry, pt, (low, high), r.mass_window, 32, r.line.mass)
        moved = replace(settings, resonance=replace(r, line=line), truth=self.truth)
        applied = ScaleParameters(
            np.array(self.edges), 0.7 * self.truth.A, 0.7 * self.truth.e, 0.7 * self.truth.M
        )
        simulated = fill_templates(simulate(settings, 3 * n, 31), axes, step=0.01)
        data = fill_templates((correct(x, applied) for x in simulate(moved, n, 32)), axes, step=0.01)
        bins = bin_information(data, simulated, log_derivatives(data, simulated))
        return of_information(scale_information(bins, name), applied, mass_error=mass_error)

    @pytest.mark.slow
    def test_truth_and_mass_come_back(self) -> None:
        jpsi = self.contribution("Jpsi", 120_000)
        z = self.contribution("Z", 120_000, mass_shift=1e-3, mass_error=1e-2)
        joint = joint_fit([jpsi, z])
        difference = joint.calibration.parameters - self.truth.parameters
        assert chi2_of(difference, joint.calibration.covariance).p_value > 1e-3
        pulls = self.truth.parameters / np.sqrt(np.diag(joint.calibration.covariance))
        assert np.all(np.abs(pulls).reshape(-1, 3).mean(axis=0) > 5.0)
        assert joint.mass_shifts[1] == pytest.approx(1e-3, abs=4.0 * joint.mass_shift_errors[1])
        assert joint.mass_shift_errors[1] < 2e-4
