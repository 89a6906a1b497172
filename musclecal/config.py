"""The campaign file: one TOML file says what is calibrated, with what, and how.

Every key is checked; a wrong one is an `InputError` that names the key and its table. Nothing is read but the file.
"""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from musclecal.binning import Binning, TemplateBinning, equal_eta_edges
from musclecal.columns import FlatColumns
from musclecal.config_table import Positive, Table, input_error
from musclecal.errors import InputError
from musclecal.module_config import ModulesConfig, SimulateHitsConfig
from musclecal.resonances import Resonance, resonance, resonance_names
from musclecal.selection import names_needed

__all__ = [
    "BinningConfig",
    "CampaignConfig",
    "ClosureConfig",
    "GateConfig",
    "ResonanceConfig",
    "SampleConfig",
    "SimulateConfig",
    "TemplateConfig",
    "load_campaign",
]

ModelName = Literal[
    "simulation-shape", "generator-template", "pooled-template", "gaussian", "crystal-ball", "breit-wigner"
]
"""Those of `musclecal.fits.shapes`."""


class CampaignSection(Table):
    """[campaign]"""

    name: str
    output: str = "out"
    passes: Annotated[int, Field(ge=1, le=5)] = 2
    """1: calibrate once; 2: calibrate the corrected events once more."""
    resonance: str = "Jpsi"
    """What is calibrated on."""
    engine: Literal["mass-fits", "template", "joint"] = "mass-fits"
    """How A, e, M are extracted; joint: from the samples of [joint] together."""
    chunk_events: Annotated[int, Field(ge=1000)] = 200_000
    target: Literal["data", "simulation"] = "data"
    """What is corrected: data to simulation, or the simulation to its own generator-level momenta."""


class BinningConfig(Table):
    """[binning]"""

    eta_bins: Annotated[int, Field(ge=1)] = 24
    eta_max: Positive = 2.4
    eta_edges: tuple[float, ...] | None = None

    @property
    def edges(self) -> tuple[float, ...]:
        """The edges in eta."""
        if self.eta_edges is not None:
            return self.eta_edges
        return equal_eta_edges(self.eta_bins, self.eta_max)


class TemplateConfig(Table):
    """[resonances.NAME.template]: axes of the template fit."""

    asymmetry_edges: tuple[float, ...] | None = None
    pt_edges: tuple[float, ...] | None = None
    """GeV, of the mean pT of the pair."""
    mass_bins: Annotated[int, Field(ge=4)] | None = None
    step: Annotated[float, Field(gt=0.0, lt=0.1)] | None = None
    """Relative shift of the curvature for derivatives."""
    widths: Literal["eta", "bin"] = "eta"
    """Fit a width per eta bin, or leave it free in every 4D bin."""


class ResonanceConfig(Table):
    """[resonances.NAME]: what differs from the defaults of `musclecal.resonances`."""

    pt_edges: tuple[float, ...] | None = None
    """GeV; without it the edges follow the statistics of the data."""
    muon_pt: tuple[Positive, Positive] | None = None
    """GeV, range of the automatic pT edges."""
    mass_window: tuple[Positive, Positive] | None = None
    mass_bins: Annotated[int, Field(ge=4)] | None = None
    model: ModelName | None = None
    background: Literal["none", "exponential", "linear"] | None = None
    min_events: Annotated[int, Field(ge=1)] | None = None
    pt_scaled: bool | None = None
    reweight: bool = False
    """Give the simulation the pT spectrum of the data inside the 4D bins."""
    closure_parameters: tuple[Literal["A", "e", "M"], ...] = ("A", "M")
    """What the closure fits. A alone where the sample is too small to say anything about M."""
    template: TemplateConfig = TemplateConfig()

    @model_validator(mode="after")
    def _closure_fits_a(self) -> "ResonanceConfig":
        if "A" not in self.closure_parameters:
            raise ValueError("closure_parameters: must contain A")
        if len(set(self.closure_parameters)) < len(self.closure_parameters):
            raise ValueError(f"closure_parameters: one is there twice: {', '.join(self.closure_parameters)}")
        return self


