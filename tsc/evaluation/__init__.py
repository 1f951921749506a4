"""Closed-loop evaluation: the scenarios, the metrics, the statistics and the report."""
