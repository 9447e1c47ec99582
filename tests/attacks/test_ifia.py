"""IFIA: nothing to attack in a linear network, and brute force over the ball in two and three pixels."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from robustsuite.attacks.ifia import IFIA
from robustsuite.errors import ContractError, UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.saliency import centre, overlap, saliency, top_pixels
from robustsuite.noise import ExampleNoise, Noise
from robustsuite.threat import ThreatModel

BALL = ThreatModel.parse("Linf:0.2")
POINTS = 4


def noise(n: int, seed: int = 0) -> ExampleNoise:
    return Noise(seed, "test").at(torch.arange(n))


def classifier(*layers: nn.Module, shape: tuple[int, int, int], classes: int = 2) -> Classifier:
    return Classifier(nn.Sequential(nn.Flatten(), *layers), num_classes=classes, input_shape=shape)


def two_layers(seed: int, pixels: int, activation: type[nn.Module] = nn.Softplus) -> Classifier:
    torch.manual_seed(seed)
    first, second = nn.Linear(pixels, 6), nn.Linear(6, 2)
    with torch.no_grad():
        first.weight.mul_(6)
        second.weight.mul_(3)
    return classifier(first, activation(), second, shape=(1, 1, pixels))


def predicted(model: Classifier, x: Tensor) -> Tensor:
    return model.logits(x).argmax(1)


def exact_map(model: Classifier, attribution: str, x: Tensor, y: Tensor) -> Tensor:
    """`saliency` of one layer of softplus (or ReLU), by hand, in float64 ``[N,P]``."""
    first, act, second = model.module[1], model.module[2], model.module[3]  # type: ignore[index]
    inner, outer = first.weight.double(), second.weight.double()[y]

    def gradient(at: Tensor) -> Tensor:
        z = at @ inner.T + first.bias.double()
        share = (z > 0).double() if isinstance(act, nn.ReLU) else z.sigmoid()
        return (outer * share) @ inner

    flat = x.flatten(1).double()
    if attribution == "gradient":
        size = gradient(flat).abs()
    else:
        size = (flat * sum(gradient(flat * s / POINTS) for s in range(1, POINTS + 1)) / POINTS).abs()
    return size / size.sum(1, keepdim=True)


@pytest.mark.parametrize("loss", ["topk", "mass_centre", "targeted"])
def test_a_linear_networks_gradient_cannot_be_attacked(loss: str):
    torch.manual_seed(0)
    model = classifier(nn.Linear(16, 3), shape=(1, 4, 4), classes=3)
    x = torch.rand(6, 1, 4, 4)
    attack = IFIA(loss, k=4, steps=5, region=(0, 0, 2, 2) if loss == "targeted" else None)
    y = predicted(model, x)
    x_adv = attack.run(model, x, y, BALL, noise(6))
    (_, before), (_, after) = attack.look(model, x, y), attack.look(model, x_adv, y)
    weight = model.module[1].weight[y].abs()  # type: ignore[index]
    assert torch.allclose(before, weight / weight.sum(1, keepdim=True))
    assert torch.equal(before, after)
    assert not attack.slope(model, x, y, attack.start(x, BALL, noise(6))).any()


def test_a_linear_networks_integrated_gradients_move_with_the_image():
    """They are ``w x``: the top pixel of two can be overtaken where ``w x`` of the one reaches that of the other."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, -1.0]]))
        layer.bias.copy_(torch.tensor([9.0, 0.0]))  # the answer never changes
    model = classifier(layer, shape=(1, 1, 2))
    first = torch.linspace(0.05, 0.95, 40)
    x = torch.stack([first, torch.full_like(first, 0.25)], 1).view(-1, 1, 1, 2)
    y = torch.zeros(40, dtype=torch.int64)
    attack = IFIA(attribution="integrated", k=1, steps=60, points=POINTS)
    x_adv = attack.run(model, x, y, ThreatModel.parse("Linf:0.1"), noise(40))
    turned = top_pixels(exact_of(x), 1)[:, 0] != top_pixels(exact_of(x_adv), 1)[:, 0]
    # from w x = (first, 0.5) each pixel can come by 0.1 |w| towards the other
    assert torch.equal(turned, (first - 0.5).abs() < 0.3)


