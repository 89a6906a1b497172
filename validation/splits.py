r"""Closure in parts of a sample: phi, run ranges, charge order, pT asymmetry. Are they all alike?

A modulation in phi averages out in bins of pT and eta, so a closure in those is blind to it; likewise for a step
in time. Each test here asks whether the parts differ among themselves, with A and M of every eta bin free and
common: the calibration's own uncertainty drops out.

- phi harmonics: amplitudes of cos(h phi) and sin(h phi) of A and of M, common to all eta, fitted beside A, M and
  width per eta bin. Odd harmonics of A are seen only as far as the two muons are not back to back.
- phi sectors: differences of A and M from their average over phi.
- run ranges: A and M per eta bin of each range, against their weighted average. All ranges share the simulation, so
  only the part of the covariance that comes from the data counts.
- charge order (pT+ > pT- or not) and asymmetry (large or small): the halves are unions of the template fit's cells
  with the migration in the derivatives, so a residual moves no event unnoticed from one half to the other.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import chi2 as chi2_distribution

from musclecal.covariance import chi2_of
from musclecal.errors import InputError
from musclecal.fits.phi_waves import common_wave_designs
from musclecal.fits.scale_information import (
    Design,
    eta_design,
    harmonic_design,
    region_design,
    require_sectors,
    scale_information,
    solve_eta_bins,
    solve_information,
    width_design,
)
from musclecal.fits.template_closure import BinInformation, selected
from musclecal.records import Floats, ScaleInformation, SplitTest

__all__ = ["half_tests", "harmonic_test", "phi_tests", "run_test", "sector_test"]

_NAMES = ("A", "M")


def phi_tests(
    information: ScaleInformation, harmonics: Sequence[int], waves: ScaleInformation | None = None
) -> tuple[SplitTest, ...]:
    """One test per harmonic, and one of all sectors, from a template fit with phi sectors.

    Parameters
    ----------
    waves : the same fit as a function of the coefficients of ``harmonics`` (`musclecal.fits.phi_waves`). Without it
        the waves are averaged over sectors, and those of odd harmonics come back too small.

    Raises
    ------
    InputError : a harmonic that the sectors cannot resolve.
    """
    require_sectors(information.phi_sectors, harmonics)
    if waves is None:
        tests = [harmonic_test(information, h) for h in harmonics]
    else:
        tests = [_wave_test(waves, harmonics, h) for h in harmonics]
    return *tests, sector_test(information)


def _wave_test(waves: ScaleInformation, harmonics: Sequence[int], harmonic: int) -> SplitTest:
    solution = solve_information(waves, *common_wave_designs(waves, harmonics, harmonic))
    n = len(solution.labels)
    last = solution.only(range(n - 4, n))
    return _of_waves(harmonic, last.values, last.covariance)


def harmonic_test(information: ScaleInformation, harmonic: int) -> SplitTest:
    """Amplitudes of cos(h phi) and sin(h phi) of A and M (1/GeV): ``parts`` are cos and sin."""
    waves = [harmonic_design(information, name, harmonic) for name in _NAMES]
    return _of_waves(harmonic, *_beside_eta_bins(information, waves))


def _of_waves(harmonic: int, values: Floats, covariance: Floats) -> SplitTest:
    """Values and covariance of A cos, A sin, M cos, M sin."""
    test = chi2_of(values, covariance)
    return SplitTest(
        name=f"phi harmonic {harmonic}",
        parts=("cos", "sin"),
        parameter_names=_NAMES,
        values=values.reshape(2, 2).T,
        errors=np.sqrt(np.diagonal(covariance)).reshape(2, 2).T,
        chi2=test.chi2,
        ndf=test.ndf,
        p_value=test.p_value,
    )


def sector_test(information: ScaleInformation) -> SplitTest:
    """A and M (1/GeV) of each phi sector minus their average over phi, common to all eta."""
    n_eta, n_phi = len(information.eta_edges) - 1, information.phi_sectors
    contrasts = np.linalg.svd(np.ones((1, n_phi)))[2][1:].T
    of_region = np.tile(contrasts, (n_eta, 1))
    designs = [
        region_design(information, name, of_region, [f"{name} phi contrast {c}" for c in range(n_phi - 1)])
        for name in _NAMES
    ]
    values, covariance = _beside_eta_bins(information, designs)
    test = chi2_of(values, covariance)
    back = np.kron(np.eye(len(_NAMES)), contrasts)
    spread = back @ covariance @ back.T
    return SplitTest(
        name="phi sectors",
        parts=tuple(f"phi sector {s}" for s in range(n_phi)),
        parameter_names=_NAMES,
        values=(back @ values).reshape(len(_NAMES), n_phi).T,
        errors=np.sqrt(np.diagonal(spread)).reshape(len(_NAMES), n_phi).T,
        chi2=test.chi2,
        ndf=test.ndf,
        p_value=test.p_value,
    )


def _beside_eta_bins(information: ScaleInformation, extra: Sequence[Design]) -> tuple[Floats, Floats]:
    """Values and covariance of the parameters of ``extra``, fitted beside A, M and width per eta bin."""
    base = (eta_design(information, _NAMES), width_design(information))
    solution = solve_information(information, *base, *extra)
    tail = solution.only(range(sum(len(design.labels) for design in base), len(solution.labels)))
    return tail.values, tail.covariance


def half_tests(bins: BinInformation) -> tuple[SplitTest, ...]:
    """Charge order and pT asymmetry.

    Raises
    ------
    InputError : the asymmetry axis has no edge at zero, or fewer than four bins.
    """
    edges = np.asarray(bins.binning.asymmetry_edges)
    if len(edges) < 5 or 0.0 not in edges:
        raise InputError(
            f"asymmetry_edges: an edge at 0 and at least four bins are needed, got {edges.tolist()}"
        )
    middles = 0.5 * (edges[1:] + edges[:-1])
    _, _, asymmetry, _ = bins.binning.unravel(bins.bins)
    size = np.abs(middles)[asymmetry]
    border = _weighted_median(size, bins.events)
    return (
        _two_halves(bins, "charge order", middles[asymmetry] > 0.0, ("pT+ > pT-", "pT+ < pT-")),
        _two_halves(bins, "pT asymmetry", size >= border, ("large", "small")),
    )


def _weighted_median(values: Floats, weights: Floats) -> float:
    """The value that best halves the events, of those that leave some on both sides."""
    candidates = np.unique(values)[1:]
    shares = [weights[values >= c].sum() / weights.sum() for c in candidates]
    return float(candidates[int(np.argmin(np.abs(np.array(shares) - 0.5)))])


def _two_halves(
    bins: BinInformation, name: str, first: np.typing.NDArray[np.bool_], parts: tuple[str, str]
) -> SplitTest:
    solutions = []
    for half in (first, ~first):
        information = scale_information(selected(bins, half), "half")
        solutions.append(solve_eta_bins(information, _NAMES))
    one, two = solutions
    test = chi2_of((one.values - two.values).ravel(), one.covariance + two.covariance)
    averages = [_averages(s.values, s.covariance) for s in solutions]
    return SplitTest(
        name=name,
        parts=parts,
        parameter_names=_NAMES,
        values=np.array([values for values, _ in averages]),
        errors=np.array([errors for _, errors in averages]),
        chi2=test.chi2,
        ndf=test.ndf,
        p_value=test.p_value,
    )


def _averages(values: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Weighted averages over eta of each parameter, and their errors."""
    n_eta, n_fit = values.shape
    means, errors = np.empty(n_fit), np.empty(n_fit)
    for p in range(n_fit):
        rows = np.arange(n_eta) * n_fit + p
        weight = np.linalg.solve(covariance[np.ix_(rows, rows)], np.ones(n_eta))
        means[p] = weight @ values[:, p] / weight.sum()
        errors[p] = 1.0 / np.sqrt(weight.sum())
    return means, errors


