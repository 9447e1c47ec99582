"""Forward hooks that live for one pass: the network is left as it was found."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from robustsuite.errors import ContractError, UsageError

Change = Callable[[str, Tensor], Tensor | None]


@contextmanager
def hooked(network: nn.Module, layers: Sequence[str], change: Change) -> Iterator[None]:
    """Inside, ``change(name, output)`` is called for every call of the ``layers``; what it returns replaces the output.

    Raises `ContractError` when a layer gives anything but one tensor.
    """

    def hook(name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def called(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise ContractError(f"the layer '{name}' returns a {type(output).__name__}; name one with a tensor.")
            return change(name, output)

        return called

    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_layers(network: nn.Module, layers: Sequence[str]) -> None:
    """Raise `UsageError` for a name that is none of the network's modules."""
    known = [name for name, _ in network.named_modules() if name]
    for name in layers:
        if name not in known:
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise UsageError(f"the network has no layer '{name}'; it has {shown}.")


def weighted_layers(network: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers, in the order of the network's modules."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]
