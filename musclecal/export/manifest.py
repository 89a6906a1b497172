"""The manifest of an export folder: which files it holds, with their hashes, and of which periods.

Not for: manifests of a campaign's tasks (`musclecal.tasks`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from musclecal.errors import InputError
from musclecal.store import written_atomically

__all__ = [
    "MANIFEST", "check_hash", "content_hash", "listed_files", "manifest_content", "merged_periods", "period_file",
    "refuse_edited", "write_manifest",
]  # fmt: skip

MANIFEST = "manifest.json"

_PERIOD_FILES = {
    "npz": "calibration_{}.npz",
    "json": "calibration_{}.json",
    "reference": "reference_{}.parquet",
}


def write_manifest(folder: Path, content: Mapping[str, Any], files: Iterable[Path]) -> Path:
    """Write ``content`` with the hashes of ``files``, which are in ``folder``."""
    hashes = {file.name: content_hash(file) for file in sorted(files)}
    with written_atomically(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps({**content, "files": hashes}, indent=1) + "\n", encoding="utf-8")
    return folder / MANIFEST


def content_hash(file: Path) -> str:
    """Of every byte, however large the file is."""
    try:
        with open(file, "rb") as stream:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def listed_files(folder: Path) -> dict[str, str]:
    """Hashes by name of the files in the manifest.

    Raises
    ------
    InputError : there is no manifest, or it cannot be read.
    """
    return dict(manifest_content(folder)["files"])


def manifest_content(folder: Path) -> dict[str, Any]:
    """The whole manifest. Raises `InputError` as `listed_files`."""
    path = folder / MANIFEST
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable manifest ({error})") from None
    return content


def check_hash(file: Path, expected: str) -> None:
    """Raise `InputError` if the file is not the one that the manifest means."""
    if content_hash(file) != expected:
        raise InputError(f"{file}: does not match {MANIFEST}: it was changed after the export")


def refuse_edited(file: Path, must_be_listed: bool = False) -> None:
    """Check a file against the manifest beside it, if there is one.

    A manifest of something else says nothing. A file that ours does not list is not of the export: one that has the
    name of an export file ``must_be_listed``.

    Raises
    ------
    InputError : the file was edited, is not listed, or the manifest cannot be read.
    """
    manifest = file.parent / MANIFEST
    if not manifest.is_file() or _is_of_others(manifest):
        return
    remedy = "musclecal.load(path, check=False) reads it all the same"
    try:
        files = listed_files(file.parent)
        if file.name in files:
            check_hash(file, files[file.name])
        elif must_be_listed:
            raise InputError(f"{file}: does not match {MANIFEST}: it is not listed there")
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None


def _is_of_others(manifest: Path) -> bool:
    """Whether it is a JSON object that does not say to be a manifest of tables."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and not str(content.get("format", "")).startswith("musclecal ")


def merged_periods(folder: Path) -> tuple[str, ...]:
    """The periods of a merged folder, of its manifest; none if it is no such folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return tuple(manifest.get("periods", ()))
    except (OSError, ValueError, AttributeError, TypeError):
        return ()


def period_file(folder: Path, kind: str, period: str) -> Path:
    """The file of a period in a merged folder; ``kind`` is npz, json or reference."""
    return folder / _PERIOD_FILES[kind].format(period)
