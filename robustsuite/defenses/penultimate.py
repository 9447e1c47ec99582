"""The features that a network's last layer sees."""

from typing import Any

from torch import Tensor, nn

from robustsuite.defenses.step import Step
from robustsuite.errors import UsageError
from robustsuite.models.hooks import weighted_layers


def with_features(step: Step, x: Tensor, module: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Logits ``[B,K]`` and features ``[B,d]`` of one pass, of the trained module or of an auxiliary one.

    Features are what goes into the last layer that has weights. Raises `UsageError` for a network without one.
    """
    network = module or step.module
    names = weighted_layers(network)
    if not names:
        raise UsageError("the network has neither a convolution nor a linear layer, so it has no features.")
    seen: list[Tensor] = []

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        del layer
        seen.append(args[0])

    handle = network.get_submodule(names[-1]).register_forward_pre_hook(look)
    try:
        logits = step.forward(x, module, uncompiled=True)
    finally:
        handle.remove()
    return logits, seen[-1].flatten(1).to(logits.dtype)
