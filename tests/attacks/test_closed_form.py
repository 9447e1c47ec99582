"""Attacks on models whose minimal perturbation is known: linear ones, and two pixels searched exhaustively."""

import pytest
import torch
from torch import Tensor, nn

from robustsuite.attacks.apgd import APGDCE, APGDDLR, APGDT, APGDMargin
from robustsuite.attacks.base import Stepper
from robustsuite.attacks.fab import FAB, FABT
from robustsuite.attacks.fgsm import FGSM
from robustsuite.attacks.pgd import PGD
from robustsuite.attacks.square import Square
from robustsuite.models.classifier import Classifier, fooled, margins
from robustsuite.noise import Noise
from robustsuite.threat import Eps, ThreatModel

SHAPE = (1, 4, 4)
# By how much eps must exceed the minimal radius for a break: with a free box, and where the box is active. Square is a
# random search, whose L2 and L1 patterns are far from most gradients (not tried where two thirds of the pixels are
# stuck). APGD for L1 divides the pixels that it moves by 1.5 and rounds up: it stays with two where one were enough.
ATTACKS: dict[tuple[str, str], tuple[Stepper, float, float | None]] = {
    ("fgsm", "Linf"): (FGSM(), 1.001, 1.001),
    ("fgsm", "L2"): (FGSM(), 1.001, 1.001),
    ("fgsm", "L1"): (FGSM(), 1.001, 1.001),
    ("pgd", "Linf"): (PGD(steps=40, loss="margin"), 1.001, 1.001),
    ("pgd", "L2"): (PGD(steps=40, rel_alpha=40, loss="margin"), 1.001, 1.001),
    ("pgd", "L1"): (PGD(steps=60, rel_alpha=60, loss="margin"), 1.001, 1.001),
    ("apgd-ce", "Linf"): (APGDCE(), 1.001, 1.001),
    ("apgd-ce", "L2"): (APGDCE(), 1.001, 1.01),
    ("apgd-ce", "L1"): (APGDCE(), 1.5, 1.01),
    ("apgd-dlr", "Linf"): (APGDDLR(), 1.001, 1.001),
    ("apgd-dlr", "L2"): (APGDDLR(), 1.001, 1.01),
    ("apgd-dlr", "L1"): (APGDDLR(), 1.5, 1.01),
    ("apgd-margin", "Linf"): (APGDMargin(), 1.001, 1.001),
    ("apgd-margin", "L2"): (APGDMargin(), 1.001, 1.01),
    ("apgd-margin", "L1"): (APGDMargin(), 1.5, 1.01),
    ("apgd-t", "Linf"): (APGDT(), 1.001, 1.001),
    ("apgd-t", "L2"): (APGDT(), 1.001, 1.01),
    ("apgd-t", "L1"): (APGDT(), 1.5, 1.01),
    ("apgd-ce-largereps", "L1"): (APGDCE(largereps=True), 1.5, 1.001),
    ("fab-t", "Linf"): (FABT(), 1.001, 1.001),
    ("fab-t", "L2"): (FABT(), 1.001, 1.001),
    ("fab-t", "L1"): (FABT(), 1.001, 1.001),
    ("fab", "Linf"): (FAB(), 1.001, 1.001),
    ("fab", "L2"): (FAB(), 1.001, 1.001),
    ("fab", "L1"): (FAB(), 1.001, 1.001),
    ("square", "Linf"): (Square(n_queries=1000), 1.001, 1.001),
    ("square", "L2"): (Square(n_queries=500), 2.0, None),
    ("square", "L1"): (Square(n_queries=500), 3.0, None),
}
EXAMPLES = 3


def gain(weight: Tensor, room: Tensor, norm: str, eps: float) -> float:
    """max <w, delta> with ||delta|| <= eps and |delta_i| <= room_i (in the direction of w_i), float64."""
    weight = weight.abs()
    if norm == "Linf":
        return (weight * room.clamp(max=eps)).sum().item()
    if norm == "L1":  # the heaviest pixels first
        order = weight.argsort(descending=True)
        before = room[order].cumsum(0) - room[order]
        return (weight[order] * (eps - before).clamp(min=0).minimum(room[order])).sum().item()
    low, high = 0.0, 1e9  # delta = min(t |w|, room)
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if (t * weight).minimum(room).norm().item() <= eps else (low, t)
    return (weight * (low * weight).minimum(room)).sum().item()


def minimal_radius(margin: float, weight: Tensor, room: Tensor, norm: str) -> float:
    low, high = 0.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(weight, room, norm, middle) < margin else (low, middle)
    return high


