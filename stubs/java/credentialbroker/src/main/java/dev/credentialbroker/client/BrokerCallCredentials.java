package dev.credentialbroker.client;

import io.grpc.CallCredentials;
import io.grpc.Metadata;
import io.grpc.SecurityLevel;
import io.grpc.Status;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Executor;

/**
 * The broker's headers as metadata of gRPC calls to a backend, on connections with TLS only: on
 * others the call fails.
 *
 * <p>Give it to a stub: {@code stub.withCallCredentials(new BrokerCallCredentials(broker,
 * AuthorizationRequest.of("inference", "thread-1")))}.
 */
public final class BrokerCallCredentials extends CallCredentials {
  private final BrokerClient broker;
  private final AuthorizationRequest request;

  /**
   * Makes the credentials of calls that belong together.
   *
   * @param request what to ask the broker for, at each call
   */
  public BrokerCallCredentials(BrokerClient broker, AuthorizationRequest request) {
    this.broker = broker;
    this.request = request;
  }

  @Override
  public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
    if (call.getSecurityLevel() != SecurityLevel.PRIVACY_AND_INTEGRITY) {
      applier.fail(Status.UNAUTHENTICATED.withDescription("the broker's headers go over TLS only"));
      return;
    }
    try {
      // What is held is applied here and now; for the rest nobody's thread waits.
      broker
          .authorizationAsync(request)
          .whenComplete(
              (authorization, failure) -> {
                if (failure != null) {
                  applier.fail(status(failure));
                  return;
                }
                try {
                  applier.apply(metadata(authorization));
                } catch (IllegalArgumentException noMetadata) {
                  applier.fail(
                      Status.INTERNAL.withDescription("a header of the broker is no metadata"));
                }
              });
    } catch (RuntimeException e) {
      applier.fail(status(e));
    }
  }

  private static Metadata metadata(Authorization authorization) {
    Metadata metadata = new Metadata();
    for (Header header : authorization.headers()) {
      metadata.put(
          Metadata.Key.of(header.name(), Metadata.ASCII_STRING_MARSHALLER), header.value());
    }
    return metadata;
  }

  private static Status status(Throwable failure) {
    Throwable cause = failure instanceof CompletionException ? failure.getCause() : failure;
    // What may pass is told as what the users of gRPC try again.
    Status status =
        cause instanceof BrokerException error && !error.mayPass()
            ? error.code().toStatus()
            : Status.UNAVAILABLE;
    return status.withDescription(cause.getMessage()).withCause(cause);
  }
}
