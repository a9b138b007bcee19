package dev.credentialbroker.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.credentialbroker.v1.ErrorReason;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class BrokerExceptionTest {
  private static BrokerException error(Status.Code code, String domain, String reason) {
    ErrorInfo info =
        ErrorInfo.newBuilder()
            .setDomain(domain)
            .setReason(reason)
            .putMetadata("identity", "agents")
            .build();
    RetryInfo retry =
        RetryInfo.newBuilder()
            .setRetryDelay(com.google.protobuf.Duration.newBuilder().setNanos(1_500_000))
            .build();
    return BrokerException.of(
        StatusProto.toStatusRuntimeException(
            com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage("what the broker says")
                .addDetails(Any.pack(retry))
                .addDetails(Any.pack(info))
                .build()));
  }

  @Test
  void holdsAllThatTheBrokerSays() {
    BrokerException error =
        error(Status.Code.PERMISSION_DENIED, "credentialbroker.v1", "IDENTITY_REVOKED");
    assertEquals(ErrorReason.ERROR_REASON_IDENTITY_REVOKED, error.reason());
    assertEquals("IDENTITY_REVOKED", error.reasonText());
    assertEquals(Status.Code.PERMISSION_DENIED, error.code());
    assertEquals("what the broker says", error.getMessage());
    assertEquals(Optional.of(Duration.ofNanos(1_500_000)), error.retryDelay());
    assertEquals(Map.of("identity", "agents"), error.metadata());
    assertTrue(
        error.toString().endsWith("PERMISSION_DENIED IDENTITY_REVOKED: what the broker says"));
  }

  @Test
  void keepsAWordOfANewerBroker() {
    BrokerException error = error(Status.Code.UNAVAILABLE, "credentialbroker.v1", "NEWER");
    assertEquals(ErrorReason.ERROR_REASON_UNSPECIFIED, error.reason());
    assertEquals("NEWER", error.reasonText());
  }

  @Test
  void takesNoReasonOfAnotherService() {
    BrokerException error = error(Status.Code.UNAVAILABLE, "proxy.example", "DRAINING");
    assertEquals(ErrorReason.ERROR_REASON_UNSPECIFIED, error.reason());
    assertEquals("", error.reasonText());
  }

  @Test
  void isMadeOfWhatTheRuntimeMade() {
    BrokerException error = BrokerException.of(Status.UNAVAILABLE.asRuntimeException());
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    assertEquals(ErrorReason.ERROR_REASON_UNSPECIFIED, error.reason());
    assertEquals(Optional.empty(), error.retryDelay());
  }

  @ParameterizedTest
  @CsvSource({
    "PERMISSION_DENIED,   NOT_ALLOWED,           true",
    "FAILED_PRECONDITION, TASK_ENDED,            true",
    "INVALID_ARGUMENT,    REVISION_UNKNOWN,      true",
    "NOT_FOUND,           IDENTITY_NOT_FOUND,    true",
    "FAILED_PRECONDITION, NEWER,                 true",
    "FAILED_PRECONDITION, TARGET_NOT_ALLOWED,    false",
    "FAILED_PRECONDITION, MIN_VALIDITY_TOO_LONG, false",
    "INVALID_ARGUMENT,    FIELD_INVALID,         false",
    "UNAVAILABLE,         STORE_DOWN,            false",
    "UNAUTHENTICATED,     CALLER_UNAUTHENTICATED, false",
    "RESOURCE_EXHAUSTED,  CALLER_RATE,           false",
    "ABORTED,             GENERATION_CHANGED,    false",
    "INTERNAL,            INTERNAL,              false",
    "DATA_LOSS,           ROW_CORRUPT,           false"
  })
  void knowsWhatEndsWhatIsHeld(Status.Code code, String reason, boolean ends) {
    assertEquals(ends, error(code, "credentialbroker.v1", reason).refusesWhatIsHeld());
  }

  @Test
  void isMadeAnewForEachWhoWaited() {
    BrokerException first = error(Status.Code.UNAVAILABLE, "credentialbroker.v1", "STORE_DOWN");
    BrokerException second = first.again();
    assertFalse(first == second);
    assertEquals(first.toString(), second.toString());
    assertEquals(first.metadata(), second.metadata());
  }
}
