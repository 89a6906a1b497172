"""The frozen records that stages hand to each other. No computation beyond reading a record another way.

Axis words: ``n_event`` events, ``n_bin`` occupied 4D bins (`Binning` numbers them), ``n_mass`` mass bins, ``n_gen``
generator-level mass bins, ``n_eta`` eta bins. Parameters of a calibration run fastest: A0, e0, M0, A1, e1, M1, ...
"""

from musclecal.records.arrays import Floats, Ints
from musclecal.records.closure import (
    Closure,
    ClosureSplits,
    MassImpacts,
    NuisanceGroup,
    Nuisances,
    ScaleFactor,
    ScaleSystematic,
    SplitTest,
    WidthClosure,
)
from musclecal.records.combination import (
    Combined,
    CorrelationRange,
    CorrelationScan,
    Derived,
    GroupedCombination,
    LeftOut,
    MatrixAudit,
    Measurements,
    RepairedCorrelation,
    RescaledCombination,
    ShiftToys,
    Source,
    WorstCase,
)
from musclecal.records.combined_calibration import CalibrationAgainstOthers, CombinedCalibration
from musclecal.records.detector import Detector, FieldMap
from musclecal.records.events import CutFlow, DimuonEvents, Muons
from musclecal.records.fits import BinFits, MassFits, MassWidths, Resolution, ScaleInformation, Smearing
from musclecal.records.histograms import BosonTemplates, MassHistogram, MuonResiduals, TemplateHistogram
from musclecal.records.modules import (
    PARAMETER_TYPES,
    PARAMETER_UNITS,
    ModuleCorrections,
    ModuleSums,
)
from musclecal.records.refits import MassConstraint, PairRefits, Refits
from musclecal.records.response import Response
from musclecal.records.scale import (
    JointFit,
    PhiRefinement,
    RunRefinement,
    SampleAgainstRest,
    ScaleCalibration,
    ScaleParameters,
    ScaleWithCovariance,
    TemplateFit,
)
from musclecal.records.tables import CorrectionTables
from musclecal.records.tracks import Pairs, Tracks

__all__ = [
    "PARAMETER_TYPES",
    "PARAMETER_UNITS",
    "BinFits",
    "BosonTemplates",
    "CalibrationAgainstOthers",
    "Closure",
    "ClosureSplits",
    "Combined",
    "CombinedCalibration",
    "CorrectionTables",
    "CorrelationRange",
    "CorrelationScan",
    "CutFlow",
    "Derived",
    "Detector",
    "DimuonEvents",
    "FieldMap",
    "Floats",
    "GroupedCombination",
    "Ints",
    "JointFit",
    "LeftOut",
    "MassConstraint",
    "MassFits",
    "MassHistogram",
    "MassImpacts",
    "MassWidths",
    "MatrixAudit",
    "Measurements",
    "ModuleCorrections",
    "ModuleSums",
    "MuonResiduals",
    "Muons",
    "NuisanceGroup",
    "Nuisances",
    "PairRefits",
    "Pairs",
    "PhiRefinement",
    "Refits",
    "RepairedCorrelation",
    "RescaledCombination",
    "Resolution",
    "Response",
    "RunRefinement",
    "SampleAgainstRest",
    "ScaleCalibration",
    "ScaleFactor",
    "ScaleInformation",
    "ScaleParameters",
    "ScaleSystematic",
    "ScaleWithCovariance",
    "ShiftToys",
    "Smearing",
    "Source",
    "SplitTest",
    "TemplateFit",
    "TemplateHistogram",
    "Tracks",
    "WidthClosure",
    "WorstCase",
]
