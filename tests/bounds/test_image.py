"""Boxes behind linear layers for training: against the plain formulas, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.bounds import image
from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp, ibp_margins
from robustsuite.bounds.image import Image, Rectified, RectifiedEnds, SumAndDifference, blocks
from robustsuite.bounds.rounding import EXACT, Box


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("function", [SumAndDifference, RectifiedEnds])
def test_gradients_are_those_of_finite_differences(function: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image, "_BLOCK", 4)  # several blocks
    pair = (drawn(5, 3).requires_grad_(), drawn(5, 3, seed=1).abs().requires_grad_())
    assert torch.autograd.gradcheck(function.apply, pair)


def test_rectified_ends_are_the_relus_of_the_ends():
    middle, half = drawn(7, 4), drawn(7, 4, seed=1).abs()
    total, width = RectifiedEnds.apply(middle, half)
    lower, upper = (middle - half).relu(), (middle + half).relu()
    torch.testing.assert_close((total, width), (upper + lower, upper - lower))


def test_blocks_cover_every_row_once_and_fit():
    big = torch.empty(1000, 64, 32)
    seen = torch.cat([torch.arange(1000)[rows] for rows in blocks(big)])
    assert torch.equal(seen, torch.arange(1000))
    assert max(big[rows].numel() for rows in blocks(big)) <= image._BLOCK * torch.get_num_threads()
    assert list(blocks(torch.empty(0, 3))) == []


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(54, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 3),
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.3)
            if part.affine:  # negative scales among them
                part.weight.data.copy_(torch.randn(part.num_features, generator=generator))
    return net.eval()


def plain(net: nn.Module, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Layer by layer: midpoint and half width of affine layers, ends of all others."""
    for part in net:
        if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d):
            middle, half = (lower + upper) / 2, (upper - lower) / 2
            shape = (1, -1, *[1] * (middle.ndim - 2))
            if isinstance(part, nn.Linear):
                half = F.linear(half, part.weight.abs())
            elif isinstance(part, nn.Conv2d):
                half = F.conv2d(half, part.weight.abs(), None, part.stride, part.padding)
            else:
                scale = (part.running_var + part.eps).rsqrt() * (1 if part.weight is None else part.weight)
                half = half * scale.abs().view(shape)
            middle = part(middle)
            lower, upper = middle - half, middle + half
        else:
            lower, upper = part(lower), part(upper)
    return lower, upper


def test_a_network_with_batch_norm_has_the_plain_bounds_and_gradients():
    net = network()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grads = []
    for bounds in (lambda a, b: ibp(trace(net), a, b), lambda a, b: plain(net, a, b)):
        net.zero_grad()
        lower, upper = bounds(x - 0.05, x + 0.05)
        (lower.square().sum() + (upper**3).sum()).backward()
        grads.append([lower.detach(), upper.detach(), *(p.grad.clone() for p in net.parameters())])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


def test_batch_norm_goes_into_the_weights_of_the_layer_before_it():
    net = network()
    graph = trace(net)
    values = graph.values(Box(torch.zeros(2, 1, 8, 8).double(), torch.ones(2, 1, 8, 8).double()), EXACT)
    kinds = {step.name: values[step.name] for step in graph.nodes}
    convolution, normalised, rectified = list(kinds.values())[:3]
    assert isinstance(convolution, Image)
    assert convolution.found is None  # nobody asked for it
    assert isinstance(normalised, Image)
    assert isinstance(rectified, Rectified)
    assert not rectified.known
    torch.testing.assert_close(rectified.lower, normalised.lower.relu())
    with pytest.raises(AttributeError):
        _ = rectified.middle


def test_margins_by_pairs_of_classes_are_those_row_by_row(monkeypatch: pytest.MonkeyPatch):
    net = network()
    x, y = torch.rand(6, 1, 8, 8).double(), torch.tensor([0, 1, 2, 2, 1, 0])
    both = []
    for few in (64, 0):
        monkeypatch.setattr("robustsuite.bounds.ibp._FEW_CLASSES", few)
        net.zero_grad()
        margins = ibp_margins(trace(net), x - 0.1, x + 0.1, y)
        margins.square().sum().backward()
        both.append((margins.detach(), net[-1].weight.grad.clone()))
    torch.testing.assert_close(both[0], both[1])
