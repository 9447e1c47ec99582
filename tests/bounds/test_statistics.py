"""Batch normalisation in train mode: bounds normalise as the batch did, and leave the layer as it was."""

import pytest
import torch
from torch import nn

from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp_margins
from robustsuite.bounds.statistics import normalised_by, noting
from robustsuite.errors import UsageError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 7), nn.BatchNorm1d(7), nn.ReLU(),
        nn.Linear(7, 4),
    )  # fmt: skip


def test_a_box_of_no_width_gives_what_the_batch_gave():
    net, x, y = network().train(), torch.rand(5, 1, 6, 6), torch.tensor([0, 1, 2, 3, 0])
    graph = trace(net)
    with noting(net) as seen:
        logits = net(x)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    with normalised_by(seen):
        margins = ibp_margins(graph, x, x, y)
        margins.sum().backward()
    torch.testing.assert_close(margins, logits.gather(1, y.view(-1, 1)) - logits, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    assert not any(b.requires_grad for b in net.buffers())
    # The mean and variance are of this very batch, so that shifting a layer before them changes nothing.
    assert float(net[0].bias.grad.abs().max()) < 1e-4
    assert float(net[0].weight.grad.abs().max()) > 1e-2


def test_in_eval_mode_nothing_is_noted():
    net = network().eval()
    with noting(net) as seen:
        net(torch.rand(2, 1, 6, 6))
    assert seen == {}
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_the_layer_is_put_back_after_an_error():
    net = network().train()
    with noting(net) as seen:
        net(torch.rand(4, 1, 6, 6))
    before = net[1].running_mean

    def fail() -> None:
        with normalised_by(seen):
            assert net[1].running_mean is not before
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert net[1].running_mean is before


def test_one_layer_in_two_places_is_refused():
    norm = nn.BatchNorm2d(1)
    with pytest.raises(UsageError, match="used twice"), noting(nn.Sequential(norm, nn.ReLU(), norm)) as _:
        nn.Sequential(norm, nn.ReLU(), norm)(torch.rand(2, 1, 3, 3))
