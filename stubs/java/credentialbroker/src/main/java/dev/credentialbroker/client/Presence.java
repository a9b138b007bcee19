package dev.credentialbroker.client;

import java.time.Duration;
import java.util.Optional;

/** Whether the broker is there, told once each time that this changes; and what last went wrong. */
final class Presence {
  private static final System.Logger LOG = System.getLogger(Presence.class.getPackageName());

  private volatile boolean away;
  private volatile BrokerException lastError;

  /**
   * The broker cannot be reached, or says nothing.
   *
   * @param held how many authorizations go on without it
   * @param firstEnd in how long the first of them ends
   */
  void away(int held, Optional<Duration> firstEnd) {
    synchronized (this) {
      if (away) {
        return;
      }
      away = true;
    }
    String ends =
        firstEnd
            .map(left -> ", the first of which ends in %.1f s".formatted(left.toMillis() / 1e3))
            .orElse("");
    LOG.log(
        System.Logger.Level.WARNING,
        "the broker is away; " + held + " authorizations are held" + ends);
  }

  /** The broker can be reached. */
  void back() {
    if (!away) {
      return;
    }
    synchronized (this) {
      if (!away) {
        return;
      }
      away = false;
    }
    LOG.log(System.Logger.Level.INFO, "the broker is back");
  }

  void failed(BrokerException error) {
    lastError = error;
  }

  Optional<BrokerException> lastError() {
    return Optional.ofNullable(lastError);
  }
}
