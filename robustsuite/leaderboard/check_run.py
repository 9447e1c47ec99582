"""Whether one published run holds: its name, its board, hashes, arithmetic, pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robustsuite.leaderboard.definition import BoardDefinition
from robustsuite.leaderboard.published import RECORD, UNUSABLE, in_words
from robustsuite.leaderboard.whereabouts import absolute_paths
from robustsuite.results.arithmetic import Finding
from robustsuite.results.gallery import Gallery, read_gallery
from robustsuite.results.ledger import CLEAN, REST, Ledger, Outcome
from robustsuite.results.schema import Record
from robustsuite.results.stored import StoredRun, check_stored, find_run

_ROUNDING = 1e-5  # a distance of float32 images, once counted in float32


def check_run(path: Path, board: BoardDefinition) -> Iterator[Finding]:
    """All that can be said of a published run without its model and data; never raises for a bad file."""
    if RECORD.fullmatch(path.name) is None:
        yield Finding("name", False, "no run key: 16 hex digits and .json")
        return
    try:
        run = find_run(path)
        stored = check_stored(run)
        yield from stored
        yield from _belongs(run.record, board)
        if all(f.ok for f in stored):
            yield from _pictures(run, run.ledger())
    except UNUSABLE as error:
        yield Finding("record", False, in_words(error))


def _belongs(record: Record, board: BoardDefinition) -> Iterator[Finding]:
    words = board.misfits(record)
    yield Finding("board", not words, "; ".join(words) or "it answers the board's question")
    failed = [s.name for s in record.stages if s.status == "error"]
    whole = record.status == "complete" and not failed and not record.contradictions
    yield Finding("status", whole, ", ".join([record.status, *failed]))
    named = [f"{key}: {text[:80]}" for key, text in absolute_paths(record.model_dump(mode="json"))]
    yield Finding("paths", not named, "; ".join(named[:3]) or "none of anybody's machine")


def _pictures(run: StoredRun, ledger: Ledger) -> Iterator[Finding]:
    """The pictures are of this run's broken examples, at the distances that its verdicts hold.

    Whether they fool the model, `robustsuite verify` says.
    """
    promised = any(ref.role == "gallery" for ref in run.record.files)
    packed = run.gallery()
    if packed is None or not promised:
        same = promised == (packed is not None)
        yield Finding("gallery", same, "none" if same else "a gallery that the record does not name, or lacks")
        return
    shown = read_gallery(packed)
    wrong = [i for i in range(len(shown.stages)) if not _true(shown, i, run.record, ledger)]
    if shown.run_key != run.record.run_key:
        yield Finding("gallery", False, f"it is of run {shown.run_key}")
    detail = f"pictures {wrong[:5]} are not what the verdicts say" if wrong else f"{len(shown.stages)} pictures"
    yield Finding("gallery", not wrong, detail)


def _true(shown: Gallery, i: int, record: Record, ledger: Ledger) -> bool:
    position, n = int(shown.position[i]), record.request.data.n
    if position >= n or shown.label[i] != ledger.arrays["label"][position]:
        return False
    if shown.before[i] != ledger.part(CLEAN).predicted[position]:
        return False
    stages = [name for name in (shown.stages[i], REST + shown.stages[i]) if name in ledger.stages]
    parts = [part for part in map(ledger.part, stages) if part.outcome[position] == Outcome.BROKEN]
    if not parts or shown.after[i] != parts[0].predicted[position]:
        return False
    moved = _distance(shown.x_adv[i].astype(np.float64) - shown.x[i].astype(np.float64), record.request.threat.norm)
    stated = (float(shown.distance[i]), float(parts[0].distance[position]))
    return all(abs(moved - said) <= _ROUNDING * (1 + said) for said in stated)


def _distance(delta: np.ndarray, norm: str) -> float:
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    return float(np.linalg.norm(delta.reshape(-1), order))
