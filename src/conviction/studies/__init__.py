"""Whole studies: ``study.py`` is the main path, read it first."""
