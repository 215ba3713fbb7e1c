"""See what the choice of optimiser does to a trained model, beyond its loss curve."""

__version__ = "0.1.0"
