"""Image folders, loose and in archives."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustsuite.data import folder as module
from robustsuite.data.reference import load_data
from robustsuite.errors import InputError


def png(value: int, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode != "RGB" else (value, 2 * value, 3 * value)).save(buffer, "PNG")
    return buffer.getvalue()


TREE = {f"{split}/{name}/{i}.png": png(10 * k + i) for split in ("train", "test")
        for k, name in enumerate(("cat", "ant", "bee")) for i in range(2 if split == "test" else 3)}  # fmt: skip


def write(path: Path, files: dict[str, bytes]) -> str:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif ".tar" in path.name:
        with tarfile.open(path, f"w:{path.suffix[1:] if path.suffix != '.tar' else ''}") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return str(path)


@pytest.mark.parametrize("name", ["images", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.zip"])
def test_the_same_data_wherever_it_lies(tmp_path: Path, name: str) -> None:
    data = load_data(write(tmp_path / name, TREE))
    assert data.classes == ("ant", "bee", "cat")
    assert data.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.x.shape == (6, 3, 4, 5)
    assert (data.x[:, 0, 0, 0] * 255).round().tolist() == [10, 11, 20, 21, 0, 1]
    assert (data.x[:, 2, 3, 4] * 255).round().tolist() == [30, 33, 60, 63, 0, 3]
    assert data.name == name.split(".")[0]


@pytest.mark.parametrize("name", ["images", "a.tar.xz", "a.zip"])
def test_only_the_subset_is_decoded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = write(tmp_path / name, TREE)
    whole = load_data(reference, split="train")
    decoded, decode = [], module._decode

    def counting(image: str, content: bytes) -> np.ndarray:
        decoded.append(image)
        return decode(image, content)

    monkeypatch.setattr(module, "_decode", counting)
    data = load_data(reference, split="train", subset="stride:4")
    assert (data.ids.tolist(), len(decoded)) == ([0, 4, 8], 3)
    assert torch.equal(data.x, whole.x[[0, 4, 8]])
    (tmp_path / "ids.txt").write_text("7\n2\n")
    assert torch.equal(load_data(reference, split="train", subset=f"ids:{tmp_path / 'ids.txt'}").x, whole.x[[7, 2]])


def test_splits(tmp_path: Path) -> None:
    root = Path(write(tmp_path / "a", TREE))
    assert len(load_data(str(root), split="train")) == 9
    with pytest.raises(InputError, match=r"no split 'val'; there are test \(6\), train \(9\)"):
        load_data(str(root), split="val")
    (root / "test").rename(root / "validation")
    assert len(load_data(str(root))) == len(load_data(str(root), split="val")) == 6


def test_without_a_split_level_and_below_a_root_folder(tmp_path: Path) -> None:
    files = {f"top/{name.removeprefix('test/')}": v for name, v in TREE.items() if name.startswith("test/")}
    reference = write(tmp_path / "a.tar", {**files, "top/README.txt": b"hello", "top/ant/.hidden.png": b"x"})
    assert len(load_data(reference)) == 6
    with pytest.raises(InputError, match="has no 'train' split"):
        load_data(reference, split="train")


def test_classes_come_from_all_splits(tmp_path: Path) -> None:
    files = {name: content for name, content in TREE.items() if not name.startswith("test/bee")}
    data = load_data(write(tmp_path / "a", files))
    assert data.classes == ("ant", "bee", "cat")
    assert sorted(set(data.y.tolist())) == [0, 2]
    assert data.num_classes == 3


def test_grey_images(tmp_path: Path) -> None:
    grey = {f"{name}/{i}.png": png(40 + i, mode="L") for name in "ab" for i in range(2)}
    data = load_data(write(tmp_path / "grey", grey))
    assert data.x.shape == (4, 1, 4, 5)
    mixed = load_data(write(tmp_path / "mixed", {**grey, "b/2.png": png(9)}))
    assert mixed.x.shape == (5, 3, 4, 5)
    assert (mixed.x[0, :, 0, 0] * 255).round().tolist() == [40, 40, 40]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.png": png(1), "b/2.png": png(1, (5, 5))}, "a/1.png is 5x4 but b/2.png is 5x5"),
        ({"a/1.png": png(1), "b/2.png": b"not an image"}, "b/2.png cannot be decoded"),
        ({"a/1.png": png(1), "b/2.png": png(1)[:-30]}, "b/2.png cannot be decoded"),
        ({"a/1.png": png(1), "b/2.png": png(700, mode="I;16")}, "I;16 pixels are not supported"),
        ({"a/1.txt": b"x"}, "no image found"),
        ({"a/1.png": png(1), "2.png": png(1)}, "2.png lies in no class folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, files: dict, message: str) -> None:
    for name in ("folder", "a.zip"):
        with pytest.raises(InputError, match=message):
            load_data(write(tmp_path / name, files))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.7])
def test_archives_that_are_cut_off(tmp_path: Path, name: str, share: float) -> None:
    path = Path(write(tmp_path / name, TREE))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=r"damaged|no image"):
        load_data(str(path))


def test_cifar10_in_its_archive(shared_data: Path) -> None:
    data = load_data(str(shared_data / "cifar10" / "cifar10-jpeg.tar.xz"), subset="stride:2000")
    assert data.x.shape == (5, 3, 32, 32)
    assert data.y.tolist() == [0, 2, 4, 6, 8]
    assert data.classes[9] == "truck"
