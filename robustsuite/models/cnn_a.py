"""Small networks of the verification literature: two convolutions, one hidden linear layer, no batch normalisation."""

from torch import nn

from robustsuite.errors import InputError
from robustsuite.registry import register_architecture


def _two_convolutions(
    num_classes: int,
    input_shape: tuple[int, int, int],
    channels: tuple[int, int],
    kernel: int,
    padding: int,
    hidden: int,
) -> nn.Module:
    height, width = input_shape[1:]
    for _ in range(2):
        height, width = ((side + 2 * padding - kernel) // 2 + 1 for side in (height, width))
    if min(height, width) < 1:
        raise InputError(f"images of shape {list(input_shape)} are too small for two {kernel}x{kernel} convolutions.")
    return nn.Sequential(
        nn.Conv2d(input_shape[0], channels[0], kernel, stride=2, padding=padding),
        nn.ReLU(),
        nn.Conv2d(channels[0], channels[1], kernel, stride=2, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels[1] * height * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


@register_architecture("cnn_a")
def cnn_a(num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """CNN-A of Dathathri et al. 2020 (SDP verification) and Wang et al. 2021 (beta-CROWN)."""
    return _two_convolutions(num_classes, input_shape, (16, 32), kernel=4, padding=1, hidden=100)


@register_architecture("conv_small")
def conv_small(num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """ConvSmall of ERAN (Singh et al. 2019): CNN-A without padding."""
    return _two_convolutions(num_classes, input_shape, (16, 32), kernel=4, padding=0, hidden=100)


@register_architecture("madry_tiny")
def madry_tiny(num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """The MNIST network of Madry et al. 2018 with strides for pooling, scaled down (BaB-attack, Zhang et al. 2022)."""
    return _two_convolutions(num_classes, input_shape, (4, 8), kernel=5, padding=2, hidden=128)
