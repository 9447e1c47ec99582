"""ResNet-18 for 32x32 images (He et al. 2016, CIFAR stem), with the state-dict names that CIFAR checkpoints share."""

from torch import Tensor, nn

from robustsuite.models.activation import activation
from robustsuite.registry import register_architecture


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and the shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str = "relu") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = activation(act)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """``[N,inputs,H,W]`` to ``[N,outputs,H/stride,W/stride]``."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


def _stage(inputs: int, outputs: int, stride: int, act: str) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride, act), BasicBlock(outputs, outputs, 1, act))


class ResNet(nn.Module):
    """Four stages of two blocks each behind a 3x3 stem, global average pooling and one linear layer."""

    def __init__(self, num_classes: int, channels: int, width: int, act: str = "relu") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = activation(act)
        self.layer1 = _stage(width, width, 1, act)
        self.layer2 = _stage(width, 2 * width, 2, act)
        self.layer3 = _stage(2 * width, 4 * width, 2, act)
        self.layer4 = _stage(4 * width, 8 * width, 2, act)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]`` of images ``[N,C,H,W]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(self.flatten(self.pool(out)))


@register_architecture("resnet18")
def resnet18(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    width: int = 64,
    activation: str = "relu",
) -> nn.Module:
    """ResNet-18 with a CIFAR stem; ``width`` channels in the first stage, ``activation``: relu, silu or softplus."""
    return ResNet(num_classes, input_shape[0], width, activation)
