"""``python -m conviction``."""

from conviction.cli import main

main()
