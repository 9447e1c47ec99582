"""FOMO: exactly so many weights are forgotten and no others, phases, and consistency with the stable model."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step
from robustsuite.defenses.averaging import follow
from robustsuite.defenses.composed import compose
from robustsuite.defenses.fomo import FOMO, forget, later_layers
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.models.hooks import weighted_layers
from robustsuite.noise import Noise
from robustsuite.registry import ARCHITECTURES

BASE = ("pgd_at", PGDAT(steps=1))
STILL = "tests_methods_no_dropout"


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 20), nn.BatchNorm1d(20), nn.Linear(20, 50))


def test_exactly_so_many_and_no_others():
    live = network()
    before = copy.deepcopy(live.state_dict())
    forget(live, 0.035, 2 / 3, Noise(0, "test"))
    changed = {name: int((tensor != before[name]).sum()) for name, tensor in live.state_dict().items()}
    assert {name: count for name, count in changed.items() if count} == {"2.weight": 35, "4.weight": 35}
    other = network()
    other.load_state_dict(before)
    forget(other, 0.035, 2 / 3, Noise(0, "test"))
    assert all(torch.equal(a, b) for a, b in zip(live.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_is_forgotten_is_drawn_like_a_new_layer():
    live = nn.Sequential(nn.Conv2d(8, 60, 5))
    with torch.no_grad():
        live[0].weight.fill_(7)
    forget(live, 1.0, 1.0, Noise(1, "test"))
    new = live[0].weight.detach()
    assert float(new.std()) == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert abs(float(new.mean())) < 0.005


def test_later_layers_of_a_resnet():
    """The last 11 of 21: stages 3 and 4, and the classifier."""
    ARCHITECTURES.discover()
    resnet = ARCHITECTURES.get("resnet18").target(num_classes=10, input_shape=(3, 32, 32))
    chosen = later_layers(resnet, 0.5)
    assert chosen == weighted_layers(resnet)[10:]
    assert {name.split(".")[0] for name in chosen[:-1]} == {"layer3", "layer4"}
    assert (len(chosen), len(weighted_layers(resnet))) == (11, 21)


def test_the_stable_model_follows():
    average, live = network(), network()
    live[3](torch.randn(8, 20))
    before = average[0].weight.clone()
    follow(average, live, 0.75, "average")
    assert torch.allclose(average[0].weight, 0.75 * before + 0.25 * live[0].weight)
    assert average[3].num_batches_tracked == 1
    follow(average, live, 0.0, "average")
    assert all(
        torch.equal(a, b) for a, b in zip(average.state_dict().values(), live.state_dict().values(), strict=True)
    )


def test_consistency_with_itself_is_nothing(toy: Step):
    toy.aux = {"fomo": copy.deepcopy(toy.module)}
    method = FOMO()
    assert method.terms(toy) == {}
    toy.memory["since"] = 0
    assert method.views(toy) == {}
    assert {name: term.values.tolist() for name, term in method.terms(toy).items()} == {
        "fomo_adv": [0, 0],
        "fomo_clean": [0, 0],
    }


def test_golden_divergence(toy: Step):
    """A stable model that answers the clean logits to adversarial inputs: KL(p || p')."""

    class Clean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return toy.views["clean"]

    toy.aux, toy.memory["since"] = {"fomo": Clean()}, 0
    method = FOMO(on_clean=False, consistency=3)
    method.views(toy)
    term = method.terms(toy)["fomo_adv"]
    assert term.values.tolist() == pytest.approx([0.171808, 0.364175], abs=1e-5)
    assert term.weight == 3


def test_phases(quick: Callable, same: Callable):
    """Two epochs of warm-up, then cycles of two whose second epoch consolidates; the last epoch forgets nothing."""
    seen = []

    class Watching(FOMO):
        def post_step(self, step: Step) -> None:
            seen.append((step.epoch, step.memory.get("since"), "fomo" in step.trace))
            super().post_step(step)

    method = Watching(warmup=0.3, every=2, forget=0.5)
    trained = quick(compose(BASE, ("fomo", method)), epochs=6)
    assert sorted(set(seen), key=lambda row: row[0]) == [
        (1, None, False), (2, None, False), (3, 0, True), (4, 1, True), (5, 0, True), (6, 1, True)
    ]  # fmt: skip
    assert trained.history[-1].terms.keys() == {"ce_adv", "fomo_adv", "fomo_clean"}


def test_a_stable_model_that_is_the_network_leaves_the_base(quick: Callable, same: Callable):
    nothing = FOMO(forget=0, every=1, warmup=0, decay=0, consistency=0)
    assert same(quick(compose(BASE, ("fomo", nothing))), quick(compose(BASE)))
    assert same(quick(compose(BASE, ("fomo", FOMO(warmup=1)))), quick(compose(BASE)))
    assert not same(quick(compose(BASE, ("fomo", FOMO(every=1, warmup=0)))), quick(compose(BASE)))


def test_it_trains_with_trades_and_goes_on(quick: Callable, survives: Callable):
    method = compose(("trades", TRADES(steps=1)), ("fomo", FOMO(every=1, warmup=0.4, decay=0.5)))
    trained = quick(method, epochs=6, arch=STILL)
    assert trained.history[-1].terms["ce"] < trained.history[0].terms["ce"]
    assert survives(method)


def test_bad_parameters(quick: Callable):
    for bad in ({"forget": 2}, {"warmup": -1}, {"later": 2}, {"decay": 1.5}, {"consistency": -1}, {"every": 0},
                {"consolidate": 0}, {"consolidate": 9}):  # fmt: skip
        with pytest.raises(UsageError, match="fomo needs"):
            FOMO(**bad)
    with pytest.raises(UsageError, match="works on the view 'adv'"):
        quick(compose(("standard", Standard()), ("fomo", FOMO())))


def test_the_optimiser_forgets_with_the_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 40))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    first, last = (optimizer.state[net[i].weight]["momentum_buffer"].clone() for i in (0, 2))
    before = net[2].weight.detach().clone()
    forget(net, 0.25, 0.5, Noise(0, "forget"), optimizer)
    changed = net[2].weight != before
    assert int(changed.sum()) == 50
    assert torch.equal(optimizer.state[net[0].weight]["momentum_buffer"], first)
    assert torch.equal(optimizer.state[net[2].weight]["momentum_buffer"], last.masked_fill(changed, 0))
