"""Correlated measurements combined: one or many observables, sources of uncertainty shared by name or by correlation."""
