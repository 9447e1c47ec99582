"""RSLAD and ARD: golden numbers, and teachers that do not fit."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.ard import ARD
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.rslad import RSLAD
from robustsuite.errors import InputError, UsageError
from robustsuite.threat import ThreatModel

TEACHER = torch.tensor([[3.0, 0, -1], [0, 2, 0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (RSLAD(), 0.477262),
        (RSLAD(robust=1), 0.558805),
        (RSLAD(robust=0), 0.069544),
        (RSLAD(element_mean=True), 0.477262 / 3),
        (ARD(), 0.694245),
        (ARD(distil=0.25), 0.25 * 0.694245 + 0.75 * 0.360645),
        (ARD(temperature=1), 0.558805),
    ],
)
def test_golden_losses(method, expected: float, toy: Step, says: Callable, loss: Callable[..., float]):
    toy.aux = {"teacher": says(TEACHER)}
    assert loss(method, toy) == pytest.approx(expected, abs=1e-5)


def test_a_student_that_is_its_teacher_has_no_loss(toy: Step, loss: Callable[..., float]):
    toy.aux = {"teacher": toy.module}
    toy.views["adv"] = toy.x
    assert loss(RSLAD(), toy) == pytest.approx(0, abs=1e-12)
    assert loss(ARD(), toy) == pytest.approx(0, abs=1e-12)


def test_rslad_attacks_the_answer_of_the_teacher(toy: Step, says: Callable):
    toy.aux = {"teacher": says(TEACHER)}
    objectives = []
    toy.inner = lambda step, spec, x, q: objectives.append(spec.loss) or x
    RSLAD().views(toy)
    found = objectives[0](toy.views["adv"])
    p = TEACHER.softmax(1)
    expected = (p * (p.log() - toy.views["adv"].log_softmax(1))).sum(1)
    assert torch.allclose(found, expected)
    assert toy.passes.forward == 2  # the teacher is asked once, here and in the terms
    RSLAD().terms(toy)
    assert toy.passes.forward == 2 + 4


@pytest.mark.parametrize("method", [RSLAD, ARD])
def test_the_teacher_is_taken_from_a_checkpoint_and_stays(method, quick: Callable, checkpoint: Callable, survives):
    reference = checkpoint(PGDAT(steps=1), epochs=3)
    trained = quick(method(teacher=reference, steps=2), epochs=4)
    assert trained.history[-1].terms["kl"] < trained.history[0].terms["kl"]
    assert survives(method(teacher=reference, steps=2))


def test_without_a_checkpoint_the_teacher_is_trained_by_trades(survives: Callable):
    assert survives(ARD(steps=1))


@pytest.mark.parametrize("method", [RSLAD, ARD])
def test_a_teacher_that_does_not_fit(method, quick: Callable, checkpoint: Callable, digits: Dataset):
    with pytest.raises(InputError, match="no model 'nowhere'"):
        quick(method(teacher="nowhere"))
    more = Dataset("more", digits.x, digits.y + 1, digits.ids, 4)
    reference = checkpoint(PGDAT(steps=1), data=more, epochs=1, threat=ThreatModel.parse("Linf:0.1"))
    with pytest.raises(InputError, match="knows 4 classes, the training data has 3"):
        quick(method(teacher=reference))


def test_bad_parameters():
    with pytest.raises(UsageError, match=r"robust in \[0,1\]"):
        RSLAD(robust=2)
    with pytest.raises(UsageError, match="temperature > 0"):
        ARD(temperature=0)
