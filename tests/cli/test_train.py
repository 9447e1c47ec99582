"""`train` and `demo`."""

import dataclasses

import pytest

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
