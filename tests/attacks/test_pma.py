"""PMA: slopes that do not vanish, the published schedule, closed forms and a trained network."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustsuite.attacks.losses import ce
from robustsuite.attacks.pma import PMA, slopes
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS
from robustsuite.testing.toys import linear_case, net_case
from robustsuite.threat import ThreatModel


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor


def scaled(model: Classifier, factor: float) -> Classifier:
    return Classifier(Scaled(model.module, factor), num_classes=model.num_classes, input_shape=model.input_shape)


def test_slopes_are_the_gradients_of_the_probabilities_up_to_a_factor():
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3, 10):
        z = (3 * torch.randn(20, classes, generator=generator)).double().requires_grad_(True)
        y = z.argmax(1)
        found = slopes(z.detach(), y)
        p = z.softmax(1)
        label = p.gather(1, y.view(-1, 1)).squeeze(1)
        other = p.scatter(1, y.view(-1, 1), 0).amax(1)
        for value, slope in ((-label, found.label), (other, found.other), (other - label, found.margin)):
            (grad,) = torch.autograd.grad(value.sum(), z, retain_graph=True)
            cosine = nn.functional.cosine_similarity(grad, slope, dim=1)
            torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-9, rtol=0)


def test_slopes_stay_of_order_one_where_the_softmax_saturates():
    z = torch.tensor([[500.0, 0.0, -3.0], [80.0, 79.0, -1e4]])
    found = slopes(z, torch.zeros(2, dtype=torch.long))
    for slope in (found.label, found.other, found.margin):
        assert torch.isfinite(slope).all()
        assert (slope.norm(dim=1) > 0.3).all()
        assert (slope[:, 1] > 0).all()
        assert (slope[:, 0] < 0).all()


@pytest.mark.parametrize("factor", [1.0, 1e3])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_two_class_linear_models_break_at_their_minimal_radius_however_confident(norm, factor):
    for room, breaks in ((1.001, True), (0.999, False)):
        case = linear_case(norm, 2, (1, 6, 6), 8, rowwise=False, factor=room)
        model = scaled(case.model, factor)
        x_adv = PMA(steps=40).run(model, case.x, case.y, case.threat, case.noise())
        assert case.threat.contains(case.x, x_adv).all()
        assert bool(fooled(model.logits(x_adv), case.y).all()) == breaks
        assert bool(fooled(model.logits(x_adv), case.y).any()) == breaks


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linear_models_with_many_classes_break_only_beyond_their_radius(norm):
    for room, least, most in ((1.05, 8, 12), (0.999, 0, 0)):
        case = linear_case(norm, 10, (1, 6, 6), 12, rowwise=False, factor=room)
        x_adv = PMA(steps=40).run(case.model, case.x, case.y, case.threat, case.noise())
        assert least <= int(fooled(case.model.logits(x_adv), case.y).sum()) <= most


def test_a_network_whose_cross_entropy_has_no_gradient_is_broken_as_before():
    case = net_case("Linf", 10, (1, 6, 6), 12, rowwise=False).with_eps(0.1)
    confident = scaled(case.model, 1e4)
    _, grad = confident.gradient(case.x, lambda z: ce(z, case.y))
    assert (grad == 0).flatten(1).all(1).sum() >= 10
    broken = []
    for model in (case.model, confident):
        x_adv = PMA(steps=30).run(model, case.x, case.y, case.threat, case.noise())
        broken.append(int(fooled(model.logits(x_adv), case.y).sum()))
    assert broken[1] >= broken[0] - 1


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 100, 1000])
def test_any_number_of_classes(classes):
    case = net_case("L2", classes, (1, 6, 6), 4, rowwise=False)
    x_adv = PMA(steps=4).run(case.model, case.x, case.y, case.threat, case.noise())
    assert case.threat.contains(case.x, x_adv).all()
    assert (x_adv != case.x).flatten(1).any(1).all()


def test_each_half_of_the_steps_is_a_cosine_from_two_eps_to_zero():
    """Far from ball and box, one pixel goes to and fro by exactly the step size."""

    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1)[:, 0], -x.flatten(1)[:, 0]], 1)

    model, attack = Classifier(Steep(), num_classes=2, input_shape=(1, 1, 1)), PMA(steps=8)
    threat = ThreatModel.parse("Linf:0.4")
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.long)
    at = Noise(0, "cosine").at(torch.tensor([3]))
    state = attack.init(x, y, model.logits(x), torch.zeros_like(y), threat, at)
    for number in range(8):
        state.x_adv = torch.full_like(x, 0.9)  # the farthest point from the boundary
        state = attack.step(model, state, threat, at)
        length = 0.4 * (1 + math.cos(math.pi * (number % 4) / 4))
        assert state.x_adv.item() == pytest.approx(max(0.9 - length, 0.1), abs=1e-6)


def test_it_breaks_nearly_all_that_can_be_broken_on_a_trained_network(mnist_cnn_a):
    model, x, y = mnist_cnn_a
    x, y, ids, threat = x[:100], y[:100], torch.arange(100), ThreatModel.parse("Linf:0.3")
    x_adv = PMA(steps=50).run(model, x, y, threat, Noise(0, "pma").at(ids))
    assert threat.contains(x, x_adv).all()
    assert int(fooled(model.logits(x_adv), y).sum()) >= 21  # 23 are known to break


def test_declared_facts():
    facts = ATTACKS.get("pma").facts
    assert facts["norms"] == ("Linf", "L2")
    assert facts["min_classes"] == 2
    assert facts["randomized"]
    with pytest.raises(UsageError, match="steps >= 2"):
        PMA(steps=1)
