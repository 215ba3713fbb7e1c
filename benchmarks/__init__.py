"""Side-by-side measurements against the alternatives: `python -m benchmarks`."""
