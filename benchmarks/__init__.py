"""Measurements, run from a checkout: `python -m benchmarks.<name> --json FILE`."""
