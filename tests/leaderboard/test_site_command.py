"""The command that an entry's page shows makes the run again; `robustsuite board site` reads folders and runs."""

import json
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from robustsuite.errors import InputError
from robustsuite.leaderboard.site.command import command, protocol_yaml
from robustsuite.results.schema import StagePlan

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("site_boards.py"))))
COMMANDS = {
    "plain": {},
    "sidecar": {"defense": {"name": "trades"}, "wrap": {"name": "jpeg", "quality": 75}},
    "wrapped": {"defense": None, "wrap": {"name": "jpeg", "quality": 75, "mode": "straight-through"}},
    "options": {
        "load_options": {
            "reference": "py:net.py:make it",
            "weights": "my weights.pt",
            "mean": [0.5, 125.3 / 255],
            "std": [0.25, 0.1],
            "strip_prefix": "module.",
            "by_order": True,
            "trust_pickle": True,
            "output": "probabilities",
            "num_classes": 10,
            "arch_params": {"width": 4, "norm": "batch", "flag": True, "word": "true", "list": [1, 2]},
        },
        "eot": 7,
        "randomized": True,
    },
    "normalised": {"normalization": {"mean": [0.1307], "std": [0.3081]}, "output": "probabilities"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_one_that_the_command_line_takes(name):
    import typer

    from robustsuite.cli.main import app
    from robustsuite.cli.values import pairs

    record = made.make_record(
        "net", seed=3, subset="first:20", data="digits", source="a folder/x.npz", **COMMANDS[name]
    )
    parts = command(record, "protocol.yaml")
    words = shlex.split(" ".join(parts))
    assert words[:2] == ["robustsuite", "eval"]
    group = typer.main.get_command(app)
    parsed = group.commands["eval"].make_context("eval", words[2:], obj=[]).params
    assert (parsed["data"], parsed["subset"], parsed["threat"]) == ("a folder/x.npz", "first:20", "Linf:0.15")
    assert (parsed["seed"], parsed["slots"], parsed["threads"], parsed["device"]) == (3, 100, 1, "cpu")
    assert parsed["protocol"] == "protocol.yaml"
    assert parsed["wrap"] == ("jpeg" if name == "wrapped" else None)
    if name == "options":
        typed = COMMANDS[name]["load_options"]
        assert parsed["model"] == "py:net.py:make it"
        assert parsed["weights"] == "my weights.pt"
        assert [float(v) for v in parsed["mean"].split(",")] == typed["mean"]
        assert pairs("-M", parsed["model_param"]) == typed["arch_params"]
        assert (parsed["match_by_order"], parsed["trust_pickle"], parsed["num_classes"]) == (True, True, 10)
        assert (parsed["eot"], parsed["output"]) == (7, "probabilities")
    if name == "plain":
        assert (parsed["model"], parsed["arch"]) == ("net.safetensors", "small-cnn")


@pytest.mark.parametrize(
    ("tier", "last", "params", "sample"),
    [
        ("quick", [], {}, None),
        ("standard", [], {"apgd-ce.steps": 7}, None),
        ("standard", ["ibp", "crown"], {}, None),
        ("strong", ["crown"], {"square.n_queries": 9}, 50),
    ],
)
def test_protocol_file_gives_the_protocol_again(tmp_path, tier, last, params, sample):
    from robustsuite.cli.running import adjusted, choose_protocol
    from robustsuite.evaluation.protocol import load_protocol, resolve, with_certifiers, with_params, with_tail_sample
    from robustsuite.threat import ThreatModel

    threat = ThreatModel.parse("Linf:0.1")
    asked = with_params(with_certifiers(load_protocol(tier), [], last), params)
    asked = with_tail_sample(asked, sample) if sample else asked
    ran, _ = resolve(asked, threat)
    file = tmp_path / "protocol.yaml"
    file.write_text(protocol_yaml(ran))
    record = made.make_record("net")
    request = record.request.model_copy(update={"protocol": ran})
    words = shlex.split(" ".join(command(record.model_copy(update={"request": request}), str(file))))

    def values(option):
        return [words[i + 1] for i, word in enumerate(words) if word == option]

    again = choose_protocol(None, str(file), [], [], values("-A"), ([], values("--certify-last")))
    again = adjusted(again, *(int(v) for v in values("--tail-sample")), None) if sample else again
    assert resolve(again, threat)[0] == ran


def test_protocol_file_keeps_every_parameter():
    record = made.make_record("net", steps=33)
    body = yaml.safe_load(protocol_yaml(record.request.protocol))
    assert body["stages"][1] == {"attack": "apgd-ce", "name": "apgd-ce", "params": {"steps": 33}}
    stage = StagePlan(name="x", kind="attack", plugin="square", when="flagged", norm_params={"L2": {"a": 1}})
    again = record.request.protocol.model_copy(update={"stages": (stage,)})
    assert yaml.safe_load(protocol_yaml(again))["stages"][0]["norm_params"] == {"L2": {"a": 1}}


def run_site(*words):
    from typer.testing import CliRunner

    from robustsuite.cli.main import app

    return CliRunner().invoke(app, ["board", "site", *map(str, words)])


def test_the_command_reads_a_published_folder(published, tmp_path):
    out = tmp_path / "site"
    result = run_site(published, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["boards"] == [{"id": "toy", "entries": 3}]
    assert all(Path(file).is_file() for file in document["files"])
    entries = [path.read_text() for path in sorted((out / "toy" / "entries").iterdir())]
    assert any("Examples that were broken" in text and "data:image/png" in text for text in entries)
    assert all("robustsuite eval" in text and "--protocol protocol.yaml" in text for text in entries)


def test_the_command_reads_runs(toy, tmp_path):
    result = run_site(*toy.runs[:2], "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"open {tmp_path / 'index.html'}" in result.stdout
    assert len(list(tmp_path.glob("*/entries/*.html"))) == 2


def test_the_command_says_what_is_missing(tmp_path):
    result = run_site(tmp_path / "nowhere", "-o", tmp_path / "site")
    assert result.exit_code == InputError.exit_code
    assert "does not exist" in result.output
    result = run_site(tmp_path, "-o", tmp_path / "site")
    assert result.exit_code == InputError.exit_code
    assert "no usable record" in result.output
    assert not (tmp_path / "site").exists()
