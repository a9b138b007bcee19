"""Version 1 of the API: import its modules, for example `from credentialbroker.v1 import credential_broker_pb2`."""
