"""Closure of widths: regions and chi2 on made-up widths, then on simulated samples before and after smearing."""

from dataclasses import replace

import numpy as np
import pytest

from musclecal.binning import Binning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.fits.histogram import fill
from musclecal.fits.resolution import fit_resolution, smearing_difference
from musclecal.fits.widths import fit_widths
from musclecal.records import MassWidths, WidthClosure
from musclecal.resonances import resonance
from musclecal.simulate import ResolutionModel, SimulationSettings, first_events
from musclecal.smear import smear
from musclecal.validation.width_closure import width_closure

N_ETA = 4
EDGES = equal_eta_edges(N_ETA, 2.4)
BINNING = Binning(EDGES, (4.0, 8.0, 12.0, 40.0), (2.9, 3.3), 40, 3.0969)


def made(excess: float = 0.0, seed: int | None = None) -> MassWidths:
    """All 4D bins with w^2 = 1e-4 in simulation, larger by ``excess`` in data; noise where there is a seed."""
    n = BINNING.n_bins
    events = np.random.default_rng(0).integers(200, 2000, n).astype(np.float64)
    simulation, error = np.full(n, 1e-4), 1e-4 * np.sqrt(2.0 / events)
    data, pt = simulation * (1.0 + excess), np.full((n, 2), 9.0)
    if seed is not None:
        rng = np.random.default_rng(seed)
        data, simulation = rng.normal(data, error), rng.normal(simulation, 0.5 * error)
    return MassWidths(
        BINNING,
        "Jpsi",
        "none",
        np.arange(n),
        data,
        error,
        simulation,
        0.5 * error,
        events,
        pt,
        pt**2,
        pt / 9.0,
        1.0,
    )


def test_every_bin_is_in_one_region() -> None:
    widths = made()
    closure = width_closure(widths, used=False)
    assert closure.n_events.sum() == widths.n_events.sum()
    assert closure.ndf == len(closure.ratio) == len(closure.error)
    np.testing.assert_allclose(closure.ratio, 1.0, rtol=1e-12)
    assert closure.chi2 == pytest.approx(0.0, abs=1e-12)
    assert np.all(closure.error < 0.03)


def test_the_outer_and_the_harder_muon_make_the_region() -> None:
    widths = made()
    i, j, k, m = BINNING.unravel(widths.bins)
    outer = ((i == 3) & (j < 3)) | ((j == 3) & (i != 0)) | ((i == 3) & (j == 3))
    data = np.where(outer & (np.maximum(k, m) == 2), 1.44e-4, 1e-4)
    closure = width_closure(replace(widths, data=data), used=False)
    hit = (closure.eta_bin == 3) & (closure.pt_bins[:, 0] == 2)
    np.testing.assert_allclose(closure.ratio[hit], 1.2, rtol=1e-9)
    np.testing.assert_allclose(closure.ratio[~hit & (closure.eta_bin != 0)], 1.0, rtol=1e-9)


def test_the_ratio_is_of_widths_and_not_of_squares() -> None:
    closure = width_closure(made(excess=0.21), used=False)
    np.testing.assert_allclose(closure.ratio, 1.1, rtol=1e-9)
    assert closure.mean == pytest.approx(1.1)
    assert closure.p_value < 1e-6


def test_chi2_has_its_distribution() -> None:
    closures = [width_closure(made(seed=seed), used=False) for seed in range(1, 201)]
    ndf = closures[0].ndf
    np.testing.assert_allclose(
        np.mean([c.chi2 for c in closures]) / ndf, 1.0, atol=4.0 * np.sqrt(2.0 / ndf / 200)
    )
    assert abs(np.mean([(c.mean - 1.0) / c.mean_error for c in closures])) < 4.0 / np.sqrt(200)
    assert np.mean([c.p_value < 0.1 for c in closures]) == pytest.approx(0.1, abs=0.08)


def test_pt_bins_are_joined_until_they_are_precise() -> None:
    wide = width_closure(made(), used=False, precision=0.001)
    assert np.all(wide.pt_bins[:, 0] == 0)
    assert np.all(wide.pt_bins[:, 1] == 3)
    assert wide.ndf == N_ETA


def test_no_width_in_the_simulation() -> None:
    widths = made()
    with pytest.raises(InputError, match="too few simulated events at"):
        width_closure(replace(widths, simulation=-widths.simulation), used=False)


SIMULATED = ResolutionModel(
    np.array(EDGES), np.array([0.014, 0.0095, 0.010, 0.015]) ** 2, np.zeros(N_ETA),
    np.array([2.5, 1.3, 1.4, 2.6]) ** 2 * 1e-8, np.full(N_ETA, 370.0),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["everything by 5 %", "c alone"])
def test_after_smearing_the_widths_agree(changed: str) -> None:
    """J/psi and Z give the smearing; the Upsilon, not used, and both others close with it and do not without."""
    larger = SIMULATED.scaled(1.05) if changed != "c alone" else replace(SIMULATED, c=2.5 * SIMULATED.c)
    samples = {}
    for n, (name, n_data) in enumerate((("Jpsi", 120_000), ("Z", 80_000), ("Y1S", 60_000))):
        r = resonance(name)
        room = 0.2 if r.pt_scaled else 0.03
        pt = (r.pt_edges[0] * (1.0 - room), r.pt_edges[-1] * (1.0 + room))
        low, high = r.mass_window
        beyond = SimulationSettings(r, pt, (-2.4, 2.4), (0.88 * low, 1.12 * high), SIMULATED)
        binning = Binning(EDGES, r.pt_edges, r.mass_window, r.mass_bins, r.line.mass, r.pt_scaled)
        simulated = first_events(beyond, 4 * n_data, 40 + n)
        window = replace(beyond, mass_window=(0.985 * low, 1.015 * high), resolution=larger)
        samples[name] = (r, binning, fill([first_events(window, n_data, 50 + n)], binning), simulated)
    before = {
        name: fit_widths(data, fill([simulated], binning), r, background="none")
        for name, (r, binning, data, simulated) in samples.items()
    }
    extra = smearing_difference(fit_resolution([before["Jpsi"], before["Z"]]))
    closed: dict[str, WidthClosure] = {}
    for name, (r, binning, data, simulated) in samples.items():
        after = fit_widths(data, fill([smear(simulated, extra)], binning), r, background="none")
        closed[name] = width_closure(after, used=name != "Y1S")
        assert closed[name].p_value > 0.01, name
        assert abs(closed[name].mean - 1.0) < 3.0 * closed[name].mean_error
    # More of c alone changes the width of the Upsilon by less than a per cent: the Z sees it.
    seen = "Z" if changed == "c alone" else "Y1S"
    open_before = width_closure(before[seen], used=False)
    assert open_before.p_value < 1e-4
    assert closed[seen].chi2 < 0.7 * open_before.chi2
