"""What is saved loads again, and says where it comes from."""

from pathlib import Path

import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.models.sidecar import find_sidecar
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.method import make_composed


def quick(blobs: Dataset):
    threat = ThreatModel.parse("Linf:8/255")
    return train(
        PGDAT(steps=2), "small_cnn", {"width": 4}, blobs, threat, epochs=3, batch_size=16, seed=5, validation=12
    )


def test_round_trip(blobs: Dataset, tmp_path: Path):
    trained = quick(blobs)
    path = save_trained(trained, tmp_path / "model.safetensors")
    loaded = load_model(ModelSpec(str(path)), input_shape=(1, 4, 4), num_classes=3)
    assert torch.equal(loaded.classifier.logits(blobs.x), trained.module(blobs.x))
    sidecar = find_sidecar(path)
    assert sidecar is not None
    assert (sidecar.arch, sidecar.arch_params, sidecar.num_classes) == ("small_cnn", {"width": 4}, 3)
    told = sidecar.defense
    assert told is not None
    assert (told["name"], told["params"]) == ("pgd_at", {"steps": 2, "alpha": 0.25})
    assert told["threat"] == "Linf:8/255"
    assert told["settings"]["seed"] == 5
    assert told["data"]["fingerprint"] == blobs.fingerprint
    assert told["epoch"] == trained.best
    assert told["held_out"]["best"]["robust_accuracy"] == trained.history[trained.best - 1].robust_accuracy
    assert told["passes"] == {"forward": 3 * 48 * 3, "backward": 3 * 48 * 3}


def test_equal_trainings_give_equal_files(blobs: Dataset, tmp_path: Path):
    first, second = (save_trained(quick(blobs), tmp_path / name / "m.safetensors") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".yaml").read_bytes() == second.with_suffix(".yaml").read_bytes()


def test_last_weights_can_be_saved_too(blobs: Dataset, tmp_path: Path):
    trained = quick(blobs)
    path = save_trained(trained, tmp_path / "last.safetensors", "last")
    loaded = load_model(ModelSpec(str(path)), input_shape=(1, 4, 4), num_classes=3)
    state = loaded.classifier.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.last_state.items())
    assert find_sidecar(path).defense["epoch"] == 3  # type: ignore[union-attr,index]


def test_the_sidecar_says_what_parts_of_the_defense_rest_on(tmp_path):
    data = toy_data(24)
    method = make_composed("score", ("adr", "ema"), {"steps": 1})
    trained = train(method, "mlp", {"hidden": 4}, data, ThreatModel.parse("Linf:0.1"), epochs=1, batch_size=12)
    defense = find_sidecar(str(save_trained(trained, tmp_path / "net"))).defense
    assert defense is not None
    assert defense["fidelity"] == {"score": "authors' code", "adr": "authors' code"}
