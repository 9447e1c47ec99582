"""Mixup, RegMixup and manifold mixup."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step, ce
from robustsuite.defenses.composed import compose
from robustsuite.defenses.manifold_mixup import ManifoldMixup, Mixing, first_parts
from robustsuite.defenses.mixup import Mixup, beta_share, mix, partners
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.regmixup import RegMixup
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.models.factory import build
from robustsuite.noise import Noise

STANDARD = ("standard", Standard())


def test_a_mixed_label_gives_the_mixed_loss(toy: Step):
    partner, logits = torch.tensor([1, 0]), toy.views["adv"]
    soft = ce(logits, mix(toy.q, 0.3, partner))
    assert torch.allclose(soft, 0.3 * ce(logits, toy.q) + 0.7 * ce(logits, toy.q[partner]))


def test_the_batch_is_mixed_with_its_labels(toy: Step):
    toy.noise = Noise(1, "test").at(torch.arange(2))
    share, partner = beta_share(toy, 1.0), partners(toy.noise)
    x, q, y = toy.x, toy.q, toy.y
    Mixup(1.0).data(toy)
    assert torch.equal(toy.x, share * x + (1 - share) * x[partner])
    assert torch.equal(toy.q, share * q + (1 - share) * q[partner])
    assert torch.equal(toy.y, y if share >= 0.5 else y[partner])
    assert torch.equal(toy.views["clean"], toy.x)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 20.0])
def test_lambda_has_the_moments_of_beta(concentration: float, toy: Step):
    """Beta(c, c): mean 1/2, variance 1 / (4 (2 c + 1)); over 1000 steps."""
    drawn = []
    for number in range(1000):
        toy.noise = Noise(0, f"train/step{number}").at(torch.arange(2))
        drawn.append(beta_share(toy, concentration))
    found, variance = torch.tensor(drawn, dtype=torch.float64), 1 / (4 * (2 * concentration + 1))
    assert float(found.mean()) == pytest.approx(0.5, abs=4 * (variance / 1000) ** 0.5)
    assert float(found.var()) == pytest.approx(variance, rel=0.15)


def test_partners_are_a_uniform_permutation_of_examples_not_of_places():
    ids = torch.tensor([40, 7, 23, 91])
    counts = torch.zeros(4, 4)
    for number in range(1000):
        partner = partners(Noise(number, "p").at(ids))
        counts[torch.arange(4), partner] += 1
        assert partner.sort().values.tolist() == [0, 1, 2, 3]
    assert counts.min() > 250 - 4 * (1000 * 0.25 * 0.75) ** 0.5
    order = torch.tensor([2, 0, 3, 1])
    one, other = partners(Noise(5, "p").at(ids)), partners(Noise(5, "p").at(ids[order]))
    assert dict(zip(ids.tolist(), ids[one].tolist(), strict=True)) == dict(
        zip(ids[order].tolist(), ids[order][other].tolist(), strict=True)
    )


@pytest.mark.parametrize("base", [STANDARD, ("pgd_at", PGDAT(steps=2))])
def test_nothing_is_mixed_at_concentration_0(base, quick: Callable, same: Callable):
    plain = quick(compose(base))
    assert same(quick(compose(base, ("mixup", Mixup(0)))), plain)
    assert same(quick(compose(base, ("manifold_mixup", ManifoldMixup(0)))), plain)
    assert not same(quick(compose(base, ("mixup", Mixup()))), plain)


def test_manifold_mixup_at_the_input_is_mixup(quick: Callable, same: Callable):
    base = ("pgd_at", PGDAT(steps=2))
    at_input = ManifoldMixup(1.0, ("input",))
    assert same(quick(compose(base, ("manifold_mixup", at_input))), quick(compose(base, ("mixup", Mixup(1.0)))))


def test_hidden_states_are_mixed_and_the_network_is_left_alone():
    """Behind a mixed layer that is followed by a linear one, logits are mixtures of logits."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x, partner = 4 * torch.eye(4)[:3].view(3, 1, 2, 2) - 2, torch.tensor([1, 2, 0])
    plain = module(x)
    mixed = Mixing(module, "2", 0.3, partner)(x)
    assert torch.allclose(mixed, mix(plain, 0.3, partner), atol=1e-6)
    assert not torch.allclose(Mixing(module, "1", 0.3, partner)(x), mixed)
    twice = Mixing(module, "2", 0.3, partner)(torch.cat([x, x]))  # two views in one batch
    assert torch.allclose(twice, torch.cat([mixed, mixed]), atol=1e-6)
    assert torch.equal(module(x), plain)


def test_the_layers_that_are_drawn_from(quick: Callable):
    network = build("preactresnet18", {"width": 2}, num_classes=3, input_shape=(3, 8, 8))
    assert first_parts(network) == ["conv1", "layer1"]
    assert first_parts(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))) == []
    with pytest.raises(UsageError, match="no layer 'layr1'"):
        quick(compose(STANDARD, ("manifold_mixup", ManifoldMixup(layers=("layr1",)))))


@pytest.mark.parametrize("layers", [(), ("0",), ("2", "input")])
def test_manifold_mixup_trains(layers: tuple[str, ...], quick: Callable, same: Callable):
    modified = ("manifold_mixup", ManifoldMixup(layers=layers))
    trained = quick(compose(("pgd_at", PGDAT(steps=1)), modified), epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    assert not trained.module[0]._forward_hooks
    assert same(trained, quick(compose(("pgd_at", PGDAT(steps=1)), modified), epochs=4))


def test_regmixup_adds_the_mixed_loss(toy: Step, loss: Callable[..., float]):
    for method, weights in (
        (RegMixup(), (1, 1)),
        (RegMixup(mean=True), (0.5, 0.5)),
        (RegMixup(2, mean=True), (1 / 3, 2 / 3)),
    ):
        toy.views.update(method.views(toy))
        terms = method.terms(toy)
        assert (terms["ce"].weight, terms["ce_mixed"].weight) == pytest.approx(weights)
    share, partner = beta_share(toy, 20.0), partners(toy.noise)
    mixture = mix(toy.x, share, partner)
    expected = 0.360645 + float(ce(mixture, mix(toy.q, share, partner)).mean())
    toy.views.update(RegMixup().views(toy))
    toy.forget_logits()
    assert loss(RegMixup(), toy) == pytest.approx(expected, abs=1e-5)
    assert 0.2 < share < 0.8


def test_regmixup_without_eta_is_standard_training(quick: Callable, same: Callable, digits: Dataset):
    assert same(quick(RegMixup(eta=0)), quick(Standard()))
    trained = quick(RegMixup(), epochs=4)
    assert trained.history[-1].terms["ce"] < trained.history[0].terms["ce"]
    # clean and mixed images share one batch, and so its statistics
    assert trained.last_state["1.num_batches_tracked"] == 4 * 3


@pytest.mark.parametrize("method", [Mixup, ManifoldMixup, RegMixup])
def test_bad_parameters(method: Callable):
    with pytest.raises(UsageError, match="concentration >= 0"):
        method(concentration=-1)
    with pytest.raises(UsageError, match="eta >= 0"):
        RegMixup(eta=-1)
    with pytest.raises(UsageError, match="list of names"):
        ManifoldMixup(layers="input")  # type: ignore[arg-type]
