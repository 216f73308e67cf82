"""Measurements over loopback, beside ssh and the stock node in the same run: `python -m benchmarks`."""
