"""Weights and penalties under which interval bounds stay small early in training (Fast-IBP).

Shi, Wang, Zhang, Yi, Hsieh, "Fast Certified Robust Training with Short Warmup" (NeurIPS 2021), arXiv:2103.17268,
section 4, and the reference code. There the means are over the whole batch, here over each example, so that a batch is
no more than its examples.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustsuite.bounds.ibp import Boxes
from robustsuite.noise import Noise

TOLERANCE = 0.5
_TINY = 1e-12


def interval_weights(module: nn.Module, noise: Noise) -> None:
    """Draw the weights of linear and convolutional layers from ``N(0, 2 pi / fan_in^2)``; biases and logits' stay.

    With that deviation the half widths of a wide ReLU network stay the same from layer to layer (eq. 6), while its
    activations vanish: the method is made for networks with batch normalisation, and one without keeps its weights.
    """
    if not any(isinstance(part, _BatchNorm) for part in module.modules()):
        return
    one = torch.zeros(1, dtype=torch.int64)
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    for name, part in layers[:-1]:
        weight = part._parameters.get("weight")
        if weight is None:  # it is computed
            continue
        drawn = noise.child(f"interval_init/{name}").at(one).normal(weight.shape)[0]
        with torch.no_grad():
            weight.copy_(drawn * (math.sqrt(2 * math.pi) / weight[0].numel()))


def penalties(boxes: Boxes) -> tuple[Tensor, Tensor]:
    """Tightness and stability penalties of each example, ``[B]`` each, means over what the activations take.

    Tightness: ``relu(t - d_0 / d_i) / t`` with the mean half widths d_i, d_0 that of the input, t = 0.5. Stability: the
    same of how unlike active and inactive units are, in the sum of their centers and in that of the squared distances
    from the layer's mean (the smaller over the larger).
    """
    taken = boxes.activated
    first = boxes.input.radius.flatten(1).mean(1)
    tight, stable = torch.zeros_like(first), torch.zeros_like(first)
    for box in taken:
        tight = tight + _short(first / box.radius.flatten(1).mean(1).clamp(min=_TINY))
        center = box.center.flatten(1)
        active = center > 0
        spread = (center - center.mean(1, keepdim=True)).square()
        for size in (center.abs(), spread):
            on, off = (size * active).sum(1), (size * ~active).sum(1)
            stable = stable + _short(torch.minimum(on, off) / torch.maximum(on, off).clamp(min=_TINY))
    count = max(1, len(taken))
    return tight / count, stable / count


def _short(ratio: Tensor) -> Tensor:
    """By how much a ratio falls short of the tolerance, 0 to 1."""
    return (TOLERANCE - ratio).relu() / TOLERANCE
