"""SRST-AWR: a few labels, a teacher, and a divergence that is weighed by what the teacher knows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import InnerSpec, Step, StepMethod, ce, kl
from robustsuite.defenses.composed import compose
from robustsuite.defenses.extra_data import BEYOND
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.defenses.srst_awr import SRSTAWR, trust
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train


@pytest.fixture
def more(tmp_path: Path) -> str:
    data = toy_data(78).take(torch.arange(48, 78), "more")
    path = tmp_path / "more.npz"
    np.savez(path, x=data.x.numpy(), y=((data.y + 1) % 3).numpy())
    return str(path)


@pytest.fixture
def half(toy: Step, says: Callable) -> Step:
    """TB, whose second example has no label."""
    toy.memory["hidden"] = torch.tensor([1])
    toy.aux = {"teacher": says(torch.tensor([[3.0, 0, -1], [0, 0.5, 2]], dtype=torch.float64))}
    return toy


def test_the_sheets_weight_and_divergence():
    t, p, attacked = (torch.tensor([row]).log() for row in ([0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.4, 0.5, 0.1]))
    assert float(trust(t, p, attacked, 0.5)) == pytest.approx(0.605, abs=1e-6)
    assert float(kl(p, attacked)) == pytest.approx(0.208473, abs=1e-6)


def test_each_term_is_a_mean_over_its_own_part(half: Step, loss: Callable[..., float]):
    z, attacked, t = half.x, half.views["adv"], torch.tensor([[0, 0.5, 2]]).double()
    terms = SRSTAWR().terms(half)
    smooth = 0.8 * half.q[:1] + 0.2 / 3
    weight = 0.5 * (t.softmax(1) * z[1].softmax(0)).sum() + 0.5 * (1 - (t.softmax(1) * attacked[1].softmax(0)).sum())
    expected = {
        "ce": float(ce(z[:1], smooth)),
        "kl_taught": float(kl(t / 1.2, z[1:] / 1.2)),
        "kl": float(kl(z[1:], attacked[1:]) * weight),
    }
    assert {name: float(term.values.detach().mean()) for name, term in terms.items()} == pytest.approx(expected)
    assert {name: term.weight for name, term in terms.items()} == {"ce": 1, "kl_taught": 4, "kl": 20}
    assert loss(SRSTAWR(), half) == pytest.approx(expected["ce"] + 4 * expected["kl_taught"] + 20 * expected["kl"])


def test_a_part_may_be_empty(half: Step):
    for hidden, empty in (([0, 1], "ce"), ([], "kl")):
        half.memory["hidden"] = torch.tensor(hidden, dtype=torch.int64)
        terms = SRSTAWR().terms(half)
        assert terms[empty].values.tolist() == [0, 0]
        assert all(bool(term.values.isfinite().all()) for term in terms.values())


def test_labels_that_are_hidden_are_not_seen(half: Step):
    method = SRSTAWR()
    method.data(half)
    assert half.y.tolist() == [0, 0]
    assert method.labels(half).argmax(1).tolist() == [0, 2]
    asked = []
    half.inner = lambda step, spec, x, q: asked.append(spec) or x
    SRSTAWR(attack="ce", steps=3).views(half)
    method.views(half)
    assert asked == [InnerSpec("ce", 3, 0.25), InnerSpec("kl", 10, 0.25)]


def watched(method: StepMethod, seen: list[Step]) -> StepMethod:
    @dataclass(frozen=True)
    class Watch(StepMethod):
        def views(self, step: Step) -> dict:
            seen.append(step)
            return {}

    return compose(("method", method), ("watch", Watch()))


def test_unlabelled_data_comes_to_the_batch(more: str, quick: Callable):
    seen: list[Step] = []
    quick(watched(SRSTAWR(unlabelled=more, steps=1), seen), epochs=1)
    assert [len(step.y) for step in seen] == [48] * 3
    assert all(int((step.noise.ids >= BEYOND).sum()) == 32 for step in seen)


def test_own_data_is_hidden_and_the_teacher_never_saw_it(quick: Callable, digits: Dataset):
    """Other labels of the hidden examples: the same training, bit by bit."""
    seen: list[Step] = []
    first = quick(watched(SRSTAWR(steps=1), seen))
    hidden = seen[0].memories["method"]["hidden"]
    assert len(hidden) == 32
    rows = torch.isin(digits.ids, hidden)
    wrong = Dataset("toy", digits.x, (digits.y + rows.long()) % 3, digits.ids, 3)
    again = quick(watched(SRSTAWR(steps=1), []), data=wrong)
    assert all(torch.equal(first.last_state[name], again.last_state[name]) for name in first.last_state)


def test_without_a_share_it_is_smoothed_standard_training(quick: Callable, same: Callable):
    smoothed = compose(("standard", Standard()), ("label_smoothing", LabelSmoothing(0.2)))
    assert same(quick(SRSTAWR(share=0)), quick(smoothed))


@pytest.mark.parametrize("beside", [False, True])
def test_it_survives_a_kill(beside: bool, survives: Callable, more: str):
    assert survives(SRSTAWR(unlabelled=more if beside else "", steps=1))


def test_it_learns_from_its_teacher(digits: Dataset):
    trained = train(
        SRSTAWR(share=0.5, steps=1), "mlp", {"hidden": 16, "depth": 1}, digits, ThreatModel.parse("Linf:0.05"),
        epochs=20, batch_size=8, lr=0.1, validation=0,
    )  # fmt: skip
    assert float((trained.module(digits.x).argmax(1) == digits.y).float().mean()) > 0.9


def test_a_teacher_may_be_given(quick: Callable, checkpoint: Callable, same: Callable):
    reference = checkpoint(Standard(), epochs=3)
    assert not same(quick(SRSTAWR(teacher=reference, steps=1)), quick(SRSTAWR(steps=1)))


def test_the_contract_holds():
    assert [str(f) for f in check_defense(DEFENSES.get("srst_awr")) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"beta": -1}, {"balance": 2}, {"temperature": 0}, {"share": 1}, {"attack": "none"}])
def test_bad_parameters_are_refused(bad: dict):
    with pytest.raises(UsageError, match="srst_awr needs"):
        SRSTAWR(**bad)
