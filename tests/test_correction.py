"""`musclecal.load`: any muon gets a number, the same as in all other forms of the tables, or a reason why not."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import correctionlib
import numpy as np
import pytest
from numpy.typing import NDArray

import musclecal
from musclecal.correction import Correction, Reason
from musclecal.errors import InputError
from musclecal.export import correction_tables, export_correctionlib, export_json, export_npz
from musclecal.export.folder import FORMATS, READERS, export_folder
from musclecal.records import CorrectionTables, ScaleWithCovariance, Smearing

Floats = NDArray[np.float64]
Columns = dict[str, Any]

UNEVEN = (-2.4, -2.1, -0.9, 0.0, 1e-3, 1 / 3, 2.4)
PROGRAM = """
#include "muon_scale.h"
#include <cstdio>
struct Row { double pt, eta, phi, charge; long long ivar, run, lumi, event; };
int main() {
  Row r;
  while (std::fread(&r, sizeof r, 1, stdin) == 1) {
    const int ivar = static_cast<int>(r.ivar);
    const double out[5] = {
      muon_scale::factor(r.pt, r.eta, r.charge), muon_scale::factor(r.pt, r.eta, r.charge, ivar, 1.0),
      muon_scale::factor(r.pt, r.eta, r.charge, ivar, -1.0),
      muon_scale::smear(r.pt, r.eta, r.phi, r.run, r.lumi, static_cast<std::uint64_t>(r.event)),
      static_cast<double>(static_cast<int>(muon_scale::validity(r.pt, r.eta, r.charge)))};
    std::fwrite(out, sizeof out, 1, stdout);
  }
}
"""


@cache
def tables(edges: tuple[float, ...] = UNEVEN) -> CorrectionTables:
    """With a strong correction, variations of all sizes, and smearing in other eta bins; s = 2."""
    n = len(edges) - 1
    rng = np.random.default_rng(n)
    root = rng.normal(size=(3 * n, 3 * n + 2)) * np.tile([2e-5, 2e-4, 2e-6], n)[:, None]
    scale = ScaleWithCovariance(
        np.array(edges), rng.normal(0.0, 1e-3, n), rng.normal(5e-3, 2e-3, n), rng.normal(0.0, 1e-4, n),
        root @ root.T,
    )  # fmt: skip
    smearing = Smearing(
        np.array([-2.4, -1.0, 0.5, 2.4]), np.array([1e-4, 2e-5, 0.0]), np.array([1e-5, 0.0, 2e-5]),
        np.array([1e-9, -1e-8, 1e-9]), np.full(3, 400.0), np.zeros(3),
    )  # fmt: skip
    return correction_tables(scale, {"config": "sha256 0123"}, s=2.0, smearing=smearing)


@cache
def correction() -> Correction:
    return Correction(tables())


def muons(n: int, seed: int = 1) -> Columns:
    """Ordinary ones, within all ranges."""
    rng = np.random.default_rng(seed)
    return {
        "pt": np.exp(rng.uniform(np.log(2.0), np.log(200.0), n)),
        "eta": rng.uniform(-2.4, 2.4, n),
        "phi": rng.uniform(-np.pi, np.pi, n),
        "charge": rng.choice([-1.0, 1.0], n),
    }


def event_numbers(n: int, seed: int = 2) -> Columns:
    rng = np.random.default_rng(seed)
    return {
        "run": rng.integers(1, 400_000, n),
        "lumi": rng.integers(1, 4000, n),
        "event": rng.integers(1, 2**62, n),
    }


def any_muons(n: int, seed: int = 3) -> Columns:
    """A third of them are none, or sit on the last number of a range or of a bin."""
    rng = np.random.default_rng(seed)
    columns = muons(n, seed)
    columns["pt"] = np.exp(rng.uniform(np.log(1.0), np.log(400.0), n))
    columns["eta"] = rng.uniform(-2.6, 2.6, n)
    bad = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e308, -1e308]
    edges = [-2.4, 2.4, *UNEVEN, *tables().smearing.eta_edges.tolist()]  # type: ignore[union-attr]
    special = {
        "pt": [*bad, -30.0, 2.0, 200.0],
        "eta": [*bad, *edges, *np.nextafter(edges, 9.0), *np.nextafter(edges, -9.0)],
        # correctionlib has no float32: its rounding keeps numbers that are too small for one.
        "phi": [*(x for x in bad if x != 5e-324), np.pi, -np.pi, 1e6, -1e6, 2e6],
        "charge": [*bad, 2.0, -2.0, 0.5, 1.0 + 1e-14, -1.0 + 1e-14],
    }
    special["pt"] += [float(np.nextafter(x, side)) for x in (2.0, 200.0) for side in (0.0, 999.0)]
    for name, values in special.items():
        where = rng.random(n) < 0.1
        columns[name][where] = rng.choice(values, int(where.sum()))
    return columns


# An implementation in plain numpy, from the definitions alone


def plain_reasons(t: CorrectionTables, m: Columns) -> NDArray[np.int64]:
    """In the order of `Reason`; none of the muons turns its charge."""
    pt, eta, charge = m["pt"], m["eta"], m["charge"]
    finite = np.isfinite(pt) & np.isfinite(eta) & np.isfinite(charge)
    outside = (eta < t.eta_edges[0]) | (eta >= t.eta_edges[-1])
    wrong = [~finite, pt < t.pt_range[0], pt >= t.pt_range[1], outside, (charge != 1.0) & (charge != -1.0)]
    return np.asarray(np.select(wrong, [1, 2, 3, 4, 5], 0))


def plain_factors(t: CorrectionTables, m: Columns, shift: Floats | float = 0.0) -> Floats:
    """(n,) k/k_corr with k_corr = (1 + A - e k) k + q M; ``shift`` (n, 3) of A, e, M."""
    good = plain_reasons(t, m) == 0
    k, q = 1.0 / m["pt"][good], m["charge"][good]
    A, e, M = (t.parameters.reshape(-1, 3)[plain_bins(t, m)] + shift)[good].T
    out = np.ones(len(good))
    out[good] = k / ((1.0 + A - e * k) * k + q * M)
    return out


def plain_bins(t: CorrectionTables, m: Columns) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.searchsorted(t.eta_edges, m["eta"], side="right") - 1, 0, t.n_eta - 1))


# One answer everywhere


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("correction") / "export"
    export_folder(tables(), path)
    return path


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    place = folder.parent
    (place / "main.cpp").write_text(PROGRAM)
    options = ["-std=c++17", "-O2", f"-I{folder}", "-o", "main"]
    subprocess.run(["g++", "main.cpp", *options], cwd=place, check=True)
    return place / "main"


@pytest.mark.parametrize("n", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_any_muon_has_one_answer_in_four_implementations(folder: Path, program: Path, n: int) -> None:
    """To 1e-12, with the reasons: the kernels, correctionlib, numpy and C++."""
    t, loaded, m, ids = tables(), musclecal.load(folder), any_muons(n), event_numbers(n)
    library = correctionlib.CorrectionSet.from_file(str(folder / "muon_scale.json.gz"))
    ivar = np.random.default_rng(4).integers(0, t.n_variations, n)
    words = [m[name].view("u8") for name in m] + [x.view("u8") for x in (ivar, *ids.values())]
    run = subprocess.run([program], input=np.stack(words, axis=1).tobytes(), capture_output=True, check=True)
    cpp = np.frombuffer(run.stdout).reshape(n, 5).T

    valid, reason = loaded.validity(**m)
    np.testing.assert_array_equal(reason, plain_reasons(t, m))
    np.testing.assert_array_equal(valid, reason == Reason.VALID)
    np.testing.assert_array_equal(reason, cpp[4])
    assert set(reason.tolist()) == {0, 1, 2, 3, 4, 5}
    assert 0.2 < valid.mean() < 0.8

    muon = (m["pt"], m["eta"], m["charge"])
    shift = t.variations[plain_bins(t, m), :, ivar]
    in_sigma = library["muon_pt_scale_var"]
    for mine, numpy, theirs, header in (
        (loaded.scale(**m), plain_factors(t, m), library["muon_pt_scale"].evaluate(*muon, "nom"), cpp[0]),
        (None, plain_factors(t, m, shift), in_sigma.evaluate(*muon, ivar, 1.0), cpp[1]),
        (None, plain_factors(t, m, -shift), in_sigma.evaluate(*muon, ivar, -1.0), cpp[2]),
    ):
        for other in (mine, theirs, header):
            if other is not None:
                np.testing.assert_allclose(other, numpy, rtol=1e-12, atol=0.0)
                np.testing.assert_array_equal(other[~valid], 1.0)
    for first in range(0, n, 50_000):
        part = slice(first, first + 50_000)
        every = loaded.variations(**{name: column[part] for name, column in m.items()})
        assert np.all(np.isfinite(every))
        assert np.all(every[~valid[part]] == 1.0)
        of_one = np.take_along_axis(every, ivar[part, None], axis=1)[:, 0]
        np.testing.assert_allclose(of_one, cpp[1][part], rtol=1e-12, atol=0.0)
    for name in (t.variation_names[0], t.variation_names[-1]):
        for side in ("up", "down"):
            np.testing.assert_allclose(
                loaded.scale(**m, syst=f"{name}_{side}"),
                library["muon_pt_scale"].evaluate(*muon, f"{name}_{side}"), rtol=1e-12, atol=0.0,
            )  # fmt: skip

    smeared = loaded.smear(**m, **ids)
    theirs = library["muon_pt_smear"].evaluate(m["pt"], m["eta"], m["phi"], *ids.values(), 0)
    for other in (theirs, cpp[3]):
        np.testing.assert_allclose(smeared, other, rtol=1e-12, atol=0.0)
    assert np.all(smeared > 0.0)
    assert 1e-3 < np.std(smeared) < 0.1

    error = loaded.pt_error(**m, pt_err=np.ones(n))
    assert np.all(error > 0.9)
    assert np.all(error < 1.1)
    np.testing.assert_array_equal(error[~valid], 1.0)


def test_reasons_one_by_one() -> None:
    """The first that applies, in the documented order."""
    nan, inf = np.nan, np.inf
    for pt, eta, charge, reason in (
        (2.0, -2.4, 1, Reason.VALID), (np.nextafter(200.0, 0.0), 2.3, -1, Reason.VALID),
        (nan, 9.0, 0, Reason.NOT_FINITE), (20.0, -inf, 1, Reason.NOT_FINITE), (1.0, 0.0, nan, Reason.NOT_FINITE),
        (-20.0, 9.0, 0, Reason.PT_BELOW), (np.nextafter(2.0, 0.0), 0.0, 1, Reason.PT_BELOW),
        (200.0, 9.0, 0, Reason.PT_ABOVE), (20.0, 2.4, 0, Reason.ETA_OUTSIDE), (20.0, 0.1, 0, Reason.CHARGE),
        (20.0, 0.1, 2, Reason.CHARGE),
    ):  # fmt: skip
        found = correction().validity(pt, eta, 0.0, charge)
        assert found.reason == reason, (pt, eta, charge)
        assert found.valid == (reason == Reason.VALID)
        if not found.valid:
            assert correction().scale(pt, eta, 0.0, charge) == 1.0


def test_a_muon_whose_charge_would_be_turned() -> None:
    """Tables that are read are refused if they do that; those made by hand give 1 and say why."""
    t = replace(tables(), M=np.full(6, 1e-2))
    turning = Correction(t)
    pt, charge = np.array([90.0, 150.0, 150.0]), np.array([-1.0, -1.0, 1.0])
    assert turning.validity(pt, 0.1, 0.0, charge).reason.tolist() == [0, Reason.FLIPPED, 0]
    assert turning.scale(pt, 0.1, 0.0, charge)[1] == 1.0
    assert np.all(turning.variations(pt, 0.1, 0.0, charge)[1] == 1.0)
    assert turning.pt_error(pt, 0.1, 0.0, charge, 2.0)[1] == 2.0


@pytest.mark.parametrize(
    ("parameter", "value", "charge", "corrected"),
    [
        ("A", 1e-3, 1, 10.0 / 1.001),
        ("e", 5e-3, -1, 10.0 / (1.0 - 5e-4)),
        ("M", 1e-4, 1, 1.0 / 0.1001),
        ("M", 1e-4, -1, 1.0 / 0.0999),
    ],
)
def test_signs_by_hand(parameter: str, value: float, charge: int, corrected: float) -> None:
    zero = dict.fromkeys("AeM", np.zeros(6))
    t = replace(tables(), **(zero | {parameter: np.full(6, value)}))
    assert 10.0 * Correction(t).scale(10.0, 0.1, 0.0, charge) == pytest.approx(corrected, rel=1e-14)


# Variations


def test_columns_of_the_variations_are_the_named_ones() -> None:
    c, m = correction(), muons(2000)
    assert c.variation_names == tuple(f"stat{i}" for i in range(18))
    for side, nsigma in (("up", 1.0), ("down", -1.0)):
        every = c.variations(**m, nsigma=nsigma)
        assert every.shape == (2000, 18)
        for column, name in enumerate(c.variation_names):
            np.testing.assert_allclose(every[:, column], c.scale(**m, syst=f"{name}_{side}"), rtol=1e-13)
    np.testing.assert_allclose(c.variations(**m, nsigma=0.0), np.tile(c.scale(**m)[:, None], 18), rtol=1e-14)
    assert np.all(np.std(c.variations(**m)[:, :3] - c.scale(**m)[:, None], axis=0) > 1e-6)


def test_covariance_is_the_sum_of_the_variations() -> None:
    c = correction()
    shifts = c.tables.variations.reshape(18, 18)
    total = sum(np.outer(v, v) for v in shifts.T)
    sigma = np.sqrt(np.diagonal(total))
    assert np.max(np.abs(c.covariance - total) / np.outer(sigma, sigma)) < 1e-14
    assert np.max(np.abs(c.covariance - 2.0**2 * c.tables.covariance) / np.outer(sigma, sigma)) < 1e-9
    assert c.provenance == {"config": "sha256 0123"}


def test_variations_of_a_muon_sum_to_its_variance() -> None:
    """J C J^T with J = d(factor)/d(A, e, M) by finite differences of the definition."""
    c, m = correction(), muons(300)
    step = np.array([1e-7, 1e-6, 1e-9])
    slopes = [
        (plain_factors(c.tables, m, h) - plain_factors(c.tables, m, -h)) / (2.0 * h.sum())
        for h in np.diag(step)
    ]
    jacobian, i = np.stack(slopes, axis=1), plain_bins(c.tables, m)
    blocks = c.covariance.reshape(6, 3, 6, 3)[i, :, i, :]
    total = np.sum((c.variations(**m) - c.scale(**m)[:, None]) ** 2, axis=1)
    np.testing.assert_allclose(total, np.einsum("na,nab,nb->n", jacobian, blocks, jacobian), rtol=0.01)


@pytest.mark.parametrize("syst", ["", "up", "stat0", "stat18_up", "stat0_Up", "nominal", "_up", None, 3])
def test_unknown_variations_are_refused(syst: Any) -> None:
    with pytest.raises(InputError, match=r"syst: .*stat0, stat1, ..., stat17 with _up or _down"):
        correction().scale(20.0, 0.1, 0.0, 1, syst=syst)


@pytest.mark.parametrize("nsigma", [np.nan, np.inf])
def test_infinite_variations_are_refused(nsigma: float) -> None:
    with pytest.raises(InputError, match="nsigma"):
        correction().variations(20.0, 0.1, 0.0, 1, nsigma=nsigma)


@pytest.mark.parametrize("syst", ["nom", "stat3_up"])
def test_pt_error_is_the_slope_of_the_corrected_pt(syst: str) -> None:
    c, m = correction(), muons(3000)
    h = 1e-5 * m["pt"]
    m["pt"] = np.clip(m["pt"], 2.001, 199.9)
    above, below = (x * c.scale(**(m | {"pt": x}), syst=syst) for x in (m["pt"] + h, m["pt"] - h))
    error = 0.01 * m["pt"]
    found = c.pt_error(**m, pt_err=error, syst=syst)
    np.testing.assert_allclose(found / error, (above - below) / (2.0 * h), rtol=1e-9)
    assert np.max(np.abs(found / error / c.scale(**m, syst=syst) - 1.0)) > 1e-2


# Smearing


def test_smearing_does_not_know_order_chunks_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 300_000
    columns = muons(n) | event_numbers(n)
    whole = correction().smear(**columns)
    order = np.random.default_rng(5).permutation(n)
    shuffled = correction().smear(**{name: x[order] for name, x in columns.items()})
    np.testing.assert_array_equal(shuffled, whole[order])
    pieces = [
        correction().smear(**{name: x[part] for name, x in columns.items()})
        for part in (slice(0, 1), slice(1, 777), slice(777, n))
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    for threads in ("1", "3"):
        monkeypatch.setenv("MUSCLECAL_THREADS", threads)
        np.testing.assert_array_equal(correction().smear(**columns), whole)
        m = {name: columns[name] for name in ("pt", "eta", "phi", "charge")}
        permuted = correction().scale(**{name: x[order] for name, x in m.items()})
        np.testing.assert_array_equal(correction().scale(**m)[order], permuted)


GOLDEN = [0.9877995706195525, 0.9944968723055986, 0.992634521964059, 0.9925521732101817, 1.0017904962298756]


def test_golden_smearing() -> None:
    """Never to change: analyses have smeared their simulation with these numbers."""
    found = correction().smear(
        [5.0, 30.0, 45.0, 45.0, 120.0], [-2.2, -0.3, 0.7, 0.7, 1.9], [0.5, -2.0, 3.1, -0.04, 1.0], 1,
        [1, 1, 276_811, 276_811, 2], [1, 1, 1400, 1400, 1], [1, 2, 2**53 + 1, 2**53 + 1, 3], salt=7,
    )  # fmt: skip
    np.testing.assert_allclose(found, GOLDEN, rtol=1e-14)
    assert found[2] != found[3], "two muons of one event"


def test_smearing_is_that_of_correctionlib(folder: Path) -> None:
    """To 1e-15, from the same file."""
    n = 100_000
    loaded = musclecal.load(folder / "muon_scale.json.gz")
    library = correctionlib.CorrectionSet.from_file(str(folder / "muon_scale.json.gz"))["muon_pt_smear"]
    m, ids = muons(n), event_numbers(n)
    for salt in (0, -5):
        theirs = library.evaluate(m["pt"], m["eta"], m["phi"], *ids.values(), salt)
        np.testing.assert_allclose(loaded.smear(**m, **ids, salt=salt), theirs, rtol=0.0, atol=1e-15)


def flat_smearing() -> Correction:
    edges, one = np.array([-2.4, 2.4]), np.ones(1)
    smearing = Smearing(edges, 1e-4 * one, 0.0 * one, 0.0 * one, one, 0.0 * one)
    return Correction(replace(tables(), smearing=smearing))


@pytest.mark.parametrize("n", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_draws_are_unit_gaussians(n: int) -> None:
    """(1/factor - 1)/sigma of muons in events with numbers one after the other, as in a simulation."""
    c, piece = flat_smearing(), 1_000_000
    total = squares = pairs = 0.0
    for first in range(0, n, piece):
        event = np.arange(first, first + piece) // 2 + 1
        phi = np.tile([0.3, -2.8], piece // 2)
        g = (1.0 / c.smear(30.0, 0.1, phi, np.tile([1, -1], piece // 2), 1, 1, event) - 1.0) / 0.01
        total, squares, pairs = total + g.sum(), squares + (g**2).sum(), pairs + (g[::2] * g[1::2]).sum()
        assert np.all(g[::2] != g[1::2])
    assert abs(total / n) < 3.0 / np.sqrt(n)
    assert abs(squares / n - 1.0) < 3.0 * np.sqrt(2.0 / n)
    assert abs(pairs / (n / 2)) < 3.0 / np.sqrt(n / 2)


def test_smearing_depends_on_everything_that_it_should() -> None:
    given: Columns = {"run": 1, "lumi": 2, "event": 3, "phi": 0.4, "salt": 0}
    first = flat_smearing().smear(pt=30.0, eta=0.1, charge=1, **given)
    for name in given:
        other = given | {name: given[name] + 1}
        assert flat_smearing().smear(pt=30.0, eta=0.1, charge=1, **other) != first, name
    assert flat_smearing().smear(pt=30.0, eta=0.1, charge=-1, **given) == first


def test_smearing_that_cannot_be() -> None:
    with pytest.raises(InputError, match="hold no smearing"):
        Correction(replace(tables(), smearing=None)).smear(30.0, 0.1, 0.2, 1, 1, 1, 1)
    with pytest.raises(InputError, match="integer numbers are needed, got float64"):
        correction().smear(30.0, 0.1, 0.2, 1, 1, 1, 1.0)
    with pytest.raises(InputError, match="salt must be integers"):
        correction().smear(30.0, 0.1, 0.2, 1, 1, 1, 1, salt=0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="salt must be one number"):
        correction().smear(30.0, 0.1, 0.2, 1, 1, 1, 1, salt=np.array([1, 2]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="salt must have 64 bits"):
        correction().smear(30.0, 0.1, 0.2, 1, 1, 1, 1, salt=2**64)


# Structures


def all_methods() -> dict[str, Callable[..., Any]]:
    """Functions of pt, eta, phi, charge."""
    c: Any = correction()
    return {
        "scale": c.scale,
        "varied": lambda *m: c.scale(*m, syst="stat0_up"),
        "variations": c.variations,
        "error": lambda *m: c.pt_error(*m, 0.5),
        "smear": lambda *m: c.smear(*m, 1, 2, 3),
        "valid": lambda *m: c.validity(*m).valid,
        "reason": lambda *m: c.validity(*m).reason,
    }


METHODS = ("scale", "varied", "variations", "error", "smear", "valid", "reason")


@pytest.mark.parametrize("method", METHODS)
def test_shapes_of_numpy(method: str) -> None:
    run, m = all_methods()[method], muons(12)
    columns = list(m.values())
    flat = run(*columns)
    more = flat.shape[1:]
    assert flat.shape == (12, *more)
    np.testing.assert_array_equal(run(*(x.reshape(3, 4) for x in columns)), flat.reshape(3, 4, *more))
    transposed = run(*(np.asfortranarray(x.reshape(3, 4)) for x in columns))
    np.testing.assert_array_equal(transposed, flat.reshape(3, 4, *more))
    np.testing.assert_array_equal(run(*(x[::-2] for x in columns)), flat[::-2])
    np.testing.assert_array_equal(run(*(x.tolist() for x in columns)), flat)
    for kind in (np.float64, float, np.array):
        scalar = run(*(kind(x[0]) for x in columns))
        assert np.shape(scalar) == more
        np.testing.assert_array_equal(scalar, flat[0])
    assert run(*(x[:0] for x in columns)).shape == (0, *more)
    assert run([], [], [], []).shape == (0, *more)
    assert run(*(x[:0].reshape(2, 0) for x in columns)).shape == (2, 0, *more)
    np.testing.assert_array_equal(
        run(columns[0][:, None], 0.1, 0.2, [1, -1]),
        np.stack([run(columns[0], 0.1, 0.2, q) for q in (1, -1)], axis=1),
    )


@pytest.mark.parametrize("method", METHODS)
def test_types_of_numpy(method: str) -> None:
    """float32 is made float64 before anything is computed; integers, other byte orders, frozen arrays are numbers."""
    run, columns = all_methods()[method], list(muons(12).values())
    single = [x.astype(np.float32) for x in columns]
    expected = run(*(x.astype(np.float64) for x in single))
    np.testing.assert_array_equal(run(*single), expected)
    np.testing.assert_array_equal(run(*(x.astype(">f4") for x in single)), expected)
    flat = run(*columns)
    for kind in ("i1", "i2", "i4", "i8", "f2", "f4", ">i4", ">f8", np.longdouble):
        np.testing.assert_array_equal(run(*columns[:3], columns[3].astype(kind)), flat, err_msg=str(kind))
    for column in columns:
        column.flags.writeable = False
    np.testing.assert_array_equal(run(*columns), flat)


def test_float32_eta_near_an_edge_is_in_the_bin_of_its_rounded_value() -> None:
    below = np.nextafter(np.float64(1 / 3), 0.0)  # float32 is above
    rounded = np.float32(below)
    assert float(rounded) > 1 / 3
    c = correction()
    assert c.scale(20.0, rounded, 0.0, 1) == c.scale(20.0, 0.4, 0.0, 1)
    assert c.scale(20.0, below, 0.0, 1) == c.scale(20.0, 0.3, 0.0, 1)


def test_numbers_of_events_of_any_integer_type() -> None:
    c: Any = correction()
    m = muons(5)
    whole = c.smear(**m, run=[1] * 5, lumi=[2] * 5, event=[7, 8, 9, 10, 11])
    for kind in ("u1", "i2", "u4", ">i4", "i8", "u8", ">u8"):
        ids: Columns = {"run": np.ones(5, kind), "lumi": 2, "event": np.arange(7, 12).astype(kind)}
        np.testing.assert_array_equal(c.smear(**m, **ids), whole, err_msg=kind)


@pytest.mark.parametrize("method", METHODS)
def test_awkward_arrays_keep_their_structure(method: str) -> None:
    ak = pytest.importorskip("awkward")
    run, columns = all_methods()[method], list(muons(12).values())
    flat, counts = run(*columns), [3, 0, 5, 4]
    jagged = [ak.unflatten(x, counts) for x in columns]
    found = run(*jagged)
    assert ak.num(found).tolist() == counts
    np.testing.assert_array_equal(ak.to_numpy(ak.flatten(found, axis=1)), flat)
    twice = run(*(ak.unflatten(x, [1, 0, 3]) for x in jagged))
    assert ak.num(twice, axis=1).tolist() == [1, 0, 3]
    assert ak.num(twice, axis=2).tolist() == [[3], [], [0, 5, 4]]
    np.testing.assert_array_equal(ak.to_numpy(ak.flatten(ak.flatten(twice, axis=2), axis=1)), flat)
    np.testing.assert_array_equal(ak.to_numpy(run(*(ak.Array(x) for x in columns))), flat)
    per_event = run(jagged[0], jagged[1], jagged[2], ak.Array([1.0, -1.0, 1.0, -1.0]))
    signs = np.repeat([1.0, -1.0, 1.0, -1.0], counts)
    np.testing.assert_array_equal(ak.to_numpy(ak.flatten(per_event, axis=1)), run(*columns[:3], signs))
    assert ak.num(run(*(x[:0] for x in jagged))).tolist() == []
    assert ak.num(run(*(x[1:2] for x in jagged))).tolist() == [0]


def test_jagged_muons_with_the_numbers_of_their_events() -> None:
    ak = pytest.importorskip("awkward")
    m, ids, counts = muons(12), event_numbers(4), [3, 0, 5, 4]
    c: Any = correction()
    jagged = {name: ak.unflatten(x, counts) for name, x in m.items()}
    expected = c.smear(**m, **{name: np.repeat(x, counts) for name, x in ids.items()})
    both: tuple[Columns, ...] = (ids, {name: ak.Array(x) for name, x in ids.items()})
    for numbers in both:
        found = c.smear(**jagged, **numbers)
        assert ak.num(found).tolist() == counts
        np.testing.assert_array_equal(ak.to_numpy(ak.flatten(found)), expected)


WRONG: dict[str, tuple[Any, Any, Any, Any]] = {
    "shapes": (np.ones(3), np.ones(4), np.ones(3), np.ones(3)),
    "ragged lists": ([[20.0], [20.0, 30.0]], 0.1, 0.1, 1),
    "string": ("20", 0.1, 0.1, 1),
    "strings": (["20", "30"], 0.1, 0.1, 1),
    "none": (None, 0.1, 0.1, 1),
    "some none": ([20.0, None], 0.1, 0.1, 1),
    "objects": (np.array([20.0, 30.0], dtype=object), 0.1, 0.1, 1),
    "complex": (np.array([20.0j]), 0.1, 0.1, 1),
    "booleans": (20.0, 0.1, 0.1, np.array([True])),
    "dates": (np.array(["2016-01-01"], dtype="M8[D]"), 0.1, 0.1, 1),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_muon_is_one_clear_error(method: str, case: str) -> None:
    with pytest.raises(InputError, match=r"^muons: (columns that do not fit|real numbers are needed)"):
        all_methods()[method](*WRONG[case])


@pytest.mark.parametrize("error", ["1", None, np.ones(3), [[1.0], [1.0, 2.0]]])
def test_errors_of_pt_that_are_none(error: Any) -> None:
    with pytest.raises(InputError, match=r"^muons: "):
        correction().pt_error(np.ones(2), 0.1, 0.1, 1, error)


def test_masked_muons_are_refused() -> None:
    """What is behind a mask is no momentum."""
    for method in METHODS:
        with pytest.raises(InputError, match=r"^muons: some values are missing \(masked\)"):
            all_methods()[method](np.ma.array([20.0, 30.0], mask=[False, True]), 0.1, 0.1, 1)
    assert correction().scale(np.ma.array([20.0, 30.0]), 0.1, 0.1, 1).shape == (2,)


def test_awkward_arrays_that_are_no_muons() -> None:
    ak = pytest.importorskip("awkward")
    good = ak.Array([[20.0], [30.0, 40.0]])
    for wrong in (
        ak.Array([[20.0], [None, 40.0]]),
        ak.Array([None, [30.0, 40.0]]),
        ak.Array([["a"], ["b", "c"]]),
        ak.Array([[20.0, 1.0], [30.0]]),
        ak.Array([[True], [False, True]]),
        ak.Array([[{"x": 1.0}], [{"x": 1.0}, {"x": 2.0}]]),
        "text",
        None,
    ):
        with pytest.raises(InputError, match=r"^muons: "):
            correction().scale(good, wrong, 0.1, 1)


# Files


@pytest.mark.parametrize("edges", [UNEVEN, (-2.4, 2.4), (2.0, 3.0, 5.0)], ids=["uneven", "one", "forward"])
def test_every_readable_file_gives_the_same_factors(edges: tuple[float, ...], tmp_path: Path) -> None:
    t = tables(edges)
    export_folder(t, tmp_path)
    m, ids = muons(5000), event_numbers(5000)
    m["eta"] = edges[0] + (m["eta"] + 2.4) / 4.8 * (edges[-1] - edges[0])
    m["eta"][: len(edges)] = edges
    named = [file for file, _ in FORMATS.values() if any(file.endswith(end) for end in READERS)]
    assert len(named) == 4
    for path in (tmp_path, *(tmp_path / name for name in named)):
        for loaded in (musclecal.load(path), musclecal.load(str(path))):
            np.testing.assert_allclose(loaded.scale(**m), plain_factors(t, m), rtol=1e-12, atol=0.0)
            every = Correction(t).variations(**m)
            np.testing.assert_allclose(loaded.variations(**m), every, rtol=1e-12, atol=0.0)
            smeared = Correction(t).smear(**m, **ids)
            np.testing.assert_allclose(loaded.smear(**m, **ids), smeared, rtol=1e-12, atol=0.0)
            assert loaded.variation_names == t.variation_names
            assert loaded.provenance == t.provenance
            sigma = np.sqrt(np.diagonal(t.scaled_covariance))
            assert np.max(np.abs(loaded.covariance - t.scaled_covariance) / np.outer(sigma, sigma)) < 1e-10


@pytest.mark.parametrize("write", [export_npz, export_json, export_correctionlib])
def test_a_renamed_file_is_still_read(write: Callable[..., None], tmp_path: Path) -> None:
    end = {export_npz: ".npz", export_json: ".json"}.get(write, ".json.gz")
    write(tables(), tmp_path / f"mine{end}")
    assert musclecal.load(tmp_path / f"mine{end}").tables.n_eta == 6


@pytest.mark.parametrize("name", ["manifest.json", "reference.parquet", "muon_scale.h", "absent.npz"])
def test_other_files_are_an_error_with_their_name(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=re.escape(name)):
        musclecal.load(folder / name)


@pytest.mark.parametrize("name", ["a.npz", "a.json", "a.json.gz", "a.root", "a"])
@pytest.mark.parametrize("content", [b"", b"text\n", b"[1]", b"PK\x03\x04", b"\x1f\x8b\x08\x00 no", b"root"])
def test_foreign_content_is_an_error_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(name)):
        musclecal.load(tmp_path / name)


def test_a_folder_without_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not an export folder"):
        musclecal.load(tmp_path)


@pytest.mark.parametrize(
    "edges", [(-2.4, 2.4), (-2.4, 2.399, 2.4), tuple(np.linspace(-2.4, 2.4, 49).tolist())]
)
def test_bins_hold_their_lower_edge_to_the_last_bit(edges: tuple[float, ...]) -> None:
    """And every other number is in the bin of a binary search."""
    t = tables(edges)
    near = [np.nextafter(edges, side) for side in (-9.0, 9.0)]
    eta = np.concatenate([edges, *near, np.random.default_rng(6).uniform(-2.41, 2.41, 20_000)])
    m: Columns = {"pt": np.full(len(eta), 40.0), "eta": eta, "phi": eta, "charge": np.ones(len(eta))}
    np.testing.assert_allclose(Correction(t).scale(**m), plain_factors(t, m), rtol=1e-14)
    varied = plain_factors(t, m, t.variations[plain_bins(t, m), :, 1])
    np.testing.assert_allclose(Correction(t).variations(**m)[:, 1], varied, rtol=1e-14)


def test_absurd_bins_are_refused() -> None:
    t = tables((-2.4, 0.0, 2.4))
    with pytest.raises(InputError, match="eta_edges: bins from 1e-07"):
        Correction(replace(t, eta_edges=np.array([-2.4, -2.4 + 1e-7, 2.4]))).scale(20.0, 0.1, 0.1, 1)
