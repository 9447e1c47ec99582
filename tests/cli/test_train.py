"""`train` and `demo`."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from robustsuite.training import recipes


def test_train_writes_what_eval_reads(run, tmp_path):
    base = ("train", "pgd_at", "--data", "digits", "--subset", "first:200", "--arch", "mlp", "-M", "hidden=16")
    result = run(*base, "-D", "steps=2", "--epochs", "1", "--batch-size", "50", "--lr", "0.1", "-o", "out/m")
    assert result.exit_code == 0, result.output
    assert "Checkpoint: out/m.safetensors" in result.stdout
    assert "pgd_at: epoch 1 of 1, loss " in result.stderr
    (after,) = (line for line in result.stdout.splitlines() if line.startswith("Next: "))
    arguments = after.removeprefix("Next: robustsuite ").replace("--tier standard", "--tier smoke").split()
    evaluated = run(*arguments, "--subset", "first:24", "--threads", "1", "--json")
    assert evaluated.exit_code == 0, evaluated.output
    body = run(*base, "-D", "steps=2", "--epochs", "1", "-o", "again", "--json").document
    assert body["checkpoint"] == "again.safetensors"
    assert len(body["history"]) == 1


def test_methods_compose_and_leave_epochs_and_curves(run, tmp_path):
    pytest.importorskip("matplotlib")
    result = run(
        "train", "trades", "--with", "awp,ema", "-D", "steps=2", "-D", "awp.gamma=0.005", "--data", "digits",
        "--subset", "first:150", "--arch", "mlp", "--epochs", "2", "--batch-size", "50", "-S", "validation=30",
        "-S", "momentum=0.8", "--plot", "--keep-last", "-o", "m", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    body = result.document
    assert [len(body["history"]), body["best_epoch"] in (1, 2), body["robust_overfitting"] >= 0] == [2, True, True]
    rows = (tmp_path / "m.epochs.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,term_ce,term_kl,clean_accuracy,robust_accuracy,fgsm_accuracy,abnormal,kept")
    assert len(rows) == 3
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "m.last.safetensors").exists()
    assert not (tmp_path / "m.training.pt").exists()
    sidecar = yaml.safe_load((tmp_path / "m.yaml").read_text())["defense"]
    assert sidecar["params"]["steps"] == 2
    assert [(part["name"], part["params"].get("gamma")) for part in sidecar["modifiers"]] == [
        ("awp", 0.005), ("ema", None),
    ]  # fmt: skip
    assert sidecar["settings"]["momentum"] == 0.8


def test_combinations_and_settings_that_cannot_be_are_refused(run):
    base = ("train", "pgd_at", "--data", "digits", "-o", "m")
    for words, reason in (
        (("--with", "awp,sam"), "awp and sam cannot be combined: both move the weights"),
        (("--with", "awpp"), "Did you mean 'awp'"),
        (("-S", "momentumm=0.9"), "Did you mean 'momentum'"),
        (("-S", "lr=0.1"), "has an option of its own: --lr"),
        (("--devices", "9", "--batch-size", "4"), "batches of at least 18"),
    ):
        result = run(*base, *words)
        assert result.exit_code in (2, 3), result.output
        assert reason in " ".join(result.stderr.split())


def test_a_fit_method_from_a_plugin_file_trains_and_is_evaluated(run, tmp_path):
    example = Path(__file__).parents[2] / "examples" / "my_fit.py"
    base = ("train", "my_fit", "--plugin", example, "--data", "digits", "--subset", "first:640", "--arch", "mlp", "-M",
            "hidden=32", "-D", "alpha=1", "--epochs", "6", "--batch-size", "32", "--lr", "0.1", "--seed", "4",
            "-S", "validation=40", "--threat", "Linf:0.05", "--keep-last")  # fmt: skip
    result = run(*base, "-o", "m", "--json")
    assert result.exit_code == 0, result.output
    assert "my_fit: epoch 6 of 6, loss " in result.stderr
    body = result.document
    assert (len(body["history"]), body["passes"]) == (6, {"forward": 7200, "backward": 7200})
    assert all(epoch["fgsm_accuracy"] is not None for epoch in body["history"])
    assert (tmp_path / "m.epochs.csv").read_text().startswith("epoch,term_ce_adv,clean_accuracy,robust_accuracy")
    told = yaml.safe_load((tmp_path / "m.yaml").read_text())["defense"]
    assert (told["name"], told["params"], told["settings"]["seed"]) == ("my_fit", {"alpha": 1}, 4)
    assert not (tmp_path / "m.training.pt").exists()
    evaluated = run("eval", "m.safetensors", "--data", "digits", "--threat", "Linf:0.1", "--subset", "first:40",
                    "--tier", "smoke", "--threads", "1", "--json")  # fmt: skip
    assert evaluated.exit_code == 0, evaluated.output
    clean = {m["name"]: m["value"] for m in evaluated.document["metrics"]}["clean_accuracy"]
    assert clean > 0.6
    shown = run("show", "my_fit", "--plugin", example).stdout
    assert "alpha (float) = 1.25" in shown
    refused = run(*base, "--with", "ema", "-o", "n")
    assert refused.exit_code == 2
    assert "my_fit is a fit method, which owns its loop" in " ".join(refused.stderr.split())


def test_a_mixing_network_is_trained_and_evaluated_as_the_mixture(run, tmp_path):
    few = ("--data", "digits", "--subset", "first:300", "--epochs", "1", "--batch-size", "50", "-M", "width=4")
    for name, out in (("standard", "nets/accurate"), ("fgsm_rs", "nets/robust")):
        assert run("train", name, *few, "-o", out).exit_code == 0
    base = ("train", "adaptive_smoothing_head", "-D", "standard=nets/accurate.safetensors", "-D", "steps=2", "-D",
            "width=4", *few)  # fmt: skip
    result = run(*base, "-D", "robust=nets/robust.safetensors", "-o", "out/net", "--json")
    assert result.exit_code == 0, result.output
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    evaluated = run("eval", "elsewhere/net.safetensors", "--data", "digits", "--threat", "Linf:0.1", "--subset",
                    "first:16", "--tier", "smoke", "--threads", "1", "--json")  # fmt: skip
    assert evaluated.exit_code == 0, evaluated.output
    model = json.loads(Path(evaluated.document["record"]).read_text())["request"]["model"]
    assert model["wrap"]["name"] == "adaptive_smoothing"
    assert model["wrap"]["head"] == "elsewhere/net.head.safetensors"
    assert model["wrap"]["standard"] == "nets/accurate.safetensors"
    assert model["defense"]["network"]["name"] == "fgsm_rs"
    assert run("verify", evaluated.document["run_dir"]).exit_code == 0
    refused = run(*base, "-D", "robust=elsewhere/net.safetensors", "-o", "again")
    assert refused.exit_code == 3
    assert "has a defense around it; a plain one is needed" in " ".join(refused.stderr.split())
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    lost = run("verify", evaluated.document["run_dir"])
    assert lost.exit_code == 3
    found = run("verify", evaluated.document["run_dir"], "--model", "moved/net.safetensors")
    assert found.exit_code == 0, found.output
    (tmp_path / "moved" / "net.head.safetensors").unlink()
    gone = run("eval", "moved/net.safetensors", "--data", "digits", "--threat", "Linf:0.1", "--tier", "smoke")
    assert gone.exit_code == 3
    assert "moved/net.head.safetensors" in " ".join(gone.stderr.split())


def test_show_lists_published_values(run):
    text = run("show", "trades").stdout
    assert "published for mnist: beta=1, steps=40" in text
    assert "paper: Zhang et al. 2019" in text


def test_a_wrap_is_put_around_any_checkpoint(run):
    run("train", "standard", "--data", "digits", "--subset", "first:200", "--arch", "mlp", "--epochs", "1", "-o", "m")
    base = ("eval", "m.safetensors", "--data", "digits", "--threat", "Linf:0.1", "--subset", "first:16",
            "--tier", "smoke", "--threads", "1", "--json")  # fmt: skip
    body = run(*base, "--wrap", "bit_depth", "-W", "bits=3").document
    model = json.loads(Path(body["record"]).read_text())["request"]["model"]
    assert model["wrap"] == {"name": "bit_depth", "bits": 3, "surrogate": "identity"}
    assert model["differentiable"] == "surrogate"
    assert run(*base, "-W", "bits=3").exit_code == 2


def test_train_refuses_what_it_does_not_know(run):
    base = ("train", "pgd_at", "--data", "digits", "-o", "m")
    wrong = run(*base, "-D", "stepz=2")
    assert wrong.exit_code == 2
    assert "Did you mean 'steps'?" in wrong.stderr
    assert run(*base, "--optimizer", "adamm", "--epochs", "1").exit_code == 2
    assert run(*base, "--epochs", "0").exit_code == 2


def test_train_never_takes_test_examples_unasked(run, tmp_path):
    import numpy as np

    np.savez(tmp_path / "own.npz", x=np.zeros((40, 1, 8, 8), np.float32), y=np.arange(40) % 10)
    base = ("train", "standard", "--data", "own.npz", "--threat", "Linf:0.1", "--arch", "mlp", "-o", "m")
    refused = run(*base, "--epochs", "1")
    assert refused.exit_code == 3
    assert "--split test" in refused.stderr
    accepted = run(*base, "--epochs", "1", "--split", "test", "--subset", "first:20")
    assert accepted.exit_code == 0, accepted.output
    assert run("train", "standard", "--data", "own.npz", "-o", "m").exit_code == 2  # no threat


def test_a_training_that_diverges_says_so(run):
    base = ("train", "standard", "--data", "digits", "--subset", "first:200", "--arch", "mlp", "-o", "m")
    result = run(*base, "--lr", "1e30", "--epochs", "2")
    assert result.exit_code in (1, 5)
    assert "no longer finite" in result.stderr


def test_demo_prints_one_table_and_builds_a_board(run, monkeypatch, tmp_path):
    quick = [dataclasses.replace(r, settings={**r.settings, "epochs": 1}) for r in recipes.DIGITS]
    monkeypatch.setattr(recipes, "DIGITS", quick)
    result = run("demo", "--subset", "first:20")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for expected in (
        "clean",
        "attacked (at most)",
        "certified (at least)",
        "pgd_at",
        "ibp",
        "Next:",
        "robustsuite verify",
    ):
        assert expected in words
    assert len(list((tmp_path / "demo" / "checkpoints").glob("*.safetensors"))) == len(quick)
    assert (tmp_path / "demo" / "board" / "README.md").exists()
    assert "demo/site/index.html" in result.stdout
    assert "digits" in (tmp_path / "demo" / "site" / "index.html").read_text()
    body = run("demo", "--subset", "first:20", "--json").document
    assert set(body["runs"]) == {r.name for r in quick}
    assert all(r["resumed"] for r in body["runs"].values())  # the same training gives the same run


@pytest.mark.slow
def test_demo_shows_what_it_is_meant_to_show(run):
    body = run("demo", "--json").document
    accuracy = {name: {m["name"]: m["value"] for m in r["metrics"]} for name, r in body["runs"].items()}
    assert all(a["clean_accuracy"] > 0.9 for a in accuracy.values())
    assert accuracy["standard"]["robust_accuracy"] < 0.4
    assert accuracy["pgd_at"]["robust_accuracy"] > 0.6
    assert accuracy["ibp"]["certified_accuracy"] > 0.5
