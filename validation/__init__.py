"""Proof of a calibration: closure, scaled systematic, propagation to masses, coverage, report."""
