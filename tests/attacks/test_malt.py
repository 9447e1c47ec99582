"""MALT: the order of its targets, APGD's moves on each of them, closed forms and a trained network."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustsuite.attacks.apgd import APGDT
from robustsuite.attacks.malt import MALT, Ranking
from robustsuite.errors import UsageError
from robustsuite.models.classifier import fooled
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS
from robustsuite.testing.toys import DUAL, Case, linear_case, net_case
from robustsuite.threat import ThreatModel

NORMS = ["Linf", "L2", "L1"]


def layer(case: Case) -> nn.Linear:
    found = case.model.module.get_submodule("1")
    assert isinstance(found, nn.Linear)
    return found


def start(attack: MALT, case: Case) -> Ranking:
    logits, lane = case.model.logits(case.x), torch.zeros_like(case.y)
    return attack.init(case.x, case.y, logits, lane, case.threat, case.noise())


def hyperplanes(case: Case, weight: Tensor, norm: str) -> Tensor:
    """Distances ``[N,K]`` to the hyperplanes between the label and every class (infinite for the label)."""
    z, y = case.model.logits(case.x).double(), case.y
    sizes = torch.linalg.vector_norm((weight[y].unsqueeze(1) - weight).double(), ord=DUAL[norm], dim=2)
    return ((z.gather(1, y.view(-1, 1)) - z) / sizes).scatter(1, y.view(-1, 1), math.inf)


@pytest.mark.parametrize("norm", NORMS)
def test_the_order_is_that_of_the_distances_to_the_hyperplanes(norm):
    case = linear_case(norm, 10, (1, 6, 6), 8, rowwise=False, factor=0.5)
    attack = MALT(steps=2)
    exact = hyperplanes(case, layer(case).weight, norm)
    state, aimed = start(attack, case), []
    while not bool(state.done.all()):
        state = attack.step(case.model, state, case.threat, case.noise())
        aimed.append(state.target.clone())
    torch.testing.assert_close(state.distance.double(), exact.gather(1, state.candidates), rtol=1e-4, atol=1e-6)
    targets = torch.stack(aimed[8:-1:3], 1)  # behind the nine measurements, then every three evaluations
    assert torch.equal(targets, exact.argsort(dim=1)[:, :9])


def test_the_order_is_not_that_of_the_logits_and_no_gradient_comes_last(linear):
    weight = torch.zeros(4, 4)
    weight[1, 0], weight[2] = 1.0, 4.0  # class 1 is likelier, class 2 is nearer
    model = linear(weight, torch.tensor([0.0, -1.4, -9.0, -0.1]), (1, 2, 2))
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    threat, at = ThreatModel.parse("Linf:0.01"), Noise(0, "order").at(torch.tensor([0]))
    attack = MALT(steps=1)
    state, aimed = attack.init(x, y, model.logits(x), y, threat, at), []
    assert state.candidates.tolist() == [[3, 1, 2]]
    for _ in range(8):
        state = attack.step(model, state, threat, at)
        aimed.append(state.target.item())
    assert aimed[2::2] == [2, 1, 3]
    assert state.distance[0, 0] == math.inf


@pytest.mark.parametrize("norm", NORMS)
def test_every_target_is_attacked_with_the_moves_of_apgd_t(norm):
    case = net_case(norm, 5, (1, 6, 6), 6, rowwise=False).with_eps(0.01)
    attack, plain = MALT(steps=12, n_targets=2), APGDT(steps=12)
    state = start(attack, case)
    for _ in range(4):
        state = attack.step(case.model, state, case.threat, case.noise())
    for lane in range(2):
        logits = case.model.logits(case.x)
        alone = plain.init(case.x, case.y, logits, torch.full_like(case.y, lane), case.threat, case.noise())
        alone.target = state.target.clone()
        for _ in range(13):
            assert torch.equal(state.x_adv, alone.x_adv)
            state = attack.step(case.model, state, case.threat, case.noise())
            alone = plain.step(case.model, alone, case.threat, case.noise())
    assert state.done.all()
    assert not state.fooled.any()


def test_a_class_that_is_not_the_target_counts(linear):
    model = linear(torch.eye(3), torch.tensor([0.5, 0.0, 0.0]), (1, 1, 3))
    x, y = torch.full((1, 1, 1, 3), 0.5), torch.zeros(1, dtype=torch.long)
    threat, at = ThreatModel.parse("Linf:0.4"), Noise(0, "other").at(torch.tensor([0]))
    attack = MALT(steps=5)
    state = attack.init(x, y, model.logits(x), y, threat, at)
    for _ in range(2):
        state = attack.step(model, state, threat, at)
    other = 3 - state.target.item()
    state.x_adv = torch.full_like(x, 0.2)
    state.x_adv[..., int(other)] = 0.9
    state = attack.step(model, state, threat, at)
    assert state.fooled.item()


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_models_break_at_their_minimal_radius(norm, classes):
    """Its first target is the nearest class, so one target is enough, whatever the scale of the logits.

    For L1 APGD's step never falls below a tenth of eps, and it comes no nearer to a single pixel's worth.
    """
    for room, breaks in ((1.2 if norm == "L1" else 1.001, True), (0.999, False)):
        case = linear_case(norm, classes, (1, 6, 6), 8, rowwise=False, factor=room)
        for factor in (1.0, 1e3):
            layer(case).weight.mul_(factor)
            layer(case).bias.mul_(factor)
            x_adv = MALT(n_targets=1).run(case.model, case.x, case.y, case.threat, case.noise())
            assert case.threat.contains(case.x, x_adv).all()
            hit = fooled(case.model.logits(x_adv), case.y)
            assert hit.all() if breaks else not hit.any()


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 100, 1000])
def test_any_number_of_classes_within_the_budget(classes):
    case = net_case("Linf", classes, (1, 6, 6), 4, rowwise=False).with_eps(0.0)
    attack = MALT(steps=2, n_targets=3, candidates=20)
    state, evaluations = start(attack, case), 0
    while not bool(state.done.all()):
        state = attack.step(case.model, state, case.threat, case.noise())
        evaluations += 1
    measured = min(classes - 1, 20)
    assert state.distance.shape == (4, measured)  # of the Jacobian nothing else is kept
    assert evaluations == measured + 3 * min(measured, 3) <= attack.budget
    assert (state.it == evaluations).all()


def test_nan_logits_leave_no_trace_in_the_candidates(linear, images):
    model = linear(torch.full((3, 4), float("nan")), torch.zeros(3), (1, 2, 2))
    x, y = images(2, (1, 2, 2)), torch.zeros(2, dtype=torch.long)
    threat = ThreatModel.parse("Linf:0.1")
    x_adv = MALT(steps=3).run(model, x, y, threat, Noise(0, "nan").at(torch.arange(2)))
    assert threat.contains(x, x_adv).all()


def test_the_first_target_breaks_nearly_all_that_can_be_broken_on_a_trained_network(mnist_cnn_a):
    model, x, y = mnist_cnn_a
    x, y, threat = x[:100], y[:100], ThreatModel.parse("Linf:0.3")
    x_adv = MALT(n_targets=1).run(model, x, y, threat, Noise(0, "malt").at(torch.arange(100)))
    assert threat.contains(x, x_adv).all()
    assert int(fooled(model.logits(x_adv), y).sum()) >= 21  # 23 are known to break


def test_declared_facts():
    facts = ATTACKS.get("malt").facts
    assert facts["norms"] == ("Linf", "L2", "L1")
    assert facts["min_classes"] == 2
    assert facts["randomized"]
    with pytest.raises(UsageError, match="candidates"):
        MALT(candidates=0)
