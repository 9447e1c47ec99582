"""Somebody else's images: read from the files that people exchange, judged, and set against what was known."""

import lzma
import pickle
import runpy
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.certification import Certificates, register_certifier
from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError
from robustsuite.evaluation.external import evaluate_images
from robustsuite.evaluation.external_images import Images, read_images
from robustsuite.registry import CERTIFIERS
from robustsuite.results.ledger import read_ledger
from robustsuite.results.store import write_arrays

EPS = 0.05
TOYS = runpy.run_path(str(Path(__file__).with_name("test_recertify.py")))
Exact = TOYS["Exact"]


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    register_certifier("exact", norms=("Linf",), kind="deterministic")(Exact)
    yield
    CERTIFIERS.entries.pop("exact", None)


def strongest(problem, eps: float = EPS) -> torch.Tensor:
    """The best Linf attack on the linear model, in closed form."""
    weight = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0).view(1, 1, 4, 4)
    sign = torch.where(problem.data.y == 1, -1.0, 1.0).view(-1, 1, 1, 1)
    return (problem.data.x + eps * sign * weight).clamp(0, 1)


@pytest.fixture
def weak(problem, tmp_path):
    """A run that has broken only some of what can be broken."""
    return problem.run(tmp_path / "runs", ["pgd"], params={"pgd.steps": 1, "pgd.alpha": 0.005})


def judged(run, problem, *sets: Images, known=()):
    ledger = read_ledger(run.directory)
    return evaluate_images(run.record, ledger, problem.model, problem.data, sets, known)


def whole(problem, x_adv: torch.Tensor, name: str = "all") -> Images:
    return Images(name, x_adv, torch.arange(len(problem.data)))


def test_a_stronger_attack_lowers_the_number_to_the_closed_form(weak, problem):
    breakable = (problem.radius < EPS * (1 - 1e-5)).numpy()
    before = read_ledger(weak.directory).outcome("pgd") == 2
    assert 0 < before.sum() < breakable.sum()
    found = judged(weak, problem, whole(problem, strongest(problem)))
    assert found.before.value == pytest.approx(1 - before.mean())
    assert found.after.value == pytest.approx(1 - breakable.mean())
    assert found.after.ci95[0] < found.after.value < found.after.ci95[1]
    assert set(found.newly) == set(np.flatnonzero(breakable & ~before).tolist())
    assert found.contradicted == ()
    assert (found.sets[0].outside_ball, found.sets[0].outside_box, found.sets[0].images) == (0, 0, 40)
    # What a correction has broken is not new any more.
    again = judged(weak, problem, whole(problem, strongest(problem)), known=found.newly)
    assert again.newly == ()
    assert again.before == again.after == found.after


def test_nothing_outside_of_ball_or_box_counts(weak, problem):
    just = strongest(problem, EPS * 1.001)
    found = judged(weak, problem, whole(problem, just))
    assert found.sets[0].outside_ball == 40
    assert found.sets[0].furthest == pytest.approx(EPS * 1.001, rel=1e-4)
    assert found.newly == ()
    assert found.after == found.before
    over = strongest(problem)
    over[:, 0, 0, 0] = 1.004
    found = judged(weak, problem, whole(problem, over))
    assert found.sets[0].outside_box == 40
    assert found.sets[0].most == pytest.approx(1.004)
    assert found.newly == ()


def test_an_image_that_was_rounded_to_eight_bits_is_judged_as_it_is_now(weak, problem, tmp_path):
    np.save(tmp_path / "q.npy", (strongest(problem) * 255).round().byte().numpy())
    (images,) = read_images(tmp_path / "q.npy", problem.data)
    assert torch.equal(images.x_adv, (strongest(problem) * 255).round() / 255)
    found = judged(weak, problem, images)
    # The images are no multiples of 1/255, so that rounding leaves a ball whose edge they touched.
    distance = (images.x_adv - problem.data.x).abs().flatten(1).amax(1)
    assert found.sets[0].outside_ball == int((distance > EPS * (1 + 1e-6) + 1e-7).sum()) > 0
    inside = strongest(problem, EPS - 0.5 / 255)
    np.save(tmp_path / "q.npy", (inside * 255).round().byte().numpy())
    assert judged(weak, problem, *read_images(tmp_path / "q.npy", problem.data)).sets[0].outside_ball == 0


