package dev.credentialbroker.client;

import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArraySet;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * What is held for one key. Read without a lock by every use; written under that of the cache,
 * except where it says otherwise.
 */
final class Entry {
  private static final int MOST_ORIGINS = 8;

  /** Uses are noted no more exactly than this, so that threads do not fight over one field. */
  private static final long USE_GRAIN = TimeUnit.MICROSECONDS.toNanos(100);

  final Key key;

  /** Names the subscription on every stream. */
  final String id;

  /**
   * Whether the broker is asked to send its values by itself. Written under the lock of the watch.
   */
  volatile boolean watched;

  final Set<BrokerConnection> connections = new CopyOnWriteArraySet<>();
  private final Backoff backoff =
      new Backoff(0.2, 2, 10, () -> ThreadLocalRandom.current().nextDouble());
  private volatile Authorization value;
  private volatile long used;

  /** Where the values may be sent, as the broker said; of the backend to which the tag belongs. */
  private volatile List<URI> origins = List.of();

  private String tag = "";
  private volatile boolean dropped;
  private boolean refreshing;
  private volatile long notBefore;

  Entry(Key key, String id, long now) {
    this.key = key;
    this.id = id;
    used = now;
    notBefore = now;
  }

  /** Returns what is held; null when that was withdrawn or has ended and was let go. */
  Authorization value() {
    return value;
  }

  boolean isDropped() {
    return dropped;
  }

  /** Returns what is held, for a use; null when that is not enough and the broker must be asked. */
  Authorization use(long now, long minValidity, URI origin) {
    Authorization held = value;
    if (held == null
        || held.lifetime().left(now) <= minValidity
        || (origin != null && !origins.contains(origin))) {
      return null;
    }
    touch(now);
    return held;
  }

  void touch(long now) {
    if (now - used > USE_GRAIN) {
      used = now;
    }
  }

  long used() {
    return used;
  }

  /** Whether nobody used it for so long; never while a connection stands on it. */
  boolean isIdle(long now, long idle) {
    return connections.isEmpty() && now - used >= idle;
  }

  /** Takes another value in the place of what is held. */
  void replace(Authorization next) {
    if (!next.connectionTag().equals(tag)) {
      tag = next.connectionTag();
      origins = List.of();
    }
    value = next;
    refreshed(next.lifetime().due());
    connections.forEach(each -> each.tagIs(next.connectionTag()));
  }

  /** Remembers an origin that the broker was asked about, if it was. */
  void allow(URI origin) {
    if (origin != null && !origins.contains(origin)) {
      List<URI> all = new ArrayList<>(origins);
      if (all.size() == MOST_ORIGINS) {
        all.remove(0);
      }
      all.add(origin);
      origins = List.copyOf(all);
    }
  }

  /** Lets go of what must not be used any longer. */
  void withdraw() {
    value = null;
    origins = List.of();
    connections.forEach(BrokerConnection::change);
  }

  /** Lets go of what has ended. */
  void expire(long now) {
    if (value != null && value.lifetime().left(now) <= 0) {
      value = null;
    }
  }

  void drop() {
    dropped = true;
    value = null;
  }

  /**
   * Takes the turn to refresh, if it is due and nobody has it. Any thread.
   *
   * @param held null when nothing is
   */
  boolean beginRefresh(Authorization held, long now, boolean watched) {
    boolean due =
        held == null || (watched ? held.lifetime().isLate(now) : held.lifetime().isDue(now));
    if (!due || now - notBefore < 0) {
      return false;
    }
    synchronized (this) {
      if (refreshing || dropped || now - notBefore < 0) {
        return false;
      }
      refreshing = true;
      return true;
    }
  }

  private void refreshed(long due) {
    synchronized (this) {
      backoff.reset();
      notBefore = due;
    }
  }

  /**
   * Gives the turn back. After a failure the next is a while later; one that refuses what is held
   * has dropped the entry.
   *
   * @param failure null when there was none
   */
  void endRefresh(Throwable failure) {
    synchronized (this) {
      refreshing = false;
      if (failure instanceof BrokerException error) {
        long told = error.retryDelay().map(Durations::nanos).orElse(0L);
        notBefore = System.nanoTime() + Math.max(backoff.next(), told);
      }
    }
  }
}
