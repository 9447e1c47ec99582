"""Re-checking a run from what it stored: no attack is run again, and nothing that the record says is believed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.errors import VerificationError
from robustsuite.evaluation.agreement import PREDICTIONS, Allowance, allowance
from robustsuite.evaluation.evaluator import torch_threads
from robustsuite.evaluation.gallery import check_gallery
from robustsuite.evaluation.judge import Judge, Verdict
from robustsuite.evaluation.ledger import Blocks, LedgerStore
from robustsuite.evaluation.progress import Silent
from robustsuite.evaluation.stages import Bench
from robustsuite.evaluation.verdicts import read_points, recount
from robustsuite.models.classifier import Classifier
from robustsuite.noise import Noise
from robustsuite.results.arithmetic import Finding
from robustsuite.results.ledger import CLEAN, OVERLAP, VERDICT, Ledger, Outcome
from robustsuite.results.schema import Record
from robustsuite.results.store import read_arrays
from robustsuite.results.stored import StoredRun, check_stored, find_run
from robustsuite.threat import ThreatModel

_NEAR = 1e-3  # of the largest logit: far more than the last bits of a float32 network move it
_NOT_FOOLED = "the model is not fooled"


def verify(path: Path, model: Classifier, data: Dataset, weights_sha256: str) -> tuple[Record, list[Finding]]:
    """Check a run (its directory, its record, or a published record) against a freshly loaded model and data.

    Files and hashes; the arithmetic of every metric; the weights and the data; the clean predictions; and every
    stored adversarial example: inside ball and box, and misclassified. On the machine that made the run all of it must
    hold to the bit. Elsewhere a few predictions may differ, as many as `PREDICTIONS` allows: clean ones at near ties,
    and adversarial examples that fool nobody here, which only makes the run's claim smaller.
    """
    run = find_run(path)
    record, findings = run.record, check_stored(run)
    findings += _identity(record, data, weights_sha256)
    if not all(f.ok for f in findings):
        return record, findings
    ledger, allowed = run.ledger(), allowance(record, model.device, PREDICTIONS)
    with torch_threads(record.request.threads):
        bench = bench_of(record, model, data)
        findings.append(_votes(bench, ledger, allowed) if bench.votes else _clean(bench, ledger, allowed))
        if run.published:
            findings.append(Finding("adversarial examples", True, "not published; levels 2 and 3 attack again"))
            findings += check_gallery(run, ledger, bench)
            return record, findings
        findings += _adversarials(run, ledger, bench, allowed)
        if VERDICT in ledger.stages:
            findings.append(_verdicts(run, ledger, bench, allowed))
    return record, findings


def require(findings: list[Finding]) -> None:
    """Raise `VerificationError` naming what did not hold."""
    bad = [f for f in findings if not f.ok]
    if bad:
        raise VerificationError("; ".join(f"{f.name}: {f.detail}" for f in bad))


def bench_of(record: Record, model: Classifier, data: Dataset) -> Bench:
    """What a record's evaluator worked with, as far as nothing is attacked."""
    threat = ThreatModel.parse(f"{record.request.threat.norm}:{record.request.threat.eps}")
    return Bench(model, data, threat, record.request.seed, record.request.slots, Silent())


def _identity(record: Record, data: Dataset, weights_sha256: str) -> Iterator[Finding]:
    for name, want, got in (
        ("weights", record.request.model.weights_sha256, weights_sha256),
        ("data", record.request.data.fingerprint, data.fingerprint),
    ):
        ok = want == got
        detail = f"sha256 {got[:12]}" if ok else f"the run's sha256 is {want[:12]}, this one's {got[:12]}"
        yield Finding(name, ok, detail)


def _clean(bench: Bench, ledger: Ledger, allowed: Allowance) -> Finding:
    """The clean predictions; one that differs must be a near tie."""
    slots, noise, n = bench.slots, Noise(bench.seed, CLEAN), len(bench.data)
    predicted, near = [], []
    for start in range(0, n, slots):
        rows = list(range(start, min(start + slots, n)))
        x, _, ids, _ = bench.rows(rows + rows[:1] * (slots - len(rows)))
        labels, logits = bench.model.decide(x, noise.at(ids))
        labels = torch.where(torch.isfinite(logits).all(1), labels, -1)
        first, second = logits.topk(2, 1).values.unbind(1)
        predicted.append(labels[: len(rows)].cpu())
        near.append((first - second <= _NEAR * (1 + logits.abs().amax(1)))[: len(rows)].cpu())
    flipped = torch.cat(predicted).numpy() != ledger.arrays[f"{CLEAN}/predicted"]
    flips, far = int(flipped.sum()), int((flipped & ~torch.cat(near).numpy()).sum())
    # The answer of a sampling classifier hangs on votes, whose ties the logits do not show.
    ok = flips <= allowed.most(n) and (far == 0 or bench.model.facts.randomized)
    return Finding("clean predictions", ok, f"{n - flips} of {n} reproduced{_excused(flips, allowed, n)}")


