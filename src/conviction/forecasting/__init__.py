"""What training would do, known before it."""
