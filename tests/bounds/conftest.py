"""Networks that several tests of bounds are made with."""

import runpy
from pathlib import Path

import pytest

_NETWORKS = runpy.run_path(str(Path(__file__).with_name("networks.py")))
_EXACT = runpy.run_path(str(Path(__file__).with_name("exact.py")))


@pytest.fixture(scope="session")
def random_network():
    """Builder of small random networks (see networks.py)."""
    return _NETWORKS["random_network"]


@pytest.fixture(scope="session")
def piecewise_linear():
    """Names of the activations that are made of straight pieces."""
    return _NETWORKS["PIECEWISE_LINEAR"]


@pytest.fixture(scope="session")
def extremes():
    """Exact minimum and ranges of a tiny ReLU network (see exact.py)."""
    return _EXACT["extremes"]
