"""Files between stages: exact round trips of every record, and a named refusal of every damaged file."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from musclecal import records, store
from musclecal.binning import Binning, TemplateBinning, equal_eta_edges
from musclecal.errors import InputError
from musclecal.records import (
    BinFits,
    BosonTemplates,
    Closure,
    ClosureSplits,
    CorrectionTables,
    CutFlow,
    Detector,
    DimuonEvents,
    FieldMap,
    JointFit,
    MassConstraint,
    MassFits,
    MassHistogram,
    MassImpacts,
    MassWidths,
    ModuleCorrections,
    ModuleSums,
    MuonResiduals,
    Muons,
    NuisanceGroup,
    Nuisances,
    PairRefits,
    Pairs,
    PhiRefinement,
    Refits,
    Resolution,
    Response,
    RunRefinement,
    SampleAgainstRest,
    ScaleCalibration,
    ScaleFactor,
    ScaleInformation,
    ScaleParameters,
    ScaleSystematic,
    ScaleWithCovariance,
    Smearing,
    SplitTest,
    TemplateFit,
    TemplateHistogram,
    Tracks,
    WidthClosure,
)
from musclecal.store import load, load_attributes, save, written_atomically

RNG = np.random.default_rng(11)
BINNING = Binning(equal_eta_edges(4, 2.4), (4.0, 6.5, 10.1, 1 / 3 + 20.0), (2.9, 3.3), 20, 3.0969)
TEMPLATE_BINNING = TemplateBinning(
    (-1.0, 0.1, 1.0), (-1.0, 1.0), (0.0, 9.0), (4.0, 50.0), (2.9, 3.3), 20, 3.0969, phi_sectors=3
)


def floats(*shape: int) -> Any:
    """Random doubles over many orders of magnitude, with the awkward ones in front."""
    values = RNG.normal(size=shape) * 10.0 ** RNG.integers(-300, 300, size=shape)
    awkward = [np.nan, np.inf, -np.inf, -0.0, 5e-324, 0.1]
    values.ravel()[: min(len(awkward), values.size)] = awkward[: values.size]
    return values


def ints(*shape: int) -> Any:
    return RNG.integers(-(2**62), 2**62, size=shape)


def bin_fits(n_bin: int = 5) -> BinFits:
    return BinFits(
        parameter_names=("scale", "width", "slope é"),
        parameters=floats(n_bin, 3),
        covariance=floats(n_bin, 3, 3),
        status=ints(n_bin),
        edm=floats(n_bin),
        chi2=floats(n_bin),
        ndf=ints(n_bin),
        n_events=floats(n_bin),
        n_signal=floats(n_bin),
        iterations=ints(n_bin),
    )


HISTOGRAM = MassHistogram(BINNING, ints(5), ints(5, 20), floats(5, 2), floats(5, 2), floats(5, 2))
CALIBRATION = ScaleCalibration(
    floats(5), floats(4), floats(4), floats(4), floats(12, 12), 0.1, 7, np.nan, 12, np.inf,
    floats(5), ints(5), floats(4), 0.97, 1.0,
)  # fmt: skip
MUONS = Muons(floats(6), floats(6), floats(6))
EVENTS = DimuonEvents(MUONS, MUONS)
EXAMPLES: dict[str, Any] = {
    "muons": MUONS,
    "muons, pt_err": replace(MUONS, pt_err=floats(6)),
    "events": EVENTS,
    "events, full": DimuonEvents(
        MUONS,
        replace(MUONS, pt_err=floats(6)),
        MUONS,
        MUONS,
        ints(6),
        ints(6),
        ints(6),
        {"id_plus": np.array([True, False] * 3), "a/b %": RNG.normal(size=6).astype(np.float32)},
    ),
    "cut flow": CutFlow(("read", "trigger", "µ/µ"), (10, 5, 2**62)),
    "cut flow, empty": CutFlow(),
    "binning": BINNING,
    "binning, scaled": replace(BINNING, pt_scaled=True),
    "histogram": HISTOGRAM,
    "histogram, full": replace(
        HISTOGRAM,
        counts=floats(5, 20),
        generator=ints(5, len(BINNING.generator_masses)),
        variances=floats(5, 20),
        n_outside=3,
        mean_pt2=floats(5, 2),
        cut_flows={"data": CutFlow(("read",), (17,))},
    ),
    "histogram, weighted generator": replace(HISTOGRAM, generator=floats(5, 30)),
    "histogram, large": replace(HISTOGRAM, bins=ints(600), counts=ints(600, 20)),
    "histogram, no bins": replace(HISTOGRAM, bins=ints(0), counts=ints(0, 20), mean_k=floats(0, 2)),
    "bin fits": bin_fits(),
    "mass fits": MassFits(
        BINNING,
        "J/psi",
        "template",
        "",
        ints(5),
        bin_fits(),
        bin_fits(),
        bin_fits(),
        floats(5, 2),
        floats(5, 2),
        floats(5, 2),
        1e6 + 0.1,
        5.0,
        400,
    ),
    "template histogram": TemplateHistogram(
        TEMPLATE_BINNING,
        ints(5),
        floats(5, 20),
        floats(5, 20, 8),
        floats(5, 2),
        floats(5, 20),
        3,
        half_derivatives=floats(5, 20, 8),
    ),
    "template histogram, no weights": TemplateHistogram(
        TEMPLATE_BINNING, ints(5), floats(5, 20), floats(5, 20, 0), floats(5, 2)
    ),
    "information": ScaleInformation(
        "Z", floats(5), 1, floats(16, 16), floats(16), 0.1, 7, floats(4), 0.3, 1e6, floats(16, 16)
    ),
    "scale": ScaleParameters(floats(5), floats(4), floats(4), floats(4)),
    "calibration": CALIBRATION,
    "calibration, two passes": replace(CALIBRATION, passes=2, residual_chi2=1.1),
    "closure": Closure(
        "Upsilon(1S)",
        "two-step",
        floats(5),
        ("A", "M"),
        floats(4, 2),
        floats(8, 8),
        floats(8, 8),
        3.3,
        8,
        0.9,
        1.0,
        2,
        0.0,
        floats(4),
        1.0,
    ),
}
FACTOR = ScaleFactor("Z", 0.0, (0.0, 0.9), (0.0, np.inf), 0.1, (0.0, 1 / 3), (0.0, 1.0), 40.1, 48, 0.8)
GROUP = NuisanceGroup("closure_Z", floats(5), ("A", "M"), ("closure_Z_0", "closure_Z_1"), floats(2, 8))
EXAMPLES["scale factor"] = FACTOR
EXAMPLES["systematic"] = ScaleSystematic(
    floats(5), (FACTOR,), replace(FACTOR, name="joint"), "joint", floats(12, 12)
)
EXAMPLES["nuisance group"] = GROUP
EXAMPLES["nuisances"] = Nuisances((GROUP, replace(GROUP, name="é", names=())))
EXAMPLES |= {
    "mass widths": MassWidths(
        BINNING, "Z", "none", ints(5), floats(5), floats(5), floats(5), floats(5), floats(5),
        floats(5, 2), floats(5, 2), floats(5, 2), 0.99,
    ),
    "residuals": MuonResiduals(floats(5), floats(4), ints(4, 3, 20), 0.25, floats(4, 3), floats(4, 3), 7),
    "resolution": Resolution(
        "difference", floats(5), ("a", "c"), floats(4), floats(4), floats(4), floats(4), floats(8, 8), 7.1, 6, 0.3,
        floats(4, 2), ("Jpsi", "Z"),
    ),
    "smearing": Smearing(floats(5), floats(4), floats(4), floats(4), floats(4), floats(4)),
    "width closure": WidthClosure(
        "Y1S", False, floats(5), floats(4), ints(6), ints(6, 2), floats(6), floats(6), floats(6), 5.5, 6, 0.4,
        1.01, 0.01,
    ),
}  # fmt: skip
EXAMPLES["templates"] = BosonTemplates(
    "W", floats(5), ints(6), ("mu+", "mu-"), floats(6), floats(6), floats(6), floats(6, 12), floats(6, 12), 100
)  # fmt: skip
EXAMPLES["mass impacts"] = MassImpacts(
    "W", 16.8, floats(5), ("a", "b"), (12, 1), floats(2), floats(2), floats(2), 5.0, 4.0, 3.0, 2.0, 6.0, 5.0,
    floats(4, 3), floats(4, 3), floats(13), floats(13),
)  # fmt: skip
SPLIT = SplitTest("phi", ("cos", "sin"), ("A", "M"), floats(2, 2), floats(2, 2), 3.2, 4, 0.5)
EXAMPLES["scale with covariance"] = ScaleWithCovariance(
    floats(5), floats(4), floats(4), floats(4), floats(12, 12)
)
EXAMPLES["correction tables"] = CorrectionTables(
    floats(5), floats(4), floats(4), floats(4), floats(12, 12), 1.4, ("stat0", "closure_Z0"), floats(4, 3, 2),
    (2.0, 200.0), Smearing(floats(4), floats(3), floats(3), floats(3), floats(3), floats(3)),
    {"Z": floats(4, 4), "Y1S": floats(2, 4)}, {"period": "2016H", "é": ""},
)  # fmt: skip
EXAMPLES["correction tables, no smearing"] = replace(
    EXAMPLES["correction tables"], smearing=None, residuals={}, provenance={}
)
EXAMPLES["template fit"] = TemplateFit(EXAMPLES["information"], EXAMPLES["scale"], 2, 0.01)
EXAMPLES["split"] = SPLIT
EXAMPLES["splits"] = ClosureSplits("Z", (SPLIT, SPLIT))
EXAMPLES["sample against rest"] = SampleAgainstRest(
    "Z even", True, 3.3, 8, 0.9, 1e-5, 2e-5, floats(4, 2), floats(4, 2)
)
EXAMPLES["joint fit"] = JointFit(
    CALIBRATION, ("Jpsi", "Z even"), ("Z odd",), ("Jpsi", "Z"), floats(2), floats(2), floats(2), floats(2),
    (EXAMPLES["sample against rest"],),
)  # fmt: skip
EXAMPLES["response"] = Response(
    floats(5),
    floats(4),
    floats(2, 4, 4),
    floats(4, 4),
    floats(9),
    floats(4, 9),
    floats(4, 9),
    ints(2, 4, 3),
    17,
)
EXAMPLES["phi refinement"] = PhiRefinement(
    "Z", floats(5), (1, 2), 12, floats(4, 5), floats(4, 5), floats(40, 40), 9.0, 8, 0.4, 2, 0.001
)
EXAMPLES["sector refinement"] = replace(EXAMPLES["phi refinement"], harmonics=())
EXAMPLES["run refinement"] = RunRefinement(
    "Z", floats(5), (0, 10, 2**40), floats(2, 4), floats(2, 4), floats(16, 16), 9.0, 8, 0.4, 2, 0.001
)
EXAMPLES["mass constraint"] = MassConstraint(3.0925, 0.02, (2.9, 3.3), 2.5, (-0.1, 1.5), 1e-5)
EXAMPLES["refits"] = Refits(
    floats(3, 5), floats(3, 5, 5), floats(3), ints(3), np.array([0, 1, 4], np.int8), np.zeros(3, np.int8),
    np.array([[0, 1], [2, 3], [0, 0]], np.int8),
)  # fmt: skip
EXAMPLES["pair refits"] = PairRefits(
    floats(2, 9),
    floats(2, 9, 9),
    floats(2),
    floats(2),
    floats(2),
    ints(2),
    np.zeros(2, np.int8),
    np.ones(2, np.int8),
)
EXAMPLES["module sums"] = ModuleSums(
    np.array([0, 2, 3]), np.array([0, 1, 1], np.int32), floats(3, 4, 4), floats(2, 4), ints(2), 10**7, 1e7 + 0.1,
    1e7, floats(2, 4), "barrel é 1", 2 * 10**7, "gradient 8", "3.09",
    3 * 10**7,
)  # fmt: skip
EXAMPLES["module corrections"] = ModuleCorrections(
    floats(2, 4), floats(2, 4), np.array([[1, 2, 4, 5], [1, 0, 4, 5]], np.int8), ints(2), "exact", ("twist", "x é"),
    floats(2), floats(2), 10.5, 9.0, 0.1, 12, 17, 1e-9, "barrel 1",
)  # fmt: skip
EXAMPLES["detector"] = Detector(
    "test", "map", ("A", "B+1"), ints(3).astype(np.int32), ints(3).astype(np.int32), ints(3).astype(np.int8),
    np.array([True, False, False]), floats(3, 3), floats(3, 3), floats(3, 3), floats(3, 3), floats(3), floats(3),
    floats(3), floats(3), floats(3), floats(3),
)  # fmt: skip
EXAMPLES["field map"] = FieldMap("map", floats(3), floats(4), floats(3, 4))
EXAMPLES["tracks"] = Tracks(
    np.array([1, -1], dtype=np.int8), ints(2, 4).astype(np.int32), floats(2, 4), floats(2, 4), floats(2, 4),
    floats(2, 4), ints(2), floats(2, 6),
)  # fmt: skip
EXAMPLES["tracks, no truth"] = replace(EXAMPLES["tracks"], truth=None)
EXAMPLES["pairs"] = Pairs(EXAMPLES["tracks"], ints(1, 2).astype(np.int32), np.array([True]))
EXAMPLES["pairs of data"] = replace(EXAMPLES["pairs"], is_background=None, n_events=3)
EXAMPLES["closure, uncorrected"] = replace(EXAMPLES["closure"], s=None)


def assert_same(found: Any, expected: Any, where: str = "record") -> None:
    """Same types, shapes, dtypes and bits, all the way down."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray), where
        assert (found.dtype.str, found.shape) == (expected.dtype.str, expected.shape), where
        assert found.tobytes() == expected.tobytes(), where
        return
    assert type(found) is type(expected), where
    if dataclasses.is_dataclass(expected):
        for item in fields(expected):
            assert_same(getattr(found, item.name), getattr(expected, item.name), f"{where}.{item.name}")
    elif isinstance(expected, tuple):
        assert len(found) == len(expected), where
        for one, two in zip(found, expected, strict=True):
            assert_same(one, two, where)
    elif isinstance(expected, Mapping):
        assert set(found) == set(expected), where
        for name in expected:
            assert_same(found[name], expected[name], f"{where}[{name!r}]")
    elif isinstance(expected, float):
        assert np.float64(found).tobytes() == np.float64(expected).tobytes(), where
    else:
        assert found == expected, where


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.h5"
    save(path, CALIBRATION, attributes={"stage": "extract"})
    return path


