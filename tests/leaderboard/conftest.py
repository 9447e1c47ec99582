"""Sealed records made up, and a published folder of real runs of a toy model."""

import runpy
import shutil
from pathlib import Path

import pytest
import yaml

_TESTS = Path(__file__).parents[1]
_BUILDER = runpy.run_path(str(_TESTS / "results" / "record_builder.py"))
BOARD = "toy"


@pytest.fixture(scope="session")
def make_record():
    """Builder of sealed records (see tests/results/record_builder.py)."""
    return _BUILDER["make_record"]


def write_board(root: Path, board: str = BOARD, **parts) -> Path:
    """The definition of a board for the builder's records, with ``parts`` of it changed."""
    body = {
        "id": board,
        "title": f"The {board} board",
        "data": {"name": "digits", "split": "test", "fingerprint": "f" * 64},
        "threat": {"norm": "Linf", "eps": "0.15"},
        "protocol": {"name": "standard", "version": 1},
    }
    path = root / "boards" / f"{board}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(body | parts, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def define():
    return write_board


class Toy:
    """A linear model on made-up images, two runs of it with different seeds, and one of another model."""

    def __init__(self, folder: Path) -> None:
        conftest = runpy.run_path(str(_TESTS / "evaluation" / "conftest.py"))
        self.problem = conftest["linear_problem"]()
        self.weak = self.problem.run(folder / "weak", ["fgsm"], eps="0.05", seed=1).directory
        self.strong = self.problem.run(folder / "strong", ["fgsm"], eps="0.05", seed=2).directory
        other = conftest["linear_problem"]()
        other.part = other.part.model_copy(update={"name": "other", "weights_sha256": "1" * 64})
        self.other = other.run(folder / "other", ["fgsm"], eps="0.05").directory

    @property
    def runs(self) -> list[Path]:
        return [self.weak, self.strong, self.other]

    def gallery(self, stored):
        from robustsuite.evaluation.gallery import write_gallery

        return write_gallery(stored.folder, self.problem.data, 4)

    def define(self, root: Path, board: str = BOARD, **parts) -> None:
        write_board(
            root,
            board,
            **{
                "data": {"name": "toy", "fingerprint": self.problem.data.fingerprint},
                "threat": {"norm": "Linf", "eps": 0.05},
                "protocol": {"name": "custom", "version": 1},
            }
            | parts,
        )

    def submit(self, run: Path, root: Path, board: str = BOARD):
        from robustsuite.leaderboard.submission import submit

        return submit(run, root, board, self.gallery)


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def _published(toy, tmp_path_factory) -> Path:
    from robustsuite.leaderboard.board import defined_board
    from robustsuite.leaderboard.export import write
    from robustsuite.leaderboard.published import read_published

    root = tmp_path_factory.mktemp("published") / "leaderboards"
    toy.define(root)
    for run in toy.runs:
        toy.submit(run, root)
    write([defined_board(b) for b in read_published(root).boards], root / "tables")
    return root


@pytest.fixture
def published(_published, tmp_path) -> Path:
    """A published folder of the toy's three runs, with pictures and tables; every test may change its own."""
    return Path(shutil.copytree(_published, tmp_path / "leaderboards"))
