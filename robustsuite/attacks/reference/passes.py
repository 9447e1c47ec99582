"""A classifier as third-party attacks want it: a module with a device, whose passes are booked all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustsuite.models.classifier import Classifier, exact_arithmetic


class Counted(nn.Module):
    """The network of a classifier, in eval mode and with gradients; every pass is booked on the classifier.

    ``x`` float32 ``[N,C,H,W]`` to float32 logits ``[N,K]``.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        # Packages read the device off the first parameter, and a network need not have one.
        self.device_tag = nn.Parameter(torch.empty(0, device=model.device), requires_grad=False)
        self.network = model.module
        self._passes = model.passes
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits; a backward pass through them is booked when it is made."""
        with torch.autocast(x.device.type, enabled=False), exact_arithmetic():
            logits = self.network(x).float()
        self._passes.forward += x.shape[0]
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad: Tensor) -> None:
        self._passes.backward += grad.shape[0]


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Puts back what a package may do to a network: training modes, parameters that want gradients, gradients."""
    modes = {m: m.training for m in module.modules()}
    parameters = {p: (p.requires_grad, p.grad) for p in module.parameters()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        for parameter, (wanted, grad) in parameters.items():
            parameter.requires_grad_(wanted).grad = grad
