"""Modes of a module, and back: what a perturbation is made in must not leak into what is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Mode = Literal["eval", "train_frozen", "train"]


@contextmanager
def mode(module: nn.Module, name: Mode) -> Iterator[None]:
    """The module in ``eval`` or ``train`` mode inside, each submodule as it was after.

    ``train_frozen`` is train mode with batch statistics whose running averages stay as they are.
    """
    before = {part: part.training for part in module.modules()}
    tracking = [part for part in before if isinstance(part, _NormBase) and part.track_running_stats]
    module.train(name != "eval")
    if name == "train_frozen":
        for part in tracking:
            part.track_running_stats = False
    try:
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True
        for part, training in before.items():
            part.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """The module's parameters need no gradients inside: a pass that differentiates the input alone is then cheaper."""
    needed = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)
