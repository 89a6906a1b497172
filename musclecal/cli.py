"""The command line. Results go to stdout, progress and messages to stderr; see the README for the commands.

Exit codes: 0 done, 1 unexpected, 2 usage or bad input, 3 a quality gate failed or parts are missing.
"""

import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from musclecal.cli_combination import combine
from musclecal.cli_tables import TABLE_COMMANDS
from musclecal.command_line import Progress, distributed_options, echo_json, explained, json_option
from musclecal.errors import InputError, QualityGateError

if TYPE_CHECKING:
    from musclecal.campaign import Campaign
    from musclecal.cluster import Cluster
    from musclecal.tasks import Outcome, Task

__all__ = ["main"]

# The kernels use all processors; the matrices are small, and a second set of threads for them would only be in the way
# (a factor of ten on a busy machine). Takes effect because numpy is not imported yet.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_campaign_option = click.option(
    "--campaign", "path", type=click.Path(path_type=Path), default=Path("campaign.toml"), show_default=True,
    help="Campaign file (TOML).",
)  # fmt: skip
_target_option = click.option(
    "--target",
    type=click.Choice(["data", "simulation"]),
    help="simulation: correct it to its own generator-level momenta. [default: campaign.target]",
)
_force_option = click.option(
    "--force", is_flag=True, help="Redo this stage (run: all stages) even if nothing changed."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="musclecal")
def main() -> None:
    """Calibrate the muon momentum scale: A (field), e (energy loss, GeV), M (alignment, 1/GeV) per eta bin.

    \b
    k_corr = (1 + A - e k) k + q M,  k = 1/pT in 1/GeV, q the charge.

    Momenta and masses are in GeV. Stages run what is out of date before them.
    """


def _open(
    path: Path, target: str | None = None, cluster: "Cluster | None" = None
) -> tuple["Campaign", Progress]:
    from musclecal.campaign import Campaign

    progress = Progress()
    campaign = Campaign(path, progress, target, cluster)
    _ = campaign.config
    return campaign, progress


def _run(progress: Progress, tasks: Iterable["Task"], force: bool, *, everything: bool = False) -> "Outcome":
    from musclecal.tasks import run_tasks

    wanted = tuple(tasks)
    again = {task.name for task in wanted}
    redo = (lambda _: everything) if everything else (lambda task: force and task.name in again)
    outcome = run_tasks(wanted, force=redo, announce=progress.announce)
    click.echo(f"  {len(outcome.done)} done, {len(outcome.skipped)} up to date", err=True)
    for name, lines in outcome.failed.items():
        for line in lines:
            click.echo(f"  {name}: missing: {line}", err=True)
    return outcome


def _check_complete(outcome: "Outcome") -> None:
    """Raise `QualityGateError` where parts of the input are missing: what was made of the others stands."""
    if outcome.failed:
        missing = sum(map(len, outcome.failed.values()))
        raise QualityGateError(
            f"{missing} parts of the input are missing in {', '.join(outcome.failed)}: mend them and run again"
        )


def _here_alone(command: Callable[..., None]) -> Callable[..., None]:
    """A command without options for other processes."""

    @wraps(command)
    def run(*arguments: object, **options: object) -> None:
        command(*arguments, cluster=None, **options)

    return run


def _stage(name: str, description: str, show: Callable[["Campaign"], tuple[str, dict[str, object]]]) -> None:
    """Add the command of one stage: run it, then show its result."""

    distributed = distributed_options if name == "fill" else _here_alone

    @main.command(name, help=description)
    @_campaign_option
    @_target_option
    @json_option
    @_force_option
    @explained
    @distributed
    def command(
        path: Path, target: str | None, as_json: bool, force: bool, cluster: "Cluster | None"
    ) -> None:
        from musclecal.report import report_task

        campaign, progress = _open(path, target, cluster)
        tasks = (report_task(campaign),) if name == "report" else campaign.tasks(name)
        outcome = _run(progress, tasks, force)
        text, table = show(campaign)
        if as_json:
            echo_json(table)
        else:
            click.echo(text)
        if name == "report":
            campaign.check_gates(campaign.closures)
        elif name == "resolution":
            campaign.check_width_gates()
        elif name == "fit":
            campaign.check_fit_gates(campaign.mass_fits(campaign.calibrated, 0))
        _check_complete(outcome)


