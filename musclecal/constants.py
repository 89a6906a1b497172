"""Constants of nature, each with its unit and source. Masses of resonances are in `musclecal.resonances`."""

from typing import Final

__all__ = ["ALPHA_QED", "MUON_MASS"]

MUON_MASS: Final = 0.1056583755
"""GeV. PDG 2024, m_mu = 105.6583755 +- 0.0000023 MeV."""

ALPHA_QED: Final = 7.2973525693e-3
"""Fine-structure constant at zero momentum transfer. CODATA 2018."""
