"""Pairs into 4D x mass from pt, eta, phi: 24 eta bins, 4 pT bins, 100 mass bins, one thread.

All start from the same six columns (float64) in memory and end with counts; in the agreement every count is compared.
What is not alike: ours also sums eight quantities of each pair for every 4D bin (k, 1/k, f, 1/k^2 of both muons),
which none of the peers do; ours keeps occupied 4D bins alone, theirs are dense (921,600 cells). numpy computes the
mass in columns, so it moves them through memory several times; numpy.histogramdd and RDataFrame search all axes by
bisection. boost-histogram has regular axes in eta and in ln m (its logarithmic transform finds a bin four times as
fast as a search of edges does). RDataFrame is told of numpy's memory without a copy, and its C++ is compiled before
the clock starts, but each run builds its graph anew, for a graph runs but once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.peers.rows import Difference, Effort, Peer, Timed, Work, need
from musclecal.binning import Binning, equal_eta_edges
from musclecal.constants import MUON_MASS
from musclecal.fits.histogram import fill
from musclecal.records import DimuonEvents, Floats, MassHistogram
from musclecal.resonances import resonance
from musclecal.simulate import SimulationSettings, first_events

PT_EDGES = (4.0, 4.9, 6.4, 9.5, 40.0)
AIMS = {"numpy+boost-histogram": 8.0}
BYTES = 48.0
"""Six columns of a pair, read once."""


@dataclass(frozen=True)
class Way:
    """``run`` fills, on the clock; ``counts`` are those of what it gives."""

    run: Callable[[], Any]
    counts: Callable[[Any], Floats]


@dataclass(frozen=True)
class Pairs:
    """Columns (n,) of pairs, and the axes."""

    events: DimuonEvents
    binning: Binning

    @property
    def columns(self) -> tuple[Floats, ...]:
        """pt, eta, phi of mu+, then of mu-."""
        plus, minus = self.events.plus, self.events.minus
        return plus.pt, plus.eta, plus.phi, minus.pt, minus.eta, minus.phi

    @property
    def edges(self) -> tuple[Floats, ...]:
        """eta+, eta-, pt+, pt-, mass."""
        eta, pt = np.array(self.binning.eta_edges), np.array(self.binning.pt_edges)
        return eta, eta, pt, pt, self.binning.mass_edges

    def first(self, n: int) -> "Pairs":
        """The first ``n``."""
        return replace(self, events=self.events.select(np.arange(n)))


def axes() -> Binning:
    """Of the J/psi."""
    jpsi = resonance("Jpsi")
    return Binning(equal_eta_edges(24, 2.4), PT_EDGES, jpsi.mass_window, 100, jpsi.line.mass)


def simulated(n: int, seed: int = 1) -> Pairs:
    """Accepted a little beyond the edges, so that some pairs are outside."""
    settings = SimulationSettings(resonance("Jpsi"), (3.9, 42.0), (-2.45, 2.45), (2.8, 3.3))
    events = first_events(settings, n, seed)
    return Pairs(DimuonEvents(events.plus, events.minus), axes())


def dense(histogram: MassHistogram) -> Floats:
    """(n_bins, n_mass) counts of all 4D bins."""
    out = np.zeros((histogram.binning.n_bins, histogram.binning.mass_bins))
    out[histogram.bins] = histogram.counts
    return out


def mass(pt1: Floats, eta1: Floats, phi1: Floats, pt2: Floats, eta2: Floats, phi2: Floats) -> Floats:
    """GeV, with the mass of the muon."""
    mu2 = MUON_MASS**2
    energy = np.sqrt(((pt1 * np.cosh(eta1)) ** 2 + mu2) * ((pt2 * np.cosh(eta2)) ** 2 + mu2))
    product = pt1 * pt2 * (np.cos(phi1 - phi2) + np.sinh(eta1) * np.sinh(eta2))
    return np.asarray(np.sqrt(2.0 * (mu2 + energy - product)))


def with_boost_histogram(pairs: Pairs) -> Way:
    """Mass by numpy, 5D histogram of integers."""
    import boost_histogram as bh

    eta, _, pt, _, masses = pairs.edges
    columns = pairs.columns

    def run() -> Any:
        eta_axis = bh.axis.Regular(len(eta) - 1, eta[0], eta[-1], underflow=False, overflow=False)
        pt_axis = bh.axis.Variable(pt, underflow=False, overflow=False)
        mass_axis = bh.axis.Regular(len(masses) - 1, masses[0], masses[-1], transform=bh.axis.transform.log)
        histogram = bh.Histogram(eta_axis, eta_axis, pt_axis, pt_axis, mass_axis, storage=bh.storage.Int64())
        pt1, eta1, _, pt2, eta2, _ = columns
        histogram.fill(eta1, eta2, pt1, pt2, mass(*columns), threads=1)
        return histogram

    return Way(run, lambda histogram: np.asarray(histogram.view()))


def with_histogramdd(pairs: Pairs) -> Way:
    """Mass by numpy, numpy.histogramdd."""
    columns, edges = pairs.columns, pairs.edges

    def run() -> Floats:
        pt1, eta1, _, pt2, eta2, _ = columns
        return np.histogramdd((eta1, eta2, pt1, pt2, mass(*columns)), edges)[0]

    return Way(run, np.asarray)


ROOT_MASS = f"""
#include <cmath>
#include <vector>
#include <THn.h>
namespace musclecal_benchmark {{
inline double mass(double pt1, double eta1, double phi1, double pt2, double eta2, double phi2) {{
  const double mu2 = {MUON_MASS**2!r};
  const double p1 = pt1 * std::cosh(eta1), p2 = pt2 * std::cosh(eta2);
  const double e = std::sqrt((p1 * p1 + mu2) * (p2 * p2 + mu2));
  return std::sqrt(2.0 * (mu2 + e - pt1 * pt2 * (std::cos(phi1 - phi2) + std::sinh(eta1) * std::sinh(eta2))));
}}
inline void copy(const THnD& histogram, std::vector<double>& out) {{
  for (Long64_t i = 0; i < histogram.GetNbins(); ++i) out.push_back(histogram.GetBinContent(i));
}}
}}
"""


def declare(code: str, known: str) -> Any:
    """The ROOT module, with C++ ``code`` that says ``known``."""
    need("ROOT")
    import ROOT

    ROOT.gROOT.SetBatch(True)
    if not hasattr(ROOT, known) and not ROOT.gInterpreter.Declare(code):
        raise RuntimeError(f"{known}: the C++ of this benchmark does not compile here")
    return ROOT


def with_rdataframe(pairs: Pairs) -> Way:
    """FromNumpy, Define, HistoND."""
    root = declare(ROOT_MASS, "musclecal_benchmark")
    names = ("pt1", "eta1", "phi1", "pt2", "eta2", "phi2")
    table = dict(zip(names, (np.ascontiguousarray(column) for column in pairs.columns), strict=True))
    edges = pairs.edges
    shape = [len(edge) - 1 for edge in edges]
    axes_of_root = root.std.vector["std::vector<double>"](
        [root.std.vector["double"](e.tolist()) for e in edges]
    )
    bins = root.std.vector["int"](shape)

    def run() -> Any:
        frame = root.RDF.FromNumpy(table).Define("m", f"musclecal_benchmark::mass({', '.join(names)})")
        model = root.RDF.THnDModel("h", "h", 5, bins, axes_of_root)
        return frame.HistoND(model, ["eta1", "eta2", "pt1", "pt2", "m"]).GetValue()

    def counts(histogram: Any) -> Floats:
        content = root.std.vector["double"]()
        root.musclecal_benchmark.copy(histogram, content)
        return np.array(content).reshape([n + 2 for n in shape])[1:-1, 1:-1, 1:-1, 1:-1, 1:-1]

    return Way(run, counts)


def peer(pairs: Pairs, maker: Callable[[Pairs], Way]) -> Peer:
    """Every count is compared."""
    way = maker(pairs)
    ours = dense(fill([pairs.events], pairs.binning, threads=1))
    theirs = way.counts(way.run()).reshape(ours.shape)
    n = len(pairs.events)
    different = float(np.abs(ours - theirs).sum()) / n
    return Peer(
        Timed(way.run, n),
        (Difference("counts that differ, of all", different, 1e-6), Difference("counts", float(ours.sum()))),
    )


def work(effort: Effort) -> Work:
    """``fill``."""
    n = effort.of(2e6, 1000)
    pairs = simulated(n)

    def run() -> MassHistogram:
        return fill([pairs.events], pairs.binning, threads=1)

    run()
    return Work(
        "fill",
        "pairs",
        Timed(run, n),
        BYTES,
        {
            "numpy+boost-histogram": lambda: peer(pairs, with_boost_histogram),
            "histogramdd": lambda: peer(pairs.first(max(n // 10, 1000)), with_histogramdd),
        },
        {"rdataframe": lambda: peer(pairs, with_rdataframe)},
        AIMS,
    )
