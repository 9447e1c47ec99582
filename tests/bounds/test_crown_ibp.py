"""Differentiable CROWN-IBP and its loss fusion: by hand, against the certifier's engine, and as upper bounds."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.bounds.crown import Crown
from robustsuite.bounds.crown_ibp import CrownIBP
from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp_margins, input_box
from robustsuite.bounds.region import region
from robustsuite.bounds.rows import Rows


def by_hand() -> nn.Module:
    """Two units on two pixels: z1 = x1 + x2, z2 = x1 - x2, logits their ReLUs."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        net[3].weight.copy_(torch.eye(2))
        for layer in (net[1], net[3]):
            layer.bias.zero_()
    return net


LOWER, UPPER = torch.tensor([[[[0.25, 0.0]]]]), torch.tensor([[[[0.75, 0.5]]]])
LABEL = torch.tensor([0])


def test_two_units_by_hand():
    # z1 in [1/4, 5/4], z2 in [-1/4, 3/4]: f0 - f1 >= 1/4 - 3/4 by intervals. The ReLU of z2 lies below 3/4 z2 + 3/16:
    # x1 + x2 - 3/4 (x1 - x2) - 3/16 = x1 / 4 + 7 x2 / 4 - 3/16 >= -1/8.
    found = CrownIBP(trace(by_hand()), LOWER, UPPER)
    assert found.boxes.margins(LABEL).tolist() == [[0, pytest.approx(-0.5)]]
    assert found.margins(LABEL).tolist() == [[0, pytest.approx(-0.125, abs=1e-5)]]


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_the_fused_loss_by_hand(beta: float):
    # f1 - f0 lies in [-5/4, 1/2] by intervals, and is at most 1/8 backwards: exp lies below the chord there.
    slope = (math.exp(0.5) - math.exp(-1.25)) / 1.75
    fused = math.exp(0.5) + slope * (0.125 - 0.5)
    expected = math.log(1 + beta * fused + (1 - beta) * math.exp(0.5))
    found = CrownIBP(trace(by_hand()), LOWER, UPPER).worst_loss(LABEL, beta)
    assert found.item() == pytest.approx(expected, abs=1e-5)


def network(seed: int = 0, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    norm = [nn.BatchNorm2d(6)] if batch_norm else []
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), *norm, nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 5),
    )  # fmt: skip
    return net.eval()


@pytest.fixture
def examples() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 1, 8, 8), torch.arange(6) % 5


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.1])
def test_margins_are_those_of_the_certifiers_engine(eps: float, examples: tuple[Tensor, Tensor]):
    x, y = examples
    graph = trace(network(batch_norm=True))
    exact = Crown(graph, region(x, eps, "Linf"), refine=False, guard=False, dtype=torch.float64)
    one = torch.eye(5, dtype=torch.float64)
    rows = Rows(torch.arange(6).repeat_interleave(5), (one[y].unsqueeze(1) - one).flatten(0, 1), each=5)
    expected = exact.lowest(graph.output.name, rows).view(6, 5)
    lower, upper = (end.float() for end in input_box(x, eps))
    found = CrownIBP(graph, lower, upper).margins(y)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
    assert found.gather(1, y.view(-1, 1)).count_nonzero() == 0


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.02, 0.2])
def test_the_fused_loss_is_an_upper_bound(beta: float, eps: float, examples: tuple[Tensor, Tensor]):
    x, y = examples
    net = network(3)
    lower, upper = (end.float() for end in input_box(x, eps))
    bound = CrownIBP(trace(net), lower, upper).worst_loss(y, beta)
    for seed in range(20):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).round()
        loss = F.cross_entropy(net(lower + noise * (upper - lower)), y, reduction="none")
        assert bool((loss <= bound + 1e-5).all())
    if eps == 0:
        torch.testing.assert_close(bound, F.cross_entropy(net(x), y, reduction="none"), atol=1e-4, rtol=1e-4)
    if beta == 0:
        torch.testing.assert_close(
            bound, F.cross_entropy(-ibp_margins(trace(net), lower, upper, y), y, reduction="none")
        )


def test_very_large_bounds_do_not_overflow_the_exponential(examples: tuple[Tensor, Tensor]):
    x, y = examples
    net = network()
    with torch.no_grad():
        net[-1].weight.mul_(1e5)
    lower, upper = (end.float() for end in input_box(x, 0.3))
    loss = CrownIBP(trace(net), lower, upper).worst_loss(y, 0.5)
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("what", ["margins", "fused"])
def test_gradients_are_those_of_differences(what: str, examples: tuple[Tensor, Tensor]):
    x, y = examples
    net = network(5).double()
    graph = trace(net)
    lower, upper = input_box(x, 0.05)

    def loss() -> Tensor:
        bounds = CrownIBP(graph, lower, upper)
        return (bounds.margins(y).clamp(max=9) if what == "margins" else bounds.worst_loss(y, 0.7)).sum()

    loss().backward()
    for parameter in (net[0].weight, net[2].bias, net[5].weight):
        place = parameter.grad.abs().argmax()
        flat, h = parameter.data.view(-1), 1e-6
        values = []
        for sign in (1, -2):
            flat[place] += sign * h
            values.append(float(loss().detach()))
        flat[place] += h
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(parameter.grad.view(-1)[place]), rel=1e-4)


def test_without_a_graph_nothing_is_differentiated(examples: tuple[Tensor, Tensor]):
    x, y = examples
    lower, upper = (end.float() for end in input_box(x, 0.1))
    with torch.no_grad():
        assert not CrownIBP(trace(network()), lower, upper).margins(y).requires_grad