@pytest.mark.parametrize("name", EXAMPLES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    record = EXAMPLES[name]
    save(tmp_path / "record.h5", record)
    assert_same(load(tmp_path / "record.h5", type(record)), record)


def test_every_record_has_an_example() -> None:
    """A record added to `musclecal.records` needs one here, with its optional fields both ways."""
    declared = {name for name in records.__all__ if dataclasses.is_dataclass(getattr(records, name))}
    # Combinations are no stage: their results are written as JSON and npz (`musclecal.combination_report`)
    combinations = {*records.combination.__all__, *records.combined_calibration.__all__}
    assert declared - combinations <= {type(record).__name__ for record in EXAMPLES.values()}


def test_every_optional_field_is_tested_both_ways() -> None:
    record_types: set[Any] = {type(record) for record in EXAMPLES.values()}
    for record_type in record_types:
        examples = [record for record in EXAMPLES.values() if type(record) is record_type]
        for item in fields(record_type):
            if "None" in str(item.type):
                empty = {getattr(record, item.name) is None for record in examples}
                assert empty == {True, False}, f"{record_type.__name__}.{item.name}"


@dataclass(frozen=True)
class Nested:
    closures: tuple[Closure, ...]
    pair: tuple[str, int]
    scale_by_name: Mapping[str, float]
    choice: int | str | None = None


def test_tuples_of_records_and_mappings_of_numbers(tmp_path: Path) -> None:
    closure = EXAMPLES["closure"]
    choices: tuple[int | str | None, ...] = (None, 3, "3")
    for choice in choices:
        record = Nested((closure, closure), ("a", 2), {"Z": 0.1, "J/psi": 2.0}, choice)
        save(tmp_path / "n.h5", record)
        assert_same(load(tmp_path / "n.h5", Nested), record)


def test_numpy_scalars_and_whole_numbers_become_what_the_field_says(tmp_path: Path) -> None:
    whole: Any = np.int64(4)
    record = replace(CALIBRATION, chi2=np.float64(0.3), ndf=whole, p_value=1)
    save(tmp_path / "c.h5", record)
    found = load(tmp_path / "c.h5", ScaleCalibration)
    assert [type(x) for x in (found.chi2, found.ndf, found.p_value)] == [float, int, float]
    assert (found.chi2, found.ndf, found.p_value) == (0.3, 4, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ndf": 1.5},
        {"ndf": True},
        {"chi2": "1"},
        {"A": [1.0, 2.0]},
        {"A": np.array(["a"])},
        {"A": np.array([object()])},
        {"A": None},
    ],
)
def test_a_wrong_field_is_a_type_error_that_names_it_and_leaves_nothing(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=rf"ScaleCalibration\.{next(iter(wrong))}: cannot store"):
        save(tmp_path / "c.h5", replace(CALIBRATION, **wrong))
    assert not list(tmp_path.iterdir())


