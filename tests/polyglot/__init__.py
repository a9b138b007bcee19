"""One conformance suite for the clients of all languages: `python -m tests.polyglot --help`."""
