"""What is shipped, what is imported where, and how fast the command line answers."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest

import musclecal.compiled

ROOT = Path(__file__).parents[1]
PACKAGE = Path(musclecal.compiled.__file__).parent
LINKED = ("geometry", "fits", "validation")

ALLOWED_IN = {
    "awkward": ("array_structure", "columnar", "event_writer", "events", "export/root", "friend_files"),
    "iminuit": ("fits/reference",),
    "matplotlib": (
        "validation/plot_style",
        "validation/plots",
        "validation/closure_plots",
        "validation/combination_plots",
        "validation/diff_plots",
        "validation/module_plots",
        "validation/propagation_plots",
        "validation/systematic_plots",
    ),
    "mplhep": ("validation/plot_style",),
    "pythia8mc": ("pythia",),
    "tensorflow": ("fits/reference", "fits/template_likelihood"),
    "uproot": ("columnar", "event_writer", "events", "export/root", "export/root_file", "friend_files"),
    "zfit": ("fits/reference", "fits/template_likelihood"),
}
"""Where in the package a heavy or optional library may be imported. Tests and benchmarks are free."""

SLOW_TO_IMPORT = ("dask", "iminuit", "matplotlib", "mplhep", "tensorflow", "uproot", "zfit")


def git_files(*folders: str) -> list[str]:
    """Tracked files that exist, relative to the checkout; skips where this is none."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    top = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if top.returncode != 0 or Path(top.stdout.strip()).resolve() != ROOT.resolve():
        pytest.skip(f"not a git checkout: {ROOT}")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file()]


def in_wheel(name: str) -> str:
    """Where a tracked file of a package is installed."""
    return f"musclecal/{name}" if PurePosixPath(name).parts[0] in LINKED else name


@pytest.fixture
def clean_copy(tmp_path: Path) -> Path:
    """The tracked files alone, links as links."""
    for name in git_files():
        target = tmp_path / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)
    return tmp_path / "checkout"


def build(kind: str, project: Path, folder: Path) -> Path:
    """The wheel or sdist of ``project``, made by the setuptools of this environment."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip(f"setuptools {version('setuptools')} is older than the 77 that pyproject.toml asks for")
    folder.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (result,) = folder.iterdir()
    return result


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (project,) = folder.iterdir()
    return project


@pytest.mark.parametrize("source", ["checkout", "sdist"])
def test_wheel_holds_the_tracked_files(clean_copy: Path, tmp_path: Path, source: str) -> None:
    """No file is lost or added on the way; a forgotten line in [tool.setuptools] shows here."""
    tracked = git_files("musclecal", *LINKED)
    expected = {in_wheel(name) for name in tracked if not (ROOT / name).is_symlink()}
    project = clean_copy
    if source == "sdist":
        project = unpacked(build("sdist", clean_copy, tmp_path / "sdist"), tmp_path / "unpacked")
    wheel = build("wheel", project, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"missing": expected - shipped, "added": shipped - expected} == {"missing": set(), "added": set()}


def test_sdist_holds_tests_and_documents(clean_copy: Path, tmp_path: Path) -> None:
    project = unpacked(build("sdist", clean_copy, tmp_path / "sdist"), tmp_path / "unpacked")
    shipped = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    wanted = {name for name in git_files() if not name.startswith(".") and not (ROOT / name).is_symlink()}
    assert wanted - shipped == set()


def test_links_are_relative() -> None:
    """`musclecal.geometry` and the others are found in a checkout without install."""
    git_files()
    for name in LINKED:
        link = ROOT / "musclecal" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
        assert (link / "__init__.py").is_file()


def imported_names(source: Path) -> Iterator[str]:
    """Top-level names that a file imports anywhere in it, also late."""
    for node in ast.walk(ast.parse(source.read_bytes(), filename=str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def package_sources() -> dict[str, Path]:
    """Module path inside the package, without .py, and its file. The three folders may be links."""
    folders = [PACKAGE, *(PACKAGE / name for name in LINKED)]
    files = {source for folder in folders for source in folder.rglob("*.py")}
    return {source.relative_to(PACKAGE).with_suffix("").as_posix(): source for source in files}


def test_heavy_libraries_are_imported_in_few_places() -> None:
    sources = package_sources()
    assert {"compiled", "geometry/helix", "fits/__init__", "validation/__init__"} <= set(sources)
    offences = {
        f"{module} imports {name}"
        for module, source in sources.items()
        for name in imported_names(source)
        if name in ALLOWED_IN and module not in ALLOWED_IN[name]
    }
    assert offences == set()


HELP = """
import sys
sys.path.append(sys.argv.pop())
from musclecal.cli import main
sys.argv = ["musclecal", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("\\nimported:", *sorted(name for name in sys.modules if "." not in name))
"""


def test_help_answers_at_once(tmp_path: Path) -> None:
    """Under 1.5 s, best of three, and without a library that a command may need later."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-c", HELP, str(PACKAGE.parent)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds.append(time.perf_counter() - start)
        assert run.returncode == 0, run.stderr
    usage, _, imported = run.stdout.partition("\nimported:")
    assert "Usage:" in usage
    assert set(imported.split()) & set(SLOW_TO_IMPORT) == set()
    assert min(seconds) < 1.5


def test_no_path_of_a_machine() -> None:
    """A file that names a folder of somebody's machine works only there."""
    machine_path = re.compile(r"(?<![\w.$}~-])/(?:work|root|home|tmp)(?![\w.-])")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in git_files()
        if not (ROOT / name).is_symlink()
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1)
        if machine_path.search(line)
    ]
    assert found == []
