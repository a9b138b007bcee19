package dev.credentialbroker.client;

import dev.credentialbroker.v1.Authorization;

/**
 * The times of an answer, on the monotonic clock of this process ({@link System#nanoTime}).
 *
 * <p>The broker's clock is only ever compared with itself: each time is as far from the moment of
 * receipt as it is from the {@code server_time} of the answer.
 *
 * @param due when to ask for the next one
 * @param late when to ask although the broker was to send the next one by itself
 * @param end from when on it must not be used
 */
record Lifetime(long due, long late, long end) {
  static Lifetime of(Authorization answer, long received) {
    long due = received + Durations.nanosBetween(answer.getServerTime(), answer.getRefreshTime());
    long end = received + Durations.nanosBetween(answer.getServerTime(), answer.getExpireTime());
    return new Lifetime(due, due + (end - due) / 2, end);
  }

  boolean isDue(long now) {
    return now - due >= 0;
  }

  boolean isLate(long now) {
    return now - late >= 0;
  }

  /**
   * Returns for how many nanoseconds from {@code now} it may be used; not positive once it ended.
   */
  long left(long now) {
    return end - now;
  }
}
