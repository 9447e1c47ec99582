"""Fit methods: what they are handed, what is made of what they hand back, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import FitMethod, Fitted, InnerSpec, Services, Term, ce
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.errors import ContractError, InputError, UsageError
from robustsuite.models.sidecar import find_sidecar
from robustsuite.registry import register_defense
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.history import table
from robustsuite.training.loop import train
from robustsuite.training.method import make_method, make_trainable
from robustsuite.training.trained import DivergedError, Trained

LINF = ThreatModel.parse("Linf:0.1")


@dataclass(frozen=True)
class PlainAT(FitMethod):
    """What `PGDAT` trains, as a loop of one's own; ``steps`` of the attack, and whether it ``keeps`` its state."""

    steps: int = 2
    keeps: bool = True

    def fit(self, services: Services) -> nn.Module:
        net, optimizer, first = services.module, services.optimizer(services.module), 1
        if services.kept is not None:
            net.load_state_dict(services.kept["net"])
            optimizer.load_state_dict(services.kept["optimizer"])
            first = services.kept["epoch"] + 1
        for epoch in range(first, services.epochs + 1):
            for step in services.batches(epoch):
                x_adv = step.maximise(InnerSpec(steps=self.steps))
                services.descend(step, optimizer, {"ce_adv": Term(ce(step.forward(x_adv), step.q))})
            services.report(epoch)
            if self.keeps:
                services.keep({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch})
        return net


def doing(body: Callable[[Services], Any], **facts: Any) -> FitMethod:
    """A fit method with this body."""
    made = type("Own", (FitMethod,), {"fit": lambda self, services: body(services), **facts})
    return dataclass(frozen=True)(made)()


def quick(method: Any, data: Dataset, arch: str = "tests_bn_dropout", **changed: Any) -> Trained:
    recipe: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 0.1, "validation": 12, **changed}
    threat = recipe.pop("threat", LINF)
    return train(method, arch, {}, data, threat, **recipe)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_loop_of_ones_own_can_be_the_loop(blobs: Dataset):
    """Without dropout, the services give the bits, epochs and counts of the step method."""
    own, loop = (quick(m, blobs, "tests_linear", clip=1.0) for m in (PlainAT(), PGDAT(steps=2)))
    assert same(own.last_state, loop.last_state)
    assert same(own.best_state, loop.best_state)
    assert own.history == loop.history
    assert (own.best, own.passes) == (loop.best, loop.passes)


