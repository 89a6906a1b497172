r"""A, e, M from several resonances together: the sum of what each of them says (`musclecal.fits.contribution`).

With a shift :math:`\delta_r = m/m_\mathrm{assumed} - 1` of the mass of each resonance, free within its uncertainty
:math:`\sigma_r`,

.. math:: \chi^2(\beta, \eta) = \sum_r \chi^2_r(\beta + \sigma_r\eta_r\,\mathbf 1_A) + \sum_r \eta_r^2 ,
   \qquad \delta_r = \sigma_r\eta_r :

a heavier resonance wants a larger A, because A > 0 lowers momenta. (At the J/psi a mass moves a little less than its
momenta, f = 0.97 to 0.9975; on an uncertainty of 2e-6 that is nothing.) Samples of one resonance share its shift.

Whether samples agree is asked in the same form, without the inverse of anything that may be singular: what chi2 gains
when a sample gets a correction of its own. A Z sample alone cannot tell A from e, and is still of use here.

Not for: repeating the linearisation. Correct the samples with the result, fill them, fit again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2 as chi2_distribution

from musclecal.covariance import correlation
from musclecal.errors import InputError
from musclecal.fits.contribution import ALL_EVENTS, Contribution, contribution_name, shares_events
from musclecal.fits.normal_equations import NormalSolution, seen_directions, solve_normal
from musclecal.fits.scale_fit import PARAMETERS, parameter_labels
from musclecal.records import Floats, JointFit, SampleAgainstRest, ScaleCalibration

__all__ = ["joint_fit", "refuse_if_used"]

_MOST_CORRELATED = 0.98
"""Of A and e in an eta bin. J/psi alone 0.94, Upsilon 0.972, Z 0.985, for any number of events."""
_UNSEEN = 1e-9


@dataclass(frozen=True)
class _System:
    """Normal equations of (A, e, M per eta bin about ``origin``; mass shifts in units of their uncertainty)."""

    origin: Floats
    masses: tuple[str, ...]
    errors: Floats
    normal: Floats
    vector: Floats

    @property
    def minimum(self) -> float:
        """chi2 at the minimum, less that at the origin."""
        directions, size = seen_directions(self.normal)
        return -float(np.sum((directions.T @ self.vector) ** 2 / size))

    @property
    def rank(self) -> int:
        """How many combinations of the parameters are fixed."""
        return len(seen_directions(self.normal)[1])


def _embedding(contribution: Contribution, masses: Sequence[str]) -> Floats:
    """(3 n_eta, 3 n_eta + n_mass): the correction that this sample sees, of all parameters."""
    n = 3 * contribution.n_eta
    seen = np.zeros((n, n + len(masses)))
    seen[:, :n] = np.eye(n)
    seen[0::3, n + masses.index(contribution.resonance)] = contribution.mass_error
    return seen


def _system(contributions: Sequence[Contribution], masses: tuple[str, ...], origin: Floats) -> _System:
    """The sum of the contributions, and of the prior on each mass."""
    n = len(origin)
    normal, vector = np.zeros((n + len(masses), n + len(masses))), np.zeros(n + len(masses))
    normal[n:, n:] = np.eye(len(masses))
    errors = np.zeros(len(masses))
    for c in contributions:
        seen = _embedding(c, masses)
        normal += seen.T @ c.normal @ seen
        vector += seen.T @ c.vector_about(origin)
        errors[masses.index(c.resonance)] = c.mass_error
    return _System(origin, masses, errors, normal, vector)


def _checked(contributions: Sequence[Contribution]) -> None:
    """Samples that can be fitted together: same eta bins, no event twice, one mass per resonance."""
    if not contributions:
        raise InputError("joint fit: no sample")
    first = contributions[0]
    for n, c in enumerate(contributions):
        if not np.array_equal(c.eta_edges, first.eta_edges):
            raise InputError(f"joint fit: the eta bins of {c.name} differ from those of {first.name}")
        for other in contributions[:n]:
            if other.resonance != c.resonance:
                continue
            if ALL_EVENTS in (c.part, other.part) or c.part == other.part:
                raise InputError(f"joint fit: {other.name} and {c.name} share events")
            if other.mass_error != c.mass_error:
                raise InputError(f"joint fit: {other.name} and {c.name} have different mass errors")


def _chosen(contributions: Sequence[Contribution], use: Sequence[str] | None) -> list[Contribution]:
    names = [c.name for c in contributions]
    unknown = [name for name in use or () if name not in names]
    if unknown:
        raise InputError(f"joint fit: no sample {unknown[0]!r} to use: there are {', '.join(names)}")
    chosen = [c for c in contributions if use is None or c.name in use]
    if not chosen:
        raise InputError("joint fit: no sample is used")
    return chosen


def _masses(contributions: Sequence[Contribution]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.resonance for c in contributions))


def _solved(system: _System, used: Sequence[Contribution]) -> NormalSolution:
    """The solution, or an error that names what the samples do not fix.

    A sample of one range of momenta alone ties e to A. The equations have a solution, whose e means nothing.
    """
    labels = parameter_labels(PARAMETERS, used[0].eta_edges.tolist())
    names = " + ".join(c.name for c in used)
    n = len(labels)
    try:
        known_masses = solve_normal(system.normal[:n, :n], system.vector[:n], labels)
        solution = solve_normal(
            system.normal, system.vector, (*labels, *(f"mass of {m}" for m in system.masses))
        )
    except InputError as error:
        raise InputError(f"joint fit of {names}: {error}") from None
    tied = np.diagonal(correlation(known_masses.covariance), 1)[0::3]
    worst = int(np.argmax(np.abs(tied)))
    if abs(tied[worst]) > _MOST_CORRELATED:
        raise InputError(
            f"joint fit of {names}: {labels[3 * worst + 1]} is not fixed, its correlation with "
            f"{labels[3 * worst]} is {tied[worst]:.3f}; add a resonance of other momenta"
        )
    return solution


def _of_own(system: _System, contribution: Contribution, columns: Floats) -> tuple[Floats, Floats]:
    """Values and covariance of corrections ``columns`` (3 n_eta, n_own) that only this sample has.

    ``system`` has the sample in it. NaN for a column that the sample, or the others, do not see.
    """
    seen = _embedding(contribution, system.masses)
    mixed = seen.T @ contribution.normal @ columns
    own = columns.T @ contribution.normal @ columns
    vector = columns.T @ contribution.vector_about(system.origin)
    directions, size = seen_directions(system.normal)
    projected = directions.T @ mixed
    left = own - projected.T @ (projected / size[:, None])
    vector = vector - projected.T @ ((directions.T @ system.vector) / size)
    values, covariance = np.full(len(vector), np.nan), np.full(left.shape, np.nan)
    rows = np.flatnonzero(np.diagonal(left) > _UNSEEN * np.diagonal(own))
    if len(rows):
        solution = solve_normal(left[np.ix_(rows, rows)], vector[rows], [f"own {r}" for r in rows])
        values[rows] = solution.values
        covariance[np.ix_(rows, rows)] = solution.covariance
    return values, covariance


def _against_rest(
    contribution: Contribution, used: Sequence[Contribution], origin: Floats
) -> SampleAgainstRest:
    """One sample against the others of the fit, or against all of it."""
    rest = [c for c in used if c is not contribution]
    masses = _masses([contribution, *rest])
    alone, others = _system([contribution], masses, origin), _system(rest, masses, origin)
    both = _system([contribution, *rest], masses, origin)
    # The prior on the masses is in all three: its ranks cancel, as does its chi2.
    n_mass = len(masses)
    ndf = (alone.rank - n_mass) + others.rank - both.rank
    chi2 = max(both.minimum - others.minimum - _without_mass(contribution, origin), 0.0)
    n_eta = contribution.n_eta
    per_eta = np.eye(3 * n_eta)[:, np.arange(3 * n_eta) % 3 != PARAMETERS.index("e")]
    common = np.tile([1.0, 0.0, 0.0], n_eta)[:, None]
    values, covariance = _of_own(both, contribution, per_eta)
    mean, mean_variance = _of_own(both, contribution, common)
    return SampleAgainstRest(
        name=contribution.name,
        used=any(c is contribution for c in used),
        chi2=chi2,
        ndf=ndf,
        p_value=float(chi2_distribution.sf(chi2, ndf)) if ndf > 0 else 1.0,
        mean_A=float(mean[0]),
        mean_A_error=float(np.sqrt(mean_variance[0, 0])),
        values=values.reshape(n_eta, 2),
        errors=np.sqrt(np.diagonal(covariance)).reshape(n_eta, 2),
    )


def _without_mass(contribution: Contribution, origin: Floats) -> float:
    """chi2 of a sample at its own minimum, less that at the origin. Its mass is not asked."""
    directions, size = seen_directions(contribution.normal)
    return -float(np.sum((directions.T @ contribution.vector_about(origin)) ** 2 / size))


def _agreement(used: Sequence[Contribution], system: _System) -> tuple[float, int, float]:
    """chi2, ndf and p-value of all samples having the same correction."""
    chi2 = max(system.minimum - sum(_without_mass(c, system.origin) for c in used), 0.0)
    ndf = sum(len(seen_directions(c.normal)[1]) for c in used) - len(system.origin)
    return chi2, ndf, float(chi2_distribution.sf(chi2, ndf)) if ndf > 0 else 1.0


def _mean_curvature(used: Sequence[Contribution]) -> Floats:
    """(n_eta,) of all muons, each sample with its weight on A."""
    weights = np.stack([np.diagonal(c.normal)[0::3] for c in used])
    curvatures = np.stack([c.mean_k for c in used])
    return np.asarray(np.sum(weights * curvatures, axis=0) / np.sum(weights, axis=0))


def _largest_step(contribution: Contribution, values: Floats) -> float:
    """Largest |A - e <k> +- M/<k>| of the change since the sample was corrected."""
    a, e, m = (values - contribution.applied).reshape(-1, 3).T
    seen = contribution.mean_k > 0.0
    k = contribution.mean_k[seen]
    return float(np.max(np.abs(a[seen] - e[seen] * k) + np.abs(m[seen]) / k, initial=0.0))


def _last_change(used: Sequence[Contribution], values: Floats, covariance: Floats) -> float | None:
    """chi2 per parameter of the change since the samples were corrected; None if not all with the same correction."""
    applied = used[0].applied
    if not np.any(applied) or any(not np.array_equal(c.applied, applied) for c in used):
        return None
    change = values - applied
    return float(change @ np.linalg.solve(covariance, change)) / len(change)


def joint_fit(
    contributions: Sequence[Contribution], use: Sequence[str] | None = None, *, passes: int = 1
) -> JointFit:
    """A, e, M per eta bin, common to the samples ``use``, and how each sample agrees with the others.

    Parameters
    ----------
    contributions : samples with the same eta bins, of which no event is in two.
    use : names of the samples to fit; the others are kept, and compared with the fit. All by default.
    passes : for the record: how many times the samples have been filled.

    Raises
    ------
    InputError : samples that do not go together, an unknown name, combinations of parameters that are not fixed.
    """
    _checked(contributions)
    used = _chosen(contributions, use)
    origin = used[0].applied
    system = _system(used, _masses(used), origin)
    solution = _solved(system, used)
    n = len(origin)
    values, covariance = origin + solution.values[:n], solution.covariance[:n, :n]
    chi2, ndf, p_value = _agreement(used, system)
    fraction = min(c.events_fraction for c in used)
    per_eta = values.reshape(-1, 3)
    calibration = ScaleCalibration(
        eta_edges=used[0].eta_edges,
        A=per_eta[:, 0].copy(),
        e=per_eta[:, 1].copy(),
        M=per_eta[:, 2].copy(),
        covariance=covariance,
        chi2=chi2,
        ndf=ndf,
        p_value=p_value,
        rank=n,
        condition=solution.condition,
        pulls=np.empty(0),
        bins=np.empty(0, dtype=np.int64),
        mean_k=_mean_curvature(used),
        events_fraction=fraction,
        converged_fraction=fraction,
        passes=passes,
        residual_chi2=_last_change(used, values, covariance),
    )
    return JointFit(
        calibration=calibration,
        used=tuple(c.name for c in used),
        kept=tuple(c.name for c in contributions if all(c is not u for u in used)),
        mass_resonances=system.masses,
        mass_errors=system.errors,
        mass_shifts=system.errors * solution.values[n:],
        mass_shift_errors=system.errors * np.sqrt(np.diagonal(solution.covariance)[n:]),
        largest_steps=np.array([_largest_step(c, values) for c in used]),
        table=tuple(_against_rest(c, used, origin) for c in contributions) if len(contributions) > 1 else (),
    )


def refuse_if_used(used: Sequence[str], kept: Sequence[str], resonance: str, part: str = ALL_EVENTS) -> None:
    """Raise `InputError` if a closure with these events would test a joint fit of ``used`` with its own input.

    Parameters
    ----------
    used, kept : names of samples, as in `JointFit`.
    """
    name = contribution_name(resonance, part)
    for own in used:
        if shares_events(own, name):
            instead = f"close on what it kept: {', '.join(kept)}" if kept else "it kept nothing to close on"
            raise InputError(f"closure at {name}: the joint fit used {own}, so this is no closure; {instead}")
