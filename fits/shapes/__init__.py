"""Signal shapes of the mass fits, one file each.

========================  =======================================  ==================================================
name in a campaign file   what it is                               when
========================  =======================================  ==================================================
``simulation-shape``      pooled shape of the simulation           default: needs simulation, no generator information
``generator-template``    generator-level masses, smeared          needs generator-level muons; what CMS m_W did
``pooled-template``       generator template, bins pooled          widths, and where few simulated events are in a bin
``gaussian``              Gaussian                                 quick looks
``crystal-ball``          Gaussian core, power-law tails           without simulation of the tails
``breit-wigner``          Breit-Wigner x Gaussian                  the Z without generator-level information
========================  =======================================  ==================================================
"""

from musclecal.fits.shapes.breit_wigner import breit_wigner
from musclecal.fits.shapes.crystal_ball import crystal_ball
from musclecal.fits.shapes.gaussian import gaussian
from musclecal.fits.shapes.generator_template import generator_template
from musclecal.fits.shapes.model import SignalModel
from musclecal.fits.shapes.pooled_template import pooled_template
from musclecal.fits.shapes.simulation_shape import simulation_shape

__all__ = [
    "MODEL_NAMES",
    "SignalModel",
    "breit_wigner",
    "crystal_ball",
    "gaussian",
    "generator_template",
    "pooled_template",
    "simulation_shape",
]

MODEL_NAMES = (
    "simulation-shape",
    "generator-template",
    "pooled-template",
    "gaussian",
    "crystal-ball",
    "breit-wigner",
)
