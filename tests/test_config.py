"""The campaign file: defaults, and a refusal of every wrong key that names file, table and key."""

import tomllib
from pathlib import Path
from typing import get_args

import pytest

from musclecal.config import CampaignConfig, ModelName, load_campaign
from musclecal.demo import demo_truth, write_demo, write_template
from musclecal.errors import InputError
from musclecal.fits.shapes import MODEL_NAMES
from musclecal.resonances import resonance
from musclecal.samples import read_scale

MINIMAL = """
[campaign]
name = "2011A"
[samples.jpsi_data]
resonance = "Jpsi"
kind = "data"
files = ["jpsi.root"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "campaign.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    """The message, which must name the file."""
    path = written(folder, text)
    with pytest.raises(InputError) as refused:
        load_campaign(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_everything_not_given_has_a_default(tmp_path: Path) -> None:
    config = load_campaign(written(tmp_path, MINIMAL))
    assert (config.campaign.output, config.campaign.passes, config.campaign.resonance) == ("out", 2, "Jpsi")
    edges = config.binning.edges
    assert (len(edges), edges[0], edges[12], edges[-1]) == (25, -2.4, 0.0, 2.4)
    assert config.resonance("Jpsi") == resonance("Jpsi")
    assert config.gates.closure_resonances == ("Y1S", "Z")
    assert config.samples["jpsi_data"].columns is None


def test_a_resonance_table_changes_what_it_names_and_no_more(tmp_path: Path) -> None:
    table = '[resonances.Jpsi]\nmass_window = [2.9, 3.3]\nmodel = "gaussian"\n'
    config = load_campaign(written(tmp_path, MINIMAL + table))
    changed, default = config.resonance("Jpsi"), resonance("Jpsi")
    assert (changed.mass_window, changed.model) == ((2.9, 3.3), "gaussian")
    assert (changed.pt_edges, changed.mass_bins, changed.line) == (
        default.pt_edges,
        default.mass_bins,
        default.line,
    )
    assert config.binning_of("Jpsi", (4.0, 8.0)).mass_window == (2.9, 3.3)


def test_any_eta_edges_replace_the_equal_bins(tmp_path: Path) -> None:
    config = load_campaign(written(tmp_path, MINIMAL + "[binning]\neta_edges = [2, 2.5, 3.5, 5]\n"))
    assert config.binning.edges == (2.0, 2.5, 3.5, 5.0)


def test_no_eta_edges_are_not_taken_for_the_default(tmp_path: Path) -> None:
    assert "binning.eta_edges: need at least two edges" in refusal(
        tmp_path, MINIMAL + "[binning]\neta_edges = []\n"
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[binning]\neta_edges = [1, 0, 2]", "binning.eta_edges: edges must be finite and increasing"),
        ("[resonances.Jpsi]\npt_edges = [6, 4]", "resonances.Jpsi.pt_edges: edges must be finite and incr"),
        ("[resonances.Jpsi]\npt_edges = [0, 4]", "resonances.Jpsi.pt_edges: must be positive"),
        ("[resonances.Jpsi]\npt_edges = [4]", "resonances.Jpsi.pt_edges: need at least two edges"),
        ("[resonances.Jpsi]\nmuon_pt = [40, 4]", "resonances.Jpsi.pt_edges: edges must be finite and incr"),
        ("[resonances.Jpsi]\nmass_window = [3.2, 2.9]", "resonances.Jpsi.mass_window: edges must be finite"),
        (
            "[resonances.Z]\nmass_window = [9, 10]",
            "resonances.Z.mass_window: 9.0 to 10.0 GeV does not contain",
        ),
    ],
)
def test_axes_that_make_no_binning_are_refused_at_once(tmp_path: Path, table: str, message: str) -> None:
    assert message in refusal(tmp_path, MINIMAL + table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "response = 'Psi'",
            "export.response: 'Psi' is no simulated sample, nor a resonance with one; simulated are ",
        ),
        ("response = 'Z'", "export.response: 'Z' is no simulated sample"),
        ("response = ''", "export.response: '' is no simulated sample"),
        ("period = '2016/H'", "export.period"),
        ("response_pt_edges = [4, 5]", "export: response_pt_edges: needs export.response"),
        ("response = 'Jpsi'\nresponse_pt_edges = [5]", "export: response_pt_edges: must increase, got [5.0]"),
        ("response = 'Jpsi'\nresponse_eta_edges = [1, 0]", "export: response_eta_edges: must increase"),
        ("response = 'Jpsi'\nresponse_pt_edges = [0, 5]", "export.response_pt_edges.0"),
    ],
)
def test_a_response_that_cannot_be_made_is_refused_at_once(tmp_path: Path, table: str, message: str) -> None:
    assert message in refusal(tmp_path, MINIMAL + "[export]\n" + table)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("[binning]\neta_bin = 24", "binning.eta_bin"),
        ("[resonances.Jpsi]\npt_edge = [4, 8]", "resonances.Jpsi.pt_edge"),
        ("[samples.x]\nresonance = 'Jpsi'\nkind = 'data'\nfile = ['a']", "samples.x.file"),
        (
            "[samples.x]\nresonance = 'Jpsi'\nkind = 'data'\nsimulate = {events = 5, seed = 1, n = 3}",
            "samples.x.simulate.n",
        ),
        ("[gates]\nfraction = 0.5", "gates.fraction"),
        ("[closure]\nsectors = 8", "closure.sectors"),
        ("[resolution]\nfit_d = true", "resolution.fit_d"),
        ("[systematics]\nn_toys = 500", "systematics.n_toys"),
        ("[propagation]\nn_draws = 1000000", "propagation.n_draws"),
        ("[joint]\nkeep = ['Z']", "joint.keep"),
        ("[resonances.Z.template]\npt_bins = 3", "resonances.Z.template.pt_bins"),
        ("[plots]\ncolour = 'red'", "plots"),
    ],
)
def test_an_unknown_key_is_named_with_its_table(tmp_path: Path, table: str, key: str) -> None:
    assert f"{key}: unknown key" in refusal(tmp_path, MINIMAL + table)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("[binning]\neta_bins = 2.5", "binning.eta_bins"),
        ("[binning]\neta_bins = 0", "binning.eta_bins"),
        ("[binning]\neta_max = 'wide'", "binning.eta_max"),
        ("[binning]\neta_max = inf", "binning.eta_max"),
        ("[binning]\neta_edges = [0, nan]", "binning.eta_edges.1"),
        ("[resonances.Jpsi]\nmass_window = [2.9]", "resonances.Jpsi.mass_window.1"),
        ("[resonances.Jpsi]\nmass_window = [-2.9, 3.1]", "resonances.Jpsi.mass_window.0"),
        ("[resonances.Jpsi]\nbackground = 'cubic'", "resonances.Jpsi.background"),
        ("[resonances.Jpsi]\nmodel = 'gauss'", "resonances.Jpsi.model"),
        ("[gates]\nclosure_p_value = 2", "gates.closure_p_value"),
        ("[gates]\nwidth_p_value = -1", "gates.width_p_value"),
        ("[closure]\nengine = 'scaler'", "closure.engine"),
        ("[closure]\nphi_sectors = 2", "closure.phi_sectors"),
        ("[closure]\nphi_sectors = 8.5", "closure.phi_sectors"),
        ("[closure]\nharmonics = [0]", "closure.harmonics.0"),
        ("[closure]\nrun_edges = ['a', 'b']", "closure.run_edges.0"),
        ("[resolution]\nresonances = 'Z'", "resolution.resonances"),
        ("[resolution]\nfit_b = 'maybe'", "resolution.fit_b"),
        ("[resolution]\nd = 0", "resolution.d"),
        ("[resolution]\nmin_events = 0", "resolution.min_events"),
        ("[resolution]\nsalt = 'x'", "resolution.salt"),
        ("[systematics]\ntoys = 10", "systematics.toys"),
        ("[systematics]\nseed = -1", "systematics.seed"),
        ("[systematics]\nresolution_inflation = 0", "systematics.resolution_inflation"),
        ("[propagation]\nluminosity = 0", "propagation.luminosity"),
        ("[propagation]\ndraws = 20000", "propagation.draws"),
        ("[propagation]\npt_edges = [26, 'x']", "propagation.pt_edges.1"),
        ("[propagation]\nfree_yields = 3", "propagation.free_yields"),
        ("[joint]\nuse = ['Z third']", "joint.use.0"),
        ("[joint]\nuse = 'Jpsi'", "joint.use"),
        ("[resonances.Z.template]\nmass_bins = 3", "resonances.Z.template.mass_bins"),
        ("[resonances.Z.template]\nstep = 0.5", "resonances.Z.template.step"),
        ("[resonances.Z.template]\nwidths = 'both'", "resonances.Z.template.widths"),
        ("[resonances.Z.template]\nasymmetry_edges = 'x'", "resonances.Z.template.asymmetry_edges"),
        (
            "[samples.x]\nresonance = 'Jpsi'\nkind = 'data'\nsimulate = {events = 9, seed = 1, run = 0}",
            "samples.x.simulate.run",
        ),
        ("[samples.x]\nresonance = 'Jpsi'\nkind = 'mc'\nfiles = ['a']", "samples.x.kind"),
        ("[samples.x]\nkind = 'data'\nfiles = ['a']", "samples.x.resonance"),
        ("[samples.x]\nresonance = 'Jpsi'\nkind = 'data'\nfiles = 'a.root'", "samples.x.files"),
        (
            "[samples.x]\nresonance = 'Jpsi'\nkind = 'data'\nfiles = ['a']\ncolumns = {pt1 = 3}",
            "samples.x.columns.pt1",
        ),
        (
            "[samples.x]\nresonance = 'Jpsi'\nkind = 'data'\nsimulate = {events = 0, seed = 1}",
            "samples.x.simulate.events",
        ),
        (
            "[samples.x]\nresonance = 'Jpsi'\nkind = 'data'\nsimulate = {events = 9, seed = 1, background = 1}",
            "samples.x.simulate.background",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_table(tmp_path: Path, table: str, key: str) -> None:
    assert f" {key}: " in refusal(tmp_path, MINIMAL + table)


@pytest.mark.parametrize("engine", ["templates", "scalar", 3])
def test_an_unknown_engine_of_the_extraction_is_named(tmp_path: Path, engine: object) -> None:
    text = MINIMAL.replace('name = "2011A"', f'name = "a"\nengine = {engine!r}')
    assert " campaign.engine: " in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[closure]\nharmonics = [1, 6]", "closure: harmonics: 6 needs more than 12 phi_sectors, got 12"),
        ("[closure]\nrun_edges = [5]", "closure: run_edges: at least two increasing run numbers"),
        ("[closure]\nrun_edges = [9, 5]", "closure: run_edges: at least two increasing run numbers"),
        ("[closure]\nrun_edges = [0, 5]", "closure: run_edges: at least two increasing run numbers"),
    ],
)
def test_splits_that_cannot_be_made_are_refused_at_once(tmp_path: Path, table: str, message: str) -> None:
    assert message in refusal(tmp_path, MINIMAL + table)


@pytest.mark.parametrize(
    ("use", "twice"), [('"Z", "Jpsi", "Z even"', "Z even"), ('"Z odd", "Jpsi", "Z odd"', "Z odd")]
)
def test_events_that_would_be_fitted_twice_are_refused_at_once(tmp_path: Path, use: str, twice: str) -> None:
    message = f"joint.use: events of {twice} are there twice"
    assert message in refusal(tmp_path, f"{MINIMAL}[joint]\nuse = [{use}]")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (MINIMAL + "[resonances.JPsi]", "resonances.JPsi"),
        (MINIMAL.replace('"Jpsi"', '"J/psi"'), "samples.jpsi_data.resonance"),
        (MINIMAL.replace('name = "2011A"', 'name = "a"\nresonance = "W"'), "campaign.resonance"),
        (MINIMAL + '[gates]\nclosure_resonances = ["Upsilon"]', "gates.closure_resonances"),
        (MINIMAL + '[resolution]\nresonances = ["Upsilon"]', "resolution.resonances"),
        (MINIMAL + '[resolution]\nclosure = ["Upsilon"]', "resolution.closure"),
        (MINIMAL + '[systematics]\nresonances = ["Upsilon"]', "systematics.resonances"),
        (MINIMAL + '[systematics]\nquote = "Upsilon"', "systematics.quote"),
        (MINIMAL + '[systematics]\nnuisances_from = ["Upsilon"]', "systematics.nuisances_from"),
        (MINIMAL + '[propagation]\nclosure = "Upsilon"', "propagation.closure"),
        (MINIMAL + '[joint]\nuse = ["Jpsi", "Upsilon even"]', "joint.use"),
    ],
)
def test_an_unknown_resonance_is_named_with_the_known_ones(tmp_path: Path, text: str, where: str) -> None:
    message = refusal(tmp_path, text)
    assert f"{where}: unknown resonance" in message
    assert "known are Jpsi, psi2S, Y1S, Y2S, Y3S, Z" in message


def test_the_models_of_the_file_are_those_of_the_fit() -> None:
    assert get_args(ModelName) == MODEL_NAMES


@pytest.mark.parametrize("source", ["", "files = ['a']\nsimulate = {events = 5, seed = 1}", "files = []"])
def test_a_sample_has_files_or_a_simulate_table(tmp_path: Path, source: str) -> None:
    text = f'[campaign]\nname = "a"\n[samples.x]\nresonance = "Jpsi"\nkind = "data"\n{source}\n'
    assert "samples.x: give one of files, hits, a simulate table or a simulate_hits table" in refusal(
        tmp_path, text
    )


def test_a_fast_reference_belongs_to_data(tmp_path: Path) -> None:
    text = MINIMAL.replace('"data"', '"simulation"') + 'reference = "fast"\n'
    assert 'samples.jpsi_data: reference = "fast" belongs to a data sample' in refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["", "[campaign]\n", '[campaign]\nname = "a"\n'])
def test_missing_tables_are_named(tmp_path: Path, text: str) -> None:
    assert "samples: " in refusal(tmp_path, text)


def test_what_is_not_toml_is_refused_with_the_line(tmp_path: Path) -> None:
    assert "not valid TOML" in refusal(tmp_path, "[campaign\nname = 1")
    assert "line 2" in refusal(tmp_path, "[campaign]\nname = \n[samples.a]")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml: no such campaign file; `musclecal init`"):
        load_campaign(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_campaign(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.toml: cannot be read"):
        load_campaign(tmp_path / "binary.toml")


def test_the_template_loads_and_so_does_every_line_that_it_comments_out(tmp_path: Path) -> None:
    path = tmp_path / "campaign.toml"
    write_template(path)
    config = load_campaign(path)
    assert set(config.samples) == {"jpsi_data", "jpsi_mc"}
    options = [
        line.removeprefix("# ")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("# ") and " = " in line
    ]
    assert len(options) > 8
    together = path.read_text(encoding="utf-8")
    for option in options:
        if not option.startswith("resonance"):
            together = together.replace(f"# {option}", option)
    CampaignConfig.model_validate(tomllib.loads(together))


def test_the_template_is_never_written_over_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    with pytest.raises(InputError, match="exists already"):
        write_template(path)
    assert path.read_text(encoding="utf-8") == MINIMAL


def test_the_demo_may_be_written_again_by_any_name_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_demo(Path("demo"))
    assert write_demo((tmp_path / "demo").resolve()).samefile(path)
    config = load_campaign(path)
    truth = read_scale(path.parent / "truth.json")
    assert config.binning.edges == tuple(truth.eta_edges)
    assert truth.A.tolist() == demo_truth().A.tolist()


def test_the_demo_does_not_replace_another_campaign(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    with pytest.raises(InputError, match="another campaign file"):
        write_demo(tmp_path)
    assert path.read_text(encoding="utf-8") == MINIMAL
    with pytest.raises(InputError, match="not a folder"):
        write_demo(path)


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".hidden"])
def test_a_sample_name_is_no_path(tmp_path: Path, name: str) -> None:
    text = MINIMAL.replace("samples.jpsi_data", f'samples."{name}"', 1)
    assert text != MINIMAL
    with pytest.raises(InputError, match="samples"):
        load_campaign(written(tmp_path, text))


def test_a_closure_fits_a(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must contain A"):
        load_campaign(written(tmp_path, MINIMAL + '\n[resonances.Y1S]\nclosure_parameters = ["M"]\n'))
