package dev.credentialbroker.driver;

import com.google.protobuf.Timestamp;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.v1.Authorization;
import dev.credentialbroker.v1.CredentialBrokerGrpc;
import dev.credentialbroker.v1.GetAuthorizationRequest;
import dev.credentialbroker.v1.GetAuthorizationResponse;
import dev.credentialbroker.v1.WatchAuthorizationsRequest;
import dev.credentialbroker.v1.WatchAuthorizationsResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.concurrent.TimeUnit;

/**
 * A first call, to a broker in this very process, before any command. A JVM takes a while to load
 * what a call needs, on a busy machine longer than the deadlines of some cases.
 */
final class WarmUp extends CredentialBrokerGrpc.CredentialBrokerImplBase {
  private WarmUp() {}

  static void run() throws IOException, InterruptedException {
    if (!System.getenv().getOrDefault("CREDENTIAL_BROKER_CA_FILE", "").isEmpty()) {
      // Every client of such a process speaks TLS, which the broker here does not.
      return;
    }
    Server server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(new WarmUp())
            .build()
            .start();
    try (BrokerClient client =
        BrokerClient.builder().address("127.0.0.1:" + server.getPort()).build()) {
      client.authorization("inference", "warm-up");
    } finally {
      server.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  @Override
  public void getAuthorization(
      GetAuthorizationRequest request, StreamObserver<GetAuthorizationResponse> answers) {
    Authorization authorization =
        Authorization.newBuilder()
            .setServerTime(Timestamp.getDefaultInstance())
            .setRefreshTime(Timestamp.newBuilder().setSeconds(30))
            .setExpireTime(Timestamp.newBuilder().setSeconds(60))
            .build();
    answers.onNext(GetAuthorizationResponse.newBuilder().setAuthorization(authorization).build());
    answers.onCompleted();
  }

  @Override
  public StreamObserver<WatchAuthorizationsRequest> watchAuthorizations(
      StreamObserver<WatchAuthorizationsResponse> answers) {
    return new StreamObserver<>() {
      @Override
      public void onNext(WatchAuthorizationsRequest request) {}

      @Override
      public void onError(Throwable gone) {}

      @Override
      public void onCompleted() {
        answers.onCompleted();
      }
    };
  }
}
