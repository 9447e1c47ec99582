"""Shared fixtures: where the real data lies, and small models with known answers."""

import os
from pathlib import Path

import pytest
import torch

# One thread a worker, and in the programs that it starts: the tests run in parallel, and threads that outnumber the
# cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and third-party checkpoints; skips where it is absent."""
    root = Path(os.environ.get("ROBUSTSUITE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "checkpoints").is_dir():
        pytest.skip(f"shared data not found at {root} (set ROBUSTSUITE_DATA)")
    return root
