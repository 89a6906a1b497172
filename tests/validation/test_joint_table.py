"""The joint fit as numbers and text, and the error of dk/k at a momentum."""

import json

import numpy as np
import pytest

from musclecal.fits.contribution import of_calibration
from musclecal.fits.joint_fit import joint_fit
from musclecal.records import Floats, JointFit, SampleAgainstRest, ScaleCalibration
from musclecal.scale import relative_correction
from musclecal.validation.joint_table import expected_error, joint_table, joint_text


def calibration(values: Floats, covariance: Floats) -> ScaleCalibration:
    """One with these (n_eta, 3) values."""
    n = len(values)
    a, e, m = values.T
    return ScaleCalibration(
        np.linspace(-2.0, 2.0, n + 1), a, e, m, covariance, 0.0, 0, 1.0, 3 * n, 1.0,
        np.empty(0), np.empty(0, dtype=np.int64), np.full(n, 0.1), 1.0, 1.0,
    )  # fmt: skip


def random_covariance(n_eta: int, seed: int) -> Floats:
    unit = np.tile([1e-5, 2e-4, 1e-6], n_eta)
    root = np.random.default_rng(seed).normal(size=(3 * n_eta, 6 * n_eta)) * unit[:, None]
    return np.asarray(root @ root.T)


@pytest.fixture
def joint() -> JointFit:
    rng = np.random.default_rng(4)
    made = []
    for n, name in enumerate(("Jpsi", "Y1S", "Z")):
        covariance = random_covariance(2, 10 + n)
        values = rng.multivariate_normal(np.zeros(6), covariance).reshape(2, 3)
        made.append(
            of_calibration(name, calibration(values, covariance), part="even" if name == "Z" else "all")
        )
    return joint_fit(made, ["Jpsi", "Z even"])


@pytest.mark.parametrize("pt", [6.0, 40.0])
def test_expected_error_is_that_of_random_corrections(pt: float) -> None:
    covariance = random_covariance(3, 5)
    draws = np.random.default_rng(6).multivariate_normal(np.zeros(9), covariance, size=20_000).reshape(-1, 3)
    square = np.mean([relative_correction(pt, q, *draws.T) ** 2 for q in (1, -1)])
    expected = expected_error(calibration(np.zeros((3, 3)), covariance), pt)
    # 60,000 draws of three correlated parameters.
    assert expected == pytest.approx(np.sqrt(square), rel=0.02)


def test_one_eta_bin_in_closed_form() -> None:
    """What A has to do with M is opposite for the two charges."""
    covariance = np.array([[4e-10, 3e-9, 1e-11], [3e-9, 9e-8, 1e-10], [1e-11, 1e-10, 1e-12]])
    expected = np.sqrt(4e-10 - 2 * 3e-9 / 20.0 + 9e-8 / 400.0 + 1e-12 * 400.0)
    assert expected_error(calibration(np.zeros((1, 3)), covariance), 20.0) == pytest.approx(expected)


def test_the_table_is_json(joint: JointFit) -> None:
    table = json.loads(json.dumps(joint_table(joint), allow_nan=False))
    assert table["used"] == ["Jpsi", "Z even"]
    assert table["kept"] == ["Y1S"]
    assert table["ndf"] == 6
    assert set(table["masses"]) == {"Jpsi", "Z"}
    assert table["masses"]["Z"]["error"] == pytest.approx(2.2e-5, rel=0.1)
    assert [row["name"] for row in table["against_the_others"]] == ["Jpsi", "Y1S", "Z even"]
    assert [row["used"] for row in table["against_the_others"]] == [True, False, True]
    for row, sample in zip(table["against_the_others"], joint.table, strict=True):
        assert row["mean_A"] == sample.mean_A
        assert row["M"] == sample.values[:, 1].tolist()
        assert row["pull_A"] == sample.pulls[:, 0].tolist()


def test_unseen_bins_are_null(joint: JointFit) -> None:
    row = joint.table[0]
    values = row.values.copy()
    values[1] = np.nan
    blind = SampleAgainstRest("x", True, 0.0, 0, 1.0, np.nan, np.nan, values, row.errors)
    unseen = JointFit(**{**vars(joint), "table": (blind,)})
    table = json.loads(json.dumps(joint_table(unseen), allow_nan=False))
    assert table["against_the_others"][0]["A"][1] is None
    assert table["against_the_others"][0]["mean_A"] is None
    assert "x against the others" in joint_text(unseen)


def test_the_text_says_it_all(joint: JointFit) -> None:
    text = joint_text(joint)
    assert "joint fit of Jpsi + Z even; kept for closure: Y1S" in text
    assert f"chi2 {joint.calibration.chi2:.0f}/6" in text
    assert "Jpsi against the others" in text
    assert "Y1S against the fit" in text
    assert f"{1e5 * expected_error(joint.calibration, 40.0):.1f}e-5 at 40 GeV" in text
