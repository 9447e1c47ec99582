"""All of a training that outlives the process, and how it is taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustsuite.training.trained import Epoch

if TYPE_CHECKING:
    from robustsuite.training.run import Run


def state_of(run: Run) -> dict[str, Any]:
    """What ``run`` needs to go on bit by bit: tensors, numbers, strings and containers of them, nothing else."""
    trained = run.trained
    return {
        "module": run.module.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "aux": {name: module.state_dict() for name, module in run.context.aux.items()},
        "memories": run.context.memories,
        "done": run.done,
        "epoch": run.epoch,
        "position": run.position,
        "sums": run.sums,
        "passes": [run.passes.forward, run.passes.backward],
        "history": [epoch.row() for epoch in trained.history],
        "best": trained.best,
        "best_state": trained.best_state,
        "last_state": trained.last_state,
    }


def resume(run: Run, state: dict[str, Any]) -> None:
    """Put ``run``, which is set up and has not begun, where ``state`` was taken."""
    run.module.load_state_dict(state["module"])
    run.optimizer.load_state_dict(state["optimizer"])
    for name, tensors in state["aux"].items():
        run.context.aux[name].load_state_dict(tensors)
    run.context.memories.clear()
    run.context.memories.update(_moved(state["memories"], run.device))
    run.done, run.epoch, run.position = state["done"], state["epoch"], state["position"]
    run.sums = dict(state["sums"])
    run.passes.forward, run.passes.backward = state["passes"]
    trained = run.trained
    trained.history = [Epoch(**row) for row in state["history"]]
    trained.best = state["best"]
    trained.best_state = _moved(state["best_state"], run.device)
    trained.last_state = _moved(state["last_state"], run.device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value
