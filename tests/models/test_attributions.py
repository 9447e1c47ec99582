"""Attributions and their maps: linear networks, integrals, completeness, ties; softplus in the place of ReLU."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.errors import UsageError
from robustsuite.models.attributions import integrated_gradients, label_gradient
from robustsuite.models.saliency import centre, overlap, saliency, top_pixels
from robustsuite.models.softplus import SoftplusForReLU
from robustsuite.registry import ARCHITECTURES


@pytest.fixture
def network() -> nn.Module:
    """Smooth, on six inputs in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 3)).double()


X = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)).double()
Y = torch.tensor([0, 1, 2, 1, 0])


def test_the_simple_gradient_is_that_of_finite_differences_and_can_be_differentiated(network: nn.Module):
    grad = label_gradient(network, X, Y)
    for i in range(6):
        step = 1e-6 * torch.eye(6).double()[i]
        rise = (network(X + step) - network(X - step)).gather(1, Y.view(-1, 1))[:, 0] / 2e-6
        assert torch.allclose(grad[:, i], rise, atol=1e-8)
    assert torch.autograd.gradcheck(lambda x: label_gradient(network, x, Y), X.clone().requires_grad_(True))


def test_integrated_gradients_are_complete(network: nn.Module):
    """They sum to the logit's rise from black, with an error of the order 1/S."""
    rise = (network(X) - network(torch.zeros_like(X))).gather(1, Y.view(-1, 1))[:, 0]
    sums = [integrated_gradients(partial(label_gradient, network), X, Y, points).sum(1) for points in (50, 5000)]
    assert torch.allclose(sums[1], rise, atol=1e-4)
    assert (sums[0] - rise).abs().max() > 50 * (sums[1] - rise).abs().max()


def test_integrated_gradients_carry_the_path_into_their_derivative(network: nn.Module):
    def integrated(x: Tensor) -> Tensor:
        return integrated_gradients(partial(label_gradient, network), x, Y, 4)

    assert torch.autograd.gradcheck(integrated, X.clone().requires_grad_(True))


def test_maps_are_shares_of_the_pixels():
    attributions = torch.tensor([[[[1.0, -2.0]], [[0.0, 5.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    assert saliency(attributions).tolist() == [[0.125, 0.875], [0, 0]]


def test_of_equal_pixels_the_first_are_on_top():
    maps = torch.tensor([[0.0, 3.0, 0.0, 0.0, 1.0]])
    top = top_pixels(maps, 3)
    assert top.tolist() == [[True, True, False, False, True]]
    assert overlap(top, top_pixels(maps.flip(1), 3)).tolist() == [pytest.approx(2 / 3)]


def test_centres_of_mass():
    maps = torch.zeros(2, 6)  # two rows of three
    maps[0, 5] = 1
    maps[1] = 1 / 6
    assert torch.allclose(centre(maps, 2, 3), torch.tensor([[1.0, 2.0], [0.5, 1.0]]))


class Spelled(nn.Module):
    """One ReLU, spelled in one of the ways that torch knows."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.layer = spelling, nn.ReLU(inplace=spelling == "overwriting module")

    def forward(self, x: Tensor) -> Tensor:
        z = 3 * x
        if self.spelling == "discarding":
            F.relu(z, inplace=True)
            return z
        if self.spelling in ("module", "overwriting module"):
            return self.layer(z)
        calls = {
            "F": F.relu, "torch": torch.relu, "method": Tensor.relu, "torch_": torch.relu_, "method_": Tensor.relu_,
        }  # fmt: skip
        return calls[self.spelling](z)


@pytest.mark.parametrize(
    "spelling", ["module", "overwriting module", "discarding", "F", "torch", "method", "torch_", "method_"]
)
def test_every_relu_becomes_a_softplus_and_only_inside(spelling: str):
    x = torch.linspace(-1, 1, 9).double().requires_grad_(True)
    network = Spelled(spelling)
    with SoftplusForReLU(5.0):
        smooth = network(x)
    assert torch.allclose(smooth, F.softplus(3 * x, beta=5))
    assert (smooth - (3 * x).relu()).min() >= 0
    assert (smooth - (3 * x).relu()).max() <= math.log(2) / 5
    (slope,) = torch.autograd.grad(smooth.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    share = torch.sigmoid(15 * x)
    assert torch.allclose(slope, 3 * share)
    assert torch.allclose(bend, 45 * share * (1 - share))
    assert torch.equal(network(x), (3 * x).relu())


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_registered_networks_get_curvature(name: str):
    network = ARCHITECTURES.get(name).target(num_classes=3, input_shape=(3, 8, 8), width=4).eval().requires_grad_(False)
    x, y = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    bends = []
    for beta in (None, 10.0):
        leaf = x.clone().requires_grad_(True)
        if beta is None:
            grad = label_gradient(network, leaf, y)
        else:
            with SoftplusForReLU(beta):
                grad = label_gradient(network, leaf, y)
        bends.append(torch.autograd.grad(grad.pow(2).sum(), leaf, materialize_grads=True)[0])
    assert not bends[0].any()
    assert bends[1].flatten(1).any(1).all()


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_softplus_needs_a_positive_beta(beta: float):
    with pytest.raises(UsageError, match="needs beta > 0"):
        SoftplusForReLU(beta)
