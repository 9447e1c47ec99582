import runpy
from pathlib import Path

import pytest

_BUILDER = runpy.run_path(str(Path(__file__).with_name("record_builder.py")))


@pytest.fixture
def make_record():
    """Builder of sealed records (see record_builder.py)."""
    return _BUILDER["make_record"]
