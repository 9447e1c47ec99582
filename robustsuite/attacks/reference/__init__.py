"""Adapters to third-party attack packages: oracles to compare with, never needed to run the suite."""
