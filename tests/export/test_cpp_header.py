"""The header, compiled with g++, against formulas in numpy, `musclecal.smear` and correctionlib."""

import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import correctionlib
import numpy as np
import pytest
from numpy.typing import NDArray

from musclecal.errors import InputError
from musclecal.export import export_correctionlib, export_header
from musclecal.export.cpp_header import namespace_of
from musclecal.export.reference_vectors import reference_of
from musclecal.records import CorrectionTables, Muons
from musclecal.scale import relative_correction
from musclecal.smear import extra_sigma, normal_draws

Make = Callable[..., CorrectionTables]
Floats = NDArray[np.float64]

PROGRAM = """
#include "muon_scale.h"
#include "muon_scale.h"
#include <cstdio>
#include <iostream>
namespace scale = muon_scale_2016H;
struct Row { double pt, eta, phi, charge, nsigma; long long ivar, run, lumi, event, salt; };
static_assert(scale::Tables::n_var == 22 && scale::Tables::eta_edges[0] < -2.3, "tables are constant expressions");
int main() {
  Row r;
  while (std::fread(&r, sizeof r, 1, stdin) == 1) {
    const double out[4] = {
      scale::factor(r.pt, r.eta, r.charge),
      scale::factor(r.pt, r.eta, r.charge, static_cast<int>(r.ivar), r.nsigma),
      scale::smear(r.pt, r.eta, r.phi, r.run, r.lumi, static_cast<std::uint64_t>(r.event), r.salt),
      static_cast<double>(static_cast<int>(scale::validity(r.pt, r.eta, r.charge)))};
    std::fwrite(out, sizeof out, 1, stdout);
  }
}
"""
OPTIONS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")


