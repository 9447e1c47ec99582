"""`eval` with what a protocol can be told: a sampled tail, contributions, random models; and the same in workers."""

import pytest

TAIL = """
name: short
version: 1
contributions: true
stages:
  - {attack: fgsm}
  - {attack: apgd-ce, params: {steps: 5}}
  - {attack: square, tail: true, params: {n_queries: 30}}
"""


@pytest.fixture
def protocol(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(TAIL)
    return ["--threat", "Linf:0.03", "--protocol", str(path)]


def test_contributions_are_shown(evaluate, protocol):
    body = evaluate(*protocol, "--json").document
    clean, fgsm, apgd, square = body["stages"]
    assert clean["n_exclusive"] is None
    assert fgsm["n_exclusive"] <= fgsm["n_broken"]
    assert apgd["n_overlapped"] == fgsm["n_broken"]
    assert square["n_exclusive"] == square["n_broken"]
    without = evaluate(*protocol, "--no-contributions", "--json").document
    assert [s["n_exclusive"] for s in without["stages"]] == [None] * 4
    assert without["metrics"] == body["metrics"]
    assert "alone" in evaluate(*protocol).stdout


def test_a_sampled_tail_says_what_it_saw(evaluate, protocol):
    result = evaluate(*protocol, "--tail-sample", "5", "--json")
    tail = result.document["tail"]
    assert result.document["protocol"]["name"] == "short~5"
    assert tail["sampled"] == (tail["survivors"] if tail["rest_run"] else 5)
    assert tail["lower"] <= tail["estimate"] <= tail["upper"]
    words = " ".join(evaluate(*protocol, "--tail-sample", "5").stdout.split())
    assert f"the tail ran on {tail['sampled']} of {tail['survivors']} survivors and broke {tail['broken']}" in words
    refused = evaluate("--threat", "Linf:0.03", "--tier", "smoke", "--tail-sample", "5")
    assert refused.exit_code == 2
    assert "marks no stage as its tail" in refused.stderr


def test_workers_agree_about_a_sampled_tail(evaluate, protocol):
    options = [*protocol, "--tail-sample", "5", "--threads", "1", "--json"]
    alone = evaluate(*options, "-o", "alone").document
    shared = evaluate(*options, "-o", "shared", "--workers", "2").document
    assert {k: alone[k] for k in ("run_key", "metrics", "stages", "tail")} == {
        k: shared[k] for k in ("run_key", "metrics", "stages", "tail")
    }
