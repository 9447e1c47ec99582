"""RST and DM-AT: examples from beyond the data set in each batch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import InnerSpec, Step, StepMethod
from robustsuite.defenses.composed import Composed, compose
from robustsuite.defenses.dm_at import DMAT
from robustsuite.defenses.extra_data import BEYOND, Extra, append
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.rst import RST, answers
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import InputError, UsageError
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train

THREAT = ThreatModel.parse("Linf:0.05")


@pytest.fixture
def more(tmp_path: Path) -> str:
    """30 further images with labels that are all wrong by one."""
    data = toy_data(78).take(torch.arange(48, 78), "more")
    path = tmp_path / "more.npz"
    np.savez(path, x=data.x.numpy(), y=((data.y + 1) % 3).numpy())
    return str(path)


def watched(method: StepMethod, seen: list[Step]) -> Composed:
    @dataclass(frozen=True)
    class Watch(StepMethod):
        def views(self, step: Step) -> dict[str, torch.Tensor]:
            seen.append(step)
            return {}

    return compose(("method", method), ("watch", Watch()))


@pytest.mark.parametrize(("batch", "share", "expected"), [(16, 0.5, 16), (3, 0.7, 7), (10, 0.25, 3), (4, 0.1, 0)])
def test_the_share_of_a_batch(batch: int, share: float, expected: int, toy: Step):
    toy.rebatch(
        x=torch.zeros(batch, 1, 2, 2), y=torch.zeros(batch, dtype=torch.int64), q=torch.zeros(batch, 3),
        ids=torch.arange(batch),
    )  # fmt: skip
    pool = Extra(torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 1, 0]))
    append(toy, pool, share)
    assert len(toy.y) == batch + expected
    rows = toy.noise.ids[batch:] - BEYOND
    assert torch.equal(toy.x[batch:], pool.x[rows])
    assert torch.equal(toy.y[batch:], pool.y[rows])
    assert torch.equal(toy.q[batch:].argmax(1), pool.y[rows])
    if expected:
        total = batch / (1 - share)
        assert expected == int(share * total + 1e-6)


def test_golden_dm_at(toy: Step, doubled: Step, loss: Callable[..., float]):
    assert loss(DMAT(), toy) == pytest.approx(1.817270, abs=1e-5)
    assert loss(DMAT(), doubled) == pytest.approx(1.817270, abs=1e-5)
    assert loss(DMAT(beta=6, smoothing=0), toy) == pytest.approx(1.968595, abs=1e-5)
    asked: list[InnerSpec] = []
    toy.inner = lambda step, spec, x, q: asked.append(spec) or x
    DMAT(steps=3).views(toy)
    assert asked == [InnerSpec("kl", 3, 0.25, bn_mode="train_frozen")]


def test_golden_rst(toy: Step, loss: Callable[..., float]):
    assert loss(RST(), toy) == pytest.approx(1.968595, abs=1e-5)


def test_reductions(quick: Callable, same: Callable):
    assert same(quick(DMAT(beta=0, smoothing=0)), quick(Standard()))
    assert same(quick(RST(share=0, steps=2)), quick(TRADES(steps=2)))


def test_dm_at_draws_generated_images(more: str, quick: Callable, survives: Callable):
    seen: list[Step] = []
    quick(watched(DMAT(generated=more, share=0.5, steps=1), seen), epochs=1)
    assert [len(step.y) for step in seen] == [32, 32, 32]
    assert all(int((step.noise.ids >= BEYOND).sum()) == 16 for step in seen)
    rows = [tuple((step.noise.ids[16:] - BEYOND).tolist()) for step in seen]
    assert len(set(rows)) == 3
    assert survives(DMAT(generated=more, steps=1))


def test_one_batch_for_both_views(quick: Callable):
    trained = quick(DMAT(steps=1))
    assert trained.last_state["1.num_batches_tracked"] == 2 * 3


def test_rst_labels_what_is_unlabelled_by_a_standard_network(more: str, digits: Dataset, quick: Callable):
    """The labels in the file are wrong throughout; the labeller's are right."""
    seen: list[Step] = []
    recipe: dict[str, Any] = {"epochs": 12, "batch_size": 16, "lr": 0.1, "validation": 0}
    method = RST(unlabelled=more, steps=1)
    trained = train(watched(method, seen), "mlp", {"hidden": 16, "depth": 1}, digits, THREAT, **recipe)
    truth = toy_data(78).y[48:]
    pool = seen[0].aux["extra"]
    assert isinstance(pool, Extra)
    assert float((pool.y == truth).float().mean()) > 0.9
    assert float((trained.module(digits.x).argmax(1) == digits.y).float().mean()) > 0.9
    assert all(len(step.y) == 32 for step in seen)


