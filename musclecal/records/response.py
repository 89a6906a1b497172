"""How the measured curvature of a simulated muon is distributed about its true one."""

from dataclasses import dataclass

from musclecal.records.arrays import Floats, Ints

__all__ = ["Response"]


@dataclass(frozen=True)
class Response:
    """Density of rho = k/k_true of simulated muons: one shape per eta bin, its place and width for each true pT.

    The density of t = (rho - 1 - location)/width is exp(log_density). Location and width are linear in ln pT between
    ``pt_edges``; beyond the first and last ``nodes`` nothing is known of the shape.

    Attributes
    ----------
    eta_edges : (n_eta + 1,).
    pt_edges : (n_pt + 1,) GeV, of the true pT.
    location : (2, n_eta, n_pt + 1) at ``pt_edges``, of mu+, then of mu-.
    width : (n_eta, n_pt + 1) at ``pt_edges``, of both charges.
    nodes : (n_node,) t, equally spaced.
    log_density : (n_eta, n_node) g(t) = ln of the density of t.
    slope : (n_eta, n_node) dg/dt.
    n_muons : (2, n_eta, n_pt) that it was made from, of mu+, then of mu-.
    n_beyond : muons of the cells that were too far off to be counted.
    """

    eta_edges: Floats
    pt_edges: Floats
    location: Floats
    width: Floats
    nodes: Floats
    log_density: Floats
    slope: Floats
    n_muons: Ints
    n_beyond: int