def test_rows_curves_and_progress_are_those_of_the_loop(blobs: Dataset, tmp_path: Path):
    calls: list[tuple[int, int, dict[str, Any]]] = []
    trained = quick(PlainAT(), blobs, progress=lambda done, total, info: calls.append((done, total, info)))
    assert [call[:2] for call in calls] == [(n, 9) for n in range(1, 10)]
    assert calls[-1][2]["epoch"] == 3
    assert table(trained).columns.tolist()[:3] == ["epoch", "term_ce_adv", "clean_accuracy"]
    assert trained.overfitting is not None
    path = save_trained(trained, tmp_path / "m")
    told = find_sidecar(path)
    assert told is not None
    assert told.defense is not None
    assert told.defense["params"] == {"steps": 2, "keeps": True}
    assert told.defense["data"]["fingerprint"] == blobs.fingerprint
    assert set(told.defense["held_out"]["best"]) == {"clean_accuracy", "robust_accuracy"}
    assert told.defense["passes"] == {"forward": 3 * 48 * 3, "backward": 3 * 48 * 3}


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("kill", [2, 4, 8])
def test_a_killed_fit_ends_bit_identically(blobs: Dataset, tmp_path: Path, kill: int, keeps: bool):
    def progress(done: int, total: int, info: dict[str, Any]) -> None:
        if done == kill:
            raise KeyboardInterrupt

    method, path = PlainAT(keeps=keeps), tmp_path / "m.safetensors"
    whole = quick(method, blobs)
    with pytest.raises(KeyboardInterrupt):
        quick(method, blobs, keep_at=path, progress=progress)
    assert (tmp_path / "m.training.pt").exists() == (keeps and kill > 3)
    seen: list[int] = []
    resumed = quick(method, blobs, keep_at=path, progress=lambda done, total, info: seen.append(done))
    assert seen[0] == (3 * ((kill - 1) // 3) + 1 if keeps else 1)
    assert same(resumed.last_state, whole.last_state)
    assert same(resumed.best_state, whole.best_state)
    assert (resumed.history, resumed.best, resumed.passes) == (whole.history, whole.best, whole.passes)


def test_a_method_without_epochs_or_gradients(blobs: Dataset):
    """Least squares on the pixels, in closed form: one epoch, no pass, and the best linear fit."""

    def fit(services: Services) -> nn.Module:
        data = services.data
        pixels = torch.cat([data.x.flatten(1), torch.ones(len(data), 1)], 1)
        target = nn.functional.one_hot(data.y, data.num_classes).float()
        solution = torch.linalg.lstsq(pixels, target).solution
        layer = services.module[1]  # type: ignore[index]
        layer.load_state_dict({"weight": solution[:-1].T, "bias": solution[-1]})
        return services.module

    trained = quick(doing(fit), blobs, "tests_linear")
    assert [(epoch.number, epoch.terms) for epoch in trained.history] == [(1, {})]
    assert trained.history[0].clean_accuracy == 1.0
    assert trained.passes == {"forward": 0, "backward": 0}


def test_the_services_say_what_there_is(blobs: Dataset):
    def fit(services: Services) -> nn.Module:
        assert services.held is not None
        assert (len(services.data), len(services.held)) == (48, 12)
        assert not set(services.data.ids.tolist()) & set(services.held.ids.tolist())
        assert (services.settings.batch_size, services.settings.lr, services.settings.seed) == (16, 0.1, 0)
        assert (services.epochs, services.kept, services.module.training) == (3, None, True)
        assert not same(services.build("one").state_dict(), services.build("other").state_dict())
        first, again = (next(iter(services.batches(2))) for _ in range(2))
        assert first.noise.noise == again.noise.noise
        assert torch.equal(first.maximise(InnerSpec(steps=1)), again.maximise(InnerSpec(steps=1)))
        assert all(p.grad is None and p.requires_grad for p in services.module.parameters())
        whole = services.batch(torch.arange(48))
        assert torch.equal(whole.x, services.data.x)
        before = {name: tensor.clone() for name, tensor in services.module.state_dict().items()}
        clean, robust = services.validate(services.module)
        assert clean is not None
        assert robust is not None
        assert 0 <= robust <= clean <= 1
        assert same(before, services.module.state_dict())
        assert services.module.training
        other = services.train_other("standard", {})
        assert services.before.forward == services.before.backward == 3 * 48
        services.report(1, {"loss": 0.5}, other)
        return other

    trained = quick(doing(fit), blobs)
    assert [epoch.terms for epoch in trained.history] == [{"loss": 0.5}]
    assert trained.passes["before"] == {"forward": 144, "backward": 144}


def test_the_best_epoch_is_kept_and_what_is_handed_back_counts_too(blobs: Dataset):
    def fit(services: Services) -> nn.Module:
        good = services.train_other("standard", {})
        services.report(1, result=good)
        services.report(2, result=services.module)
        return services.build("third")

    trained = quick(doing(fit, select="clean"), blobs, epochs=6)
    assert [epoch.number for epoch in trained.history] == [1, 2, 3]
    assert trained.best == 1
    assert same(trained.module.state_dict(), trained.best_state)
    assert not same(trained.last_state, trained.best_state)


def test_nothing_held_out_selects_the_last(blobs: Dataset):
    def fit(services: Services) -> nn.Module:
        assert services.held is None
        assert services.validate(services.module) == (None, None)
        services.report(1)
        return services.build("other")

    assert quick(doing(fit), blobs, validation=0).best == 2


def endless(services: Services) -> nn.Module:
    services.report(1)
    for step in services.batches(1):
        optimizer = services.optimizer(services.module)
        services.descend(step, optimizer, {"ce": Term(ce(step.forward(step.x), step.q) * float("inf"))})
    return services.module


def reported(services: Services) -> nn.Module:
    services.report(1)
    services.report(2, {"own": float("nan")})
    return services.module


def exploded(services: Services) -> nn.Module:
    services.report(1)
    with torch.no_grad():
        next(services.module.parameters()).fill_(float("inf"))
    return services.module


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (endless, r"at step 1 of 9 \(epoch 1\): term 'ce' is inf"),
        (reported, "epoch 2 is no longer finite: term 'own' is nan"),
        (exploded, "after epoch 2 the weights are no longer finite"),
    ],
)
def test_what_stops_being_finite_stops_the_fit(body: Callable, words: str, blobs: Dataset, tmp_path: Path):
    with pytest.raises(DivergedError, match=words) as stopped:
        quick(doing(body), blobs)
    best = stopped.value.trained
    assert best is not None
    assert best.best == 1
    told = find_sidecar(save_trained(best, tmp_path / "m"))
    assert told is not None
    assert told.defense is not None
    assert told.defense["epoch"] == 1