def test_a_very_large_integer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        save(tmp_path / "c.h5", CutFlow(("a",), (2**70,)))


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    record = EXAMPLES["histogram, large"]
    save(tmp_path / "a.h5", record, attributes={"b": "1", "a": "2"})
    save(tmp_path / "b.h5", record, attributes={"b": "1", "a": "2"})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_attributes_come_back(stored: Path, tmp_path: Path) -> None:
    assert load_attributes(stored) == {"stage": "extract"}
    save(tmp_path / "c.h5", CALIBRATION, attributes={"in/put.h5": "x" * 100_000, "π": ""})
    assert load_attributes(tmp_path / "c.h5") == {"in/put.h5": "x" * 100_000, "π": ""}
    save(tmp_path / "c.h5", CALIBRATION)
    assert load_attributes(tmp_path / "c.h5") == {}


def test_other_programs_can_read_it(stored: Path) -> None:
    """The layout is part of the format: plain HDF5, field by field, behind a readable header."""
    with h5py.File(stored) as file:
        np.testing.assert_array_equal(file["record/A"][()], CALIBRATION.A)
        assert file["record"].attrs["kind"] == "ScaleCalibration"
        assert file["record/ndf"][()] == 7
    assert stored.read_bytes().startswith(
        b"musclecal record file\nformat 1\nrecord ScaleCalibration\nlength "
    )


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored.read_bytes()

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    for name in ("_write", "_header"):
        with monkeypatch.context() as patch:
            patch.setattr(store, name, full_disk)
            with pytest.raises(OSError, match="no space"):
                save(stored, replace(CALIBRATION, ndf=99))
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[None]:
        with written_atomically(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        next(interrupted())
    assert not list(tmp_path.iterdir())


def test_files_have_ordinary_permissions(stored: Path) -> None:
    other = stored.with_name("other")
    other.write_text("x")
    assert os.stat(stored).st_mode == os.stat(other).st_mode


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        save(tmp_path / "none" / "c.h5", CALIBRATION)


def refused(path: Path, words: str) -> None:
    """Loading fails, and the message names the file and the way out."""
    with pytest.raises(InputError, match=words) as caught:
        load(path, ScaleCalibration)
    assert str(path) in str(caught.value)
    assert "run" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "c.h5", "no such file")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path, ScaleCalibration)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    path.touch()
    refused(path, "an empty file, not a record file of musclecal; delete it, or rerun .* --force")


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    path.write_text("eta, A, e, M\n")
    refused(path, "a file that begins with b'eta, A")


