"""``python -m conviction``."""

from conviction.cli.app import main

main()
