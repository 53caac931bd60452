"""The command ``conviction``, and ``python -m conviction``."""

from conviction.cli.signals import end_at_once


def main() -> None:
    """Entry point. What is imported here takes half a second: from the first moment a signal ends it in our words."""
    end_at_once()
    from conviction.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
