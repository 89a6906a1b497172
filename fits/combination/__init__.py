"""Correlated measurements combined in closed form (BLUE), and what can be asked of the result.

======================  ==================================================================================
`blue`, `combine`       values, weights, chi2, split by source; from covariances, or from signed shifts
`blue_rescaled`         relative uncertainties of the combined value instead of the measured ones
`leave_one_out`         without each input in turn
`combine_groups`        a combination of combinations
`scan_correlations`     value and error as a function of assumed correlations, with derivatives
`worst_case`            extremes when many correlations move at once
`shift_toys`            shifts that are known with statistical errors only
`audit`                 whether the correlations are possible; `repair_source` if they have to be changed
`difference`, `ratio`,  functions of the observables
`normalised`
`blinded`               a hidden offset
`combine_calibrations`  A, e, M of resonances, eras or experiments, each against the others
======================  ==================================================================================

All need a positive definite total covariance, uncertainties that are symmetric, and inputs that are linear in the
observables.
"""

from musclecal.fits.combination.best_linear import blue, combine
from musclecal.fits.combination.blinding import blinded, unblinded
from musclecal.fits.combination.calibrations import combine_calibrations
from musclecal.fits.combination.definiteness import (
    allowed_correlation,
    allowed_group,
    audit,
    audit_correlation,
    checked_correlation,
)
from musclecal.fits.combination.derived import difference, normalised, ratio
from musclecal.fits.combination.groups import combine_groups
from musclecal.fits.combination.leave_out import leave_one_out
from musclecal.fits.combination.repair import repair_correlation, repair_source
from musclecal.fits.combination.rescaled import blue_rescaled
from musclecal.fits.combination.scans import scan_correlations
from musclecal.fits.combination.toys import shift_toys
from musclecal.fits.combination.worst_case import worst_case

__all__ = [
    "allowed_correlation",
    "allowed_group",
    "audit",
    "audit_correlation",
    "blinded",
    "blue",
    "blue_rescaled",
    "checked_correlation",
    "combine",
    "combine_calibrations",
    "combine_groups",
    "difference",
    "leave_one_out",
    "normalised",
    "ratio",
    "repair_correlation",
    "repair_source",
    "scan_correlations",
    "shift_toys",
    "unblinded",
    "worst_case",
]
