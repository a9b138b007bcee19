package dev.credentialbroker.client;

import com.google.protobuf.Timestamp;
import dev.credentialbroker.v1.Authorization;
import dev.credentialbroker.v1.CredentialBrokerGrpc;
import dev.credentialbroker.v1.CredentialKind;
import dev.credentialbroker.v1.EndTaskRequest;
import dev.credentialbroker.v1.EndTaskResponse;
import dev.credentialbroker.v1.GetAuthorizationRequest;
import dev.credentialbroker.v1.GetAuthorizationResponse;
import dev.credentialbroker.v1.Header;
import dev.credentialbroker.v1.RegisterTaskRequest;
import dev.credentialbroker.v1.RegisterTaskResponse;
import dev.credentialbroker.v1.ReportRejectedRequest;
import dev.credentialbroker.v1.ReportRejectedResponse;
import dev.credentialbroker.v1.WatchAuthorizationsRequest;
import dev.credentialbroker.v1.WatchAuthorizationsResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;

/** A broker on loopback that gives each call the next secret, and watches where it is told to. */
public final class FakeBroker extends CredentialBrokerGrpc.CredentialBrokerImplBase
    implements AutoCloseable {
  /** The calls that arrived. */
  public final List<GetAuthorizationRequest> asked = new CopyOnWriteArrayList<>();

  /** The reports that arrived. */
  public final List<ReportRejectedRequest> reported = new CopyOnWriteArrayList<>();

  /** The tasks that were registered. */
  public final List<RegisterTaskRequest> registered = new CopyOnWriteArrayList<>();

  /** The tasks that were ended, or were to be. */
  public final List<EndTaskRequest> ended = new CopyOnWriteArrayList<>();

  /** The streams that were opened, to say something on; without them none can be. */
  public volatile List<StreamObserver<WatchAuthorizationsResponse>> streams;

  /** Where it is. */
  public final String address;

  /** What calls for an authorization fail with; null for an answer. */
  public volatile Status failure;

  /** What reports and ends of tasks fail with; null for an answer. */
  public volatile Status refusal;

  /** How long answers last from now on; the next is due after half of it. */
  public volatile Duration lasts = Duration.ofSeconds(60);

  /** The name of the header that holds the secret, from now on. */
  public volatile String header = "authorization";

  /** The connection tag of answers from now on. */
  public volatile String tag = "tag";

  /** Answers wait for it. */
  public volatile CountDownLatch gate = new CountDownLatch(0);

  private final Server server;

  /** Starts it. */
  public FakeBroker() throws IOException {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(this)
            .build()
            .start();
    address = "127.0.0.1:" + server.getPort();
  }

  /** Makes a client of it. */
  public BrokerClient client() {
    return BrokerClient.builder().address(address).watch(false).build();
  }

  @Override
  public void getAuthorization(
      GetAuthorizationRequest request, StreamObserver<GetAuthorizationResponse> answers) {
    asked.add(request);
    awaitGate();
    if (failure != null) {
      answers.onError(failure.asRuntimeException());
      return;
    }
    answers.onNext(
        GetAuthorizationResponse.newBuilder()
            .setAuthorization(
                answer("secret-" + asked.size()).toBuilder()
                    .setHeaders(0, header("secret-" + asked.size()))
                    .setConnectionTag(tag)
                    .setRefreshTime(in(lasts.dividedBy(2)))
                    .setExpireTime(in(lasts)))
            .build());
    answers.onCompleted();
  }

  @Override
  public void reportRejected(
      ReportRejectedRequest request, StreamObserver<ReportRejectedResponse> answers) {
    reported.add(request);
    awaitGate();
    if (refusal != null) {
      answers.onError(refusal.asRuntimeException());
      return;
    }
    answers.onNext(
        ReportRejectedResponse.newBuilder()
            .setAuthorization(answer("better-" + reported.size()))
            .build());
    answers.onCompleted();
  }

  @Override
  public void registerTask(
      RegisterTaskRequest request, StreamObserver<RegisterTaskResponse> answers) {
    registered.add(request);
    answers.onNext(RegisterTaskResponse.getDefaultInstance());
    answers.onCompleted();
  }

  @Override
  public void endTask(EndTaskRequest request, StreamObserver<EndTaskResponse> answers) {
    ended.add(request);
    if (refusal != null) {
      answers.onError(refusal.asRuntimeException());
      return;
    }
    answers.onNext(EndTaskResponse.getDefaultInstance());
    answers.onCompleted();
  }

  @Override
  public StreamObserver<WatchAuthorizationsRequest> watchAuthorizations(
      StreamObserver<WatchAuthorizationsResponse> stream) {
    if (streams == null) {
      return super.watchAuthorizations(stream);
    }
    streams.add(stream);
    return new StreamObserver<>() {
      @Override
      public void onNext(WatchAuthorizationsRequest request) {}

      @Override
      public void onError(Throwable failure) {}

      @Override
      public void onCompleted() {}
    };
  }

  /** Makes an answer that lasts a minute by a clock that is half a century wrong. */
  static Authorization answer(String secret) {
    return Authorization.newBuilder()
        .addHeaders(Header.newBuilder().setName("authorization").setValue(secret))
        .addHeaders(Header.newBuilder().setName("x-account").setValue("account"))
        .setKind(CredentialKind.CREDENTIAL_KIND_BEARER)
        .setRevision(revision(secret))
        .setConnectionTag("tag")
        .setServerTime(com.google.protobuf.Timestamp.newBuilder().setSeconds(100))
        .setRefreshTime(com.google.protobuf.Timestamp.newBuilder().setSeconds(130))
        .setExpireTime(com.google.protobuf.Timestamp.newBuilder().setSeconds(160))
        .build();
  }

  private void awaitGate() {
    try {
      gate.await();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private Header header(String secret) {
    return Header.newBuilder().setName(header).setValue(secret).build();
  }

  private static Timestamp in(Duration time) {
    return Timestamp.newBuilder()
        .setSeconds(100 + time.toSeconds())
        .setNanos(time.toNanosPart())
        .build();
  }

  /** The revision of a secret, which does not hold it. */
  public static String revision(String secret) {
    return "revision-" + Integer.toHexString(secret.hashCode());
  }

  @Override
  public void close() {
    gate.countDown();
    server.shutdownNow();
  }
}
