"""Reading a published folder: definitions, runs, imported entries, and what was said of them later.

A file that cannot be used is named with the reason and never costs the others.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from robustsuite.errors import InputError, RobustsuiteError, VerificationError
from robustsuite.leaderboard.curves import ledger_curves
from robustsuite.leaderboard.definition import BoardDefinition, load_definition
from robustsuite.leaderboard.row import Picture
from robustsuite.results.gallery import read_gallery
from robustsuite.results.ledger import Outcome
from robustsuite.results.published import Attestation, Correction, Curve, ImportedEntry
from robustsuite.results.records import Problem
from robustsuite.results.schema import Record
from robustsuite.results.statements import corrections
from robustsuite.results.store import read_json
from robustsuite.results.stored import StoredRun, check_stored, find_run
from robustsuite.results.validation import validated

BOARDS, RUNS, IMPORTED, CORRECTIONS, ATTESTATIONS = "boards", "runs", "imported", "corrections", "attestations"
ADD_ONLY = (RUNS, IMPORTED, CORRECTIONS, ATTESTATIONS)
RECORD = re.compile(r"[0-9a-f]{16}\.json")
STATEMENT = re.compile(r"(?P<entry>.+)-(?P<number>\d+)\.json")
UNUSABLE = (
    RobustsuiteError,
    OSError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
)
"""What reading a stranger's file may raise: numbers beyond all limits, arrays of a wrong shape, endless nesting."""
_MOST_BYTES = 1 << 26
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Entry:
    """A published run. ``doubts`` say in words why its numbers cannot be relied on."""

    record: Record
    level: int | None
    """How far it was verified; None: not even its arithmetic could be."""
    kept: np.ndarray | None = None
    """Which examples its own verdicts leave robust, bool ``[N]``."""
    curves: tuple[Curve, ...] = ()
    gallery: tuple[Picture, ...] = ()
    corrections: tuple[Correction, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reported:
    """An imported entry, with what was said of it later."""

    entry: ImportedEntry
    corrections: tuple[Correction, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedBoard:
    """A definition and everything that was published under it."""

    definition: BoardDefinition
    entries: tuple[Entry, ...] = ()
    imported: tuple[Reported, ...] = ()


@dataclass
class Published:
    """A whole folder."""

    root: Path
    boards: list[PublishedBoard] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def attempt(self, path: Path, read: Callable[[Path], _Read]) -> _Read | None:
        """What ``read`` makes of a file; None, and the problem noted, where that fails."""
        try:
            if path.is_symlink() or not path.is_file():
                raise InputError(f"{path} is no regular file.")
            if path.stat().st_size > _MOST_BYTES:
                raise InputError(f"{path} is larger than {_MOST_BYTES} bytes: nothing that is published is.")
            return read(path)
        except UNUSABLE as error:
            self.problems.append(Problem(path, in_words(error)))
        return None


def in_words(error: BaseException) -> str:
    """Why a file cannot be used."""
    return str(error) if isinstance(error, RobustsuiteError) else f"cannot be used ({type(error).__name__}: {error})"


def is_published(folder: Path) -> bool:
    """Whether a folder has definitions of boards in it."""
    return (folder / BOARDS).is_dir()


def read_published(root: Path, *, galleries: bool = False) -> Published:
    """Everything in a published folder, boards in the order of their ids; raises `InputError` when it has no boards.

    Of every run level 0 is checked here: hashes, and every number counted again. Pictures only with ``galleries``.
    """
    if not is_published(root):
        raise InputError(f"{root} has no folder '{BOARDS}' with definitions of boards; name a published folder.")
    found = Published(root)
    for path in files(root / BOARDS, "*.yaml"):
        definition = found.attempt(path, load_definition)
        if definition is not None:
            found.boards.append(_board(found, definition, galleries))
    return found


def files(folder: Path, pattern: str = "*.json") -> list[Path]:
    """The files of a folder in the order of their names; hidden ones are left out."""
    return sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))