def _votes(bench: Bench, ledger: Ledger, allowed: Allowance) -> Finding:
    """The clean votes of a randomised model."""
    n, slots, jury = len(bench.data), bench.slots, bench.jury(CLEAN)
    batches = [bench.rows(range(start, min(start + slots, n))) for start in range(0, n, slots)]
    wrong = torch.cat([jury.poll(x, y, ids).wrong.cpu() for x, y, ids, _ in batches]).numpy()
    return _recounted("clean predictions", "the votes on {} of {}", wrong, ledger, CLEAN, jury.random.draws, allowed)


def _verdicts(run: StoredRun, ledger: Ledger, bench: Bench, allowed: Allowance) -> Finding:
    """The votes of a randomised model on the strongest points."""
    store = LedgerStore(run.folder, Blocks(run.record.request.data.n, run.record.request.block_size))
    again = [
        recount(bench, store.blocks.positions(block), read_points(store.adversarials_path(VERDICT, block)))
        for block in range(store.blocks.count)
    ]
    wrong, draws = np.concatenate([part.extra["wrong"] for part in again]), bench.jury(VERDICT).random.draws
    return _recounted(VERDICT, "the votes on {} of {} points", wrong, ledger, VERDICT, draws, allowed)


def _recounted(
    name: str, what: str, wrong: np.ndarray, ledger: Ledger, stage: str, draws: int, allowed: Allowance
) -> Finding:
    """Wrong draws counted again; single draws are what may differ."""
    moved = np.abs(wrong - ledger.arrays[f"{stage}/wrong"])
    n, flips, total = len(wrong), int((moved > 0).sum()), int(moved.sum())
    ok = total <= allowed.most(n * draws)
    return Finding(name, ok, f"{what.format(n - flips, n)} reproduced{_excused(total, allowed, n * draws)}")


def _excused(count: int, allowed: Allowance, n: int) -> str:
    if not count:
        return ""
    return f"; {count} of {n} answers differ, up to {allowed.most(n)} may here" if allowed.rate else ""


def _adversarials(run: StoredRun, ledger: Ledger, bench: Bench, allowed: Allowance) -> Iterator[Finding]:
    judge = bench.judge()
    for stage in ledger.stages:
        if stage in (CLEAN, VERDICT) or stage.startswith(OVERLAP):
            continue
        broken = np.flatnonzero(ledger.outcome(stage) == Outcome.BROKEN)
        found = _judge_stage(run.folder, stage, judge, bench)
        if not found and not len(broken):
            continue
        missing = sorted(set(broken.tolist()) - set(found))
        failed = [p for p, verdict in found.items() if not verdict.broken]
        at_edge = [p for p in failed if found[p].reason == _NOT_FOOLED]
        excused = at_edge if len(at_edge) <= allowed.most(len(broken)) else []
        detail = f"{len(found) - len(failed)} of {len(broken)} adversarial examples hold"
        detail += _excused(len(excused), allowed, len(broken))
        if bad := sorted(set(failed) - set(excused)):
            detail += f"; failed: {bad[:5]}"
        if missing:
            detail += f"; missing: {missing[:5]}"
        if denied := sorted(p for p in set(found) - set(broken.tolist()) if found[p].broken):
            detail += f"; broken, though the ledger says otherwise: {denied[:5]}"
        yield Finding(stage, not bad and not missing and not denied, detail)


def _judge_stage(folder: Path, stage: str, judge: Judge, bench: Bench) -> dict[int, Verdict]:
    """The verdict on every stored adversarial example of a stage, by position."""
    found: dict[int, Verdict] = {}
    for path in sorted((folder / "adversarials" / stage).glob("*.safetensors")):
        arrays, _ = read_arrays(path)
        positions = arrays["position"].tolist()
        x, y, ids, _ = bench.rows(positions)
        x_adv = torch.from_numpy(arrays["x_adv"].copy()).to(bench.model.device)
        # Taken as they are: a stored example that needs tidying is not the one that was judged.
        found |= dict(zip(positions, judge.exact(x, y, ids, x_adv), strict=True))
    return found
