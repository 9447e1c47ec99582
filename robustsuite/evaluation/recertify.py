"""Proving certificates again: whole blocks of a run, so that every batch is the one that was certified before."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.evaluation.evaluator import torch_threads
from robustsuite.evaluation.ledger import Blocks, LedgerStore
from robustsuite.evaluation.protocol import Stage, make
from robustsuite.evaluation.stages import Bench, run_stage
from robustsuite.evaluation.verify import bench_of
from robustsuite.models.classifier import Classifier
from robustsuite.noise import Noise
from robustsuite.registry import CERTIFIERS
from robustsuite.results.arithmetic import Finding
from robustsuite.results.ledger import Ledger, Outcome, StageLedger
from robustsuite.results.schema import Record, StagePlan
from robustsuite.results.stored import find_run

# On another machine the last bits move a few votes and the steps of a bisection; nothing moves on the same one.
_TOLERANCE = 0.01


def recertify(path: Path, model: Classifier, data: Dataset, count: int) -> list[Finding]:
    """Run every certifier of a run again until ``count`` of its certificates (if it has so many) are proved again.

    The record's own hash chooses the blocks, so that nobody could choose what is looked at. A radius may be 1 % below
    the stored one. Raises `InputError` as `find_run` does; a certifier that raises is a finding.
    """
    run = find_run(path)
    record, ledger, bench = run.record, run.ledger(), bench_of(run.record, model, data)
    ran = {s.name for s in record.stages if s.status != "skipped"}
    plans = [s for s in record.request.protocol.stages if s.kind == "certifier" and s.name in ran]
    findings = [_consistent(plan.name, ledger, bench.threat.radius) for plan in plans]
    with torch_threads(record.request.threads):
        return findings + [f for plan in plans for f in _again(bench, record, ledger, plan, count)]


def _consistent(name: str, ledger: Ledger, eps: float) -> Finding:
    """Whether all that is called certified has a radius of eps for the label."""
    part = ledger.part(name)
    claimed = part.outcome == Outcome.CERTIFIED
    good = (part.radius >= eps) & (part.predicted == ledger.arrays["label"])
    bad = np.flatnonzero(claimed & ~good).tolist()
    detail = f"not for the label at eps: {bad[:5]}" if bad else f"{int(claimed.sum())} certified, all at eps or beyond"
    return Finding(f"{name} radii", not bad, detail)


def _again(bench: Bench, record: Record, ledger: Ledger, plan: StagePlan, count: int) -> Iterator[Finding]:
    part = ledger.part(plan.name)
    claims = (part.radius > 0) & (part.predicted >= 0)
    if not claims.any() or count < 1:
        return
    what = f"{plan.name} again"
    if plan.plugin not in CERTIFIERS:
        files = ", ".join(record.request.plugins) or "none"
        yield Finding(what, False, f"no certifier '{plan.plugin}' here; give --plugin FILE (the run's: {files})")
        return
    entry = CERTIFIERS.get(plan.plugin)
    blocks = Blocks(record.request.data.n, record.request.block_size)
    chosen = choose_blocks(blocks, claims, count, f"recertify/{record.content_sha256}/{plan.name}")
    seen = np.zeros(blocks.n, bool)
    for block in chosen:
        seen[blocks.positions(block)] = True
    fresh, error = _run(bench, Stage(plan, entry, make(entry, plan.params)), blocks, chosen, part)
    if error:
        yield Finding(what, False, error)
        return
    slack = _TOLERANCE * np.maximum(part.radius, bench.threat.radius)
    # On another machine a vote may move, and with it the moment at which a count that stops early does.
    sampled = entry.facts.get("kind") == "probabilistic"
    owed = np.minimum(part.radius, bench.threat.radius) if sampled else part.radius
    held = (fresh.predicted == part.predicted) & (fresh.radius >= owed - slack)
    total, bad = int((claims & seen).sum()), np.flatnonzero(claims & seen & ~held).tolist()
    lost = float((part.radius - fresh.radius)[claims & seen & held].max(initial=0.0))
    detail = f"{total - len(bad)} of {total} certificates ({len(chosen)} of {blocks.count} blocks) proved again"
    yield Finding(what, not bad, f"{detail}; not: {bad[:5]}" if bad else f"{detail}, largest loss {lost:.2g}")


def choose_blocks(blocks: Blocks, among: np.ndarray, count: int, purpose: str) -> list[int]:
    """Blocks by keyed numbers until they hold ``count`` of the examples in ``among`` (bool ``[N]``), ascending."""
    held = [int(among[blocks.positions(block)].sum()) for block in range(blocks.count)]
    keys = Noise(0, purpose).at(torch.arange(blocks.count)).bits(1)[:, 0].numpy()
    chosen, found = [], 0
    for block in np.lexsort((np.arange(blocks.count), keys)).tolist():
        if found < count and held[block]:
            chosen.append(block)
            found += held[block]
    return sorted(chosen)


def _run(bench: Bench, stage: Stage, blocks: Blocks, chosen: list[int], before: StageLedger) -> tuple[StageLedger, str]:
    """The stage on what it saw before in the chosen blocks, and what it raised."""
    whole = StageLedger.empty(blocks.n)
    with tempfile.TemporaryDirectory() as scratch:
        store = LedgerStore(Path(scratch), blocks)
        eligible = before.outcome != Outcome.SKIPPED
        for block, part in run_stage(bench, store, stage, chosen, eligible).items():
            whole.put(blocks.positions(block), part)
        found = (store.read(stage.name, block) for block in chosen)
        return whole, next((f[1].error for f in found if f and f[1].error), "")
