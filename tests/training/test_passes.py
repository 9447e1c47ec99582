"""Passes as a training counts them, against a network that counts what it is really asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import InnerSpec, StepMethod
from robustsuite.defenses.bound_training import BoundTraining
from robustsuite.registry import ARCHITECTURES, DEFENSES
from robustsuite.testing.finding import quick_params
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.method import make_trainable
from robustsuite.training.store import Store
from robustsuite.training.trained import Trained

LINF, L2 = ThreatModel.parse("Linf:0.1"), ThreatModel.parse("L2:0.5")
SMALL = {"cutout": {"size": 2}}

ARCHITECTURES.discover()


class Counting(nn.Sequential):
    """Adds up how many examples it was given."""

    examples = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.examples += len(x)
        return super().forward(x)


@ARCHITECTURES.register("tests_counting")
def counting(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Counting(
        nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * input_shape[1] * input_shape[2], num_classes),
    )  # fmt: skip


def counted(
    name: str, data: Dataset, modifiers: tuple[str, ...] = (), params: dict[str, Any] | None = None, **more: Any
) -> tuple[Trained, int]:
    Counting.examples = 0
    method = make_trainable(name, modifiers, quick_params(DEFENSES.get(name).target, params or {}))
    recipe: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.05, "validation": 0, **more}
    threat = LINF if "Linf" in method.norms else L2
    return train(method, "tests_counting", {}, data, threat, **recipe), Counting.examples


def on_bounds(method: type) -> bool:
    return issubclass(method, BoundTraining)  # bounds are no calls of the network


def trainable() -> list[str]:
    mine = [e for e in DEFENSES if e.origin.startswith("robustsuite.") and e.facts["kind"] in ("step", "modifier")]
    return [e.name for e in mine if issubclass(e.target, StepMethod) and not on_bounds(e.target)]


@pytest.mark.parametrize("name", trainable())
def test_every_pass_of_a_training_is_counted(name: str, blobs: Dataset):
    trained, real = counted(name, blobs, params=SMALL.get(name))
    assert trained.forward + trained.forward_before == real


def test_swa_counts_its_clean_pass(blobs: Dataset):
    plain, _ = counted("standard", blobs)
    averaged, _ = counted("standard", blobs, ("swa",), params={"start": 0.0})
    assert (plain.forward, plain.backward) == (120, 120)
    assert (averaged.forward, averaged.backward) == (240, 120)


def test_rst_counts_its_guesses_and_apart_the_network_that_made_them(blobs: Dataset, tmp_path: Path):
    trained, _ = counted("rst", blobs, params={"steps": 1})
    assert trained.forward == 2 * 60 * 4 + 30  # 30 of 60 labels are guessed; clean start, one step, two for the loss
    assert trained.passes["before"] == {"forward": 2 * 30, "backward": 2 * 30}
    path = save_trained(trained, tmp_path / "m")
    told = yaml.safe_load(path.with_suffix(".yaml").read_text())["defense"]["passes"]
    assert told == {"forward": 510, "backward": 360, "before": {"forward": 60, "backward": 60}}


def test_a_killed_run_counts_what_one_that_was_not_does(blobs: Dataset, tmp_path: Path):
    def kill(done: int, total: int, info: Mapping[str, Any]) -> None:
        if done == 6:
            raise KeyboardInterrupt

    whole, _ = counted("rst", blobs, ("swa",), params={"steps": 1})
    kept: dict[str, Any] = {"keep_at": tmp_path / "m", "keep_every": 0.0}
    with pytest.raises(KeyboardInterrupt):
        counted("rst", blobs, ("swa",), params={"steps": 1}, progress=kill, **kept)
    again, _ = counted("rst", blobs, ("swa",), params={"steps": 1}, **kept)
    assert again.passes == whole.passes
    Store(tmp_path / "m", {}).clear()


def test_the_mixing_networks_training_counts_both_networks(blobs: Dataset):
    trained, real = counted("adaptive_smoothing_head", blobs, params={"steps": 2})
    assert trained.forward == 2 * 60 * (2 * 2 + 4)
    assert trained.backward == 2 * 60 * 2 * 2
    assert real == trained.forward + trained.forward_before + 2  # one image through each, for the shapes


def test_what_is_differentiated_to_attack_is_no_part_of_the_losss_graph(blobs: Dataset, make_step: Any):
    net = counting(3, blobs.input_shape)
    step = make_step(net, blobs.x[:8], blobs.y[:8], "Linf:0.1", 3)
    step.forward(blobs.x[:8])
    step.maximise(InnerSpec(steps=3))
    assert (step.graphed, step.passes.forward, step.passes.backward) == (8, 8 * 4, 8 * 3)
