"""Where in a model an answer is decided."""
