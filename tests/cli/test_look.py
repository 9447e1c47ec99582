"""`ls`, `show`, `doctor`, `check`, `schema` and `board`: they print, and their JSON parses."""

import json
from pathlib import Path

import pytest

from robustsuite.cli.listing import KINDS

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_ls_lists_every_kind(run):
    everything = run("ls", "--json").document
    assert set(everything) == set(KINDS)
    assert "pgd" in {row["name"] for row in everything["attacks"]}
    assert {"smoke", "quick", "standard"} <= {row["name"] for row in everything["protocols"]}
    text = run("ls", "attacks").stdout
    assert "apgd-t" in text
    assert "ibp" not in text.replace("robustsuite", "")


def test_ls_sees_a_plugin(run):
    names = run("ls", "attacks", "--plugin", EXAMPLES / "my_attack.py", "--json").document["attacks"]
    assert "my_attack" in {row["name"] for row in names}


def test_show_a_plugin_with_its_parameters(run):
    body = run("show", "pgd", "--json").document
    (found,) = body["found"]
    assert found["kind"] == "attacks"
    steps = next(p for p in found["parameters"] if p["name"] == "steps")
    assert (steps["type"], steps["required"]) == ("int", False)
    assert "steps (int) = " in run("show", "pgd").stdout
    assert {f["kind"] for f in run("show", "ibp", "--json").document["found"]} == {"certifiers", "defenses"}
    sigma = next(
        p for p in run("show", "smoothing", "--json").document["found"][0]["parameters"] if p["name"] == "sigma"
    )
    assert sigma["required"] is True


def test_show_a_protocol_and_an_architecture(run):
    assert "certifier ibp when supported" in run("show", "quick").stdout
    assert "width (int) = " in run("show", "small_cnn").stdout


def test_show_a_run_by_directory_and_by_key(run, smoke):
    body = smoke("--json").document
    for name in (body["run_dir"], body["run_key"], body["record"]):
        shown = run("show", name)
        assert shown.exit_code == 0, shown.output
        assert "robust accuracy" in shown.stdout
    assert run("show", body["run_key"], "--json").document["metrics"] == body["metrics"]


def test_doctor_looks_at_everything(run):
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    checks = {c["name"]: c for c in result.document["checks"]}
    assert {"python", "device", "threads", "torch", "disk"} <= set(checks)
    assert all(c["status"] in ("ok", "info", "warning") for c in checks.values())
    assert "python: " in run("doctor").stdout


def test_doctor_reports_a_plugin_that_fails(run, tmp_path):
    (tmp_path / "bad.py").write_text("raise RuntimeError('not today')\n")
    result = run("doctor", "--plugin", "bad.py")
    assert result.exit_code == 0
    assert "not today" in result.stdout


def test_check_accepts_the_example(run):
    result = run("check", f"{EXAMPLES / 'my_trades.py'}:MyTrades")
    assert result.exit_code == 0, result.output
    assert "keeps its contract" in result.stdout


def test_check_says_what_is_wrong(run, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from dataclasses import dataclass\nfrom robustsuite.attacks import Attack, register_attack\n\n\n"
        "@register_attack('leaves_the_ball', norms=('Linf',), access='white-box', kind='bounded', randomized=False)\n"
        "@dataclass(frozen=True)\nclass Leaves(Attack):\n    '''Leaves the ball.'''\n\n"
        "    def run(self, model, x, y, threat, noise):\n        return x + 10 * threat.radius\n"
    )
    result = run("check", "wrong.py:Leaves")
    assert result.exit_code == 6
    assert "FAILED" in result.stdout
    as_json = run("check", "wrong.py:Leaves", "--json")
    assert as_json.exit_code == 6
    body = as_json.document
    assert body["ok"] is False
    assert any(not f["ok"] for f in body["findings"])


def test_schema_is_a_json_schema(run):
    body = run("schema").document
    assert body["title"] == "Record"
    assert "content_sha256" in body["properties"]


@pytest.mark.parametrize(
    "command", ["eval", "certify", "verify", "submit", "train", "ls", "show", "doctor", "check", "demo", "schema"]
)
def test_every_command_has_help_and_json(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_board_build(run, smoke, tmp_path):
    body = smoke("--json").document
    (tmp_path / "runs" / "junk").mkdir()
    (tmp_path / "runs" / "junk" / "record.json").write_text("{")
    result = run("board", "build", "-o", "tables")
    assert result.exit_code == 0, result.output
    assert "junk/record.json" in result.stderr
    assert "standard" in result.stdout
    written = {p.suffix for p in (tmp_path / "tables").iterdir()}
    assert written == {".md", ".csv", ".json", ".tex"}
    as_json = run("board", "build", "runs", "-o", "two", "--format", "md,latex", "--json").document
    assert as_json["boards"][0]["rows"][0]["run_key"] == body["run_key"]
    assert len(as_json["unusable"]) == 1
    assert {Path(f).suffix for f in as_json["files"]} == {".md", ".tex"}


def test_board_without_records_is_bad_input(run, tmp_path):
    assert run("board", "build").exit_code == 3
    (tmp_path / "runs").mkdir()
    assert run("board", "build").exit_code == 3
    (tmp_path / "runs" / "record.json").write_text(json.dumps({"schema_version": 1}))
    result = run("board", "build")
    assert result.exit_code == 3
    assert "runs/record.json" in result.stderr
