"""A small convolutional network for digits and MNIST, shaped so that interval bounds stay usable."""

from torch import nn

from robustsuite.errors import InputError
from robustsuite.models.activation import activation as named
from robustsuite.registry import register_architecture


@register_architecture("small_cnn")
def small_cnn(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (1, 8, 8),
    width: int = 16,
    batch_norm: bool = False,
    activation: str = "relu",
) -> nn.Module:
    """Three convolutions and one linear layer; ``width`` channels, then twice as many; ``batch_norm`` after each.

    26,000 parameters for 8x8 images, 41,000 for 28x28 at the default width. ``activation``: relu, silu or softplus.
    Raises `InputError` for images below 4x4.
    """
    channels, height, width_px = input_shape
    if min(height, width_px) < 4:
        raise InputError(f"small_cnn needs images of at least 4x4 pixels, got {height}x{width_px}.")
    convolutions = [
        nn.Conv2d(channels, width, 3, padding=1),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1),
    ]
    layers: list[nn.Module] = []
    for convolution in convolutions:
        norm = [nn.BatchNorm2d(convolution.out_channels)] if batch_norm else []
        layers += [convolution, *norm, named(activation)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * (height // 4) * (width_px // 4), num_classes))
