"""Correlated measurements combined in closed form (BLUE), and what can be asked of the result."""

from musclecal.fits.combination.best_linear import blue, combine

__all__ = [
    "blue",
    "combine",
]
