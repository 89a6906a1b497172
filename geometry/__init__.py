"""The tracker as a set of planes: track model, detector, field, material, refit, per-module corrections."""