def exact_of(x: Tensor) -> Tensor:
    return x.flatten(1) * torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("attribution", ["gradient", "integrated"])
@pytest.mark.parametrize("pixels", [2, 3])
def test_it_finds_what_brute_force_over_the_ball_finds(attribution: str, pixels: int):
    """The top pixel is displaced, with the answer kept, where a fine grid of the ball says that it can be."""
    grid = torch.tensor(list(itertools.product(torch.linspace(-0.2, 0.2, 21).tolist(), repeat=pixels)))
    attack = IFIA(attribution=attribution, k=1, steps=30, restarts=4, points=POINTS)
    possible = found = 0
    for seed in range(8):
        model = two_layers(seed, pixels)
        x = torch.rand(8, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))
        y = predicted(model, x)
        clean = exact_map(model, attribution, x, y)
        points = (x.flatten(1)[:, None] + grid).clamp(0, 1)
        flat, labels = points.flatten(0, 1).view(-1, 1, 1, pixels), y.repeat_interleave(len(grid))
        turned = exact_map(model, attribution, flat, labels).argmax(1) != clean.argmax(1).repeat_interleave(len(grid))
        can = (turned & (predicted(model, flat) == labels)).view(8, -1).any(1)
        x_adv = attack.run(model, x, y, BALL, noise(8, seed))
        assert BALL.contains(x, x_adv).all()
        assert torch.equal(predicted(model, x_adv), y)
        did = exact_map(model, attribution, x_adv, y).argmax(1) != clean.argmax(1)
        possible, found = possible + int(can.sum()), found + int((did & can).sum())
        assert not (did & ~can).sum() > 1  # between the points of the grid
    assert 8 < possible < 56
    assert found >= (0.75 if pixels == 3 else 0.95) * possible


@pytest.mark.parametrize("loss", ["mass_centre", "targeted"])
def test_its_losses_come_near_those_of_the_best_signs(loss: str):
    """With k all pixels no intersection is smaller, so the loss alone decides; the grid holds all sign vectors."""
    grid = torch.tensor(list(itertools.product(torch.linspace(-0.2, 0.2, 9).tolist(), repeat=3)))
    region = (0, 2, 1, 3) if loss == "targeted" else None
    attack, reached = IFIA(loss, k=3, steps=30, restarts=6, region=region), []
    for seed in range(6):
        model = two_layers(seed, 3)
        x = torch.rand(6, 1, 1, 3, generator=torch.Generator().manual_seed(seed))
        y = predicted(model, x)
        clean = exact_map(model, "gradient", x, y)

        def value(
            images: Tensor, times: int, model: Classifier = model, y: Tensor = y, clean: Tensor = clean
        ) -> Tensor:
            labels = y.repeat_interleave(times)
            maps = exact_map(model, "gradient", images, labels)
            if loss == "targeted":
                found = maps[:, 2]
            else:
                found = (centre(maps, 1, 3) - centre(clean, 1, 3).repeat_interleave(times, 0)).pow(2).sum(1)
            return found.where(predicted(model, images) == labels, -1.0)

        flat = (x.flatten(1)[:, None] + grid).clamp(0, 1).flatten(0, 1).view(-1, 1, 1, 3)
        best = value(flat, len(grid)).view(6, -1).amax(1)
        found = value(attack.run(model, x, y, BALL, noise(6, seed)), 1)
        reached.append((found / best)[best > 1e-4])
        assert (found >= value(x, 1)).all()
    shares = torch.cat(reached)
    assert len(shares) > 25
    assert (shares > 0.95).double().mean() > 0.8
    assert shares.mean() > 0.9


def test_relu_networks_are_attacked_through_softplus():
    attack, blind = (IFIA(k=1, steps=40, beta=beta) for beta in (10.0, 1e9))
    turned = []
    for used in (attack, blind):
        changed = 0
        for seed in range(6):
            model = two_layers(seed, 3, nn.ReLU)
            x = torch.rand(8, 1, 1, 3, generator=torch.Generator().manual_seed(seed))
            y = predicted(model, x)
            x_adv = used.run(model, x, y, BALL, noise(8, seed))
            assert torch.equal(predicted(model, x_adv), y)
            before, after = (top_pixels(exact_map(model, "gradient", at, y), 1) for at in (x, x_adv))
            changed += int((overlap(before, after) == 0).sum())
        turned.append(changed)
    assert turned[0] > 1.2 * turned[1]


