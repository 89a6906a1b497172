"""A reference for the calibration of simulation against its own truth: generator-level momenta, smeared anew.

Each simulated pair gives several replicas. Directions stay as measured; the transverse momentum is the true one,
smeared with the resolution of the simulation itself and a random number that belongs to (muon, replica), whatever the
chunks or the order of the events. A replica differs from the measured pair in random numbers and in the bias alone.

Pairs of data and replicas share the true masses: where these fluctuate (a wide resonance), the difference of the two
fluctuates less than that of two independent samples, and quoted errors are too large.
"""

import numpy as np

from musclecal.errors import InputError
from musclecal.records import DimuonEvents, Floats, Ints, Muons, Resolution, Smearing
from musclecal.smear import extra_sigma, normal_draws

__all__ = ["generator_replicas"]


def generator_replicas(events: DimuonEvents, resolution: Resolution, replicas: int) -> DimuonEvents:
    """(replicas n_event) pairs: all pairs once, then all once more, ...

    Parameters
    ----------
    resolution : of the simulation, from its own residuals; the variance is clipped at zero, muon by muon.

    Raises
    ------
    InputError : no generator-level muons.
    """
    if events.gen_plus is None or events.gen_minus is None:
        raise InputError("simulation as target: no generator-level muons (gen_* columns)")
    r = resolution
    smearing = Smearing(r.eta_edges, r.a, r.b, r.c, r.d, np.zeros(len(r.a)))
    plus, minus = (
        np.concatenate([_smeared(muons, true, other, smearing, salt) for salt in range(replicas)])
        for muons, true, other in (
            (events.plus, events.gen_plus, events.gen_minus),
            (events.minus, events.gen_minus, events.gen_plus),
        )
    )
    return events.select(np.tile(np.arange(len(events)), replicas)).with_momenta(plus, minus)


def _smeared(muons: Muons, true: Muons, other: Muons, smearing: Smearing, salt: int) -> Floats:
    sigma = extra_sigma(Muons(true.pt, muons.eta, muons.phi), smearing)
    draws = normal_draws(_bits(true.pt), _bits(true.eta), _bits(other.pt), true.phi, salt)
    return np.asarray(true.pt / (1.0 + sigma * draws))


def _bits(values: Floats) -> Ints:
    """What a muon is known by: event numbers may be missing, or the same in several samples."""
    return np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
