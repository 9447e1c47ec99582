"""The contract of step methods: slots, caching, reduction, and errors that say what to change."""

import pytest
import torch

from robustsuite.defenses import InnerSpec, Step, StepMethod, Term, reduce_terms
from robustsuite.errors import ContractError, UsageError


class Empty(StepMethod):
    pass


def test_unset_slots_are_the_identity(toy: Step):
    method = Empty()
    assert method.labels(toy) is toy.q
    assert dict(method.views(toy)) == {}
    assert dict(method.weights(toy, {})) == {}
    assert method.post_step(toy) is None


def test_a_view_is_forwarded_once_until_it_is_forgotten(toy: Step):
    first = toy.logits("clean")
    assert toy.logits("clean") is first
    assert toy.passes.forward == 2
    toy.forget_logits()
    toy.logits("clean")
    assert toy.passes.forward == 4


def test_an_unknown_view_is_named(toy: Step):
    with pytest.raises(UsageError, match=r"no view 'noisy'.*clean, adv"):
        toy.logits("noisy")


def test_terms_are_averaged_weighted_and_summed():
    terms = {"a": Term(torch.tensor([1.0, 3.0])), "b": Term(torch.tensor([2.0, 4.0]), 10.0)}
    scalars = reduce_terms(terms, {"b": torch.tensor([0.0, 0.5])}, 2)
    assert {k: float(v) for k, v in scalars.items()} == {"a": 2.0, "b": 10.0}


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ({}, {}, "no loss term"),
        ({"kl": Term(torch.tensor(1.0))}, {}, r"'kl'.*shape \[2\].*got \[\]"),
        ({"kl": Term(torch.ones(2, 3))}, {}, r"got \[2, 3\]"),
        ({"kl": Term(torch.ones(2))}, {"ce": torch.ones(2)}, r"unknown terms \['ce'\]"),
        ({"kl": Term(torch.ones(2))}, {"kl": torch.ones(1)}, r"weights of term 'kl'"),
    ],
)
def test_wrong_terms_are_refused(terms: dict, weights: dict, message: str):
    with pytest.raises(ContractError, match=message):
        reduce_terms(terms, weights, 2)


def test_a_divergence_cannot_start_at_zero():
    with pytest.raises(UsageError, match="never moves"):
        InnerSpec(loss="kl", init="zero")


def test_a_maximised_view_carries_no_graph(toy: Step):
    weight = torch.ones(1, requires_grad=True)
    toy.inner = lambda step, spec, x, q: x * weight
    assert not toy.maximise(InnerSpec()).requires_grad
