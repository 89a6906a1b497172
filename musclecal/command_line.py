"""What all commands share: one line for a "no", progress on stderr, JSON on stdout."""

import errno
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from musclecal.errors import InputError, QualityGateError

if TYPE_CHECKING:
    from musclecal.tasks import Task

__all__ = ["Progress", "distributed_options", "echo_json", "explained", "json_option"]

_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Of other operating system errors: a full disk, a read-only one."""


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the two kinds of "no" into one line on stderr and their exit code."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            with _ended_as_by_hand():
                command(*arguments, **options)
        except (InputError, QualityGateError) as error:
            click.echo(f"musclecal: {error}", err=True)
            sys.exit(error.exit_code)
        except OSError as no:
            if not isinstance(no, _WRONG_PATH) and no.errno not in _NO_PLACE:
                raise
            # Some libraries name the file in the text alone.
            place = "" if no.filename is None else f"{no.filename}: "
            click.echo(f"musclecal: {place}{no.strerror or no}", err=True)
            sys.exit(InputError.exit_code)

    return run


@contextmanager
def _ended_as_by_hand() -> Iterator[None]:
    """The signal by which batch systems end a job is an exit, so that no half-written file is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Result as one JSON object, the last line of stdout."
)


def distributed_options(command: Callable[..., None]) -> Callable[..., None]:
    """--scheduler and what goes with it; the command takes ``cluster``, a context of `Cluster` or None."""

    @click.option(
        "--scheduler",
        metavar="WHERE",
        help="Work on parts of the files with Dask: local[:N] processes, tcp://HOST:PORT, or a scheduler's JSON file.",
    )
    @click.option(
        "--retries",
        type=click.IntRange(min=0),
        default=2,
        show_default=True,
        help="Of a part that fails, with --scheduler.",
    )
    @click.option(
        "--strict",
        is_flag=True,
        help="With --scheduler: a part that fails ends all. [default: it is left out, and told: exit code 3]",
    )
    @click.option(
        "--rows",
        type=click.IntRange(min=1),
        default=5_000_000,
        show_default=True,
        help="Of a file in a part, with --scheduler.",
    )
    @wraps(command)
    def run(
        *arguments: Any, scheduler: str | None, retries: int, strict: bool, rows: int, **options: Any
    ) -> None:
        if scheduler is None:
            command(*arguments, cluster=None, **options)
            return
        from musclecal.cluster import Cluster

        with Cluster(scheduler, retries=retries, strict=strict, rows=rows) as cluster:
            if cluster.n_processes == 0:
                click.echo(
                    f"--scheduler {scheduler}: no process has joined it yet, waiting for the first", err=True
                )
            command(*arguments, cluster=cluster, **options)

    return run


class Progress:
    """Says on stderr what is under way; a bar on a terminal, a line per task elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._name = ""

    def announce(self, task: "Task", done_already: bool) -> None:
        """A task begins, or is up to date."""
        self.begin(task.name, "up to date" if done_already else "...")

    def begin(self, name: str, state: str = "...") -> None:
        """Something that has a name begins."""
        self._clear()
        self._name = name
        click.echo(f"  {name:<28} {state}", err=True)

    def __call__(self, done: int, total: int | None) -> None:
        """So many rows of a task are done."""
        if self._terminal:
            share = f"{100.0 * done / total:3.0f} % of {total:,}" if total else f"{done:,}"
            click.echo(f"\r  {self._name:<28} {share} events", err=True, nl=False)

    def end(self) -> None:
        """All is done: the bar goes."""
        self._clear()

    def _clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[2K", err=True, nl=False)


def echo_json(table: dict[str, object]) -> None:
    click.echo(json.dumps(table, allow_nan=False))
