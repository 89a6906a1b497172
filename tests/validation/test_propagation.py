"""Propagation to masses: algebra against brute force and toys, known sizes of the sensitivities, refusals."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator

from musclecal.boson_simulation import DRAWS
from musclecal.covariance import eigenvariations
from musclecal.errors import InputError
from musclecal.records import BosonTemplates, Floats
from musclecal.simulate import no_bias
from musclecal.validation.propagation import (
    Source,
    calibration_sources,
    derivative_noise,
    fitted_shift,
    impacts_table,
    mass_impacts,
    only_groups,
    sensitivity_by_group,
)
from musclecal.validation.w_templates import WBinning, w_templates
from musclecal.validation.z_templates import ZBinning, z_templates

N_ETA = 4
UNITS = np.array([1e-5, 1e-3, 1e-6])
"""1e-5 in A, 1 MeV in e, 1e-6/GeV in M."""


def positive(rng: Generator, n: int, size: Floats) -> Floats:
    """(n, n) a covariance of standard deviations about ``size`` and correlations of all sizes."""
    root = rng.normal(size=(n, 2 * n)) / np.sqrt(2 * n) * size[:, None]
    return np.asarray(root @ root.T)


@pytest.fixture(scope="module")
def w() -> BosonTemplates:
    edges = tuple(float(x) for x in np.linspace(-2.4, 2.4, N_ETA + 1))
    return w_templates(WBinning(edges), n_draws=8 * DRAWS, threads=1)


@pytest.fixture(scope="module")
def z() -> BosonTemplates:
    edges = tuple(float(x) for x in np.linspace(-2.4, 2.4, N_ETA + 1))
    return z_templates(ZBinning(edges), n_draws=8 * DRAWS, threads=1)


@pytest.fixture(scope="module")
def toy() -> BosonTemplates:
    """Two yield groups, two eta bins, random derivatives; d counts/dm in one direction that nothing else repeats."""
    rng = np.random.default_rng(1)
    n = 12
    counts = rng.uniform(50.0, 200.0, n)
    return BosonTemplates(
        "W",
        np.array([-1.0, 0.0, 1.0]),
        np.repeat([0, 1], n // 2),
        ("one", "two"),
        counts,
        counts * rng.normal(size=n),
        np.zeros(n),
        counts[:, None] * rng.normal(size=(n, 6)),
        counts[:, None] * rng.normal(size=(n, 6)),
        1000,
    )


@pytest.fixture(scope="module")
def toy_sources() -> tuple[Source, ...]:
    rng = np.random.default_rng(2)
    return calibration_sources(
        2,
        calibration=positive(rng, 6, np.full(6, 0.05)),
        s=2.1,
        closure=positive(rng, 4, np.full(4, 0.04)),
        mass_error=0.03,
        resolution=positive(rng, 4, np.full(4, 0.05)),
    )


def design(templates: BosonTemplates, sources: tuple[Source, ...], luminosity: float) -> Floats:
    """(n_cell, 1 + n_group + n_nuisance) derivatives of the expected counts by mass, ln yields and nuisances."""
    n = luminosity * templates.counts
    yields = np.stack(
        [np.where(templates.groups == g, n, 0.0) for g in range(len(templates.group_names))], axis=1
    )
    nuisances = [
        luminosity
        * (templates.scale_derivative @ s.scale.T + templates.resolution_derivative @ s.resolution.T)
        for s in sources
    ]
    return np.concatenate([luminosity * templates.mass_derivative[:, None], yields, *nuisances], axis=1)


def hessian(templates: BosonTemplates, sources: tuple[Source, ...], luminosity: float) -> Floats:
    """Of the full fit, nothing eliminated."""
    matrix = design(templates, sources, luminosity)
    n_free = 1 + len(templates.group_names)
    prior = np.diag(np.r_[np.zeros(n_free), np.ones(matrix.shape[1] - n_free)])
    return np.asarray(matrix.T @ (matrix / (luminosity * templates.counts)[:, None]) + prior)


def test_errors_are_those_of_the_full_fit(toy: BosonTemplates, toy_sources: tuple[Source, ...]) -> None:
    """Yields and nuisances not eliminated but inverted: statistical and total error, frozen impacts."""
    impacts = mass_impacts(toy, toy_sources, luminosity=0.7)

    def error(sources: tuple[Source, ...]) -> float:
        return 1e3 * float(np.sqrt(np.linalg.inv(hessian(toy, sources, 0.7))[0, 0]))

    assert impacts.statistical == pytest.approx(error(()), rel=1e-10)
    assert impacts.total_error == pytest.approx(error(toy_sources), rel=1e-10)
    for n in range(len(toy_sources)):
        others = toy_sources[:n] + toy_sources[n + 1 :]
        frozen = np.sqrt(error(toy_sources) ** 2 - error(others) ** 2)
        assert impacts.frozen[n] == pytest.approx(frozen, rel=1e-8)
    assert impacts.frozen_total**2 + impacts.statistical**2 == pytest.approx(impacts.total_error**2)


def test_the_error_is_the_sum_of_data_and_constraints(
    toy: BosonTemplates, toy_sources: tuple[Source, ...]
) -> None:
    """m = H^-1 (D^T (n - n0)/n0 + zeta0): what fluctuating data and fluctuating zeta0 contribute, written out."""
    impacts = mass_impacts(toy, toy_sources, luminosity=0.7)
    inverse = np.linalg.inv(hessian(toy, toy_sources, 0.7))
    row = inverse[0] @ design(toy, toy_sources, 0.7).T / np.sqrt(0.7 * toy.counts)
    assert impacts.data_error == pytest.approx(1e3 * np.linalg.norm(row), rel=1e-10)
    np.testing.assert_allclose(impacts.nuisance_constrained, 1e3 * inverse[0, 3:], rtol=1e-9)
    total = impacts.data_error**2 + np.sum(impacts.constrained**2)
    assert impacts.total_error**2 == pytest.approx(total, rel=1e-12)
    assert impacts.constrained_total == pytest.approx(np.linalg.norm(impacts.constrained))


def test_toys_scatter_by_the_total_error(toy: BosonTemplates, toy_sources: tuple[Source, ...]) -> None:
    """Nuisances and counts thrown, the full fit solved: width of m, and of a fit that fixes the calibration."""
    rng = np.random.default_rng(3)
    luminosity, n_toy = 0.7, 4000
    impacts = mass_impacts(toy, toy_sources, luminosity=luminosity)
    matrix, inverse = (
        design(toy, toy_sources, luminosity),
        np.linalg.inv(hessian(toy, toy_sources, luminosity)),
    )
    fixed = design(toy, (), luminosity)
    inverse_fixed = np.linalg.inv(hessian(toy, (), luminosity))
    expected = luminosity * toy.counts
    n_free = fixed.shape[1]
    zeta = rng.normal(size=(n_toy, matrix.shape[1] - n_free))
    noise = np.sqrt(expected) * rng.normal(size=(n_toy, len(expected)))
    # The truth is off the calibration's central value by zeta; the fit starts at the central value.
    residual = (noise + zeta @ matrix[:, n_free:].T) / expected
    profiled = 1e3 * (residual @ matrix @ inverse[0])
    unprofiled = 1e3 * (residual @ fixed @ inverse_fixed[0])
    assert profiled.std() == pytest.approx(impacts.total_error, rel=4.0 / np.sqrt(2 * n_toy))
    total = np.hypot(impacts.unprofiled_total, impacts.statistical)
    assert unprofiled.std() == pytest.approx(total, rel=4.0 / np.sqrt(2 * n_toy))


@pytest.mark.parametrize("n", ["toy", "w"])
def test_squared_eigen_impacts_are_s_v_s(n: str, toy: BosonTemplates, w: BosonTemplates) -> None:
    """Sum over eigenvariations = S^T V S to 1e-9, for every source on its own and with the factor s."""
    templates = toy if n == "toy" else w
    n_eta = templates.n_eta
    rng = np.random.default_rng(4)
    v = positive(rng, 3 * n_eta, np.tile([2e-4, 1e-3, 2e-5], n_eta))
    c = positive(rng, 2 * n_eta, np.tile([1e-4, 5e-6], n_eta))
    r = positive(rng, 2 * n_eta, np.tile([2e-6, 1e-9], n_eta))
    impacts = mass_impacts(
        templates, calibration_sources(n_eta, calibration=v, s=2.1, closure=c, mass_error=2e-5, resolution=r)
    )
    scale, width = impacts.scale_sensitivity.ravel(), impacts.resolution_sensitivity.ravel()
    seen = np.delete(np.arange(3 * n_eta), np.arange(1, 3 * n_eta, 3))
    expected = [
        2.1**2 * scale @ v @ scale,
        scale[seen] @ c @ scale[seen],
        (2e-5 * scale[::3].sum()) ** 2,
        width[seen] @ r @ width[seen],
    ]
    np.testing.assert_allclose(impacts.unprofiled**2, expected, rtol=1e-9)
    ends = np.cumsum(impacts.n_nuisances)
    assert impacts.n_nuisances == (3 * n_eta, 2 * n_eta, 1, 2 * n_eta)
    parts = np.split(impacts.nuisance_unprofiled, ends[:-1])
    np.testing.assert_allclose([part @ part for part in parts], expected, rtol=1e-9)
    assert impacts.unprofiled_total == pytest.approx(np.sqrt(np.sum(expected)), rel=1e-12)


def test_an_eigenvariation_shifts_the_mass_as_the_table_says(w: BosonTemplates) -> None:
    """Counts moved by one variation, fitted with the calibration fixed."""
    v = positive(np.random.default_rng(5), 3 * N_ETA, np.tile([2e-4, 1e-3, 2e-5], N_ETA))
    impacts = mass_impacts(w, calibration_sources(N_ETA, calibration=v))
    moved = w.counts + w.scale_derivative @ eigenvariations(v)[0]
    assert fitted_shift(w, moved) == pytest.approx(impacts.nuisance_unprofiled[0], rel=0.02)
    assert fitted_shift(w, w.counts + 1e-3 * w.mass_derivative) == pytest.approx(1.0, rel=1e-3)
    assert fitted_shift(w, 1.3 * w.counts) == pytest.approx(0.0, abs=1e-9)


def summed(templates: BosonTemplates, *, free_yields: bool = True) -> Floats:
    """dm/d(A, e, M) of all eta bins together, MeV per `UNITS`."""
    sources = calibration_sources(templates.n_eta, mass_error=2.3e-5)
    impacts = mass_impacts(templates, sources, free_yields=free_yields)
    return np.asarray(impacts.scale_sensitivity.sum(axis=0) * UNITS)


@pytest.mark.parametrize("free_yields", [True, False])
def test_known_sizes_at_the_w(w: BosonTemplates, free_yields: bool) -> None:
    """A, e, M at the W (physics.md section 4). The noise of these small templates takes off less than a per cent."""
    assert derivative_noise(w, free_yields=free_yields) < 0.01
    a, e, m = summed(w, free_yields=free_yields)
    assert -0.86 < a < -0.78
    assert e == pytest.approx(2.0, abs=0.15)
    plus, minus = only_groups(w, range(N_ETA)), only_groups(w, range(N_ETA, 2 * N_ETA))
    assert summed(plus, free_yields=free_yields)[2] == pytest.approx(-3.3, abs=0.2)
    assert summed(minus, free_yields=free_yields)[2] == pytest.approx(3.3, abs=0.2)
    parts = (
        sensitivity_by_group(w, free_yields=free_yields).reshape(2, N_ETA, N_ETA, 3).sum(axis=(1, 2)) * UNITS
    )
    assert parts[0, 2] == pytest.approx(-1.69, abs=0.15)
    assert parts[1, 2] == pytest.approx(1.57, abs=0.15)
    assert m == pytest.approx(parts[:, 2].sum())
    assert -0.35 < m < 0.0


def test_a_field_wrong_by_three_mt(w: BosonTemplates) -> None:
    """0.003 T of 3.8 T in the data: 60 to 68 MeV, downwards, by muons that are moved and counted again."""
    edges = tuple(float(x) for x in w.eta_edges)
    weaker = replace(no_bias(w.eta_edges), A=np.full(N_ETA, 0.003 / 3.8))
    moved = w_templates(WBinning(edges), n_draws=8 * DRAWS, threads=1, correction=weaker)
    assert -68.0 < fitted_shift(w, moved.counts) < -60.0


def test_known_sizes_at_the_z(z: BosonTemplates) -> None:
    """-0.912 MeV per 1e-5 to 1 %: a mass goes with the momenta. M of all bins cancels between the muons."""
    assert derivative_noise(z) < 1e-3
    a, e, m = summed(z)
    assert a == pytest.approx(-0.912, rel=0.01)
    assert e == pytest.approx(0.912 / 0.4, rel=0.03)  # 1 MeV of about 40 GeV
    assert abs(m) < 0.02


def test_profiling_cannot_help_where_data_and_calibration_look_alike(z: BosonTemplates) -> None:
    """A common scale and m_Z move the pairs alike: the resonance mass stays; errors between eta bins shrink."""
    sources = calibration_sources(N_ETA, mass_error=2.3e-5)
    impacts = mass_impacts(z, sources)
    assert impacts.frozen[0] == pytest.approx(impacts.unprofiled[0], rel=0.02)
    assert impacts.frozen_total <= impacts.unprofiled_total
    spread = np.diag(np.tile([3e-4, 1e-9, 1e-12], N_ETA) ** 2)
    independent = mass_impacts(z, calibration_sources(N_ETA, calibration=spread))
    assert independent.frozen[0] < 0.9 * independent.unprofiled[0]


def test_more_data_shrink_the_statistical_error(w: BosonTemplates) -> None:
    sources = calibration_sources(N_ETA, mass_error=2.3e-5)
    one, four = (mass_impacts(w, sources, luminosity=x) for x in (10.0, 40.0))
    assert one.statistical == pytest.approx(2.0 * four.statistical)
    np.testing.assert_allclose(one.scale_sensitivity, four.scale_sensitivity)
    assert four.total_error < one.total_error


def test_empty_cells_and_groups_do_nothing(toy: BosonTemplates, toy_sources: tuple[Source, ...]) -> None:
    def longer(values: Floats) -> Floats:
        return np.concatenate([values, np.zeros((3, *values.shape[1:]))])

    padded = replace(
        toy,
        groups=np.r_[toy.groups, [2, 2, 2]],
        group_names=("one", "two", "empty"),
        counts=longer(toy.counts),
        mass_derivative=longer(toy.mass_derivative),
        mass_noise=longer(toy.mass_noise),
        scale_derivative=longer(toy.scale_derivative),
        resolution_derivative=longer(toy.resolution_derivative),
    )
    one, two = mass_impacts(toy, toy_sources), mass_impacts(padded, toy_sources)
    np.testing.assert_allclose(one.frozen, two.frozen, rtol=1e-10)
    assert one.total_error == pytest.approx(two.total_error)


def test_table(toy: BosonTemplates, toy_sources: tuple[Source, ...]) -> None:
    impacts = mass_impacts(toy, toy_sources)
    text = impacts_table(impacts, replace(impacts, boson="Z"))
    rows = text.splitlines()
    assert rows[0].startswith(
        "| source | nuisances | m_W unprofiled | m_W frozen | m_W constrained | m_Z unprof"
    )
    assert rows[2].startswith(
        f"| calibration statistics x 2.1 | 6 | {impacts.unprofiled[0]:.2f} | {impacts.frozen[0]:.2f}"
    )
    assert [row.split(" | ")[0][2:] for row in rows[3:7]] == [
        "Z closure statistics", "resonance mass", "resolution", "calibration, total",
    ]  # fmt: skip
    assert len({row.count("|") for row in rows}) == 1


def identity(n: int) -> Floats:
    return np.eye(n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: calibration_sources(2), "give a calibration, closure or resolution covariance"),
        (
            lambda: calibration_sources(2, calibration=identity(4)),
            r"calibration: a covariance of shape \(4, 4\)",
        ),
        (lambda: calibration_sources(2, calibration=-identity(6)), "negative variance -1 of calibration A0"),
        (lambda: calibration_sources(2, calibration=identity(6), s=-1.0), "s: a factor of at least zero"),
        (lambda: calibration_sources(2, mass_error=np.nan), "mass_error: a relative error"),
        (
            lambda: calibration_sources(2, closure=identity(4), closure_parameters=("A", "x")),
            "closure: parameters",
        ),
        (lambda: calibration_sources(2, resolution=identity(6)), r"resolution: .* expected \(4, 4\)"),
    ],
)
def test_bad_sources_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_bad_fits_are_named(toy: BosonTemplates, toy_sources: tuple[Source, ...]) -> None:
    with pytest.raises(InputError, match="no source"):
        mass_impacts(toy, ())
    with pytest.raises(InputError, match="calibration statistics: not the 2 eta bins of the templates"):
        mass_impacts(toy, calibration_sources(3, calibration=identity(9)))
    with pytest.raises(InputError, match="luminosity: must be positive, got 0"):
        mass_impacts(toy, toy_sources, luminosity=0.0)
    with pytest.raises(InputError, match="W templates: no events"):
        mass_impacts(replace(toy, counts=0.0 * toy.counts), toy_sources)
    with pytest.raises(InputError, match="nothing in them depends on the mass"):
        mass_impacts(replace(toy, mass_derivative=0.0 * toy.counts), toy_sources)
    with pytest.raises(InputError, match="groups: \\[7\\], there are 2"):
        only_groups(toy, [7])
    with pytest.raises(InputError, match="counts: shape"):
        fitted_shift(toy, np.ones(3))
    with pytest.raises(InputError, match="impacts of the same sources"):
        impacts_table()


def test_sources_are_the_covariances_that_were_given() -> None:
    """Sum of v v^T, at the places of the parameters that are varied."""
    rng = np.random.default_rng(6)
    v, c = positive(rng, 6, np.ones(6)), positive(rng, 2, np.ones(2))
    first, second = calibration_sources(2, calibration=v, s=2.0, closure=c, closure_parameters=("M",))
    np.testing.assert_allclose(first.scale.T @ first.scale, 4.0 * v, atol=1e-12)
    np.testing.assert_allclose((second.scale.T @ second.scale)[2::3, 2::3], c, atol=1e-12)
    assert np.all(second.scale[:, [0, 1, 3, 4]] == 0.0)
    (widths,) = calibration_sources(2, resolution=c, resolution_parameters=("c",))
    np.testing.assert_allclose((widths.resolution.T @ widths.resolution)[2::3, 2::3], c, atol=1e-12)
    assert np.all(widths.scale == 0.0)
