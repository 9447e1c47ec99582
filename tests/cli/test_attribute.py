"""`robustsuite attribute`: what it prints, what it writes, and bad input."""

import pandas as pd
import pytest

OPTIONS = ("--data", "digits", "--subset", "first:30", "--steps", "4")


@pytest.fixture
def attribute(run, checkpoint):
    return lambda *more: run("attribute", checkpoint, *OPTIONS, "--threat", "Linf:0.1", *more)


def test_one_document_and_a_line_an_example(attribute, tmp_path):
    body = attribute("--json", "--out", tmp_path / "deep" / "maps.csv").document
    table = pd.read_csv(tmp_path / "deep" / "maps.csv")
    assert (body["examples"], body["attributed"], body["threat"]) == (30, len(table), "Linf:0.1")
    assert 20 < len(table) <= 30
    for side in ("random", "attacked"):
        assert set(body[side]) == {"top_k", "kendall", "spearman", "centre_shift"}
        for name, value in body[side].items():
            assert value == pytest.approx(table[f"{side}_{name}"].mean())
    assert body["attacked"]["top_k"] < body["random"]["top_k"]
    assert (body["attack"]["k"], body["attack"]["steps"], body["attack"]["loss"]) == (6, 4, "topk")
    assert body["passes"]["backward"] > 0
    assert attribute("--json", "--out", tmp_path / "deep" / "maps.csv").document == body


def test_people_see_a_table(attribute):
    words = " ".join(attribute("-k", "5").stdout.split())
    for part in ("top-5 intersection", "Kendall tau", "Spearman rho", "centre shift", "of 30 examples"):
        assert part in words


def test_every_option_reaches_the_attack(attribute):
    more = ("--attribution", "integrated", "--points", "3", "--loss", "targeted", "--region", "0,0,4,4", "-k", "5")
    body = attribute(*more, "--alpha", "1/255", "--beta", "20", "--restarts", "2", "--seed", "7", "--json").document
    assert body["attack"] == {
        "loss": "targeted", "attribution": "integrated", "k": 5, "steps": 4, "restarts": 2, "alpha": 1 / 255,
        "points": 3, "beta": 20, "region": [0, 0, 4, 4],
    }  # fmt: skip
    assert body["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--threat", "Linf:0"), 2, "nothing to attack at eps 0"),
        (("--threat", "Linf:8"), 2, "larger than the box"),
        (("-k", "65"), 2, "more than the 64 pixels"),
        (("--loss", "top"), 2, "choose topk"),
        (("--loss", "targeted"), 2, "needs a region"),
        (("--loss", "targeted", "--region", "1,2,3"), 2, "wants four whole numbers"),
        (("--loss", "targeted", "--region", "0,0,9,9"), 2, "is none of an image of 8x8 pixels"),
        (("--attribution", "lime"), 2, "choose gradient, integrated"),
        (("--alpha", "small"), 2, "is not a number"),
        (("--randomized",), 2, "draws as it predicts"),
        (("--wrap", "bit_depth"), 2, "declares 'surrogate'"),
    ],
)
def test_bad_input_is_one_paragraph(attribute, arguments, code, words):
    result = attribute(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_threat_and_nowhere_to_write(run, checkpoint, attribute, tmp_path):
    missing = run("attribute", checkpoint, *OPTIONS)
    assert missing.exit_code == 2
    assert "--threat is missing" in missing.stderr
    (tmp_path / "file").write_text("")
    refused = attribute("--out", tmp_path / "file" / "maps.csv")
    assert refused.exit_code == 4
    assert "cannot write" in refused.stderr
