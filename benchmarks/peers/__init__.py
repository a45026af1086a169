"""Compare this library with others that do the same work: `python -m benchmarks.peers`."""
