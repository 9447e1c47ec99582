"""SWA and Generalist: averages of weights, and the batch-norm statistics that go with them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Context, StepMethod
from robustsuite.defenses.composed import compose
from robustsuite.defenses.ema import EMA
from robustsuite.defenses.generalist import Generalist, blend
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.swa import SWA
from robustsuite.errors import UsageError
from robustsuite.training.run import shuffled

BASE = ("pgd_at", PGDAT(steps=1))
Ends = list[dict[str, Tensor]]


def watched(seen: Ends) -> tuple[str, StepMethod]:
    @dataclass(frozen=True)
    class Watch(StepMethod):
        def epoch_end(self, context: Context) -> None:
            seen.append(copy.deepcopy(context.module.state_dict()))

    return "watch", Watch()


def test_swa_is_the_mean_of_the_ends_of_the_epochs(quick: Callable):
    seen: Ends = []
    trained = quick(compose(BASE, watched(seen), ("swa", SWA(start=0.5))), epochs=4)
    for name in ("0.weight", "0.bias", "1.weight", "5.bias"):
        mean = torch.stack([state[name] for state in seen[1:]]).mean(0)  # progress is 0.5 after the second epoch
        assert torch.allclose(trained.last_state[name], mean, atol=1e-6)
        assert not torch.equal(trained.last_state[name], seen[-1][name])


def test_swa_statistics_are_those_of_torch(quick: Callable, digits: Dataset):
    trained = quick(compose(BASE, ("swa", SWA(start=0.0))), epochs=3)
    reference = copy.deepcopy(trained.module)
    reference.load_state_dict(trained.last_state)
    update_bn([digits.x[rows] for rows in shuffled(digits.ids, 3, 16, seed=0)], reference)  # type: ignore[arg-type]
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.allclose(trained.last_state[name], reference.state_dict()[name], rtol=1e-5), name


def test_swa_of_equal_weights_and_before_it_starts(quick: Callable, same: Callable):
    still = quick(compose(BASE, ("swa", SWA(start=0.0))), lr=0.0, epochs=3)
    fresh = quick(compose(BASE), lr=0.0, epochs=1)
    for name in ("0.weight", "0.bias", "5.weight"):
        assert torch.allclose(still.last_state[name], fresh.last_state[name], atol=1e-7)
    plain = quick(compose(BASE))
    states = quick(compose(BASE, ("swa", SWA(start=1.0)))).history
    assert [epoch.terms for epoch in states] == [epoch.terms for epoch in plain.history]


def test_swa_survives_a_kill(survives: Callable):
    assert survives(compose(BASE, ("swa", SWA(start=0.0))))


def test_generalist_of_the_robust_learner_alone_is_its_average(quick: Callable, same: Callable):
    alone = quick(Generalist(steps=1, knots=(1.0,), restart=1.0, every=99))
    assert same(alone, quick(compose(BASE, ("ema", EMA(decay=0.999)))))


def test_generalist_of_the_natural_learner_alone(quick: Callable):
    """At share 0 the mixture is the average of a standard training of the second network."""

    @dataclass(frozen=True)
    class SameStart(Standard):
        def setup(self, context: Context) -> None:
            context.module.load_state_dict(context.build("natural").state_dict())

    without_dropout = "tests_methods_no_dropout"
    expected = quick(compose(("s", SameStart()), ("ema", EMA(decay=0.999))), arch=without_dropout)
    alone = quick(Generalist(steps=1, knots=(0.0,), restart=1.0, every=99, natural_lr=1.0), arch=without_dropout)
    for name, tensor in expected.last_state.items():
        assert torch.equal(alone.last_state[name], tensor), name


def test_the_share_runs_through_its_knots():
    method = Generalist()
    assert [method.share(t) for t in (0, 1 / 3, 0.5, 2 / 3, 5 / 6, 1)] == pytest.approx([1, 1, 1, 1, 0.7, 0.4])
    assert Generalist(knots=(0.2,)).share(0.7) == 0.2


def test_a_mixture_keeps_types_and_counts():
    first, second = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    second.load_state_dict(second.state_dict() | {"running_mean": torch.ones(2)})
    first.load_state_dict(first.state_dict() | {"num_batches_tracked": torch.tensor(7)})
    mixed = blend(first, second, 0.25)
    assert mixed["running_mean"].tolist() == [0.75, 0.75]
    assert mixed["num_batches_tracked"].dtype == torch.int64
    assert mixed["num_batches_tracked"] == 7


def test_learners_start_again_from_the_mixture(quick: Callable):
    seen: Ends = []
    method = Generalist(steps=1, knots=(0.5,), restart=0.5, every=2)
    trained = quick(compose(("generalist", method), watched(seen)), epochs=2)
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in trained.last_state.items())
    assert not torch.equal(seen[0]["0.weight"], seen[1]["0.weight"])


def test_generalist_survives_a_kill(survives: Callable):
    assert survives(Generalist(steps=1, knots=(1.0, 0.4), restart=0.5, every=1))


def test_two_that_keep_something_are_refused():
    with pytest.raises(UsageError, match="both say which weights are kept"):
        compose(("generalist", Generalist()), ("swa", SWA()))


@pytest.mark.parametrize("bad", [{"knots": ()}, {"knots": (2.0,)}, {"every": 0}, {"restart": 2}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="generalist needs"):
        Generalist(**bad)
    with pytest.raises(UsageError, match="swa needs"):
        SWA(start=-0.1)
