"""GradDiv: how much the input gradients of a random network agree."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustsuite.defenses import Step
from robustsuite.defenses.graddiv import GradDiv, concentration
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense

EYE = torch.eye(3).double()
SAME = EYE[[0, 0, 0]]


@pytest.mark.parametrize(
    ("rows", "cosine", "kappa", "volume"),
    [
        (EYE, 0.0, 2.309401, -3 * torch.tensor(1.001).log().item()),
        (EYE[[0, 0, 1]], 1 / 3, 4.099458, 6.213109),
    ],
)
def test_the_sheets_numbers(rows: torch.Tensor, cosine: float, kappa: float, volume: float):
    gradients = rows.unsqueeze(0)
    assert float(concentration(gradients, "cosine")) == pytest.approx(cosine, abs=1e-6)
    assert float(concentration(gradients, "vmf").exp()) == pytest.approx(kappa, abs=1e-5)
    assert float(concentration(gradients, "volume")) == pytest.approx(volume, abs=1e-5)


@pytest.mark.parametrize("penalty", ["cosine", "vmf", "volume"])
def test_it_is_largest_where_all_are_the_same(penalty: str):
    random = torch.randn(20, 3, 8, generator=torch.Generator().manual_seed(0)).double()
    random = torch.cat([random / random.norm(dim=2, keepdim=True), torch.zeros(1, 3, 8).double()])
    most = concentration(torch.eye(8)[[0, 0, 0]].unsqueeze(0).double(), penalty)
    found = concentration(random, penalty)
    assert bool(found.isfinite().all())
    assert float(found.max()) < float(most)
    same = torch.eye(8)[[0, 0, 0]].unsqueeze(0).double().requires_grad_(True)
    concentration(same, penalty).sum().backward()
    assert same.grad is not None
    assert bool(same.grad.isfinite().all())


@pytest.fixture
def network(toy: Step) -> Step:
    toy.module = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.linspace(0.2, 0.8, 12).view(2, 1, 2, 3)
    toy.rebatch(x=x, q=toy.q.float())
    toy.views["adv"] = x
    return toy


def test_a_network_without_noise_agrees_with_itself(network: Step):
    terms = GradDiv(sigma=0).terms(network)
    assert terms["graddiv"].values.tolist() == pytest.approx([1, 1])
    assert torch.allclose(terms["ce_adv"].values, PGDAT().terms(network)["ce_adv"].values)


def test_draws_are_keyed_by_example(network: Step):
    values = GradDiv(sigma=0.5).terms(network)["graddiv"].values
    assert bool((values < 0.9999).all())
    assert torch.equal(values, GradDiv(sigma=0.5).terms(network)["graddiv"].values)
    network.rebatch(x=network.x.flip(0), y=network.y.flip(0), q=network.q.flip(0), ids=network.noise.ids.flip(0))
    assert torch.allclose(values.flip(0), GradDiv(sigma=0.5).terms(network)["graddiv"].values)


def test_the_penalty_is_that_of_draws_made_by_hand(network: Step):
    gradients = []
    for number in (1, 2):
        noise = network.noise.child(f"graddiv/gradients/pass/{number}").child("layer/1").normal((8,))
        leaf = network.x.clone().requires_grad_(True)
        hidden = network.module[1](leaf.flatten(1)) + 0.3 * noise  # type: ignore[index]
        logits = network.module[3](hidden.tanh())  # type: ignore[index]
        loss = nn.functional.cross_entropy(logits, network.y, reduction="sum")
        gradients.append(torch.autograd.grad(loss, leaf)[0].flatten(1))
    found = GradDiv(sigma=0.3, relative=False, draws=2).terms(network)["graddiv"].values
    assert torch.allclose(found, torch.cosine_similarity(*gradients), atol=1e-5)


def test_without_noise_and_weight_it_is_adversarial_training(quick: Callable, same: Callable):
    assert same(quick(GradDiv(weight=0, sigma=0, steps=2)), quick(PGDAT(steps=2)))


@pytest.mark.parametrize("penalty", ["cosine", "vmf", "volume"])
def test_gradients_spread(penalty: str, quick: Callable):
    recipe = {"arch": "tests_methods_no_dropout", "epochs": 6, "lr": 0.05}
    held, free = (
        quick(GradDiv(weight=w, penalty=penalty, sigma=0.5, steps=1), **recipe)  # type: ignore[arg-type]
        for w in (1.0, 1e-6)
    )
    assert held.history[-1].terms["graddiv"] < free.history[-1].terms["graddiv"] / 1e-6
    assert held.history[-1].terms["graddiv"] < held.history[0].terms["graddiv"]


def test_it_survives_a_kill(survives: Callable):
    assert survives(GradDiv(steps=1))


@pytest.mark.parametrize(("penalty", "weight"), [("cosine", 0.5), ("vmf", 0.05), ("volume", 0.1)])
def test_the_contract_holds(penalty: str, weight: float):
    params = {"penalty": penalty, "weight": weight}
    assert [str(f) for f in check_defense(DEFENSES.get("graddiv"), params) if not f.ok] == []


def test_what_cannot_be_is_refused(quick: Callable):
    bads: list[dict[str, Any]] = [{"weight": -1}, {"draws": 1}, {"penalty": "none"}]
    for bad in bads:
        with pytest.raises(UsageError, match="graddiv needs"):
            GradDiv(**bad)
    with pytest.raises(UsageError, match="a list of names"):
        GradDiv(layers="conv")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no layer 'conv'"):
        quick(GradDiv(layers=("conv",), steps=1))
