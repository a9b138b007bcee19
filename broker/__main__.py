"""`credential-broker`, also as `python -m broker`."""

from broker.cli import root


def main() -> None:
    """Run the command line and end the process with its exit code."""
    root(prog_name="credential-broker")


if __name__ == "__main__":
    main()
