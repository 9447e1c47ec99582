"""ARC: closed forms of linear members, brute force in the plane, and where the gradient of the mean sees nothing."""

import pytest
import torch
from torch import Tensor, nn

from robustsuite.attacks.arc import ARC
from robustsuite.attacks.pgd import PGD
from robustsuite.errors import UsageError
from robustsuite.models.arc import _order, arc, expected_accuracy
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.models.randomized_ensemble import RandomizedEnsemble, exact_weights
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS
from robustsuite.testing import check_attack
from robustsuite.testing.toys import linear_case, net_case
from robustsuite.threat import ThreatModel

SHAPE = (1, 1, 2)


def line(weight: list[float], bias: float) -> Classifier:
    """Two classes; the logits are 0 and ``weight . x + bias``."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], weight]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return Classifier(nn.Sequential(nn.Flatten(), layer), num_classes=2, input_shape=SHAPE)


def at(n: int) -> Tensor:
    return torch.full((n, *SHAPE), 0.5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("classes", [2, 10])
def test_one_linear_member_breaks_at_its_minimal_radius(norm, classes):
    for room, breaks in ((1.01, True), (0.999, False)):
        case = linear_case(norm, classes, (1, 6, 6), 8, rowwise=False, factor=room)
        attack = ARC(classes=classes - 1)
        x_adv = attack.run(case.model, case.x, case.y, case.threat, case.noise())
        assert case.threat.contains(case.x, x_adv).all()
        hit = fooled(case.model.logits(x_adv), case.y)
        assert hit.all() if breaks else not hit.any()


def test_opposed_members_hide_from_the_mean_gradient_but_not_from_arc():
    """Both are right by the same margin, and what fools one makes the other surer: the mean's gradient is zero."""
    members = [line([4.0, 0.0], -1.8), line([-4.0, 0.0], 2.2)]
    model = RandomizedEnsemble(members, exact_weights((), 2))
    x, y, threat = at(1), torch.ones(1, dtype=torch.long), ThreatModel.parse("L2:0.1")
    noise = Noise(0, "hidden").at(torch.arange(1))
    pgd = PGD(steps=20, random_start=False, stop_when_fooled=False).run(model, x, y, threat, noise)
    found = ARC(steps=3).run(model, x, y, threat, noise)
    assert expected_accuracy(members, model.weights, pgd, y).tolist() == [1.0]
    assert expected_accuracy(members, model.weights, found, y).tolist() == [0.5]
    near = ThreatModel.parse("L2:0.049")  # the boundaries lie at 0.05
    found = ARC(steps=3).run(model, x, y, near, noise)
    assert expected_accuracy(members, model.weights, found, y).tolist() == [1.0]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.7, 0.3), (0.4, 0.35, 0.25)])
def test_pairs_and_triples_of_lines_against_brute_force(norm, weights):
    """Ensembles of random lines, all right at the middle of the square; 4000 points of the ball tell the truth."""
    threat, trials = ThreatModel.parse(f"{norm}:0.2"), 40
    draw = Noise(2, "lines").at(torch.arange(trials))
    turns = 2 * torch.pi * draw.uniform((len(weights),))
    far = 0.04 + 0.2 * draw.uniform((len(weights),), draw=1)
    points = 2 * Noise(3, "points").at(torch.arange(4000)).uniform(SHAPE) - 1
    points = points if norm == "Linf" else points[points.flatten(1).norm(dim=1) <= 1]
    ball = 0.5 + 0.2 * points
    found, best, alone = [], [], []
    for turn, distance in zip(turns, far, strict=True):
        normals = torch.stack([turn.cos(), turn.sin()], 1)
        members = [line((-n).tolist(), float(n.sum() / 2 + r)) for n, r in zip(normals, distance, strict=True)]
        y, ones = torch.ones(1, dtype=torch.long), torch.ones(len(ball), dtype=torch.long)
        x_adv = arc(members, weights, at(1), y, threat, steps=5, alpha=1.0, classes=1)
        assert threat.contains(at(1), x_adv).all()
        found.append(float(expected_accuracy(members, weights, x_adv, y)))
        best.append(float(expected_accuracy(members, weights, ball, ones).min()))
        reach = normals.norm(dim=1, p=1 if norm == "Linf" else 2) * 0.2
        alone.append(1 - max([w for w, r, e in zip(weights, distance, reach, strict=True) if r < 0.99 * e], default=0))
    gap = torch.tensor(found) - torch.tensor(best)
    assert float((gap < 1e-6).float().mean()) >= (0.9 if len(weights) == 2 else 0.65)  # it is greedy
    # Never worse than fooling the heaviest member within reach
    assert bool((torch.tensor(found) <= torch.tensor(alone) + 1e-6).all())


def test_the_order_is_by_weight_or_drawn_by_it():
    assert _order((0.2, 0.5, 0.3), None, 0) == [1, 2, 0]
    first = torch.tensor([_order((0.2, 0.5, 0.3), Noise(0, "order"), k)[0] for k in range(2000)])
    shares = torch.bincount(first, minlength=3) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.04, rtol=0)
    assert sorted(_order((1.0, 0.0, 0.0), Noise(0, "order"), 1)) == [0, 1, 2]


def test_examples_do_not_see_each_other_and_the_accuracy_never_rises():
    cases = [net_case("Linf", 5, (1, 6, 6), 12, rowwise=True, hidden=hidden) for hidden in (8, 12, 16)]
    case = cases[0].with_eps(0.05)
    model = RandomizedEnsemble([c.model for c in cases], exact_weights((), 3))
    for attack in (ARC(steps=3), ARC(steps=3, shuffle=True, classes=4)):
        whole = attack.run(model, case.x, case.y, case.threat, case.noise())
        assert case.threat.contains(case.x, whole).all()
        some = case.rows(torch.tensor([7, 2]))
        part = attack.run(model, some.x, some.y, some.threat, some.noise())
        torch.testing.assert_close(part, whole[[7, 2]], atol=1e-5, rtol=0)
        before, after = (expected_accuracy(model.members, model.weights, x, case.y) for x in (case.x, whole))
        assert bool((after <= before).all())
        assert float(after.mean()) < float(before.mean())


def test_it_keeps_the_contract_of_an_attack():
    entry = ATTACKS.get("arc")
    assert entry.facts["norms"] == ("Linf", "L2")
    assert [str(f) for f in check_attack(entry) if not f.ok] == []
    for bad in ({"steps": 0}, {"classes": 0}, {"alpha": 0.0}):
        with pytest.raises(UsageError, match="arc needs"):
            ARC(**bad)  # pyright: ignore[reportArgumentType]