class ClosureConfig(Table):
    """[closure]"""

    engine: Literal["template", "scalar"] = "template"
    """template: one fit of all cells at once; scalar: mass fits of 4D bins (always so with reference = "fast")."""
    phi_sectors: Annotated[int, Field(ge=4, le=64)] = 12
    harmonics: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 3)
    """Waves in phi that are tested."""
    run_edges: tuple[int, ...] = ()
    """Run numbers at which the data are split; the last range ends before the last number."""

    @model_validator(mode="after")
    def _splits_can_be_made(self) -> "ClosureConfig":
        for harmonic in self.harmonics:
            if 2 * harmonic > self.phi_sectors - 1:
                raise ValueError(
                    f"harmonics: {harmonic} needs more than {2 * harmonic} phi_sectors, got {self.phi_sectors}"
                )
        edges = self.run_edges
        if edges and (len(edges) < 2 or edges[0] < 1 or any(b <= a for a, b in pairwise(edges))):
            raise ValueError(f"run_edges: at least two increasing run numbers are needed, got {list(edges)}")
        return self


class ResolutionConfig(Table):
    """[resolution]"""

    resonances: tuple[str, ...] = ("Jpsi", "Z")
    """Whose widths give the resolution."""
    closure: tuple[str, ...] = ("Y1S",)
    """Whose widths are looked at beside."""
    fit_b: bool = False
    d: Positive = 370.0
    """GeV^2, of b/(1 + d/pT^2)."""
    min_events: Annotated[int, Field(ge=1)] = 50
    salt: int = 0
    """Of the random numbers of the smearing."""


class SystematicsConfig(Table):
    """[systematics]"""

    resonances: tuple[str, ...] = ("Y1S", "Z")
    """Whose closures set s."""
    quote: str = "joint"
    """Which s scales the uncertainty: joint, or a resonance."""
    toys: Annotated[int, Field(ge=100)] = 10_000
    seed: Annotated[int, Field(ge=0)] = 1
    nuisances_from: tuple[str, ...] = ("Z",)
    """Closures whose own uncertainty is quoted."""
    resolution_inflation: Positive = 10.0
    """Factor on the uncertainty of the resolution."""


class PropagationConfig(Table):
    """[propagation]"""

    luminosity: Positive = 16.8
    """1/fb"""
    draws: Annotated[int, Field(ge=100_000)] = 10_000_000
    """Generated decays; with fewer the noise of the templates looks like information in profiled fits."""
    seed: Annotated[int, Field(ge=0)] = 1
    pt_edges: tuple[Positive, ...] | None = None
    """GeV, of the muon of a W; 26 to 56 by default."""
    free_yields: bool = True
    closure: str = "Z"
    """The closure whose own statistics limit the calibration."""


class JointConfig(Table):
    """[joint]"""

    use: Annotated[tuple[Annotated[str, Field(pattern=r"^\w+( even| odd)?$")], ...], Field(min_length=1)] = (
        "Jpsi",
        "Y1S",
        "Z even",
    )
    """Samples that are fitted together, by event number in halves; all others are compared with the fit."""


