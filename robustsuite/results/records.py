"""Reading records: every claim that can be checked without a model is checked before anyone uses the record."""

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustsuite.errors import InputError, RobustsuiteError, UsageError, VerificationError
from robustsuite.results import migrations
from robustsuite.results.bounded import EXPECTED, bounded_interval
from robustsuite.results.schema import _OUTSIDE_OUTCOME, SCHEMA_VERSION, Metric, Record, canonical
from robustsuite.results.statistics import interval
from robustsuite.results.store import read_json, write_json
from robustsuite.results.validation import validated
from robustsuite.threat import Eps

RECORD_NAME = "record.json"
KIND = "evaluation"
_EPS_TEXT = re.compile(r"\d{1,40}(\.\d{1,40})?(e[+-]?\d{1,2})?|\d{1,40}/\d{1,40}")
_ROUNDING = 1e-9
_INTERVAL_SLACK = 1e-6  # scipy's releases differ in the last digits of an inverse


@dataclass(frozen=True)
class Problem:
    """A file that should be a record and cannot be used."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return self.reason


def load_record(path: str | Path) -> Record:
    """The record in a file or a run directory, migrated to the current schema.

    Raises `InputError` when it is missing, unreadable, newer than this suite or not of the schema (the offending
    keys are named), `VerificationError` when it was changed after it was sealed or contradicts itself.
    """
    path = _record_file(Path(path))
    stored = read_json(path)
    body = migrations.migrate(stored, str(path), migrations.MIGRATIONS)
    record = validated(Record, body, str(path), f"a record of schema version {SCHEMA_VERSION}")
    _check_hashes(path, stored)
    _check_claims(path, record)
    return record.sealed()  # a migrated record gets the hashes of what it is now


def find_records(roots: Sequence[str | Path]) -> tuple[list[Record], list[Problem]]:
    """All records in files and folders (searched through), and what could not be used and why.

    In a folder a record is `record.json`, a JSON file named by a run key, or one that says it is an evaluation.
    Unfinished runs are problems too. Files are visited once and in the order of their paths.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    for path, certain in _candidates(roots):
        try:
            if certain or _says_it_is_a_record(path):
                records.append(load_record(path))
        except RobustsuiteError as error:
            problems.append(Problem(path, str(error)))
    return records, problems


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}


def write_schema(path: str | Path) -> None:
    """Write `json_schema` to a file, as it is published in leaderboards/schema/."""
    write_json(path, json_schema())


def _record_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / RECORD_NAME).exists():
        return path / RECORD_NAME
    if (path / "request.json").exists():
        raise InputError(f"{path} is a run that has not finished; run its command again to resume it.")
    raise InputError(f"{path} holds no {RECORD_NAME}; name a run directory or a record file.")


def _candidates(roots: Sequence[str | Path]) -> Iterator[tuple[Path, bool]]:
    """(path, whether it must be a record) below all roots, each file once."""
    found: dict[Path, tuple[Path, bool]] = {}
    for root in map(Path, roots):
        for path, certain in _below(root) if root.is_dir() else [(root, True)]:
            found.setdefault(path.resolve(), (path, certain))
    yield from (found[key] for key in sorted(found))


def _below(root: Path) -> Iterator[tuple[Path, bool]]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if "request.json" in names:  # a run: its other files are the evaluator's business
            subfolders.clear()
            yield (Path(folder, RECORD_NAME) if RECORD_NAME in names else Path(folder)), True
            continue
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                yield Path(folder, name), name == RECORD_NAME or _is_run_key(name.removesuffix(".json"))


def _is_run_key(name: str) -> bool:
    return len(name) == 16 and set(name) <= set("0123456789abcdef")


def _says_it_is_a_record(path: Path) -> bool:
    return read_json(path).get("kind") == KIND


def _check_hashes(path: Path, stored: dict[str, Any]) -> None:
    """Over the body as it lies in the file: the hashes of an old record are over its own schema."""
    try:
        content = {k: v for k, v in stored.items() if k != "content_sha256"}
        outcome = {k: v for k, v in stored.items() if k not in _OUTSIDE_OUTCOME}
        found = {
            "outcome_sha256": hashlib.sha256(canonical(outcome)).hexdigest(),
            "content_sha256": hashlib.sha256(canonical(content)).hexdigest(),
        }
    except ValueError as error:  # 1e999 reads as infinity; a lone surrogate has no UTF-8
        raise InputError(f"{path} holds a value that JSON cannot keep: {error}.") from error
    for name, value in found.items():
        if not stored.get(name):
            raise VerificationError(f"{path} was never sealed: its {name} is empty. Run the evaluation to its end.")
        if stored[name] != value:
            raise VerificationError(
                f"{path} was edited after it was sealed: {name} says {str(stored[name])[:16]}..., its content gives "
                f"{value[:16]}.... Restore the original, or run the evaluation again."
            )


def _check_claims(path: Path, record: Record) -> None:
    """What follows from other parts of the record must agree with them."""
    request = record.request
    _agree(path, "run_key", record.run_key, request.run_key)
    eps = _eps(path, request.threat.eps)
    if not math.isclose(request.threat.eps_float, eps, rel_tol=_ROUNDING):
        _agree(path, "eps_float", request.threat.eps_float, eps)
    names = [m.name for m in record.metrics]
    _agree(path, "the number of distinct metrics", len(names), len(set(names)))
    for metric in record.metrics:
        _check_metric(path, metric, request.data.n, request.model.draws)


def _eps(path: Path, text: str) -> float:
    """The exact eps as a float; the length is bounded because a fraction of '1e999999999' never ends."""
    if _EPS_TEXT.fullmatch(text) is None:
        raise InputError(f"{path}: 'request.threat.eps' must be a number like 8/255 or 0.3, got {text[:40]!r}.")
    try:
        return float(Eps.parse(text))
    except UsageError as error:
        raise InputError(f"{path}: {error}") from error


def _check_metric(path: Path, metric: Metric, n: int, draws: int | None) -> None:
    if metric.n > n:
        raise VerificationError(f"{path}: {metric.name} is over {metric.n} examples, the data has {n}.")
    per_example = draws or 1 if metric.name == EXPECTED else 1
    k, of = round(metric.value * metric.n * per_example), metric.n * per_example
    if abs(metric.value - k / of) > _ROUNDING:
        raise VerificationError(f"{path}: {metric.name} = {metric.value} is not a share of {of}.")
    expected = bounded_interval(metric.value, metric.n) if metric.name == EXPECTED else interval(k, metric.n)
    if any(abs(a - b) > _INTERVAL_SLACK for a, b in zip(metric.ci95, expected, strict=True)):
        _agree(path, f"the interval of {metric.name}", metric.ci95, expected)


def _agree(path: Path, what: str, stated: object, found: object) -> None:
    if stated != found:
        raise VerificationError(f"{path} contradicts itself: {what} is {stated}, the rest of the record gives {found}.")
