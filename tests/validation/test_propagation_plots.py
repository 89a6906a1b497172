"""The figure of mass impacts is drawn for one and for several masses, and refuses what it cannot draw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musclecal.errors import InputError
from musclecal.records import MassImpacts
from musclecal.validation.propagation_plots import plot_mass_impacts

IMPACTS = MassImpacts(
    boson="W",
    luminosity=16.8,
    eta_edges=np.array([-2.4, 0.0, 2.4]),
    sources=("calibration statistics x 2.1", "resonance mass"),
    n_nuisances=(6, 1),
    unprofiled=np.array([3.9, 1.9]),
    frozen=np.array([3.1, 1.7]),
    constrained=np.array([2.9, 0.04]),
    unprofiled_total=4.3,
    frozen_total=3.6,
    constrained_total=3.4,
    statistical=1.7,
    total_error=4.0,
    data_error=2.1,
    scale_sensitivity=np.zeros((2, 3)),
    resolution_sensitivity=np.zeros((2, 3)),
    nuisance_unprofiled=np.zeros(7),
    nuisance_constrained=np.zeros(7),
)


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


def test_one_and_two_masses(tmp_path: Path) -> None:
    plot_mass_impacts(IMPACTS, tmp_path / "one.png")
    plot_mass_impacts([IMPACTS, replace(IMPACTS, boson="Z")], tmp_path / "two.png", pdf=True)
    one, two = png_size(tmp_path / "one.png"), png_size(tmp_path / "two.png")
    assert one[0] == two[0]
    assert two[1] > 1.5 * one[1]
    assert (tmp_path / "two.pdf").read_bytes().startswith(b"%PDF")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need one or several of the same sources"):
        plot_mass_impacts([], tmp_path / "a.png")
    other = replace(IMPACTS, sources=("a", "b"))
    with pytest.raises(InputError, match="of the same sources"):
        plot_mass_impacts([IMPACTS, other], tmp_path / "a.png")
    with pytest.raises(InputError, match="m_W has an impact that is not finite"):
        plot_mass_impacts(replace(IMPACTS, frozen=np.array([np.nan, 1.0])), tmp_path / "a.png")
    with pytest.raises(InputError, match=r"give a name that ends in \.png"):
        plot_mass_impacts(IMPACTS, tmp_path / "a.pdf")
    assert not list(tmp_path.iterdir())
