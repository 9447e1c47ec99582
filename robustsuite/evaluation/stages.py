"""Running one stage: only on what is still undecided, block by block, and no failure costs what is finished.

A model that draws as it predicts draws for a whole pass at once. Each of its blocks is therefore run for itself and
with a stream of its own, so that what an example meets depends on its block alone, whatever was done before or is done
elsewhere; another order of the data is another run.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from robustsuite.attacks.base import Attack, Stepper
from robustsuite.certification.base import Certificates, Certifier
from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContractError, PrerequisiteError
from robustsuite.evaluation.engine import Engine, Finished, VotingEngine
from robustsuite.evaluation.events import note
from robustsuite.evaluation.judge import Judge, Jury, Poll
from robustsuite.evaluation.ledger import LedgerStore
from robustsuite.evaluation.pending import Pending, Shares
from robustsuite.evaluation.progress import Progress
from robustsuite.evaluation.protocol import Stage
from robustsuite.models.classifier import Classifier, margins
from robustsuite.models.precision import Precision
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.noise import Noise
from robustsuite.results.ledger import Outcome, StageLedger
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
    precision: Precision = "float32"
    channels_last: bool = False
    clean_logits: Tensor = field(init=False)
    attacked: Classifier = field(init=False)
    """The model as attacks see it; all else is `model`'s."""

    def __post_init__(self) -> None:
        self.attacked = self.model.attacking(self.precision, channels_last=self.channels_last)
        self.clean_logits = torch.zeros(len(self.data), self.model.num_classes)

    @property
    def votes(self) -> bool:
        """Whether keyed draws of the model are counted for every verdict."""
        return isinstance(self.model, RandomizedClassifier)

    def rows(self, positions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, y, ids and clean logits of examples, on the model's device."""
        index = torch.as_tensor(positions, dtype=torch.long)
        tensors = self.data.x[index], self.data.y[index], self.data.ids[index], self.clean_logits[index]
        x, y, ids, logits = (t.to(self.model.device) for t in tensors)
        return x, y, ids, logits

    def judge(self) -> Judge:
        """The evaluator's verdict, at the run's batch shape."""
        if self.votes:
            return self.jury("judge")
        return Judge(self.model, self.threat, Noise(self.seed, "judge"), self.slots)

    def jury(self, purpose: str) -> Jury:
        """The votes of a randomised model, with draws of their own for every purpose."""
        assert isinstance(self.model, RandomizedClassifier)
        return Jury(self.model, self.threat, Noise(self.seed, purpose), self.slots, self.data.ids)


def run_clean(bench: Bench, store: LedgerStore, blocks: list[int]) -> dict[int, StageLedger]:
    """Predict every example; a clean error is broken at distance 0 (of a randomised model: where most draws err)."""
    pending = Pending(store, "clean", blocks, np.ones(len(bench.data), bool), bench.slots, bench.votes)
    todo = pending.todo
    bench.progress.start("clean", len(todo))
    cut = [todo[start : start + bench.slots] for start in range(0, len(todo), bench.slots)]
    for positions in pending.by_block if bench.votes else cut:
        for position, wrong in _clean(bench, pending, positions):
            pending.done(position)
            bench.progress.advance(1, int(wrong), 0)
    bench.progress.end("clean", "")
    return pending.finished


def _clean(bench: Bench, pending: Pending, positions: list[int]) -> Iterator[tuple[int, bool]]:
    """Fill the rows of a batch and yield their positions, and whether the model is wrong."""
    answers = _votes(bench, positions) if bench.votes else _decisions(bench, positions)
    predicted = torch.where(torch.isfinite(answers.logits).all(1), answers.predicted, -1).cpu().numpy()
    y = bench.data.y[torch.as_tensor(positions)]
    values = answers.logits.float().cpu()
    margin, labels = margins(values, y).nan_to_num(0.0).numpy(), y.numpy()
    for i, position in enumerate(positions):
        part, row = pending.row(position)
        if "logits" not in part.extra:
            part.extra["logits"] = np.zeros((len(part.outcome), values.shape[1]), np.float32)
        wrong = bool(predicted[i] != labels[i])
        part.outcome[row] = Outcome.BROKEN if wrong else Outcome.SURVIVED
        part.margin[row], part.predicted[row], part.forward[row] = margin[i], predicted[i], bench.model.per_decision
        part.extra["logits"][row] = values[i]
        if bench.votes:
            part.extra["wrong"][row] = int(answers.wrong[i])
        yield position, wrong


def _votes(bench: Bench, positions: list[int]) -> Poll:
    x, y, ids, _ = bench.rows(positions)
    return bench.jury("clean").poll(x, y, ids)


def _decisions(bench: Bench, positions: list[int]) -> Poll:
    x, y, ids, _ = bench.rows(positions + positions[:1] * (bench.slots - len(positions)))
    predicted, logits = bench.model.decide(x, Noise(bench.seed, "clean").at(ids))
    n = len(positions)
    return Poll((predicted != y)[:n], predicted[:n], logits[:n])


def run_stage(
    bench: Bench, store: LedgerStore, stage: Stage, blocks: list[int], eligible: np.ndarray, prefix: str = ""
) -> dict[int, StageLedger]:
    """Run an attack or a certifier on the eligible examples of ``blocks``; returns the finished blocks."""
    pending = Pending(store, prefix + stage.name, blocks, eligible, bench.slots, bench.votes)
    run_shares(bench, stage, [pending])
    return pending.finished


def run_shares(bench: Bench, stage: Stage, parts: Sequence[Pending]) -> None:
    """Run an attack or a certifier on several sets of examples at once, each with blocks of its own.

    Whatever the plugin raises is kept in the blocks' notes, and its unfinished examples are marked as errors. Only
    what would hit every stage (a full disk, a missing prerequisite) stops the run.
    """
    parts = [part for part in parts if part.open]
    if not parts:
        return
    name, pending = parts[0].stage, Shares(parts)
    bench.progress.start(name, len(pending.todo))
    error = ""
    while pending.open:
        try:
            for position, x_adv in _work(bench, pending, stage):
                share = pending.of(position)
                part, row = share.row(position)
                hit = part.outcome[row] if share is parts[0] else Outcome.SKIPPED  # the others were decided before
                share.done(position, x_adv)
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


def _work(bench: Bench, pending: Shares, stage: Stage) -> Iterator[tuple[int, np.ndarray | None]]:
    """Fill the rows of finished examples and yield their positions, with the adversarial example where there is one."""
    noise = Noise(bench.seed, f"stage/{stage.name}")
    plugin = stage.plugin
    if isinstance(plugin, Stepper):
        for finished in _engine(bench, pending, plugin, noise):
            forward, backward = (c * finished.evaluations * bench.model.per_evaluation for c in plugin.cost)
            yield finished.position, _book(pending.of(finished.position), finished, forward, backward)
        return
    for part in pending.parts:
        for positions in part.by_block:
            if isinstance(plugin, Certifier):
                yield from _certify(bench, part, plugin, noise, positions)
            else:
                yield from _attack(bench, part, plugin, noise, positions)


def _engine(bench: Bench, pending: Shares, stepper: Stepper, noise: Noise) -> Iterator[Finished]:
    """All examples in one queue; of a randomised model, one block after the other, and each as a whole or not."""
    if not bench.votes:
        engine = Engine(bench.attacked, stepper, bench.threat, noise, bench.judge(), slots=pending.slots)
        yield from engine.run(pending.todo, bench.rows)
        return
    for part in pending.parts:
        for positions in part.by_block:
            bench.model.restart(_stream(noise, part, positions))
            slots = min(pending.slots, len(positions) * stepper.lanes(bench.model.num_classes))
            engine = VotingEngine(bench.attacked, stepper, bench.threat, noise, bench.judge(), slots=slots)
            yield from list(engine.run(positions, bench.rows))


def _stream(noise: Noise, pending: Pending, positions: list[int]) -> Noise:
    """The draws of a block, from some of its examples."""
    return noise.child(f"block/{positions[0] // pending.store.blocks.size}")


def _attack(
    bench: Bench, pending: Pending, attack: Attack, noise: Noise, positions: list[int]
) -> Iterator[tuple[int, np.ndarray | None]]:
    """A plugin with the plain door: one call a block, every candidate judged."""
    x, y, ids, _ = bench.rows(positions)
    bench.model.restart(_stream(noise, pending, positions))
    before = (bench.model.passes.forward, bench.model.passes.backward)
    x_adv = attack.run(bench.attacked, x.clone(), y.clone(), bench.threat, noise.at(ids))
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
        finished = Finished(position, verdict if verdict.broken else None, 0, 0, refused, verdict)
        yield position, _book(pending, finished, forward, backward)


def _book(pending: Pending, finished: Finished, forward: int, backward: int) -> np.ndarray | None:
    part, row = pending.row(finished.position)
    part.forward[row], part.backward[row], part.refused[row] = forward, backward, finished.refused
    verdict, strongest = finished.verdict, finished.verdict or finished.left
    if strongest is not None and strongest.wrong:
        part.extra["wrong"][row] = strongest.wrong
    if verdict is None:
        part.outcome[row] = Outcome.SURVIVED
        if strongest is not None and strongest.wrong:
            pending.keep(finished.position, strongest.x_adv.numpy())
        return None
    part.outcome[row] = Outcome.BROKEN
    part.distance[row], part.margin[row] = verdict.distance, verdict.margin
    part.predicted[row], part.lane[row] = verdict.predicted, finished.lane
    return verdict.x_adv.numpy()


def _certify(
    bench: Bench, pending: Pending, certifier: Certifier, noise: Noise, positions: list[int]
) -> Iterator[tuple[int, None]]:
    x, y, ids, _ = bench.rows(positions)
    bench.model.restart(_stream(noise, pending, positions))
    start = time.perf_counter()
    certificates = certifier.certify(bench.model, x, y, bench.threat, noise.at(ids))
    _check_certificates(certificates, len(positions), bench.model.num_classes)
    pending.guarantee = certificates.guarantee
    radius, predicted = certificates.radius.cpu().numpy(), certificates.predicted.cpu().numpy()
    took = {"stage": pending.stage, "examples": positions, "seconds": time.perf_counter() - start}
    note(pending.store.run_dir, took)
    labels = y.cpu().numpy()
    forward, backward = certifier.cost
    spent = [forward] * len(positions) if certificates.forward is None else certificates.forward.tolist()
    kept = {} if certificates.votes is None else vars(certificates.votes)
    kept = {**kept, **{name: values.double().cpu().numpy() for name, values in certificates.diagnostics.items()}}
    for i, position in enumerate(positions):
        part, row = pending.row(position)
        proved = predicted[i] == labels[i] and radius[i] > 0 and radius[i] >= bench.threat.radius
        part.outcome[row] = Outcome.CERTIFIED if proved else Outcome.SURVIVED
        part.radius[row], part.predicted[row] = radius[i], predicted[i]
        part.forward[row], part.backward[row] = spent[i], backward
        for name, values in kept.items():
            part.extra.setdefault(name, np.zeros(len(part.outcome), values.dtype))[row] = values[i]
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
    if bad := [name for name, values in certificates.diagnostics.items() if values.shape != (n,)]:
        raise ContractError(f"diagnostics of certificates must hold [{n}], and {', '.join(bad)} does not")
    spent = certificates.forward
    if spent is not None and (spent.shape != (n,) or spent.dtype != torch.int64 or bool((spent < 0).any())):
        raise ContractError(f"forward passes of certificates must be int64 [{n}] and >= 0, got {spent.dtype} {spent}")