class ExportConfig(Table):
    """[export]"""

    formats: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Of `musclecal.export.folder.FORMATS`; without it all but rochester."""
    period: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]*$")] = ""
    """Data-taking period that the tables are for; it becomes a part of names of files."""
    pt_range: tuple[Positive, Positive] = (2.0, 200.0)
    """GeV, where the correction is valid."""
    licence: str = ""
    scaled: bool = True
    """Scale the statistical uncertainty by the s of the closures, where there are any."""
    response: str | None = None
    """Simulated sample, or resonance, whose response goes with the tables: for event weights."""
    response_eta_edges: tuple[float, ...] | None = None
    response_pt_edges: tuple[Positive, ...] | None = None
    """GeV, of the true pT; without these the cells follow the statistics of the sample."""

    @model_validator(mode="after")
    def _formats_and_range(self) -> "ExportConfig":
        if self.formats is not None:
            from musclecal.export.folder import known_formats

            try:
                known_formats(self.formats)
            except InputError as error:
                raise ValueError(str(error)) from None
        if not self.pt_range[0] < self.pt_range[1]:
            raise ValueError("pt_range: must increase")
        for key in ("response_eta_edges", "response_pt_edges"):
            edges = getattr(self, key)
            if edges is not None and (len(edges) < 2 or any(b <= a for a, b in pairwise(edges))):
                raise ValueError(f"{key}: must increase, got {list(edges)}")
            if edges is not None and self.response is None:
                raise ValueError(f"{key}: needs export.response")
        return self


class SimulateConfig(Table):
    """[samples.NAME.simulate]: a sample made by the built-in simulation."""

    events: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]
    truth: str | None = None
    """JSON file with eta_edges, A, e, M, relative to the campaign file: the bias is its exact inverse."""
    muon_pt: tuple[Positive, Positive] | None = None
    """GeV; default 3 % beyond the axes, in pT m_ref/m over the whole mass window, as an ntuple would have."""
    background: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    background_slope: float = 1.0
    """1/GeV"""
    fsr: bool = True
    resolution: str | None = None
    """JSON file with eta_edges, a, b, c, d of (sigma_k/k)^2 = a + c/k^2 + b/(1 + d k^2), relative to this file."""
    resolution_factor: Positive = 1.0
    """On sigma_k/k."""
    spectrum_p0: Positive | None = None
    spectrum_exponent: Annotated[float, Field(gt=1.0)] | None = None
    spectrum_y_max: Positive | None = None
    polarisation: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    pt2: float = 0.0
    phi_amplitude: float = 0.0
    phi_harmonic: int = 1
    eta_amplitude: float = 0.0
    eta_period: Positive = 1.0
    eta_pt_min: float = 20.0
    run: Annotated[int, Field(ge=1)] = 1
    """Run number of the events."""
    generator: Literal["builtin", "pythia8"] = "builtin"
    format: Literal["parquet", "root"] = "parquet"


class SampleConfig(Table):
    """[samples.NAME]"""

    resonance: str
    kind: Literal["data", "simulation"]
    files: tuple[str, ...] = ()
    """Globs relative to the campaign file, or URLs that uproot takes."""
    columns: dict[str, str] | None = None
    cuts: tuple[str, ...] = ()
    """Expressions over pt_plus, eta_minus, mass, run and the file's own columns; every one must hold."""
    reference: Literal["fast"] | None = None
    """For data without simulation: "fast" makes the reference from the data themselves."""
    simulate: SimulateConfig | None = None
    hits: tuple[str, ...] = ()
    """Files of tracks with hits: fitted again, and corrected with what [modules] finds."""
    simulate_hits: SimulateHitsConfig | None = None
    module_corrections: bool | None = None
    """Whether they are corrected: data are by default, simulation is not."""

    @property
    def has_hits(self) -> bool:
        """Whether its muons come from hits."""
        return bool(self.hits) or self.simulate_hits is not None

    @property
    def is_module_corrected(self) -> bool:
        """Whether its muons have corrections of modules."""
        given = self.module_corrections
        return self.has_hits and (self.kind == "data" if given is None else given)

    def choices(self) -> dict[str, object]:
        """All of it but where its events come from."""
        return self.model_dump(exclude={"files", "simulate", "hits", "simulate_hits"})

    @model_validator(mode="after")
    def _one_source(self) -> "SampleConfig":
        sources = [
            bool(self.files),
            bool(self.hits),
            self.simulate is not None,
            self.simulate_hits is not None,
        ]
        if sum(sources) != 1:
            raise ValueError("give one of files, hits, a simulate table or a simulate_hits table")
        if self.has_hits and self.columns is not None:
            raise ValueError("columns: belong to files of muons, not to hits")
        if self.module_corrections is not None and not self.has_hits:
            raise ValueError("module_corrections: only muons from hits can be corrected")
        if self.reference and self.kind != "data":
            raise ValueError('reference = "fast" belongs to a data sample')
        if self.columns is not None:
            FlatColumns.from_map(self.columns)
        names_needed(self.cuts)
        return self


