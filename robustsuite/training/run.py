"""One training in flight: epochs, steps, and the closure."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.composed import Composed
from robustsuite.defenses.context import Context
from robustsuite.defenses.step import Step, reduce_terms
from robustsuite.errors import DivergedBounds, UsageError
from robustsuite.models.modes import mode
from robustsuite.noise import Noise, fork_global
from robustsuite.training.book import Book
from robustsuite.training.feed import Feed
from robustsuite.training.launch import Launch
from robustsuite.training.losses import Losses, Progress
from robustsuite.training.optim import descend, make_optimizer
from robustsuite.training.resume import state_of
from robustsuite.training.settings import Settings
from robustsuite.training.store import Store
from robustsuite.training.trained import Trained

LEAST = 8  # examples in a batch


def shuffled(ids: Tensor, epoch: int, batch_size: int, seed: int) -> list[Tensor]:
    """Positions of one epoch in batches, ordered by (seed, example id, epoch).

    A last batch of less than `LEAST` joins the one before it: batch norm cannot normalise a single example, nor can
    several processes share one.
    """
    batches = list(Noise(seed, "train/shuffle").at(ids).order(epoch).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < min(LEAST, batch_size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@contextmanager
def batch_of_one(examples: int | None = None) -> Iterator[None]:
    """Torch's refusal to normalise a single example, in words: raises `UsageError`."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(f"batch norm cannot train on {examples or 1} example at a time; raise batch_size.") from error


@dataclass
class Run:
    """A training in flight."""

    method: Composed
    trained: Trained
    settings: Settings
    data: Dataset
    held: Dataset | None
    context: Context
    launch: Launch
    progress: Progress | None
    store: Store | None = None
    done: int = 0
    epoch: int = 1
    position: int = 0

    def __post_init__(self) -> None:
        self.module = self.trained.module
        self.feed = Feed(self.context, self.settings, self.launch, self.context.total)
        self.book = Book(
            self.trained, self.settings, self.held, self.context, self.launch, self.method.select, self.method.monitors
        )
        seen = len(self.data) * self.method.replays
        self.losses = Losses(self.book, self.progress, self.context.total, seen)
        self.method.setup(self.context)
        self.optimizer = make_optimizer(self.settings, self.module, self.context.auxiliaries.values())
        self.context.optimizer = self.optimizer

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Positions of an epoch's batches, each as often as the method replays it."""
        for rows in self.context.batches(epoch):
            for _ in range(self.method.replays):
                yield rows

    def fit(self) -> None:
        """All epochs that are left; leaves history, best and last weights in `trained`."""
        while self.epoch <= self.settings.epochs:
            self._epoch()
            self.context.epoch, self.context.done = self.epoch, self.done
            self.method.epoch_end(self.context)
            self.book.enter(self.epoch, self.method.keep(self.context) or self.module, self.losses.sums)
            self.epoch, self.position, self.losses.sums = self.epoch + 1, 0, {}
            self._save(always=True)

    def _epoch(self) -> None:
        self._train_mode()
        for place, rows in enumerate(self.batches(self.epoch)):
            if place < self.position:
                continue
            self.step(rows)
            self.position = place + 1
            self._save()
        self.losses.check()

    def _save(self, always: bool = False) -> None:
        if self.store is not None and self.launch.first and (always or self.store.due()):
            self.losses.check()
            self.store.save(state_of(self))

    def _train_mode(self) -> None:
        self.module.train()
        for auxiliary in self.context.auxiliaries.values():
            auxiliary.module.train(auxiliary.trained)

    def step(self, rows: Tensor) -> None:
        """One optimiser step on the examples at ``rows``: data, labels, views, closure, update, post_step."""
        # Modules that draw (dropout) know only the global generator: each step gives it a seed of its own.
        with fork_global(self.settings.seed, f"train/step{self.done}"):
            step = self._step(rows)
            self.method.data(step)
            step.q = self.method.labels(step)
            step.views.update(self.method.views(step))
            try:
                scalars = self._update(step)
            except DivergedBounds as error:
                raise self.book.diverged(str(error)) from error
        self.method.post_step(step)
        self.done += 1
        self.losses.note(self.done, step, scalars, len(rows))

    def closure(self, step: Step) -> dict[str, Tensor]:
        """The loss terms as scalars, on the views as they are: may be evaluated again without a new attack."""
        step.forget_logits()
        # The same dropout masks however often it is evaluated
        with fork_global(self.settings.seed, f"train/step{self.done}/closure"):
            with batch_of_one(len(step.y)):
                terms = self.method.terms(step)
            return reduce_terms(terms, self.method.weights(step, terms), len(step.y))

    def _step(self, rows: Tensor) -> Step:
        return self.feed.step(
            rows,
            self.done,
            self.epoch,
            aux=self.context.aux,
            memories=self.context.memories,
            joint=self.method.joint,
            adjust=self.method.inner,
        )

    def _update(self, step: Step) -> dict[str, Tensor]:
        """Perturb the weights, differentiate, restore, and step; batch-norm statistics move once, in the last pass."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        offsets = self.method.perturb(step, lambda: self._quiet(step))
        before = [p.detach().clone() for p in parameters] if offsets is not None else []
        with torch.no_grad():
            for parameter, offset in zip(parameters, offsets or [], strict=False):
                parameter.add_(offset)
        scalars = self.closure(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.method.gradient(step, scalars)
        with torch.no_grad():
            if offsets is not None and self.method.restore == "before_update":
                for parameter, old in zip(parameters, before, strict=True):
                    parameter.copy_(old)
            self._descend(step)
            if offsets is not None and self.method.restore == "after_update":
                for parameter, offset in zip(parameters, offsets, strict=True):
                    parameter.sub_(offset)
        return scalars

    def _quiet(self, step: Step) -> Tensor:
        trained = [auxiliary.module for auxiliary in self.context.auxiliaries.values() if auxiliary.trained]
        with ExitStack() as stack:
            for module in (self.module, *trained):
                stack.enter_context(mode(module, "train_frozen"))
            return torch.stack(list(self.closure(step).values())).sum()

    def _descend(self, step: Step) -> None:
        moved = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.launch.world > 1:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in moved]
            for parameter, grad in zip(moved, step.reduce(grads), strict=True):
                parameter.grad = grad
        descend(self.optimizer, self.settings, step.progress)
