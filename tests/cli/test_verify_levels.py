"""`verify --level`, attestations, and numbers that a stranger lowers."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.cli.loading import subject_of
from robustsuite.data.reference import load_data
from robustsuite.evaluation.gallery import write_gallery
from robustsuite.models.reference import ModelSpec
from robustsuite.results.ledger import read_ledger
from robustsuite.results.published import Attestation, Correction
from robustsuite.results.schema import Record
from robustsuite.results.statements import corrections, statement_sha256
from robustsuite.results.store import sha256_file

FORGING = runpy.run_path(str(Path(__file__).parents[1] / "evaluation" / "forging.py"))
unbreak, publish, edit_json, change_arrays = (FORGING[n] for n in ("unbreak", "publish", "edit_json", "change_arrays"))
UTC = "2030-01-31T12:00:00Z"


@pytest.fixture
def sealed(smoke) -> Path:
    return Path(smoke("--json").document["run_dir"])


@pytest.fixture
def published(sealed, tmp_path) -> Path:
    gallery = write_gallery(sealed, load_data("digits", subset="first:40"))
    return publish(sealed, tmp_path / "boards", "digits-linf", gallery)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_an_honest_run_holds_at_every_level(run, sealed, published, level):
    for path in (sealed, sealed / "record.json", published):
        result = run("verify", path, "--level", level, "--json")
        assert result.exit_code == 0, result.output
        body = result.document
        assert (body["ok"], body["level"], body["run_key"]) == (True, level, sealed.name)
        names = {f["name"] for f in body["findings"]}
        assert {"verdicts.safetensors", "robust_accuracy"} <= names
        assert ("clean predictions" in names) is (level > 0)
        assert ("subset again" in names) is (level == 2)
        assert ("everything again" in names) is (level == 3)
        assert ("gallery" in names) is (level > 0 and path is published)


def test_the_default_is_level_1(run, sealed):
    assert run("verify", sealed, "--json").document["level"] == 1


def test_level_0_needs_no_model_no_data_and_no_torch(published, sealed, checkpoint):
    code = (
        "import sys\n"
        "from robustsuite.cli.main import app\n"
        "try:\n"
        "    app(['verify', sys.argv[1], '--level', '0', '--attest', 'said', '--by', 'me', '--board', sys.argv[2]],\n"
        "        prog_name='robustsuite')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    for path, board in ((published, "digits-linf"), (sealed, "b")):
        command = [sys.executable, "-c", code, str(path), board]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"Run {sealed.name} holds." in done.stdout


def test_which_level_finds_what(run, sealed, published, tmp_path):
    """One change for each level, everything that lower levels look at made to fit."""

    def lowest(path) -> int | None:
        codes = [run("verify", path, "--level", level).exit_code for level in (0, 1, 2, 3)]
        assert set(codes) <= {0, 6}
        assert codes == sorted(codes)
        return codes.index(6) if 6 in codes else None

    assert lowest(sealed) is None
    packed = published.with_suffix(".verdicts.xz")
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-20])
    assert lowest(published) == 0
    packed.unlink()
    assert lowest(published) == 0
    packed.write_bytes(whole)
    published.rename(published.with_name("0" * 16 + ".json"))
    packed.rename(packed.with_name("0" * 16 + ".verdicts.xz"))
    assert lowest(published.with_name("0" * 16 + ".json")) == 0

    stage = next(s for s in read_ledger(sealed).stages if (read_ledger(sealed).outcome(s) == 2).any() and s != "clean")
    victims = np.flatnonzero(read_ledger(sealed).outcome(stage) == 2)
    file = next((sealed / "adversarials" / stage).glob("*.safetensors"))
    clean = load_data("digits", subset="first:40").x.numpy()
    kept = file.read_bytes()
    change_arrays(file, lambda arrays: arrays["x_adv"].__setitem__(slice(None), clean[arrays["position"]]))
    FORGING["reseal"](sealed)
    assert lowest(sealed) == 1
    file.write_bytes(kept)
    FORGING["reseal"](sealed)
    assert lowest(sealed) is None
    unbreak(sealed, stage, victims.tolist())
    assert lowest(sealed) == 2


def test_an_attestation_is_written_when_everything_held(run, published, tmp_path):
    root = published.parents[2]
    result = run("verify", published, "--level", "2", "--attest", root, "--by", "A. Nother", "--utc", UTC, "--json")
    assert result.exit_code == 0, result.output
    path = root / "attestations" / "digits-linf" / f"{published.stem}-2.json"
    assert result.document["attestation"] == str(path)
    said = Attestation.model_validate_json(path.read_text())
    record = json.loads(published.read_text())
    assert (said.run_key, said.content_sha256) == (record["run_key"], record["content_sha256"])
    assert (said.level, said.by, said.utc) == (2, "A. Nother", UTC)
    assert any("40 of 40 outcomes agree" in line for line in said.findings)
    again = run("verify", published, "--level", "2", "--attest", root, "--by", "B")
    assert again.exit_code == 2
    assert "never edited" in again.stderr
    published.with_suffix(".gallery.xz").write_bytes(b"")
    assert run("verify", published, "--attest", root, "--by", "B").exit_code == 3
    published.with_suffix(".verdicts.xz").unlink()
    assert run("verify", published, "--level", "0", "--attest", root, "--by", "B").exit_code == 6
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--attest", "x"), "need --by NAME"),
        (("--by", "me"), "need --by NAME"),
        (("--attest", "x", "--by", "me"), "say with --board B"),
        (("--attest", "x", "--by", "me", "--board", "../b"), "plain name"),
        (("--attest", "x", "--by", "me", "--board", "b", "--utc", "now"), "must be UTC"),
        (("--correct", "x", "--by", "me", "--board", "b"), "--correct goes with --adv"),
        (("--level", "4"), "less than or equal to 3"),
    ],
)
def test_options_that_do_not_fit(run, sealed, options, words):
    result = run("verify", sealed, *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_the_board_of_a_published_run_is_not_another(run, published):
    result = run("verify", published, "--attest", "x", "--by", "me", "--board", "other")
    assert result.exit_code == 2
    assert "is published on the board digits-linf" in result.stderr


# --adv


@pytest.fixture
def strong(checkpoint) -> torch.Tensor:
    """What 40 steps of sign ascent make of the 40 images."""
    data = load_data("digits", subset="first:40")
    model = subject_of(ModelSpec(reference=str(checkpoint)), data, "cpu", {}).classifier
    x_adv = data.x.clone()
    for _ in range(40):
        gradient = model.gradient(x_adv, lambda z: torch.nn.functional.cross_entropy(z, data.y, reduction="none"))[1]
        x_adv = (x_adv + 0.01 * gradient.sign()).minimum(data.x + 0.1).maximum(data.x - 0.1).clamp(0, 1)
    return x_adv


@pytest.fixture
def feeble(evaluate, tmp_path) -> Path:
    """A run that has found next to nothing, published."""
    result = evaluate("--attack", "pgd", "-A", "pgd.steps=1", "-A", "pgd.alpha=0.001", "--json")
    return publish(Path(result.document["run_dir"]), tmp_path / "boards", "digits-linf")


def test_a_stranger_lowers_a_number_and_says_so_in_a_chain(run, feeble, strong, tmp_path):
    root, board = feeble.parents[2], "digits-linf"
    torch.save({"adv_complete": strong}, "adv.pt")
    result = run("verify", feeble, "--adv", "adv.pt")
    assert result.exit_code == 0, result.output
    assert "images are adversarial examples inside Linf:0.1." in result.stdout
    assert "Best known robust accuracy of this run: " in result.stdout
    assert "Newly broken: " in result.stdout
    assert not (root / "corrections").exists()

    half = strong.clone()
    half[20:] = load_data("digits", subset="first:40").x[20:]
    np.savez("half.npz", x_adv=half.numpy())
    options = ("--correct", root, "--by", "A. Stranger", "--utc", UTC, "--json")
    bodies = [run("verify", feeble, "--adv", file, *options).document for file in ("half.npz", "adv.pt", "adv.pt")]
    assert bodies[0]["after"] == bodies[1]["before"]
    assert bodies[1]["after"] == bodies[2]["before"] == bodies[2]["after"]
    assert bodies[1]["after"]["value"] < bodies[0]["after"]["value"] < bodies[0]["before"]["value"]
    assert max(bodies[0]["newly_broken"]) < 20 <= min(bodies[1]["newly_broken"])
    assert bodies[2]["correction"] is None
    said: list[Correction] = corrections(root, board, feeble.stem)
    assert [c.examples for c in said] == [tuple(b["newly_broken"]) for b in bodies[:2]]
    assert [c.action for c in said] == ["lower", "lower"]
    assert said[1].previous_sha256 == statement_sha256(said[0])
    assert said[1].evidence is not None
    assert (said[1].evidence.path, said[1].evidence.sha256) == ("adv.pt", sha256_file("adv.pt"))
    assert (said[0].by, said[0].utc) == ("A. Stranger", UTC)
    shown = run("verify", feeble, "--adv", "adv.pt").stdout
    assert "Nothing is newly broken" in shown


def test_images_further_out_say_by_how_much_and_change_nothing(run, feeble, strong):
    data = load_data("digits", subset="first:40")
    torch.save(data.x + (strong - data.x) * 1.01, "adv.pt")
    result = run("verify", feeble, "--adv", "adv.pt", "--json")
    assert result.exit_code == 0, result.output
    report = result.document["sets"][0]
    assert report["outside_ball"] == 40
    assert report["furthest"] == pytest.approx(0.101, rel=1e-4)
    assert result.document["newly_broken"] == []
    torch.save(strong * 255, "adv.pt")
    result = run("verify", feeble, "--adv", "adv.pt")
    assert result.exit_code == 3
    assert "divide by 255" in result.stderr


def test_a_refuted_certificate_ends_in_6(run, evaluate, strong, unsound, tmp_path):
    options = ("--certifier", "believes_anything", "--plugin", unsound, "--json")
    run_dir = evaluate(*options).document["run_dir"]
    torch.save(strong, "adv.pt")
    result = run("verify", run_dir, "--adv", "adv.pt", "--plugin", unsound)
    assert result.exit_code == 6
    assert "CONTRADICTION: position " in result.stdout
    assert "is certified by 'believes_anything'" in result.stderr
    document = run("verify", run_dir, "--adv", "adv.pt", "--plugin", unsound, "--json").document
    assert document["ok"] is False
    assert len(document["contradicted"]) == len(document["newly_broken"]) > 5


def test_other_weights_lower_nothing(run, feeble, strong, checkpoint, tmp_path):
    from safetensors.torch import load_file

    from robustsuite.models.sidecar import read_sidecar, save_checkpoint, sidecar_path

    state = load_file(checkpoint)
    name = next(iter(state))
    other = save_checkpoint(tmp_path / "other", state | {name: -state[name]}, read_sidecar(sidecar_path(checkpoint)))
    torch.save(strong, "adv.pt")
    result = run("verify", feeble, "--adv", "adv.pt", "--model", other)
    assert result.exit_code == 6
    assert "these are not the run's" in result.stderr


def test_a_randomised_model_runs_again_and_is_judged_by_its_votes(run, checkpoint, strong, tmp_path):
    base = ("eval", checkpoint, "--data", "digits", "--subset", "first:24", "--threat", "Linf:0.1", "--threads", "1")
    wrap = ("--wrap", "rand_feature", "-W", "sigma=0.1", "--eot", "2")
    result = run(*base, *wrap, "--attack", "pgd", "-A", "pgd.steps=1", "-A", "pgd.alpha=0.001", "--json")
    assert result.exit_code == 0, result.output
    run_dir = result.document["run_dir"]
    for level in (2, 3):
        again = run("verify", run_dir, "--level", level)
        assert again.exit_code == 0, again.output
    torch.save(strong[:24], "adv.pt")
    document = run("verify", run_dir, "--adv", "adv.pt", "--json").document
    assert document["newly_broken"]
    assert document["sets"][0]["fooled"] <= 24


def test_a_run_is_attested_as_it_was_published(run, sealed, published):
    root = published.parents[2]
    said = ("--level", "0", "--attest", root, "--board", "digits-linf", "--by", "me")
    record = Record.model_validate_json(published.read_text())
    stripped = record.model_copy(update={"host": record.host.model_copy(update={"command": ""})}).sealed()
    published.write_text(stripped.model_dump_json())
    assert run("verify", sealed, *said).exit_code == 0
    path = root / "attestations" / "digits-linf" / f"{sealed.name}-0.json"
    assert Attestation.model_validate_json(path.read_text()).content_sha256 == stripped.content_sha256
    path.unlink()
    published.write_text(stripped.model_copy(update={"flags": ()}).sealed().model_dump_json())
    assert run("verify", sealed, *said).exit_code == 6
    published.unlink()
    (root / "boards").mkdir()
    missing = run("verify", sealed, *said)
    assert missing.exit_code == 2
    assert "publish the run first" in missing.stderr
    assert not path.exists()
