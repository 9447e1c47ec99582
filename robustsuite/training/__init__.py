"""The loop that a training-time defense plugs into."""