def compiled(program: str, folder: Path, *options: str) -> Path:
    """The program, with the headers of its folder; warnings are errors."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    (folder / "main.cpp").write_text(program)
    made = subprocess.run(
        ["g++", *OPTIONS, *options, "main.cpp", "-o", "main"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return folder / "main"


def output(program: Path) -> list[float]:
    return [float(word) for word in subprocess.check_output([str(program)], text=True).split()]


class Sample:
    """Random muons, ordinary ones and all kinds that are none."""

    def __init__(self, n: int, eta_edges: Floats, n_var: int) -> None:
        rng = np.random.default_rng(5)
        self.pt = np.exp(rng.uniform(np.log(1.0), np.log(400.0), n))
        self.eta = rng.uniform(-2.6, 2.6, n)
        self.phi = rng.uniform(-np.pi, np.pi, n)
        self.charge = rng.choice([-1.0, 1.0], n)
        bad = [np.nan, np.inf, -np.inf]
        self.put(
            rng,
            self.pt,
            [*bad, 0.0, -0.0, -30.0, 2.0, 200.0, np.nextafter(2.0, 0.0), np.nextafter(200.0, 0.0), 5e-324],
        )
        near = [np.nextafter(edge, side) for edge in eta_edges for side in (-9.0, 9.0)]
        self.put(rng, self.eta, [*bad, 2.4, -2.4, *eta_edges, *near])
        self.put(rng, self.phi, [*bad, 0.0, -0.0, np.pi, -np.pi, 2e6, 1e6, -1e6, 1e300])
        self.put(rng, self.charge, [*bad, 0.0, 2.0, -1.0 - 1e-12, 0.5])
        self.nsigma = rng.normal(0.0, 2.0, n)
        self.ivar = rng.integers(0, n_var, n)
        self.run, self.lumi = rng.integers(1, 400_000, n), rng.integers(1, 4000, n)
        self.event = rng.integers(0, 2**63 - 1, n)
        self.event[: n // 2] = rng.integers(1, 2**40, n // 2)
        self.salt = rng.integers(-3, 3, n)

    @staticmethod
    def put(rng: np.random.Generator, into: Floats, special: list[float]) -> None:
        where = rng.random(len(into)) < 0.15
        into[where] = rng.choice(special, int(where.sum()))

    def packed(self) -> bytes:
        reals = [self.pt, self.eta, self.phi, self.charge, self.nsigma]
        integers = [self.ivar, self.run, self.lumi, self.event, self.salt]
        columns = [x.astype("<f8").view("u8") for x in reals] + [x.astype("<i8").view("u8") for x in integers]
        return np.stack(columns, axis=1).tobytes()

    def reasons(self, t: CorrectionTables) -> NDArray[np.int64]:
        """The first that applies, in the order of their numbers."""
        low, high = t.pt_range
        finite = np.isfinite(self.pt) & np.isfinite(self.eta) & np.isfinite(self.charge)
        outside = ~((self.eta >= t.eta_edges[0]) & (self.eta < t.eta_edges[-1]))
        no_charge = np.abs(self.charge) != 1.0
        return np.select([~finite, self.pt < low, self.pt >= high, outside, no_charge], [1, 2, 3, 4, 5], 0)


def test_header_gives_the_reference_muons(full_tables: Make, tmp_path: Path) -> None:
    """nan, infinite, of no charge, and with other salts among them."""
    t = full_tables(6)
    export_header(t, tmp_path / "muon_scale.h")
    columns = reference_of(t)
    m = Sample(1000, t.eta_edges, t.n_variations)
    for name in ("pt", "eta", "phi", "charge", "run", "lumi", "event", "salt"):
        setattr(m, name, columns[name])
    m.ivar, m.nsigma = np.full(1000, t.n_variations - 1), np.full(1000, -1.0)
    run = subprocess.run([compiled(PROGRAM, tmp_path)], input=m.packed(), capture_output=True, check=True)
    nominal, varied, smeared, reason = np.frombuffer(run.stdout).reshape(1000, 4).T
    last = f"{t.variation_names[-1]}_down"
    for found, name in ((nominal, "scale"), (varied, last), (smeared, "smear")):
        np.testing.assert_allclose(found, columns[name], rtol=0.0, atol=1e-12)
    assert set(reason) == {0, 1, 2, 3, 4, 5}
    np.testing.assert_array_equal(columns["scale"][reason != 0], 1.0)


@pytest.fixture(scope="module")
def n_muons() -> int:
    return 100_000


def test_header_is_numpy_smear_and_correctionlib(full_tables: Make, tmp_path: Path, n_muons: int) -> None:
    """To 1e-12, for every muon, with the reasons."""
    t = full_tables(6)
    export_header(t, tmp_path / "muon_scale.h")
    export_correctionlib(t, tmp_path / "muon_scale.json.gz")
    m = Sample(n_muons, t.eta_edges, t.n_variations)
    run = subprocess.run([compiled(PROGRAM, tmp_path)], input=m.packed(), capture_output=True, check=True)
    nominal, varied, smeared, reason = np.frombuffer(run.stdout).reshape(n_muons, 4).T

    np.testing.assert_array_equal(reason, m.reasons(t))
    assert set(reason) == {0, 1, 2, 3, 4, 5}
    good = reason == 0
    i = np.searchsorted(t.eta_edges, m.eta[good], side="right") - 1
    shift = t.parameters.reshape(-1, 3)[i] + m.nsigma[good, None] * t.variations[i, :, m.ivar[good]]
    for factor, parameters in ((nominal, t.parameters.reshape(-1, 3)[i]), (varied, shift)):
        expected = np.ones(n_muons)
        expected[good] = 1.0 / (1.0 + relative_correction(m.pt[good], m.charge[good], *parameters.T))
        np.testing.assert_allclose(factor, expected, rtol=1e-12, atol=0.0)
        np.testing.assert_array_equal(factor[~good], 1.0)

    assert t.smearing is not None
    can = (m.pt >= 2.0) & (m.pt < 200.0) & (np.abs(m.eta) < np.inf) & (m.phi >= -1e6) & (m.phi < 1e6)
    salted = np.empty(can.sum())
    for salt in range(-3, 3):
        same = m.salt[can] == salt
        run_of, lumi, event, phi = (x[can][same] for x in (m.run, m.lumi, m.event, m.phi))
        salted[same] = normal_draws(run_of, lumi, event, phi, salt)
    sigma = extra_sigma(Muons(m.pt[can], m.eta[can], m.phi[can], m.charge[can]), t.smearing)
    np.testing.assert_allclose(smeared[can], 1.0 / (1.0 + sigma * salted), rtol=1e-12)
    np.testing.assert_array_equal(smeared[~can], 1.0)
    assert np.std(smeared[can]) > 1e-3

    other = correctionlib.CorrectionSet.from_file(str(tmp_path / "muon_scale.json.gz"))
    muon = (m.pt, m.eta, m.charge)
    np.testing.assert_allclose(nominal, other["muon_pt_scale"].evaluate(*muon, "nom"), rtol=1e-12)
    np.testing.assert_allclose(
        varied, other["muon_pt_scale_var"].evaluate(*muon, m.ivar, m.nsigma), rtol=1e-12
    )
    inputs = (m.phi, m.run, m.lumi, m.event, m.salt)
    np.testing.assert_allclose(smeared, other["muon_pt_smear"].evaluate(m.pt, m.eta, *inputs), rtol=1e-12)


def test_two_periods_in_one_program(full_tables: Make, tmp_path: Path) -> None:
    """Each keeps its own tables; the header may be in several files of a program."""
    one, other = full_tables(6, s=1.0), full_tables(4, smearing=None)
    export_header(one, tmp_path / "one.h", namespace="first")
    export_header(other, tmp_path / "other.h", namespace="second")
    (tmp_path / "more.cpp").write_text(
        '#include "other.h"\ndouble more() { return second::factor(40.0, 0.1, 1); }\n'
    )
    program = """#include "one.h"
