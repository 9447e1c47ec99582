"""Free adversarial training: what is handed on, in how many steps, from which gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step, ce
from robustsuite.defenses.awp import AWP
from robustsuite.defenses.composed import compose
from robustsuite.defenses.eps_ramp import EpsRamp
from robustsuite.defenses.free_at import FreeAT
from robustsuite.defenses.standard import Standard
from robustsuite.errors import ContractError, UsageError
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import initial_module, train
from robustsuite.training.run import shuffled


def play(method: FreeAT, step: Step) -> Step:
    """The slots of one step, without an update of the weights."""
    step.views.update({name: view.detach() for name, view in method.views(step).items()})
    method.terms(step)["ce_adv"].values.mean().backward()
    method.post_step(step)
    return step


def test_from_zero_the_first_delta_is_that_of_fgsm(make_step: Callable, linear):
    module, x, y, _ = linear
    step = play(FreeAT(), make_step(module, x, y))
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(ce(module(leaf), step.q).sum(), leaf)
    assert torch.equal(step.views["adv"].detach(), x)  # the first pass is clean
    assert torch.allclose(step.memory["delta"], 0.1 * grad.sign())


def test_the_next_batch_starts_where_this_one_ended(make_step: Callable, linear):
    module, x, y, _ = linear
    first = play(FreeAT(alpha=0.5), make_step(module, x, y))
    kept = first.memory["delta"].clone()
    assert float(kept.abs().max()) == pytest.approx(0.05)
    second = play(FreeAT(alpha=0.5), make_step(module, x.flip(0), y.flip(0), memories=first.memories))
    assert torch.allclose(second.views["adv"].detach(), x.flip(0) + kept)
    assert float(second.memory["delta"].abs().max()) <= 0.1


def test_smaller_and_larger_batches(make_step: Callable, linear):
    module, x, y, _ = linear
    whole = play(FreeAT(), make_step(module, x, y))
    before = whole.memory["delta"].clone()
    part = play(FreeAT(alpha=0), make_step(module, x[:3], y[:3], memories=whole.memories))
    assert torch.allclose(part.views["adv"].detach(), x[:3] + before[:3])
    assert torch.equal(part.memory["delta"], before)  # the places beyond it wait
    small = play(FreeAT(), make_step(module, x[:3], y[:3]))
    large = play(FreeAT(), make_step(module, x, y, memories=small.memories))
    assert torch.equal(large.views["adv"].detach()[3:], x[3:])
    assert not torch.equal(large.views["adv"].detach()[:3], x[:3])


@pytest.mark.parametrize("threat", ["Linf:0.2", "L2:0.7", "L1:2"])
def test_delta_stays_in_ball_and_box_on_every_batch(threat: str, make_step: Callable, linear):
    module, _, y, _ = linear
    memories: dict = {}
    for seed in range(3):
        x = torch.rand(16, 1, 3, 3, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
        step = play(FreeAT(), make_step(module, x, y, threat, memories=memories))
        assert bool(ThreatModel.parse(threat).contains(x, step.views["adv"].detach()).all())


def test_every_batch_is_replayed_and_costs_one_pass_each(quick: Callable):
    batches: list[Tensor] = []

    class Watched(FreeAT):
        def views(self, step: Step):
            batches.append(step.noise.ids.clone())
            return super().views(step)

    seen: list[tuple[int, int]] = []
    trained = quick(Watched(replays=3), epochs=2, progress=lambda done, total, info: seen.append((done, total)))
    assert seen[-1] == (2 * 3 * 3, 2 * 3 * 3)
    for first in range(0, len(batches), 3):
        assert all(torch.equal(batches[first], again) for again in batches[first : first + 3])
    assert not torch.equal(batches[0], batches[3])
    assert (trained.forward, trained.backward) == (2 * 3 * 48, 2 * 3 * 48)


def test_one_replay_by_hand(digits: Dataset):
    """m = 1 without momentum: the whole training in a dozen lines."""
    plain = {"lr": 0.5, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 16}
    threat = ThreatModel.parse("Linf:0.1")
    arch = {"hidden": 4, "depth": 1}
    trained = train(FreeAT(replays=1), "mlp", arch, digits, threat, epochs=1, validation=0, **plain)
    module = initial_module("mlp", arch, digits, 0)
    delta = torch.zeros(16, *digits.input_shape)
    for rows in shuffled(digits.ids, 1, 16, 0):
        x, y = digits.x[rows], digits.y[rows]
        delta = delta.maximum(-x).minimum(1 - x)
        leaf = (x + delta).requires_grad_(True)
        weights = list(module.parameters())
        up, *down = torch.autograd.grad(nn.functional.cross_entropy(module(leaf), y), [leaf, *weights])
        delta = (delta + 0.1 * up.sign()).clamp(-0.1, 0.1).maximum(-x).minimum(1 - x)
        with torch.no_grad():
            for weight, grad in zip(weights, down, strict=True):
                weight -= 0.5 * grad
    for name, tensor in module.state_dict().items():
        assert torch.allclose(trained.last_state[name], tensor, atol=1e-6)


def test_without_eps_it_is_standard_training(quick: Callable, same: Callable):
    zero = ThreatModel.parse("Linf:0")
    assert same(quick(FreeAT(replays=1), threat=zero), quick(Standard(), threat=zero))
    assert not same(quick(FreeAT(replays=1)), quick(Standard()))


def test_a_killed_run_goes_on_with_its_delta(survives: Callable):
    assert survives(FreeAT(replays=2))


def test_a_ramp_reaches_its_radius(make_step: Callable, linear):
    module, x, y, _ = linear
    step = make_step(module, x, y, progress=0.25)
    step.adjust = EpsRamp().inner
    assert float(play(FreeAT(), step).memory["delta"].abs().max()) == pytest.approx(0.025)


def test_with_weight_perturbation_the_gradient_is_that_of_the_last_pass(quick: Callable, same: Callable):
    base = ("free_at", FreeAT(replays=2))
    assert same(quick(compose(base, ("awp", AWP(gamma=0)))), quick(compose(base)))
    assert not same(quick(compose(base, ("awp", AWP()))), quick(compose(base)))


def test_bad_parameters_and_a_lost_gradient(make_step: Callable, linear):
    with pytest.raises(UsageError, match="replays >= 1"):
        FreeAT(replays=0)
    module, x, y, _ = linear
    step = make_step(module, x, y)
    step.views.update(FreeAT().views(step))
    with pytest.raises(ContractError, match="no gradient of its view"):
        FreeAT().post_step(step)