def _board(found: Published, board: BoardDefinition, galleries: bool) -> PublishedBoard:
    root = found.root
    said = _Statements(found, board.id)
    entries = []
    for path in files(root / RUNS / board.id):
        run = found.attempt(path, lambda p: _fitting(p, board))
        if run is not None:
            entries.append(_entry(found, run, said, galleries))
    imported = []
    for path in files(root / IMPORTED / board.id):
        entry = found.attempt(path, load_imported)
        if entry is not None:
            chain, doubts = said.corrections(entry.id)
            imported.append(Reported(entry, chain, doubts))
    return PublishedBoard(board, tuple(entries), tuple(imported))


def _fitting(path: Path, board: BoardDefinition) -> StoredRun:
    if RECORD.fullmatch(path.name) is None:
        raise InputError(f"{path} is not named by a run key (16 hex digits): nothing else belongs here.")
    run = find_run(path)
    if run.record.run_key != path.stem:
        raise VerificationError(f"{path} holds run {run.record.run_key}: its name must be that.")
    if words := board.misfits(run.record):
        raise InputError(f"{path} does not fit the board '{board.id}': {'; '.join(words)}.")
    return run


def load_imported(path: Path) -> ImportedEntry:
    """An imported entry; raises `InputError` when it is none or is named otherwise."""
    entry = validated(ImportedEntry, read_json(path), str(path), "an imported entry")
    if entry.id != path.stem:
        raise InputError(f"{path}: 'id' is '{entry.id}', but the file's name says '{path.stem}'.")
    return entry


def load_attestation(path: Path) -> Attestation:
    """An attestation; raises `InputError` when it is none or is named otherwise."""
    found = validated(Attestation, read_json(path), str(path), "an attestation")
    if path.name != f"{found.run_key}-{found.level}.json":
        raise InputError(f"{path} attests level {found.level} of run {found.run_key}: its name must say that.")
    return found


class _Statements:
    """What corrections and attestations say of a board's entries."""

    def __init__(self, found: Published, board: str) -> None:
        self._found, self._board = found, board
        self._corrected = _named(found.root / CORRECTIONS / board)
        self._attested = _named(found.root / ATTESTATIONS / board)

    def corrections(self, entry: str) -> tuple[tuple[Correction, ...], tuple[str, ...]]:
        """The corrections of an entry, and a doubt where they are no chain: one that is missing may be the worst."""
        if entry not in self._corrected:
            return (), ()
        try:
            return tuple(corrections(self._found.root, self._board, entry)), ()
        except UNUSABLE as error:
            self._found.problems.append(Problem(self._corrected[entry][0], in_words(error)))
            return (), ("its corrections are damaged",)

    def level(self, record: Record) -> int:
        """The highest level that somebody attests for this very record, at least 0."""
        said = (self._found.attempt(p, load_attestation) for p in self._attested.get(record.run_key, ()))
        return max((a.level for a in said if a and a.content_sha256 == record.content_sha256), default=0)


def _named(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in files(folder):
        if match := STATEMENT.fullmatch(path.name):
            found.setdefault(match["entry"], []).append(path)
    return found


def _entry(found: Published, run: StoredRun, said: _Statements, galleries: bool) -> Entry:
    record = run.record
    chain, doubts = said.corrections(record.run_key)
    try:
        if bad := [f for f in check_stored(run) if not f.ok]:
            raise VerificationError(f"{bad[0].name}: {bad[0].detail}")
        ledger = run.ledger()
        kept, curves = ~ledger.any(Outcome.BROKEN), ledger_curves(record, ledger)
    except UNUSABLE as error:
        found.problems.append(Problem(run.path, in_words(error)))
        return Entry(record, None, corrections=chain, doubts=(*doubts, in_words(error)))
    pictures = tuple(_pictures(found, run)) if galleries else ()
    return Entry(record, said.level(record), kept, curves, pictures, chain, doubts)


def _pictures(found: Published, run: StoredRun) -> Iterator[Picture]:
    packed = run.gallery()
    if packed is None:
        return
    try:
        shown = read_gallery(packed)
    except UNUSABLE as error:
        found.problems.append(Problem(run.path, in_words(error)))
        return
    for i, stage in enumerate(shown.stages):
        yield Picture(
            position=int(shown.position[i]),
            label=int(shown.label[i]),
            before=int(shown.before[i]),
            after=int(shown.after[i]),
            stage=stage,
            distance=float(shown.distance[i]),
            x=shown.x[i],
            x_adv=shown.x_adv[i],
        )
