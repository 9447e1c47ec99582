"""Running one stage: only on what is still undecided, block by block, and no failure costs what is finished."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from robustsuite.attacks.base import Attack, Stepper
from robustsuite.certification.base import Certificates, Certifier
from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContractError, PrerequisiteError
from robustsuite.evaluation.engine import Engine, Finished
from robustsuite.evaluation.judge import Judge, Verdict
from robustsuite.evaluation.ledger import LedgerStore, Note, Outcome, StageLedger
from robustsuite.evaluation.progress import Progress
from robustsuite.evaluation.protocol import Stage
from robustsuite.models.classifier import Classifier, margins
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel


@dataclass
class Bench:
    """What every stage of a run works with."""

    model: Classifier
    data: Dataset
    threat: ThreatModel
    seed: int
    slots: int
    progress: Progress
    clean_logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.clean_logits = torch.zeros(len(self.data), self.model.num_classes)

    def rows(self, positions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, y, ids and clean logits of examples, on the model's device."""
        index = torch.as_tensor(positions, dtype=torch.long)
        tensors = self.data.x[index], self.data.y[index], self.data.ids[index], self.clean_logits[index]
        x, y, ids, logits = (t.to(self.model.device) for t in tensors)
        return x, y, ids, logits

    def judge(self) -> Judge:
        """The evaluator's verdict, at the run's batch shape."""
        return Judge(self.model, self.threat, Noise(self.seed, "judge"), self.slots)


class _Pending:
    """Blocks in the making: rows come in any order, a block is written when its last one has come."""

    def __init__(self, store: LedgerStore, stage: str, blocks: Iterable[int], eligible: np.ndarray, slots: int) -> None:
        self.store, self.stage, self.slots, self.guarantee = store, stage, slots, ""
        self.parts: dict[int, StageLedger] = {}
        self.open: dict[int, set[int]] = {}
        self.adversarials: dict[int, dict[int, np.ndarray]] = {}
        self.finished: dict[int, StageLedger] = {}
        for block in blocks:
            positions = store.blocks.positions(block)
            self.parts[block] = StageLedger.empty(len(positions))
            self.open[block] = {int(p) for p in positions if eligible[p]}
            self.adversarials[block] = {}
        for block in [b for b, waiting in self.open.items() if not waiting]:
            self._close(block)

    @property
    def todo(self) -> list[int]:
        return [p for block in sorted(self.open) for p in sorted(self.open[block])]

    def row(self, position: int) -> tuple[StageLedger, int]:
        block = position // self.store.blocks.size
        return self.parts[block], position - block * self.store.blocks.size

    def done(self, position: int, x_adv: np.ndarray | None = None) -> None:
        block = position // self.store.blocks.size
        if x_adv is not None:
            self.adversarials[block][position] = x_adv
        self.open[block].discard(position)
        if not self.open[block]:
            self._close(block)

    def fail(self, error: str) -> None:
        """Mark whatever is not finished as an error, and close its blocks."""
        for block in sorted(self.open):
            for position in self.open[block]:
                part, row = self.row(position)
                part.outcome[row] = Outcome.ERROR
            self._close(block, error)

    def _close(self, block: int, error: str = "") -> None:
        note = Note(error, self.guarantee, self.slots)
        self.store.write(self.stage, block, self.parts[block], self.adversarials.pop(block), note)
        self.finished[block] = self.parts.pop(block)
        self.open.pop(block)


def run_clean(bench: Bench, store: LedgerStore, blocks: list[int]) -> dict[int, StageLedger]:
    """Predict every example; a clean error is broken at distance 0."""
    n = len(bench.data)
    pending = _Pending(store, "clean", blocks, np.ones(n, bool), bench.slots)
    noise = Noise(bench.seed, "clean")
    todo = pending.todo
    bench.progress.start("clean", len(todo))
    for start in range(0, len(todo), bench.slots):
        chunk = todo[start : start + bench.slots]
        padded = chunk + chunk[:1] * (bench.slots - len(chunk))
        x, y, ids, _ = bench.rows(padded)
        predicted, logits = bench.model.decide(x, noise.at(ids))
        predicted = torch.where(torch.isfinite(logits).all(1), predicted, -1).cpu().numpy()
        margin = margins(logits, y).nan_to_num(0.0).cpu().numpy()
        values, labels = logits.float().cpu().numpy(), y.cpu().numpy()
        for i, position in enumerate(chunk):
            part, row = pending.row(position)
            if "logits" not in part.extra:
                part.extra["logits"] = np.zeros((len(part.outcome), values.shape[1]), np.float32)
            wrong = predicted[i] != labels[i]
            part.outcome[row] = Outcome.BROKEN if wrong else Outcome.SURVIVED
            part.margin[row], part.predicted[row], part.forward[row] = margin[i], predicted[i], bench.model.per_decision
            part.extra["logits"][row] = values[i]
            pending.done(position)
            bench.progress.advance(1, int(wrong), 0)
    bench.progress.end("clean", "")
    return pending.finished


