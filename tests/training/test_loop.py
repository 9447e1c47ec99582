"""The loop: determinism, identities between methods, odd sizes, and what stops it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step, StepMethod, Term, ce
from robustsuite.defenses.gaussian import Gaussian
from robustsuite.defenses.ibp import IBP
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import ContractError, InputError, UnknownNameError, UsageError
from robustsuite.registry import ARCHITECTURES
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train
from robustsuite.training.run import shuffled
from robustsuite.training.trained import DivergedError, Trained

LINF = ThreatModel.parse("Linf:0.1")
QUICK = {"epochs": 3, "batch_size": 16, "lr": 0.1, "validation": 0}


def quick(method: StepMethod, data: Dataset, arch: str = "tests_bn_dropout", threat: ThreatModel = LINF, **changed):
    return train(method, arch, {}, data, threat, **(QUICK | changed))


def same(a: Trained, b: Trained) -> bool:
    return all(torch.equal(a.last_state[name], b.last_state[name]) for name in a.last_state)


@pytest.mark.parametrize("method", [PGDAT(steps=2), TRADES(steps=2), Gaussian(0.1)])
def test_the_same_seed_gives_the_same_bits(method: StepMethod, blobs: Dataset):
    first = quick(method, blobs)
    torch.rand(17)  # the global generator is nobody's business
    assert same(first, quick(method, blobs))
    assert not same(first, quick(method, blobs, seed=1))


def test_the_global_generator_is_left_alone(blobs: Dataset):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    quick(PGDAT(steps=1), blobs, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_trades_without_beta_is_standard_training(blobs: Dataset):
    assert same(quick(TRADES(beta=0), blobs), quick(Standard(), blobs))


def test_pgd_at_without_eps_is_standard_training(blobs: Dataset):
    zero = ThreatModel.parse("Linf:0")
    assert same(quick(PGDAT(), blobs, threat=zero), quick(Standard(), blobs, threat=zero))


def test_gaussian_of_noise_that_rounds_away_is_standard_training(blobs: Dataset):
    assert same(quick(Gaussian(sigma=1e-30), blobs), quick(Standard(), blobs))


def test_ibp_with_kappa_one_is_standard_training(blobs: Dataset):
    assert same(quick(IBP(kappa_start=1, kappa_end=1), blobs), quick(Standard(), blobs))


def test_labels_and_weights_reach_the_loss(blobs: Dataset):
    @dataclass(frozen=True)
    class Half(StepMethod):
        def labels(self, step: Step) -> Tensor:
            return step.q.roll(1, 1)

        def terms(self, step: Step) -> Mapping[str, Term]:
            return {"ce": Term(ce(step.logits("clean"), step.q), 2.0)}

        def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
            return {"ce": torch.full_like(terms["ce"].values.detach(), 0.5)}

    rolled = Dataset("rolled", blobs.x, (blobs.y + 1) % 3, blobs.ids, 3)
    assert same(quick(Half(), blobs), quick(Standard(), rolled))


def test_post_step_comes_after_the_update(blobs: Dataset):
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Watch(Standard):
        def terms(self, step: Step) -> Mapping[str, Term]:
            seen.append(next(step.module.parameters()).detach().clone())
            return super().terms(step)

        def post_step(self, step: Step) -> None:
            seen.append(next(step.module.parameters()).detach().clone())

    quick(Watch(), blobs, epochs=1, batch_size=30)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])


def test_statistics_are_updated_by_the_trained_view_alone(blobs: Dataset):
    assert quick(PGDAT(steps=5), blobs).last_state["1.num_batches_tracked"] == 3 * 4


def test_shuffling_is_a_permutation_keyed_by_example(blobs: Dataset):
    batches = shuffled(blobs.ids, 1, 16, seed=0)
    assert [len(b) for b in batches] == [16, 16, 16, 12]
    order = torch.cat(batches)
    assert order.sort().values.tolist() == list(range(60))
    assert order.tolist() != torch.cat(shuffled(blobs.ids, 2, 16, seed=0)).tolist()
    # the order of the examples in the data set does not matter, only who they are
    flipped = torch.cat(shuffled(blobs.ids.flip(0), 1, 16, seed=0))
    assert blobs.ids.flip(0)[flipped].tolist() == blobs.ids[order].tolist()


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(5, 16, [5]), (17, 16, [17]), (1, 16, [1]), (3, 1, [1, 1, 1]), (24, 16, [16, 8]), (9, 4, [4, 5])],
)
def test_odd_batches(n: int, size: int, expected: list[int]):
    assert [len(b) for b in shuffled(torch.arange(n), 1, size, 0)] == expected


@pytest.mark.parametrize("batch_size", [1, 1000])
@pytest.mark.parametrize("method", [PGDAT(steps=1), TRADES(steps=1)])
def test_batches_of_one_and_larger_than_the_data(method: StepMethod, batch_size: int, blobs: Dataset):
    small = blobs.take(torch.arange(4), "four")
    trained = quick(method, small, "tests_linear", batch_size=batch_size, epochs=2)
    assert all(bool(torch.isfinite(t).all()) for t in trained.last_state.values())


def test_progress_is_reported_after_every_step(blobs: Dataset):
    calls: list[tuple[int, int, dict]] = []
    trained = quick(Standard(), blobs, progress=lambda done, total, info: calls.append((done, total, info)))
    assert [c[0] for c in calls] == list(range(1, 13))
    assert {c[1] for c in calls} == {12}
    assert calls[-1][2]["epoch"] == 3
    assert calls[-1][2]["loss"] == pytest.approx(calls[-1][2]["ce"])
    assert [e.number for e in trained.history] == [1, 2, 3]
    assert trained.history[-1].terms["ce"] < trained.history[0].terms["ce"]


def test_passes_are_counted(blobs: Dataset):
    assert (quick(Standard(), blobs).forward, quick(Standard(), blobs).backward) == (180, 180)
    adversarial = quick(PGDAT(steps=4), blobs)
    assert (adversarial.forward, adversarial.backward) == (180 * 5, 180 * 5)
    trades = quick(TRADES(steps=4), blobs)
    assert (trades.forward, trades.backward) == (180 * 7, 180 * 6)


@dataclass(frozen=True)
class Poisoned(StepMethod):
    """A second term that becomes NaN in the last third of the training."""

    def terms(self, step: Step) -> Mapping[str, Term]:
        values = ce(step.logits("clean"), step.q)
        return {"ce": Term(values), "extra": Term(values * (float("nan") if step.progress > 0.67 else 1.0))}


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_best(blobs: Dataset):
    with pytest.raises(DivergedError, match=r"step 10 of 12 \(epoch 3\): term 'extra' is nan.*16 examples") as caught:
        quick(Poisoned(), blobs)
    kept = caught.value.trained
    assert kept is not None
    assert kept.best == 2
    assert all(torch.equal(kept.module.state_dict()[n], t) for n, t in kept.best_state.items())
    assert not kept.module.training


def test_weights_that_are_not_finite_stop_it_too(blobs: Dataset):
    with pytest.raises(DivergedError, match="no longer finite") as caught:
        quick(Standard(), blobs, "tests_linear", lr=1e30, epochs=2)
    assert caught.value.trained is None


@dataclass(frozen=True)
class Reduced(StepMethod):
    def terms(self, step: Step) -> Mapping[str, Term]:
        return {"ce": Term(ce(step.logits("clean"), step.q).mean())}


def test_mistakes_are_named(blobs: Dataset):
    with pytest.raises(ContractError, match="do not reduce"):
        quick(Reduced(), blobs)
    with pytest.raises(UnknownNameError, match="small_cnn"):
        quick(Standard(), blobs, "smal_cnn")
    with pytest.raises(UsageError, match="no optimizer 'sdg'"):
        quick(Standard(), blobs, optimizer="sdg")
    with pytest.raises(UsageError, match="no schedule"):
        quick(Standard(), blobs, schedule="cylic")
    with pytest.raises(UsageError, match="cannot hold out 60 of 60"):
        quick(Standard(), blobs, validation=60)
    with pytest.raises(UsageError, match="at least 1"):
        quick(Standard(), blobs, epochs=0)


def test_batch_norm_on_one_example_is_explained(blobs: Dataset):
    @ARCHITECTURES.register("tests_flat_bn")
    def flat_bn(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, num_classes))

    with pytest.raises(UsageError, match="raise batch_size"):
        quick(Standard(), blobs, "tests_flat_bn", batch_size=1)


def test_the_seed_draws_the_initial_weights(blobs: Dataset):
    first, again, other = (quick(Standard(), blobs, "small_cnn", lr=0.0, seed=s) for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    with pytest.raises(InputError, match="widht"):
        train(Standard(), "small_cnn", {"widht": 3}, blobs, LINF, epochs=1)
