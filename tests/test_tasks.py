"""Tasks: done once, done again when anything they depend on changed, never half done."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from musclecal import tasks
from musclecal.compiled import source_digest
from musclecal.errors import InputError
from musclecal.tasks import Outcome, Task, fingerprint, run_tasks, write_text


@dataclass
class Chain:
    """source.txt -> first -> second -> third: each task copies what is before it and adds its option."""

    folder: Path
    option: str = "one"
    ran: list[str] = field(default_factory=list)
    fails: str = ""

    def __post_init__(self) -> None:
        (self.folder / "source.txt").write_text("source")

    def output(self, name: str) -> Path:
        return self.folder / "out" / name / f"{name}.txt"

    def _work(self, name: str, before: Path, option: str) -> Callable[[], None]:
        def run() -> None:
            self.ran.append(name)
            if name == self.fails:
                raise InputError(f"{name} fails")
            write_text(self.output(name), f"{before.read_text()} {name}({option})")

        return run

    def task(self, name: str = "third") -> Task:
        source = self.folder / "source.txt"
        first = Task("first", "a", self.output("first"), self._work("first", source, ""), {}, (str(source),))
        second = Task(
            "second",
            "b",
            self.output("second"),
            self._work("second", first.output, self.option),
            {"option": self.option, "edges": (1.0, 0.1)},
            after=(first,),
        )
        third = Task(
            "third", "c", self.output("third"), self._work("third", second.output, ""), after=(first, second)
        )
        return {"first": first, "second": second, "third": third}[name]

    def run(self, force: Callable[[Task], bool] = lambda _: False) -> Outcome:
        self.ran.clear()
        return run_tasks([self.task()], force=force)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    chain = Chain(tmp_path)
    chain.run()
    return chain


def test_each_task_runs_once_after_what_it_needs(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    assert chain.run() == Outcome(("first", "second", "third"), ())
    assert chain.ran == ["first", "second", "third"]
    assert chain.output("third").read_text() == "source first() second(one) third()"


def test_what_is_up_to_date_is_skipped(chain: Chain) -> None:
    before = {path: path.stat().st_mtime_ns for path in chain.folder.rglob("*")}
    assert chain.run() == Outcome((), ("first", "second", "third"))
    assert not chain.ran
    assert before == {path: path.stat().st_mtime_ns for path in chain.folder.rglob("*")}


def test_two_wanted_tasks_share_what_they_need(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    run_tasks([chain.task("second"), chain.task("third")])
    assert chain.ran == ["first", "second", "third"]


def test_a_changed_option_redoes_the_task_and_those_after_it(chain: Chain) -> None:
    chain.option = "two"
    assert chain.run() == Outcome(("second", "third"), ("first",))
    assert chain.output("third").read_text() == "source first() second(two) third()"


def test_a_changed_input_file_redoes_all(chain: Chain) -> None:
    (chain.folder / "source.txt").write_text("other")
    assert chain.run().done == ("first", "second", "third")


def test_an_input_file_that_was_only_touched_changes_nothing(chain: Chain) -> None:
    os.utime(chain.folder / "source.txt", (1, 1))
    assert not chain.run().done


def test_the_same_output_from_a_redone_task_ends_the_chain(chain: Chain) -> None:
    """What comes after looks at the content of the output, not at its age."""
    assert chain.run(force=lambda task: task.name == "first") == Outcome(("first",), ("second", "third"))


def test_a_changed_output_is_made_again(chain: Chain) -> None:
    chain.output("first").write_text("edited by hand")
    assert chain.run().done == ("first",)
    assert chain.output("third").read_text() == "source first() second(one) third()"


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_a_deleted_output_is_made_again(chain: Chain, name: str) -> None:
    chain.output(name).unlink()
    assert chain.run().done == (name,)
    assert chain.output(name).exists()


def test_a_truncated_output_is_made_again(chain: Chain) -> None:
    whole = chain.output("second").read_bytes()
    chain.output("second").write_bytes(whole[:5])
    assert chain.run().done == ("second",)
    assert chain.output("second").read_bytes() == whole


@pytest.mark.parametrize("damage", [None, "", "{", "[]", '"text"', "{}", "\0\0"])
def test_without_a_good_manifest_an_output_does_not_count(chain: Chain, damage: str | None) -> None:
    manifest = chain.task("second").manifest_path
    if damage is None:
        manifest.unlink()
    else:
        manifest.write_text(damage)
    assert chain.run() == Outcome(("second",), ("first", "third"))
    assert not chain.run().done


def test_another_version_of_the_package_redoes_all(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "package_version", lambda: "99")
    assert chain.run().done == ("first", "second", "third")


def test_force_redoes_what_it_says(chain: Chain) -> None:
    assert chain.run(force=lambda task: task.stage == "b") == Outcome(("second",), ("first", "third"))


def test_a_missing_further_file_redoes_the_task(tmp_path: Path) -> None:
    beside = tmp_path / "out" / "beside.txt"

    def run() -> None:
        write_text(beside, "b")
        write_text(tmp_path / "out" / "a.txt", "a")

    task = Task("a", "a", tmp_path / "out" / "a.txt", run, also=(beside,))
    assert run_tasks([task]).done == ("a",)
    assert not run_tasks([task]).done
    beside.unlink()
    assert run_tasks([task]).done == ("a",)
    assert beside.exists()


def test_killed_between_output_and_manifest_is_redone(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old manifest is gone before the new output is there, the new one comes last."""

    def killed(path: Path, text: str) -> None:
        if path.name.endswith(".manifest.json"):
            raise KeyboardInterrupt
        write_text(path, text)

    chain.option = "two"
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            chain.run()
    assert "two" in chain.output("second").read_text()
    assert not chain.task("second").manifest_path.exists()
    assert chain.run() == Outcome(("second", "third"), ("first",))


