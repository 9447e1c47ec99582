"""A fit method in flight: the loop's parts as the services of a method that owns its loop."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustsuite.defenses.base import FitMethod
from robustsuite.defenses.context import Auxiliary
from robustsuite.defenses.services import Accuracies, Fitted, Result, Services
from robustsuite.defenses.step import Step, Term, reduce_terms
from robustsuite.errors import ContractError
from robustsuite.models.loading import fits
from robustsuite.noise import fork_global, generator_seed
from robustsuite.training.book import Book
from robustsuite.training.feed import Feed
from robustsuite.training.launch import Launch
from robustsuite.training.losses import Losses, Progress, not_finite
from robustsuite.training.optim import descend, make_optimizer
from robustsuite.training.resume import booked, moved, rebook
from robustsuite.training.run import batch_of_one
from robustsuite.training.settings import Settings
from robustsuite.training.store import Store
from robustsuite.training.trained import Trained


@dataclass(kw_only=True)
class Fit(Services):
    """One call of a method's ``fit``; leaves history, best and last weights in ``trained``.

    ``loop`` are the settings that the method sees a part of as ``settings``.
    """

    method: FitMethod
    trained: Trained
    loop: Settings
    launch: Launch
    order: Callable[[int], list[Tensor]]
    progress: Progress | None = None
    store: Store | None = None
    done: int = 0

    def __post_init__(self) -> None:
        self.steps = len(self.order(1))
        total = self.steps * self.epochs
        self.feed = Feed(self, self.loop, self.launch, total)
        self.book = Book(self.trained, self.loop, self.held, self, self.launch, self.method.select)
        self.losses = Losses(self.book, self.progress, total, len(self.data))
        self._own = {name: tensor.to("meta") for name, tensor in self.module.state_dict().items()}

    def fit(self) -> None:
        """Run the method, and book what it hands back."""
        self.module.train()
        with fork_global(self.loop.seed, "train/fit"), batch_of_one():
            result = self.method.fit(self)
        module, last = self._accept(result), self.trained.last_state
        now = module.state_dict()
        if not last or now.keys() != last.keys() or not all(torch.equal(now[name], last[name]) for name in now):
            self.report(len(self.trained.history) + 1, result=result)

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on where `keep` left ``state``."""
        self.kept, self.done = moved(state["kept"], self.device), state["done"]
        rebook(self.book, self.losses, state)

    def batch(self, rows: Tensor, epoch: int = 1, number: int = 0) -> Step:
        """See `Services`."""
        return self.feed.step(rows.to(self.device), number, epoch)

    def batches(self, epoch: int) -> Iterator[Step]:
        """See `Services`."""
        for place, rows in enumerate(self.order(epoch)):
            number = (epoch - 1) * self.steps + place
            torch.manual_seed(generator_seed(self.loop.seed, f"train/step{number}"))
            yield self.batch(rows, epoch, number)

    def optimizer(self, *modules: nn.Module) -> Optimizer:
        """See `Services`."""
        first, *others = modules
        return make_optimizer(self.loop, first, [Auxiliary(module, trained=True) for module in others])

    def descend(self, step: Step, optimizer: Optimizer, terms: Mapping[str, Term]) -> None:
        """See `Services`."""
        scalars = reduce_terms(terms, {}, len(step.y))
        optimizer.zero_grad(set_to_none=True)
        step.passes.backward += step.graphed
        torch.stack(list(scalars.values())).sum().backward()
        descend(optimizer, self.loop, step.progress)
        step.forget_logits()
        self.done += 1
        self.losses.note(self.done, step, scalars, len(step.y))

    def validate(self, result: Result) -> Accuracies:
        """See `Services`."""
        found = self.book.validate(self._accept(result), robust=True)
        return Accuracies(found.clean, found.robust)

    def report(self, epoch: int, losses: Mapping[str, float] | None = None, result: Result | None = None) -> None:
        """See `Services`."""
        self.losses.check()
        due = len(self.trained.history) + 1
        if epoch != due:
            raise ContractError(f"epochs are reported one by one: {due} is the next, {epoch} was reported.")
        result = self.module if result is None else result
        module = self._accept(result)
        terms = {name: float(value) for name, value in (losses or {}).items()} or self.losses.sums
        if bad := not_finite(terms):
            raise self.book.diverged(f"the loss of epoch {epoch} is no longer finite: {bad}")
        if losses:
            self.losses.show(epoch, self.epochs, epoch, terms)
        self.trained.module, self.trained.fitted = module, result if isinstance(result, Fitted) else None
        self.book.enter(epoch, module, terms)
        self.losses.sums = {}

    def keep(self, state: Mapping[str, Any]) -> None:
        """See `Services`."""
        _plain(state, "the state")
        if self.store is not None:
            self.losses.check()
            self.store.save({"kept": dict(state), "done": self.done, **booked(self.book, self.losses)})

    def _accept(self, result: Result) -> nn.Module:
        """The module of ``result``; raises `ContractError` when no checkpoint can be made of it."""
        name, whole = self.trained.defense, result.module if isinstance(result, Fitted) else result
        if not isinstance(whole, nn.Module):
            raise ContractError(f"{name} must hand back a module or a Fitted, got a {type(whole).__name__}.")
        own = [whole]
        if isinstance(result, Fitted):
            parts = dict(whole.named_modules())
            if absent := {result.network, *result.files.values()} - set(parts):
                raise ContractError(f"{name} names {', '.join(sorted(absent))}, which is no part of its module.")
            own = [parts[result.network]] * (not result.source)
            own += [parts[result.files[parameter]] for parameter in result.networks]
        if not all(fits(self._own, module.state_dict()) for module in own):
            raise ContractError(
                f"{name} hands back other weights than '{self.trained.arch}' has, which eval could not load: train "
                "services.module or what services.build gives, or hand back a Fitted."
            )
        return whole


def _plain(value: Any, where: str) -> None:
    """Raise `ContractError` unless a state file can hold ``value``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _plain(item, f"{where}[{place}]")
    elif value is not None and not isinstance(value, Tensor | bool | int | float | str):
        raise ContractError(
            f"keep takes tensors, numbers, strings, lists and dicts; {where} is a {type(value).__name__}. "
            "Of a module or an optimiser, keep its state_dict()."
        )
