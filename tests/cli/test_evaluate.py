"""`eval` and `certify`: from a checkpoint to a record, and everything that can be asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from robustsuite.results.records import load_record

KEYS = {"run_key", "run_dir", "status", "resumed", "metrics", "threat", "stages", "flags", "unreliable", "record"}


def outcome(run_dir: Path) -> str:
    return load_record(run_dir).outcome_sha256


def test_people_see_accuracies_stages_and_what_next(smoke):
    result = smoke()
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for expected in ("clean accuracy", "robust accuracy at most", "n = 40", "Linf eps 0.1", "smoke version 1", "fgsm"):
        assert expected in words
    assert "Run directory: runs/" in words
    assert "Next: robustsuite verify runs/" in words
    assert "fgsm: started on" in result.stderr
    assert "pgd: ended after" in result.stderr
    assert "already complete" not in words


def test_json_is_one_document_that_the_record_agrees_with(smoke):
    result = smoke("--json")
    body = result.document
    assert body.keys() >= KEYS
    assert (body["status"], body["resumed"]) == ("complete", False)
    assert [m["name"] for m in body["metrics"]] == ["clean_accuracy", "robust_accuracy"]
    for m in body["metrics"]:
        assert m["ci95"][0] <= m["value"] <= m["ci95"][1]
        assert m["n"] == 40
    record = load_record(body["record"])
    assert record.run_key == body["run_key"] == Path(body["run_dir"]).name
    assert [m.value for m in record.metrics] == [m["value"] for m in body["metrics"]]
    assert record.request.model.load_options["reference"].endswith("tiny.safetensors")
    assert record.host.command.startswith("robustsuite eval ")
    clean, fgsm, pgd = body["stages"]
    assert (clean["n_in"], fgsm["n_in"]) == (40, 40 - clean["n_broken"])
    assert pgd["n_in"] == fgsm["n_in"] - fgsm["n_broken"]


def test_a_finished_run_is_recalled(smoke):
    first = smoke("--json").document
    again = smoke()
    assert "(already complete)" in again.stdout
    assert "started" not in again.stderr
    second = smoke("--json").document
    assert second["resumed"] is True
    assert {k: v for k, v in first.items() if k != "resumed"} == {k: v for k, v in second.items() if k != "resumed"}


def test_a_dry_run_plans_and_writes_nothing(smoke, tmp_path):
    plan = smoke("--dry-run", "--json").document
    assert list(tmp_path.iterdir()) == []
    assert [s["name"] for s in plan["stages"]] == ["clean", "fgsm", "pgd"]
    assert plan["stages"][2]["forward"] == 40 * 11  # ten steps and the look at the last point
    assert plan["stages"][2]["params"]["steps"] == 10
    assert (plan["exists"], plan["complete"], plan["blocks_done"], plan["blocks"]) == (False, False, 0, 5)
    text = smoke("--dry-run").stdout
    assert "early success makes it cheaper" in text
    assert "does not exist yet" in text
    assert plan["run_key"] == smoke("--json").document["run_key"]
    assert "is already complete" in smoke("--dry-run").stdout


def test_parameters_of_stages_change_the_protocol_and_the_key(smoke):
    plain = smoke("--dry-run", "--json").document
    changed = smoke("-A", "pgd.steps=3", "--dry-run", "--json").document
    assert changed["stages"][2]["params"]["steps"] == 3
    assert changed["protocol"]["name"] == "smoke+"
    assert changed["run_key"] != plain["run_key"]
    wrong = smoke("-A", "pgd.stepz=3")
    assert wrong.exit_code == 2
    assert "pgd.steps" in wrong.stderr
    assert smoke("-A", "pgd.steps").exit_code == 2


def test_one_protocol_at_a_time(evaluate):
    result = evaluate("--tier", "smoke", "--attack", "pgd")
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


def test_attacks_and_certifiers_by_name(evaluate):
    body = evaluate("--attack", "fgsm,pgd", "--certifier", "ibp", "--json").document
    assert [s["name"] for s in body["stages"]] == ["clean", "ibp", "fgsm", "pgd"]
    assert {m["name"] for m in body["metrics"]} == {"clean_accuracy", "robust_accuracy", "certified_accuracy"}
    assert body["protocol"]["name"] == "custom"


def test_shards_say_what_is_missing_and_the_last_one_seals(smoke):
    first = smoke("--shard", "0/2")
    assert first.exit_code == 0
    assert "2 blocks of other shards are missing" in first.stdout
    again = smoke("--shard", "0/2", "--json").document
    assert (again["status"], again["missing_blocks"]) == ("shard", 2)
    partial = smoke("--dry-run", "--json").document
    assert (partial["blocks_done"], partial["blocks"]) == (3, 5)
    last = smoke("--shard", "1/2", "--json").document
    assert last["status"] == "complete"
    whole = smoke("-o", "whole", "--json").document
    assert outcome(Path(last["run_dir"])) == outcome(Path(whole["run_dir"]))


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_malformed_shards(smoke, shard):
    assert smoke("--shard", shard).exit_code == 2


def test_workers_give_the_outcome_of_one_process(smoke, checkpoint, tmp_path):
    command = [sys.executable, "-m", "robustsuite", "eval", str(checkpoint), "--data", "digits", "--subset", "first:40"]
    command += ["--threat", "Linf:0.1", "--tier", "smoke", "--threads", "1", "--workers", "2", "-o", "two", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1/2] clean: started on 24 examples" in done.stderr
    assert "[2/2] clean: started on 16 examples" in done.stderr
    two, one = json.loads(done.stdout), smoke("-o", "one", "--json").document
    assert two["run_key"] == one["run_key"]
    assert outcome(tmp_path / two["run_dir"]) == outcome(tmp_path / one["run_dir"])


def test_a_config_file_gives_options_and_typed_ones_win(run, checkpoint, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"model: {checkpoint}\ndata: digits\nthreat: Linf:0.1\ntier: smoke\nsubset: first:40\nthreads: 1\n"
        "stage-param: {pgd.steps: 3}\nseed: 5\n"
    )
    plan = run("eval", "--config", "c.yaml", "--dry-run", "--json").document
    assert plan["data"]["n"] == 40
    assert plan["stages"][2]["params"]["steps"] == 3
    typed = run("eval", "--config", "c.yaml", "--subset", "first:24", "--dry-run", "--json").document
    assert typed["data"]["n"] == 24


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: digits\nteir: smoke\n", "unknown key 'teir'. Did you mean 'tier'?"),
        ("data: [unclosed", "not YAML"),
        ("just words", "must hold keys and values"),
        ("data: {a: 1}\n", "wants one value"),
    ],
)
def test_a_bad_config_is_named(run, tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    result = run("eval", "m.pt", "--config", "c.yaml")
    assert result.exit_code == 3
    assert words in result.stderr


def test_a_missing_config_is_bad_input(run):
    assert run("eval", "m.pt", "--config", "no.yaml").exit_code == 3


def test_a_stage_that_raises_makes_the_run_partial_and_keeps_the_rest(evaluate, raising, tmp_path):
    arguments = ("--attack", "raises_midway,fgsm", "--plugin", raising)
    result = evaluate(*arguments)
    assert result.exit_code == 5
    assert "raises_midway: RuntimeError: boom" in result.stderr
    assert "PARTIAL" in result.stdout
    assert "error: RuntimeError: boom" in result.stdout
    assert evaluate(*arguments, "--json").document["error"]["exit_code"] == 5
    (run_dir,) = (p for p in (tmp_path / "runs").iterdir() if not p.name.startswith("."))
    stages = {s.name: s for s in load_record(run_dir).stages}
    assert stages["fgsm"].status == "done"
    assert stages["fgsm"].n_in > 0


def test_a_plugin_that_cannot_be_imported_is_a_warning(smoke, tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_module_anywhere\n")
    result = smoke("--plugin", "bad.py", "--dry-run")
    assert result.exit_code == 0
    assert "bad.py (ModuleNotFoundError" in result.stderr
    assert smoke("--plugin", "absent.py").exit_code == 3


def test_a_plugin_file_is_part_of_the_key(smoke, tmp_path):
    (tmp_path / "own.py").write_text("# nothing\n")
    keys = {smoke(*more, "--dry-run", "--json").document["run_key"] for more in ((), ("--plugin", "own.py"))}
    (tmp_path / "own.py").write_text("# nothing else\n")
    keys.add(smoke("--plugin", "own.py", "--dry-run", "--json").document["run_key"])
    assert len(keys) == 3


def test_a_model_that_returns_probabilities_breaks_its_contract(run, tmp_path, checkpoint):
    (tmp_path / "soft.py").write_text(
        "from torch import nn\n\n\ndef soft(num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Softmax(1))\n"
    )
    base = ("eval", "py:soft.py:soft", "--data", "digits", "--subset", "first:40", "--threat", "Linf:0.1")
    base += ("--threads", "1", "--tier", "smoke")
    refused = run(*base)
    assert refused.exit_code == 6
    assert "--output probabilities" in refused.stderr
    accepted = run(*base, "--output", "probabilities", "--json")
    assert accepted.exit_code == 0, accepted.output
    assert accepted.document["status"] == "complete"


def test_mean_and_std_take_fractions_and_one_value_for_all(run, checkpoint, tmp_path):
    weights = tmp_path / "bare.safetensors"
    weights.write_bytes(checkpoint.read_bytes())  # without the sidecar
    base = ("eval", weights, "--arch", "mlp", "-M", "hidden=32", "--data", "digits", "--threat", "Linf:0.1")
    base += ("--tier", "smoke", "--dry-run", "--json")
    plan = run(*base, "--mean", "125.3/255", "--std", "0.25").document
    assert plan["model"]["normalization"] == {"mean": [125.3 / 255], "std": [0.25]}
    assert plan["model"]["arch_params"] == {"hidden": 32}
    assert run(*base, "--mean", "0.1,0.2", "--std", "1,1").exit_code == 3
    assert run(*base, "--mean", "x", "--std", "1").exit_code == 2
    assert run(*base, "--mean", "0.5").exit_code == 3


def test_a_contradiction_fails_loudly_and_is_shown(evaluate, unsound):
    arguments = ("--certifier", "believes_anything", "--attack", "pgd", "--plugin", unsound)
    result = evaluate(*arguments)
    assert result.exit_code == 6
    assert "'believes_anything' certified example" in result.stderr
    assert "pgd" in result.stderr
    assert "FAILED" in result.stdout
    assert "contradiction: example" in result.stdout
    assert "Next:" not in result.stdout
    assert evaluate(*arguments).exit_code == 6  # it is no better the second time
    assert evaluate(*arguments, "--json").document["error"]["type"] == "ContradictionError"


def test_certify_runs_certifiers_alone(run, checkpoint):
    base = ("certify", checkpoint, "--data", "digits", "--subset", "first:10", "--threads", "1", "--json")
    body = run(*base, "--threat", "Linf:0.001", "--certifier", "ibp").document
    assert [m["name"] for m in body["metrics"]] == ["clean_accuracy", "certified_accuracy"]
    assert [s["name"] for s in body["stages"]] == ["clean", "ibp"]
    smoothed = run(*base, "--threat", "L2:0.1", "--certifier", "smoothing", "-A", "sigma=0.12", "-A", "n=200")
    assert smoothed.exit_code == 0, smoothed.output
    assert smoothed.document["metrics"][1]["name"] == "certified_accuracy"
    assert run(*base[:-1], "--threat", "Linf:0.1").exit_code == 2  # which certifier?
