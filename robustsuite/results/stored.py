"""A sealed run where it lies, in its own directory or published, and what can be said of it without model and data."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustsuite.errors import InputError
from robustsuite.results.arithmetic import Finding, arithmetic
from robustsuite.results.gallery import GALLERY
from robustsuite.results.ledger import Ledger, Outcome, read_ledger
from robustsuite.results.packed import read_packed
from robustsuite.results.records import RECORD_NAME, load_record
from robustsuite.results.schema import FileRef, Record
from robustsuite.results.store import parse_arrays, read_bytes, read_json, sha256_file

VERDICTS = "verdicts.safetensors"
_PACKED = {VERDICTS: "verdicts.xz", GALLERY: "gallery.xz"}
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class StoredRun:
    """A record and the files that go with it."""

    record: Record
    path: Path
    """The record's file."""
    published: bool
    """``<run_key>.json`` with packed verdicts beside it, and no adversarial examples but those of the gallery."""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.path.parent

    @property
    def board(self) -> str | None:
        """The board that it is published on: its file is ``runs/<board>/<run_key>.json``."""
        return self.folder.name if self.published and self.folder.parent.name == "runs" else None

    @property
    def root(self) -> Path | None:
        """The published folder, with corrections and attestations; None of a run elsewhere."""
        return self.folder.parent.parent if self.board else None

    def ledger(self) -> Ledger:
        """The verdicts; raises `InputError` when they are missing, damaged or something else."""
        if not self.published:
            return read_ledger(self.folder)
        limit = next((ref.bytes for ref in self.record.files if ref.path == VERDICTS), 0)
        return Ledger.of(*parse_arrays(self._unpacked(VERDICTS, limit), str(self._packed(VERDICTS))))

    def gallery(self) -> bytes | None:
        """The packed gallery, where there is one."""
        path = self._packed(GALLERY)
        return read_bytes(path) if self.published and path.exists() else None

    def files(self) -> Iterator[Finding]:
        """Whether every file that the record names is there and unchanged."""
        for ref in self.record.files:
            yield self._packed_file(ref) if self.published else self._file(ref)
        if self.published:
            same = self.path.stem == self.record.run_key
            yield Finding("name", same, f"{self.path.name} holds run {self.record.run_key}")
        else:
            yield self._adversarials()

    def _file(self, ref: FileRef) -> Finding:
        if not _inside(ref.path):
            return Finding(ref.path, False, "it lies outside of the run's directory")
        path = self.folder / ref.path
        if not path.exists():
            return Finding(ref.path, False, "the file is missing")
        return _compared(ref, sha256_file(path))

    def _packed_file(self, ref: FileRef) -> Finding:
        if ref.path not in _PACKED:
            return Finding(ref.path, True, "not published")
        if not self._packed(ref.path).exists():
            return Finding(ref.path, False, f"{self._packed(ref.path).name} is missing")
        try:
            body = self._unpacked(ref.path, ref.bytes)
        except InputError as error:
            return Finding(ref.path, False, str(error))
        return _compared(ref, hashlib.sha256(body).hexdigest())

    def _packed(self, name: str) -> Path:
        return self.path.with_suffix(f".{_PACKED[name]}")

    def _unpacked(self, name: str, limit: int) -> bytes:
        return read_packed(self._packed(name), min(limit, _MOST_BYTES))

    def _adversarials(self) -> Finding:
        folder = self.folder / "adversarials"
        path = folder / "index.json"
        index = read_json(path) if path.exists() else {}
        bad = [p for p, sha in index.items() if not (_inside(p) and (folder / p).exists())]
        bad += [p for p, sha in index.items() if p not in bad and sha256_file(folder / p) != sha]
        detail = f"changed or missing: {', '.join(bad[:3])}" if bad else f"{len(index)} files unchanged"
        return Finding("adversarials", not bad, detail)


def find_run(path: Path) -> StoredRun:
    """The run in a directory, of a ``record.json``, or published; raises as `load_record` does."""
    record = load_record(path)
    if path.is_dir():
        path = path / RECORD_NAME
    return StoredRun(record, path, published=path.name != RECORD_NAME)


def found_by(record: Record) -> tuple[object, ...]:
    """What a run found, wherever model and data lay and whichever pictures were made of it."""
    verdicts = [ref.sha256 for ref in record.files if ref.path == VERDICTS]
    return record.request.run_key, record.status, record.metrics, record.stages, record.flags, record.tail, verdicts


def check_stored(run: StoredRun) -> list[Finding]:
    """Level 0: files and hashes, and every number counted again from the verdicts. No model, no data, no torch."""
    findings = [*run.files(), Finding("run_key", True, f"{run.record.run_key} follows from the request")]
    if not all(f.ok for f in findings):
        return findings
    ledger = run.ledger()
    shape = _shape(run.record, ledger)
    return [*findings, shape, *(arithmetic(run.record, ledger) if shape.ok else ())]


def _shape(record: Record, ledger: Ledger) -> Finding:
    """Whether the arrays are a ledger of the record's examples: what counts over them may then rely on it."""
    n = record.request.data.n
    wrong = [name for name, array in ledger.arrays.items() if array.shape[:1] != (n,)]
    for stage in ledger.stages:
        try:
            ledger.part(stage)
        except InputError:
            wrong.append(stage)
        outcome = ledger.outcome(stage)
        if outcome.dtype.kind != "u" or outcome.ndim != 1 or outcome.max(initial=0) > max(Outcome):
            wrong.append(f"{stage}/outcome")
    detail = f"not over {n} examples: {', '.join(wrong[:3])}" if wrong else f"{len(ledger.stages)} stages, {n} examples"
    return Finding("ledger", not wrong, detail)


def _compared(ref: FileRef, found: str) -> Finding:
    if found != ref.sha256:
        return Finding(ref.path, False, "its sha256 is not the record's: it was changed after sealing")
    return Finding(ref.path, True, "unchanged since sealing")


def _inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts
