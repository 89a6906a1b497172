"""The tables of a campaign file about modules: [modules] and [samples.NAME.simulate_hits].

Not for: what the numbers mean for a detector (`musclecal.geometry.modes`, `misalignment`), whose names they have.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from musclecal.config_table import Positive, Table

__all__ = ["FreePairsConfig", "HitsConfig", "ModulesConfig", "SimulateHitsConfig"]

NotNegative = Annotated[float, Field(ge=0.0)]
Width = Annotated[float, Field(ge=0.0, allow_inf_nan=True)]
Deviations = Annotated[float, Field(gt=0.0, allow_inf_nan=True)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]

WidthName = Literal["pixel_u", "pixel_v", "strip_u", "field", "material", "w", "gamma"]
ModeWidthName = Literal[
    "layer", "layer_v", "detector", "sub_detector", "field", "field_shape", "material", "layer_material"
]
MisalignmentName = Literal[
    "pixel_u", "pixel_v", "strip_u", "strip_v", "unit_w", "unit_gamma", "layer_shift", "layer_rotation", "radial",
    "elliptical", "curl", "sagitta", "twist", "telescope", "skew", "z_expansion", "field", "field_polynomial",
    "field_unit", "matter", "matter_layer", "matter_unit",
]  # fmt: skip


_OF_SUMS = frozenset(
    ("target", "sigma", "growth", "error", "robust", "reference", "mass_window", "passes", "start")
)
"""Keys that have their effect when sums are made."""


class SimulateHitsConfig(Table):
    """simulate_hits, and modules.simulate: pairs of tracks with hits, made by the built-in simulation."""

    pairs: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]
    background: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    background_slope: float = 1.0
    """1/GeV"""
    muon_pt: tuple[Positive, Positive] | None = None
    """GeV, as in [samples.NAME.simulate]."""
    fsr: bool = True
    efficiency: Probability = 1.0
    """Of hits."""
    noise: Probability = 0.0
    """Hits that are replaced by one somewhere near."""
    loss: Literal["mean", "gauss", "landau"] = "mean"
    """Fluctuations of the energy loss."""


class HitsConfig(Table):
    """Pairs of tracks with hits: from files, or simulated."""

    sources: ClassVar[tuple[str, ...]] = ("hits", "simulate")
    """Keys of which one must be there."""
    hits: tuple[str, ...] = ()
    """Globs of Parquet or ROOT files, relative to the campaign file."""
    simulate: SimulateHitsConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "HitsConfig":
        if sum(bool(getattr(self, name)) for name in self.sources) != 1:
            raise ValueError(f"give one of {', '.join(self.sources)}")
        return self


class FreePairsConfig(HitsConfig):
    """[modules.free]: a second sample, whose mass is left free."""

    sources: ClassVar[tuple[str, ...]] = ("hits", "simulate", "sums")
    sums: tuple[str, ...] = ()
    """Of it, made by other jobs."""
    resonance: str = "Z"
    """What is simulated."""
    weight: Positive = 1.0


class ModulesConfig(Table):
    """[modules]: corrections of modules from a global fit of tracks."""

    detector: str = "cms"
    """cms, barrel, or a file."""
    field: str = "solenoid"
    """solenoid, or a file."""
    hits: tuple[str, ...] = ()
    simulate: SimulateHitsConfig | None = None
    sums: tuple[str, ...] = ()
    """Files of sums that other jobs have made."""
    start: str | None = None
    """A table of corrections that the first pass begins at."""
    mass: bool = True
    """The mass of a pair as a measurement."""
    mass_window: tuple[Positive, Positive] | None = None
    """GeV; that of the resonance by default."""
    reference: HitsConfig | None = None
    """Simulated pairs with truth, whose fitted and generator masses in the window give target and sigma."""
    target: Positive | None = None
    sigma: Positive | None = None
    """GeV"""
    growth: tuple[float, float] = (0.0, 0.0)
    """Of the logarithm of a target that is given, with sigma_m/m and its square."""
    error: NotNegative = 0.0
    """Of a target that is given, relative."""
    robust: Deviations | None = None
    """Standard deviations beyond which a mass counts less; by default 2 with a reference, else none."""
    free: FreePairsConfig | None = None
    passes: Annotated[int, Field(ge=1, le=5)] = 4
    """Times that all tracks are fitted, at most: from the second on, a pass that moves little is the last."""
    parameters: Literal[4, 6] = 4
    """Of a unit: u, v, field, material; 6 with w and gamma."""
    solver: Literal["cg", "direct"] = "cg"
    modes: bool = True
    """Let structures move as a whole."""
    widths: dict[WidthName, Width] = Field(default_factory=dict)
    mode_widths: dict[ModeWidthName, NotNegative] = Field(default_factory=dict)
    hit_chi2: Positive = 30.0
    chi2_per_ndf: Positive = 3.0
    gradient: Positive = 8.0
    misalignment_seed: Annotated[int, Field(ge=0)] = 1
    misalignment: dict[MisalignmentName, NotNegative] = Field(default_factory=dict)
    """Where the detector of simulated data is."""

    @model_validator(mode="after")
    def _detector(self) -> "ModulesConfig":
        if self.detector not in ("cms", "barrel") and not self.detector.endswith((".parquet", ".json")):
            raise ValueError(
                f"detector: {self.detector!r} is neither cms nor barrel, nor a .parquet or .json file"
            )
        if self.field != "solenoid" and not self.field.endswith(".json"):
            raise ValueError(f"field: {self.field!r} is neither solenoid nor a .json file")
        return self

    @model_validator(mode="after")
    def _sources(self) -> "ModulesConfig":
        if sum([bool(self.hits), self.simulate is not None, bool(self.sums)]) != 1:
            raise ValueError("give one of hits, a simulate table, or sums")
        made_before = sorted(_OF_SUMS & self.model_fields_set) if self.sums else []
        if made_before:
            raise ValueError(f"{made_before[0]}: the sums were made with their own")
        if self.free is not None and bool(self.sums) != bool(self.free.sums):
            raise ValueError("free: give sums of it if, and only if, modules.sums are given")
        if self.mode_widths and not self.modes:
            raise ValueError("mode_widths: there are none with modes = false")
        return self

    @model_validator(mode="after")
    def _mass(self) -> "ModulesConfig":
        if (self.target is None) != (self.sigma is None):
            raise ValueError("target and sigma go together")
        for name in ("growth", "error"):
            if self.target is None and name in self.model_fields_set:
                raise ValueError(f"{name}: belongs to target and sigma")
        if self.target is not None and self.reference is not None:
            raise ValueError("reference: target and sigma are given already")
        if self.mass and not self.sums and self.target is None and self.reference is None:
            raise ValueError("the mass needs a reference (simulated hits with truth), or target and sigma")
        if self.mass_window is not None and not self.mass_window[0] < self.mass_window[1]:
            raise ValueError(f"mass_window: must increase, got {list(self.mass_window)}")
        return self
