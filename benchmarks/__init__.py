"""Benchmarks: `pytest benchmarks --benchmark-enable` for all, `--quick` for fewer rows."""
