"""Certifiers on the command line: alone, around the attacks, wrong, and asked for what they cannot do."""

import json
from pathlib import Path

import numpy as np
import pytest

from robustsuite.registry import CERTIFIERS
from robustsuite.results.ledger import read_ledger
from robustsuite.results.statistics import interval

BAD = """
import torch
from dataclasses import dataclass
from robustsuite.certification import Certificates, Certifier, register_certifier

@register_certifier("bad", norms=("Linf",), kind="deterministic")
@dataclass(frozen=True)
class Bad(Certifier):
    '''Returns {radius}.'''

    def certify(self, model, x, y, threat, noise):
        one = torch.ones(y.shape, dtype=torch.float64)
        return Certificates({radius}, y.clone(), "deterministic")
"""
TANH = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Flatten()
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return self.head(torch.erfinv(self.stem(x) / 2))

def odd(num_classes, input_shape):
    torch.manual_seed(0)
    return Odd(num_classes)
"""
SMOOTHING = ("--threat", "L2:0.1", "--certifier", "smoothing", "-A", "sigma=0.2", "-A", "n=300", "-A", "n0=50")
SMOOTHING = (*SMOOTHING, "-A", "mode=fixed")
RADII = [f"{i / 4:g}" for i in range(17)]


@pytest.fixture
def certify(run, checkpoint):
    base = ("certify", checkpoint, "--data", "digits", "--subset", "first:40", "--threads", "1")
    return lambda *more: run(*base, *more)


@pytest.fixture
def smoothed(certify):
    return lambda *more: certify(*SMOOTHING, *more)


@pytest.fixture
def bad(tmp_path: Path):
    """A plugin file whose certifier `bad` returns these radii."""

    def write(radius: str, more: str = "") -> Path:
        path = tmp_path / "bad.py"
        path.write_text(BAD.format(radius=radius).replace("\n    def", f"\n    {more}\n    def"))
        return path

    yield write
    CERTIFIERS.entries.pop("bad", None)


# What the record and the reports say.


def test_radii_are_in_the_ledger_and_the_curve_follows_from_them(smoothed):
    body = smoothed("--json").document
    radii, record = body["radii"], json.loads(Path(body["record"]).read_text())
    ledger = read_ledger(Path(body["run_dir"]))
    proved = np.where(
        ledger.arrays["smoothing/predicted"] == ledger.arrays["label"], ledger.arrays["smoothing/radius"], 0
    )
    assert [p["radius"] for p in radii["grid"]] == RADII
    for p in radii["grid"]:
        k = int(((proved >= float(p["radius"])) & (proved > 0)).sum())
        assert (p["value"], tuple(p["ci95"]), p["n"]) == (k / 40, interval(k, 40), 40)
    assert radii["grid"][0]["value"] > radii["grid"][1]["value"] > 0
    assert radii["largest"] == proved.max() > 0.1
    assert radii["average_certified_radius"]["value"] == pytest.approx(proved.mean())
    assert "not for ranking" in radii["average_certified_radius"]["note"]
    assert radii["guarantees"] == {"smoothing": "confidence 0.999"}
    assert radii["passes_per_example"] == {"smoothing": 350}
    none = (ledger.arrays["clean/predicted"] < 0) | (
        (ledger.outcome("smoothing") > 0) & (ledger.arrays["smoothing/predicted"] < 0)
    )
    assert radii["abstained"]["value"] == none.mean()
    # Method, guarantee and time: where the record keeps them.
    (stage,) = record["request"]["protocol"]["stages"]
    assert (stage["plugin"], stage["params"]["sigma"]) == ("smoothing", 0.2)
    assert record["stages"][1]["guarantee"] == "confidence 0.999"
    assert record["host"]["stage_seconds"]["smoothing"] > 0


def test_people_see_the_curve_to_its_end(smoothed):
    words = " ".join(smoothed().stdout.split())
    assert "certified accuracy by radius (L2, confidence 0.999)" in words
    assert "0.25" in words
    assert "3.75" not in words
    assert "not for ranking" in words
    assert "350 passes an example by smoothing" in words
    assert "abstained on" in words
    assert "certified accuracy@" not in words


def test_any_radius_and_the_full_curve_on_demand(run, smoothed):
    body = smoothed("--json").document
    asked = run("show", body["run_dir"], "--radii", "0.1,1/5", "--json").document["radii"]["at"]
    assert [p["radius"] for p in asked] == ["0.1", "1/5"]
    assert asked[0]["value"] == body["metrics"][1]["value"]
    full = run("show", body["run_key"], "--radii", "all", "--json").document["radii"]
    assert [e["example"] for e in full["examples"]] == list(range(40))
    proved = sorted({e["radius"] for e in full["examples"] if e["radius"] > 0})
    assert [p["radius"] for p in full["curve"]] == proved
    assert full["curve"][0]["value"] == full["grid"][0]["value"]
    assert "1/5" in run("show", body["run_dir"], "--radii", "0.1,1/5").stdout
    wrong = run("show", body["run_dir"], "--radii", "0.1;0.2")
    assert wrong.exit_code == 2
    assert "--radii wants numbers" in wrong.stderr


def test_a_run_without_certificates_has_no_radii(run, smoke):
    body = smoke("--json").document
    assert body["radii"] is None
    refused = run("show", body["run_dir"], "--radii", "0.1")
    assert refused.exit_code == 2
    assert "no certifier ran" in refused.stderr


def test_certificates_at_eps_alone_show_no_curve(certify):
    result = certify("--threat", "Linf:0.01", "--certifier", "ibp")
    assert "by radius" not in result.stdout
    body = certify("--threat", "Linf:0.01", "--certifier", "ibp", "--json").document
    assert body["radii"]["grid"] == []
    assert [m["name"] for m in body["metrics"]] == ["clean_accuracy", "certified_accuracy"]


# Several certifiers, and certifiers around attacks.


def test_several_run_cheapest_first_on_what_is_unproved(certify):
    options = ("--threat", "Linf:0.01", "-A", "ibp.search=true", "-A", "ibp-2.search=false")
    body = certify(*options, "--certifier", "ibp,ibp", "--json").document
    clean, cheap, dear = body["stages"]
    assert (cheap["name"], dear["name"]) == ("ibp-2", "ibp")
    assert 0 < cheap["n_certified"] < cheap["n_in"] == 40 - clean["n_broken"]
    assert dear["n_in"] == cheap["n_in"] - cheap["n_certified"]
    assert certify("--threat", "Linf:0.01", "--certifier", ",").exit_code == 2


def test_a_dry_run_tells_passes_and_time(smoothed):
    plan = smoothed("--dry-run", "--json").document
    stage = plan["stages"][1]
    assert (stage["name"], stage["n"], stage["forward"], stage["backward"]) == ("smoothing", 40, 40 * 350, 0)
    assert stage["seconds"] > 0
    assert plan["seconds"] == pytest.approx(sum(s["seconds"] for s in plan["stages"]), abs=2e-3)
    assert "14,000" in smoothed("--dry-run").stdout


def test_certifiers_ahead_of_and_behind_a_tiers_attacks(evaluate):
    plain = evaluate("--threat", "Linf:0.01", "--tier", "smoke", "--json").document
    first = evaluate("--threat", "Linf:0.01", "--tier", "smoke", "--certify-first", "ibp", "--json").document
    last = evaluate("--threat", "Linf:0.01", "--tier", "smoke", "--certify-last", "ibp", "--json").document
    assert first["protocol"]["name"] == last["protocol"]["name"] == "smoke+ibp"
    assert [s["name"] for s in first["stages"]] == ["clean", "ibp", "fgsm", "pgd"]
    assert [s["name"] for s in last["stages"]] == ["clean", "fgsm", "pgd", "ibp"]
    _, ibp, fgsm, _ = first["stages"]
    assert fgsm["n_in"] == ibp["n_in"] - ibp["n_certified"]  # what is proved is not attacked
    assert fgsm["n_audited"] == min(20, ibp["n_certified"])  # but for a sample
    _, fgsm, pgd, ibp = last["stages"]
    assert fgsm["n_audited"] == pgd["n_audited"] == 0  # what is certified last has survived both
    assert ibp["n_in"] == pgd["n_in"] - pgd["n_broken"]
    assert first["metrics"] == last["metrics"]
    assert first["metrics"][:2] == plain["metrics"]
    assert len({b["run_key"] for b in (plain, first, last)}) == 3


def test_a_certifier_of_the_tier_moves_and_flagged_attacks_stay_last(evaluate):
    base = ("--threat", "Linf:0.01", "--tier", "standard", "--dry-run", "--json")
    plan = evaluate(*base, "--certify-last", "ibp").document
    names = [s["name"] for s in plan["stages"]]
    assert names[1] == "apgd-ce"
    assert names[-1] == "ibp"
    assert plan["flagged"] == ["apgd-margin-more", "square-more"]
    both = evaluate(*base, "--certify-first", "ibp", "--certify-last", "ibp", "-A", "ibp-2.search=true").document
    assert [s["name"] for s in both["stages"]][1] == "ibp"
    assert both["stages"][-1]["params"] == {"search": True, "diagnose": False}
    assert both["protocol"]["name"] == "standard+ibp+ibp+"


def test_contributions_are_counted_around_certifiers(evaluate, tmp_path):
    (tmp_path / "two.yaml").write_text(
        "name: two\nversion: 1\ncontributions: true\nstages:\n  - attack: fgsm\n"
        "  - {attack: apgd-ce, params: {steps: 5}}\n"
    )
    base = ("--threat", "Linf:0.02", "--protocol", "two.yaml", "--json")
    plain, first = evaluate(*base).document, evaluate(*base, "--certify-first", "ibp").document
    for name in ("fgsm", "apgd-ce"):
        a, b = (next(s for s in d["stages"] if s["name"] == name) for d in (plain, first))
        assert (a["n_broken"], a["n_exclusive"]) == (b["n_broken"], b["n_exclusive"])
    assert plain["metrics"][1]["value"] < plain["metrics"][0]["value"]


def test_certifier_beside_a_tier_says_what_to_give_instead(evaluate):
    result = evaluate("--tier", "smoke", "--certifier", "ibp")
    assert result.exit_code == 2
    assert "--certify-first or --certify-last" in result.stderr


# Contradictions.


@pytest.mark.parametrize("where", ["--certify-first", "--certify-last"])
def test_an_unsound_certifier_stops_the_run_and_leaves_the_evidence(evaluate, unsound, tmp_path, where):
    arguments = ("--tier", "smoke", where, "believes_anything", "--plugin", unsound)
    result = evaluate(*arguments)
    assert result.exit_code == 6
    prefixes = ("", "audit-") if where == "--certify-first" else ("audit-", "")
    words = " ".join(result.stderr.split())
    assert f"stage '{prefixes[0]}believes_anything' certified example " in words
    assert f"but stage '{prefixes[1]}" in words
    assert "the evidence is kept in run" in words
    document = evaluate(*arguments, "--json").document
    assert document["error"]["type"] == "ContradictionError"
    first, run_dir = document["contradictions"][0], Path(document["run_dir"])
    assert str(run_dir / "adversarials" / first["broken_by"]) in result.stdout
    (kept,) = [
        p for p in (run_dir / "adversarials" / first["broken_by"]).iterdir() if _holds(p, first["example"])
    ]  # the image that refutes the certificate
    assert kept.stat().st_size > 0
    assert "Next:" not in result.stdout


def _holds(path: Path, example: int) -> bool:
    from robustsuite.results.store import read_arrays

    return example in read_arrays(path)[0]["position"].tolist()


# What cannot be done, one paragraph each.


@pytest.mark.parametrize(
    ("radius", "words"),
    [
        ("one * float('nan')", "must be finite float64 numbers >= 0"),
        ("-one", "must be finite float64 numbers >= 0"),
        ("one[:-1]", "certificates must hold radius ["),
        ("one.float()", "must be finite float64 numbers >= 0"),
    ],
)
def test_malformed_certificates_are_no_certificates(certify, bad, radius, words):
    arguments = ("--threat", "Linf:0.1", "--certifier", "bad", "--plugin", bad(radius))
    result = certify(*arguments)
    assert result.exit_code == 5
    assert "bad: ContractError" in result.stderr
    assert words in result.stderr
    assert "PARTIAL" in result.stdout
    body = certify(*arguments, "--json").document
    assert body["metrics"][1]["value"] == 0
    assert body["stages"][1]["status"] == "error"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--threat", "Linf:2", "--certifier", "ibp"), 2, "Did you mean Linf:2/255?"),
        (("--threat", "L2:9", "--certifier", "ibp"), 2, "no two of them are further apart than 8 in L2"),
        (("--threat", "Linf:0", "--certifier", "ibp"), 2, "nothing to prove at eps 0"),
        (("--threat", "Linf:-0.1", "--certifier", "ibp"), 2, "must not be negative"),
        (("--threat", "L2:0.1", "--certifier", "bad"), 2, "does not know L2; it knows Linf. Give another --threat"),
        (("--threat", "L2:0.1", "--certifier", "smoothing"), 2, "needs a value for sigma"),
        (("--threat", "L2:0.1", "--certifier", "smoothing", "-A", "sigmas=1"), 2, "Known: smoothing.sigma"),
        (("--threat", "L2:0.1", "--certifier", "smoothing", "-A", "sigma=-1"), 2, "needs sigma > 0"),
        (("--threat", "L2:0.1", "--certifier", "smoothing", "-A", "sigma=big"), 2, "wants a number for 'sigma'"),
        (("--threat", "Linf:0.1", "--certifier", "ipb"), 3, "Did you mean 'ibp'"),
    ],
)
def test_bad_input_is_one_paragraph(certify, bad, tmp_path, arguments, code, words):
    arguments = (*arguments, "--plugin", bad("one"))
    result = certify(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    error = certify(*arguments, "--json").document["error"]
    assert error["exit_code"] == code


def test_an_operator_without_bounds_is_named_with_its_place(run, tmp_path):
    (tmp_path / "odd.py").write_text(TANH)
    base = ("py:odd.py:odd", "--data", "digits", "--subset", "first:20", "--threads", "1", "--threat", "Linf:0.1")
    result = run("certify", *base, "--certifier", "ibp")
    assert result.exit_code == 2
    assert "certifier 'ibp' cannot be used on this model" in result.stderr
    assert "erfinv" in result.stderr
    skipped = run("eval", *base, "--tier", "quick", "--dry-run", "--json").document["skipped"]
    assert "erfinv" in skipped["ibp"]  # where the tier offers it, the record says why not


# Proving again.


def test_verify_proves_a_sample_of_the_certificates_again(run, smoothed):
    body = smoothed("--json").document
    findings = {f["name"]: f for f in run("verify", body["run_dir"], "--json").document["findings"]}
    assert findings["certified curve"]["ok"]
    assert findings["smoothing radii"]["ok"]
    assert "proved again, largest loss 0" in findings["smoothing again"]["detail"]
    none = run("verify", body["run_dir"], "--certificates", "0", "--json").document["findings"]
    assert "smoothing again" not in {f["name"] for f in none}


def test_verify_asks_for_the_plugin_of_a_certifier(run, certify, bad):
    path = bad("one * 1e-9 * (y > 4)")
    body = certify("--threat", "Linf:1e-9", "--certifier", "bad", "--plugin", path, "--json").document
    assert run("verify", body["run_dir"], "--plugin", path).exit_code == 0
    CERTIFIERS.entries.pop("bad")
    result = run("verify", body["run_dir"])
    assert result.exit_code == 6
    assert "give --plugin FILE (the run's: bad.py)" in result.stderr


def test_parameters_of_a_plugin_file_can_be_set(certify, bad):
    options = ("--threat", "Linf:0.1", "--certifier", "bad", "--plugin", bad("one", "scale: float = 1.0"))
    plan = certify(*options, "-A", "scale=2", "--dry-run", "--json").document
    assert plan["stages"][1]["params"] == {"scale": 2}


def test_certificates_of_a_run_are_shown_as_a_family(run, smoothed):
    body = smoothed("--json").document
    found = run("show", body["run_dir"], "--family", "holm:0.05", "--json").document["together"]
    assert (found["rule"], found["failure_probability"]) == ("holm", 0.05)
    assert [p["radius"] for p in found["at"]] == sorted(["0.1", *RADII], key=float)
    single = {p["radius"]: p["value"] for p in body["radii"]["grid"]}
    assert found["at"][0]["value"] > 0
    small = run("show", body["run_dir"], "--family", "holm", "--radii", "0,0.1", "--json").document["together"]
    assert [p["radius"] for p in small["at"]] == ["0", "0.1"]
    assert small["at"][0]["value"] <= single["0"]
    words = " ".join(run("show", body["run_dir"], "--family", "bonferroni").stdout.split())
    assert f"certified accuracy of {found['tested']} certificates together (bonferroni)" in words
    wrong = run("show", body["run_dir"], "--family", "holm:often")
    assert wrong.exit_code == 2
    assert "--family wants" in wrong.stderr
