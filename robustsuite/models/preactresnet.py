"""Pre-activation ResNet-18 for 32x32 images (He et al. 2016, "Identity mappings")."""

from torch import Tensor, nn

from robustsuite.models.activation import activation
from robustsuite.registry import register_architecture


class PreActBlock(nn.Module):
    """Batch normalisation and ReLU before each of the two convolutions; the shortcut starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: str = "relu") -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = activation(act)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = activation(act)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """``[N,inputs,H,W]`` to ``[N,outputs,H/stride,W/stride]``."""
        active = self.relu1(self.bn1(x))
        around = self.shortcut(active) if self.projects else x
        return self.conv2(self.relu2(self.bn2(self.conv1(active)))) + around


def _stage(inputs: int, outputs: int, stride: int, act: str) -> nn.Sequential:
    return nn.Sequential(PreActBlock(inputs, outputs, stride, act), PreActBlock(outputs, outputs, 1, act))


class PreActResNet(nn.Module):
    """Four stages of two pre-activation blocks, a last batch normalisation if wanted, pooling and one linear layer."""

    def __init__(self, num_classes: int, channels: int, width: int, final_bn: bool, act: str = "relu") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, 1, act)
        self.layer2 = _stage(width, 2 * width, 2, act)
        self.layer3 = _stage(2 * width, 4 * width, 2, act)
        self.layer4 = _stage(4 * width, 8 * width, 2, act)
        self.final = nn.Identity()
        if final_bn:
            self.bn = nn.BatchNorm2d(8 * width)
            self.final = activation(act)
        self.final_bn = final_bn
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]`` of images ``[N,C,H,W]``."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.final_bn:
            out = self.final(self.bn(out))
        return self.linear(self.flatten(self.pool(out)))


@register_architecture("preactresnet18")
def preactresnet18(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    width: int = 64,
    final_bn: bool = True,
    activation: str = "relu",
) -> nn.Module:
    """Pre-activation ResNet-18 with a CIFAR stem; ``final_bn``: batch normalisation and activation before the pooling.

    ``activation``: relu, silu or softplus.
    """
    return PreActResNet(num_classes, input_shape[0], width, final_bn, activation)
