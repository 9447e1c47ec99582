"""The inner maximisation: closed forms on a linear model, the ball, and what it must leave alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from robustsuite.defenses import InnerSpec, Step, ce, kl
from robustsuite.registry import ARCHITECTURES
from robustsuite.threat import ThreatModel

MakeStep = Callable[..., Step]


def binary_linear(weight: torch.Tensor, bias: float) -> nn.Module:
    """Two logits whose difference (class 1 minus class 0) is w.x + b."""
    layer = nn.Linear(weight.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
        layer.bias.copy_(torch.tensor([0, bias]))
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2), ("L1", float("inf"))])
def test_a_linear_model_is_driven_to_its_worst_logistic_loss(make_step: MakeStep, norm: str, dual: float):
    torch.manual_seed(0)
    weight, eps = torch.randn(9), 0.1
    x, y = 0.4 + 0.2 * torch.rand(16, 1, 3, 3), torch.arange(16) % 2
    step = make_step(binary_linear(weight, 0.3), x, y, f"{norm}:{eps}", 2)
    step.views["adv"] = step.maximise(InnerSpec(steps=50))
    sign = 2.0 * y - 1
    worst = softplus(-sign * (x.flatten(1) @ weight + 0.3) + eps * weight.norm(dual))
    assert torch.allclose(ce(step.logits("adv"), step.q), worst, atol=1e-6)


@pytest.mark.parametrize("threat", ["Linf:0.3", "L2:1", "L1:2", "Linf:0"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_views_stay_in_ball_and_box_and_raise_the_loss(make_step: MakeStep, threat: str, loss: str):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 3))
    x, y = torch.rand(12, 1, 4, 4).round(decimals=1), torch.arange(12) % 3
    step = make_step(module, x, y, threat, 3)
    x_adv = step.maximise(InnerSpec(loss, init="gauss"))  # type: ignore[arg-type]
    assert bool(ThreatModel.parse(threat).contains(x, x_adv).all())
    clean, adv = module(x), module(x_adv)
    gain = kl(clean, adv) if loss == "kl" else ce(adv, step.q) - ce(clean, step.q)
    if threat == "Linf:0":
        assert torch.equal(x_adv, x)
    else:
        assert bool((gain > 0).all())


def test_starts_depend_on_example_and_draw_alone(make_step: MakeStep):
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    step = make_step(module, torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64), "Linf:0.2", 3)
    first = step.maximise(InnerSpec(steps=0))
    assert torch.equal(step.maximise(InnerSpec(steps=0)), first)
    assert not torch.equal(step.maximise(InnerSpec(steps=0, draw=1)), first)
    delta = first - 0.5
    assert float(delta.abs().max()) <= 0.2
    assert float(delta.abs().mean()) == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("threat", ["L2:1", "L1:3"])
def test_uniform_starts_fill_the_ball(make_step: MakeStep, threat: str):
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    step = make_step(module, torch.full((200, 1, 4, 4), 0.5), torch.zeros(200, dtype=torch.int64), threat, 3)
    model = ThreatModel.parse(threat)
    distance = model.distance(step.x, step.maximise(InnerSpec(steps=0))) / model.radius
    assert 0 < float(distance.min()) < 0.1
    assert 0.85 < float(distance.max()) <= 1 + 1e-6


def test_eps_factor_and_alpha_scale_with_the_threat(make_step: MakeStep):
    module = binary_linear(torch.ones(9), 0.0)
    step = make_step(module, torch.full((2, 1, 3, 3), 0.5), torch.tensor([1, 1]), "Linf:0.2", 2)
    one = step.maximise(InnerSpec(steps=1, alpha=0.25, init="zero"))
    assert torch.allclose(one, torch.full_like(one, 0.45))
    wide = step.maximise(InnerSpec(steps=20, alpha=0.25, eps=2.0, init="zero"))
    assert torch.allclose(wide, torch.full_like(wide, 0.1))


@pytest.mark.parametrize("bn_mode", ["eval", "train_frozen", "train"])
def test_what_the_maximisation_leaves_alone(make_step: MakeStep, bn_mode: str):
    module = ARCHITECTURES.get("tests_bn_dropout").target(num_classes=3, input_shape=(1, 4, 4))
    module.train()
    module[4].eval()  # a part that the user keeps in another mode stays in it
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    step = make_step(module, torch.rand(8, 1, 4, 4), torch.arange(8) % 3, "Linf:0.1", 3)
    for loss in ("ce", "kl"):
        step.maximise(InnerSpec(loss, init="gauss", bn_mode=bn_mode))  # type: ignore[arg-type]
    assert all(bool((p.grad == 7).all()) for p in module.parameters() if p.grad is not None)
    assert all(p.requires_grad for p in module.parameters())
    assert [part.training for part in module] == [True, True, True, True, False, True]
    moved = {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == (set() if bn_mode != "train" else {"1.running_mean", "1.running_var", "1.num_batches_tracked"})
