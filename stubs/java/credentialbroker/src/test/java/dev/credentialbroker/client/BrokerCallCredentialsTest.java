package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import io.grpc.Attributes;
import io.grpc.CallCredentials;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.SecurityLevel;
import io.grpc.Status;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

@Timeout(60)
class BrokerCallCredentialsTest {
  private FakeBroker broker;
  private BrokerClient client;

  @BeforeEach
  void start() throws Exception {
    broker = new FakeBroker();
    client = broker.client();
  }

  @AfterEach
  void stop() {
    client.close();
    broker.close();
  }

  private static final class Call extends CallCredentials.RequestInfo {
    private final SecurityLevel security;

    Call(SecurityLevel security) {
      this.security = security;
    }

    @Override
    public MethodDescriptor<?, ?> getMethodDescriptor() {
      throw new UnsupportedOperationException();
    }

    @Override
    public SecurityLevel getSecurityLevel() {
      return security;
    }

    @Override
    public String getAuthority() {
      return "backend.example";
    }

    @Override
    public Attributes getTransportAttrs() {
      return Attributes.EMPTY;
    }
  }

  private static final class Applied extends CallCredentials.MetadataApplier {
    final CompletableFuture<Metadata> metadata = new CompletableFuture<>();
    final CompletableFuture<Status> failure = new CompletableFuture<>();

    @Override
    public void apply(Metadata headers) {
      metadata.complete(headers);
    }

    @Override
    public void fail(Status status) {
      failure.complete(status);
    }
  }

  private Applied apply(SecurityLevel security) {
    Applied applied = new Applied();
    new BrokerCallCredentials(client, AuthorizationRequest.of("inference", "t"))
        .applyRequestMetadata(new Call(security), Runnable::run, applied);
    return applied;
  }

  @Test
  void givesAllHeaders() throws Exception {
    Metadata given = apply(SecurityLevel.PRIVACY_AND_INTEGRITY).metadata.get(5, TimeUnit.SECONDS);
    assertEquals("secret-1", value(given, "authorization"));
    assertEquals("account", value(given, "x-account"));
  }

  private static String value(Metadata metadata, String name) {
    return metadata.get(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER));
  }

  @Test
  void givesNothingToAConnectionWithoutTls() throws Exception {
    Status failed = apply(SecurityLevel.INTEGRITY).failure.get(5, TimeUnit.SECONDS);
    assertEquals(Status.Code.UNAUTHENTICATED, failed.getCode());
    assertEquals(0, broker.asked.size());
  }

  @ParameterizedTest
  @CsvSource({
    "INTERNAL,            UNAVAILABLE",
    "RESOURCE_EXHAUSTED,  UNAVAILABLE",
    "UNAUTHENTICATED,     UNAVAILABLE",
    "PERMISSION_DENIED,   PERMISSION_DENIED",
    "FAILED_PRECONDITION, FAILED_PRECONDITION"
  })
  void failsSoThatWhatMayPassIsTriedAgain(Status.Code broken, Status.Code told) throws Exception {
    broker.failure = broken.toStatus().withDescription("why");
    Status failed = apply(SecurityLevel.PRIVACY_AND_INTEGRITY).failure.get(5, TimeUnit.SECONDS);
    assertEquals(told, failed.getCode());
    assertEquals("why", failed.getDescription());
  }

  @Test
  void failsForAHeaderThatIsNoMetadataWithoutItsValue() throws Exception {
    broker.header = "not a name";
    Status failed = apply(SecurityLevel.PRIVACY_AND_INTEGRITY).failure.get(5, TimeUnit.SECONDS);
    assertEquals(Status.Code.INTERNAL, failed.getCode());
    assertFalse(failed.toString().contains("secret-1"));
  }

  @Test
  void failsWhenTheClientIsClosed() throws Exception {
    client.close();
    Status failed = apply(SecurityLevel.PRIVACY_AND_INTEGRITY).failure.get(5, TimeUnit.SECONDS);
    assertEquals(Status.Code.UNAVAILABLE, failed.getCode());
  }
}
