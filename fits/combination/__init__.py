"""Correlated measurements combined in closed form (BLUE), and what can be asked of the result."""

from musclecal.fits.combination.best_linear import blue, combine
from musclecal.fits.combination.definiteness import (
    allowed_correlation,
    audit,
    audit_correlation,
    checked_correlation,
)
from musclecal.fits.combination.groups import combine_groups
from musclecal.fits.combination.leave_out import leave_one_out
from musclecal.fits.combination.repair import repair_correlation, repair_source
from musclecal.fits.combination.rescaled import blue_rescaled
from musclecal.fits.combination.scans import scan_correlations
from musclecal.fits.combination.toys import shift_toys
from musclecal.fits.combination.worst_case import worst_case

__all__ = [
    "allowed_correlation",
    "audit",
    "audit_correlation",
    "blue",
    "blue_rescaled",
    "checked_correlation",
    "combine",
    "combine_groups",
    "leave_one_out",
    "repair_correlation",
    "repair_source",
    "scan_correlations",
    "shift_toys",
    "worst_case",
]
