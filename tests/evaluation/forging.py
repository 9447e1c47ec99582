"""What a forger would do to a sealed run, and what publishing makes of one."""

import hashlib
import json
import lzma
import shutil
from pathlib import Path

import numpy as np

from robustsuite.results.ledger import Outcome, read_ledger
from robustsuite.results.schema import Record
from robustsuite.results.statistics import metric
from robustsuite.results.store import canonical, read_arrays, sha256_file, write_arrays, write_json


def record_of(run_dir: Path) -> Record:
    """The record as it lies there, unchecked."""
    return Record.model_validate_json((run_dir / "record.json").read_text())


def reseal(run_dir: Path, **changes) -> None:
    """Make all hashes fit again."""
    folder = run_dir / "adversarials"
    index = {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.glob("*/*.safetensors"))}
    (folder / "index.json").write_bytes(canonical(index))
    record = record_of(run_dir).model_copy(update=changes)
    files = []
    for ref in record.files:
        body = (run_dir / ref.path).read_bytes()
        files.append(ref.model_copy(update={"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}))
    write_json(run_dir / "record.json", record.model_copy(update={"files": tuple(files)}).sealed())


def change_arrays(path: Path, change) -> None:
    """Edit an array file and fit its checksum."""
    arrays, meta = read_arrays(path)
    arrays = {k: v.copy() for k, v in arrays.items()}
    arrays = change(arrays) or arrays
    write_arrays(path, arrays, meta)


def unbreak(run_dir: Path, stage: str, positions: list[int]) -> None:
    """Claim that examples have survived: verdicts, evidence, counts and metrics all agree afterwards."""

    order = [s.name for s in record_of(run_dir).request.protocol.stages]
    later = [name for name in order[order.index(stage) + 1 :] if name in read_ledger(run_dir).stages]

    def survive(arrays):
        for name in (stage, *later):  # what a stage lets go, the later ones see
            arrays[f"{name}/outcome"][positions] = Outcome.SURVIVED
        arrays[f"{stage}/distance"][positions] = 0.0

    change_arrays(run_dir / "verdicts.safetensors", survive)
    for path in (run_dir / "adversarials" / stage).glob("*.safetensors"):
        keep = ~np.isin(read_arrays(path)[0]["position"], positions)
        if keep.any():
            change_arrays(path, lambda arrays, keep=keep: {k: v[keep] for k, v in arrays.items()})
        else:
            path.unlink()
    record, ledger = record_of(run_dir), read_ledger(run_dir)
    n = record.request.data.n
    robust = metric("robust_accuracy", n - int(ledger.any(Outcome.BROKEN).sum()), n)
    stages = [
        s.model_copy(
            update={
                "n_broken": int((ledger.outcome(s.name) == Outcome.BROKEN).sum()),
                "n_in": s.n_in + len(positions) * (s.name in later),
            }
        )
        for s in record.stages
    ]
    metrics = [robust if m.name == robust.name else m for m in record.metrics]
    reseal(run_dir, metrics=tuple(metrics), stages=tuple(stages))


def move_elsewhere(run_dir: Path) -> None:
    """Claim that another machine made the run."""
    host = record_of(run_dir).host
    reseal(run_dir, host=host.model_copy(update={"hostname_sha256": "0" * 64}))


def publish(run_dir: Path, root: Path, board: str, gallery: bytes | None = None) -> Path:
    """The files of a published run; returns the record's."""
    record = record_of(run_dir)
    folder = root / "runs" / board
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.run_key}.json"
    shutil.copy(run_dir / "record.json", path)
    path.with_suffix(".verdicts.xz").write_bytes(lzma.compress((run_dir / "verdicts.safetensors").read_bytes()))
    if gallery is not None:
        path.with_suffix(".gallery.xz").write_bytes(gallery)
    return path


def edit_json(path: Path, change) -> None:
    """Edit a JSON file."""
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
