"""What scripts/benchmark.py measures: this project beside what one would otherwise write."""
