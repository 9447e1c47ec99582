"""The mixing network's training: what it gains over the robust network, its files, and a kill in the middle."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from robustsuite.attacks.pgd import PGD
from robustsuite.cli.loading import wrapped
from robustsuite.data.digits import digits
from robustsuite.defenses.adaptive_smoothing_head import AdaptiveSmoothingHead, readable
from robustsuite.errors import InputError, UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.mixing_network import AdaptiveMixture
from robustsuite.models.normalize import with_normalization
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.models.sidecar import Normalization, Sidecar, find_sidecar, save_checkpoint
from robustsuite.noise import Noise
from robustsuite.registry import ARCHITECTURES
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.trained import Trained

LINF = ThreatModel.parse("Linf:0.15")
TOY = {"epochs": 2, "batch_size": 16, "lr": 0.05, "validation": 12}


def toy(method: AdaptiveSmoothingHead, **changed: Any) -> Trained:
    return train(method, "small_cnn", {"width": 2}, toy_data(60), ThreatModel.parse("Linf:0.1"), **(TOY | changed))


def loaded(path: Path, shape: tuple[int, ...], classes: int) -> Classifier:
    """As eval loads it."""
    found = load_model(ModelSpec(str(path)), input_shape=shape, num_classes=classes)
    return wrapped(found.classifier, found.part.wrap)


@pytest.fixture(scope="module")
def head(trained) -> Trained:
    """Trained on the networks of the digits that the other tests share."""
    nets = {"standard": str(trained("standard").checkpoint), "robust": str(trained("pgd_at").checkpoint)}
    method = AdaptiveSmoothingHead(**nets, low=0.5, high=1.0, steps=5, alpha=0.5)
    recipe: dict[str, Any] = {"epochs": 4, "optimizer": "adam", "lr": 3e-3, "validation": 100}
    return train(method, "small_cnn", {"width": 8}, digits("train").take(torch.arange(868), "868"), LINF, **recipe)


def test_it_keeps_the_accurate_networks_answers_and_most_of_the_robust_ones_robustness(head, trained, tmp_path):
    model = loaded(save_trained(head, tmp_path / "out" / "net"), (1, 8, 8), 10)
    robust, weak = trained("pgd_at").classifier(), trained("standard").classifier()
    data = digits("test").take(torch.arange(200), "200")

    def right(target, x):
        return float((target.logits(x).argmax(1) == data.y).float().mean())

    def after(target):
        attack = PGD(steps=10, stop_when_fooled=False)
        return attack.run(target, data.x, data.y, LINF, Noise(0, "test").at(data.ids))

    mixture = model.module
    assert isinstance(mixture, AdaptiveMixture)
    x_adv = after(model)
    with torch.no_grad():
        gammas = [mixture.parts(x)[1] for x in (data.x, x_adv)]
    assert float((gammas[1].view(-1, 1) > gammas[0].view(1, -1)).float().mean()) > 0.8
    assert right(model, data.x) > right(robust, data.x) + 0.03
    assert right(model, x_adv) > right(weak, after(weak)) + 0.2
    assert right(model, x_adv) > right(robust, after(robust)) - 0.15
    assert torch.equal(model.logits(data.x), head.module(data.x))
    assert all(epoch.robust_accuracy is not None for epoch in head.history)
    assert head.history[-1].terms["mixing"] < head.history[0].terms["mixing"]


def test_the_checkpoint_is_the_robust_network_with_the_defense_around_it(head, trained, tmp_path):
    robust, standard = trained("pgd_at").checkpoint, trained("standard").checkpoint
    path = save_trained(head, tmp_path / "out" / "net")
    assert path.read_bytes() == robust.read_bytes()
    sidecar = yaml.safe_load(path.with_suffix(".yaml").read_text())
    wrap = sidecar["wrap"]
    assert (wrap["name"], wrap["low"], wrap["high"], wrap["standard_layers"]) == (
        "adaptive_smoothing", 0.5, 1.0, ["0", "2"],
    )  # fmt: skip
    assert wrap["head"] == "./net.head.safetensors"
    assert wrap["standard"].startswith("../")
    assert (path.parent / wrap["standard"]).resolve() == standard.resolve()
    assert len(wrap["head_sha256"]) == len(wrap["standard_sha256"]) == 64
    assert sidecar["defense"]["name"] == "adaptive_smoothing_head"
    assert sidecar["defense"]["data"]["fingerprint"] == head.data["fingerprint"]
    last = save_trained(head, tmp_path / "out" / "net.last", "last")
    assert find_sidecar(last).wrap["head"] == "./net.last.head.safetensors"  # type: ignore[union-attr,index]
    file = path.parent / "net.head.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match="is not the one that was recorded"):
        loaded(path, (1, 8, 8), 10)


def test_only_the_head_is_trained(head, trained):
    for name, net in (("standard", "standard"), ("robust", "pgd_at")):
        state = trained(net).module.state_dict()
        assert all(torch.equal(head.last_state[f"{name}.{key}"], tensor) for key, tensor in state.items())


def test_networks_that_are_not_given_are_trained_first_and_lie_beside(tmp_path):
    made = toy(AdaptiveSmoothingHead(steps=1, width=4))
    assert made.forward_before > 0
    path = save_trained(made, tmp_path / "net.safetensors")
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"net.safetensors", "net.yaml", "net.head.safetensors", "net.standard.safetensors",
                     "net.standard.yaml"}  # fmt: skip
    assert find_sidecar(tmp_path / "net.standard.safetensors").defense is None  # type: ignore[union-attr]
    x = toy_data(60).x
    assert torch.allclose(loaded(path, (1, 6, 6), 3).logits(x), made.module(x), atol=1e-6)
    again = save_trained(toy(AdaptiveSmoothingHead(steps=1, width=4)), tmp_path / "same" / "net.safetensors")
    assert again.with_suffix(".yaml").read_bytes() == path.with_suffix(".yaml").read_bytes()


@pytest.mark.parametrize("kill", [1, 4])
def test_it_survives_a_kill_without_training_the_networks_again(tmp_path, kill):
    def stop(done: int, total: int, info: dict[str, Any]) -> None:
        if done == kill:
            raise KeyboardInterrupt

    method = AdaptiveSmoothingHead(steps=1, width=4)
    whole = toy(method)
    with pytest.raises(KeyboardInterrupt):
        toy(method, keep_at=tmp_path / "m", progress=stop)
    resumed = toy(method, keep_at=tmp_path / "m")
    assert all(torch.equal(whole.last_state[name], tensor) for name, tensor in resumed.last_state.items())
    assert (resumed.history, resumed.passes) == (whole.history, whole.passes)


def test_a_normalised_network_keeps_its_normalisation(tmp_path):
    net = ARCHITECTURES.get("small_cnn").target(num_classes=3, input_shape=(1, 6, 6), width=2)
    sidecar = Sidecar(arch="small_cnn", arch_params={"width": 2}, num_classes=3, input_shape=(1, 6, 6),
                      normalization=Normalization(mean=(0.4,), std=(0.3,)))  # fmt: skip
    path = str(save_checkpoint(tmp_path / "normalised", net.state_dict(), sidecar))
    made = toy(AdaptiveSmoothingHead(standard=path, robust=path, steps=1, width=4))
    saved = save_trained(made, tmp_path / "out" / "net")
    assert find_sidecar(saved).normalization == sidecar.normalization  # type: ignore[union-attr]
    x = toy_data(60).x
    assert torch.allclose(loaded(saved, (1, 6, 6), 3).logits(x), made.module(x), atol=1e-6)


def test_what_the_head_reads_by_default():
    net = ARCHITECTURES.get("small_cnn").target(num_classes=3, input_shape=(1, 6, 6), width=2)
    assert readable(net) == ("0", "2")
    assert readable(with_normalization(net, [0.5], [0.5])) == ("1.0", "1.2")
    with pytest.raises(UsageError, match="no hidden layer"):
        readable(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)))


def test_bad_input(tmp_path, trained):
    wrong: list[dict[str, Any]] = [{"low": 0.9, "high": 0.8}, {"width": 0}, {"steps": -1}, {"robust_layers": "0"}]
    for bad in wrong:
        with pytest.raises(UsageError):
            AdaptiveSmoothingHead(**bad)
    with pytest.raises(InputError, match="no model 'nowhere'"):
        toy(AdaptiveSmoothingHead(standard="nowhere"))
    ten = str(trained("standard").checkpoint)
    with pytest.raises(InputError, match="cannot be used for images"):
        toy(AdaptiveSmoothingHead(standard=ten))
    net = ARCHITECTURES.get("small_cnn").target(num_classes=3, input_shape=(1, 6, 6), width=2)
    sidecar = Sidecar(arch="small_cnn", arch_params={"width": 2}, num_classes=3, input_shape=(1, 6, 6))
    plain = save_checkpoint(tmp_path / "plain", net.state_dict(), sidecar)
    jpeg = sidecar.model_copy(update={"wrap": {"name": "jpeg"}})
    inside = save_checkpoint(tmp_path / "inside", net.state_dict(), jpeg)
    with pytest.raises(InputError, match=r"the standard network .* has a defense around it"):
        toy(AdaptiveSmoothingHead(standard=str(inside), robust=str(plain)))
    with pytest.raises(UsageError, match="no layer 'no'"):
        toy(AdaptiveSmoothingHead(standard=str(plain), robust=str(plain), standard_layers=("no",)))
    plain.with_suffix(".yaml").unlink()
    with pytest.raises(InputError, match="must be a checkpoint with a sidecar"):
        toy(AdaptiveSmoothingHead(robust=str(plain)))
