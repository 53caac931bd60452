"""Scoring: packing, attention, log-probs, and the check that they agree with plain rows."""
