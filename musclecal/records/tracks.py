"""Tracks as lists of hits, and the pairs that they make."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from musclecal.records.arrays import Floats, Ints

__all__ = ["Pairs", "Tracks"]


@dataclass(frozen=True)
class Tracks:
    """Muon tracks, one row a track, padded to ``n_max`` sensors.

    Attributes
    ----------
    charge : (n,) +1 or -1.
    module : (n, n_max) sensors in the order of the track, row numbers of the `Detector`; -1 behind the last one.
    u, v : (n, n_max) cm, measured local coordinates; nan where nothing was measured: v of strips, a sensor that was
        crossed without a hit (it keeps its matter), padding.
    sigma_u, sigma_v : (n, n_max) cm; 1 at padding, sigma_v inf where v is not measured.
    event : (n,) number of the event.
    truth : (n, 6) q/p (1/GeV), lambda, phi, x, y, z (cm) at the vertex, after radiation; None in data.
    """

    charge: NDArray[np.int8]
    module: NDArray[np.int32]
    u: Floats
    v: Floats
    sigma_u: Floats
    sigma_v: Floats
    event: Ints
    truth: Floats | None = None

    def __len__(self) -> int:
        return len(self.charge)

    @property
    def n_sensors(self) -> Ints:
        """(n,) sensors of each track, with a hit or without."""
        return np.sum(self.module >= 0, axis=1)

    @property
    def n_hits(self) -> Ints:
        """(n,) hits of each track; u and v of a pixel are one hit."""
        return np.sum(np.isfinite(self.u), axis=1)

    def select(self, which: NDArray[np.bool_] | NDArray[np.signedinteger] | slice) -> "Tracks":
        """The tracks of a mask, of indices, or of a slice (views of the arrays then)."""
        return Tracks(
            self.charge[which], self.module[which], self.u[which], self.v[which], self.sigma_u[which],
            self.sigma_v[which], self.event[which], None if self.truth is None else self.truth[which],
        )  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Opposite-sign pairs of tracks.

    Attributes
    ----------
    tracks : all tracks, in any order.
    pairs : (n_pair, 2) rows of the mu+ and the mu- track.
    is_background : (n_pair,) in simulation; None in data.
    n_events : events that were read, with a pair or without; None where each has one. A selection leaves it as it is.
    """

    tracks: Tracks
    pairs: NDArray[np.int32]
    is_background: NDArray[np.bool_] | None = None
    n_events: int | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, which: NDArray[np.bool_] | Ints) -> "Pairs":
        """The pairs of a mask or of indices; the tracks stay as they are."""
        background = None if self.is_background is None else self.is_background[which]
        return replace(self, pairs=self.pairs[which], is_background=background)
