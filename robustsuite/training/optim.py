"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from robustsuite.errors import UsageError

WARM_SHARE = 0.25
MOMENTUM = 0.9


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    """``sgd`` (momentum 0.9), ``adam`` or ``adamw``; raises `UsageError` for another name."""
    parameters = list(parameters)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    raise UsageError(f"no optimizer '{name}'; choose sgd, adam or adamw.")


def one_cycle(progress: float) -> float:
    """Linear rise over the first quarter, then a cosine to 0; never exactly 0 on the first step."""
    if progress < WARM_SHARE:
        return max(progress / WARM_SHARE, 0.05)
    return cosine((progress - WARM_SHARE) / (1 - WARM_SHARE))


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def multistep(progress: float) -> float:
    """A tenth from half of the training on, a hundredth from three quarters on (Rice et al. 2020)."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def constant(progress: float) -> float:
    """1 throughout."""
    del progress
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "multistep": multistep,
    "constant": constant,
}


def schedule_factor(name: str) -> Callable[[float], float]:
    """Factor on the learning rate as a function of progress in [0,1]; raises `UsageError` for an unknown name."""
    if name not in SCHEDULES:
        raise UsageError(f"no schedule '{name}'; choose {', '.join(sorted(SCHEDULES))}.")
    return SCHEDULES[name]
