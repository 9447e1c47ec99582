"""Someone edits what is published: which check finds it, with hashes as they were and with all of them made anew."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest

from robustsuite.leaderboard.check import check_folder
from robustsuite.results.packed import pack, unpack
from robustsuite.results.published import Attestation
from robustsuite.results.schema import Record
from robustsuite.results.statements import write_attestation
from robustsuite.results.store import array_bytes, json_bytes, parse_arrays

LIMIT = 1 << 24


@pytest.fixture
def victim(published):
    return sorted((published / "runs" / "toy").glob("*.json"))[0]


def failures(root, against=None):
    return {f.name.removeprefix("runs/toy/"): f.detail for f in check_folder(root, against) if not f.ok}


def read(path):
    return Record.model_validate_json(path.read_text())


def edit_arrays(path, change):
    """Change the arrays of a packed file."""
    arrays, meta = parse_arrays(unpack(path.read_bytes(), LIMIT, "it"), "it")
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays)
    path.write_bytes(pack(array_bytes(arrays, meta, "it")))


def edit_json(path, change):
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def reseal(path):
    """What a forger would do: hashes, sizes and the run key that fit the new content, and the file's name with it."""
    record = read(path)
    packed = {"verdicts": path.with_suffix(".verdicts.xz"), "gallery": path.with_suffix(".gallery.xz")}
    files = []
    for ref in record.files:
        if ref.role in packed:
            body = unpack(packed[ref.role].read_bytes(), LIMIT, "it")
            ref = ref.model_copy(update={"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)})
        files.append(ref)
    record = record.model_copy(update={"files": tuple(files), "run_key": record.request.run_key}).sealed()
    path.write_bytes(json_bytes(record, "it"))
    moved = path.with_name(f"{record.run_key}.json")
    for old, new in ((path, moved), *((p, moved.with_suffix(f".{r}.xz")) for r, p in packed.items())):
        old.rename(new)
    return moved


def rebuild(root):
    from robustsuite.leaderboard.board import defined_board
    from robustsuite.leaderboard.export import write
    from robustsuite.leaderboard.published import read_published

    write([defined_board(b) for b in read_published(root).boards], root / "tables")


@pytest.fixture
def attested(published, victim):
    """Somebody has verified the victim."""
    said = Attestation(
        run_key=victim.stem,
        content_sha256=read(victim).content_sha256,
        level=1,
        by="somebody",
        utc="2026-02-01T00:00:00Z",
        suite_version="0.1.0",
    )
    write_attestation(published, "toy", said)
    rebuild(published)
    return published


@pytest.fixture
def committed(attested):
    """The folder as the first commit of a repository."""
    git = ("git", "-C", attested, "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-qm", "published")):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    return attested


def test_an_honest_folder_holds(committed):
    assert failures(committed) == {}
    assert failures(committed, "HEAD") == {}


def break_one_less(arrays):
    row = int(np.flatnonzero(arrays["fgsm/outcome"] == 2)[0])
    arrays["fgsm/outcome"][row] = 1


def test_one_verdict(attested, victim):
    edit_arrays(victim.with_suffix(".verdicts.xz"), break_one_less)
    found = failures(attested)
    assert "its sha256 is not the record's" in found[f"{victim.name}: verdicts.safetensors"]
    reseal(victim)
    found = failures(attested)
    assert "record 0.1750, ledger" in found[f"{victim.name}: robust_accuracy"]
    assert "fgsm: n_broken is 32, the record says 33" in found[f"{victim.name}: contributions"]


def test_one_number(attested, victim):
    from robustsuite.results.statistics import metric

    better = metric("robust_accuracy", 39, 40).model_dump(mode="json")

    def raise_it(body):
        body["metrics"] = [better if m["name"] == "robust_accuracy" else m for m in body["metrics"]]

    edit_json(victim, raise_it)
    assert "was edited after it was sealed" in failures(attested)[f"{victim.name}: record"]
    reseal(victim)
    assert "record 0.9750, ledger" in failures(attested)[f"{victim.name}: robust_accuracy"]


def test_the_number_of_passes(attested, victim):
    passes = read(victim).stages[1].forward

    def fewer(body):
        body["stages"][1]["forward"] -= 1

    edit_json(victim, fewer)
    reseal(victim)
    assert (
        f"fgsm: forward is {passes}, the record says {passes - 1}"
        in failures(attested)[f"{victim.name}: contributions"]
    )


@pytest.mark.parametrize("name", ["x", "x_adv"])
def test_one_image(attested, victim, name):
    """Another pixel is another distance; whether an image at the right distance fools the model, `verify` says."""

    def dim(arrays):
        arrays[name][0] = arrays[name][0] * 0.9

    edit_arrays(victim.with_suffix(".gallery.xz"), dim)
    assert "its sha256 is not the record's" in failures(attested)[f"{victim.name}: gallery.safetensors"]
    reseal(victim)
    assert "pictures [0] are not what the verdicts say" in failures(attested)[f"{victim.name}: gallery"]


@pytest.mark.parametrize("name", ["position", "label", "before", "after", "distance"])
def test_one_word_under_an_image(attested, victim, name):
    def move(arrays):
        arrays[name][0] += 1

    edit_arrays(victim.with_suffix(".gallery.xz"), move)
    reseal(victim)
    assert "not what the verdicts say" in failures(attested)[f"{victim.name}: gallery"]


def test_one_weight(attested, victim):
    """The hash of the weights is in the run key, and the verdicts name the run that they are of."""

    def other_weights(body):
        body["request"]["model"]["weights_sha256"] = "f" * 64

    edit_json(victim, other_weights)
    assert "was edited after it was sealed" in failures(attested)[f"{victim.name}: record"]
    moved = reseal(victim)
    assert moved.name != victim.name
    found = failures(attested)
    assert f"they are those of run {victim.stem}" in found[f"{moved.name}: verdicts"]
    assert "it attests no run of this board" in found[f"attestations/toy/{victim.stem}-1.json"]


def test_one_date(committed, victim):
    """`content_sha256` covers dates. Nothing in the folder shows a date that was changed together with all hashes; an
    attestation of the record as it was, and git, do."""

    def earlier(body):
        body["host"]["created_utc"] = "2020-01-01T00:00:00Z"

    edit_json(victim, earlier)
    assert "was edited after it was sealed: content_sha256" in failures(committed)[f"{victim.name}: record"]
    assert reseal(victim) == victim
    found = failures(committed)
    assert "content_sha256 differs" in found.pop(f"attestations/toy/{victim.stem}-1.json")
    assert "content_sha256 differs" not in str(found)
    (committed / "attestations" / "toy" / f"{victim.stem}-1.json").unlink()
    rebuild(committed)
    assert failures(committed) == {}
    found = failures(committed, "HEAD")
    assert "was changed" in found[f"add-only since HEAD: runs/toy/{victim.name}"]
    assert "was deleted" in found[f"add-only since HEAD: attestations/toy/{victim.stem}-1.json"]


def test_everything_forged_alike_is_what_git_and_attestations_are_for(committed, victim):
    """Verdicts, numbers and hashes that fit each other: level 0 cannot tell, `verify` with the model can."""
    edit_arrays(victim.with_suffix(".verdicts.xz"), break_one_less)

    def along(body):
        from robustsuite.results.statistics import metric

        counted = metric("robust_accuracy", 8, 40).model_dump(mode="json")
        body["metrics"] = [counted if m["name"] == "robust_accuracy" else m for m in body["metrics"]]
        body["stages"][1]["n_broken"] -= 1

    edit_json(victim, along)
    reseal(victim)
    assert not [name for name in failures(committed) if name.startswith(f"{victim.name}: ") and "gallery" not in name]
    assert "content_sha256 differs" in failures(committed)[f"attestations/toy/{victim.stem}-1.json"]
    assert "was changed" in failures(committed, "HEAD")[f"add-only since HEAD: runs/toy/{victim.name}"]


def test_a_deleted_run(committed, victim):
    victim.unlink()
    found = failures(committed, "HEAD")
    assert "was deleted" in found[f"add-only since HEAD: runs/toy/{victim.name}"]
    assert "there is no record beside it" in found[f"folder: runs/toy/{victim.stem}.verdicts.xz"]
    assert "not what the records give" in failures(committed)["tables"]


def test_verdicts_of_another_run(attested, victim):
    other = sorted(victim.parent.glob("*.json"))[1]
    shutil.copy(other.with_suffix(".verdicts.xz"), victim.with_suffix(".verdicts.xz"))
    reseal(victim)
    assert f"they are those of run {other.stem}" in failures(attested)[f"{victim.name}: verdicts"]


def test_one_cell_of_a_table(attested):
    path = attested / "tables" / "toy.md"
    path.write_text(path.read_text().replace("17.5", "97.5"))
    assert "toy.md; run `robustsuite board build` again" in failures(attested)["tables"]
