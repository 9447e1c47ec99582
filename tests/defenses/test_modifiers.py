"""Label smoothing, adversarial weight perturbation and averaged weights."""

import pytest
import torch
from torch import nn

from robustsuite.defenses import Step, ce
from robustsuite.defenses.awp import AWP
from robustsuite.defenses.ema import EMA
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.errors import UsageError


@pytest.mark.parametrize(("classical", "expected"), [(False, 0.593979), (True, 0.710645)])
def test_label_smoothing_golden(toy: Step, classical: bool, expected: float):
    q = LabelSmoothing(0.2, classical).labels(toy)
    assert float(ce(toy.logits("clean"), q).mean()) == pytest.approx(expected, abs=1e-5)
    assert q.sum(1).tolist() == pytest.approx([1, 1])


def test_label_smoothing_identity(toy: Step):
    logits = torch.tensor([[2, 0, -1], [0, 1, 3]], dtype=torch.float64)
    smoothed = ce(logits, LabelSmoothing(0.1).labels(toy))
    assert smoothed.tolist() == pytest.approx([0.336513, 2.136513], abs=1e-5)


class Vector(nn.Module):
    """``w.x`` as the loss: its gradient is x whatever w is; `b` has one dimension and must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        self.b = nn.Parameter(torch.tensor([7.0]))


def test_awp_moves_weights_relative_to_their_norm(toy: Step):
    toy.module = Vector()
    loss = (toy.module.w * torch.tensor([[0.0, 2.0]])).sum() + toy.module.b.sum()
    w, b = AWP(gamma=0.01).perturb(toy, lambda: loss)  # type: ignore[misc]
    assert torch.allclose(w, torch.tensor([[0.0, 0.05]]))
    assert b.tolist() == [0.0]
    assert AWP(gamma=0).perturb(toy, lambda: loss) is None
    toy.progress = 0.04
    assert AWP(warmup=0.05).perturb(toy, lambda: loss) is None


def test_ema_warms_up_as_published():
    method = EMA(decay=0.995)
    assert [method.rate(s) for s in (0, 1, 10, 100)] == pytest.approx([0.1, 0.181818, 0.55, 0.918182], abs=1e-6)
    assert method.rate(1788) < 0.995
    assert method.rate(1790) == 0.995


@pytest.mark.parametrize(("buffers", "mean"), [("copy", 5.0), ("average", 0.9 * 5.0)])
def test_ema_of_weights_and_of_statistics(toy: Step, buffers: str, mean: float):
    live, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    live.running_mean = torch.tensor([5.0])
    live.num_batches_tracked = torch.tensor(3)
    nn.init.constant_(live.weight, 2.0)
    toy.module, toy.aux = live, {"ema": average}
    method = EMA(buffers=buffers)  # type: ignore[arg-type]
    method.post_step(toy)
    assert average.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    assert average.running_mean is not None
    assert average.running_mean.item() == pytest.approx(mean)
    assert average.num_batches_tracked == 3
    assert toy.memory["since"] == 1


def test_ema_before_its_start_is_the_network(toy: Step):
    live, average = nn.Linear(1, 1), nn.Linear(1, 1)
    toy.module, toy.aux, toy.progress = live, {"ema": average}, 0.01
    EMA(start=0.025).post_step(toy)
    assert torch.equal(average.weight, live.weight)
    assert toy.memory["since"] == 0


def test_bad_parameters_are_refused():
    for bad in (lambda: LabelSmoothing(1.0), lambda: AWP(-1), lambda: AWP(warmup=2), lambda: EMA(1.0),
                lambda: EMA(buffers="recompute")):  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(UsageError):
            bad()
