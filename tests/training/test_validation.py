"""Held-out examples and the epoch that they select."""

from dataclasses import dataclass

import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.noise import Noise
from robustsuite.registry import ARCHITECTURES
from robustsuite.threat import ThreatModel
from robustsuite.training import book, loop
from robustsuite.training.validation import Scores, default_size, hold_out, scores

LINF = ThreatModel.parse("Linf:0.1")


def test_holding_out_is_a_partition_keyed_by_example(blobs: Dataset):
    kept, held = hold_out(blobs, 12, seed=0)
    assert held is not None
    assert (len(kept), len(held)) == (48, 12)
    assert set(kept.ids.tolist()) | set(held.ids.tolist()) == set(blobs.ids.tolist())
    flipped = blobs.take(torch.arange(59, -1, -1), "flipped")
    assert set(hold_out(flipped, 12, 0)[1].ids.tolist()) == set(held.ids.tolist())  # type: ignore[union-attr]
    assert set(hold_out(blobs, 12, 1)[1].ids.tolist()) != set(held.ids.tolist())  # type: ignore[union-attr]


def test_the_default_is_a_tenth_at_most_200(blobs: Dataset):
    assert default_size(blobs) == 0
    many = Dataset("many", torch.zeros(5000, 1, 2, 2), torch.zeros(5000, dtype=torch.int64), torch.arange(5000), 2)
    assert default_size(many) == 200
    assert default_size(many.take(torch.arange(1500), "some")) == 150


def test_scores_leave_the_module_alone(blobs: Dataset):
    module = ARCHITECTURES.get("tests_bn_dropout").target(num_classes=3, input_shape=(1, 4, 4)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = scores(module, blobs, LINF, Noise(0, "v"), robust=True, device=torch.device("cpu"))
    clean, robust = found.clean, found.robust
    assert robust is not None
    assert found.fgsm is not None
    assert robust <= found.fgsm <= 1
    assert found.abnormal is not None
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    module.eval()
    assert clean == pytest.approx(float((module(blobs.x).argmax(1) == blobs.y).double().mean()))
    assert robust is not None
    assert 0 <= robust <= clean


@pytest.mark.parametrize(("select", "expected"), [("robust", 2), ("clean", 3), ("last", 4)])
def test_the_epoch_is_selected_by_what_the_method_says(select: str, expected: int, blobs: Dataset, monkeypatch):
    measured = iter([(0.5, 0.1), (0.6, 0.4), (0.9, 0.2), (0.7, 0.3)])

    def fake(module: object, data: object, threat: object, noise: object, *, robust: bool, device: object):
        clean, under_attack = next(measured)
        return Scores(clean, under_attack if robust else None, None, None)

    @dataclass(frozen=True)
    class Method(Standard):
        pass

    Method.select = select  # type: ignore[misc,assignment]
    monkeypatch.setattr(book, "scores", fake)
    trained = loop.train(Method(), "tests_linear", {}, blobs, LINF, epochs=4, batch_size=16, validation=12)
    assert trained.best == expected
    assert trained.history[-1].robust_accuracy == 0.3  # best and last are both reported
    state = trained.module.state_dict()
    assert all(torch.equal(state[n], t) for n, t in trained.best_state.items())
    assert torch.equal(state["1.weight"], trained.last_state["1.weight"]) == (expected == 4)


def test_pgd_at_is_selected_and_reported_on_held_out_examples(blobs: Dataset):
    trained = loop.train(
        PGDAT(steps=3), "tests_linear", {}, blobs, LINF, epochs=5, batch_size=16, lr=0.2, validation=15
    )
    best = trained.history[trained.best - 1]
    assert best.robust_accuracy == max(e.robust_accuracy or 0 for e in trained.history)
    assert (best.clean_accuracy or 0) >= 0.9
    assert "15 held out" not in trained.data["subset"]
    assert trained.data["fingerprint"] == blobs.fingerprint
