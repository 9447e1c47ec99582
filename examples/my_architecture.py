"""An architecture as a plugin: a function from the number of classes and the image shape to a module."""

from torch import nn

from robustsuite.registry import register_architecture


@register_architecture("my_cnn")
def my_cnn(num_classes=10, input_shape=(1, 28, 28), width=8):
    """Two convolutions of ``width`` channels and average pooling, for images of any size."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )
