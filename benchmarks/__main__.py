"""How fast we are beside others, on one thread: every work with every peer, results compared before speed is quoted.

    python -m benchmarks --peers --out docs/figures
    python -m benchmarks --json > rows.json
    python -m benchmarks --peers --works "fit,fit template" --scale 0.1
    python -m benchmarks --from rows.json --out docs/figures

Works: fit, fit template, fill, chi2, read, apply, modules (each a file of `benchmarks.peers`, which says what is
compared and what is not alike). Without --peers only peers that the package depends on anyhow; with it also ROOT
(``pip install root``), zfit, TensorFlow, a loop compiled with g++, and numba_stats within iminuit's row (``pip
install numba-stats``). A peer that is not installed is a line on stderr.

Rates are those of the best of many rounds in which ours and theirs take turns. "of triad" is what must be moved over
what the memory moves in a triad in the same rounds; none where arithmetic is the limit. A row whose results do not
agree has no ratio, and the exit code is 1. --out writes speed.png, speed.md and speed.json; --from takes rows that
were measured before, of several files if runs were apart.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["MUSCLECAL_THREADS"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # all of them before numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.peers.all_works import WORKS
from benchmarks.peers.rows import Effort, processor, tell

Shown = Mapping[str, Any]
"""A row as in JSON."""

_PACKAGES = (
    "numpy", "scipy", "numba", "iminuit", "numba-stats", "boost-histogram", "correctionlib", "uproot", "awkward",
    "root", "zfit", "tensorflow",
)  # fmt: skip


def rows(works: Iterable[str], effort: Effort, others: bool) -> Iterator[dict[str, object]]:
    """Every row of these works, as in JSON."""
    for name in works:
        for row in WORKS[name](effort, others):
            yield row.as_json()


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def number(value: float | None, digits: int = 3) -> str:
    """As people write it."""
    if value is None:
        return "-"
    return f"{float(f'{value:.{digits}g}'):g}"


def _cells(row: Shown) -> tuple[str, ...]:
    agreement = "; ".join(
        f"{what} {number(value, 2)}" for what, value in row["agreement"].items() if what in row["limits"]
    )
    ratio = "does not agree" if row["ratio"] is None else number(row["ratio"])
    return (
        row["work"], row["peer"], number(row["ours"]), number(row["theirs"]), f"{row['unit']}/s", ratio,
        number(row["aim"]), number(row["of_triad"], 2), agreement,
    )  # fmt: skip


_HEAD = ("work", "peer", "ours", "theirs", "unit", "ratio", "aim", "of triad", "agreement")


def table(shown: Sequence[Shown]) -> str:
    """For a terminal."""
    cells = [_HEAD, *(_cells(row) for row in shown)]
    widths = [max(len(line[c]) for line in cells) for c in range(len(_HEAD))]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def markdown(shown: Sequence[Shown], on: Mapping[str, Any]) -> str:
    """For the documents."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in shown]
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    loads = [row["load"] for row in shown]
    load = f"load {min(loads):.1f} to {max(loads):.1f}" if loads else "no row"
    about = f"{on['processor']}, {on['processors']} processors, one thread, {load}; python {on['python']}, {versions}."
    return "\n".join([*lines, "", about]) + "\n"


def draw(shown: Sequence[Shown], path: Path) -> None:
    """Ratios as bars on a logarithmic axis, aims as marks."""
    from musclecal.validation.plot_style import FIT, PAST, TRUTH, figure_file

    drawn = [row for row in reversed(shown) if row["ratio"] is not None and row["work"] != "modules"]
    if not drawn:
        return
    with figure_file(path, 8.5, 1.4 + 0.36 * len(drawn), pdf=False) as figure:
        axis = figure.subplots()
        ratios = [row["ratio"] for row in drawn]
        axis.barh(range(len(drawn)), ratios, color=FIT, height=0.62)
        for y, row in enumerate(drawn):
            near = row["aim"] is not None and 1.0 < row["aim"] / row["ratio"] < 2.5
            beside = row["aim"] if near else row["ratio"]  # the text must not hide the mark
            if row["aim"] is not None:
                axis.plot([row["aim"]] * 2, [y - 0.42, y + 0.42], color=TRUTH, linewidth=2.4, label="_")
            axis.annotate(
                number(row["ratio"], 2), (beside, y), (5, 0), textcoords="offset points", va="center",
                fontsize=11.0, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
        axis.plot([], [], color=TRUTH, linewidth=2.4, label="aim")
        axis.axvline(1.0, color=PAST, linewidth=1.0, zorder=0)
        axis.set_xscale("log")
        aims = [row["aim"] for row in drawn if row["aim"] is not None]
        axis.set_xlim(0.5 * min(*ratios, *aims, 0.5), 4.0 * max(*ratios, *aims, 2.0))
        axis.set_ylim(-0.7, len(drawn) - 0.3)
        axis.set_yticks(range(len(drawn)), [f"{row['work']}: {row['peer']}" for row in drawn])
        axis.tick_params(axis="y", which="minor", left=False, right=False)
        axis.tick_params(axis="y", which="major", length=0)
        axis.set_xlabel("our rate / their rate, one thread")
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)


def write(shown: Sequence[Shown], on: Mapping[str, Any], folder: Path) -> None:
    """speed.md, speed.json, speed.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.md").write_text(markdown(shown, on), encoding="utf-8")
    (folder / "speed.json").write_text(
        json.dumps({"machine": on, "rows": list(shown)}, indent=1), encoding="utf-8"
    )
    draw(shown, folder / "speed.png")


def read_rows(paths: Iterable[Path]) -> list[Shown]:
    """Rows of earlier runs, a line each."""
    return [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line
    ]


def works_of(text: str) -> tuple[str, ...]:
    """Names of works; SystemExit names one that there is not."""
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        raise SystemExit(f"--works: unknown {unknown[0]!r}; known are {', '.join(WORKS)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """A table, or a line of JSON for each row; 1 where results do not agree."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", action="store_true", help="also beside what the package does not depend on"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--works", default=",".join(WORKS), help="some of the works, with commas")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes of all works")
    parser.add_argument("--rounds", type=int, default=25, help="at most, for a row")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing, for a row")
    parser.add_argument("--out", type=Path, help="folder for a figure and a table")
    parser.add_argument("--from", dest="earlier", type=Path, nargs="+", help="rows that were measured before")
    options = parser.parse_args(arguments)
    effort = Effort(options.scale, options.rounds, options.seconds)
    shown: list[Shown] = []
    measured = rows(works_of(options.works), effort, options.peers)
    for row in read_rows(options.earlier) if options.earlier else measured:
        shown.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    if not options.json:
        print(table(shown))
    if options.out:
        write(shown, machine(), options.out)
    wrong = [row for row in shown if row["ratio"] is None]
    for row in wrong:
        tell(f"{row['work']}: the results of {row['peer']} and ours do not agree: {row['agreement']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
