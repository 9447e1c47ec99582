"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from robustsuite.defenses.context import Auxiliary
from robustsuite.errors import UsageError

if TYPE_CHECKING:
    from robustsuite.training.settings import Settings

WARM_SHARE = 0.25
OPTIMIZERS = ("sgd", "adam", "adamw")


def make_optimizer(settings: "Settings", module: nn.Module, auxiliaries: Iterable[Auxiliary] = ()) -> Optimizer:
    """The optimiser of the module and of those auxiliary models that are trained with it.

    Each group's ``scale`` is what its learning rate is multiplied by.
    """
    groups = _groups(settings, module, 1.0, settings.weight_decay)
    for auxiliary in auxiliaries:
        if auxiliary.trained:
            decay = settings.weight_decay if auxiliary.weight_decay is None else auxiliary.weight_decay
            groups += _groups(settings, auxiliary.module, auxiliary.lr, decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.lr)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    raise UsageError(f"no optimizer '{settings.optimizer}'; choose {', '.join(OPTIMIZERS)}.")


def _groups(settings: "Settings", module: nn.Module, scale: float, decay: float) -> list[dict]:
    free = set()
    if not settings.decay_all:
        norms = {id(p) for part in module.modules() if isinstance(part, _NormBase | nn.LayerNorm | nn.GroupNorm)
                 for p in part.parameters(recurse=False)}  # fmt: skip
        free = norms | {id(p) for name, p in module.named_parameters() if name.rpartition(".")[2] == "bias"}
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = [
        {"params": [p for p in parameters if id(p) not in free], "weight_decay": decay, "scale": scale},
        {"params": [p for p in parameters if id(p) in free], "weight_decay": 0.0, "scale": scale},
    ]
    return [group for group in found if group["params"]]


def descend(optimizer: Optimizer, settings: "Settings", progress: float) -> None:
    """One step along the gradients that are there, clipped, at the schedule's rate for this ``progress`` in [0,1]."""
    if settings.clip:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], settings.clip)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * group["scale"] * schedule_factor(settings.schedule)(progress)
    optimizer.step()


def one_cycle(progress: float) -> float:
    """Linear rise over the first quarter, then a cosine to 0; never exactly 0 on the first step."""
    if progress < WARM_SHARE:
        return max(progress / WARM_SHARE, 0.05)
    return cosine((progress - WARM_SHARE) / (1 - WARM_SHARE))


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def cyclic(progress: float) -> float:
    """Linear rise over the first half, linear fall over the second (fast adversarial training, Wong et al. 2020)."""
    return max(1 - abs(2 * progress - 1), 0.01)


def multistep(progress: float) -> float:
    """A tenth from half of the training on, a hundredth from three quarters on (Rice et al. 2020)."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def late_steps(progress: float) -> float:
    """A tenth from 100 of 110 epochs on, a hundredth from 105 of 110 on (bag of tricks, Pang et al. 2021)."""
    return 1.0 if progress < 100 / 110 else 0.1 if progress < 105 / 110 else 0.01


def constant(progress: float) -> float:
    """1 throughout."""
    del progress
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "cyclic": cyclic,
    "multistep": multistep,
    "late_steps": late_steps,
    "constant": constant,
}


def schedule_factor(name: str) -> Callable[[float], float]:
    """Factor on the learning rate as a function of progress in [0,1]; raises `UsageError` for an unknown name."""
    if name not in SCHEDULES:
        raise UsageError(f"no schedule '{name}'; choose {', '.join(sorted(SCHEDULES))}.")
    return SCHEDULES[name]
