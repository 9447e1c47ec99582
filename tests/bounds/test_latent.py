"""The second part of a network: the same logits as the whole, and networks that cannot be split."""

import pytest
import torch
from torch import Tensor, nn

from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import propagated
from robustsuite.bounds.latent import middle, onward
from robustsuite.errors import UsageError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 7), nn.ReLU(),
        nn.Linear(7, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5, 6, 7])
def test_the_second_part_goes_on_where_the_first_ends(last: int):
    net, x = network(), torch.rand(3, 1, 6, 6)
    boxes = propagated(trace(net), x, x)
    name = middle(boxes.graph, last)
    found = onward(boxes, name, net[: 8 - last](x))
    torch.testing.assert_close(found, net(x))


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(x + self.two(torch.relu(self.one(x))))


def test_a_branch_around_the_middle_is_refused():
    graph = trace(Skip())
    with pytest.raises(UsageError, match="a branch leads around 'relu'"):
        middle(graph, 3)
    assert middle(graph, 1) == "add"
    for last in (0, 6, 99):
        with pytest.raises(UsageError, match=r"Choose 1 to 5"):
            middle(graph, last)
