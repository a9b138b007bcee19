"""Generated, typed stubs of the credential broker's gRPC API; one subpackage for each version of the API."""
