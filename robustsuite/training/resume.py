"""All of a training that outlives the process, and how it is taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustsuite.training.book import Book
from robustsuite.training.losses import Losses
from robustsuite.training.trained import Epoch

if TYPE_CHECKING:
    from robustsuite.training.run import Run


def state_of(run: Run) -> dict[str, Any]:
    """What ``run`` needs to go on bit by bit: tensors, numbers, strings and containers of them, nothing else."""
    return {
        "module": run.module.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "aux": {name: module.state_dict() for name, module in run.context.aux.items()},
        "memories": run.context.memories,
        "done": run.done,
        "epoch": run.epoch,
        "position": run.position,
        **booked(run.book, run.losses),
    }


def resume(run: Run, state: dict[str, Any]) -> None:
    """Put ``run``, which is set up and has not begun, where ``state`` was taken."""
    run.module.load_state_dict(state["module"])
    run.optimizer.load_state_dict(state["optimizer"])
    for name, tensors in state["aux"].items():
        run.context.aux[name].load_state_dict(tensors)
    run.context.memories.clear()
    run.context.memories.update(moved(state["memories"], run.launch.device))
    run.done, run.epoch, run.position = state["done"], state["epoch"], state["position"]
    rebook(run.book, run.losses, state)


def booked(book: Book, losses: Losses) -> dict[str, Any]:
    """The epochs so far, the terms of the one that has begun, and the passes."""
    trained, training = book.trained, book.training
    return {
        "sums": losses.sums,
        "passes": [training.passes.forward, training.passes.backward],
        "before": [training.before.forward, training.before.backward],
        "history": [epoch.row() for epoch in trained.history],
        "best": trained.best,
        "best_state": trained.best_state,
        "last_state": trained.last_state,
    }


def rebook(book: Book, losses: Losses, state: dict[str, Any]) -> None:
    """Put what `booked` gave back."""
    trained, training, device = book.trained, book.training, book.launch.device
    losses.sums = dict(state["sums"])
    training.passes.forward, training.passes.backward = state["passes"]
    training.before.forward, training.before.backward = state["before"]
    trained.history = [Epoch(**row) for row in state["history"]]
    trained.best = state["best"]
    trained.best_state = moved(state["best_state"], device)
    trained.last_state = moved(state["last_state"], device)


def moved(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    return value
