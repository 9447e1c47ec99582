"""Every built-in step method on the toy batch: golden numbers and identities."""

from collections.abc import Mapping

import pytest
import torch

from robustsuite.defenses import InnerSpec, Step, StepMethod, Term, reduce_terms
from robustsuite.defenses.gaussian import Gaussian
from robustsuite.defenses.ibp import IBP
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.threat import ThreatModel

METHODS = {
    "standard": Standard(),
    "pgd_at": PGDAT(),
    "trades": TRADES(),
    "ibp": IBP(),
    "gaussian": Gaussian(),
}


def loss(method: StepMethod, step: Step) -> float:
    terms: Mapping[str, Term] = method.terms(step)
    return float(sum(reduce_terms(terms, method.weights(step, terms), len(step.y)).values()))


@pytest.mark.parametrize(
    ("method", "expected"),
    [(TRADES(beta=6), 1.968595), (TRADES(beta=0), 0.360645), (PGDAT(), 1.053201), (Standard(), 0.360645)],
)
def test_golden_losses(method: StepMethod, expected: float, toy: Step):
    assert loss(method, toy) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_all_are_registered_with_paper_and_cost(name: str):
    entry = DEFENSES.get(name)
    assert entry.target is type(METHODS[name])
    assert entry.facts["kind"] == "step"
    assert entry.facts["paper"]
    assert entry.facts["cost"]
    assert entry.summary


@pytest.mark.parametrize("name", METHODS)
def test_a_doubled_batch_has_the_same_loss(name: str, toy: Step, doubled: Step):
    method = METHODS[name]
    for step in (toy, doubled):
        step.views["noisy"] = step.views["adv"]
        step.progress = 0.9
    assert loss(method, doubled) == pytest.approx(loss(method, toy), abs=1e-12)


def test_the_inner_problem_of_each_method(toy: Step):
    asked: list[InnerSpec] = []

    def inner(step: Step, spec: InnerSpec, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        asked.append(spec)
        return x

    toy.inner = inner
    PGDAT(steps=7, alpha=0.2).views(toy)
    TRADES(steps=3).views(toy)
    assert asked == [InnerSpec("ce", 7, 0.2, init="uniform"), InnerSpec("kl", 3, 0.25, init="gauss")]
    assert TRADES(beta=0).views(toy) == {}
    assert Standard().views(toy) == {}


def test_gaussian_noise_is_keyed_and_has_its_scale(toy: Step):
    toy.x = torch.full((2, 1, 60, 60), 0.5)
    noise = Gaussian(sigma=0.25).views(toy)["noisy"] - 0.5
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(Gaussian(sigma=0.25).views(toy)["noisy"] - 0.5, noise)
    assert not torch.equal(noise[0], noise[1])


def test_ibp_grows_radius_and_worst_case_share_together(toy: Step):
    boxes: list[tuple[torch.Tensor, torch.Tensor]] = []

    def bounds(lower: torch.Tensor, upper: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        boxes.append((lower, upper))
        return torch.zeros_like(lower)

    toy.bounds, toy.threat = bounds, ThreatModel.parse("Linf:0.2")
    toy.x = torch.tensor([[0.05, 0.5, 0.95], [0.3, 0.4, 0.5]], dtype=torch.float64)
    toy.views["clean"] = toy.x
    method = IBP(warmup=0.2, ramp=0.6)
    assert set(method.terms(toy)) == {"ce"}
    assert boxes == []
    toy.progress = 0.4
    halfway = method.terms(toy)
    assert {k: t.weight for k, t in halfway.items()} == pytest.approx({"ce": 0.75, "ce_worst": 0.25})
    lower, upper = boxes[-1]
    assert lower[0].tolist() == pytest.approx([0, 0.4, 0.85])
    assert upper[0].tolist() == pytest.approx([0.15, 0.6, 1])
    toy.progress = 0.99
    final = method.terms(toy)
    assert {k: t.weight for k, t in final.items()} == pytest.approx({"ce": 0.5, "ce_worst": 0.5})
    # with margins of 0 nothing is known: the worst logits are uniform
    assert final["ce_worst"].values.tolist() == pytest.approx([torch.log(torch.tensor(3.0)).item()] * 2, abs=1e-6)


def test_ibp_worst_logits_are_minus_the_margins(toy: Step):
    toy.bounds = lambda lower, upper, y: torch.tensor([[0, 1.0, 2], [3, 0, -1]], dtype=torch.float64)
    toy.progress = 1.0
    expected = [float(torch.tensor([0, -1.0, -2]).logsumexp(0)), float(torch.tensor([-3.0, 0, 1]).logsumexp(0))]
    assert IBP().terms(toy)["ce_worst"].values.tolist() == pytest.approx(expected, abs=1e-6)


def test_ibp_refuses_an_impossible_schedule():
    with pytest.raises(UsageError, match="warmup <= ramp"):
        IBP(warmup=0.7, ramp=0.5)
    with pytest.raises(UsageError, match="kappa"):
        IBP(kappa_end=-0.1)