def _show_simulate(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    files = {task.name.split("/")[1]: str(task.output) for task in campaign.simulate_tasks}
    text = "\n".join(f"{name:<20} {file}" for name, file in files.items())
    return text or "no sample of the campaign file has a simulate table", {"files": files}


def _show_fill(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    from musclecal.report import cut_flow_text, fill_table

    return cut_flow_text(campaign, campaign.calibrated, 0), fill_table(campaign)


def _show_fit(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    from musclecal.report import fit_table, fit_text

    fits = campaign.mass_fits(campaign.calibrated, 0)
    return fit_text(fits), fit_table(fits)


def _show_resolution(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    from musclecal.uncertainty_report import resolution_table, resolution_text

    return resolution_text(campaign), resolution_table(campaign.resolution())


def _show_systematics(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    from musclecal.uncertainty_report import systematic_table, systematic_text

    return systematic_text(campaign), systematic_table(campaign.systematic(), campaign.nuisances())


def _show_propagate(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    from musclecal.uncertainty_report import impacts_json
    from musclecal.validation.propagation import impacts_table

    impacts = campaign.impacts()
    title = f"shifts of fitted masses in MeV; statistics of {impacts[0].luminosity:g}/fb"
    return f"{title}\n{impacts_table(*impacts)}", impacts_json(impacts)


def _show_joint(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    from musclecal.report import calibration_table
    from musclecal.validation.joint_table import joint_table, joint_text

    joint = campaign.joint()
    return joint_text(joint), joint_table(joint) | {"calibration": calibration_table(joint.calibration)}


def _show_report(campaign: "Campaign") -> tuple[str, dict[str, object]]:
    from musclecal.report import calibration_table, report_task

    return report_task(campaign).output.read_text(encoding="utf-8").rstrip(), {
        "report": str(report_task(campaign).output),
        "calibration": calibration_table(campaign.calibration()),
    }


for _name, _description, _show in (
    ("simulate", "Make the samples that have a [samples.NAME.simulate] table.", _show_simulate),
    ("fill", "Fill 4D x mass histograms of the calibration resonance.\n\nPrints the cut flow.", _show_fill),
    ("fit", "Fit the masses of all 4D bins, in data and simulation.", _show_fit),
    (
        "resolution",
        """Resolution per eta bin, and the smearing of the simulation.

        (sigma_k/k)^2 = a + c pT^2 of data and simulation, c in 1/GeV^2. Width ratios of data and simulation are shown
        as simulated and smeared. Exit code 3 if smeared widths do not close.
        """,
        _show_resolution,
    ),
    (
        "systematics",
        """Factor s from all closures, and all nuisances.

        s on the calibration's uncertainty makes the residuals of the closures as large as expected; quoted is
        max(1, s). The table [systematics] says which closures are used and which s is quoted.
        """,
        _show_systematics,
    ),
    (
        "propagate",
        """Uncertainties of the calibration on m_W and m_Z (MeV).

        unprofiled: the mass fit takes the calibration as it is. frozen: of a fit with nuisances, what fixing those of a
        source takes off in quadrature. constrained: what their prior uncertainty adds to the error of that fit.
        """,
        _show_propagate,
    ),
    (
        "joint",
        """Fit several resonances together; compare each with the rest.

        The table [joint] says which are used; all others are kept for closure. It is the calibration of the campaign
        (closures, export, ...) with engine = "joint" in the table [campaign].
        """,
        _show_joint,
    ),
    ("report", "Write the figures and the summary.", _show_report),
):
    _stage(_name, _description, _show)


@main.command()
@click.argument("path", metavar="[CAMPAIGN]", default="campaign.toml", type=click.Path(path_type=Path))
@click.option(
    "--only-sums",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Only the sums of this file of hits; again for more. So jobs share them; without it all are merged.",
)
@click.option(
    "--pass",
    "passes",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --only-sums: 0 with tracks as in a nominal detector; 1 as the first global fit says; ...",
)
@json_option
@_force_option
@explained
@distributed_options
def modules(
    path: Path, files: tuple[Path, ...], passes: int, as_json: bool, force: bool, cluster: "Cluster | None"
) -> None:
    """Corrections of modules (cm, relative field and material) from tracks with hits.

    One global fit, as the table [modules] says, with the mass of pairs (GeV) as constraint. Writes
    module_corrections.parquet, and the muons of samples with hits, corrected. CAMPAIGN is a TOML file (default
    campaign.toml).
    """
    from musclecal.module_report import modules_table, modules_text

    campaign, progress = _open(path, cluster=cluster)
    if files or passes:
        if not files:
            raise InputError("--pass: belongs to --only-sums FILE")
        if passes >= campaign.module_passes:
            raise InputError(f"--pass {passes}: {path} has passes 0 to {campaign.module_passes - 1}")
        sums = campaign.sums_tasks(passes, files)
        _run(progress, sums, force)
        made = [str(task.output) for task in sums]
        if as_json:
            echo_json({"sums": made})
        else:
            click.echo("\n".join(made))
        return
    outcome = _run(progress, campaign.tasks("modules"), force)
    if as_json:
        echo_json(modules_table(campaign))
    else:
        click.echo(modules_text(campaign))
    campaign.check_module_gates()
    _check_complete(outcome)


@main.command()
@click.option(
    "--format",
    "formats",
    multiple=True,
    help="npz, json, correctionlib, root, header or rochester; again for more. [default: from the campaign file]",
)
@_target_option
@_campaign_option
@json_option
@_force_option
@explained
def export(formats: tuple[str, ...], target: str | None, path: Path, as_json: bool, force: bool) -> None:
    """Write the correction as tables that need no musclecal, with reference muons and a manifest.

    The statistical uncertainty is scaled by the s of the closures. The folder is checked as by `musclecal validate`.
    """
    campaign, progress = _open(path, target)
    task = campaign.export_task(formats)
    _run(progress, (task,), force)
    files = sorted(str(file) for file in (task.output, *task.also))
    if as_json:
        echo_json({"files": files})
    else:
        click.echo("\n".join(files))
    campaign.check_gates(())


@main.command()
@click.option(
    "--engine",
    type=click.Choice(["mass-fits", "template", "joint"]),
    help="Mass fits, one template fit of all cells, or several resonances. [default: from the campaign file]",
)
@_target_option
@_campaign_option
@json_option
@_force_option
@explained
def extract(engine: str | None, target: str | None, path: Path, as_json: bool, force: bool) -> None:
    """Extract A, e (GeV), M (1/GeV) per eta bin, all passes.

    What other stages use is the calibration of the engine in the campaign file.
    """
    from musclecal.report import calibration_table, calibration_text

    campaign, progress = _open(path, target)
    engine = engine or campaign.config.campaign.engine
    _run(progress, [campaign.extraction_task(engine)], force)
    calibration = campaign.calibration(engine)
    if as_json:
        echo_json(calibration_table(calibration))
    else:
        click.echo(calibration_text(calibration, campaign.truth()))
    campaign.check_gates((), calibration)


@main.command()
@click.option(
    "--resonance",
    "name",
    help="Z, 'Z odd', Jpsi (one more pass), ... [default: all with data that are not calibrated on]",
)
@click.option(
    "--engine",
    type=click.Choice(["template", "scalar"]),
    help="One template fit of all cells, or mass fits of 4D bins. [default: from the campaign file]",
)
@click.option("--uncorrected", is_flag=True, help="Look at the data as they are, without any correction.")
@click.option(
    "--calibration",
    "given",
    type=click.Path(path_type=Path),
    help="Close this correction instead: an export folder, a correctionlib file, or JSON with eta_edges, A, e, M.",
)
@click.option(
    "--splits", is_flag=True, help="Also compare parts of the sample: phi, runs, charge order, pT asymmetry."
)
@_campaign_option
@_target_option
@json_option
@_force_option
@explained
def closure(
    name: str | None,
    engine: str | None,
    uncorrected: bool,
    given: Path | None,
    splits: bool,
    path: Path,
    target: str | None,
    as_json: bool,
    force: bool,
) -> None:
    """Residual A, M (1/GeV) per eta bin after the calibration.

    A and M are corrections still to be applied, with the error of this sample alone and with the calibration's
    included. s is the factor on the calibration's uncertainty that makes them as large as expected. A campaign with
    nothing but data and simulation of one resonance can be closed with --uncorrected or --calibration. Exit code 3
    if a gated closure fails; --uncorrected and --calibration are never gated.
    """
    from musclecal.campaign import UNCORRECTED
    from musclecal.fits.contribution import sample_and_part
    from musclecal.report import closure_table, closure_text, splits_table, splits_text
    from musclecal.resonances import resonance

    campaign, progress = _open(path, target)
    if name is not None:
        resonance(sample_and_part(name)[0])
    if uncorrected and given is not None:
        raise InputError("--uncorrected and --calibration exclude each other")
    names = campaign.closures if name is None else (name,)
    if not names:
        raise InputError(
            f"{path}: no data of another resonance than {campaign.calibrated}: nothing to close on"
            if not campaign.is_joint
            else f"{path}: joint.use leaves no data to close on"
        )
    if as_json and len(names) > 1:
        raise InputError("--json gives one closure: choose it with --resonance")
    applied = UNCORRECTED if uncorrected else None if given is None else campaign.given_correction(given)
    tasks = [campaign.closure_task(n, applied=applied, engine=engine) for n in names]
    if splits:
        tasks += [campaign.splits_task(n, applied=applied) for n in names]
    _run(progress, tasks, force)
    for n in names:
        result = campaign.closure(n, applied=applied, engine=engine)
        parts = campaign.splits(n, applied=applied) if splits else None
        if as_json:
            echo_json(closure_table(result) | ({} if parts is None else {"splits": splits_table(parts)}))
        else:
            click.echo(closure_text(result))
            if parts is not None:
                click.echo(splits_text(parts))
    if not uncorrected:
        campaign.check_closure_gates(names, engine, applied)


@main.command()
@click.option("--resonance", "name", default="Z", show_default=True, help="What it is derived from.")
@click.option(
    "--in",
    "where",
    type=click.Choice(["phi", "sectors", "runs"]),
    required=True,
    help="Waves in phi, phi sectors, or the run ranges of closure.run_edges.",
)
@click.option("--harmonics", help="Waves for --in phi, as 1,2. [default: closure.harmonics]")
@click.option("--uncorrected", is_flag=True, help="On top of the data as they are.")
@click.option(
    "--calibration", "given", type=click.Path(path_type=Path), help="On top of this correction instead."
)
@_campaign_option
@json_option
@_force_option
@explained
def refine(
    name: str,
    where: str,
    harmonics: str | None,
    uncorrected: bool,
    given: Path | None,
    path: Path,
    as_json: bool,
    force: bool,
) -> None:
    """Derive A and M (1/GeV) per eta bin in phi or in run ranges, on top of the calibration.

    The split tests are repeated after it. The resonance is no independent closure afterwards.
    """
    from musclecal.campaign import UNCORRECTED
    from musclecal.resonances import resonance
    from musclecal.validation.refinement_table import refinement_table, refinement_text

    campaign, progress = _open(path)
    resonance(name)
    if uncorrected and given is not None:
        raise InputError("--uncorrected and --calibration exclude each other")
    refining = campaign.refining(where, None if harmonics is None else _harmonics(harmonics))
    applied = (
        UNCORRECTED if uncorrected
        else campaign.calibrated_muons() if given is None
        else campaign.given_correction(given)
    )  # fmt: skip
    refined = campaign.refined_muons(name, refining, applied)
    task = campaign.refine_task(name, refining, applied)
    splits = [campaign.splits_task(name, applied=muons) for muons in (applied, refined)]
    _run(progress, [task], force)
    _run(progress, splits, False)
    result = campaign.refinement(name, refining, applied)
    before, after = (campaign.splits(name, applied=muons) for muons in (applied, refined))
    files = [str(task.output.with_suffix(suffix)) for suffix in (".json", ".npz")]
    if as_json:
        echo_json(refinement_table(result, before, after, refining.fitted_tests) | {"files": files})
    else:
        click.echo(refinement_text(result, before, after, refining.fitted_tests))
        click.echo("\n".join(files))


def _harmonics(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--harmonics: numbers as 1,2 wanted, got {text!r}") from None


@main.command()
@click.argument("campaign_file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--demo", is_flag=True, help="Write a campaign with simulated samples of known truth into DIR and run it."
)
@click.option(
    "--with-modules",
    is_flag=True,
    help="With --demo: another one, from hits in a displaced detector.",
)
@json_option
@_force_option
@explained
@distributed_options
def run(
    campaign_file: Path | None,
    demo: bool,
    with_modules: bool,
    as_json: bool,
    force: bool,
    cluster: "Cluster | None",
) -> None:
    """Run all that is out of date, up to the exported correction.

    From events to tables, closures and figures.

    CAMPAIGN_FILE is a TOML file (default campaign.toml); with --demo it is the folder to write to (default demo).
    """
    from musclecal.report import calibration_table, closure_table, report_task

    if demo:
        from musclecal.demo import write_demo

        default = Path("demo-modules" if with_modules else "demo")
        campaign_file = write_demo(campaign_file or default, with_modules=with_modules)
    elif with_modules:
        raise InputError("--with-modules: belongs to --demo; a campaign file has a table [modules] instead")
    campaign, progress = _open(campaign_file or Path("campaign.toml"), cluster=cluster)
    outcome = _run(progress, [report_task(campaign)], force, everything=force)
    if as_json:
        closures = {name: closure_table(campaign.closure(name)) for name in campaign.closures}
        echo_json({"calibration": calibration_table(campaign.calibration()), "closure": closures})
    else:
        click.echo(report_task(campaign).output.read_text(encoding="utf-8").rstrip())
    campaign.check_gates(campaign.closures)
    _check_complete(outcome)


@main.command()
@click.argument("path", default="campaign.toml", type=click.Path(path_type=Path))
@explained
def init(path: Path) -> None:
    """Write a commented campaign file to PATH, to be edited."""
    from musclecal.demo import write_template

    write_template(path)
    click.echo(f"{path} written: fill in the files of your samples, then: musclecal run {path}")


@main.command()
@click.option("--resonance", "name", help="Y1S, Z, ... [default: the one that is calibrated on]")
@click.option("--bin", "number", type=int, help="4D bin number [default: the sum over all bins]")
@click.option(
    "--pass",
    "passes",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="0: muons as measured; 1: corrected once; ...",
)
@click.option(
    "--simulation", is_flag=True, help="Draw the fit to the simulation instead of that to the data."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("mass_fit.png"), show_default=True)
@click.option("--list", "as_list", is_flag=True, help="List the fitted bins with their results instead.")
@_campaign_option
@explained
def draw(
    name: str | None, number: int | None, passes: int, simulation: bool, out: Path, as_list: bool, path: Path
) -> None:
    """Draw the mass fit (GeV) of a 4D bin, or of all together."""
    from musclecal.figures import draw_mass_fit
    from musclecal.report import bins_text

    campaign, progress = _open(path)
    name = name or campaign.calibrated
    campaign.config.resonance(name)
    if passes > campaign.last_pass + 1:
        raise InputError(f"--pass {passes}: {path} has passes 0 to {campaign.last_pass + 1}")
    _run(progress, [campaign.fit_task(name, passes)], False)
    if as_list:
        click.echo(bins_text(campaign.mass_fits(name, passes)))
        return
    draw_mass_fit(campaign, name, passes, number, out, simulation=simulation)
    click.echo(str(out))


for _command in (*TABLE_COMMANDS, combine):
    main.add_command(_command)

if __name__ == "__main__":
    main()
