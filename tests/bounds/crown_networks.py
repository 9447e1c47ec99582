"""Networks with random weights that the tests of backward bounds are made with, and the bounds of their margins."""

import itertools

import torch
from torch import nn

from robustsuite.bounds.crown import Crown
from robustsuite.bounds.graph import trace
from robustsuite.bounds.margins import crown_margins
from robustsuite.bounds.region import region
from robustsuite.models.normalize import with_normalization


class Block(nn.Module):
    """``act(inner(x) + short(x))``."""

    def __init__(self, inner, short, act):
        super().__init__()
        self.inner, self.short, self.act = inner, short, act

    def forward(self, x):
        return self.act(self.inner(x) + self.short(x))


class Fork(nn.Module):
    """Branches side by side, and a difference scaled by constants."""

    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other
        self.register_buffer("factor", torch.tensor([1.5, -0.5, 2.0, -1.0]).view(4, 1, 1))

    def forward(self, x):
        x = torch.cat([self.one(x), -self.other(x / 3)], 1)
        return x * self.factor - 0.25 * x


def network(blocks, kind, seed=0):
    """Blocks as named between a convolution and a linear head."""
    act = {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1)}[kind]
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1), act()]
    for block in blocks:
        layers += {
            "stride": lambda: [nn.Conv2d(4, 4, 4, stride=2, padding=1), act()],
            "dilation": lambda: [nn.Conv2d(4, 4, (3, 2), padding=(2, 1), dilation=2, groups=2), act()],
            "bn": lambda: [nn.Conv2d(4, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), act()],
            "pool": lambda: [nn.AvgPool2d(2, 1, 1, count_include_pad=False), nn.Conv2d(4, 4, 1), act()],
            "residual": lambda: [Block(nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), act()), nn.Identity(), act())],
            "shortcut": lambda: [Block(nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2), act())],
            "fork": lambda: [Fork(nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, padding=1)), act()],
            "dropout": lambda: [nn.Dropout(0.5)],
        }[block]()
    layers += [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), act(), nn.Linear(8, 3)]
    return drawn(with_normalization(nn.Sequential(*layers), [0.4, 0.5], [0.2, 0.3]), seed)


def drawn(model, seed):
    """``model`` with random weights, biases and statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                size = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * size)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.3)
                module.weight.copy_(torch.randn(module.num_features, generator=generator))
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
    return model.eval().requires_grad_(False)


def mlp(widths, seed=0):
    layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(widths)]
    return drawn(nn.Sequential(*itertools.chain(*layers))[:-1], seed)


def bounds(model, x, y, eps, norm="Linf", final=0, **options):
    """Lower bounds ``[N,K]`` of the margins; ``final``: steps of the search for the margins' own slopes."""
    crown = Crown(trace(model, tuple(x.shape[1:])), region(x, eps, norm), **options)
    return crown_margins(crown, y, final)
