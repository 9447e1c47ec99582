"""Fully connected ReLU networks."""

import math

from torch import nn

from robustsuite.registry import register_architecture


@register_architecture("mlp")
def mlp(
    num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 28, 28), hidden: int = 128, depth: int = 2
) -> nn.Module:
    """``depth`` hidden layers of ``hidden`` ReLU units each."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = math.prod(input_shape)
    for _ in range(depth):
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


@register_architecture("mlp_b")
def mlp_b(num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """MLP-B of Salman et al. 2019 (convex relaxation barrier): two hidden layers of 100 units."""
    return mlp(num_classes, input_shape, hidden=100, depth=2)
