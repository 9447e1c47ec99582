"""`submit`, `board build`, `board check`, `board compare`: from a run to a published folder and back."""

import json
from pathlib import Path

import pytest
import yaml

from robustsuite.results.records import load_record


@pytest.fixture
def runs(smoke):
    """Two runs of one model."""
    return [Path(smoke("--seed", seed, "--json").document["run_dir"]) for seed in (0, 1)]


@pytest.fixture
def board(runs, tmp_path):
    """leaderboards/ with the board that the runs answer."""
    request = load_record(runs[0]).request
    body = {
        "id": "tiny",
        "title": "Forty digits",
        "data": {"name": "digits", "fingerprint": request.data.fingerprint},
        "threat": {"norm": "Linf", "eps": "0.1"},
        "protocol": {"name": "smoke", "version": request.protocol.version},
    }
    path = tmp_path / "leaderboards" / "boards" / "tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(body))
    return path


@pytest.fixture
def published(run, runs, board, tmp_path):
    for one in runs:
        assert run("submit", one, "--board", "tiny").exit_code == 0
    return tmp_path / "leaderboards"


def test_submit(run, runs, board, tmp_path):
    result = run("submit", runs[0], "--board", "tiny")
    assert result.exit_code == 0, result.output
    key = runs[0].name
    assert "checks hold: files, hashes, and every number counted again" in result.stdout
    assert f"wrote leaderboards/runs/tiny/{key}.json" in result.stdout
    assert {p.name for p in (tmp_path / "leaderboards" / "runs" / "tiny").iterdir()} == {
        f"{key}.json",
        f"{key}.verdicts.xz",
        f"{key}.gallery.xz",
    }
    text = (tmp_path / "leaderboards" / "runs" / "tiny" / f"{key}.json").read_text()
    assert str(tmp_path) not in text
    assert str(Path(load_record(runs[0]).request.model.reference).parent) not in text
    again = run("submit", runs[0], "--board", "tiny")
    assert again.exit_code == 0
    assert "already, with the same content: nothing to do" in again.stdout
    body = run("submit", runs[1], "--board", "tiny", "--pictures", "0", "--json").document
    assert (body["new"], len(body["files"])) == (True, 2)
    assert run("submit", runs[1], "--board", "none").exit_code == 3


def test_submit_without_the_data_says_that_there_are_no_pictures(run, runs, board, tmp_path):
    result = run("submit", runs[0], "--board", "tiny", "--data", "nowhere.npz")
    assert result.exit_code == 0, result.output
    assert "no pictures" in result.stderr
    assert run("board", "check").exit_code == 0


def test_build_and_check(run, runs, published):
    result = run("board", "build")
    assert result.exit_code == 0, result.output
    assert "Best known %" in result.stdout
    assert (published / "tables" / "tiny.md").exists()
    before = {p: p.read_bytes() for p in (published / "tables").iterdir()}
    assert run("board", "build", "leaderboards").exit_code == 0
    assert {p: p.read_bytes() for p in (published / "tables").iterdir()} == before
    checked = run("board", "check")
    assert checked.exit_code == 0, checked.output
    assert "leaderboards holds: 4 checks." in checked.stdout
    assert run("board", "check", "leaderboards", "--json").document["ok"] is True
    victim = published / "runs" / "tiny" / f"{runs[0].name}.json"
    victim.write_text(victim.read_text().replace('"seed": 0', '"seed": 7'))
    checked = run("board", "check")
    assert checked.exit_code == 6
    assert f"FAILED  runs/tiny/{victim.name}: record: " in checked.stdout
    as_json = run("board", "check", "--json")
    assert as_json.exit_code == 6
    assert [f["ok"] for f in as_json.document["findings"]].count(False) == 2  # the run, and the tables


def test_a_published_record_verifies(run, runs, published, checkpoint):
    result = run("verify", published / "runs" / "tiny" / f"{runs[0].name}.json", "--model", checkpoint)
    assert result.exit_code == 0, result.output


def test_compare(run, runs, published):
    first, second = (one.name for one in runs)
    result = run("board", "compare", first, second[:8])
    assert result.exit_code == 0, result.output
    assert "Neither may be called better: such a difference is within chance" in result.stdout
    body = run("board", "compare", first, second, "--board", "tiny", "--json").document
    test = body["test"]
    assert test["both"] + test["only_first"] + test["only_second"] + test["neither"] == 40
    assert (test["p_value"], test["better"]) == (1.0, None)  # the same weights, so the same best known


def test_compare_what_cannot_be(run, runs, published):
    first, second = (one.name for one in runs)
    name = load_record(runs[0]).request.model.name
    for arguments, words in (
        (("nobody", "noone"), "there is no entry nobody and no noone"),
        ((first, first), "are the same entry"),
        ((first, name), f"'{name}' may be "),
        ((first, second, "--board", "other"), "has no board 'other'. Its boards: tiny"),
        ((first, second, "--from", "runs"), "has no folder 'boards'"),
    ):
        result = run("board", "compare", *arguments)
        assert result.exit_code == 3
        assert words in " ".join(result.stderr.split())


def test_who_may_be_called_better(run, board, checkpoint, tmp_path):
    from safetensors.torch import load_file

    from robustsuite.models.sidecar import read_sidecar, save_checkpoint, sidecar_path

    state = {name: -tensor for name, tensor in load_file(checkpoint).items()}  # hardly an example survives that
    worse = save_checkpoint(tmp_path / "worse", state, read_sidecar(sidecar_path(checkpoint)))
    base = ("--data", "digits", "--subset", "first:40", "--threat", "Linf:0.1", "--threads", "1", "--tier", "smoke")
    keys = []
    for model in (checkpoint, worse):
        body = run("eval", model, *base, "--seed", 3, "--json").document
        keys.append(body["run_key"])
        assert run("submit", body["run_dir"], "--board", "tiny").exit_code == 0
    result = run("board", "compare", *reversed(keys))
    assert result.exit_code == 0, result.output
    test = run("board", "compare", *reversed(keys), "--json").document["test"]
    assert test["better"] == keys[0]
    assert test["only_second"] > 10
    assert "may be called better than" in result.stdout
    assert "Neither" not in result.stdout


def test_a_published_folder_is_built_alone(run, runs, published):
    result = run("board", "build", "leaderboards", "runs")
    assert result.exit_code == 3
    assert "name it, or records, not both" in " ".join(result.stderr.split())


def test_a_board_without_entries_is_built(run, board):
    result = run("board", "build")
    assert result.exit_code == 0
    assert "tiny: There are no entries yet." in result.stdout
    assert json.loads(Path("leaderboards/tables/tiny.json").read_text())["rows"] == []


def test_other_commands_are_registered(run):
    text = run("board", "--help").stdout
    for name in ("build", "check", "compare", "import", "site"):
        assert name in text
    assert "robustbench" in run("board", "import", "--help").stdout
