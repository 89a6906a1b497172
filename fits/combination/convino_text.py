"""Lines and blocks of the text files of Convino, each line with the place where it stands, for errors."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from musclecal.errors import InputError

__all__ = ["NUMBER", "Blocks", "Line", "assignments", "blocks_of", "numbered"]

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_BLOCK = re.compile(r"^\[\s*([^\[\]]+?)\s*\]$")
_INCLUDE = re.compile(r"^\s*#!FILE\s*=\s*([^#]+)")


@dataclass(frozen=True)
class Line:
    """A line without its comment, and where it stands."""

    path: Path
    number: int
    text: str

    def error(self, message: str) -> InputError:
        """An error that says where."""
        return InputError(f"{self.path}, line {self.number}: {message}")

    def number_of(self, text: str, what: str) -> float:
        """``text`` as a finite number."""
        if not re.fullmatch(NUMBER, text):
            raise self.error(f"{what}: {text!r} is no number")
        return float(text)

    def assignment(self) -> tuple[str, str]:
        """Both sides of ``key = value``."""
        key, equals, value = self.text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise self.error(f"expected 'name = value', got {self.text!r}")
        return key.strip(), value.strip().rstrip(";").strip()


Blocks = dict[str, list[Line]]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8") from error


def _included(path: Path, seen: tuple[Path, ...]) -> Iterator[Line]:
    """Lines of a file of correlations, with those that it includes itself."""
    if path.resolve() in seen:
        raise InputError(f"{path}: includes itself")
    for number, raw in enumerate(_lines(path), start=1):
        include = _INCLUDE.match(raw)
        if include:
            yield from _included(path.parent / include[1].strip(), (*seen, path.resolve()))
            continue
        text = raw.split("#", 1)[0].strip()
        if text and not _BLOCK.match(text):
            yield Line(path, number, text)


def blocks_of(path: Path, allowed: Sequence[str]) -> Blocks:
    """Lines of each block of a file, comments and empty lines left out."""
    found: Blocks = {}
    block, opened = None, 0
    for number, raw in enumerate(_lines(path), start=1):
        include = _INCLUDE.match(raw)
        if include and block is not None:
            found[block].extend(_included(path.parent / include[1].strip(), (path.resolve(),)))
            continue
        line = Line(path, number, raw.split("#", 1)[0].strip())
        marker = _BLOCK.match(line.text)
        if marker is None:
            if block is not None and line.text:
                found[block].append(line)
            continue
        name = " ".join(marker[1].split()).lower()
        if block is None:
            if name not in allowed:
                raise line.error(f"unknown block [{name}]: there are {', '.join(f'[{b}]' for b in allowed)}")
            if name in found:
                raise line.error(f"block [{name}] is there twice")
            block, opened, found[name] = name, number, []
        elif name == f"end {block}":
            block = None
        else:
            raise line.error(
                f"[{name}] inside [{block}], which starts in line {opened} and has no [end {block}]"
            )
    if block is not None:
        raise InputError(f"{path}, line {opened}: block [{block}] has no [end {block}]")
    return found


def assignments(lines: Sequence[Line], block: str) -> dict[str, tuple[str, Line]]:
    """Values of a block of ``key = value``, and their lines."""
    result: dict[str, tuple[str, Line]] = {}
    for line in lines:
        key, value = line.assignment()
        if key in result:
            raise line.error(f"[{block}]: {key!r} is there twice")
        result[key] = value, line
    return result


def numbered(
    values: dict[str, tuple[str, Line]], path: Path, block: str, count: str, *keys: str
) -> list[list[tuple[str, Line]]]:
    """``keys`` 0, 1, ... of a block that says in ``count`` how many there are."""
    if count not in values:
        raise InputError(f"{path}: [{block}] does not say {count!r}")
    text, line = values.pop(count)
    if not text.isdigit():
        raise line.error(f"[{block}]: {count} = {text!r} is no count")
    wanted = [[f"{key}{n}" for key in keys] for n in range(int(text))]
    for name in (name for one in wanted for name in one):
        if name not in values:
            raise line.error(f"[{block}]: {count} = {text}, but there is no {name!r}")
    result = [[values.pop(name) for name in one] for one in wanted]
    if values:
        key, (_, line) = next(iter(values.items()))
        raise line.error(f"[{block}]: unknown key {key!r}")
    return result
