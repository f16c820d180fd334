"""Honest evaluation: metrics, intervals, frontiers, comparisons of policies, and the report."""
