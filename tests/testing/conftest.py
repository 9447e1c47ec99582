"""Plugins that tests register are gone after the test."""

import sys

import pytest

from robustsuite import registry


@pytest.fixture
def clean_registries():
    for known in registry.REGISTRIES.values():
        known.discover()
    before = {kind: dict(known.entries) for kind, known in registry.REGISTRIES.items()}
    failures, modules = list(registry.FAILURES), set(sys.modules)
    yield
    for kind, known in registry.REGISTRIES.items():
        known.entries.clear()
        known.entries.update(before[kind])
    registry.FAILURES[:] = failures
    for name in set(sys.modules) - modules:
        if name.startswith("robustsuite_plugin_"):
            del sys.modules[name]
