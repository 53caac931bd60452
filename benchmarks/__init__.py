"""Measurements of speed and memory, with their rivals, and their results as JSON."""
