r"""Corrections in phi and in time: A and M per eta bin as waves in phi, in phi sectors, or in run ranges.

A closure in bins of pT and eta is blind to a modulation in phi, which averages out, and to a step in time. Where a test
of parts of a sample (`musclecal.validation.splits`) finds one, this gives the correction that removes it. A and M of
every eta bin and term are fitted together, widths per eta bin beside them.

================  ====================================================================================================
`wave_step`       a few harmonics per eta bin: a movement or deformation of the tracker as a whole
`sector_step`     phi sectors: whatever is local in phi, at the price of n_phi times as many parameters
`run_step`        run ranges between times at which something is known to have changed
================  ====================================================================================================

Each is one linear step, for muons corrected with what was found before: `joined` adds it up.

Not for: e, which the Z cannot tell from A; or finding the runs at which something changed.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from scipy.stats import chi2 as chi2_distribution

from musclecal.errors import InputError
from musclecal.fits.phi_waves import wave_designs, wave_information
from musclecal.fits.scale_information import (
    Design,
    InformationSolution,
    require_sectors,
    sector_design,
    solve_eta_bins,
    solve_information,
    width_design,
)
from musclecal.fits.template_closure import BinInformation
from musclecal.records import Ints, PhiRefinement, RunRefinement, ScaleInformation

__all__ = ["joined", "run_step", "sector_step", "wave_step"]

_NAMES = ("A", "M")
_Refinement = TypeVar("_Refinement", PhiRefinement, RunRefinement)


def sector_step(information: ScaleInformation) -> PhiRefinement:
    """A and M still to be applied, per eta bin and phi sector.

    Raises
    ------
    InputError : parameters that the sample does not fix.
    """
    designs = [sector_design(information, _NAMES), width_design(information)]
    return _phi_step(information, (), information.phi_sectors, designs)


def wave_step(bins: BinInformation, angles: Ints, harmonics: Sequence[int], resonance: str) -> PhiRefinement:
    """A and M still to be applied, per eta bin: constants and ``harmonics``, from a template fit with phi sectors.

    Parameters
    ----------
    angles : counts of the angle between the muons (`musclecal.fits.phi_waves.count_angles`).

    Raises
    ------
    InputError : no harmonics, one twice or too high for the sectors; parameters that the sample does not fix.
    """
    if not harmonics or len(set(harmonics)) != len(harmonics):
        raise InputError(f"harmonics: at least one, and each one once, got {list(harmonics)}")
    require_sectors(bins.binning.phi_sectors, harmonics)
    information = wave_information(bins, angles, harmonics, resonance)
    return _phi_step(information, tuple(harmonics), bins.binning.phi_sectors, wave_designs(information))


def _phi_step(
    information: ScaleInformation, harmonics: tuple[int, ...], phi_sectors: int, designs: Sequence[Design]
) -> PhiRefinement:
    """A and M of every region, which are the first parameters of ``designs``."""
    n_eta = len(information.eta_edges) - 1
    found = solve_information(information, *designs).only(range(2 * n_eta * information.phi_sectors))
    values = found.values.reshape(n_eta, -1, 2)
    return PhiRefinement(
        resonance=information.resonance,
        eta_edges=information.eta_edges,
        harmonics=harmonics,
        phi_sectors=phi_sectors,
        A=values[:, :, 0].copy(),
        M=values[:, :, 1].copy(),
        covariance=found.covariance,
        chi2=found.chi2,
        ndf=found.ndf,
        p_value=found.p_value,
        passes=1,
        last_change=_change(found),
    )


def run_step(
    parts: Sequence[ScaleInformation], run_edges: Sequence[int], simulated_events: float
) -> RunRefinement:
    """A and M still to be applied per run range and eta bin.

    Parameters
    ----------
    parts : (n_range,) template fits of the ranges to the same simulation.
    run_edges : (n_range + 1,).
    simulated_events : of that simulation, N. Of the covariance of a range with n events the share n/(n + N) is the
        simulation's, common to all ranges.

    Raises
    ------
    InputError : edges that do not increase, or not one more than there are ranges; parameters that are not fixed.
    """
    edges = tuple(int(edge) for edge in run_edges)
    if len(edges) != len(parts) + 1 or len(parts) < 1 or any(a >= b for a, b in pairwise(edges)):
        raise InputError(f"run_edges: {len(parts)} ranges need as many increasing edges and one, got {edges}")
    solutions = [solve_eta_bins(part, _NAMES) for part in parts]
    events = np.array([part.events_used for part in parts])
    of_simulation = [
        s.covariance * n / (n + simulated_events) for s, n in zip(solutions, events, strict=True)
    ]
    # Each range has its own estimate of the same matrix.
    common = np.average(of_simulation, axis=0, weights=events)
    n = len(common)
    covariance = np.tile(common, (len(parts), len(parts)))
    for r, (solution, shared) in enumerate(zip(solutions, of_simulation, strict=True)):
        covariance[r * n : (r + 1) * n, r * n : (r + 1) * n] += solution.covariance - shared
    values = np.array([s.values for s in solutions])
    chi2, ndf = sum(s.chi2 for s in solutions), sum(s.ndf for s in solutions)
    flat = values.ravel()
    return RunRefinement(
        resonance=parts[0].resonance,
        eta_edges=parts[0].eta_edges,
        run_edges=edges,
        A=values[:, :, 0].copy(),
        M=values[:, :, 1].copy(),
        covariance=covariance,
        chi2=float(chi2),
        ndf=int(ndf),
        p_value=float(chi2_distribution.sf(chi2, ndf)),
        passes=1,
        last_change=float(flat @ np.linalg.solve(covariance, flat)) / len(flat),
    )


def _change(found: InformationSolution) -> float:
    return float(found.values @ np.linalg.solve(found.covariance, found.values)) / len(found.values)


def joined(before: _Refinement, step: _Refinement) -> _Refinement:
    """All that was found so far: ``step``, for muons corrected with ``before``, added to it."""
    return replace(step, A=before.A + step.A, M=before.M + step.M, passes=before.passes + 1)