def test_several_sets_count_together(weak, problem):
    x_adv, clean = strongest(problem), problem.data.x
    first, second = x_adv.clone(), x_adv.clone()
    first[20:], second[:20] = clean[20:], clean[:20]
    found = judged(weak, problem, whole(problem, first, "a"), whole(problem, second, "b"))
    assert found.after == judged(weak, problem, whole(problem, x_adv)).after
    assert [s.name for s in found.sets] == ["a", "b"]


def test_a_refuted_certificate_is_told(problem, tmp_path, monkeypatch):
    def boast(self, model, x, y, threat, noise) -> Certificates:
        return Certificates(torch.full(y.shape, 0.06, dtype=torch.float64), y.clone(), "deterministic")

    honest = problem.run(tmp_path / "honest", ["pgd"], ["exact"])
    assert judged(honest, problem, whole(problem, strongest(problem))).contradicted == ()
    monkeypatch.setattr(Exact, "certify", boast)
    run = problem.run(tmp_path / "proud", [], ["exact"])
    found = judged(run, problem, whole(problem, strongest(problem)))
    assert len(found.contradicted) == len(found.newly) == int((problem.radius < EPS * (1 - 1e-5)).sum())
    first = found.contradicted[0]
    assert (first.certified_by, first.guarantee, first.radius) == ("exact", "deterministic", 0.06)
    assert first.distance == pytest.approx(EPS, rel=1e-5)


# Files


def saved(path: Path, x_adv: torch.Tensor, problem) -> Path:
    """The same images in the format of the name."""
    half = np.arange(len(x_adv))[::-1].copy()
    kind = path.name.split(".", 1)[1]
    y = x_adv.flatten(1).argmax(1)
    if kind.endswith(("pt", "pth")):
        content = {
            "plain.pt": x_adv,
            "dict.pth": {"adv_complete": x_adv},
            "pair.pt": (x_adv, y),
            "sets.pt": {"apgd-ce": (x_adv, y), "square": (problem.data.x, y)},
            "half.pt": {"x_adv": x_adv.half()},
            "gradient.pt": x_adv.clone().requires_grad_(True),
        }[kind]
        torch.save(content, path)
    elif kind == "npy":
        np.save(path, x_adv.double().numpy())
    elif kind == "position.npz":
        np.savez(path, x_adv=x_adv.numpy()[half], position=half)
    elif kind == "id.npz":
        np.savez_compressed(path, x_adv=x_adv.numpy()[half], id=problem.data.ids.numpy()[half])
    elif kind == "own.safetensors":
        write_arrays(path, {"x_adv": x_adv.numpy()[half], "position": half}, {"stage": "pgd", "block": 0})
    else:
        from safetensors.torch import save_file

        save_file({"adv": x_adv.to(torch.bfloat16)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ("plain.pt", 0),
        ("dict.pth", 0),
        ("pair.pt", 0),
        ("sets.pt", 0),
        ("half.pt", 1e-3),
        ("gradient.pt", 0),
        ("npy", 0),
        ("position.npz", 0),
        ("id.npz", 0),
        ("own.safetensors", 0),
        ("bare.safetensors", 1e-2),
    ],
)
def test_formats(problem, tmp_path, kind, tolerance):
    data = problem.data.take(torch.arange(40).flip(0), "reversed")
    problem.data = data
    x_adv = strongest(problem)
    sets = read_images(saved(tmp_path / f"file.{kind}", x_adv, problem), data)
    assert [s.name for s in sets][1:] == ([f"file.{kind} (square)"] if kind == "sets.pt" else [])
    first = sets[0]
    assert first.x_adv.dtype == torch.float32
    assert not first.x_adv.requires_grad
    assert first.positions.sort().values.tolist() == list(range(40))
    assert torch.allclose(first.x_adv, x_adv[first.positions], rtol=0, atol=tolerance)