def case(*, box: bool, linear) -> tuple[Classifier, Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    """Two classes on 16 pixels. With ``box``, a third of the pixels cannot move and a third hardly."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(2, 16, generator=generator)
    x = 0.4 + 0.2 * torch.rand(EXAMPLES, *SHAPE, generator=generator)
    difference = weight[1] - weight[0]
    if box:
        near = torch.where(difference > 0, 1.0, 0.0).view(SHAPE)
        index = torch.arange(16).view(SHAPE)
        x = torch.where(index % 3 == 0, near, torch.where(index % 3 == 1, near + (0.5 - near) * 0.02, x))
    z = x.flatten(1) @ weight.T
    bias = torch.zeros(2)
    bias[0] = (z[:, 1] - z[:, 0]).max() + 0.3  # class 0 wins everywhere
    model = linear(weight, bias, SHAPE)
    flat = x.flatten(1).double()
    rooms = [torch.where(difference.double() > 0, 1 - row, row) for row in flat]
    gaps = margins(model.logits(x), torch.zeros(EXAMPLES, dtype=torch.long)).double()
    return model, x, torch.zeros(EXAMPLES, dtype=torch.long), rooms, [difference.double()] * EXAMPLES, gaps


@pytest.mark.parametrize(
    ("name", "norm", "box"),
    [(*key, box) for key, value in ATTACKS.items() for box in (False, True) if value[1 + box] is not None],
)
def test_linear_models_break_at_their_minimal_radius(name, norm, box, linear):
    model, x, y, rooms, weights, gaps = case(box=box, linear=linear)
    attack, *factors = ATTACKS[name, norm]
    factor = factors[box]
    assert factor is not None
    for i in range(EXAMPLES):
        radius = minimal_radius(gaps[i].item(), weights[i], rooms[i], norm)
        if not box and norm != "L1":  # the closed form |m| / ||w||_q
            order = {"Linf": 1, "L2": 2}[norm]
            assert radius == pytest.approx(gaps[i].item() / weights[i].norm(p=order).item(), rel=1e-6)
        for eps, breaks in ((radius * factor, True), (radius * 0.999, False)):
            threat = ThreatModel(norm, Eps.parse(eps))  # type: ignore[arg-type]
            x_adv = attack.run(model, x[i : i + 1], y[:1], threat, Noise(0, "linear").at(torch.tensor([i])))
            assert threat.contains(x[i : i + 1], x_adv).all()
            assert bool(fooled(model.logits(x_adv), y[:1])) == breaks, (i, eps)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_targets_find_the_nearest_of_many_classes(norm, classes, linear):
    """On a linear model with many classes the nearest boundary need not be that of the runner-up."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 16, generator=generator) * torch.linspace(0.3, 3, classes).view(-1, 1)
    x = 0.45 + 0.1 * torch.rand(2, *SHAPE, generator=generator)
    model = linear(weight, torch.randn(classes, generator=generator) * 0.3, SHAPE)
    z = model.logits(x)
    y = z.argmax(1)
    order = 1 if norm == "Linf" else 2
    for i in range(2):
        gaps = (z[i, y[i]] - z[i]).double()
        lengths = (weight - weight[y[i]]).double().norm(p=order, dim=1)
        radius = min((gaps[k] / lengths[k]).item() for k in range(classes) if k != y[i])
        if radius > 0.4:
            continue  # the box may be active
        at = Noise(0, "many").at(torch.tensor([i]))
        for eps, breaks in ((radius * 1.005, True), (radius * 0.999, False)):
            threat = ThreatModel(norm, Eps.parse(eps))  # type: ignore[arg-type]
            x_adv = APGDT().run(model, x[i : i + 1], y[i : i + 1], threat, at)
            assert bool(fooled(model.logits(x_adv), y[i : i + 1])) == breaks


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=60, restarts=4, loss="margin"),
        APGDCE(restarts=4),
        APGDDLR(restarts=4),
        APGDMargin(restarts=4),
        APGDT(restarts=2),
        FABT(restarts=3),
        FAB(restarts=4),
        Square(n_queries=1500),
    ],
    ids=lambda a: type(a).__name__,
)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_two_pixels_against_exhaustive_search(attack, norm):
    """A grid over ball and box says where a two-pixel network can be broken; attacks find it, and nothing else."""
    generator = torch.Generator().manual_seed(6)
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (1.5 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.2))
        first, last = module[1], module[5]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        first.weight *= 4  # creases across the whole square
        first.bias.copy_(-first.weight.sum(1) / 2)
        last.bias.zero_()
    model = Classifier(module, num_classes=3, input_shape=(1, 1, 2))
    x = torch.rand(60, 1, 1, 2, generator=generator)
    y = model.logits(x).argmax(1)
    threat = ThreatModel.parse(f"{norm}:0.08")
    axis = torch.linspace(-0.08, 0.08, 161)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    lowest = []
    for i in range(60):
        points = (x[i] + grid).clamp(0, 1)
        points = points[threat.contains(x[i].expand_as(points), points)]
        lowest.append(margins(model.logits(points), y[i].expand(len(points))).min())
    lowest = torch.stack(lowest)
    assert (lowest < -0.002).sum() >= 8
    assert (lowest > 0.002).sum() >= 8
    x_adv = attack.run(model, x, y, threat, Noise(1, "pixels").at(torch.arange(60)))
    assert threat.contains(x, x_adv).all()
    broken = fooled(model.logits(x_adv), y)
    assert not broken[lowest > 0.002].any()  # the grid is 0.001 fine
    assert broken[lowest < -0.002].float().mean() >= 0.85  # margins have local optima
