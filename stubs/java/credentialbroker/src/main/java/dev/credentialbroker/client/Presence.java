package dev.credentialbroker.client;

import java.util.LongSummaryStatistics;
import java.util.Optional;

/** Whether the broker is there, told once each time that this changes; and what last went wrong. */
final class Presence {
  private static final System.Logger LOG = System.getLogger(Presence.class.getPackageName());

  private final Cache cache;
  private volatile boolean away;
  private volatile boolean closed;
  private volatile BrokerException lastError;

  /**
   * @param cache what goes on while the broker is away
   */
  Presence(Cache cache) {
    this.cache = cache;
  }

  /** The broker cannot be reached, or says nothing. */
  void away() {
    synchronized (this) {
      if (away || closed) {
        return;
      }
      away = true;
    }
    LongSummaryStatistics left = cache.left(System.nanoTime());
    String ends =
        left.getCount() == 0
            ? ""
            : ", the first of which ends in %.1f s".formatted(left.getMin() / 1e9);
    LOG.log(
        System.Logger.Level.WARNING,
        "the broker is away; " + left.getCount() + " authorizations are held" + ends);
  }

  /** The broker said something. */
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

  /** Something went wrong with the broker. */
  void failed(BrokerException error) {
    lastError = error;
  }

  Optional<BrokerException> lastError() {
    return Optional.ofNullable(lastError);
  }

  /** From now on nothing is told: that a closed client reaches nobody is no news. */
  void close() {
    closed = true;
  }
}
