"""Evaluation in closed loop: which scenarios, what is measured, the statistics and the report."""
