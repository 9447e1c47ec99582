"""A finished run to the files of a contribution: checked, stripped of whereabouts, added and never overwritten."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robustsuite.errors import InputError, VerificationError
from robustsuite.leaderboard.definition import BoardDefinition, load_definition
from robustsuite.leaderboard.published import BOARDS, RUNS
from robustsuite.leaderboard.whereabouts import absolute_paths, without_folders
from robustsuite.results.gallery import GALLERY, read_gallery
from robustsuite.results.packed import pack, unpack
from robustsuite.results.records import load_record
from robustsuite.results.schema import FileRef, Record
from robustsuite.results.store import json_bytes, read_bytes, write_atomic
from robustsuite.results.stored import VERDICTS, StoredRun, check_stored, find_run, found_by

_MOST_GALLERY_BYTES = 1 << 25
Gallery = Callable[[StoredRun], bytes | None]
"""Pictures of a run, packed; None where there are none."""


@dataclass(frozen=True)
class Submitted:
    """What became of a submission: ``files`` that are new, none where the same run was published already."""

    record: Record
    files: tuple[Path, ...]
    checks: int
    board: BoardDefinition


def submit(run_dir: Path, folder: Path, board: str, gallery: Gallery | None = None) -> Submitted:
    """Add a run to a board of a published folder.

    Raises `InputError` for a board that is not there, a run that does not fit it, is not complete or is published
    already with other content; `VerificationError` where files, hashes or any number do not hold.
    """
    definition = _definition(folder, board)
    run = find_run(run_dir)
    _admit(run.record, definition)
    return Submitted(*add_run(run, folder / RUNS / board, gallery), definition)


def add_run(run: StoredRun, folder: Path, gallery: Gallery | None = None) -> tuple[Record, tuple[Path, ...], int]:
    """Write a run as it is published into ``folder``: its record, the files that are new, and how much was checked.

    Raises `InputError` for a run that is published already with other content, and `VerificationError` where files,
    hashes or any number do not hold.
    """
    if run.published:
        raise InputError(f"{run.path} is published already; name the run's own directory, with its verdicts.")
    checks = check_stored(run)
    if bad := [f for f in checks if not f.ok]:
        raise VerificationError("; ".join(f"{f.name}: {f.detail}" for f in bad))
    home = folder / f"{run.record.run_key}.json"
    files = _files(run, gallery)
    record = files.pop("record")
    assert isinstance(record, Record)
    if home.exists():
        _same(home, record)
        return load_record(home), (), len(checks)
    body = json_bytes(record, str(home))
    written = {home.with_suffix(suffix): data for suffix, data in files.items() if isinstance(data, bytes)}
    for path, data in (written | {home: body}).items():  # the record last: it never lacks its evidence
        write_atomic(path, data)
    return record, (*written, home), len(checks)


def _definition(folder: Path, board: str) -> BoardDefinition:
    path = folder / BOARDS / f"{board}.yaml"
    known = sorted(p.stem for p in (folder / BOARDS).glob("*.yaml"))
    if board not in known:
        raise InputError(f"{folder} has no board '{board}'. Its boards: {', '.join(known) or 'none'}.")
    return load_definition(path)


def _admit(record: Record, board: BoardDefinition) -> None:
    """Whether a run may be published on a board at all."""
    if board.ranking.rule == "reported":
        raise InputError(f"the board '{board.id}' holds what its source reports; runs go to one that verifies them.")
    if record.status != "complete":
        raise InputError(f"run {record.run_key} is {record.status}; only complete runs are published.")
    if words := board.misfits(record):
        raise InputError(f"run {record.run_key} does not fit the board '{board.id}': {'; '.join(words)}.")


def _files(run: StoredRun, gallery: Gallery | None) -> dict[str, bytes | Record]:
    """The record as it is published, and the files beside it by suffix."""
    record = without_folders(run.record)
    files: dict[str, bytes | Record] = {".verdicts.xz": pack(read_bytes(run.folder / VERDICTS))}
    pictures = gallery(run) if gallery else None
    if pictures is not None:
        read_gallery(pictures)
        plain = unpack(pictures, _MOST_GALLERY_BYTES, "the gallery")
        ref = FileRef(path=GALLERY, sha256=hashlib.sha256(plain).hexdigest(), bytes=len(plain), role="gallery")
        record = record.model_copy(update={"files": (*record.files, ref)}).sealed()
        files[".gallery.xz"] = pictures
    for key, text in absolute_paths(record.model_dump(mode="json")):
        raise InputError(
            f"'{key}' of run {record.run_key} names a path of your machine ({text[:120]}), which would be published. "
            "Run it again with names that say nothing of where things lie."
        )
    if record.run_key != record.request.run_key:
        raise VerificationError(f"run {record.run_key} does not follow from its request without its paths.")
    return files | {"record": record}


def _same(home: Path, record: Record) -> None:
    """Whether what is published under this run key is this run."""
    there = load_record(home)
    if there.content_sha256 == record.content_sha256:
        return
    kind = "with the same outcome" if found_by(there) == found_by(record) else "with ANOTHER outcome"
    raise InputError(
        f"run {record.run_key} is published already, {kind} and other content ({home}; that one is of "
        f"{there.host.created_utc}, this one of {record.host.created_utc}). Published files are never edited: attest "
        "that one with `robustsuite verify`, or say what is wrong with it in a correction."
    )
