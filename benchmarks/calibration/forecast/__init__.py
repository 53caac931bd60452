"""How good forecasts are: frozen before real trainings, beside simple guesses. ``PROTOCOL.md`` was written before."""
