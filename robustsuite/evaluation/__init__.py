"""Protocol, plan, engine, ledger, checks, evaluator, verification: the heart of the suite."""
