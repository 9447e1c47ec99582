"""Batch normalisation in train mode: bounds normalise as the batch did, and leave the layer as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp_margins
from robustsuite.bounds.statistics import batch_normalised, normalised_by, noting
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


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_forward_pass_is_that_of_torch_bit_for_bit(momentum: float | None):
    plain, noted = network().train(), network().train()
    noted.load_state_dict(plain.state_dict())
    for net in (plain, noted):
        for part in batch_normalised(net):
            part.momentum = momentum
    x = torch.rand(9, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    plain(x)
    first = plain(x)
    with noting(noted):
        noted(x)
    with noting(noted) as seen:
        second = noted(x)
    assert torch.equal(first, second)
    assert all(torch.equal(v, noted.state_dict()[k]) for k, v in plain.state_dict().items())
    first.square().sum().backward()
    second.square().sum().backward()
    for one, other in zip(plain.parameters(), noted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert len(seen) == len(batch_normalised(noted))
    assert all("forward" not in part.__dict__ for part in noted.modules())


def test_statistics_and_their_gradients_are_those_of_the_batch():
    norm = nn.BatchNorm1d(3).double().train()
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    with noting(nn.Sequential(norm)) as seen:
        out = norm(x)
    mean, variance = seen[norm]
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(variance, x.var(0, correction=0))
    (found,) = torch.autograd.grad((mean**3 + variance.square()).sum() + out.square().sum() + (out**3).sum(), x)
    expected = F.batch_norm(x, None, None, training=True)
    loss = (x.mean(0) ** 3 + x.var(0, correction=0).square()).sum() + expected.square().sum() + (expected**3).sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, x)[0], rtol=1e-6, atol=1e-8)