def keeps_a_module(services: Services) -> nn.Module:
    services.keep({"epoch": 1, "parts": [services.module]})
    return services.module


FAULTS: list[tuple[Callable[[Services], Any], str]] = [
    (lambda services: None, "must hand back a module or a Fitted, got a NoneType"),
    (lambda services: nn.Linear(2, 2), "other weights than 'tests_bn_dropout' has"),
    (lambda services: services.report(2), "one by one: 1 is the next, 2 was reported"),
    (keeps_a_module, r"\['parts'\]\[0\] is a Sequential.*state_dict"),
    (lambda services: Fitted(services.module, "robust", {"name": "jpeg"}), "names robust, which is no part"),
    (lambda services: Fitted(nn.Sequential(nn.ReLU()), "0", {"name": "jpeg"}), "other weights than"),
]


@pytest.mark.parametrize(("body", "words"), FAULTS)
def test_what_no_checkpoint_can_be_made_of(body: Callable, words: str, blobs: Dataset):
    with pytest.raises(ContractError, match=words):
        quick(doing(body), blobs, validation=0)


def reduced(services: Services) -> nn.Module:
    for step in services.batches(1):
        loss = ce(step.forward(step.x), step.q).mean()
        services.descend(step, services.optimizer(services.module), {"ce": Term(loss)})
    return services.module


def test_terms_and_batches_are_checked_as_in_the_loop(blobs: Dataset):
    with pytest.raises(ContractError, match="do not reduce over the batch"):
        quick(doing(reduced), blobs)
    one_pixel = Dataset("one", blobs.x[:4, :, :1, :1], blobs.y[:4], blobs.ids[:4], 3)
    with pytest.raises(UsageError, match="batch norm cannot train on 1 example at a time"):
        quick(PlainAT(), one_pixel, batch_size=1, validation=0)


def test_what_cannot_be_launched(blobs: Dataset):
    for method, changed, words in (
        (PlainAT(), {"devices": 2}, "a fit method, whose loop runs in one process; leave --devices out"),
        (doing(lambda s: s.module, norms=("L2",)), {}, "made for L2, not for Linf"),
        (PlainAT(), {"validation": 60}, "cannot hold out"),
    ):
        with pytest.raises(UsageError, match=words):
            quick(method, blobs, **changed)


@register_defense("tests_plain_at", kind="fit", defaults={"mnist": {"steps": 3}})
@dataclass(frozen=True)
class Registered(PlainAT):
    """The same under a name."""


def test_by_name():
    assert make_trainable("tests_plain_at", (), {"steps": 1}) == Registered(steps=1)
    assert make_trainable("tests_plain_at", (), {"tests_plain_at.steps": 1}) == Registered(steps=1)
    assert make_trainable("tests_plain_at", (), {}, "mnist") == Registered(steps=3)
    for arguments, words in (
        (("tests_plain_at", ["awp", "ema"]), "owns its loop, and awp and ema would fill slots.*leave --with out"),
        (("tests_plain_at", [], {"stepz": 1}), "no parameter 'stepz'. Did you mean 'steps'"),
        (("tests_plain_at", [], {"trades.beta": 1}), "is for 'trades', which is not trained here"),
        (("trades", ["tests_plain_at"]), "'tests_plain_at' does not fill slots of the training loop"),
    ):
        with pytest.raises(UsageError, match=words):
            make_trainable(*arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not fill slots"):
        make_method("tests_plain_at")


def test_a_state_of_another_training_is_not_taken_up(blobs: Dataset, tmp_path: Path):
    def kill(done: int, total: int, info: dict[str, Any]) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(PlainAT(), blobs, keep_at=tmp_path / "m", progress=kill)
    for other in (PlainAT(steps=1), Standard()):
        with pytest.raises(InputError, match="belongs to another training"):
            quick(other, blobs, keep_at=tmp_path / "m")
