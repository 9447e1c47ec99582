"""Propagation tightness: closed forms, matrices multiplied out, and what the paper proves at initialisation."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from robustsuite.bounds.graph import trace
from robustsuite.bounds.tightness import ibp_tightness


def linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def gaussian(out, inputs, seed):
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed)) / math.sqrt(inputs)


def test_one_affine_layer_is_exact():
    torch.manual_seed(0)
    x, y = torch.rand(5, 2, 6, 6), torch.arange(5) % 4
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Identity())
    torch.testing.assert_close(ibp_tightness(model, x, 0.1, y), torch.ones(5).double())
    assert float(ibp_tightness(model, x, 0.1, y).amax()) <= 1


def test_two_linear_layers_by_hand():
    # Margin of class 0 over 1: (1, 1) W1 = (2, 0) of x, so 2 r exactly; layer by layer (1, 1) |W1| = 4 r: 1/2.
    # Over 2: (1, -1) W1 = (0, 2), 2 r of 4 r. Class 1 over 0 the same as 0 over 1; over 2: (0, -2) W1 = (-2, 2): 1.
    first = linear(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    last = linear(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 2.0]]))
    x = torch.full((2, 2), 0.5)
    got = ibp_tightness(nn.Sequential(first, last), x, 0.1, torch.tensor([0, 1]))
    torch.testing.assert_close(got, torch.tensor([(0.5 + 0.5) / 2, (0.5 + 1) / 2]).double())


def multiplied(weights, slopes, x, eps, y):
    """The ratio from the matrices, margins merged, with the box cut to [0,1]."""
    radius = ((x + eps).clamp(max=1) - (x - eps).clamp(min=0)) / 2
    found = []
    for label, r, d in zip(y, radius, zip(*slopes, strict=True), strict=True):
        whole, layered = torch.eye(x.shape[1]).double(), r
        for weight, slope in zip(weights[:-1], d, strict=True):
            whole, layered = slope.unsqueeze(1) * (weight @ whole), slope.abs() * (weight.abs() @ layered)
        last = torch.cat([weights[-1][label] - weights[-1][k : k + 1] for k in range(len(weights[-1])) if k != label])
        found.append((((last @ whole).abs() @ r) / (last.abs() @ layered)).mean())
    return torch.stack(found)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.SiLU()], ids=str)
def test_a_deep_network_is_its_matrices_multiplied_out(activation):
    weights = [gaussian(*size, i).double() for i, size in enumerate([(9, 6), (8, 9), (4, 8)])]
    bias = torch.randn(9, generator=torch.Generator().manual_seed(5)).double() / 3
    model = nn.Sequential(linear(weights[0], bias), activation, linear(weights[1]), activation, linear(weights[2]))
    weights = [layer.weight.detach().double() for layer in model if isinstance(layer, nn.Linear)]
    x = torch.rand(7, 6, generator=torch.Generator().manual_seed(3)).double()
    y = torch.arange(7) % 4
    slopes, value = [], x
    for weight, shift in zip(weights[:-1], (model[0].bias.detach().double(), 0.0), strict=True):
        z = (value @ weight.T + shift).requires_grad_()
        value = activation(z)
        slopes.append(torch.autograd.grad(value.sum(), z)[0])
        value = value.detach()
    got = ibp_tightness(trace(model), x.float(), 0.05, y)
    torch.testing.assert_close(got, multiplied(weights, slopes, x, 0.05, y), rtol=1e-5, atol=1e-7)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.relu(x + self.bn(self.conv(x)))


def test_images_pools_branches_and_training_mode():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), Residual(), nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(12, 5)
    )
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 5
    got = ibp_tightness(model, x, 0.01, y)
    assert model.training
    assert bool(((got > 0) & (got < 1)).all())
    # Without cancellation nothing is lost: no negative weight, and the label's row above the others.
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.abs_()
        model[-1].weight[2] += 10
    torch.testing.assert_close(ibp_tightness(model, x, 0.01, torch.full((6,), 2)), torch.ones(6).double())
    # Alone or in a batch, an example has the same.
    torch.testing.assert_close(ibp_tightness(model, x[3:4], 0.01, y[3:4]), ibp_tightness(model, x, 0.01, y)[3:4])


def test_logits_of_no_linear_layer_are_not_merged():
    last = linear(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    model = nn.Sequential(last, nn.LeakyReLU(0.5))
    x = torch.tensor([[0.5, 0.25]])
    # Logits 0.75 and 0.25, margin 2 x2: 2 r exactly, 2 r + 2 r by the difference of bounds.
    torch.testing.assert_close(ibp_tightness(model, x, 0.1, torch.tensor([0])), torch.tensor([0.5]).double())


def test_a_network_that_ignores_its_input_loses_nothing():
    model = nn.Sequential(linear(torch.ones(3, 2), torch.full((3,), -9.0)), nn.ReLU(), nn.Linear(3, 4))
    assert ibp_tightness(model, torch.rand(2, 2), 0.1, torch.tensor([0, 1])).tolist() == [1, 1]


def deep_linear(depth, width, seed, inputs=400):
    sizes = [inputs, *[width] * (depth - 1), 10]
    return nn.Sequential(*[linear(gaussian(b, a, 100 * seed + i)) for i, (a, b) in enumerate(pairwise(sizes))])


def initial(depth, width, seeds=5):
    x, y = torch.full((1, 400), 0.5), torch.tensor([0])
    return sum(float(ibp_tightness(deep_linear(depth, width, seed), x, 0.1, y)) for seed in range(seeds)) / seeds


def expected(width):
    """Mao et al. 2024, initial tightness of two Gaussian layers: sqrt(pi) G((d+1)/2) / (d G(d/2))."""
    return math.sqrt(math.pi) * math.exp(math.lgamma((width + 1) / 2) - math.lgamma(width / 2)) / width


def test_two_gaussian_layers_have_the_papers_tightness():
    for width in (20, 100, 500):
        assert initial(2, width) == pytest.approx(expected(width), rel=0.05)
    assert expected(400) == pytest.approx(expected(100) / 2, rel=0.01)  # falls like the root of the width


def test_tightness_falls_with_depth_at_least_as_the_paper_says():
    found = [initial(depth, 50, 3) for depth in (1, 2, 4, 6)]
    assert found[0] == pytest.approx(1)
    for depth, tightness in zip((2, 4, 6), found[1:], strict=True):
        assert tightness <= 1.05 * expected(50) ** (depth // 2)
    assert found == sorted(found, reverse=True)


def deep_relu(depth, width, seed):
    layers = []
    for layer in deep_linear(depth, width, seed):
        with torch.no_grad():
            layer.weight.mul_(math.sqrt(2))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def initial_relu(depth, width):
    x, y = torch.rand(8, 400, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    return sum(float(ibp_tightness(deep_relu(depth, width, s), x, 0.05, y).mean()) for s in range(3)) / 3


def test_tightness_of_relu_networks_falls_with_depth_and_width_too():
    by_depth = [initial_relu(depth, 50) for depth in (2, 3, 4, 6)]
    by_width = [initial_relu(3, width) for width in (20, 80, 320)]
    assert by_depth == sorted(by_depth, reverse=True)
    assert by_width == sorted(by_width, reverse=True)
    assert by_depth[-1] < by_depth[0] / 3
    assert by_width[-1] < by_width[0] / 3


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU], ids=["linear", "relu"])
def test_training_on_interval_bounds_raises_it(activation):
    from robustsuite.bounds.ibp import ibp_margins, input_box

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 3))
    y = torch.arange(60) % 3
    x = (torch.rand(3, 8)[y] + 0.05 * torch.randn(60, 8)).clamp(0, 1)
    before, graph = float(ibp_tightness(model, x, 0.1, y).mean()), trace(model)
    lower, upper = (bound.float() for bound in input_box(x, 0.1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        loss = nn.functional.cross_entropy(-ibp_margins(graph, lower, upper, y), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(ibp_tightness(model, x, 0.1, y).mean()) > 2 * before
