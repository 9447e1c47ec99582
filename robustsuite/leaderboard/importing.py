"""What all importers share: finding source files, names that are safe, what was kept and what could not be used."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustsuite.errors import InputError
from robustsuite.results.published import Correction, ImportedEntry
from robustsuite.results.records import Problem

SAFE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
"""What a board or an entry may be called: it becomes a file name, on systems of every kind."""
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Kept:
    """One entry for one board, with what its source has said about it later, in that order."""

    board: str
    entry: ImportedEntry
    corrections: tuple[Correction, ...] = ()


@dataclass(frozen=True)
class BoardSeed:
    """What is known of a board before it has a definition."""

    id: str
    title: str
    description: str
    data_name: str
    norm: str
    eps: str


@dataclass(frozen=True)
class Import:
    """What a source says: ``read`` files, of which each is kept or is named in ``problems``."""

    read: int
    kept: tuple[Kept, ...]
    boards: tuple[BoardSeed, ...]
    problems: tuple[Problem, ...]


def is_safe(name: str) -> bool:
    """Whether ``name`` can be a file's name everywhere."""
    return SAFE_NAME.fullmatch(name) is not None and _RESERVED.fullmatch(name) is None


def printable(path: Path) -> str:
    """A path as it can be shown on any terminal: names of files are bytes that somebody else chose."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def source_files(root: Path, wanted: Callable[[Path], bool], most_bytes: int) -> Iterator[tuple[Path, Problem | None]]:
    """Every wanted file below ``root`` in the order of the paths, or why it is not opened.

    Links are not followed: a folder that somebody else made must not choose what is read here. Raises `InputError` when
    there is no ``root``.
    """
    if not root.exists():
        raise InputError(f"{root} does not exist; name the folder of the files to import.")
    denied: list[OSError] = []
    for path in sorted(_walk(root.resolve(), denied)):
        if wanted(path) or (path.is_symlink() and path.is_dir()):
            reason = _unreadable(path, most_bytes)
            yield path, Problem(path, reason) if reason else None
    for error in denied:
        yield Path(error.filename), Problem(Path(error.filename), f"cannot be read: {error.strerror}")


def _walk(root: Path, denied: list[OSError]) -> Iterator[Path]:
    if not root.is_dir():
        yield root
        return
    for folder, folders, files in os.walk(root, onerror=denied.append, followlinks=False):
        yield from (Path(folder) / name for name in files)
        yield from (path for name in folders if (path := Path(folder) / name).is_symlink())


def _unreadable(path: Path, most_bytes: int) -> str:
    try:
        status = path.lstat()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link, which is not followed; put the file itself there"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size > most_bytes:
        return f"has {status.st_size} bytes; one of these files has at most {most_bytes}"
    return ""


def duplicates(kept: Sequence[Kept]) -> tuple[list[Kept], list[Problem]]:
    """Entries whose place is free, and those that come second on a board; case does not tell two ids apart."""
    taken: dict[tuple[str, str], str] = {}
    first, second = [], []
    for one in kept:
        place = one.board, one.entry.id.casefold()
        if place in taken:
            reason = f"has the id '{one.entry.id}', which {taken[place]} has on the board {one.board} already"
            second.append(Problem(Path(one.entry.source_file), reason))
        else:
            taken[place] = one.entry.source_file
            first.append(one)
    return first, second
