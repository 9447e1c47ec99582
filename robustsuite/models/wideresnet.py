"""Wide residual networks for 32x32 images (Zagoruyko, Komodakis 2016), with the names that robust checkpoints share."""

from torch import Tensor, nn

from robustsuite.errors import InputError
from robustsuite.models.activation import activation
from robustsuite.registry import register_architecture


class WideBlock(nn.Module):
    """Batch normalisation and activation before each of two 3x3 convolutions.

    Where the width or the size changes, the shortcut is a 1x1 convolution of the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, act: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = activation(act)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = activation(act)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.changes = inputs != outputs
        if self.changes:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N,inputs,H,W]`` to ``[N,outputs,H/stride,W/stride]``."""
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (self.convShortcut(active) if self.changes else x)


class WideGroup(nn.Module):
    """Blocks of one width; the first changes width and size."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, act: str) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *[WideBlock(outputs if i else inputs, outputs, 1 if i else stride, act) for i in range(blocks)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N,inputs,H,W]`` to ``[N,outputs,H/stride,W/stride]``."""
        return self.layer(x)


class WideResNet(nn.Module):
    """A 3x3 stem, three groups of ``(depth - 4) / 6`` blocks, batch normalisation, pooling and one linear layer."""

    def __init__(self, depth: int, width: int, num_classes: int, channels: int, act: str) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"a wide ResNet has a depth of 6 n + 4 (10, 16, 28, 34, ...), got {depth}.")
        blocks, stem = (depth - 4) // 6, 16
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.block1 = WideGroup(blocks, stem, 16 * width, 1, act)
        self.block2 = WideGroup(blocks, 16 * width, 32 * width, 2, act)
        self.block3 = WideGroup(blocks, 32 * width, 64 * width, 2, act)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = activation(act)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]`` of images ``[N,C,H,W]``."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(self.relu(self.bn1(out)))))


@register_architecture("wrn28_10")
def wrn28_10(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    width: int = 10,
    depth: int = 28,
    activation: str = "relu",
) -> nn.Module:
    """WideResNet-28-10: 36.5 million parameters; ``activation``: relu, silu or softplus."""
    return WideResNet(depth, width, num_classes, input_shape[0], activation)


@register_architecture("wrn34_10")
def wrn34_10(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    width: int = 10,
    depth: int = 34,
    activation: str = "relu",
) -> nn.Module:
    """WideResNet-34-10: 46.2 million parameters; ``activation``: relu, silu or softplus."""
    return WideResNet(depth, width, num_classes, input_shape[0], activation)
