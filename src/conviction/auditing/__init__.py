"""A linter for preference data."""
