"""Sealing: the audit, the contradictions, and the record whose every number follows from the ledger."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from robustsuite.certification.base import Certifier
from robustsuite.errors import ContradictionError, IncompleteError
from robustsuite.evaluation.checks import UNRELIABLE
from robustsuite.evaluation.ledger import Blocks, LedgerStore, Note, Outcome, StageLedger
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.stages import Bench, run_stage
from robustsuite.noise import Noise
from robustsuite.results.provenance import host, provenance
from robustsuite.results.schema import Contradiction, FileRef, Flag, Metric, Record, Request, StageResult, canonical
from robustsuite.results.statistics import metric
from robustsuite.results.store import clean_temporaries, sha256_file, write_arrays, write_atomic, write_json

AUDIT_SHARE, AUDIT_LEAST = 0.05, 20
_CLEAN = "clean"


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
    """Audit, merge and write the record of a run whose blocks are all there. Idempotent: a kill only repeats it."""
    clean_temporaries(store.run_dir)
    merged, notes = _merge(store, [_CLEAN, *[s.plan.name for s in stages]])
    bench.clean_logits = torch.from_numpy(merged[_CLEAN].extra["logits"].copy())
    audits, audit_errors = _audit(bench, store, stages, merged)
    ledger = merged | audits
    notes |= {name: replace(notes[name], error=error) for name, error in audit_errors.items()}
    contradictions = _contradictions(stages, ledger)
    results = _results(request, ledger, notes, skipped)
    flags = [*checks, *_suspicions(stages, ledger)]
    status = "failed" if contradictions else "partial" if any(r.status == "error" for r in results) else "complete"
    _write_ledger(store.run_dir, ledger, bench, request)
    events = _events(store.run_dir)
    record = Record(
        run_key=request.run_key,
        status=status,
        request=request,
        metrics=tuple(_metrics(stages, ledger)),
        stages=tuple(results),
        flags=tuple(flags),
        unreliable=any(f.raised and f.name in UNRELIABLE for f in flags),
        contradictions=tuple(contradictions),
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


def _merge(store: LedgerStore, names: list[str]) -> tuple[dict[str, StageLedger], dict[str, Note]]:
    merged, notes = {}, {}
    for name in names:
        whole = StageLedger.empty(store.blocks.n)
        for block in range(store.blocks.count):
            found = store.read(name, block)
            if found is None:
                raise IncompleteError(f"block {block} of stage '{name}' is missing or damaged; run the command again.")
            whole.put(store.blocks.positions(block), found[0])
            notes[name] = _joined(notes.get(name), found[1])
        merged[name] = whole
    return merged, notes


def _joined(a: Note | None, b: Note) -> Note:
    """One note for a stage from those of its blocks."""
    if a is None:
        return b
    return Note(a.error or b.error, a.guarantee or b.guarantee, min(a.slots, b.slots))


def _audit(
    bench: Bench, store: LedgerStore, stages: list[Stage], ledger: dict[str, StageLedger]
) -> tuple[dict[str, StageLedger], dict[str, str]]:
    """Attack a keyed sample of the certified examples, and try to certify one of the broken.

    Certify-first would otherwise hide an unsound certifier, and attack-first an unsound one that comes last.
    """
    broken, certified = _any(ledger, Outcome.BROKEN), _any(ledger, Outcome.CERTIFIED)
    broken &= ledger[_CLEAN].outcome != Outcome.BROKEN  # a clean error cannot be certified by definition
    samples = {"attack": _sample(bench, certified), "certifier": _sample(bench, broken)}
    whole = LedgerStore(store.run_dir, Blocks(store.blocks.n, store.blocks.n))
    out, errors = {}, {}
    for stage in stages:
        name = f"audit-{stage.plan.name}"
        sample = samples[stage.plan.kind]
        if not sample.any():
            continue
        found = whole.read(name, 0)
        if found is None:
            run_stage(bench, whole, stage, [0], sample, prefix="audit-")
            found = whole.read(name, 0)
            assert found is not None
        out[name] = found[0]
        if found[1].error:
            errors[stage.plan.name] = found[1].error
        if stage.plan.kind == "attack":
            samples["attack"] = sample & (found[0].outcome != Outcome.BROKEN)
    return out, errors


def _sample(bench: Bench, among: np.ndarray) -> np.ndarray:
    """5 % of the examples, at least 20, chosen by their keyed numbers."""
    chosen = np.zeros(len(among), bool)
    candidates = np.flatnonzero(among)
    if len(candidates):
        count = min(len(candidates), max(AUDIT_LEAST, round(AUDIT_SHARE * len(candidates))))
        ids = bench.data.ids[torch.from_numpy(candidates)]
        keys = Noise(bench.seed, "audit").at(ids).bits(1)[:, 0].numpy()
        chosen[candidates[np.lexsort((candidates, keys))[:count]]] = True
    return chosen


def _any(ledger: dict[str, StageLedger], outcome: Outcome) -> np.ndarray:
    return np.logical_or.reduce([part.outcome == outcome for part in ledger.values()])


def _contradictions(stages: list[Stage], ledger: dict[str, StageLedger]) -> list[Contradiction]:
    found = []
    for c in [s for s in stages if isinstance(s.plugin, Certifier)]:
        for certifying in (c.plan.name, f"audit-{c.plan.name}"):
            for breaking, part in ledger.items():
                if certifying not in ledger:
                    continue
                proof = ledger[certifying]
                both = (proof.outcome == Outcome.CERTIFIED) & (part.outcome == Outcome.BROKEN)
                for i in np.flatnonzero(both):
                    found.append(
                        Contradiction(
                            example=int(i),
                            certified_by=certifying,
                            radius=float(proof.radius[i]),
                            broken_by=breaking,
                            distance=float(part.distance[i]),
                        )
                    )
    return found


def _results(
    request: Request, ledger: dict[str, StageLedger], notes: dict[str, Note], skipped: dict[str, str]
) -> list[StageResult]:
    """What every stage of the protocol did, the clean pass first."""
    out = [_with_audit(_result(_CLEAN, _CLEAN, _CLEAN, ledger[_CLEAN], notes[_CLEAN]), ledger)]
    for plan in request.protocol.stages:
        if plan.name in skipped:
            reason = skipped[plan.name]
            out.append(StageResult(name=plan.name, kind=plan.kind, plugin=plan.plugin, status="skipped", reason=reason))
        else:
            result = _result(plan.name, plan.kind, plan.plugin, ledger[plan.name], notes[plan.name])
            out.append(_with_audit(result, ledger))
    return out


def _result(name: str, kind: str, plugin: str, part: StageLedger, note: Note) -> StageResult:
    counts = {o: int((part.outcome == o).sum()) for o in Outcome}
    body = {
        "name": name,
        "kind": kind,
        "plugin": plugin,
        "status": "error" if counts[Outcome.ERROR] else "done",
        "reason": note.error,
        "n_in": len(part.outcome) - counts[Outcome.SKIPPED],
        "n_broken": counts[Outcome.BROKEN],
        "n_certified": counts[Outcome.CERTIFIED],
        "n_error": counts[Outcome.ERROR],
        "n_refused": int(part.refused.sum()),
        "forward": int(part.forward.sum()),
        "backward": int(part.backward.sum()),
        "guarantee": note.guarantee,
        "slots": note.slots,
    }
    return StageResult.model_validate(body)


def _with_audit(result: StageResult, ledger: dict[str, StageLedger]) -> StageResult:
    part = ledger.get(f"audit-{result.name}")
    if part is None:
        return result
    errors = int((part.outcome == Outcome.ERROR).sum())
    return result.model_copy(
        update={
            "n_audited": int((part.outcome != Outcome.SKIPPED).sum()),
            "n_error": result.n_error + errors,
            "status": "error" if errors else result.status,
            "forward": result.forward + int(part.forward.sum()),
            "backward": result.backward + int(part.backward.sum()),
        }
    )


def _metrics(stages: list[Stage], ledger: dict[str, StageLedger]) -> list[Metric]:
    clean = ledger[_CLEAN].outcome != Outcome.BROKEN
    n = len(clean)
    out = [metric("clean_accuracy", int(clean.sum()), n)]
    if any(s.plan.kind == "attack" for s in stages):
        out.append(metric("robust_accuracy", n - int(_any(ledger, Outcome.BROKEN).sum()), n))
    if any(s.plan.kind == "certifier" for s in stages):
        out.append(metric("certified_accuracy", int(_any(ledger, Outcome.CERTIFIED).sum()), n))
    return out


def _suspicions(stages: list[Stage], ledger: dict[str, StageLedger]) -> list[Flag]:
    """What the outcomes themselves say about the attacks."""
    access = {s.plan.name: s.entry.facts.get("access", "white-box") for s in stages if s.plan.kind == "attack"}
    white = [name for name, kind in access.items() if kind == "white-box"]
    score = [name for name, kind in access.items() if kind != "white-box"]
    if not white or not score:
        return []
    n = len(ledger[_CLEAN].outcome)
    extra = sum(int((ledger[name].outcome == Outcome.BROKEN).sum()) for name in score)
    # AutoAttack warns above 0.2 %; a handful of examples is no evidence on a small set.
    raised = extra > max(2, 0.002 * n)
    return [
        Flag(
            name="score_beats_white_box",
            raised=raised,
            evidence=f"{', '.join(score)} broke {extra} of {n} examples that {', '.join(white)} had left",
            remedy="Gradients may be masked: attack a surrogate or use a backward-pass substitute." if raised else "",
        )
    ]


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


def _events(run_dir: Path) -> dict[str, list[dict[str, float]]]:
    out: dict[str, list[dict[str, float]]] = {}
    path = run_dir / "events.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed process
            continue
        out.setdefault(event["stage"], []).append(event)
    return out


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
