"""Commands for exported tables; they need no campaign file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from musclecal.command_line import Progress, distributed_options, echo_json, explained, json_option
from musclecal.errors import InputError, QualityGateError

if TYPE_CHECKING:
    from musclecal.cluster import Cluster

__all__ = ["TABLE_COMMANDS"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@explained
def validate(folder: Path, as_json: bool) -> None:
    """Check an export folder: schema, covariance, the same content in all files, reference muons."""
    from musclecal.export.validate import validate_folder

    lines = validate_folder(folder)
    if as_json:
        echo_json({"checks": list(lines)})
    else:
        click.echo("\n".join(lines))


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--correction",
    "tables",
    type=click.Path(path_type=Path),
    required=True,
    help="Export folder, or a file in it.",
)
@click.option("--period", help="Which one of a folder of several periods.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="NAME.root or .parquet: one friend of all files in a chain; a folder: one friend a file, of the same name.",
)
@click.option(
    "--variation", "variations", multiple=True, help="Also pT with this one up and down; again for more."
)
@click.option("--all-variations", is_flag=True, help="Also pT with each variation up and down.")
@click.option("--smear", is_flag=True, help="For simulation: also the smeared pT.")
@click.option(
    "--salt", type=int, default=0, show_default=True, help="Another salt, independent draws of --smear."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="KEY=NAME",
    help="For flat files with other names, as pt1=mu_pt; again for all. Keys as in a campaign file.",
)
@click.option(
    "--chunk-events",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="Events in memory, at most.",
)
@json_option
@explained
@distributed_options
def apply(
    files: tuple[str, ...],
    tables: Path,
    period: str | None,
    out: Path,
    variations: tuple[str, ...],
    all_variations: bool,
    smear: bool,
    salt: int,
    columns: tuple[str, ...],
    chunk_events: int,
    as_json: bool,
    cluster: "Cluster | None",
) -> None:
    """Write friends with corrected muons: of NanoAOD-like FILES, or of flat ones with a pair a row.

    Muon_pt_corr (GeV), Muon_ptErr_corr, Muon_scale_reason (0: corrected), by option Muon_pt_corr_NAME_up, _down and
    Muon_pt_smeared, with nMuon, run, luminosityBlock, event, for every event in the same order. Computed in float64,
    stored as float32 where Muon_pt is float32, as float64 where it is that.

    Flat files (ROOT, Parquet, CSV): pt1_corr, pt2_corr, ... or pt_plus_corr, pt_minus_corr, ..., as the file calls
    them, and mass_corr (GeV). Friends of Parquet and CSV are Parquet.
    """
    import musclecal
    from musclecal.friends import FriendMaking, friends_table, friends_text

    progress = Progress()
    correction = musclecal.load(tables, period)
    making = FriendMaking(
        correction, out, _column_map(columns), correction.variation_names if all_variations else variations, smear,
        salt, chunk_events,
    )  # fmt: skip
    friends, failed = making.friends(files, cluster, progress, progress.begin)
    progress.end()
    if as_json:
        echo_json(friends_table(friends))
    else:
        click.echo(friends_text(friends))
    for line in failed:
        click.echo(f"  missing: {line}", err=True)
    if failed:
        raise QualityGateError(f"{len(failed)} files have no friend: mend them and run again")


def _column_map(columns: tuple[str, ...]) -> dict[str, str] | None:
    pairs = [column.partition("=") for column in columns]
    for key, mark, _ in pairs:
        if not mark:
            raise InputError(f"--column {key}: KEY=NAME wanted, as pt1=mu_pt")
    return {key: name for key, _, name in pairs} or None


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--correlation",
    type=click.Choice(["independent", "shared"]),
    default="independent",
    show_default=True,
    help="shared: one sample contains the other, so that most of their statistics is the same.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also draw A, e, M of both, with pulls (PNG).")
@json_option
@explained
def diff(first: Path, second: Path, correlation: str, out: Path | None, as_json: bool) -> None:
    """Compare two exports, SECOND minus FIRST: folders or files.

    A, e (GeV), M (1/GeV) and dk/k at 6, 20, 45 GeV per eta bin, with their errors; chi2 with full covariance; and
    variations, s, ranges and smearing that differ. Never a failure: what is a large difference is yours to say.
    """
    from musclecal.export import read_tables
    from musclecal.validation.calibration_diff import CORRELATIONS, compare_calibrations
    from musclecal.validation.diff_plots import plot_calibration_diff
    from musclecal.validation.diff_table import diff_table, diff_text

    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    (wanted,) = (c for c in CORRELATIONS if c == correlation)
    result = compare_calibrations(read_tables(first), read_tables(second), wanted, names)
    if out is not None:
        plot_calibration_diff(result, out)
    if as_json:
        echo_json(diff_table(result) | ({} if out is None else {"figure": str(out)}))
    else:
        click.echo(diff_text(result))
        if out is not None:
            click.echo(str(out))


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option(
    "--share",
    multiple=True,
    help="Variations with this name or beginning are the same in all periods; again for more. [default: mass_]",
)
@json_option
@explained
def merge(folders: tuple[Path, ...], out: Path, share: tuple[str, ...], as_json: bool) -> None:
    """Merge exports of several periods into one folder.

    Its muon_scale.json.gz has the input `period`. Variations that are not shared get the name of their period as a
    suffix, so that an analysis takes them as independent. The folder is checked as by `musclecal validate`.
    """
    from musclecal.export.merge import merge_folders
    from musclecal.export.validate import validate_folder

    done = merge_folders(folders, out, share or None)
    validate_folder(out)
    for note in done.notes:
        click.echo(f"musclecal: {note}", err=True)
    files = [str(file) for file in done.files]
    if as_json:
        own = {period: list(names) for period, names in done.own.items()}
        echo_json({"files": files, "shared": list(done.shared), "own": own, "notes": list(done.notes)})
    else:
        click.echo(f"periods: {', '.join(done.periods)}")
        click.echo(f"shared: {', '.join(done.shared) or 'no variation'}")
        click.echo("\n".join(files))


TABLE_COMMANDS = (validate, apply, diff, merge)
"""Added to `musclecal` by `musclecal.cli`."""
