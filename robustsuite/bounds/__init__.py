"""The bound-propagation engine: certifiers and certified training share it."""
