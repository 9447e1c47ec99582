"""A base with modifiers: how slots come together, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from robustsuite.defenses import InnerSpec, Step, StepMethod, Term, ce
from robustsuite.defenses.awp import AWP
from robustsuite.defenses.composed import compose
from robustsuite.defenses.ema import EMA
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.errors import ContractError, UsageError
from robustsuite.training import make_composed

BASE = ("pgd_at", PGDAT())


@dataclass(frozen=True)
class Weigh(StepMethod):
    factor: float = 2.0
    weighs: ClassVar = ("ce_adv",)

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        return {"ce_adv": torch.full_like(terms["ce_adv"].values, self.factor)}


@dataclass(frozen=True)
class Extra(StepMethod):
    """A term of its own, and a count of its calls."""

    name: str = "extra"
    needs: ClassVar = ("adv",)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        step.memory["calls"] = step.memory.get("calls", 0) + 1
        return {}

    def terms(self, step: Step) -> Mapping[str, Term]:
        return {self.name: Term(ce(step.logits("clean"), step.q), 0.5)}

    def inner(self, step: Step, spec: InnerSpec) -> InnerSpec:
        step.memory["asked"] = spec.steps
        return spec


def play(method: StepMethod, step: Step) -> tuple[Mapping[str, Term], Mapping[str, Tensor]]:
    step.adjust = method.inner
    step.q = method.labels(step)
    step.views.update(method.views(step))
    terms = method.terms(step)
    return terms, method.weights(step, terms)


def test_terms_add_up_and_weights_multiply(toy: Step):
    method = compose(BASE, ("a", Weigh(2.0)), ("b", Weigh(5.0)), ("c", Extra()))
    terms, weights = play(method, toy)
    assert set(terms) == {"ce_adv", "extra"}
    assert weights["ce_adv"].tolist() == [10, 10]


def test_every_part_has_a_memory_of_its_own(toy: Step):
    play(compose(BASE, ("c", Extra("one")), ("d", Extra("two"))), toy)
    assert toy.memories["c"] == {"asked": 10, "calls": 1} == toy.memories["d"]
    assert toy.memories.get("pgd_at", {}) == {}


@pytest.mark.parametrize(("scope", "loss", "attack"), [("loss", 0.9, 1.0), ("attack", 1.0, 0.9), ("both", 0.9, 0.9)])
def test_labels_reach_those_who_shall_see_them(toy: Step, scope: str, loss: float, attack: float):
    smoothing = LabelSmoothing(smoothing=0.15, scope=scope)  # type: ignore[arg-type]
    method = compose(BASE, ("label_smoothing", smoothing))
    toy.q = method.labels(toy)
    assert toy.q_attack is not None
    assert (toy.q[0, 0].item(), toy.q_attack[0, 0].item()) == pytest.approx((loss, attack))
    seen: list[Tensor] = []
    toy.inner = lambda step, spec, x, q: (seen.append(q), x)[1]
    method.views(toy)
    assert seen[0] is toy.q_attack


def test_labels_chain(toy: Step):
    part = LabelSmoothing(0.5, scope="both")
    q = compose(BASE, ("a", part), ("b", LabelSmoothing(0.2, scope="loss"))).labels(toy)
    once = 0.5 + 0.5 / 3
    assert q[0, 0].item() == pytest.approx(0.8 * once + 0.2 / 3)
    assert toy.q_attack is not None
    assert toy.q_attack[0, 0].item() == pytest.approx(once)


def test_facts_of_the_whole():
    @dataclass(frozen=True)
    class Coupled(StepMethod):
        batch_coupled: ClassVar = True
        second_order: ClassVar = True

    whole = compose(BASE, ("awp", AWP()), ("c", Coupled()))
    assert (whole.batch_coupled, whole.second_order, whole.restore) == (True, True, "after_update")
    assert (compose(BASE).batch_coupled, compose(BASE).restore) == (False, "before_update")
    assert compose(("standard", Standard()), ("ema", EMA())).select == "last"


def test_what_cannot_be_combined_is_refused_with_the_reason(toy: Step):
    with pytest.raises(UsageError, match="awp and other cannot be combined: both move the weights"):
        compose(BASE, ("awp", AWP()), ("other", AWP()))
    with pytest.raises(UsageError, match="both say which weights are kept"):
        compose(BASE, ("ema", EMA()), ("other", EMA()))
    with pytest.raises(UsageError, match="'awp' is given twice"):
        compose(BASE, ("awp", AWP()), ("awp", AWP()))
    del toy.views["adv"]
    with pytest.raises(UsageError, match=r"extra works on the view 'adv', which standard does not make.*pgd_at"):
        play(compose(("standard", Standard()), ("extra", Extra())), toy)
    with pytest.raises(UsageError, match=r"weigh weighs the terms ce_adv, and standard has ce;"):
        play(compose(("standard", Standard()), ("weigh", Weigh())), toy)
    with pytest.raises(ContractError, match="a term 'ce_adv' that is there already"):
        play(compose(BASE, ("extra", Extra("ce_adv"))), toy)


def test_parameters_find_their_part():
    whole = make_composed(
        "trades", ["awp", "label_smoothing"], {"beta": 3, "gamma": 0.5, "label_smoothing.smoothing": 0.2}
    )
    parts = dict(whole.parts)
    assert parts["trades"].beta == 3  # type: ignore[attr-defined]
    assert parts["awp"].gamma == 0.5  # type: ignore[attr-defined]
    assert parts["label_smoothing"].smoothing == 0.2  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="Did you mean 'gamma'"):
        make_composed("trades", ["awp"], {"gama": 0.5})
    with pytest.raises(UsageError, match="'ema', which is not trained here; the parts are: trades, awp"):
        make_composed("trades", ["awp"], {"ema.decay": 0.5})
    with pytest.raises(UsageError, match="'standard' is no modifier but a base"):
        make_composed("trades", ["standard"])
    with pytest.raises(UsageError, match="smoothing must lie in"):
        make_composed("trades", ["label_smoothing"], {"smoothing": 1.5})


def test_a_modifier_alone_brings_its_papers_base():
    assert [name for name, _ in make_composed("awp").parts] == ["pgd_at", "awp"]


def test_published_parameters_are_taken_when_asked_for():
    plain, mnist = make_composed("trades"), make_composed("trades", (), {}, "mnist")
    assert dict(plain.parts)["trades"].steps == 10  # type: ignore[attr-defined]
    assert (dict(mnist.parts)["trades"].beta, dict(mnist.parts)["trades"].steps) == (1.0, 40)  # type: ignore[attr-defined]
    assert dict(make_composed("trades", (), {"beta": 2}, "mnist").parts)["trades"].beta == 2  # type: ignore[attr-defined]
