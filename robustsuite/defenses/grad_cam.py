"""Grad-CAM: where in an image a network finds a class."""

import torch
from torch import Tensor, nn

from robustsuite.defenses.context import Context
from robustsuite.defenses.step import Step
from robustsuite.models.hooks import hooked

INPUT = ""


def last_map(context: Context, network: nn.Module) -> str:
    """Name of the layer that gives the last map of more than one pixel; `INPUT` where none does."""
    found = INPUT
    layers = [name for name, _ in network.named_modules() if name]

    def look(name: str, output: Tensor) -> None:
        nonlocal found
        if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found = name

    network.eval()
    with hooked(network, layers, look):
        context.forward(context.data.x[:1], network)
    return found


def grad_cam(step: Step, network: nn.Module, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """Heat in [0,1] of every pixel for the classes ``y`` int64 ``[B]``: ``[B,1,H,W]``, from the map of ``layer``.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (ICCV 2017),
    eq. 1 and 2: the ReLU of the map's channels, each times its mean gradient, blown up to the image and stretched to
    [0,1]; 0 everywhere where nothing speaks for the class.
    """
    seen = [x.detach().requires_grad_(True)]

    def keep(name: str, output: Tensor) -> Tensor:
        del name
        seen.append(output.detach().requires_grad_(True))
        return seen[-1].clone()

    with torch.enable_grad(), hooked(network, [layer] if layer else [], keep):
        logits = step.forward(seen[0], network)
        (grad,) = torch.autograd.grad(logits.gather(1, y.unsqueeze(1)).sum(), seen[-1])
    step.passes.backward += len(x)
    heat = (grad.mean((2, 3), keepdim=True) * seen[-1].detach()).sum(1, keepdim=True).relu()
    heat = nn.functional.interpolate(heat, x.shape[2:], mode="bilinear", align_corners=False)
    low, high = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
    return (heat - low) / (high - low).clamp(min=1e-7)
