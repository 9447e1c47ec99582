"""ARREST: finetuning of a standard network that keeps its features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Context, InnerSpec, Step
from robustsuite.defenses.arrest import ARREST, angle
from robustsuite.defenses.penultimate import with_features
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.errors import InputError, UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense


@pytest.fixture
def network(toy: Step) -> Step:
    """Two hidden units, with noise and attack to be told apart by their pixels."""
    first = nn.Linear(2, 2, bias=False)
    nn.init.eye_(first.weight)
    toy.module = nn.Sequential(nn.Flatten(), first, nn.Linear(2, 3, bias=False)).double()
    standard = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    standard[1].weight = nn.Parameter(torch.tensor([[1.0, 0], [0, 2]]).double())
    toy.aux = {"standard": standard}
    toy.rebatch(x=torch.tensor([[0.5, 0.0], [0.5, 0.25]]).double().view(2, 1, 1, 2))
    toy.inner = lambda step, spec, x, q: x + (0.01 if spec.steps == 0 else 0.02)
    return toy


def test_the_angular_distance():
    a = torch.tensor([[1.0, 0], [1, 0], [2, 0], [1, 0]], requires_grad=True)
    b = torch.tensor([[1.0, 1], [-1, 0], [5, 0], [0, 3]])
    found = angle(a, b)
    assert found.tolist() == pytest.approx([0.25, 1, 0, 0.5], abs=1e-6)
    found.sum().backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())
    x, y = (torch.randn(50, 7, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    assert torch.allclose(angle(x, y), torch.cosine_similarity(x, y).arccos() / torch.pi)


def test_the_features_are_what_the_last_layer_sees(network: Step):
    logits, features = with_features(network, network.x)
    assert torch.allclose(features, network.x.flatten(1))
    assert torch.equal(logits, network.module(network.x))
    assert not network.module[-1]._forward_pre_hooks  # type: ignore[index]
    with pytest.raises(UsageError, match="no features"):
        with_features(network, network.x, nn.Flatten())


def test_closed_form_of_the_loss(network: Step):
    change = torch.tensor([0.0, (torch.atan(torch.tensor(1.0)) - torch.atan(torch.tensor(0.5))) / torch.pi])
    network.views["adv"] = network.x
    terms = ARREST(weight=3).terms(network)
    assert terms["rgkd"].values.tolist() == pytest.approx(change.tolist(), abs=1e-6)
    assert terms["rgkd"].weight == 3
    assert torch.allclose(terms["ce_adv"].values, PGDAT().terms(network)["ce_adv"].values)
    network.views["adv"] = network.x.flip(3)
    features = torch.tensor([[0.0, 0.5], [0.25, 0.5]]).double()
    reference = torch.tensor([[0.5, 0.0], [0.5, 0.5]]).double()
    assert torch.allclose(ARREST(compare="input").terms(network)["rgkd"].values, angle(features, reference))


@pytest.mark.parametrize(("threshold", "moved"), [(0.05, [0.02, 0.01]), (0.2, [0.02, 0.02]), (1.0, [0.02, 0.02])])
def test_what_has_changed_too_much_gets_noise(threshold: float, moved: list, network: Step):
    """The first image's features are the standard ones, the second's are turned by 0.10 pi."""
    view = ARREST(threshold=threshold).views(network)["adv"]
    assert (view - network.x).amax((1, 2, 3)).tolist() == pytest.approx(moved)
    network.inner = lambda step, spec, x, q: asked.append(spec) or x
    asked: list[InnerSpec] = []
    ARREST(threshold=threshold, steps=3).views(network)
    assert asked == [InnerSpec("ce", 3, 0.25), InnerSpec(steps=0, draw=1)][: 1 if threshold == 1 else 2]


def test_it_begins_where_the_standard_network_ended(quick: Callable, checkpoint: Callable, same: Callable):
    """So the first step is adversarial throughout; without its terms it is PGD training from there."""
    reference = checkpoint(Standard(), epochs=2)

    @dataclass(frozen=True)
    class Finetuned(PGDAT):
        def setup(self, context: Context) -> None:
            context.module.load_state_dict(context.load(reference).state_dict())

    finetuned = quick(Finetuned(steps=2))
    assert same(quick(ARREST(weight=0, threshold=1, standard=reference, steps=2)), finetuned)
    assert same(quick(ARREST(weight=0, threshold=0, standard=reference, steps=2), epochs=1, batch_size=48),
                quick(Finetuned(steps=2), epochs=1, batch_size=48))  # fmt: skip
    assert not same(quick(ARREST(weight=0, threshold=0, standard=reference, steps=2)), finetuned)


def test_features_stay_nearer_with_weight(quick: Callable, checkpoint: Callable):
    recipe = {"arch": "tests_methods_no_dropout", "epochs": 3, "lr": 0.05}
    reference = checkpoint(Standard(), arch="tests_methods_no_dropout", epochs=4)
    near, free = (quick(ARREST(weight=w, threshold=1, standard=reference, steps=1), **recipe) for w in (20.0, 1e-6))
    assert near.history[-1].terms["rgkd"] / 20 < 0.8 * free.history[-1].terms["rgkd"] / 1e-6


def test_it_trains_its_own_standard_network_and_survives(survives: Callable):
    assert survives(ARREST(weight=1, steps=1))


def test_the_contract_holds():
    findings = check_defense(DEFENSES.get("arrest"))
    assert [str(f) for f in findings if not f.ok] == []


def test_what_cannot_be_is_refused(quick: Callable, checkpoint: Callable, digits: Dataset):
    bads: list[dict[str, Any]] = [{"weight": -1}, {"threshold": 1.5}, {"compare": "logits"}]
    for bad in bads:
        with pytest.raises(UsageError, match="arrest needs"):
            ARREST(**bad)
    reference = checkpoint(Standard(), arch="mlp", epochs=1)
    with pytest.raises(InputError, match="another architecture"):
        quick(ARREST(standard=reference, steps=1))