def bad(problem, **change) -> dict[str, np.ndarray]:
    return {"x_adv": strongest(problem).numpy(), "position": np.arange(40)} | change


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x[:39], r"expected 40 images, one for each of the run's examples \(all\) in their order, got 39"),
        (lambda x: x.transpose(0, 2, 3, 1), r"move the channels: x_adv.permute\(0, 3, 1, 2\)"),
        (lambda x: x[:, :, :3], r"expected images \[N, 1, 4, 4\], got \[40, 1, 3, 4\]"),
        (lambda x: x.reshape(40, 16), r"got \[40, 16\]"),
        (lambda x: x[:0], r"got \[0, 1, 4, 4\]"),
        (lambda x: x * 255, r"pixels must lie in \[0,1\], got .*; divide by 255"),
        (lambda x: (x - 0.5) / 0.25, "undo the normalisation"),
        (lambda x: (x * 255).astype(np.int64), "expected floats in .* or uint8, got int64; divide by 255"),
        (lambda x: x > 0.5, "got bool"),
        (lambda x: x.astype(complex), "numbers, got complex128"),
        (lambda x: x.astype("U8"), "numbers, got <U8"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(problem, tmp_path, make, words):
    np.save(tmp_path / "x.npy", make(strongest(problem).numpy()))
    with pytest.raises(InputError, match=words):
        read_images(tmp_path / "x.npy", problem.data)


def test_a_hidden_nan_is_named(problem, tmp_path):
    x_adv = strongest(problem)
    x_adv[17, 0, 2, 3] = torch.nan
    x_adv[30, 0, 0, 0] = torch.inf
    torch.save(x_adv, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"2 images contain NaN or infinity \(rows \[17, 30\]\)"):
        read_images(tmp_path / "x.pt", problem.data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": np.arange(40) + 1}, "name no example of the run; its examples have positions 0 to 39"),
        ({"position": np.arange(40) - 1}, "name no example"),
        ({"position": np.zeros(40, np.int64)}, "more than once"),
        ({"position": np.arange(39)}, "an integer for each of 40 images"),
        ({"position": np.arange(40.0)}, "an integer for each"),
    ],
)
def test_positions_are_checked(problem, tmp_path, change, words):
    np.savez(tmp_path / "x.npz", **bad(problem, **change))
    with pytest.raises(InputError, match=words):
        read_images(tmp_path / "x.npz", problem.data)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_files_are_read_safely(problem, tmp_path, capsys):
    data: Dataset = problem.data
    torch.save({"adv_complete": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(Evil()))
    np.save(tmp_path / "objects.npy", np.array([Evil()], object), allow_pickle=True)
    (tmp_path / "html.pt").write_text("<html>404</html>")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04abc")
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").rename(tmp_path / "named.npz")
    np.savez(tmp_path / "other.npz", y=np.zeros(3))
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save(torch.ones(40, 1, 4, 4).to_sparse(), tmp_path / "sparse.pt")
    (tmp_path / "x.xz").write_bytes(lzma.compress(b"x"))
    for name, words in (
        ("evil.pt", "would run code"),
        ("evil2.pt", "would run code"),
        ("objects.npy", "damaged|Object"),
        ("html.pt", "run code, or it is no file of torch.save"),
        ("cut.npz", "damaged, cut off"),
        ("x.safetensors", "damaged, cut off"),
        ("named.npz", "not what its name says"),
        ("other.npz", "holds y; expected x_adv"),
        ("list.pt", "expected a tensor of images, got list"),
        ("sparse.pt", "expected a plain tensor"),
        ("x.xz", r"come as \.npy, \.npz, \.pt, \.pth, \.safetensors, got '\.xz'"),
        ("none.pt", "no such file"),
    ):
        with pytest.raises(InputError, match=words):
            read_images(tmp_path / name, data)
    assert "unpickled" not in capsys.readouterr().out


def test_a_file_that_would_fill_the_memory_is_not_opened(problem, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_adv.npy", bytes(20_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 50_000
    with pytest.raises(InputError, match="more than 32 sets of images"):
        read_images(tmp_path / "bomb.npz", problem.data)
    (tmp_path / "large.npy").write_bytes(bytes(2_000_000))
    with pytest.raises(InputError, match="Save the adversarial images alone"):
        read_images(tmp_path / "large.npy", problem.data)


def test_damage_in_a_file_of_ones_own_is_found(problem, tmp_path):
    path = saved(tmp_path / "file.own.safetensors", strongest(problem), problem)
    body = bytearray(path.read_bytes())
    body[-3] ^= 1
    path.write_bytes(body)
    with pytest.raises(InputError, match="does not match its checksum"):
        read_images(path, problem.data)
