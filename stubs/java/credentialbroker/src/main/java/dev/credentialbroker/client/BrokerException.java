package dev.credentialbroker.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.credentialbroker.v1.ErrorReason;
import dev.credentialbroker.v1.ErrorStatus;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * A call that the broker refused, or that did not reach it.
 *
 * <p>Switch on {@link #reason}, never on the message, which may change. What each reason means and
 * what to do about it stands at {@link ErrorReason}.
 */
public final class BrokerException extends RuntimeException {
  private static final long serialVersionUID = 1L;
  private static final String DOMAIN = "credentialbroker.v1";
  private static final String PREFIX = "ERROR_REASON_";

  private static final Set<Status.Code> REFUSALS =
      EnumSet.of(
          Status.Code.PERMISSION_DENIED,
          Status.Code.FAILED_PRECONDITION,
          Status.Code.INVALID_ARGUMENT,
          Status.Code.NOT_FOUND);

  /** What may pass without anybody's doing. */
  private static final Set<Status.Code> PASSING =
      EnumSet.of(
          Status.Code.UNAVAILABLE,
          Status.Code.DEADLINE_EXCEEDED,
          Status.Code.RESOURCE_EXHAUSTED,
          Status.Code.ABORTED,
          Status.Code.CANCELLED,
          Status.Code.INTERNAL,
          Status.Code.UNKNOWN,
          Status.Code.UNAUTHENTICATED,
          Status.Code.DATA_LOSS);

  /** Refusals that are about one question, and not about what is held. */
  private static final Set<ErrorReason> OF_THE_QUESTION =
      EnumSet.of(
          ErrorReason.ERROR_REASON_TARGET_NOT_ALLOWED,
          ErrorReason.ERROR_REASON_MIN_VALIDITY_TOO_LONG,
          ErrorReason.ERROR_REASON_FIELD_INVALID);

  private final Status.Code code;
  private final String reasonText;
  private final Duration retryDelay;
  private final transient Map<String, String> metadata;

  private BrokerException(
      Status.Code code,
      String reasonText,
      String text,
      Duration retryDelay,
      Map<String, String> metadata,
      Throwable cause) {
    super(text, cause);
    this.code = code;
    this.reasonText = reasonText;
    this.retryDelay = retryDelay;
    this.metadata = metadata;
  }

  /** Makes the error of a call from what gRPC threw. */
  static BrokerException of(Throwable thrown) {
    if (thrown instanceof BrokerException known) {
      return known.again();
    }
    Status status = Status.fromThrowable(thrown);
    String reason = "";
    Duration delay = null;
    Map<String, String> metadata = Map.of();
    com.google.rpc.Status details = null;
    try {
      details = StatusProto.fromThrowable(thrown);
    } catch (RuntimeException unreadable) {
      // Details of something in between that are none: the code stands for itself.
    }
    if (details != null) {
      for (Any detail : details.getDetailsList()) {
        try {
          if (detail.is(ErrorInfo.class)) {
            ErrorInfo info = detail.unpack(ErrorInfo.class);
            if (info.getDomain().equals(DOMAIN)) {
              reason = info.getReason();
              metadata = Map.copyOf(info.getMetadataMap());
            }
          } else if (detail.is(RetryInfo.class)) {
            delay = Durations.of(detail.unpack(RetryInfo.class).getRetryDelay());
          }
        } catch (InvalidProtocolBufferException unreadable) {
          // A detail of a broker that is not of this kind: the code stands for itself.
        }
      }
    }
    String text = status.getDescription() == null ? "no message" : status.getDescription();
    return new BrokerException(status.getCode(), reason, text, delay, metadata, thrown);
  }

  /** Makes the error of a subscription. */
  static BrokerException of(ErrorStatus error) {
    return new BrokerException(
        Status.fromCodeValue(error.getCode()).getCode(),
        error.getReason() == ErrorReason.ERROR_REASON_UNSPECIFIED
                || error.getReason() == ErrorReason.UNRECOGNIZED
            ? ""
            : error.getReason().name().substring(PREFIX.length()),
        error.getMessage(),
        error.hasRetryDelay() ? Durations.of(error.getRetryDelay()) : null,
        Map.of(),
        null);
  }

  /** Makes an error of the client's own. */
  static BrokerException of(Status.Code code, String text) {
    return new BrokerException(code, "", text, null, Map.of(), null);
  }

  /** Makes it anew for another one who waited, with the stack of that one. */
  BrokerException again() {
    return new BrokerException(code, reasonText, getMessage(), retryDelay, metadata, getCause());
  }

  /** Whether it says that what is held must not be used any longer. */
  boolean refusesWhatIsHeld() {
    return REFUSALS.contains(code) && !OF_THE_QUESTION.contains(reason());
  }

  /** Whether the same may be answered another time. */
  boolean mayPass() {
    return PASSING.contains(code);
  }

  /**
   * Why the call failed.
   *
   * @return unspecified where gRPC itself made the error, or the broker is newer and sent a word
   *     that this client does not know, which {@link #reasonText} still holds
   */
  public ErrorReason reason() {
    try {
      return ErrorReason.valueOf(PREFIX + reasonText);
    } catch (IllegalArgumentException unknown) {
      return ErrorReason.ERROR_REASON_UNSPECIFIED;
    }
  }

  /**
   * The reason as the broker's bare word, as {@code TASK_ENDED}; empty where gRPC made the error.
   */
  public String reasonText() {
    return reasonText;
  }

  /** The gRPC status code. */
  public Status.Code code() {
    return code;
  }

  /** How long to wait at least before trying again, where the broker says so. */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(retryDelay);
  }

  /** What the reason is about, as {@code identity}; the keys stand at {@link ErrorReason}. */
  public Map<String, String> metadata() {
    return metadata == null ? Map.of() : metadata;
  }

  /** With code and reason, before the message. */
  @Override
  public String toString() {
    String reason = reasonText.isEmpty() ? "" : " " + reasonText;
    return getClass().getName() + ": " + code + reason + ": " + getMessage();
  }
}
