"""Topics, training data and facts: types, formats and readers."""
