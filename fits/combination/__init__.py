"""Correlated measurements combined: one or many observables, sources shared by name or by correlation."""
