"""`verify`: a run holds, until someone touches it."""

import json
import shutil
from pathlib import Path

import pytest

from robustsuite.models.sidecar import read_sidecar, save_checkpoint, sidecar_path


@pytest.fixture
def sealed(smoke) -> Path:
    return Path(smoke("--json").document["run_dir"])


def test_an_honest_run_holds(run, sealed):
    result = run("verify", sealed)
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.stdout
    assert "clean predictions: 40 of 40 reproduced" in result.stdout
    assert f"Run {sealed.name} holds." in result.stdout
    body = run("verify", sealed / "record.json", "--json").document
    assert body["ok"] is True
    assert {"weights", "data", "bracket", "fgsm"} <= {f["name"] for f in body["findings"]}


def test_a_changed_adversarial_example_is_found(run, sealed):
    victim = next((sealed / "adversarials").rglob("*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    result = run("verify", sealed)
    assert result.exit_code == 6
    assert "FAILED  adversarials" in result.stdout
    as_json = run("verify", sealed, "--json")
    assert as_json.exit_code == 6
    assert as_json.document["ok"] is False


def test_an_edited_record_is_refused(run, sealed):
    path = sealed / "record.json"
    body = json.loads(path.read_text())
    body["metrics"][1]["value"] = 1.0
    path.write_text(json.dumps(body))
    assert run("verify", sealed).exit_code == 6


def test_other_weights_are_found(run, sealed, checkpoint, tmp_path):
    from safetensors.torch import load_file

    state = load_file(checkpoint)
    name = next(iter(state))
    other = save_checkpoint(tmp_path / "other", state | {name: state[name] + 1}, read_sidecar(sidecar_path(checkpoint)))
    result = run("verify", sealed, "--model", other)
    assert result.exit_code == 6
    assert "FAILED  weights" in result.stdout


def test_moved_files_are_named_anew(run, checkpoint, tmp_path):
    import numpy as np

    from robustsuite.data.reference import load_data

    digits = load_data("digits", subset="first:20")
    np.savez(tmp_path / "own.npz", x=digits.x.numpy(), y=digits.y.numpy())
    (tmp_path / "here").mkdir()
    for path in (checkpoint, sidecar_path(checkpoint)):
        shutil.copy(path, tmp_path / "here")
    base = ("eval", "here/tiny.safetensors", "--data", "own.npz", "--num-classes", "10", "--subset", "range:5:15")
    run_dir = run(*base, "--threat", "Linf:0.1", "--tier", "smoke", "--threads", "1", "--json").document["run_dir"]
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "own.npz").rename(tmp_path / "moved.npz")
    assert run("verify", run_dir).exit_code == 3
    result = run("verify", run_dir, "--model", "there/tiny.safetensors", "--data", "moved.npz")
    assert result.exit_code == 0, result.output


def test_a_bare_checkpoint_is_loaded_as_it_was_typed(run, checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file({f"net.{k}": v for k, v in load_file(checkpoint).items()}, tmp_path / "bare.safetensors")
    options = ("--arch", "mlp", "-M", "hidden=32", "--strip-prefix", "net.", "--mean", "0", "--std", "1")
    base = ("eval", "bare.safetensors", *options, "--data", "digits", "--subset", "first:24", "--threat", "Linf:0.1")
    body = run(*base, "--tier", "smoke", "--threads", "1", "--json").document
    result = run("verify", body["run_dir"])
    assert result.exit_code == 0, result.output


def test_a_smoothed_model_is_evaluated_and_verified_as_such(run, checkpoint, tmp_path):
    from safetensors.torch import load_file

    sidecar = read_sidecar(sidecar_path(checkpoint))
    wrap = {"name": "smoothing", "sigma": 0.1, "n": 50, "m": 4, "batch": 100}
    own = save_checkpoint(tmp_path / "own", load_file(checkpoint), sidecar.model_copy(update={"wrap": wrap}))
    base = ("eval", own, "--data", "digits", "--subset", "first:12", "--threat", "L2:0.1", "--threads", "1", "--json")
    result = run(*base, "--attack", "pgd", "-A", "pgd.steps=2")
    assert result.exit_code == 0, result.output
    body = result.document
    record = json.loads(Path(body["record"]).read_text())
    assert record["request"]["model"]["wrap"]["sigma"] == 0.1
    again = run("verify", body["run_dir"])
    assert again.exit_code == 0, again.output


def test_a_certifiers_own_smoothing_is_verified_too(run, checkpoint):
    base = ("certify", checkpoint, "--data", "digits", "--subset", "first:12", "--threat", "L2:0.1", "--threads", "1")
    body = run(*base, "--certifier", "smoothing", "-A", "sigma=0.1", "-A", "n=200", "--json").document
    record = json.loads(Path(body["record"]).read_text())
    assert record["request"]["model"]["wrap"]["name"] == "smoothing"
    result = run("verify", body["run_dir"])
    assert result.exit_code == 0, result.output
