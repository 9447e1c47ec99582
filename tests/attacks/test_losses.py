import pytest
import torch
import torch.nn.functional as F

from robustsuite.attacks.losses import LOSSES, ce, check_loss, dlr, dlr_targeted, margin
from robustsuite.errors import UsageError

Z = torch.tensor([[3.0, 1.0, 2.0, -1.0, 0.5], [0.0, 4.0, 1.0, 2.0, 3.0]])
Y = torch.tensor([0, 2])


def random_logits(classes: int, count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    z = torch.randn(count, classes, generator=generator)
    return z, torch.randint(classes, (count,), generator=generator)


def test_values_by_hand():
    assert torch.allclose(ce(Z, Y), -F.log_softmax(Z, 1)[[0, 1], Y])
    assert margin(Z, Y).tolist() == [2 - 3, 4 - 1]
    # row 0: sorted 3, 2, 1; row 1: sorted 4, 3, 2
    assert dlr(Z, Y).tolist() == pytest.approx([(2 - 3) / (3 - 1), (4 - 1) / (4 - 2)])
    # row 0 to class 4: sorted 3, 2, 1, .5; row 1 to class 0: sorted 4, 3, 2, 1
    found = dlr_targeted(Z, Y, torch.tensor([4, 0])).tolist()
    assert found == pytest.approx([(0.5 - 3) / (3 - 0.75), (0 - 1) / (4 - 1.5)])


def test_few_classes_by_hand():
    two, three = torch.tensor([[2.0, 0.5]]), torch.tensor([[2.0, 0.5, -1.0]])
    y = torch.tensor([0])
    assert dlr(two, y).item() == -1.5
    assert dlr_targeted(two, y, torch.tensor([1])).item() == -1.5
    assert dlr(three, y).item() == pytest.approx(-1.5 / 3)
    assert dlr_targeted(three, y, torch.tensor([1])).item() == pytest.approx(-1.5 / (2 + 0.25))
    assert dlr_targeted(three, y, torch.tensor([2])).item() == pytest.approx(-3 / (2 + 0.25))


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10, 1000])
def test_rows_are_apart_and_gradients_are_those_of_finite_differences(classes):
    z, y = random_logits(classes, count=4)
    target = (y + 1) % classes
    for loss in [*LOSSES.values(), lambda z, y: dlr_targeted(z, y, target)]:
        leaf = z.double().requires_grad_()
        assert torch.autograd.gradcheck(lambda v: loss(v, y), leaf, fast_mode=True)  # noqa: B023


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_ignores_shift_and_scale(classes):
    z, y = random_logits(classes)
    target = (y + 1) % classes
    for scale, shift in ((1e-3, 0.0), (100.0, 7.0)):
        moved = z * scale + shift
        assert torch.allclose(dlr(moved, y), dlr(z, y), rtol=1e-2, atol=1e-4)
        assert torch.allclose(dlr_targeted(moved, y, target), dlr_targeted(z, y, target), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_targeted_dlr_has_a_gradient_whatever_the_rank_of_the_target(classes):
    z, _ = random_logits(classes)
    order = z.argsort(1, descending=True)
    for rank in range(1, classes):
        leaf = z.clone().requires_grad_()
        dlr_targeted(leaf, order[:, 0], order[:, rank]).sum().backward()
        assert leaf.grad is not None
        assert (leaf.grad.abs().sum(1) > 1e-3).all()


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("value", [0.0, 5.0, 1e4])
def test_ties_stay_finite(classes, value):
    z = torch.full((3, classes), value)
    y, target = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    for loss in [*LOSSES.values(), lambda z, y: dlr_targeted(z, y, target)]:
        leaf = z.clone().requires_grad_()
        found = loss(leaf, y)
        found.sum().backward()
        assert torch.isfinite(found).all()
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_the_sign_tells_the_verdict():
    z, y = random_logits(10)
    wrong = z.argmax(1) != y
    assert torch.equal(margin(z, y) > 0, wrong)
    assert torch.equal(dlr(z, y) > 0, wrong)


def test_an_unknown_loss_is_a_usage_error():
    with pytest.raises(UsageError, match="ce, margin, dlr"):
        check_loss("hinge")
