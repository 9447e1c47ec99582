"""The claims of papers as data, and the experiments that put them to the test."""
