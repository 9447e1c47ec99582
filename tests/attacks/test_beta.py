"""BETA: its rounds, the exhaustive optimum over targets, closed forms and a trained network."""

import pytest
import torch
from torch import nn

from robustsuite.attacks.beta import BETA, BETAState, rounds
from robustsuite.errors import UsageError
from robustsuite.models.classifier import fooled
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS
from robustsuite.testing.toys import DUAL, Case, linear_case, net_case
from robustsuite.threat import ThreatModel

NORMS = ["Linf", "L2"]


def layer(case: Case) -> nn.Linear:
    found = case.model.module.get_submodule("1")
    assert isinstance(found, nn.Linear)
    return found


def finish(attack: BETA, case: Case) -> BETAState:
    logits, lane = case.model.logits(case.x), torch.zeros_like(case.y)
    state = attack.init(case.x, case.y, logits, lane, case.threat, case.noise())
    while not bool(state.done.all()):
        state = attack.step(case.model, state, case.threat, case.noise())
    return state


def test_the_race_is_halved_every_ten_rounds_and_the_last_iterates_are_judged():
    assert rounds(9, 30, 10) == [9] * 10 + [5] * 10 + [3] * 11
    assert rounds(2, 5, 2) == [2, 2, 1, 1, 1, 1]
    assert rounds(1, 3, 1) == [1] * 4
    assert rounds(4, 3, 10) == [4] * 4
    assert BETA().budget == 90 + 50 + 33


@pytest.mark.parametrize("prune_every", [10, 1000])
@pytest.mark.parametrize("norm", NORMS)
def test_it_finds_the_best_target_and_its_margin_on_a_linear_model(norm, prune_every):
    """On a linear model the best margin of target t is ``z_t - z_y + eps ||w_t - w_y||_q``."""
    case = linear_case(norm, 10, (1, 6, 6), 10, rowwise=False, factor=0.9)
    state = finish(BETA(prune_every=prune_every), case)
    assert not state.fooled.any()
    weight = layer(case).weight
    sizes = torch.linalg.vector_norm(weight.unsqueeze(0) - weight[case.y].unsqueeze(1), ord=DUAL[norm], dim=2)
    z = case.model.logits(case.x)
    best = z - z.gather(1, case.y.view(-1, 1)) + case.threat.radius * sizes
    best = best.scatter(1, case.y.view(-1, 1), float("-inf"))
    reached, index = state.reached.max(1)
    assert torch.equal(state.classes.gather(1, index.view(-1, 1)).squeeze(1), best.argmax(1))
    torch.testing.assert_close(reached, best.amax(1), rtol=1e-3, atol=1e-4)
    if prune_every > 30:  # then every target is carried to its optimum
        torch.testing.assert_close(state.reached, best.gather(1, state.classes), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 1e3])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_models_break_at_their_minimal_radius_however_confident(norm, classes, factor):
    for room, breaks in ((1.001, True), (0.999, False)):
        case = linear_case(norm, classes, (1, 6, 6), 8, rowwise=False, factor=room)
        layer(case).weight.mul_(factor)
        layer(case).bias.mul_(factor)
        x_adv = BETA().run(case.model, case.x, case.y, case.threat, case.noise())
        assert case.threat.contains(case.x, x_adv).all()
        hit = fooled(case.model.logits(x_adv), case.y)
        assert hit.all() if breaks else not hit.any()


def test_the_better_half_goes_on_and_the_others_stand_still():
    case = net_case("Linf", 10, (1, 6, 6), 6, rowwise=False).with_eps(0.01)
    attack = BETA(steps=6, n_targets=4, prune_every=2)
    logits, lane = case.model.logits(case.x), torch.zeros_like(case.y)
    state = attack.init(case.x, case.y, logits, lane, case.threat, case.noise())
    for _ in range(8):  # two rounds of four
        state = attack.step(case.model, state, case.threat, case.noise())
    best = state.reached.argsort(dim=1, descending=True)[:, :2].sort(1).values
    before = state.points.clone()
    for _ in range(4):  # two rounds of two
        state = attack.step(case.model, state, case.threat, case.noise())
    moved = (state.points != before).flatten(2).any(2)
    assert torch.equal(moved.nonzero()[:, 1].view(6, 2), best)


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 100, 1000])
def test_any_number_of_classes_within_the_budget(classes):
    case = net_case("L2", classes, (1, 6, 6), 4, rowwise=False).with_eps(0.0)
    attack = BETA(steps=4, n_targets=5, prune_every=2)
    state = finish(attack, case)
    assert state.points.shape[1] == min(classes - 1, 5)
    assert (state.it == sum(rounds(min(classes - 1, 5), 4, 2))).all()
    assert int(state.it.max()) <= attack.budget


def test_it_breaks_nearly_all_that_can_be_broken_on_a_trained_network(mnist_cnn_a):
    model, x, y = mnist_cnn_a
    x, y, threat = x[:100], y[:100], ThreatModel.parse("Linf:0.3")
    x_adv = BETA().run(model, x, y, threat, Noise(0, "beta").at(torch.arange(100)))
    assert threat.contains(x, x_adv).all()
    assert int(fooled(model.logits(x_adv), y).sum()) >= 21  # 23 are known to break


def test_declared_facts():
    facts = ATTACKS.get("beta").facts
    assert facts["norms"] == ("Linf", "L2")
    assert facts["min_classes"] == 2
    assert facts["randomized"]
    with pytest.raises(UsageError, match="prune_every"):
        BETA(prune_every=0)
