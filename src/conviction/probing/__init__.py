"""Measurements: queries, log-probs, gaps and metrics."""
