"""The only package that knows gRPC and protobuf: bytes in, the broker's words inside, bytes out."""