class GateConfig(Table):
    """[gates]: results worse than this end with exit code 3."""

    converged_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.99
    """Events in good fits over events in bins that were fitted."""
    events_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Events in good fits over all selected events of the calibration resonance."""
    fit_p_value: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-6
    """Of the fit of A, e, M to the 4D mass scales."""
    second_pass_chi2: Annotated[float, Field(gt=0.0)] = 1.0
    """How much the last pass may change the calibration: chi2 per parameter."""
    module_pairs_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Pairs in the global fit of modules over all pairs of tracks."""
    module_chi2_per_ndf: tuple[Positive, Positive] = (0.5, 2.0)
    """Of the tracks with the corrections of modules, lowest and highest."""
    closure_p_value: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-4
    """Of the residual, with the calibration's own uncertainty in the covariance."""
    width_p_value: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-4
    """Of width ratios of data and smeared simulation against one."""
    closure_resonances: tuple[str, ...] = ("Y1S", "Z")
    """Which closures are gated. The scalar engine, with a known bias of 1e-4 at the Z, is not gated there."""


class CampaignConfig(Table):
    """A whole campaign file."""

    campaign: CampaignSection
    binning: BinningConfig = BinningConfig()
    resonances: dict[str, ResonanceConfig] = Field(default_factory=dict)
    samples: dict[Annotated[str, Field(pattern=r"^\w[\w.+-]*$")], SampleConfig]
    closure: ClosureConfig = ClosureConfig()
    resolution: ResolutionConfig = ResolutionConfig()
    systematics: SystematicsConfig = SystematicsConfig()
    propagation: PropagationConfig = PropagationConfig()
    joint: JointConfig = JointConfig()
    export: ExportConfig = ExportConfig()
    gates: GateConfig = GateConfig()
    modules: ModulesConfig | None = None

    @model_validator(mode="after")
    def _names_and_samples(self) -> "CampaignConfig":
        known = resonance_names()
        for where, name in [("campaign.resonance", self.campaign.resonance)] + [
            *((f"resonances.{name}", name) for name in self.resonances),
            *((f"samples.{key}.resonance", sample.resonance) for key, sample in self.samples.items()),
            *(("gates.closure_resonances", name) for name in self.gates.closure_resonances),
            *(("resolution.resonances", name) for name in self.resolution.resonances),
            *(("resolution.closure", name) for name in self.resolution.closure),
            *(("systematics.resonances", name) for name in self.systematics.resonances),
            *(("systematics.quote", name) for name in (self.systematics.quote,) if name != "joint"),
            *(("systematics.nuisances_from", name) for name in self.systematics.nuisances_from),
            *(("joint.use", name.split()[0]) for name in self.joint.use),
            ("propagation.closure", self.propagation.closure),
            *(("modules.free.resonance", m.free.resonance) for m in (self.modules,) if m and m.free),
        ]:
            if name not in known:
                raise ValueError(f"{where}: unknown resonance {name!r}; known are {', '.join(known)}")
        self._check_choices()
        for name in {*self.resonances, *(sample.resonance for sample in self.samples.values())}:
            self._check_axes(name)
        return self

    def _check_choices(self) -> None:
        """Choices that contradict each other, found before hours of reading."""
        for name, sample in self.samples.items():
            if sample.has_hits and self.modules is None:
                raise ValueError(f"samples.{name}: hits need a table [modules], at least for the detector")
        closing = self.systematics.resonances
        if not closing or len(set(closing)) < len(closing):
            raise ValueError(f"systematics.resonances: some names, each once, got {list(closing)}")
        if self.systematics.quote not in ("joint", *closing):
            raise ValueError(
                f"systematics.quote: {self.systematics.quote!r} is neither joint nor one of {', '.join(closing)}"
            )
        use = self.joint.use
        for name in use:
            if use.count(name) > 1 or (name.split()[0] in use and " " in name):
                raise ValueError(f"joint.use: events of {name} are there twice")
        if self.export.response is not None and not self.response_samples():
            simulated = ", ".join(key for key, sample in self.samples.items() if sample.kind == "simulation")
            raise ValueError(
                f"export.response: {self.export.response!r} is no simulated sample, nor a resonance with one; "
                f"simulated are {simulated or 'none'}"
            )
        edges = self.propagation.pt_edges
        if edges is not None and (len(edges) < 2 or any(b <= a for a, b in pairwise(edges))):
            raise ValueError(f"propagation.pt_edges: must increase, got {list(edges)}")
        if "Z" in self.resonances and "e" in self.resonances["Z"].closure_parameters:
            raise ValueError(
                "resonances.Z.closure_parameters: e is not measured at the Z (correlation with A 0.985)"
            )

    def _check_axes(self, name: str) -> None:
        """Edges and windows make a binning, so that a wrong one is found before hours of reading."""
        try:
            self.binning_of(name, self.resonance(name).pt_edges)
            self.template_binning(name)
        except InputError as error:
            table = "binning" if str(error).startswith("eta_edges") else f"resonances.{name}"
            raise ValueError(f"{table}.{error}") from None

    def settings(self, name: str) -> ResonanceConfig:
        """The table of a resonance, or its defaults."""
        return self.resonances.get(name, ResonanceConfig())

    def resonance(self, name: str) -> Resonance:
        """A resonance with the changes of the campaign file."""
        from dataclasses import replace

        table = self.settings(name)
        names = ("mass_window", "mass_bins", "model", "background", "min_events", "pt_scaled", "pt_edges")
        changes = {key: getattr(table, key) for key in names if getattr(table, key) is not None}
        if table.pt_edges is None and table.muon_pt is not None:
            changes["pt_edges"] = table.muon_pt
        axes = {key: value for key, value in table.template if key != "widths" and value is not None}
        changes["template"] = replace(resonance(name).template, **axes)
        return replace(resonance(name), **changes)

    def binning_of(self, name: str, pt_edges: tuple[float, ...]) -> Binning:
        """The 4D binning of a resonance."""
        r = self.resonance(name)
        return Binning(self.binning.edges, pt_edges, r.mass_window, r.mass_bins, r.line.mass, r.pt_scaled)

    def template_binning(self, name: str, phi_sectors: int = 1) -> TemplateBinning:
        """The axes of the template fit of a resonance."""
        r = self.resonance(name)
        axes = r.template
        return TemplateBinning(
            eta_edges=self.binning.edges,
            asymmetry_edges=axes.asymmetry_edges,
            pt_edges=axes.pt_edges,
            muon_pt=(r.pt_edges[0], r.pt_edges[-1]),
            mass_window=r.mass_window,
            mass_bins=axes.mass_bins,
            mass_reference=r.line.mass,
            phi_sectors=phi_sectors,
        )

    def response_samples(self) -> dict[str, SampleConfig]:
        """The simulated samples that export.response means, by name: one, or those of a resonance."""
        wanted = self.export.response
        return {
            key: sample
            for key, sample in self.samples.items()
            if sample.kind == "simulation"
            and (key == wanted if wanted in self.samples else sample.resonance == wanted)
        }

    def samples_of(self, name: str, kind: str) -> dict[str, SampleConfig]:
        """Samples of one resonance and kind, by name. With the simulation as target it is on both sides."""
        if self.campaign.target == "simulation":
            kind = "simulation"
        return {
            key: sample
            for key, sample in self.samples.items()
            if sample.resonance == name and sample.kind == kind
        }


def load_campaign(path: str | Path) -> CampaignConfig:
    """Read and check a campaign file. Raises `InputError` naming file, table and key."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such campaign file; `musclecal init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    try:
        return CampaignConfig.model_validate(table)
    except ValidationError as error:
        raise input_error(path, error) from None