def test_foreign_hdf5_file(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as file:
        file["A"] = 1.0
    refused(path, "an HDF5 file of another program")


def test_another_record(stored: Path) -> None:
    with pytest.raises(InputError, match="holds a ScaleCalibration, not a MassFits; give the right file"):
        load(stored, MassFits)


@pytest.mark.parametrize("kept", [0.0001, 0.02, 0.1, 0.5, 0.999])
def test_truncated(stored: Path, kept: float) -> None:
    content = stored.read_bytes()
    stored.write_bytes(content[: max(1, int(kept * len(content)))])
    refused(stored, "truncated|not a record file")


def test_something_appended(stored: Path) -> None:
    stored.write_bytes(stored.read_bytes() + b"x")
    refused(stored, "truncated or damaged")


def test_any_flipped_byte_is_found(stored: Path) -> None:
    """Every byte of the header and every 97th beyond it."""
    content = bytearray(stored.read_bytes())
    for position in [*range(512), *range(512, len(content), 97)]:
        content[position] ^= 0x10
        stored.write_bytes(content)
        with pytest.raises(InputError):
            load(stored, ScaleCalibration)
        content[position] ^= 0x10


def test_another_format_version(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FORMAT", 2)
    refused(stored, "format 1, this version reads 2")


def test_a_record_that_has_changed_since(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class CutFlow:
        names: tuple[str, ...] = ()
        weights: tuple[float, ...] = ()

    save(tmp_path / "c.h5", EXAMPLES["cut flow"])
    with pytest.raises(InputError, match=r"missing fields \['weights'\], unknown fields \['counts'\]"):
        load(tmp_path / "c.h5", CutFlow)


def test_a_field_whose_type_has_changed_since(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class CutFlow:
        names: tuple[str, ...]
        counts: tuple[float, ...]

    save(tmp_path / "c.h5", EXAMPLES["cut flow"])
    with pytest.raises(InputError, match=r"CutFlow\.counts is of kind 'ints'"):
        load(tmp_path / "c.h5", CutFlow)


def test_a_record_that_refuses_its_values_today(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored.with_name("binning.h5")
    save(path, BINNING)

    def refuse(_: Binning) -> None:
        raise InputError("eta_edges: not those")

    monkeypatch.setattr(Binning, "__post_init__", refuse)
    with pytest.raises(InputError, match=r"binning\.h5: Binning: eta_edges: not those; delete it"):
        load(path, Binning)


@pytest.mark.parametrize("name", ["", "."])
def test_a_name_that_cannot_be_stored(name: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="under the name"):
        save(tmp_path / "c.h5", CALIBRATION, attributes={name: "x"})
    assert not list(tmp_path.iterdir())


def test_a_type_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Strange:
        values: set[int]

    with pytest.raises(TypeError, match="set"):
        save(tmp_path / "c.h5", Strange({1}))
