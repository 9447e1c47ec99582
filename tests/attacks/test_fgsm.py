import pytest
import torch

from robustsuite.attacks.fgsm import FGSM
from robustsuite.attacks.losses import LOSSES
from robustsuite.errors import UsageError
from robustsuite.models.classifier import fooled
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_the_jump_is_eps_times_the_sign_clipped(loss, cnn, images):
    model, x, threat = cnn(), images(10), ThreatModel.parse("Linf:2/255")
    x = (x * 1.4 - 0.2).clamp(0, 1)
    y = model.logits(x).argmax(1)
    _, grad = model.gradient(x, lambda z: LOSSES[loss](z, y))
    expected = (x + 2 / 255 * grad.sign()).clamp(0, 1)
    assert torch.allclose(FGSM(loss).run(model, x, y, threat, Noise(0, "f").at(torch.arange(10))), expected, atol=1e-7)


def test_without_an_active_box_l2_jumps_along_the_gradient(cnn, images):
    model, x, threat = cnn(), images(10) * 0.2 + 0.4, ThreatModel.parse("L2:0.1")
    y = model.logits(x).argmax(1)
    _, grad = model.gradient(x, lambda z: LOSSES["ce"](z, y))
    expected = x + 0.1 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(FGSM().run(model, x, y, threat, Noise(0, "f").at(torch.arange(10))), expected, atol=1e-6)


def test_l1_fills_the_pixels_with_the_largest_gradient(linear):
    weight = torch.zeros(2, 6)
    weight[1] = torch.tensor([3.0, -2.0, 1.0, 0.5, -0.1, 0.0])
    model = linear(weight, torch.tensor([5.0, 0.0]), (1, 2, 3))
    x = torch.tensor([0.6, 0.3, 0.5, 0.5, 0.5, 0.5]).view(1, 1, 2, 3)
    y = torch.zeros(1, dtype=torch.long)
    x_adv = FGSM("margin").run(model, x, y, ThreatModel.parse("L1:0.9"), Noise(0, "f").at(y))
    # 0.4 until pixel 0 is white, 0.3 until pixel 1 is black, the remaining 0.2 to pixel 2
    assert torch.allclose((x_adv - x).flatten(), torch.tensor([0.4, -0.3, 0.2, 0, 0, 0]), atol=1e-5)


def test_a_clean_mistake_needs_one_evaluation(cnn, images):
    model, x, threat = cnn(), images(4), ThreatModel.parse("Linf:2/255")
    y = (model.logits(x).argmax(1) + 1) % 10
    noise = Noise(0, "f").at(torch.arange(4))
    state = FGSM().init(x, y, model.logits(x), torch.zeros_like(y), threat, noise)
    state = FGSM().step(model, state, threat, noise)
    assert state.done.all()
    assert torch.equal(state.x_adv, x)
    assert fooled(model.logits(x), y).all()


def test_an_unknown_loss_is_a_usage_error():
    with pytest.raises(UsageError, match="hinge"):
        FGSM(loss="hinge")
