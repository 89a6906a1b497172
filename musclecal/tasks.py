"""Tasks with one output file each: done when their options and inputs changed, skipped when they did not.

Every output has a manifest beside it (NAME.manifest.json): version, options, hashes of the inputs and of the output.
An output counts only with its manifest, which is written last; a run that was killed goes on where it was.

Not for: what the tasks do (`musclecal.campaign`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from musclecal.compiled import source_digest
from musclecal.errors import InputError
from musclecal.store import written_atomically

__all__ = ["Outcome", "Task", "fingerprint", "package_version", "run_tasks", "write_text"]


def package_version() -> str:
    """Version of the installed package, or "unknown" in a bare checkout."""
    try:
        return version("musclecal")
    except PackageNotFoundError:
        return "unknown"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fingerprint(path: Path | str) -> str:
    """What an input file is: its content's hash for small files, name, size and time for large or remote ones."""
    if "://" in str(path):
        return f"remote:{path}"
    path = Path(path)
    try:
        state = path.stat()
        if state.st_size > 1 << 26:
            return f"file:{path.name}:{state.st_size}:{state.st_mtime_ns}"
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Task:
    """One step of a campaign.

    Attributes
    ----------
    name : unique; stage : which command asks for it.
    output : the file that it writes. run : writes it, atomically; a line for each part of the input that is missing
        in it, if there are any.
    options : everything, JSON-able, that the output depends on beside the inputs.
    inputs : files that it reads and no task makes. after : tasks whose outputs it reads.
    also : further files that it writes; the task is redone where one is missing.
    """

    name: str
    stage: str
    output: Path
    run: Callable[[], Sequence[str] | None]
    options: Mapping[str, object] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    after: tuple["Task", ...] = ()
    also: tuple[Path, ...] = ()

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.output.with_name(self.output.name + ".manifest.json")

    def wanted_manifest(self) -> dict[str, object]:
        """The manifest but for the output's hash. All inputs must exist.

        Inputs are known by name and content, not by folder: a campaign may be moved.
        """
        needed = {f"{n} {Path(path).name}": fingerprint(path) for n, path in enumerate(self.inputs)}
        needed |= {task.name: fingerprint(task.output) for task in self.after}
        return {
            "task": self.name,
            "version": f"{package_version()} {source_digest()}",
            "options": json.loads(json.dumps(self.options)),
            "inputs": needed,
        }

    def is_done(self, wanted: Mapping[str, object]) -> bool:
        """Whether output and manifest stand as they should."""
        try:
            found = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if not isinstance(found, dict) or not all(path.exists() for path in (self.output, *self.also)):
            return False
        state = found.pop("output", None)
        return found == wanted and state == fingerprint(self.output)


@dataclass(frozen=True)
class Outcome:
    """Names of the tasks that were done and of those that were up to date.

    ``failed`` : by name, a line for each part of the input that is missing in the output.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _in_order(wanted: Iterable[Task]) -> list[Task]:
    """The tasks and all that they need, each after what it needs."""
    order: dict[str, Task] = {}

    def visit(task: Task) -> None:
        if task.name not in order:
            for before in task.after:
                visit(before)
            order[task.name] = task

    for task in wanted:
        visit(task)
    return list(order.values())


def _make_room(task: Task) -> None:
    """The folder of the output; what stands there no longer counts as done."""
    try:
        task.output.parent.mkdir(parents=True, exist_ok=True)
        task.manifest_path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written to: {error.strerror}") from None


def run_tasks(
    wanted: Iterable[Task],
    *,
    force: Callable[[Task], bool] = lambda _: False,
    announce: Callable[[Task, bool], None] = lambda *_: None,
) -> Outcome:
    """Bring the tasks and what they need up to date.

    An output in which parts of the input are missing is used by later tasks, but does not count as done.
    ``force(task)`` redoes a task regardless. ``announce(task, done_already)`` is called before each.
    """
    done: list[str] = []
    skipped: list[str] = []
    failed: dict[str, tuple[str, ...]] = {}
    for task in _in_order(wanted):
        manifest = task.wanted_manifest()
        up_to_date = not force(task) and task.is_done(manifest)
        announce(task, up_to_date)
        if up_to_date:
            skipped.append(task.name)
            continue
        _make_room(task)
        missing = tuple(task.run() or ())
        done.append(task.name)
        if missing:
            failed[task.name] = missing
            continue
        manifest["output"] = fingerprint(task.output)
        write_text(task.manifest_path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return Outcome(tuple(done), tuple(skipped), failed)