#include "other.h"
#include <cstdio>
double more();
int main() { std::printf("%.17g %.17g %.17g", first::factor(40.0, 0.1, 1), second::factor(40.0, 0.1, 1), more()); }
"""
    factors = output(compiled(program, tmp_path, "more.cpp"))
    expected = [
        1.0 / (1.0 + relative_correction(40.0, 1, t.A[n], t.e[n], t.M[n])) for t, n in ((one, 3), (other, 2))
    ]
    np.testing.assert_allclose(factors, [*expected, expected[1]], rtol=1e-14)
    assert "smear" not in (tmp_path / "other.h").read_text().split("namespace second {")[1]


def test_unknown_variation_throws_and_a_turned_charge_has_its_reason(
    full_tables: Make, tmp_path: Path
) -> None:
    """With 1e6 sigma a variation turns the charge; correctionlib gives the same negative factor."""
    t = full_tables(6)
    export_header(t, tmp_path / "muon_scale.h", namespace="scale")
    export_correctionlib(t, tmp_path / "muon_scale.json.gz")
    program = """#include "muon_scale.h"
#include <cstdio>
int main() {
  int thrown = 0;
  for (int ivar : {-1, scale::Tables::n_var}) {
    try { scale::factor(1e9, 0.1, 1, ivar, 0.0); } catch (const std::out_of_range&) { ++thrown; }
    try { scale::validity(1e9, 0.1, 1, ivar, 0.0); } catch (const std::out_of_range&) { ++thrown; }
  }
  for (double nsigma : {-1e6, 1e6})
    std::printf("%d %.17g ", static_cast<int>(scale::validity(100.0, 0.1, 1, 0, nsigma)),
                scale::factor(100.0, 0.1, 1, 0, nsigma));
  std::printf("%d", thrown);
}
"""
    *shifted, thrown = output(compiled(program, tmp_path))
    assert thrown == 4
    correction = correctionlib.CorrectionSet.from_file(str(tmp_path / "muon_scale.json.gz"))[
        "muon_pt_scale_var"
    ]
    reasons, factors = shifted[::2], shifted[1::2]
    np.testing.assert_allclose(
        factors, [correction.evaluate(100.0, 0.1, 1.0, 0, x) for x in (-1e6, 1e6)], rtol=1e-9
    )
    assert sorted(reasons) == [0, 6]
    assert [reason == 6 for reason in reasons] == [factor < 0.0 for factor in factors]


def test_same_tables_are_the_same_bytes(full_tables: Make, tmp_path: Path) -> None:
    for name in ("one.h", "two.h"):
        export_header(full_tables(6), tmp_path / name)
    assert (tmp_path / "one.h").read_bytes() == (tmp_path / "two.h").read_bytes()


def test_any_provenance_is_a_comment(full_tables: Make, tmp_path: Path) -> None:
    nasty = {"note": "first\nint second_line;\r\n*/ /* \\", "path": "a??/", "period": ""}
    export_header(replace(full_tables(2), provenance=nasty), tmp_path / "muon_scale.h")
    compiled('#include "muon_scale.h"\nint main() { return muon_scale::Tables::n_eta - 2; }\n', tmp_path)


def test_fast_math_is_refused(full_tables: Make, tmp_path: Path) -> None:
    export_header(full_tables(2), tmp_path / "muon_scale.h", namespace="scale")
    with pytest.raises(AssertionError, match="removes the checks for nan"):
        compiled('#include "muon_scale.h"\nint main() {}\n', tmp_path, "-ffast-math")


def test_numbers_have_all_digits(full_tables: Make, tmp_path: Path) -> None:
    t = full_tables(3)
    export_header(t, tmp_path / "muon_scale.h", namespace="scale")
    program = """#include "muon_scale.h"
#include <cstdio>
int main() {
  for (const auto& variation : scale::Tables::variations)
    for (const auto& row : variation) for (double x : row) std::fwrite(&x, sizeof x, 1, stdout);
}
"""
    raw = subprocess.check_output([str(compiled(program, tmp_path))])
    values = np.array(struct.unpack(f"<{len(raw) // 8}d", raw)).reshape(t.n_variations, 3, 3)
    np.testing.assert_array_equal(np.moveaxis(values, 0, 2), t.variations)


@pytest.mark.parametrize(
    ("period", "name"),
    [("2016H", "muon_scale_2016H"), ("", "muon_scale"), ("2022 EE/v-1__b", "muon_scale_2022_EE_v_1_b")],
)
def test_namespace_of_a_period(period: str, name: str) -> None:
    assert namespace_of(period) == name


@pytest.mark.parametrize("name", ["", "2016", "a b", "a-b", "class", "a__b", "_A", "a::b", "é", "a\n"])
def test_namespace_that_is_no_identifier(full_tables: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no C\\+\\+ identifier"):
        export_header(full_tables(2), tmp_path / "muon_scale.h", namespace=name)
    assert list(tmp_path.iterdir()) == []
