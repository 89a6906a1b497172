"""The command that combines measurements; it needs no campaign file."""

from pathlib import Path

import click

from musclecal.command_line import echo_json, explained, json_option
from musclecal.errors import InputError

__all__ = ["combine"]


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "of",
    type=click.Choice(["musclecal", "convino"]),
    default="musclecal",
    show_default=True,
    help="musclecal: TOML, or JSON if the name ends so; convino: its main text file.",
)
@click.option(
    "--form",
    type=click.Choice(["neyman", "pearson"]),
    help="Of the likelihood, with --format convino. [default: pearson, as the program]",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    help="Only this one; again for more. [default: all]",
)
@click.option(
    "--points",
    type=click.IntRange(min=2),
    default=20,
    show_default=True,
    help="Along each scan of a correlation.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for combination.json, .npz and .tex, and figures."
)
@json_option
@explained
def combine(
    path: Path,
    of: str,
    form: str | None,
    scenarios: tuple[str, ...],
    points: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Combine correlated measurements: values, weights, impacts, scans of correlations, scenarios.

    In the unit of FILE. Closed form (BLUE), or the likelihood where shifts are asymmetric. Split impacts are parts of
    the uncertainty and add up in quadrature; frozen ones are what it loses if the source is known.
    """
    from musclecal.combination_report import combination_table, combination_text, write_combination
    from musclecal.combination_run import run_convino, run_file

    if of == "convino":
        if scenarios:
            raise InputError("--scenario: files of Convino have none")
        run = run_convino(path, form or "pearson", points)
    else:
        if form is not None:
            raise InputError("--form: goes with --format convino; here it is the key form of the file")
        run = run_file(path, scenarios or None, points)
    files: tuple[Path, ...] = ()
    if out is not None:
        from musclecal.validation.combination_plots import write_combination_figures

        files = (*write_combination(run, out), *write_combination_figures(run, out))
    if as_json:
        echo_json(combination_table(run) | ({"files": [str(file) for file in files]} if files else {}))
    else:
        click.echo("\n".join([combination_text(run), *(str(file) for file in files)]))
