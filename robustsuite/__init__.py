"""robustsuite: attacks, defenses and certifiers under one evaluator, and leaderboards that anyone can re-check."""

__version__ = "0.1.0"

# Part of every run's key. Raised whenever a change could move an outcome: same key, same ledger.
SEMANTICS_VERSION = 3