def run_stage(
    bench: Bench, store: LedgerStore, stage: Stage, blocks: list[int], eligible: np.ndarray, prefix: str = ""
) -> dict[int, StageLedger]:
    """Run an attack or a certifier on the eligible examples of ``blocks``; returns the finished blocks.

    Whatever the plugin raises is kept in the blocks' notes, and its unfinished examples are marked as errors. Only
    what would hit every stage (a full disk, a missing prerequisite) stops the run.
    """
    name = prefix + stage.plan.name
    pending = _Pending(store, name, blocks, eligible, bench.slots)
    bench.progress.start(name, len(pending.todo))
    error = ""
    while pending.open:
        try:
            for position, x_adv in _work(bench, pending, stage):
                part, row = pending.row(position)
                hit = part.outcome[row]
                pending.done(position, x_adv)
                bench.progress.advance(1, int(hit == Outcome.BROKEN), int(hit == Outcome.CERTIFIED))
        except PrerequisiteError:
            raise
        except torch.OutOfMemoryError as problem:
            if pending.slots == 1:
                error = f"out of memory at one slot: {problem}"
                pending.fail(error)
            pending.slots = max(1, pending.slots // 2)
            torch.cuda.empty_cache()
        except Exception as problem:  # a plugin may raise anything; the rest of the run goes on
            error = f"{type(problem).__name__}: {problem}".split("\n")[0]
            pending.fail(error)
    bench.progress.end(name, error)
    return pending.finished


def _work(bench: Bench, pending: _Pending, stage: Stage) -> Iterator[tuple[int, np.ndarray | None]]:
    """Fill the rows of finished examples and yield their positions, with the adversarial example where there is one."""
    noise = Noise(bench.seed, f"stage/{stage.plan.name}")
    plugin = stage.plugin
    if isinstance(plugin, Certifier):
        for positions in _by_block(pending):
            yield from _certify(bench, pending, plugin, noise, positions)
    elif isinstance(plugin, Stepper):
        engine = Engine(bench.model, plugin, bench.threat, noise, bench.judge(), slots=pending.slots)
        for finished in engine.run(pending.todo, bench.rows):
            forward, backward = (c * finished.evaluations * bench.model.per_evaluation for c in plugin.cost)
            yield finished.position, _book(pending, finished, forward, backward)
    else:
        for positions in _by_block(pending):
            yield from _attack(bench, pending, plugin, noise, positions)


def _by_block(pending: _Pending) -> list[list[int]]:
    return [sorted(pending.open[block]) for block in sorted(pending.open)]


def _attack(
    bench: Bench, pending: _Pending, attack: Attack, noise: Noise, positions: list[int]
) -> Iterator[tuple[int, np.ndarray | None]]:
    """A plugin with the plain door: one call a block, every candidate judged."""
    x, y, ids, _ = bench.rows(positions)
    before = (bench.model.passes.forward, bench.model.passes.backward)
    x_adv = attack.run(bench.model, x.clone(), y.clone(), bench.threat, noise.at(ids))
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        got = list(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise ContractError(f"the attack must return x_adv of shape {list(x.shape)}, got {got}")
    forward = (bench.model.passes.forward - before[0]) // len(positions)
    backward = (bench.model.passes.backward - before[1]) // len(positions)
    changed = (x_adv.to(x) != x).flatten(1).any(1).tolist()
    for position, verdict, moved in zip(positions, bench.judge()(x, y, ids, x_adv), changed, strict=True):
        # An untouched image claims nothing. One that moved and fools nobody is an honest failure; one that left the
        # ball, or is not a number, was refused.
        refused = int(moved and not verdict.broken and verdict.reason != "the model is not fooled")
        finished = Finished(position, verdict if verdict.broken else None, 0, 0, refused)
        yield position, _book(pending, finished, forward, backward)


def _book(pending: _Pending, finished: Finished, forward: int, backward: int) -> np.ndarray | None:
    part, row = pending.row(finished.position)
    part.forward[row], part.backward[row], part.refused[row] = forward, backward, finished.refused
    verdict: Verdict | None = finished.verdict
    if verdict is None:
        part.outcome[row] = Outcome.SURVIVED
        return None
    part.outcome[row] = Outcome.BROKEN
    part.distance[row], part.margin[row] = verdict.distance, verdict.margin
    part.predicted[row], part.lane[row] = verdict.predicted, finished.lane
    return verdict.x_adv.numpy()


def _certify(
    bench: Bench, pending: _Pending, certifier: Certifier, noise: Noise, positions: list[int]
) -> Iterator[tuple[int, None]]:
    x, y, ids, _ = bench.rows(positions)
    certificates = certifier.certify(bench.model, x, y, bench.threat, noise.at(ids))
    _check_certificates(certificates, len(positions), bench.model.num_classes)
    pending.guarantee = certificates.guarantee
    radius, predicted = certificates.radius.cpu().numpy(), certificates.predicted.cpu().numpy()
    labels = y.cpu().numpy()
    forward, backward = certifier.cost
    for i, position in enumerate(positions):
        part, row = pending.row(position)
        proved = predicted[i] == labels[i] and radius[i] > 0 and radius[i] >= bench.threat.radius
        part.outcome[row] = Outcome.CERTIFIED if proved else Outcome.SURVIVED
        part.radius[row], part.predicted[row] = radius[i], predicted[i]
        part.forward[row], part.backward[row] = forward, backward
        yield position, None


def _check_certificates(certificates: Certificates, n: int, num_classes: int) -> None:
    radius, predicted = certificates.radius, certificates.predicted
    if radius.shape != (n,) or predicted.shape != (n,):
        raise ContractError(
            f"certificates must hold radius [{n}] and predicted [{n}], got {list(radius.shape)} and "
            f"{list(predicted.shape)}"
        )
    if radius.dtype != torch.float64 or bool((~torch.isfinite(radius) | (radius < 0)).any()):
        raise ContractError("certified radii must be finite float64 numbers >= 0")
    if bool(((predicted < -1) | (predicted >= num_classes)).any()):
        raise ContractError(f"certified classes must lie in [-1, {num_classes})")