def test_rst_hides_labels_of_its_own_data(digits: Dataset):
    """Without further data: half of the labels are never seen, by the labeller neither."""

    def begun(data: Dataset) -> list[Step]:
        def stop(done: int, total: int, info: dict[str, Any]) -> None:
            if done == 3:
                raise KeyboardInterrupt

        seen: list[Step] = []
        recipe: dict[str, Any] = {"epochs": 24, "batch_size": 8, "lr": 0.1, "validation": 0, "progress": stop}
        with pytest.raises(KeyboardInterrupt):
            train(watched(RST(steps=1), seen), "mlp", {"hidden": 16, "depth": 1}, data, THREAT, **recipe)
        return seen

    seen = begun(digits)
    ids, guesses = (seen[0].memories["method"][name] for name in ("ids", "guesses"))
    hidden = torch.isin(digits.ids, ids)
    assert len(ids) == int(hidden.sum()) == 24
    assert float((guesses == digits.y[hidden]).float().mean()) > 0.9
    wrong = Dataset("wrong", digits.x, (digits.y + 1).where(hidden, digits.y) % 3, digits.ids, 3)
    assert torch.equal(begun(wrong)[0].memories["method"]["guesses"], guesses)
    for step in seen:
        mine = torch.isin(step.noise.ids, ids)
        place = torch.searchsorted(ids, step.noise.ids[mine])
        assert torch.equal(step.y[mine], guesses[place])
        assert torch.equal(step.q[mine].argmax(1), guesses[place])


def test_rst_survives_a_kill(more: str, survives: Callable, checkpoint: Callable):
    assert survives(RST(unlabelled=more, steps=1))


def test_rst_without_data_survives_a_kill(survives: Callable):
    assert survives(RST(steps=1))


def test_a_labeller_can_be_given(checkpoint: Callable, quick: Callable, same: Callable, digits: Dataset):
    reference = checkpoint(PGDAT(steps=1), epochs=1)
    given = quick(RST(labeller=reference, steps=1))
    assert not same(given, quick(RST(steps=1)))
    with pytest.raises(InputError, match="no model 'nowhere'"):
        quick(RST(labeller="nowhere"))


def test_guesses_are_made_in_chunks():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x = torch.rand(1203, 1, 2, 2)
    context: Any = SimpleNamespace(forward=lambda x, module: module(x))
    assert torch.equal(answers(context, module, x), module(x).argmax(1))


def test_data_that_does_not_fit(tmp_path: Path, quick: Callable):
    wide = tmp_path / "wide.npz"
    np.savez(wide, x=np.zeros((4, 1, 6, 7), np.float32), y=np.array([0, 1, 2, 0]))
    many = tmp_path / "many.npz"
    np.savez(many, x=np.zeros((4, 1, 6, 6), np.float32), y=np.array([0, 1, 2, 5]))
    for method in (DMAT(generated=str(wide)), RST(unlabelled=str(wide))):
        with pytest.raises(InputError, match=r"has images \[1, 6, 7\]"):
            quick(method)
    with pytest.raises(InputError, match="labels must lie in"):
        quick(DMAT(generated=str(many), steps=1))
    quick(RST(unlabelled=str(many), steps=1))  # its labels are nobody's business
    wrong: list[dict[str, Any]] = [{"share": 1.0}, {"smoothing": 1.0}, {"beta": -1}]
    for bad in wrong:
        with pytest.raises(UsageError, match="dm_at needs"):
            DMAT(**bad)
    with pytest.raises(UsageError, match="rst needs share"):
        RST(share=1.0)
