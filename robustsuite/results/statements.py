"""Corrections and attestations in a published folder: written once, never edited, found by board and entry."""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

from robustsuite.errors import UsageError, VerificationError
from robustsuite.results.published import Attestation, Correction
from robustsuite.results.records import load_record
from robustsuite.results.schema import Record, canonical
from robustsuite.results.store import json_bytes, read_json, write_atomic
from robustsuite.results.stored import found_by
from robustsuite.results.validation import validated

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_UTC = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")


def utc_now() -> str:
    """This moment, as records write it: 2030-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_time(utc: str) -> None:
    """Raise `UsageError` unless it looks like 2030-01-31T12:00:00Z."""
    if _UTC.fullmatch(utc) is None:
        raise UsageError(f"the time must be UTC and look like 2030-01-31T12:00:00Z, got {utc!r}.")


def corrections(folder: Path, board: str, entry: str) -> list[Correction]:
    """The corrections of an entry in their order.

    Raises `InputError` for one that is not of the schema, `VerificationError` for a gap or a broken chain of hashes.
    """
    found: list[Correction] = []
    while (path := _correction_path(folder, board, entry, len(found) + 1)).exists():
        found.append(validated(Correction, read_json(path), str(path), "a correction"))
        said = found[-1]
        if (said.board, said.entry, said.number) != (board, entry, len(found)):
            raise VerificationError(f"{path} is the correction {said.number} of {said.entry} on {said.board}.")
        if said.previous_sha256 != (statement_sha256(found[-2]) if len(found) > 1 else ""):
            raise VerificationError(f"{path}: the correction before it was changed, added or taken away since.")
    own = re.compile(re.escape(entry) + r"-\d+\.json")
    named = sorted(p.name for p in (folder / "corrections" / board).glob("*.json") if own.fullmatch(p.name))
    if len(named) != len(found):
        raise VerificationError(f"the corrections of {entry} are not numbered from 1 without gaps: {', '.join(named)}.")
    return found


def statement_sha256(statement: Correction) -> str:
    """sha256 over its canonical JSON: what the next correction of the entry names."""
    return hashlib.sha256(canonical(statement.model_dump(mode="json"))).hexdigest()


def write_correction(folder: Path, correction: Correction) -> Path:
    """Add a correction to those of its entry, whatever number and predecessor it came with; returns its file.

    Raises `UsageError` for a board or entry that is no file name, and for a time that is not UTC.
    """
    _check_names(correction.board, correction.entry)
    check_time(correction.utc)
    before = corrections(folder, correction.board, correction.entry)
    last = statement_sha256(before[-1]) if before else ""
    body = correction.model_copy(update={"number": len(before) + 1, "previous_sha256": last})
    path = _correction_path(folder, body.board, body.entry, body.number)
    write_atomic(path, json_bytes(body, str(path)))
    return path


def attestation_path(folder: Path, board: str, run_key: str, level: int) -> Path:
    """Where the attestation of a run and level lies; raises `UsageError` for names that are no file names."""
    _check_names(board, run_key)
    return folder / "attestations" / board / f"{run_key}-{level}.json"


def published_as(folder: Path, board: str, record: Record) -> Record:
    """The record that a folder has published of this run: what an attestation there has to be of.

    Publishing takes folders off all paths, so its hash is another one. ``record`` itself where the folder has no
    boards. Raises `UsageError` when the run is not published there, `VerificationError` when what is published says
    something else.
    """
    path = folder / "runs" / board / f"{record.run_key}.json"
    if not path.exists():
        if (folder / "boards").is_dir():
            raise UsageError(f"{path} does not exist: publish the run first (robustsuite submit), then attest it.")
        return record
    there = load_record(path)
    if found_by(there) != found_by(record):
        raise VerificationError(f"{path} says something else than the run that was verified; nothing was attested.")
    return there


def write_attestation(folder: Path, board: str, attestation: Attestation) -> Path:
    """Write an attestation; returns its file. Raises `UsageError` as `write_correction` does, and when it is there."""
    path = attestation_path(folder, board, attestation.run_key, attestation.level)
    check_time(attestation.utc)
    if path.exists():
        raise UsageError(f"{path} is there already, and is never edited: somebody has attested this level.")
    write_atomic(path, json_bytes(attestation, str(path)))
    return path


def _correction_path(folder: Path, board: str, entry: str, number: int) -> Path:
    return folder / "corrections" / board / f"{entry}-{number}.json"


def _check_names(board: str, entry: str) -> None:
    for what, name in (("board", board), ("entry", entry)):
        if _NAME.fullmatch(name) is None:
            raise UsageError(f"the {what} must be a plain name of letters, digits and ._-, got {name!r}.")
