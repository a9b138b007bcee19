package dev.credentialbroker.client;

import com.google.protobuf.Timestamp;
import java.time.Duration;

/** Durations between Java, protobuf and gRPC's nanoseconds. */
final class Durations {
  private static final Duration LONGEST = Duration.ofDays(36_525);

  private Durations() {}

  /** Returns a duration in nanoseconds; one that has too many for a clock is cut to 100 years. */
  static long nanos(Duration duration) {
    return (duration.compareTo(LONGEST) < 0 ? duration : LONGEST).toNanos();
  }

  static Duration of(com.google.protobuf.Duration duration) {
    return Duration.ofSeconds(duration.getSeconds(), duration.getNanos());
  }

  static com.google.protobuf.Duration toProto(Duration duration) {
    return com.google.protobuf.Duration.newBuilder()
        .setSeconds(duration.getSeconds())
        .setNanos(duration.getNano())
        .build();
  }

  /** Returns the nanoseconds from one time of the broker to another; negative when it is before. */
  static long nanosBetween(Timestamp from, Timestamp to) {
    return Duration.ofSeconds(
            Math.subtractExact(to.getSeconds(), from.getSeconds()),
            (long) to.getNanos() - from.getNanos())
        .toNanos();
  }
}
