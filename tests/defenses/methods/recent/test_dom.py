"""DOM: the sheet's mask, rounds of augmentation one by one, and when nothing happens."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import robustsuite.defenses.dom as dom
from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step, Term, reduce_terms
from robustsuite.defenses.composed import compose
from robustsuite.defenses.dom import DOM
from robustsuite.defenses.fgsm_rs import FGSMRS
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError

BASE = ("pgd_at", PGDAT(steps=2))


def test_the_mask_of_the_sheet(toy: Step, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dom, "losses", lambda step, x: torch.tensor([0.05, 0.1, 0.3, 1.2]))
    toy.progress, method = 0.5, DOM(threshold=0.2)
    assert method.views(toy) == {}
    terms = {"ce_adv": Term(torch.tensor([0.4, 0.9, 2.0, 2.5]))}
    assert method.weights(toy, terms)["ce_adv"].tolist() == [0, 0, 1, 1]
    assert reduce_terms(terms, method.weights(toy, terms), 4)["ce_adv"].item() == pytest.approx(1.125)


def test_golden(toy: Step, loss: Callable):
    """Clean losses 0.169846 and 0.551445: the second example alone is kept, 1.551445 / 2."""
    toy.progress, method = 0.5, DOM(threshold=0.2)
    method.views(toy)
    whole = compose(BASE, ("dom", method))
    assert loss(whole, toy) == pytest.approx(1.551445 / 2, abs=1e-5)
    assert set(method.weights(toy, TRADES().terms(toy))) == {"ce", "kl"}


class Pixel(nn.Module):
    """Two logits 0 and m, m the mean pixel scaled: to class 1 a brighter image has a lower loss."""

    def forward(self, x: Tensor) -> Tensor:
        m = 10 * x.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(m), m], 1)


def darker(by: list[float]) -> Callable[[Tensor, object, int], Tensor]:
    return lambda x, noise, draw: (x - by[draw]).clamp(0, 1)


def test_rounds_one_by_one(toy: Step, monkeypatch: pytest.MonkeyPatch):
    """log(1 + e^-m): 0.693 at m = 0, 0.313 at 1, 0.127 at 2, 0.049 at 3."""
    monkeypatch.setitem(dom.AUGMENTATIONS, "augmix", darker([0.1, 0.1]))
    toy.module, toy.progress = Pixel(), 0.5
    pixels = torch.tensor([0.0, 0.2, 0.3])
    toy.x, toy.y = pixels.view(-1, 1, 1, 1).repeat(1, 1, 2, 2), torch.ones(3, dtype=torch.int64)
    toy.q = nn.functional.one_hot(toy.y, 2).float()
    toy.noise = type(toy.noise)(toy.noise.noise, torch.arange(3))
    DOM("augmentation", threshold=0.3, rounds=2, share=0.5).data(toy)
    # never sure: as it was; reached at once: the image; else half of 0.1, then the last round's image
    assert toy.x[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.1, 0.15])
    assert torch.equal(toy.views["clean"], toy.x)
    assert toy.passes.forward == 3 * 3


@pytest.mark.parametrize("mode", ["removal", "augmentation"])
def test_before_it_starts_and_where_nothing_is_sure(mode: str, quick: Callable, same: Callable):
    plain = quick(compose(BASE), arch="tests_methods_no_dropout")
    before = quick(compose(BASE, ("dom", DOM(mode, start=1.0))), arch="tests_methods_no_dropout")  # type: ignore[arg-type]
    assert same(before, plain)
    began = quick(compose(BASE, ("dom", DOM(mode, threshold=0.9))), arch="tests_methods_no_dropout")  # type: ignore[arg-type]
    assert not same(began, plain)


def test_a_threshold_of_zero_removes_nothing(quick: Callable, same: Callable, digits: Dataset):
    """On a network without batch norm, whose statistics the clean pass would move."""
    plain, masked = (
        quick(compose(BASE, *parts), arch="cnn_a")
        for parts in ((), (("dom", DOM(threshold=0, start=0)),))
    )  # fmt: skip
    assert same(plain, masked)


@pytest.mark.parametrize("base", [("fgsm_rs", FGSMRS()), ("standard", Standard())])
def test_it_trains_and_goes_on(base: tuple, quick: Callable, survives: Callable):
    for augment in ("augmix", "randaugment"):
        method = compose(base, ("dom", DOM("augmentation", 0.5, start=0.3, rounds=3, augment=augment)))
        trained = quick(method, epochs=4)
        name = "ce" if base[0] == "standard" else "ce_adv"
        assert trained.history[-1].terms[name] < trained.history[0].terms[name]
    assert survives(method)


def test_bad_parameters(toy: Step):
    for bad in ({"mode": "both"}, {"augment": "blur"}, {"threshold": -1}, {"start": 2}, {"rounds": -1}, {"share": 2}):
        with pytest.raises(UsageError, match="dom needs"):
            DOM(**bad)
    late = replace(toy, progress=1.0)
    with pytest.raises(UsageError, match="images"):
        DOM("augmentation").data(late)
