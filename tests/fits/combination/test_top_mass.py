"""Published combinations of top-quark masses and cross sections, number by number."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from musclecal.fits.combination import combine, combine_groups, leave_one_out, scan_correlations
from musclecal.records import CorrelationRange, Floats, Measurements

LHC_WEIGHTS = [
    -0.025, 0.075, 0.002, 0.161, 0.172, 0.032, -0.076, -0.015, 0.034, 0.118, 0.343, 0.116, -0.031, 0.009, 0.084
]  # fmt: skip
ATLAS_WEIGHTS = [-0.022, 0.161, 0.044, 0.340, 0.365, 0.111]
CMS_WEIGHTS = [-0.103, 0.012, 0.040, 0.181, 0.673, 0.097, -0.033, 0.012, 0.121]
PULLS = [0.93, -0.15, 1.43, 0.61, -0.51, 1.09, -0.01, 0.96, 0.71, -0.33, -0.47, -0.37, 0.38, 0.31, 1.08]
INTRINSIC = [
    0.054, 0.066, 0.033, 0.152, 0.131, 0.081, 0.043, 0.095, 0.054, 0.119, 0.465, 0.283, 0.075, 0.011, 0.086
]  # fmt: skip
MARGINAL = [
    0.007, 0.080, 0.000, 0.104, 0.206, 0.011, 0.072, 0.001, 0.011, 0.095, 0.103, 0.021, 0.009, 0.007, 0.071
]  # fmt: skip
LEAVE_OUT_MEV = [18, 11, -4, 41, 89, -34, -33, 8, -18, 14, 76, 36, 21, -11, -115]
SPLIT = {
    "bJES": 0.176, "Stat": 0.142, "BTAG": 0.086, "MCGEN": 0.082, "JES1": 0.081, "JES2": 0.077, "METH": 0.069,
    "SLEPB": 0.066, "RAD": 0.056, "LES": 0.054, "JER": 0.047, "TOPPT": 0.046, "BKDT": 0.046, "CR": 0.037,
    "UE": 0.035, "gJES": 0.031, "BKMC": 0.030, "Extra": 0.027, "lJES": 0.027, "CMSJES1": 0.026, "PU": 0.026,
    "JES3": 0.024, "HADR": 0.019, "MET": 0.017, "PDF": 0.015, "TRIG": 0.009,
}  # fmt: skip
SCANS = [
    ("JES2", -0.25, 0.25, 8.4, 8, 7.2, 7),
    ("JES3", 0.25, 0.75, 0.8, 1, 0.1, 0),
    ("bJES", 0.5, 1.0, 25.9, 26, 5.5, 5),
    ("gJES", 0.5, 1.0, 1.5, 2, 0.2, 0),
    ("lJES", -0.25, 0.25, 0.6, 1, 0.1, 0),
    ("JER", -0.25, 0.25, 5.4, 5, 0.7, 1),
    ("LES", -0.25, 0.25, 2.2, 2, 1.6, 2),
    ("BTAG", 0.25, 0.75, 0.8, 1, 1.2, 1),
    ("MET", -0.25, 0.25, 0.1, 0, 0.0, 0),
    ("PU", 0.5, 1.0, 2.0, 2, 0.3, 0),
    ("TRIG", -0.25, 0.25, 0.3, 0, 0.0, 0),
    ("MCGEN", 0.25, 0.75, 0.3, 0, 4.1, 4),
    ("RAD", 0.25, 0.75, 6.8, 7, 0.8, 1),
    ("HADR", -0.75, -0.25, 1.3, 1, 0.1, 0),
    ("CR", 0.25, 0.75, 3.3, 3, 0.7, 1),
    ("UE", 0.25, 0.75, 0.9, 1, 0.3, 0),
    ("PDF", 0.5, 1.0, 0.6, 1, 0.2, 0),
    ("BKDT", -0.25, 0.25, 7.7, 8, 1.7, 2),
    ("BKMC", 0.5, 1.0, 1.7, 2, 0.0, 0),
]
"""Source, range, then dm/2 and dsigma/2 in MeV: recomputed, and as published (0 stands for < 1)."""

Between = Callable[..., tuple[CorrelationRange, ...]]


def errors(measurements: Measurements, statistical: str = "Stat") -> Floats:
    """Statistical and systematic error of the only observable."""
    parts = combine(measurements).split([statistical])
    return np.sqrt([parts[0][0, 0], parts[1][0, 0]])


class TestRun1:
    @pytest.mark.parametrize(
        ("which", "value", "stat", "syst", "chi2", "ndf", "p_value"),
        [
            ("atlas", 172.706, 0.249, 0.413, 3.31, 5, 0.652),
            ("cms", 172.522, 0.137, 0.392, 3.81, 8, 0.874),
            ("lhc", 172.515, 0.142, 0.297, 7.55, 14, 0.911),
        ],
    )
    def test_values(
        self,
        which: str,
        value: float,
        stat: float,
        syst: float,
        chi2: float,
        ndf: int,
        p_value: float,
        request: pytest.FixtureRequest,
    ) -> None:
        given = request.getfixturevalue(which)
        found = combine(given)
        assert found.values[0] == pytest.approx(value, abs=0.0005)
        np.testing.assert_allclose(errors(given), [stat, syst], atol=0.0005)
        assert found.chi2 == pytest.approx(chi2, abs=0.005)
        assert found.ndf == ndf
        assert found.p_value == pytest.approx(p_value, abs=0.0005)

    def test_weights(self, atlas: Measurements, cms: Measurements, lhc: Measurements) -> None:
        for given, expected in ((atlas, ATLAS_WEIGHTS), (cms, CMS_WEIGHTS), (lhc, LHC_WEIGHTS)):
            weights = combine(given).weights[0]
            np.testing.assert_allclose(weights, expected, atol=0.00051)
            assert weights.sum() == pytest.approx(1.0, abs=1e-13)

    def test_pulls_and_information_weights(self, lhc: Measurements) -> None:
        found = combine(lhc)
        np.testing.assert_allclose(found.pulls, PULLS, atol=0.0051)
        np.testing.assert_allclose(found.intrinsic_weights[0], INTRINSIC, atol=0.00051)
        assert found.correlation_weights[0] == pytest.approx(-0.749, abs=0.0005)
        np.testing.assert_allclose(found.marginal_weights[0], MARGINAL, atol=0.00051)

    def test_leave_one_out(self, lhc: Measurements) -> None:
        found = combine(lhc)
        shift = 1e3 * (leave_one_out(found).values[:, 0] - found.values[0])
        np.testing.assert_allclose(shift, LEAVE_OUT_MEV, atol=0.51)

    def test_split_by_source(self, lhc: Measurements) -> None:
        found = combine(lhc)
        split = {name: np.sqrt(part[0, 0]) for name, part in found.by_source.items()}
        assert split.keys() == SPLIT.keys()
        for name, expected in SPLIT.items():
            assert split[name] == pytest.approx(expected, abs=0.00051), name

    @pytest.mark.parametrize(("source", "low", "high", "m", "m_table", "sigma", "sigma_table"), SCANS)
    def test_correlation_scans(
        self, source: str, low: float, high: float, m: float, m_table: int, sigma: float, sigma_table: int,
        lhc: Measurements, between: Between,
    ) -> None:  # fmt: skip
        scan = scan_correlations(lhc, {source: between(source, low, high)})[source]
        half_m, half_sigma = 1e3 * scan.half_range_values[0], 1e3 * scan.half_range_errors[0]
        assert half_m == pytest.approx(m, abs=0.051)
        assert half_sigma == pytest.approx(sigma, abs=0.051)
        assert half_m == pytest.approx(m_table, abs=1.0 if m_table == 0 else 0.5)
        assert half_sigma == pytest.approx(sigma_table, abs=1.0 if sigma_table == 0 else 0.55)

    def test_combination_of_the_two_combinations(self, lhc: Measurements) -> None:
        groups = {"ATLAS": range(6), "CMS": range(6, 15)}
        found = combine_groups(lhc.values, lhc.covariances, groups)
        assert found.parts["ATLAS"].values[0] == pytest.approx(172.706, abs=0.0005)
        assert found.parts["CMS"].values[0] == pytest.approx(172.522, abs=0.0005)
        both = found.combined
        assert both.values[0] == pytest.approx(172.598, abs=0.0005)
        stat, syst = both.split(["Stat"])
        np.testing.assert_allclose(np.sqrt([stat[0, 0], syst[0, 0]]), [0.130, 0.309], atol=0.0005)
        assert both.chi2 == pytest.approx(0.10, abs=0.005)
        assert both.p_value == pytest.approx(0.756, abs=0.0005)
        covariance = both.input_covariance
        rho = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        assert rho == pytest.approx(0.138, abs=0.0005)


class TestSevenTeV:
    """ATLAS-CONF-2013-102: 173.29 +- 0.23 +- 0.92 GeV; further digits from the public code tomneep/blue."""

    def test_one_observable(self, lhc_7tev: Measurements) -> None:
        found = combine(lhc_7tev)
        assert found.values[0] == pytest.approx(173.2888, abs=5e-5)
        np.testing.assert_allclose(errors(lhc_7tev, "Stats"), [0.2300, 0.9180], atol=5e-5)
        assert found.chi2 == pytest.approx(1.7995, abs=5e-5)
        assert found.ndf == 4
        assert found.p_value == pytest.approx(0.7726, abs=5e-5)
        np.testing.assert_allclose(
            found.weights[0], [0.22670, 0.03664, 0.60473, -0.08177, 0.21370], atol=5.1e-6
        )
        np.testing.assert_allclose(
            1e2 * found.intrinsic_weights[0], [37.4, 34.0, 79.2, 38.9, 45.0], atol=0.051
        )
        assert 1e2 * found.correlation_weights[0] == pytest.approx(-134.4, abs=0.051)
        np.testing.assert_allclose(1e2 * found.marginal_weights[0], [8.2, 0.2, 25.0, 0.6, 4.3], atol=0.051)

    def test_three_observables(self, lhc_7tev: Measurements) -> None:
        design = np.zeros((5, 3))
        design[np.arange(5), [0, 1, 0, 1, 2]] = 1.0
        given = replace(lhc_7tev, design=design, observables=("lepton + jets", "dilepton", "all jets"))
        found = combine(given)
        np.testing.assert_allclose(found.values, [173.1755, 172.8466, 173.6361], atol=5.1e-5)
        rho = found.covariance / np.outer(found.errors, found.errors)
        np.testing.assert_allclose([rho[0, 1], rho[0, 2], rho[1, 2]], [0.72, 0.56, 0.70], atol=0.0051)

    def test_two_observables(self, lhc_7tev: Measurements) -> None:
        design = np.zeros((5, 2))
        design[np.arange(5), [0, 0, 1, 1, 1]] = 1.0
        found = combine(replace(lhc_7tev, design=design, observables=("ATLAS", "CMS")))
        np.testing.assert_allclose(found.values, [172.6958, 173.5008], atol=5.1e-5)
        assert found.covariance[0, 1] / np.prod(found.errors) == pytest.approx(0.33, abs=0.005)

    @pytest.mark.parametrize(("inputs", "value"), [([0, 1], 172.6492), ([2, 3, 4], 173.5834)])
    def test_one_experiment(self, inputs: list[int], value: float, lhc_7tev: Measurements) -> None:
        square = np.ix_(inputs, inputs)
        found = combine(
            replace(
                lhc_7tev,
                values=lhc_7tev.values[inputs],
                design=lhc_7tev.design[inputs],
                names=tuple(lhc_7tev.names[i] for i in inputs),
                sources={
                    name: replace(s, shifts=s.shifts[inputs], correlation=s.correlation[square])
                    for name, s in lhc_7tev.sources.items()
                },
            )
        )
        assert found.values[0] == pytest.approx(value, abs=5.1e-5)


def test_cross_section(ttbar: Measurements) -> None:
    """ATLAS-CONF-2014-054."""
    found = combine(ttbar)
    assert found.values[0] == pytest.approx(241.4645, abs=5.1e-5)
    np.testing.assert_allclose(found.weights[0], [0.72487, 0.27513], atol=5.1e-6)
    assert found.chi2 == pytest.approx(0.0540, abs=5.1e-5)
    assert found.ndf == 1
    covariance = found.input_covariance
    np.testing.assert_allclose(
        [covariance[0, 0], covariance[0, 1], covariance[1, 1]], [89.0, 30.135, 185.22], rtol=1e-12
    )
    assert covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]) == pytest.approx(0.235, abs=5e-4)
