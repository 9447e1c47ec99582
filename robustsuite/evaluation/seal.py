"""Sealing: the record, whose every number follows from the ledger."""

import hashlib
from pathlib import Path

import torch

from robustsuite.errors import ContradictionError, IncompleteError
from robustsuite.evaluation.audit import contradictions
from robustsuite.evaluation.events import example_seconds, stage_events
from robustsuite.evaluation.finish import finish
from robustsuite.evaluation.ledger import LedgerStore
from robustsuite.evaluation.metrics import metrics, stage_results
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.stages import Bench
from robustsuite.results.certificates import SECONDS
from robustsuite.results.flags import UNRELIABLE
from robustsuite.results.ledger import StageLedger
from robustsuite.results.provenance import host, provenance
from robustsuite.results.schema import FileRef, Flag, Record, Request, canonical
from robustsuite.results.store import clean_temporaries, sha256_file, write_arrays, write_atomic, write_json


def seal(
    bench: Bench,
    store: LedgerStore,
    stages: list[Stage],
    request: Request,
    checks: list[Flag],
    *,
    skipped: dict[str, str],
    command: str,
    wall_seconds: float,
) -> Record:
    """Finish a run whose blocks are all there and write its record. Idempotent: a kill only repeats it."""
    clean_temporaries(store.run_dir)
    found = finish(bench, store, stages, request, checks, skipped)
    contradicted = contradictions(stages, found.ledger)
    results = stage_results(request, stages, found)
    status = "failed" if contradicted else "partial" if any(r.status == "error" for r in results) else "complete"
    _write_ledger(store.run_dir, found.ledger, bench, request)
    _write_seconds(store, found.ledger)
    events = stage_events(store.run_dir)
    record = Record(
        run_key=request.run_key,
        status=status,
        request=request,
        metrics=tuple(metrics(stages, found.ledger, bench.threat, request.model.draws)),
        stages=tuple(results),
        flags=tuple(found.flags),
        unreliable=any(f.raised and f.name in UNRELIABLE for f in found.flags),
        tail=found.tail,
        contradictions=tuple(contradicted),
        files=tuple(_files(store.run_dir)),
        provenance=provenance({"threads": request.threads, "slots": request.slots, "tf32": False, "dtype": "float32"}),
        host=host(
            command=command,
            device_name=_device_name(bench.model.device),
            stage_seconds={k: round(sum(e["seconds"] for e in v), 3) for k, v in events.items()},
            executed_forward=sum(int(e["forward"]) for v in events.values() for e in v),
            executed_backward=sum(int(e["backward"]) for v in events.values() for e in v),
            wall_seconds=round(wall_seconds, 3),
        ),
    ).sealed()
    write_json(store.run_dir / "record.json", record)
    return record


def failure(record: Record) -> None:
    """Raise what a sealed record says went wrong: a contradiction, or stages that did not finish."""
    if record.contradictions:
        first = record.contradictions[0]
        more = f" and {len(record.contradictions) - 1} more" if len(record.contradictions) > 1 else ""
        raise ContradictionError(
            f"stage '{first.certified_by}' certified example {first.example} (radius {first.radius:g}), but stage "
            f"'{first.broken_by}' broke it at distance {first.distance:g}{more}. One of the two is wrong; the evidence "
            f"is kept in run {record.run_key} (record.json, adversarials/), and the run cannot be ranked."
        )
    if record.status == "partial":
        bad = "; ".join(f"{s.name}: {s.reason} ({s.n_error} examples)" for s in record.stages if s.status == "error")
        raise IncompleteError(
            f"run {record.run_key} is partial, a stage failed: {bad}. The other stages are finished and kept; the "
            "same command tries the failed part again."
        )


def _write_ledger(run_dir: Path, ledger: dict[str, StageLedger], bench: Bench, request: Request) -> None:
    """All verdicts in one file, and an index over the adversarial examples."""
    arrays = {f"{name}/{key}": value for name, part in ledger.items() for key, value in part.arrays().items()}
    arrays |= {"id": bench.data.ids.numpy(), "label": bench.data.y.numpy()}
    write_arrays(run_dir / "verdicts.safetensors", arrays, {"run_key": request.run_key, "stages": list(ledger)})
    folder = run_dir / "adversarials"
    files = sorted(folder.glob("*/*.safetensors")) if folder.is_dir() else []
    index = {str(path.relative_to(folder)): sha256_file(path) for path in files}
    write_atomic(folder / "index.json", canonical(index))


def _files(run_dir: Path) -> list[FileRef]:
    roles = {"verdicts.safetensors": "verdicts", "adversarials/index.json": "adversarials"}
    out = []
    for path, role in roles.items():
        body = (run_dir / path).read_bytes()
        ref = {"path": path, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), "role": role}
        out.append(FileRef.model_validate(ref))
    return out


def _write_seconds(store: LedgerStore, ledger: dict[str, StageLedger]) -> None:
    """Seconds of every certificate, in a file that no hash covers."""
    found = example_seconds(store.run_dir, store.blocks.n)
    if seconds := {name: found[name] for name in ledger if name in found}:
        write_arrays(store.run_dir / SECONDS, seconds, {"stages": list(seconds)})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
