"""What the commands do, for Python: names are loaded, fields are flat, and nothing is written without ``run=``."""
