"""Boards: records in, ranked tables out. Nothing here imports torch."""
