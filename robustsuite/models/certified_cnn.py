"""CNN3, CNN5 and CNN7: the networks of the literature on certified training."""

from collections.abc import Sequence

from torch import nn

from robustsuite.errors import InputError
from robustsuite.registry import register_architecture

# Channels (in units of the width), kernel, stride, padding of a convolution.
Convolution = tuple[int, int, int, int]


def _network(
    convolutions: Sequence[Convolution],
    hidden: int,
    num_classes: int,
    input_shape: tuple[int, int, int],
    width: int,
    batch_norm: bool,
) -> nn.Sequential:
    """Convolutions and a hidden linear layer (0: none), each with batch norm (if wanted) and ReLU, and the logits."""
    if width < 1:
        raise InputError(f"a network needs a width of at least 1, got {width}.")
    channels, height, width_px = input_shape
    layers: list[nn.Module] = []
    for factor, kernel, stride, padding in convolutions:
        outputs = factor * width
        layers.append(nn.Conv2d(channels, outputs, kernel, stride, padding))
        layers += [nn.BatchNorm2d(outputs)] * batch_norm + [nn.ReLU()]
        channels = outputs
        height, width_px = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width_px))
        if min(height, width_px) < 1:
            raise InputError(f"images of shape {list(input_shape)} are too small for these convolutions.")
    layers.append(nn.Flatten())
    features = channels * height * width_px
    if hidden:
        layers.append(nn.Linear(features, hidden))
        layers += [nn.BatchNorm1d(hidden)] * batch_norm + [nn.ReLU()]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


@register_architecture("cnn3")
def cnn3(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    width: int = 16,
    batch_norm: bool = False,
) -> nn.Module:
    """Two convolutions at stride 2 (``width`` channels, 5x5; twice as many, 4x4) and the logits.

    As in the experiments of Mao et al. 2023 and 2024 (arXiv:2305.04574, arXiv:2306.10426).
    """
    return _network([(1, 5, 2, 2), (2, 4, 2, 1)], 0, num_classes, input_shape, width, batch_norm)


@register_architecture("cnn5")
def cnn5(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    width: int = 16,
    hidden: int = 512,
    batch_norm: bool = True,
) -> nn.Module:
    """Three convolutions (``width`` twice, then twice as many; the last two 4x4 at stride 2), ``hidden`` units.

    As in the experiments of Mao et al. 2023 (arXiv:2305.04574); a ``width`` of 64 is a wide one.
    """
    if hidden < 1:
        raise InputError(f"cnn5 needs at least 1 hidden unit, got {hidden}.")
    return _network([(1, 3, 1, 1), (1, 4, 2, 1), (2, 4, 2, 1)], hidden, num_classes, input_shape, width, batch_norm)


@register_architecture("cnn7")
def cnn7(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    width: int = 64,
    hidden: int = 512,
    batch_norm: bool = True,
) -> nn.Module:
    """Five 3x3 convolutions (``width`` twice, then twice as many channels, the third at stride 2), ``hidden`` units.

    With batch normalisation (Shi et al. 2021, arXiv:2103.17268) this is the network that most certified training since
    is measured on; without ``batch_norm`` the large one of Gowal et al. 2018. A ``width`` of 16 is a narrow one.
    """
    if hidden < 1:
        raise InputError(f"cnn7 needs at least 1 hidden unit, got {hidden}.")
    convolutions = [(1, 3, 1, 1), (1, 3, 1, 1), (2, 3, 2, 1), (2, 3, 1, 1), (2, 3, 1, 1)]
    return _network(convolutions, hidden, num_classes, input_shape, width, batch_norm)
