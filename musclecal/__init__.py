"""Muon momentum scale calibration for collider experiments.

From muon pairs to a validated correction: ``musclecal run --demo`` shows the whole chain on a sample with known truth.
"""