def run_test(parts: Sequence[ScaleInformation], names: Sequence[str], simulated_events: float) -> SplitTest:
    """Whether run ranges need the same A and M per eta bin.

    Parameters
    ----------
    parts : template fits of the ranges to the same simulation, linearised at the same point.
    simulated_events : of that simulation. Of the covariance of a range with n events the share n/(n + N) is the
        simulation's, common to all ranges.

    Raises
    ------
    InputError : fewer than two ranges.
    """
    if len(parts) < 2:
        raise InputError("closure: run_edges must give at least two ranges with data")
    values, normals, averages = [], [], []
    for part in parts:
        solution = solve_eta_bins(part, _NAMES)
        of_data = simulated_events / (part.events_used + simulated_events)
        values.append(solution.values.ravel())
        normals.append(np.linalg.inv(of_data * solution.covariance))
        averages.append(_averages(solution.values, of_data * solution.covariance))
    common = np.linalg.solve(sum(normals), sum(w @ v for w, v in zip(normals, values, strict=True)))
    chi2 = float(sum((v - common) @ w @ (v - common) for w, v in zip(normals, values, strict=True)))
    ndf = (len(parts) - 1) * len(common)
    return SplitTest(
        name="run ranges",
        parts=tuple(names),
        parameter_names=_NAMES,
        values=np.array([v for v, _ in averages]),
        errors=np.array([e for _, e in averages]),
        chi2=chi2,
        ndf=ndf,
        p_value=float(chi2_distribution.sf(chi2, ndf)),
    )
