"""Other libraries that do the same work, measured beside ours: `python -m benchmarks.peers`."""
