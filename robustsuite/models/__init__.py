"""From a model reference to a `Classifier`: loading, architectures, normalisation, declared facts."""