@pytest.mark.parametrize("threat", ["Linf:0.1", "L2:0.4", "L1:1"])
@pytest.mark.parametrize("attribution", ["gradient", "integrated"])
def test_it_stays_in_ball_and_box_and_depends_on_no_neighbour(threat: str, attribution: str):
    ball, attack = ThreatModel.parse(threat), IFIA(attribution=attribution, k=2, steps=6, points=3)
    model = two_layers(3, 8, nn.ReLU)
    x = torch.rand(6, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0, 1
    y, keyed = predicted(model, x), noise(6)
    x_adv = attack.run(model, x, y, ball, keyed)
    assert ball.contains(x, x_adv).all()
    assert torch.equal(predicted(model, x_adv), y)
    assert torch.equal(x_adv, attack.run(model, x, y, ball, keyed))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    again = attack.run(model, x[order], y[order], ball, Noise(0, "test").at(order))
    assert torch.allclose(again, x_adv[order], atol=1e-6)
    _, before = attack.look(model, x, y)
    _, after = attack.look(model, x_adv, y)
    assert (overlap(top_pixels(before, 2), top_pixels(after, 2)) < 1).any()


def test_passes_are_counted():
    model = two_layers(0, 8)
    x = torch.rand(5, 1, 1, 8)
    y = predicted(model, x)
    model.passes.forward = model.passes.backward = 0
    IFIA(steps=3).run(model, x, y, BALL, noise(5))
    assert (model.passes.forward, model.passes.backward) == (5 * (5 + 3), 5 * (5 + 2 * 3))


def test_maps_of_several_channels_are_summed():
    torch.manual_seed(0)
    model = classifier(nn.Linear(12, 2), shape=(3, 2, 2))
    x = torch.rand(2, 3, 2, 2)
    weight = model.module[1].weight[0].view(1, 3, 2, 2)  # type: ignore[index]
    _, maps = IFIA().look(model, x, torch.zeros(2, dtype=torch.int64))
    assert torch.allclose(maps, saliency(weight).expand(2, 4))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        return 2 * ctx.saved_tensors[0] * grads[0]


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)  # type: ignore[return-value]


class Attends(nn.Module):
    """Attention by torch's fused kernel, whose derivative has none."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 1, 2, 2)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


def test_a_network_that_cannot_be_differentiated_twice_is_named():
    model = classifier(nn.Linear(4, 4), Attends(), nn.Linear(4, 2), shape=(1, 2, 2))
    x = torch.rand(2, 1, 2, 2)
    with pytest.raises(ContractError, match="differentiate the model twice"):
        IFIA().run(model, x, torch.zeros(2, dtype=torch.int64), BALL, noise(2))


def test_where_torch_drops_the_second_derivative_the_attack_is_blind():
    model = classifier(nn.Linear(4, 4), Squared(), nn.Softplus(), nn.Linear(4, 2), shape=(1, 2, 2))
    x, y = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    assert not IFIA().slope(model, x, y, x).any()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"loss": "top"}, "choose topk, mass_centre, targeted"),
        ({"attribution": "deeplift"}, "choose gradient, integrated"),
        ({"loss": "targeted"}, "needs a region"),
        ({"region": (0, 0, 1, 1)}, "it alone takes one"),
        ({"k": 0}, "needs k >= 1"),
        ({"steps": 0}, "needs steps >= 1"),
        ({"restarts": 0}, "needs restarts >= 1"),
        ({"alpha": 0.0}, "alpha > 0"),
        ({"beta": 0.0}, "beta and alpha > 0"),
    ],
)
def test_what_cannot_be_is_refused(bad: dict, words: str):
    with pytest.raises(UsageError, match=words):
        IFIA(**bad)


def test_k_and_region_must_fit_the_image():
    model, x, y = two_layers(0, 8), torch.rand(2, 1, 1, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UsageError, match="k = 9 is more than the 8 pixels"):
        IFIA(k=9).run(model, x, y, BALL, noise(2))
    with pytest.raises(UsageError, match="is none of an image of 1x8 pixels"):
        IFIA("targeted", region=(0, 0, 2, 2)).run(model, x, y, BALL, noise(2))
