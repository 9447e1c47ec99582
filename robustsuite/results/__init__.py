"""Records: schema, store, provenance, statistics. Nothing here imports torch."""
