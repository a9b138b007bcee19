"""`credential-broker`, also as `python -m broker`."""

import os

from broker.cli import root


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # gRPC's own remarks, of a failed handshake for instance, would stand between the lines of JSON on standard error;
    # what they say is in the error as well. Read when gRPC is loaded, so it is said before that.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251 - not a setting of the broker, and not read here
    root(prog_name="credential-broker")


if __name__ == "__main__":
    main()
