"""A common hidden offset of all observables, so that a combination can be studied before its value is seen.

Differences, residuals, pulls, chi2, weights, covariances, and scans as differences stay what they are: they do not
depend on a common offset. Results with relative uncertainties (`blue_rescaled`), ratios and normalised bins do.

Who knows the passphrase and the size knows the offset: keep them apart from the analysis.
"""

import hashlib
from dataclasses import replace

import numpy as np

from musclecal.errors import InputError
from musclecal.records import Combined, Floats, Measurements

__all__ = ["blinded", "unblinded"]


def blinded(measurements: Measurements, passphrase: str, size: float) -> Measurements:
    """Measurements with every observable moved by the same number between -size and size, drawn by the passphrase."""
    shift = measurements.design.sum(axis=1) * _offset(passphrase, size)
    return replace(measurements, values=measurements.values + shift)


def unblinded(combined: Combined, passphrase: str, size: float) -> Combined:
    """The combination of the measurements as they were."""
    offset = _offset(passphrase, size)
    shift: Floats = combined.design.sum(axis=1) * offset
    return replace(combined, values=combined.values - offset, inputs=combined.inputs - shift)


def _offset(passphrase: str, size: float) -> float:
    """Uniform in [-size, size), the same on every machine."""
    if not passphrase:
        raise InputError("blinding: the passphrase is empty")
    if not (np.isfinite(size) and size > 0.0):
        raise InputError(f"blinding: a size of {size} hides nothing")
    digest = hashlib.sha256(passphrase.encode()).digest()
    return size * (int.from_bytes(digest[:8], "big") / 2.0**63 - 1.0)
