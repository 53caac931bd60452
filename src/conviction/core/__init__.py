"""Types and pure functions that everything stands on. No torch in here."""
