"""The activations that networks are built with, by name."""

from collections.abc import Callable

from torch import nn

from robustsuite.errors import InputError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "softplus": nn.Softplus}


def activation(name: str) -> nn.Module:
    """``relu``, ``silu`` or ``softplus``; raises `InputError` for another name."""
    if name not in ACTIVATIONS:
        raise InputError(f"no activation '{name}'; choose {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()
