package dev.credentialbroker.client;

import java.net.URI;
import java.util.concurrent.TimeUnit;

/**
 * Gives what is held, and keeps it current: asks in the background for what is due, on use and for
 * connections that are open, and lets go of what nobody uses.
 */
final class Upkeep {
  /** So often at most the entry of a connection is looked at. */
  private static final long LEAST_LOOK = TimeUnit.MILLISECONDS.toNanos(500);

  private static final long LEAST_SWEEP = TimeUnit.MILLISECONDS.toNanos(1);
  private static final long MOST_SWEEP = TimeUnit.SECONDS.toNanos(30);

  private final BrokerChannel channel;
  private final Cache cache;
  private final Questions questions;
  private final Watch watch;

  /**
   * @param watch null where there is none
   * @param idle nanoseconds after which what nobody uses is let go
   */
  Upkeep(BrokerChannel channel, Cache cache, Questions questions, Watch watch, long idle) {
    this.channel = channel;
    this.cache = cache;
    this.questions = questions;
    this.watch = watch;
    channel.every(
        Math.min(Math.max(idle / 10, LEAST_SWEEP), MOST_SWEEP),
        () -> cache.sweep(System.nanoTime()));
  }

  /**
   * Returns what is held, for a use; null when that is not enough and the broker must be asked.
   *
   * @param minValidity nanoseconds that it has to last
   * @param origin where it is to be sent, or null
   */
  Authorization use(Key key, long minValidity, URI origin) {
    Entry entry = cache.get(key);
    if (entry == null) {
      return null;
    }
    long now = System.nanoTime();
    Authorization held = entry.use(now, minValidity, origin);
    if (held != null && held.lifetime().isDue(now)) {
      refresh(entry, held, now);
    }
    return held;
  }

  /**
   * Asks for the next value in the background, if nobody does and the last failure is old enough.
   */
  private void refresh(Entry entry, Authorization held, long now) {
    if (entry.beginRefresh(held, now, entry.watched && watch.isUp())) {
      channel.execute(
          () ->
              questions
                  .askAgain(entry.key)
                  .whenComplete((answer, failure) -> entry.endRefresh(failure)));
    }
  }

  /** Tells a connection what becomes of its entry, and keeps that in use, until it is closed. */
  void begin(BrokerConnection connection) {
    Entry entry = cache.get(connection.authorization().key());
    if (entry == null) {
      connection.change();
      return;
    }
    entry.connections.add(connection);
    Authorization held = entry.value();
    if (entry.isDropped() || held == null) {
      connection.change();
    } else {
      connection.tagIs(held.connectionTag());
      keepUp(connection);
    }
  }

  /**
   * Uses the entry of a connection, now and whenever it is due, as long as the connection is open
   * and may be used: without a watch nothing else would refresh it.
   */
  private void keepUp(BrokerConnection connection) {
    Entry entry = cache.get(connection.authorization().key());
    if (entry == null || connection.changed() || !entry.connections.contains(connection)) {
      return;
    }
    long now = System.nanoTime();
    Authorization held = entry.use(now, 0, null);
    if (held == null || held.lifetime().isDue(now)) {
      refresh(entry, held, now);
    }
    long due = held == null ? 0 : held.lifetime().due() - now;
    connection.next(channel.later(Math.max(due, LEAST_LOOK), () -> keepUp(connection)));
  }

  /** Takes note that a connection is closed: its entry was used until now. */
  void end(BrokerConnection connection) {
    Entry entry = cache.get(connection.authorization().key());
    if (entry != null) {
      entry.touch(System.nanoTime());
      entry.connections.remove(connection);
    }
    connection.next(null);
  }
}
