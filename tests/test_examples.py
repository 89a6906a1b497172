"""The campaign files of examples/ and the commands of the README say what the program understands."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from musclecal.campaign import Campaign
from musclecal.cli import main
from musclecal.config import load_campaign
from musclecal.samples import read_scale

ROOT = Path(__file__).parents[1]
CAMPAIGNS = sorted((ROOT / "examples").glob("*/campaign.toml"))


@pytest.mark.parametrize("path", CAMPAIGNS, ids=lambda path: path.parent.name)
def test_example_is_a_valid_campaign(path: Path) -> None:
    config = load_campaign(path)
    for sample in config.samples.values():
        if sample.simulate is not None and sample.simulate.truth is not None:
            assert read_scale(path.parent / sample.simulate.truth).n_eta == config.binning.eta_bins


def test_there_are_examples() -> None:
    assert {path.parent.name for path in CAMPAIGNS} >= {"closure_only", "cms2011A", "large"}


def test_campaign_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    path = tmp_path / "campaign.toml"
    path.write_text(block)
    assert set(load_campaign(path).samples) == {"jpsi_data", "jpsi_mc"}


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"^\| `musclecal (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert named == set(main.commands)


@pytest.mark.slow
@pytest.mark.real_data
def test_real_upsilon_closes_after_calibration_on_the_jpsi(shared_data: Path, tmp_path: Path) -> None:
    """CMS 2011A: the Upsilon(1S) scale is within two standard deviations of zero, and nearer than before."""
    text = (ROOT / "examples" / "cms2011A" / "campaign.toml").read_text()
    path = tmp_path / "campaign.toml"
    path.write_text(text.replace("../../../shared/data", shared_data.as_posix()))
    result = CliRunner().invoke(main, ["closure", "--resonance", "Y1S", "--json", "--campaign", str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["resonance"] == "Y1S"
    campaign = Campaign(path)
    after, error = campaign.inclusive_scale("Y1S", campaign.last_pass + 1)
    jpsi, _ = campaign.inclusive_scale("Jpsi", 0)
    assert jpsi - 1.0 == pytest.approx(-0.9e-3, abs=0.4e-3)
    assert abs(after - 1.0) < 2.0 * error
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    if not (ROOT / "docs").is_dir():
        pytest.skip("the documentation is not beside these tests")
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link
