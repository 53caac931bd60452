"""Whether a search for settings finds what an exhaustive grid of real trainings finds."""