def test_a_failing_task_leaves_nothing_and_those_before_it_stay_done(tmp_path: Path) -> None:
    chain = Chain(tmp_path, fails="second")
    with pytest.raises(InputError, match="second fails"):
        chain.run()
    assert chain.output("first").exists()
    assert not list(chain.output("second").parent.iterdir())
    assert not chain.output("third").parent.exists()
    chain.fails = ""
    assert chain.run() == Outcome(("second", "third"), ("first",))


def test_an_output_with_missing_parts_does_not_count_as_done(tmp_path: Path) -> None:
    """It is there, and used by tasks after it; the next run makes it again."""
    missing = ["one.root: cannot be read"]

    def work(name: str) -> list[str]:
        write_text(tmp_path / name, f"{name} without {len(missing)}")
        return missing if name == "sum" else []

    first = Task("sum", "a", tmp_path / "sum", lambda: work("sum"))
    second = Task("fit", "a", tmp_path / "fit", lambda: work("fit"), after=(first,))
    outcome = run_tasks([second])
    assert outcome == Outcome(("sum", "fit"), (), {"sum": ("one.root: cannot be read",)})
    assert not first.manifest_path.exists()
    missing.clear()
    assert run_tasks([second]) == Outcome(("sum", "fit"), ())
    assert run_tasks([second]) == Outcome((), ("sum", "fit"))


def test_a_task_that_fails_the_second_time_no_longer_counts_as_done(chain: Chain) -> None:
    chain.fails = "second"
    with pytest.raises(InputError):
        chain.run(force=lambda task: task.name == "second")
    chain.fails = ""
    assert chain.run().done == ("second",)


def test_every_task_is_announced_before_it_runs(chain: Chain) -> None:
    heard: list[tuple[str, bool, int]] = []
    chain.option = "two"
    chain.ran.clear()
    run_tasks([chain.task()], announce=lambda task, done: heard.append((task.name, done, len(chain.ran))))
    assert heard == [("first", True, 0), ("second", False, 0), ("third", False, 1)]


def test_the_manifest_says_what_the_output_depends_on(chain: Chain) -> None:
    manifest = json.loads(chain.task("second").manifest_path.read_text())
    assert manifest == {
        "task": "second",
        "version": f"{tasks.package_version()} {source_digest()}",
        "options": {"option": "one", "edges": [1.0, 0.1]},
        "inputs": {"first": fingerprint(chain.output("first"))},
        "output": fingerprint(chain.output("second")),
    }


def test_a_folder_may_be_moved(chain: Chain) -> None:
    moved = Chain(chain.folder.rename(chain.folder.parent / "moved"))
    assert not moved.run().done


def test_a_missing_input_is_refused_by_name(chain: Chain) -> None:
    (chain.folder / "source.txt").unlink()
    with pytest.raises(InputError, match=r"source\.txt: cannot be read: No such file"):
        chain.run()


def test_an_output_folder_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match=r"out.*: cannot be written to: "):
        chain.run()


def test_large_and_remote_files_are_known_without_being_read(tmp_path: Path) -> None:
    large = tmp_path / "large.root"
    with large.open("wb") as file:
        file.truncate((1 << 26) + 1)
    assert fingerprint(large) == f"file:large.root:{(1 << 26) + 1}:{large.stat().st_mtime_ns}"
    assert fingerprint("root://server//a.root") == "remote:root://server//a.root"
    small = tmp_path / "small.root"
    small.write_bytes(b"a")
    assert fingerprint(small).startswith("sha256:")
