"""A small convolutional network for digits and MNIST, shaped so that interval bounds stay usable."""

from torch import nn

from robustsuite.errors import InputError
from robustsuite.registry import register_architecture


@register_architecture("small_cnn")
def small_cnn(num_classes: int = 10, input_shape: tuple[int, int, int] = (1, 8, 8), width: int = 16) -> nn.Module:
    """Three convolutions and one linear layer without batch normalisation; ``width`` channels, then twice as many.

    26,000 parameters for 8x8 images, 41,000 for 28x28 at the default width. Raises `InputError` for images below 4x4.
    """
    channels, height, width_px = input_shape
    if min(height, width_px) < 4:
        raise InputError(f"small_cnn needs images of at least 4x4 pixels, got {height}x{width_px}.")
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (width_px // 4), num_classes),
    )
